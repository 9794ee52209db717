import json
import shutil
import types

import numpy as np
import pytest
import torch

from catome import tiny
from catome.models.unet import transformer_blocks
from catome.tiny import evaluate, features, train
from helpers.paths import ROOT
from helpers.sentences import assert_says

MODEL = ROOT / "data" / "tiny-sd"


def test_scenes_are_functions_of_class_and_seed():
    assert len(tiny.CLASSES) >= 12
    for name in tiny.CLASSES:
        image = tiny.render(name, 5)
        assert image.shape == (128, 128, 3)
        assert image.dtype == np.uint8
        assert np.array_equal(image, tiny.render(name, 5))
        assert np.abs(image.astype(int) - tiny.render(name, 6)).mean() > 2
        assert tiny.render(name, 5, size=64).shape == (64, 64, 3)


def test_classes_differ_more_than_their_members():
    def mean_layout(name, seeds):
        images = np.stack([tiny.render(name, seed) for seed in seeds]) / 255
        return images.reshape(len(seeds), 8, 16, 8, 16, 3).mean((0, 2, 4))

    first, second = ({n: mean_layout(n, seeds) for n in tiny.CLASSES} for seeds in (range(12), range(12, 24)))
    for name in tiny.CLASSES:
        distances = {other: np.abs(first[name] - second[other]).mean() for other in tiny.CLASSES}
        assert min(distances, key=distances.get) == name


def test_unknown_scene():
    with pytest.raises(ValueError, match="'dessert' is no scene class"):
        tiny.render("dessert", 0)


def test_the_model_has_the_topology_of_stable_diffusion(pipe):
    top = {name: block for name, block in transformer_blocks(pipe.unet).items() if "mid" not in name}
    assert [name.split(".")[0] for name in top] == ["down_blocks"] * 2 + ["up_blocks"] * 3
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert type(pipe.scheduler).__name__ == "PNDMScheduler"
    assert pipe.unet.config.layers_per_block == 2
    assert pipe.unet.config.sample_size == 32


def test_the_model_is_small_and_safe():
    files = [file for file in MODEL.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 24e6
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".md", ".txt"}


def test_the_model_is_as_good_as_its_card_says():
    """The figures were measured by catome.tiny.evaluate; a sample of them is measured again below."""
    figures = json.loads((MODEL / "figures.json").read_text())
    card = (MODEL / "README.md").read_text()
    assert figures["samples"] >= 240
    assert f"{figures['vae_psnr_db']:.1f} dB" in card
    assert f"{figures['named_correctly']:.1%}" in card
    for words in evaluate.shortfalls(figures):  # what is not reached is said
        assert words in card


def test_the_card_is_what_would_be_written_and_names_its_aims(tmp_path):
    model = shutil.copytree(MODEL, tmp_path / "model")
    figures, training = (json.loads((MODEL / name).read_text()) for name in ("figures.json", "training.json"))
    evaluate.write_card(model, figures, training)
    card = (model / "README.md").read_text()
    assert card == (MODEL / "README.md").read_text()
    for aim in (
        "90% of the samples",
        "60% of every class",
        "27 dB or more",
        "three of the five",
        "over 2 dB of PSNR",
    ):
        assert aim in card
    assert "Every aim" in card
    assert "Not reached" not in card
    figures["merging_psnr_db_by_threshold"]["-1"] = figures["merging_psnr_db_by_threshold"]["0.9"] - 1
    evaluate.write_card(model, figures, training)
    card = (model / "README.md").read_text()
    (missed,) = (line for line in card.splitlines() if "Not reached" in line)
    assert_says(missed, "- Not reached", "merging everything", " 1.0 dB", "aim 2 dB")
    assert "Every aim" not in card


def test_the_vae_is_as_good_as_its_card_says(pipe):
    figures = json.loads((MODEL / "figures.json").read_text())
    again = evaluate.vae_reconstruction(pipe, 2)
    for name, value in figures["vae_psnr_db_by_class"].items():
        assert abs(again[name] - value) < 4, name
    assert np.mean(list(again.values())) >= 27


def test_samples_are_what_was_asked_for(pipe):
    """One sample of each class, fewer steps than the card's: a held-out classifier names most of them."""
    from safetensors.torch import load_file

    judge = tiny.model.SceneNet()
    judge.load_state_dict({k: v.float() for k, v in load_file(MODEL / "judge" / "model.safetensors").items()})
    labels = torch.arange(len(tiny.CLASSES))
    renders = torch.from_numpy(np.stack([tiny.render(n, 77_000_000) for n in tiny.CLASSES])).permute(
        0, 3, 1, 2
    )
    assert features.accuracy(judge.eval(), renders, labels).float().mean() >= 0.9
    assert features.accuracy(judge, renders.roll(1, 0), labels).float().mean() <= 0.1
    samples = evaluate.sample(pipe, list(tiny.CLASSES), [5] * len(labels), 20, tiny.GUIDANCE_SCALE)
    expected = json.loads((MODEL / "figures.json").read_text())["named_correctly"]
    assert features.accuracy(judge, samples, labels).float().mean() >= min(0.75, expected - 0.2)


def test_no_model_is_said_in_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="holds no embedded model") as caught:
        tiny.load_pipeline(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "CATOME_TINY_MODEL" in str(caught.value)
    monkeypatch.setenv("CATOME_TINY_MODEL", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        tiny.find_model()


class Images(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]


def test_torch_fidelity_computes_fid_and_kid_with_the_scene_features():
    from torch_fidelity import calculate_metrics

    def scenes(first, count=8):
        images = [tiny.render(name, first + i) for name in tiny.CLASSES for i in range(count)]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

    def fid(a, b):
        return calculate_metrics(
            input1=Images(a), input2=Images(b), fid=True, kid=True, kid_subset_size=40, kid_subsets=10,
            feature_extractor=features.register(), cuda=False, verbose=False, cache=False, batch_size=32,
        )  # fmt: skip

    real, others = scenes(20_000_000), scenes(30_000_000)
    soft = torch.nn.functional.avg_pool2d(others.float(), 5, 1, 2, count_include_pad=False).to(torch.uint8)
    same, blurred = fid(real, others), fid(real, soft)
    for key in ("frechet_inception_distance", "kernel_inception_distance_mean"):
        assert same[key] < blurred[key]
    assert features.register() == features.NAME  # twice is harmless
    with pytest.raises(ValueError, match="must be uint8"):
        features.SceneFeatures(features.NAME, [features.LAYER])(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def toy_run(file, steps=6, fail_at=None):
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 2)
    args = types.SimpleNamespace(device=torch.device("cpu"), seed=3, precision="float32")
    trainer = train.Trainer(network, file, steps, args, rate=1e-2, ema=0.9, save_every_s=0)

    def loss_of(step, generator):
        if step == fail_at:
            raise KeyboardInterrupt
        return (network(torch.randn(8, 4, generator=generator)) - torch.randn(8, 2)).square().mean()

    trainer.run(loss_of, "toy")
    return trainer


@pytest.mark.parametrize("fail_at", [1, 3, 5])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path, fail_at):
    whole = toy_run(tmp_path / "whole.safetensors")
    with pytest.raises(KeyboardInterrupt):
        toy_run(tmp_path / "broken.safetensors", fail_at=fail_at)
    resumed = toy_run(tmp_path / "broken.safetensors")
    assert resumed.step == whole.step == 6
    for a, b in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(whole.best.parameters(), resumed.best.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_recipe_makes_a_model_that_loads(tmp_path):
    """All stages, a step or two each."""
    arguments = (
        "--per-class 2 --vae-steps 2 --vae-batch 2 --unet-steps 2 --unet-batch 2 --net-steps 1 --device cpu"
    )
    train.main(["--work", str(tmp_path / "work"), "--out", str(tmp_path / "model"), *arguments.split()])
    pipe = tiny.load_pipeline(tmp_path / "model")
    assert pipe(tiny.prompt("desert"), num_inference_steps=1, output_type="np").images.shape == (
        1,
        128,
        128,
        3,
    )
    assert json.loads((tmp_path / "model" / "training.json").read_text())["stages"]["unet"]["steps"] == 2


@pytest.mark.parametrize(
    "argument", ["--per-class=3", "--vae-steps=0", "--unet-batch=-1", "--precision=float64"]
)
def test_the_recipe_refuses_nonsense(argument, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        train.main([argument, "--work", str(tmp_path / "work")])
    assert caught.value.code == 2
    assert argument.split("=")[0] in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
