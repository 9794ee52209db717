"""Short generations: which methods run, by which sampler, and what their rows are said to show."""

from zlib import crc32

import numpy as np
import pandas as pd
import pytest
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

from catome.patch import applied_patch
from catome.policy.schedule import SCHEDULES
from catome.study.measure import quality
from catome.study.measure.comparison import Comparison
from catome.study.measure.drift import Drift
from catome.study.run.store import fingerprint
from catome.study.studies import jobs as counting
from catome.study.studies import short
from catome.study.studies.compose import HELD_OUT
from catome.study.studies.short import AFRESH, CACHED, FEWER, PAPER_AFRESH, PAPER_CACHED, Parameters, Result
from helpers.sentences import assert_says
from helpers.settings import setting

IMAGES = 12


def result(psnr: dict[tuple[int, str], float], other=(), **params) -> Result:
    """A result whose images have these PSNR by steps and method, a little scattered; all others have 30
    dB. By the other sampler they have what ``other`` says instead."""
    asked = Parameters(images=IMAGES, **params)
    named = {steps: short.methods_of(asked, steps) for steps in asked.settings}
    made = compared(named, psnr)
    by_other = compared(
        {steps: named[steps] for steps in asked.by_other_sampler}, psnr | dict(other), "Euler"
    )
    return Result(asked, None, named, made, by_other)


def compared(named: dict, psnr: dict, scattered: str = "") -> dict[int, Comparison]:
    made = {}
    for steps, methods in named.items():
        rows = []
        for name, method in methods.items():
            scatter = np.random.default_rng(crc32(f"{steps} {name}{scattered}".encode())).permutation(
                np.linspace(-0.1, 0.1, IMAGES)
            )
            merged = [0.5, 0.25] if method.family in ("ToMe", "CA-ToMe", "merged keys") else []
            for image in range(IMAGES):
                row = {
                    "method": method.label,
                    "image": image,
                    "psnr": psnr.get((steps, name), 30.0) + scatter[image],
                }
                rows.append(row | {"class": "desert", "merged_share": np.array(merged)})
        made[steps] = Comparison(
            pd.DataFrame(rows), [method.label for method in methods.values()], "scene", {}
        )
    return made


def clocks(found: Result) -> dict[int, pd.DataFrame]:
    """Every method takes half of the unmerged time."""
    rows = {}
    for steps, methods in found.methods.items():
        rows[steps] = pd.DataFrame(
            [
                {"method": method.label, "repetition": turn, "seconds": 2.0 if name == "unmerged" else 1.0}
                for name, method in methods.items()
                for turn in range(2)
            ]
        )
    return rows


def test_checkpoints_are_spread_over_whatever_calls_there_are():
    params = Parameters()
    named = {steps: short.methods_of(params, steps) for steps in params.settings}
    assert list(named) == [8, 20, 50]
    assert {steps: short.checkpoints_of(params, steps) for steps in named} == {8: 2, 20: 5, 50: 13}
    assert "EVEN_13" in named[50][CACHED].label
    assert "EVEN_5" in named[20][CACHED].label
    assert named[20][FEWER].label == "fewer steps(steps=15)"
    assert named[8][FEWER].label == "fewer steps(steps=6)"


def test_the_sampler_is_that_of_short_generations_and_is_put_back(pipe):
    own = pipe.scheduler
    params = Parameters(step_counts=(3,), steps=5)
    for sampler, kind in (("DPM++", DPMSolverMultistepScheduler), ("Euler", EulerDiscreteScheduler)):
        with short.sampled(pipe, Parameters(step_counts=(3,), sampler=sampler, other_sampler=None), 3):
            assert type(pipe.scheduler) is kind
            assert pipe.scheduler.config.beta_end == own.config.beta_end
        assert pipe.scheduler is own
    with short.sampled(pipe, params, 5):
        assert pipe.scheduler is own
    with pytest.raises(ZeroDivisionError), short.sampled(pipe, params, 3):
        raise ZeroDivisionError
    assert pipe.scheduler is own


def test_the_knobs_of_each_length_have_its_sampler_and_the_held_out_seed():
    knobs = Parameters(images=30, curve_images=5, curve_kinds=["ToDo"], seed=7).knobs
    assert {steps: own.sampler for steps, own in knobs.items()} == {8: "DPM++", 20: "DPM++", 50: None}
    assert {(own.images, own.seed, *own.kinds) for own in knobs.values()} == {(5, HELD_OUT, "ToDo")}
    assert [own.steps for own in knobs.values()] == [8, 20, 50]


def test_rows_of_samplers_are_told_apart(pipe):
    names = {fingerprint(pipe)}
    for sampler in ("DPM++", "Euler"):
        with short.sampled(pipe, Parameters(sampler=sampler, other_sampler=None), 8):
            names.add(fingerprint(pipe))
    assert len(names) == 3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"step_counts": []}, "step_counts=.* must be a list of integers, at least one"),
        ({"step_counts": [1]}, r"step_counts\[0\]=1 must be at least 2"),
        ({"step_counts": 8}, "step_counts=8 must be a list"),
        ({"sampler": "LCM"}, "sampler='LCM' must be one of 'DPM\\+\\+', 'Euler'"),
        ({"other_sampler": "LCM"}, "other_sampler='LCM' must be one of 'DPM\\+\\+', 'Euler'"),
        ({"every": 0}, "every=0 must be at least 1"),
    ],
)
def test_bad_parameters_are_refused(given, says):
    with pytest.raises((ValueError, TypeError), match=says):
        Parameters.checked(given)


def test_records_hold_every_method_of_every_length():
    found = result({(8, CACHED): 41.0, (20, FEWER): 20.0})
    records = found.records(clocks(found)).set_index(["steps", "method"])
    assert len(records) == 3 * 9
    assert records.loc[(8, CACHED), "PSNR"] == pytest.approx(41)
    assert records.loc[(20, FEWER), "poor"] == 1
    assert records.loc[(20, FEWER), "speed-up"] == pytest.approx(2)
    assert records.loc[(8, CACHED), "scores left"] == pytest.approx(1 - 0.375)
    assert records.loc[(8, PAPER_CACHED), "scores left"] == pytest.approx((0.5**2 + 0.75**2) / 2)
    assert records.loc[(8, "ToDo, factor 2"), "scores left"] == 0.25
    assert np.isnan(records.loc[(8, FEWER), "scores left"])


@pytest.mark.parametrize(
    ("cached", "says"),
    [
        (28.0, ("8 steps", "costs at least 1.9 dB")),
        (32.0, ("8 steps", "closer")),
        (30.0, ("8 steps", "costs at most 0.1 dB", "no cost is detectable")),
    ],
)
def test_what_is_said_of_the_cache_follows_from_the_interval(cached, says):
    assert_says(result({(8, CACHED): cached, (20, CACHED): 10.0}).lasting(), *says)


@pytest.mark.parametrize(
    ("fewer", "says"),
    [(28.0, "are closer"), (32.0, "are farther"), (30.0, "neither detectably")],
)
def test_whether_it_works_follows_from_the_interval(fewer, says):
    assert_says(
        result({(8, FEWER): fewer, (20, FEWER): 10.0}).works(), "In 8 steps", says, "6 unmerged steps"
    )


def test_comparisons_are_paired_within_each_length():
    found = result({(8, CACHED): 33.0, (50, PAPER_CACHED): 25.0})
    table = found.cost_of_a_cache()
    assert len(table) == 6
    assert table.loc[("8 steps", f"{CACHED} - {AFRESH}"), "verdict"] == "closer"
    assert table.loc[("50 steps", f"{PAPER_CACHED} - {PAPER_AFRESH}"), "verdict"] == "farther"
    assert table.loc[("20 steps", f"{CACHED} - {AFRESH}"), "verdict"] == "not told apart"
    others = found.against_others()
    assert others.loc[("50 steps", f"{CACHED} - {PAPER_CACHED}"), "difference (dB)"].startswith("+5.0")
    words = found.words()
    assert words["cache_few"].startswith("+3.0")
    assert words["paper_many"].startswith("+5.0")
    assert (words["few"], words["many"], words["checkpoints_many"]) == ("8", "50", "13")


def test_jobs_are_what_is_generated():
    counted = counting.table(short.jobs(Parameters(images=10)))
    assert counted.loc[counted["what"] == "images", "images"].sum() == 10 * (3 + 2) * 9
    assert counted.loc[counted["what"] == "drift", "images"].tolist() == [24, 24, 24]
    assert sorted(set(counted["calls"])) == [8, 20, 51]  # PLMS alone takes one more than its steps
    alone = counting.table(short.jobs(Parameters(images=10, other_sampler=None)))
    assert alone.loc[alone["what"] == "images", "images"].sum() == 10 * 3 * 9


def test_two_samplers_are_compared_seed_by_seed():
    """Merged keys gain over fewer steps by one sampler and lose by the other, and are the same elsewhere."""
    found = result({(8, FEWER): 28.0}, {(8, FEWER): 33.0})
    table = found.by_sampler()
    assert list(table)[:3] == ["DPM++ (dB)", "Euler (dB)", "Euler minus DPM++ (dB)"]
    assert len(table) == 2 * 5  # the long generation has one sampler
    turned = table.loc["8 steps", f"{CACHED} - {FEWER}"]
    assert [turned.iloc[i].split()[0][:2] for i in range(3)] == ["+2", "-3", "-5"]
    assert (turned["verdict"], turned["after Holm"]) == ("less", "less")
    assert set(table.drop(turned.name)["after Holm"]) == {"not told apart"}
    said = (
        "DPM++ and Euler give the same verdict in 9 of 10",
        "neither tells apart",
        "at once",
        "In 1 of them both",
        "opposite signs",
    )
    assert_says(found.samplers(), *said, "sampler in 1 of them")
    larger = result({(8, FEWER): 28.0}, {(8, FEWER): 26.0})
    said = (
        "in 10 of 10",
        "In none of them do both samplers detect",
        "opposite signs",
        "size of the difference changes",
        "sampler in 1 of them",
    )
    assert_says(larger.samplers(), *said)
    assert larger.by_sampler().loc[turned.name, "after Holm"] == "more"


def test_a_sign_that_one_sampler_does_not_detect_is_not_opposite():
    """By one sampler the mean is a little below zero, by the other far above."""
    found = result({(8, FEWER): 30.02}, {(8, FEWER): 28.0})
    assert_says(found.samplers(), "in 9 of 10", "In none of them do both samplers detect", "opposite signs.")


def test_differences_have_intervals_for_other_prompts_where_images_share_them():
    found = result({(8, CACHED): 33.0})
    tables = found.cost_of_a_cache, found.against_others, found.by_sampler
    assert all(list(table())[-1] == quality.OVER_CLASSES for table in tables)
    for made in (found.made, found.other):
        for one in made.values():
            one.rows["class"] = one.rows["image"].map("class {0}".format)
    assert not any(quality.OVER_CLASSES in table() for table in tables)
    for one in found.made.values():
        one.rows["class"] = one.rows["image"].map(lambda image: f"class {image % 3}")
    row = "8 steps", f"{CACHED} - {AFRESH}"
    _, low, high = quality.over_classes(found.differences(short.CACHES)[row], found.made[8].classes)
    assert found.cost_of_a_cache().loc[row, quality.OVER_CLASSES] == f"[{low:+.2f}, {high:+.2f}]"


def test_a_cache_that_changes_nothing_costs_nothing():
    found = result({})
    for one in found.made.values():
        one.rows["psnr"] = 30.0
    assert_says(found.lasting(), "costs at most 0.0 dB, and no cost is detectable")


def test_there_may_be_one_sampler_only():
    for sampler, given in (("DPM++", {"other_sampler": None}), ("Euler", {"sampler": "Euler"})):
        found = result({}, **given)
        assert found.by_sampler().empty
        assert_says(found.samplers(), f"No other sampler than {sampler}")
        assert found.words()["other_sampler"] == "a second sampler"


def drifting(by_steps: dict[int, list[float]], **params) -> Result:
    """Of each number of steps the distances of calls 1, 2, ... apart, over images that differ a little."""
    watched = {}
    for steps, by_lag in by_steps.items():
        rows = [
            {"image": image, "block": block, "by_lag": np.array(by_lag) + 0.01 * (image % 3 - 1)}
            for image in range(6)
            for block in ("down0.0", "up3.2")
        ]
        watched[steps] = Drift(pd.DataFrame(rows), pd.DataFrame(), len(by_lag) + 1, {})
    return Result(Parameters(images=IMAGES, **params), None, {}, {}, {}, watched)


def test_how_fast_pairs_drift_is_said_for_each_number_of_steps():
    found = drifting({8: [0.4, 0.5, 0.6, 0.7], 50: [0.2] * 4 + [0.4] * 4})
    assert list(found.drift_curves()) == ["8 (DPM++)", "50 (PLMS)"]
    assert found.stride() == {"8 (DPM++)": 0.25, "50 (PLMS)": 0.125}
    table = found.drift()
    assert list(table.index) == ["8 steps (DPM++)", "50 steps (PLMS)"]
    near = "neighbouring calls"
    assert [value[:4] for value in table[near]] == ["0.40", "0.20"]
    assert "[0.39, 0.41]" in table[near].iloc[0]
    assert table["pairs in common"].tolist() == ["75%", "89%"]  # 2 * (1 - d) / (2 - d)
    assert [value[:4] for value in table["3 calls apart"]] == ["0.60", "0.20"]
    assert [value[:4] for value in table["a quarter of the generation apart"]] == ["0.40", "0.20"]
    said = (
        "The pairs of neighbouring calls differ more in 8 steps of DPM++ than in 50 steps of PLMS.",
        "Their mean distance is 0.40 in 8 steps and 0.20 in 50.",
        "The difference is +0.20 [",
        "over 6 images.",
        "A quarter of the generation apart, the distance is 0.40 and 0.20, a difference of +0.20 [",
    )
    assert_says(found.drift_told(), *said)
    less = drifting({8: [0.1], 50: [0.2] * 4})
    assert_says(less.drift_told(), "differ less in 8 steps of DPM++ than in 50 steps of PLMS.")
    alike = drifting({8: [0.2], 50: [0.2] * 4})
    assert_says(alike.drift_told(), "Whether", "differ more in 8 steps", "or in 50 steps", "is not decided.")
    assert less.drift()["3 calls apart"].tolist()[0] == ""  # there are two calls only
    assert "3 calls apart" not in drifting({8: [0.1]}, every=2).drift()
    assert_says(drifting({8: [0.1]}).drift_told(), "a single number of steps")


def test_pairs_are_watched_in_every_length_that_has_two_calls():
    assert list(Parameters(step_counts=(3,), steps=1).watched) == [3]  # one step is one call
    params = Parameters(images=2, drift_images=5, step_counts=(3,), steps=4)
    assert {steps: setting.images for steps, setting in params.watched.items()} == {3: 5, 4: 5}
    counted = counting.table(short.jobs(params))
    drift = counted[counted["what"] == "drift"]
    assert drift["calls"].tolist() == [3, 5]  # PLMS calls once more
    assert drift["images"].tolist() == [5, 5]


def test_from_end_to_end(pipe, tmp_path):
    base = setting(tmp_path, images=2, steps=4)
    params = Parameters(
        images=2,
        batch_size=2,
        steps=4,
        step_counts=(3,),
        drift_images=2,
        repetitions=1,
        output=str(tmp_path),
        classes=base.classes,
    )
    found = short.run(params, pipe, recorded=None)
    assert applied_patch(pipe) is None
    table = found.records(short.timed(found, pipe, recorded=None))
    assert (table["speed-up"] > 0).all()
    psnr = table.set_index(["steps", "method"])["PSNR"]
    assert np.isinf(psnr[3, "unmerged"])
    assert np.isfinite(psnr[3, CACHED])
    assert psnr[3, CACHED] > psnr[3, PAPER_CACHED]
    assert list(found.other) == [3]
    model = {
        sampler: made[3].rows["model"].unique()
        for sampler, made in (("", found.made), ("Euler", found.other))
    }
    assert model[""] != model["Euler"]  # each kept under its own sampler
    assert not np.array_equal(
        found.made[3].of(found.methods[3][CACHED])["psnr"],
        found.other[3].of(found.methods[3][CACHED])["psnr"],
    )
    assert len(found.by_sampler()) == 5
    assert {steps: one.steps for steps, one in found.watched.items()} == {3: 3, 4: 5}
    assert found.watched[3].staleness("r = 0.5").shape == (3, 3)
    again = short.run(params, pipe, recorded=None)
    # nothing is computed again
    assert again.made[3].rows["run"].tolist() == found.made[3].rows["run"].tolist()


def test_the_papers_schedule_hardly_reuses_pairs_in_a_short_generation():
    words = result({}).words()
    assert (words["checkpoints_paper_few"], words["reused_paper_few"]) == ("7", "1")
    assert words["checkpoints_paper_many"] == str(len(SCHEDULES["CONFIG_3"])) == "13"
    assert Parameters(schedule=None).paper_checkpoints(8) == 8
