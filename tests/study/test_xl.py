"""Stable Diffusion XL in the studies: a small pipeline of its architecture, saved to disk in its format."""

import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from catome import study, tiny
from catome.study import __main__ as command
from catome.study.run.generate import generate
from catome.study.run.parameters import Setting
from catome.study.run.store import fingerprint
from catome.study.studies import STUDIES
from helpers.paths import ROOT
from helpers.pipelines import sdxl
from helpers.processes import papermill

STUDIES_OF_UNETS = ("drift", "sweep", "schedules", "headline", "weights", "short", "allocation", "curves")
"""Those that a preset of chapters reruns; `transformer` takes it as the model beside."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as the Hub has it."""
    folder = tmp_path_factory.mktemp("sdxl")
    sdxl().save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Real images, a folder for each class."""
    folder = tmp_path_factory.mktemp("real")
    for place, name in enumerate(("desert", "lighthouse")):
        (folder / f"n{place:08}").mkdir()
        for number in range(5):
            Image.fromarray(tiny.render(name, 10**7 + number)).save(folder / f"n{place:08}/{number}.png")
    return folder


@pytest.fixture(scope="module")
def setting(folder):
    return Setting(
        model=str(folder), classes=["desert"], images=2, steps=3, height=64, width=64, batch_size=2
    )


def test_it_generates_as_diffusers_does(setting, monkeypatch):
    """With PLMS, as every study has it, and no watermark, also where its package is installed."""
    module = sys.modules["diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl"]
    monkeypatch.setattr(module, "is_invisible_watermark_available", lambda: True)
    monkeypatch.setattr(module, "StableDiffusionXLWatermarker", object, raising=False)
    pipe = study.load(setting)
    monkeypatch.undo()
    assert type(pipe).__name__ == "StableDiffusionXLPipeline"
    assert type(pipe.scheduler).__name__ == "PNDMScheduler"
    assert pipe.watermark is None
    made = generate(pipe, setting)
    assert made.shape == (2, 64, 64, 3)
    plain = sdxl()
    plain.scheduler = pipe.scheduler
    one = plain(
        setting.prompts[0],
        height=64,
        width=64,
        num_inference_steps=3,
        guidance_scale=setting.guidance,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images[0]
    np.testing.assert_allclose(generate(pipe, replace(setting, images=1, batch_size=1))[0], one, atol=1e-5)


def test_its_first_call_can_be_made_again(setting):
    pipe = study.load(setting)
    given, named = study.first_call(pipe, setting)
    assert "text_embeds" in named["added_cond_kwargs"]
    assert given[0].shape == (2, 4, 32, 32)  # one image, with guidance
    with torch.no_grad():
        assert pipe.unet(*given, **named).sample.shape == given[0].shape
    assert np.isfinite(generate(pipe, setting)).all()  # whole generations go on as before


def test_a_batch_that_does_not_fit_while_it_is_decoded_is_halved(setting, monkeypatch):
    """In half precision diffusers decodes in float32, and an error leaves the VAE so."""
    pipe = study.load(replace(setting, dtype="float16"))
    decode = pipe.vae.decode

    def short_of_memory(latents, **given):
        assert pipe.vae.dtype == latents.dtype == torch.float32
        if len(latents) > 1:
            raise torch.OutOfMemoryError("none left")
        return decode(latents, **given)

    monkeypatch.setattr(pipe.vae, "decode", short_of_memory)
    with pytest.warns(UserWarning, match="out of memory with batches of 2"):
        made = generate(pipe, setting)
    assert np.isfinite(made).all()
    assert pipe.vae.dtype == torch.float16


def test_rows_of_another_second_text_encoder_are_of_another_model(setting):
    pipe = study.load(setting)
    before = fingerprint(pipe)
    with torch.no_grad():
        next(pipe.text_encoder_2.parameters()).add_(1)
    assert fingerprint(pipe) != before


@pytest.mark.parametrize(
    ("lost", "says"),
    [("tokenizer_2", "the vocabulary of its tokenizer_2 is missing"), ("text_encoder_2", "text_encoder_2")],
)
def test_what_is_lost_of_it_is_named(folder, setting, tmp_path, lost, says):
    shutil.copytree(folder, tmp_path / "xl")
    for file in (tmp_path / "xl" / lost).iterdir():
        if "config" not in file.name:
            file.unlink()
    with pytest.raises(OSError, match=r"model=.*must be .*XL") as error:
        study.load(replace(setting, model=str(tmp_path / "xl")))
    assert says in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES_OF_UNETS)
def test_every_study_runs_on_it(folder, real, tmp_path, name, capsys):
    notebook = STUDIES[name].NOTEBOOK
    own = ROOT / f"data/presets/smoke/{notebook}.yaml"
    given = [name, "-f", str(ROOT / "data/presets/smoke.yaml"), *(["-f", str(own)] if own.is_file() else [])]
    given += ["--model", str(folder), "--height", "64", "--width", "64", "--output", str(tmp_path)]
    if "reference" in STUDIES[name].Parameters.names_of_parameters():
        given += ["--reference", str(real)]
    assert command.main(given) == 0, capsys.readouterr().err


@pytest.mark.slow
def test_a_transformer_stands_beside_it(folder, tmp_path, capsys):
    presets = [ROOT / "data/presets/smoke.yaml", ROOT / "data/presets/smoke/10_a_transformer.yaml"]
    given = ["transformer", *(word for preset in presets for word in ("-f", str(preset)))]
    given += ["--beside", str(folder), "--curve-kinds", "[ToDo]", "--output", str(tmp_path)]
    assert command.main(given) == 0, capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "notebook", ["01_tome_review", "02_similarity_per_step", "03_threshold_sweep", "cover"]
)
def test_notebooks_run_on_it(folder, real, tmp_path, notebook):
    own = ROOT / f"data/presets/smoke/{notebook}.yaml"
    given = ["-f", str(own)] if own.is_file() else []
    given += ["-p", "model", str(folder), "-p", "height", "64", "-p", "width", "64"]
    if notebook == "03_threshold_sweep":
        given += ["-p", "reference", str(real)]
    done = papermill(notebook, tmp_path / "out.ipynb", *given)
    assert done.returncode == 0, done.stderr[-3000:]
