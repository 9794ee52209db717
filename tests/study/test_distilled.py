"""Four steps of a distilled model: which generations, by which sampler, and what is said of them."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from diffusers import LCMScheduler, PNDMScheduler

from catome import study, tiny
from catome.study import __main__ as command
from catome.study import methods
from catome.study.measure import quality
from catome.study.measure.comparison import Comparison
from catome.study.run.generate import with_sampler
from catome.study.run.parameters import Setting
from catome.study.studies import curves, distilled, short
from catome.study.studies import jobs as counting
from catome.study.studies.compose import HELD_OUT
from catome.study.studies.distilled import Parameters, Result, no_words
from helpers.sentences import assert_says

IMAGES = 4


@pytest.fixture(scope="module")
def lcm():
    return tiny.load_lcm()


def test_by_default_it_is_four_steps_without_guidance_of_images_by_which_nothing_was_chosen():
    params = Parameters()
    assert (params.model, params.sampler, params.steps, params.guidance) == ("tiny-lcm", "LCM", 4, 1.0)
    assert params.seed == HELD_OUT
    assert params.watched == Setting(
        model="tiny-lcm", steps=4, guidance=1.0, seed=HELD_OUT, images=params.drift_images
    )


def test_each_generation_calls_the_model_once_a_step_and_without_a_second_row():
    table = counting.table(distilled.jobs(Parameters(steps=3, images=5, drift_images=2)))
    assert set(table["calls"]) == {3}
    assert set(table["rows"]) == {1}
    assert table.groupby("what")["images"].max().to_dict() == {"drift": 2, "images": 5}
    by_plms = counting.table(distilled.jobs(Parameters(steps=3, sampler=None)))
    assert set(by_plms["calls"]) == {4}


def test_without_peft_the_command_says_so_in_one_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("diffusers.utils.USE_PEFT_BACKEND", False)
    assert command.main(["distilled", "--output", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert_says(said, "error:", "pip install peft")
    assert "Traceback" not in said


def test_loading_it_warns_of_nothing(capfd):
    pipe = tiny.load_lcm()
    with with_sampler(pipe, "LCM"):
        pass
    lines = capfd.readouterr().err.replace("\r", "\n").splitlines()
    assert not [line for line in lines if line.strip() and "Loading" not in line]  # but for progress bars


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"steps": 1}, "steps=1 must be at least 2"),
        ({"steps": 51}, "steps=51 must be at most 50"),
        ({"sampler": "PLMS"}, "sampler='PLMS' must be one of 'DPM\\+\\+', 'Euler', 'LCM', None"),
        ({"drift_images": 0}, "drift_images=0 must be at least 1"),
    ],
)
def test_bad_parameters_are_refused(given, says):
    with pytest.raises((ValueError, TypeError), match=says):
        Parameters.checked(given)


@pytest.mark.parametrize("sampler", [None, "DPM++"])
def test_the_distilled_model_is_not_loaded_for_another_sampler(sampler):
    with pytest.raises(ValueError, match="model='tiny-lcm' makes images by the sampler 'LCM' alone"):
        study.load(curves.Parameters(model="tiny-lcm", sampler=sampler))
    with pytest.raises(ValueError, match="model='tiny-lcm' makes images by the sampler 'LCM' alone"):
        study.load(Setting(model="tiny-lcm"))


def test_chapter_9_has_it_beside_the_embedded_model_alone(tmp_path):
    params = short.Parameters(
        distilled_steps=3, distilled_images=5, curve_kinds=["ToDo"], ratio=0.25, drift_images=7, images=2
    )
    asked = params.of_distilled
    assert isinstance(asked, Parameters)
    assert (asked.model, asked.sampler, asked.steps, asked.guidance) == ("tiny-lcm", "LCM", 3, 1.0)
    assert (asked.images, asked.seed, asked.ratio, asked.drift_images) == (5, HELD_OUT, 0.25, 7)
    assert list(asked.kinds) == ["ToDo"]
    assert short.Parameters(distilled=None).of_distilled is None
    other = short.Parameters(model=str(tmp_path), classes=["harbour"], prompt="A {}.")
    assert other.of_distilled is None
    # in four steps, no forecast that grows leaves out a call
    assert short.Parameters(curve_kinds=["merged keys + forecast"]).of_distilled is None
    with pytest.raises(ValueError, match="distilled_steps=51 must be at most 50"):
        short.Parameters.checked({"distilled_steps": 51})
    own = short.Parameters(model=str(tmp_path), distilled="some/lcm").of_distilled
    assert own.model == "some/lcm"


def result(psnr: dict[tuple[str, str], float], apart: float = 0.6) -> Result:
    """A result whose images have these PSNR by kind and setting, and whose pairs of neighbouring calls are so
    far apart."""
    every = curves.kinds(4, few=True)
    kinds, rows = {}, []
    for (kind, name), value in psnr.items():
        method = every[kind][name]
        kinds.setdefault(kind, {})[name] = method
        for image in range(IMAGES):
            row = {"method": method.label, "image": image, "class": "desert", "psnr": value + 0.1 * image}
            row |= {"ssim": 0.9, "feature_distance": 1.0, "psnr_real": np.nan, "ssim_real": np.nan}
            rows.append(row | {"merged_share": [], "features": np.ones(3)})
    labels = [method.label for some in kinds.values() for method in some.values()]
    turned = curves.Result(
        Parameters(images=IMAGES), kinds, Comparison(pd.DataFrame(rows), labels, "scene", {})
    )
    by_lag = [np.array([apart + 0.01 * image, 0.8, 0.9]) for image in range(IMAGES)]
    drift = SimpleNamespace(rows=pd.DataFrame({"image": range(IMAGES), "block": "up 0", "by_lag": by_lag}))
    return Result(Parameters(images=IMAGES, drift_images=IMAGES), turned, drift)


def clock(found: Result, seconds: dict[tuple[str, str], float]) -> pd.DataFrame:
    """Rows of turns in which the unmerged generation takes two seconds."""
    labels = {methods.unmerged().label: 2.0}
    for (kind, name), value in seconds.items():
        labels[found.curves.kinds[kind][name].label] = value
    rows = [
        {"method": label, "image": image, "seconds": value, "flops": value, "class": "desert"}
        for label, value in labels.items()
        for image in range(IMAGES)
    ]
    return pd.DataFrame(rows).assign(device="cpu", threads=2)


PAPERS, OWN = ("CA-ToMe", "t = 0.7"), ("merged keys", "t = 0.7")


def test_the_words_are_those_of_the_frontier_and_of_the_drift(monkeypatch):
    monkeypatch.setattr(distilled, "turns_on", lambda clock: f"Timed on {clock['image'].nunique()} images.")
    found = result({PAPERS: 25.0, OWN: 35.0})
    words = found.words(clock(found, {PAPERS: 1.8, OWN: 1.5}))
    assert set(words) == set(no_words())
    assert_says(words["distilled_made"], "4 images in 4 steps", "in 2 settings")
    assert words["distilled_clock"] == "Timed on 4 images."
    best = "merged keys (t = 0.7)"
    assert_says(
        words["distilled_summary"], "In 4 steps", "56% of the pairs", f"in time are: {best}.", "No setting"
    )
    assert words["distilled_papers"] == "No setting of CA-ToMe is unbeaten, in time or in work."
    assert_says(words["distilled_own"], "t = 0.7", "is unbeaten in time", "is unbeaten in work")
    assert_says(words["distilled_drift"], "a mean distance of 0.6", "over 4 images", "56% of the pairs")
    assert words["distilled_searches"] == "Fitted to 4 calls, CONFIG_3 finds pairs at 4 of them."
    assert words["distilled_skipping"].startswith("No method was tried")
    turned = result({PAPERS: 35.0, OWN: 25.0})
    words = turned.words(clock(turned, {PAPERS: 1.5, OWN: 1.8}))
    assert_says(words["distilled_summary"], "Unbeaten in time are: CA-ToMe (t = 0.7).")


def test_the_card_is_told_for_what_it_has(tmp_path):
    figures = json.loads((tiny.find_lcm() / "figures.json").read_text())
    own, plain = figures["lcm"]["4"], figures["dpm"]["4"]
    assert_says(
        distilled.of_card(Parameters()),
        "in 4 steps",
        f"{own['named_correctly']:.1%}",
        f"FID is {own['scene_fid']:.1f}",
        f"{plain['named_correctly']:.1%} and {plain['scene_fid']:.1f}",
    )
    assert distilled.of_card(Parameters(steps=3)) == ""
    assert distilled.of_card(Parameters(model=str(tmp_path))) == ""


def test_without_a_distilled_model_one_sentence_says_so():
    words = no_words()
    said = {name for name, text in words.items() if text}
    assert said == {"distilled_made", "distilled_summary"}
    assert len({words[name] for name in said}) == 1


def test_methods_that_skip_calls_are_named_with_their_range():
    psnr = {
        ("DeepCache", "every 2"): 18.07,
        ("DeepCache", "every 3"): 15.07,
        ("fewer steps", "3 steps"): 25.07,
    }
    found = result({OWN: 40.0, **psnr})
    records = found.curves.records(clock(found, dict.fromkeys([OWN, *psnr], 1.0)))
    said = found.skipping(records)
    assert_says(said, "the mean PSNR is", "15.2 to 18.2 dB (DeepCache)", "and 25.2 dB (fewer steps).")
    assert "40" not in said


def test_the_report_has_the_drift():
    found = result({PAPERS: 25.0}, apart=0.3)
    assert np.allclose(found.neighbours(), [0.3, 0.31, 0.32, 0.33])
    near = quality.bracketed(quality.mean_interval(found.neighbours()))
    assert_says(found.report(), "CA-ToMe", "t = 0.7", f"the pairs of neighbouring calls: {near}")


@pytest.mark.slow
def test_from_end_to_end(lcm, tmp_path):
    """Two settings, and the drift, by the model's own sampler; what is made is kept."""
    params = Parameters(
        images=2, drift_images=2, timed_images=1, steps=3, only=["ToDo"], output=str(tmp_path), batch_size=2
    )
    kept = {"recorded": None}
    found = distilled.run(params, lcm, **kept)
    records = found.curves.records(distilled.timed(found, lcm, **kept))
    assert list(records["setting"]) == ["1x2", "2x2", "4x4"]
    assert np.isfinite(records["PSNR"]).all()
    assert (np.diff(records["PSNR"]) < 0).all()  # the more is left out, the farther
    assert found.drift.rows["by_lag"].map(len).eq(2).all()
    assert type(lcm.scheduler) is LCMScheduler
    again = distilled.run(params, lcm, **kept)
    assert again.curves.made.rows["psnr"].equals(found.curves.made.rows["psnr"])


@pytest.mark.slow
def test_a_distilled_model_that_was_saved_makes_the_same_images(lcm, tmp_path):
    """As one of Stable Diffusion is given: a folder with the LoRA in its weights."""
    lcm.save_pretrained(tmp_path / "lcm", safe_serialization=True)
    asked = {"classes": ["desert"], "images": 2, "steps": 2, "output": str(tmp_path / "out")}
    own = Parameters(**asked)
    saved = Parameters(model=str(tmp_path / "lcm"), height=128, width=128, **asked)
    pipe = study.load(saved)
    assert type(pipe.scheduler) is PNDMScheduler
    with with_sampler(pipe, "LCM"):
        made = study.generate(pipe, saved)
    np.testing.assert_allclose(made, study.generate(lcm, own), atol=1e-5)
