from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import catome
from catome import study, tiny
from catome.study.plots import figures
from catome.study.run.parameters import Setting, imagenet_classes
from catome.study.studies.chapters import Review
from helpers.paths import ROOT

SMOKE = yaml.safe_load((ROOT / "data/presets/smoke.yaml").read_text())
PAPER = yaml.safe_load((ROOT / "data/presets/paper.yaml").read_text())


def settle(**change):
    return Review.of({**SMOKE, "threshold": 0.9, "ratio": 0.5, "step": 2, "block": 0, **change})


def test_settle_keeps_what_was_given():
    setting = settle(images=5, batch_size=2)
    assert setting.embedded
    assert setting.names == ["desert", "lighthouse", "desert", "lighthouse", "desert"]
    assert setting.prompts[1] == tiny.prompt("lighthouse")
    assert (setting.threshold, setting.step_shown) == (0.9, 2)
    assert settle(step=None, steps=50).step_shown == 20
    assert settle(classes="volcano, desert").classes == ["volcano", "desert"]
    assert settle(classes=None, images=12).names == list(tiny.CLASSES)


def test_the_papers_classes_are_imagenets():
    names = imagenet_classes()
    assert len(names) == 1000
    assert names.count("crane") == 0
    setting = study.Setting(**{**PAPER, "device": "cpu"})
    assert setting.prompts[0] == "A high quality photograph of a tench."
    assert (setting.steps, setting.guidance, setting.guidance_rescale, setting.height) == (50, 7.5, 1.0, 512)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(imges=3), "imges=3 is no parameter of this study (did you mean 'images'?)"),
        (dict(images=0), "images=0 must be at least 1"),
        (dict(images=2.5), "images=2.5 must be an integer"),
        (dict(steps="ten"), "steps='ten' must be an integer"),
        (dict(guidance=-1), "guidance=-1 must be between 0 and 100"),
        (dict(guidance=float("nan")), "guidance=nan"),
        (dict(guidance_rescale=2), "guidance_rescale=2 must be between 0 and 1"),
        (dict(classes=[]), "classes=[] must be a list of names"),
        (dict(classes=["desert", ""]), "classes=['desert', '']"),
        (dict(classes="dessert"), "no 'dessert' (did you mean 'desert'?)"),
        (dict(prompt="A photograph."), "must hold {} once"),
        (dict(prompt="A {} of {x}"), "must hold {} once"),
        (dict(prompt="A {} of }"), "must hold {} once"),
        (dict(prompt="A {{}} of"), "must hold {} once"),
        (dict(prompt="A photograph of a {}."), "the embedded model knows no other sentence"),
        (dict(height=100), "height=100 must be a multiple of 8"),
        (dict(device="gpu"), "device='gpu' must be a torch device"),
        (dict(device="meta"), "device='meta'"),
        (dict(device="cpu:5"), "device='cpu:5'"),
        (dict(steps=1000), "steps=1000 must be at most 999"),
        (dict(seed=10**15), "seed=1000000000000000 must be at most"),
        (dict(output="/dev/null/here"), "output='/dev/null/here' must be a folder"),
        (dict(dtype="float8"), "dtype='float8' must be one of 'float32'"),
        (dict(output=""), "output='' must be a text"),
        (dict(threshold=1.2), "threshold=1.2 must be between -1 and 1"),
        (dict(step=6), "step=6 must be below 6, the U-Net calls of steps=5"),
        (dict(seed=-1), "seed=-1"),
        (dict(model=""), "model=''"),
    ],
)
def test_bad_parameters_are_named_before_anything_runs(change, says):
    with pytest.raises((ValueError, TypeError)) as caught:
        settle(**change)
    assert says in str(caught.value)


def test_missing_parameters_are_named():
    with pytest.raises(ValueError, match="seed is missing"):
        Setting.of({name: value for name, value in SMOKE.items() if name != "seed"})
    assert set(SMOKE) == set(Setting.names_of_parameters())


def test_images_do_not_depend_on_the_batch_size(pipe):
    together = study.generate(pipe, settle(images=3, batch_size=3))
    alone = study.generate(pipe, settle(images=3, batch_size=1))
    np.testing.assert_allclose(together, alone, atol=2e-3)
    assert np.abs(together[0] - together[2]).mean() > 0.01  # the same class from other noise


def test_similarity_study(pipe, tmp_path, monkeypatch):
    asked = settle(images=3, batch_size=2)
    seen = study.similarity_study(pipe, asked, tmp_path, recorded=None)
    assert seen.best.shape == (6, 5, 3, 768)
    assert seen.blocks == ["down 0", "down 1", "up 0", "up 1", "up 2"]
    assert seen.tokens == 1024
    with catome.probe(pipe) as record:
        study.generate(pipe, settle(images=3, batch_size=3))
    own = np.sort(record.similarity()[:, :, 3:].numpy(), axis=-1)
    np.testing.assert_allclose(seen.best, own, atol=1e-2)  # batches of another size, and rounded down
    assert (seen.best - own).mean() == pytest.approx(-0.001, abs=3e-4)
    assert (np.diff(seen.best, axis=-1) >= 0).all()
    np.testing.assert_allclose(seen.best * 500, np.round(seen.best * 500), atol=1e-3)
    monkeypatch.setattr(
        "catome.study.measure.similarity.generate_batch", lambda *_: pytest.fail("it was made again")
    )
    np.testing.assert_array_equal(
        study.similarity_study(pipe, asked, tmp_path, recorded=None).best, seen.best
    )
    with pytest.raises(pytest.fail.Exception, match="made again"):
        study.similarity_study(pipe, settle(images=4, batch_size=2), tmp_path, recorded=None)
    monkeypatch.undo()

    table = study.shares_above(seen, [-1.0, 0.9])
    assert len(table) == 2 * 6 * 5 * 3
    assert (table[table["threshold"] == -1.0]["share"] == 0.75).all()
    one = table[
        (table["threshold"] == 0.9)
        & (table["step"] == 4)
        & (table["block"] == "up 0")
        & (table["image"] == 1)
    ]
    assert one["share"].item() == pytest.approx((seen.best[4, 2, 1] >= 0.9).sum() / 1024)

    weakest = study.weakest_merged(seen, 0.5)
    assert weakest.shape == (6, 5, 3)
    assert ((seen.best >= weakest[..., None]).sum(-1) >= 512).all()  # several may be equally similar
    assert ((seen.best > weakest[..., None]).sum(-1) < 512).all()
    with pytest.raises(ValueError, match="merges no token"):
        study.weakest_merged(seen, 0.0)


def test_merged_colours_are_the_means_of_groups():
    rng = np.random.default_rng(0)
    image = rng.random((8, 8, 3)).astype(np.float32)
    import torch

    tokens = torch.from_numpy(rng.standard_normal((2, 16, 4)).astype(np.float32))
    plan = catome.match(tokens, (4, 4), threshold=0.3)
    painted = figures.merged_colours(image, plan, 1, (4, 4)).reshape(16, 3)
    blocks = image.reshape(4, 2, 4, 2, 3).mean((1, 3)).reshape(16, 3)
    target = plan.target[1].numpy()
    for token in range(16):
        members = np.flatnonzero(target == target[token])
        np.testing.assert_allclose(painted[token], blocks[members].mean(0), atol=1e-5)


def test_the_real_loading_path_reads_a_diffusers_folder(pipe, tmp_path):
    """The loading code of Stable Diffusion v1.5, on a pipeline saved to disk in the same format."""
    pipe.save_pretrained(tmp_path)
    setting = settle()
    other = study.load(replace(setting, model=str(tmp_path)))
    assert np.array_equal(study.generate(pipe, setting), study.generate(other, setting))


def test_the_variance_of_the_share_is_split_between_steps_and_images():
    steps, images = 5, 4
    index = [(0.9, step, block, image) for step in range(steps) for block in "ab" for image in range(images)]
    table = pd.DataFrame(index, columns=["threshold", "step", "block", "image"])

    def parts(share):
        return study.variance_of_share(table.assign(share=share)).loc[0.9].to_dict()

    assert parts(table["step"]) == pytest.approx({"step": 1, "image": 0, "both": 0})
    assert parts(table["image"]) == pytest.approx({"step": 0, "image": 1, "both": 0})
    both = parts(table["step"] + 2 * table["image"])
    assert both["both"] == pytest.approx(0)
    assert both["image"] / both["step"] == pytest.approx(4 * np.var(range(images)) / np.var(range(steps)))
    assert parts((table["step"] % 2) ^ (table["image"] % 2))["both"] > 0.5
    assert np.isnan(list(parts(0.5 + 0 * table["step"]).values())).all()


def test_notebooks_keep_what_they_make_where_make_keeps_it(tmp_path, monkeypatch):
    """JupyterLab runs them in their own folder, make in the one above."""
    for folder in (ROOT, ROOT / "notebooks"):
        monkeypatch.chdir(folder)
        given = Setting.checked({"output": "_build/output"})
        assert Path(given.output).resolve() == ROOT / "_build/output"
    absolute = Setting.checked({"output": str(tmp_path)})
    assert absolute.output == str(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert Setting.checked({"output": "out"}).output == "out"
