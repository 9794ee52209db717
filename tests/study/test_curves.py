"""The frontier: every method over its own knob, and turns that go through the images."""

import re
import warnings
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from catome.policy.forecast import Forecast
from catome.runtime.config import FAST, RECOMMENDED
from catome.study import methods
from catome.study.measure import quality
from catome.study.measure import turns as timing
from catome.study.measure.clock import method_set
from catome.study.measure.comparison import QUALITY, SPEED_UP, Comparison, speed_ups
from catome.study.measure.quality import is_best, share_unbeaten, unbeaten
from catome.study.measure.turns import faster, turns, turns_on
from catome.study.plots.frontier_figures import frontier, frontiers
from catome.study.run.generate import with_sampler
from catome.study.run.store import CHECKOUT, RECORDED, Store, fingerprint
from catome.study.studies import curves, headline
from catome.study.studies import jobs as counting
from helpers.sentences import assert_says
from helpers.settings import setting

IMAGES = 6
README = " ".join((CHECKOUT / "README.md").read_text().split())


def test_every_setting_has_a_label_of_its_own():
    labels = [method.label for method in curves._all_of(curves.kinds())]
    assert len(set(labels)) == len(labels)
    counted = counting.table(curves.jobs(curves.Parameters()))
    assert set(counted["method"]) == {"unmerged", *labels}


def test_fewer_steps_are_shares_of_the_steps_that_there_are():
    assert list(curves.kinds()["fewer steps"]) == ["38 steps", "30 steps", "25 steps", "20 steps"]
    assert list(curves.kinds(5)["fewer steps"]) == ["4 steps", "3 steps", "2 steps"]
    assert list(curves.kinds(1)["fewer steps"]) == ["1 steps"]


def test_few_steps_have_settings_that_fit_them():
    params = curves.Parameters(steps=20, sampler="DPM++")
    labels = [method.label for method in curves._all_of(params.kinds)]
    assert len(set(labels)) == len(labels)
    assert "EVEN_5" in params.kinds["merged keys (few searches)"]["t = 0.7, kept for 4 calls"].label
    assert (
        params.kinds["forecast"]["growing by 1.15"].label
        == "forecast(interval=1, order=1, first=2, growth=1.15)"
    )
    even = params.kinds["CA-ToMe with even spacing"]["t = 0.9"]
    assert even.label == "CA-ToMe(threshold=0.9, schedule=EVEN_5)"
    long = curves.kinds()["CA-ToMe with even spacing"]["t = 0.9"]
    assert long.label == "CA-ToMe(threshold=0.9, schedule=EVEN_13)"
    assert list(curves.kinds(20, few=True)["forecast (equal gaps)"]) == ["every 2", "every 3"]
    some = curves.Parameters(steps=20, sampler="DPM++", only=["forecast", "ToDo"]).kinds
    assert list(some) == ["ToDo", "forecast", "forecast (equal gaps)"]
    assert {job.calls for job in curves.jobs(params)} == {20}
    assert {job.calls for job in curves.jobs(curves.Parameters(steps=20))} == {21}
    assert set(curves.kinds(20, few=True)) - set(curves.kinds(20)) == {
        "merged keys (few searches)",
        "forecast (equal gaps)",
    }
    # the library's schedule is the same there
    assert "merged keys (few searches)" not in curves.kinds(52, few=True)


def test_a_forecast_that_leaves_out_no_call_is_no_setting():
    four = curves.kinds(4, few=True)
    assert "forecast" not in four
    assert "merged keys + forecast" not in four
    assert list(four["forecast (equal gaps)"]) == ["every 2", "every 3"]
    assert all(four.values())
    eight = curves.kinds(8, few=True)
    assert list(eight["forecast"]) == list(curves.kinds()["forecast"])
    assert list(eight["merged keys + forecast"]) == ["growing by 1.15", "growing by 1.3"]
    # of three calls the third is left out by both, and of two calls none
    three, two = curves.kinds(3, few=True), curves.kinds(2, few=True)
    assert list(three["forecast (equal gaps)"]) == ["every 2"]
    assert list(three["fewer steps"]) == ["2 steps", "1 steps"]
    assert "forecast (equal gaps)" not in two
    assert list(two["fewer steps"]) == ["1 steps"]
    # six calls are computed at first, and PLMS calls the model once more than it has steps
    assert "forecast" not in curves.kinds(3)
    assert "forecast" in curves.kinds(8)


@pytest.mark.parametrize("given", ["PLMS", 3, ""])
def test_an_unknown_sampler_is_refused(given):
    with pytest.raises(ValueError, match=r"sampler=.*'DPM\+\+', 'Euler', 'LCM', None"):
        curves.Parameters.checked({"sampler": given})


def test_images_have_a_seed_by_which_nothing_was_chosen():
    from catome.study.studies import compose

    assert curves.Parameters().seed == compose.HELD_OUT != compose.SEARCHED
    assert curves.Parameters(images=5).timed.images == 5
    assert curves.Parameters(images=50).timed.images == 12


def result(psnr) -> curves.Result:
    every = curves.kinds()
    of_kind = {}
    for kind, name in psnr:
        of_kind.setdefault(kind, {})[name] = every[kind][name]
    rows = []
    for kind, some in of_kind.items():
        for name, method in some.items():
            for image in range(IMAGES):
                value = psnr[kind, name] + 0.1 * (image % 3 - 1)
                rows.append(
                    {
                        "method": method.label,
                        "image": image,
                        "class": "desert",
                        "psnr": value,
                        "merged_share": [],
                    }
                )
    for row in rows:
        row.update(ssim=0.9, feature_distance=1.0, psnr_real=np.nan, ssim_real=np.nan, features=np.ones(3))
    labels = [method.label for some in of_kind.values() for method in some.values()]
    return curves.Result(
        curves.Parameters(images=IMAGES), of_kind, Comparison(pd.DataFrame(rows), labels, "scene", {})
    )


def clock(found: curves.Result, seconds, flops) -> pd.DataFrame:
    rows = []
    for image in range(IMAGES):
        scale = 1 + image / 10  # some images take longer, under every method
        rows.append({"method": "unmerged", "image": image, "seconds": 4.0 * scale, "flops": 8.0 * scale})
        for kind, some in found.kinds.items():
            for name, method in some.items():
                row = {"method": method.label, "image": image}
                rows.append(
                    row | {"seconds": seconds[kind, name] * scale, "flops": flops[kind, name] * scale}
                )
    return pd.DataFrame(rows)


def test_records_mark_what_no_other_setting_beats():
    names = [("ToMe", "r = 0.25"), ("ToMe", "r = 0.5"), ("fewer steps", "30 steps")]
    found = result(dict(zip(names, (35.0, 28.0, 30.0), strict=True)))
    clocks = clock(
        found, dict(zip(names, (3.0, 2.0, 1.0), strict=True)), dict(zip(names, (4.0, 2.0, 6.0), strict=True))
    )
    records = found.records(clocks).set_index(["kind", "setting"])
    assert records["speed-up"].to_list() == pytest.approx([4 / 3, 2, 4])
    assert records["flops"].to_list() == pytest.approx([0.5, 0.25, 0.75])
    assert records["best in time"].to_list() == [True, False, True]
    assert records["best in work"].to_list() == [True, True, False]
    assert records["stays"].to_list() == [1, 0, 1]
    assert records["poor"].to_list() == pytest.approx([0, 1, 1 / 3])
    assert (records["speed-up low"] <= records["speed-up"]).all()
    assert found.gain(names[0], names[2])[0] == pytest.approx(5)
    assert "ToMe" in found.report()


NAMES = [("ToMe", "r = 0.25"), ("ToMe", "r = 0.5"), ("fewer steps", "30 steps")]


def found_and_records(psnr, seconds, flops) -> tuple[curves.Result, pd.DataFrame]:
    found = result(dict(zip(NAMES, psnr, strict=True)))
    times = clock(found, dict(zip(NAMES, seconds, strict=True)), dict(zip(NAMES, flops, strict=True)))
    return found, found.records(times)


def test_the_rival_is_the_closest_of_those_that_cost_no_more():
    found, records = found_and_records((35, 28, 30), (3.0, 2.0, 2.0), (4.0, 2.0, 3.0))
    table = found.rivals(records, "ToMe")
    assert table.index.tolist() == ["ToMe, r = 0.25", "ToMe, r = 0.5"]
    assert table["closest at no more work"].tolist() == ["fewer steps, 30 steps", "none"]
    assert table["its lead in work (dB)"].tolist() == ["-5.0 [-5.0, -5.0]", ""]
    assert table["closest at no more time"].tolist() == ["fewer steps, 30 steps"] * 2
    assert table["its lead in time (dB)"].tolist() == ["-5.0 [-5.0, -5.0]", "+2.0 [+2.0, +2.0]"]
    assert found.rivals(records, "fewer steps")["closest at no more work"].tolist() == ["ToMe, r = 0.5"]


def test_the_papers_method_has_variants_that_are_no_rivals_of_it():
    names = [
        ("CA-ToMe", "t = 0.9"),
        ("CA-ToMe with fresh pairs", "t = 0.9"),
        ("CA-ToMe with even spacing", "t = 0.9"),
        ("ToMe", "r = 0.5"),
    ]
    found = result(dict(zip(names, (30, 35, 31, 28), strict=True)))
    seconds = dict(zip(names, (3.0, 3.5, 3.0, 2.0), strict=True))
    records = found.records(clock(found, seconds, dict.fromkeys(names, 4.0)))
    said = found.place_of(records, "CA-ToMe")
    told = ("t = 0.9 (fresh pairs) and t = 0.9 (even spacing) are unbeaten in time;",)
    assert_says(said, "Of CA-ToMe, ", *told, " t = 0.9 (fresh pairs) is unbeaten in work.")
    table = found.rivals(records, "CA-ToMe")
    assert table.index.tolist() == [f"{kind}, {setting}" for kind, setting in names[:3]]
    assert set(table["closest at no more work"]) == {"ToMe, r = 0.5"}
    assert table["its lead in work (dB)"].tolist()[1].startswith("-7.0")
    assert found.words(records)["curve_kinds"] == "2"
    alone = found.rivals(records, "CA-ToMe", variants=False)
    assert alone.index.tolist() == ["CA-ToMe, t = 0.9"]


def test_a_combination_is_no_rival_of_its_part():
    best = {"t = 0.7": methods.todo(2)}
    records = pd.DataFrame(
        {
            "kind": ["merged keys", "merged keys + DeepCache"],
            "setting": "x",
            "PSNR": [30.0, 40.0],
            "flops": 0.5,
            "speed-up": 2.0,
        }
    )
    table = curves.Result(curves.Parameters(), {"merged keys": best}, None).rivals(records, "merged keys")
    assert table["closest at no more work"].tolist() == ["none"]


def test_words_say_which_settings_nothing_beats():
    found, records = found_and_records((35, 28, 30), (3.0, 2.0, 1.0), (4.0, 2.0, 6.0))
    words = found.words(records)
    assert words["best_in_time"] == "ToMe (r = 0.25); fewer steps (30 steps)"
    assert words["best_in_work"] == "ToMe (r = 0.25 and r = 0.5)"
    assert (words["curve_images"], words["curve_settings"], words["curve_kinds"]) == (str(IMAGES), "3", "2")
    told = "Of ToMe, r = 0.25 is unbeaten in time; r = 0.25 and r = 0.5 are unbeaten in work."
    assert found.place_of(records, "ToMe") == told
    told = "Of fewer steps, 30 steps is unbeaten in time; no setting is unbeaten in work."
    assert found.place_of(records, "fewer steps") == told
    assert_says(words["papers_curve"], "No setting of CA-ToMe", "tried")
    beaten = found.place_of(records.assign(**{"best in time": False, "best in work": False}), "ToMe")
    assert_says(beaten, "No setting of ToMe", "unbeaten")
    table = found.shown(records)
    assert table["unbeaten in"].tolist() == ["time, work", "work", "time"]
    assert table[curves.STAYS].tolist() == ["100%", "0%", "100%"]
    assert table["below 30 dB"].tolist() == ["0%", "100%", "33%"]
    assert table["speed-up"].tolist()[1] == "2.00 [2.00,\u00a02.00]"


def test_what_saves_nothing_is_beaten_by_the_unmerged_pipeline():
    """It takes 4 seconds and 8 operations."""
    found, records = found_and_records((35, 28, 30), (5.0, 2.0, 1.0), (9.0, 2.0, 6.0))
    assert records["best in time"].to_list() == [False, False, True]
    assert records["best in work"].to_list() == [False, True, True]
    assert records["stays"].to_list() == [0, 0, 1]
    said = found.place_of(records, "ToMe")
    assert_says(said, "Of ToMe, no setting is unbeaten in time; r = 0.5 is unbeaten in work.")
    assert_says(said, "unmerged pipeline beats 1 of the 2 settings of ToMe in time")
    assert "unmerged" not in found.place_of(records, "fewer steps")
    table = found.unbeaten(records)
    assert table.index.tolist() == [("ToMe", "r = 0.5"), ("fewer steps", "30 steps")]
    assert table["unbeaten in"].tolist() == ["work", "time, work"]
    assert table[curves.STAYS].tolist() == ["0%", "100%"]
    found, records = found_and_records((35, 28, 30), (4.0, 5.0, 6.0), (8.0, 9.0, 9.0))
    words = found.words(records)
    assert (words["best_in_time"], words["best_in_work"]) == ("none", "none")
    assert_says(found.place_of(records, "ToMe"), "No setting of ToMe", "beats all 2 settings")
    assert "beats the one setting of fewer steps in time." in found.place_of(records, "fewer steps")
    assert found.unbeaten(records).empty


def test_a_place_that_may_be_chance_has_its_share_beside_it():
    found, records = found_and_records((35, 28, 30), (3.0, 2.0, 1.0), (4.0, 2.0, 6.0))
    records = records.assign(stays=[0.4, 0.0, 0.6])
    words = found.words(records)
    assert words["best_in_time"] == "ToMe (r = 0.25 [in only 40% of resamples]); fewer steps (30 steps)"
    assert words["best_in_work"] == "ToMe (r = 0.25 and r = 0.5)"
    told = ("r = 0.25 [in only 40% of resamples] is unbeaten in time;", " r = 0.25 and r = 0.5 are unbeaten")
    assert_says(found.place_of(records, "ToMe"), *told)
    assert words["curve_resamples"] == "1,000"


def test_chapter_6_is_given_the_words_of_the_curves_that_its_text_takes_up():
    notebook = (CHECKOUT / "notebooks/06_headline.ipynb").read_text()
    found, records = found_and_records((35, 28, 30), (3.0, 2.0, 1.0), (4.0, 2.0, 6.0))
    for name in [*found.words(records), "curve_clock"]:
        assert f"{{glue:text}}`{name.replace('_', '-')}`" in notebook, name
    taken = set(re.findall(r"\{glue:text\}`((?:curve-|best-in-)[\w-]+|[\w]+-curve)`", notebook))
    assert taken == {name.replace("_", "-") for name in [*found.words(records), "curve_clock"]}


def lengths() -> curves.Lengths:
    """Fewer steps win in 50 steps, and ToMe in 8."""
    found, clocks = {}, {}
    for steps, psnr in ((8, (35.0, 28.0, 20.0)), (50, (25.0, 28.0, 30.0))):
        found[steps] = result(dict(zip(NAMES, psnr, strict=True)))
        times = (dict(zip(NAMES, values, strict=True)) for values in ((3.0, 2.0, 1.0), (4.0, 2.0, 1.0)))
        clocks[steps] = clock(found[steps], *times).assign(
            device="cpu", kind="cpu", threads=2, **{"class": "desert"}
        )
    return curves.Lengths(found, clocks)


def test_each_number_of_steps_has_a_frontier():
    several = lengths()
    table = several.unbeaten()
    assert table.index.tolist() == [
        ("8 steps", "ToMe", "r = 0.25"),
        ("8 steps", "ToMe", "r = 0.5"),
        ("8 steps", "fewer steps", "30 steps"),
        ("50 steps", "fewer steps", "30 steps"),
    ]
    assert table["unbeaten in"].tolist() == ["time, work"] * 4
    assert table[curves.STAYS].tolist() == ["100%"] * 4
    assert list(several.shown().index.get_level_values(0)) == ["8 steps"] * 3 + ["50 steps"] * 3
    leads = several.rivals("ToMe")["its lead in time (dB)"]
    assert leads["8 steps", "ToMe, r = 0.25"] == "-15.0 [-15.0, -15.0]"
    assert leads["50 steps", "ToMe, r = 0.25"] == "+5.0 [+5.0, +5.0]"
    words = several.words()
    assert_says(words["papers_curve_few"], "No setting of CA-ToMe", "tried")
    assert_says(words["curve_settings"], " 3 in 8 steps", " 3 in 50 steps")
    assert_says(words["forecasts_curve_few"], "8 steps", "no forecast")


@pytest.mark.parametrize(
    ("steps", "sampler", "labels"),
    [
        (
            8,
            "DPM++",
            [
                "growing by 1.15 (6 calls) - 6 steps (6 calls)",
                "growing by 1.3 (6 calls) - 6 steps (6 calls)",
                "growing by 1.4 (5 calls) - 5 steps (5 calls)",
            ],
        ),
        (
            50,
            None,
            [
                "growing by 1.15 (20 calls) - 20 steps (21 calls)",
                "growing by 1.3 (15 calls) - 20 steps (21 calls)",
                "growing by 1.4 (13 calls) - 20 steps (21 calls)",
            ],
        ),
    ],
)
def test_a_forecast_stands_beside_fewer_steps_with_at_least_as_many_calls(steps, sampler, labels):
    params = curves.Parameters(images=IMAGES, steps=steps, sampler=sampler, only=["forecast", "fewer steps"])
    methods_of = curves._all_of(params.kinds)
    rows = [
        {
            "method": method.label,
            "image": image,
            "class": f"class {image % 2}",
            "psnr": 35.0 if method.family == "forecast" else 30.0,
        }
        for method in methods_of
        for image in range(IMAGES)
    ]
    made = Comparison(pd.DataFrame(rows), [method.label for method in methods_of], "scene", {})
    found = curves.Result(params, params.kinds, made)
    assert list(found.forecasts()) == labels
    assert all((values == 5).all() for values in found.forecasts().values())
    table = curves.Lengths({steps: found}, {}).forecasts()
    assert table["difference (dB)"].tolist() == ["+5.00 [+5.00, +5.00]"] * 3
    assert table[quality.OVER_CLASSES].tolist() == ["[+5.00, +5.00]"] * 3
    said = curves.Lengths({steps: found}, {}).forecasts_told(steps)
    forecast, fewer = labels[0].split(" - ")
    assert_says(said, f"In {steps} steps", forecast, "closer", fewer, " +5.0 [+5.0, +5.0] dB")
    alone = curves.Result(params, {"forecast": params.kinds["forecast"]}, made)
    assert alone.forecasts() == {}
    made.rows["class"] = made.rows["image"].map("class {0}".format)
    assert quality.OVER_CLASSES not in curves.Lengths({steps: found}, {}).forecasts()


def test_the_figure_has_a_column_for_each_number_of_steps():
    records = lengths().records
    unchanged = records[8].iloc[:1].assign(kind="forecast", PSNR=np.inf)
    figure = frontiers({8: pd.concat([records[8], unchanged]), 50: records[50]})
    assert [ax.get_title() for ax in figure.axes] == ["8 steps", "50 steps"] * 2
    for ax, column in zip(figure.axes[::2], ("speed-up", "flops"), strict=True):
        x = [
            value for line in ax.lines if line.get_marker() not in ("None", "") for value in line.get_xdata()
        ]
        assert sorted(x) == sorted(records[8][column])
        assert ax.xaxis_inverted() == (column == "flops")
    assert figure.legends[0].get_texts()
    plt.close(figure)


def test_chapter_9_is_given_the_words_of_the_curves_that_its_text_takes_up():
    notebook = (CHECKOUT / "notebooks/09_short_generations.ipynb").read_text()
    taken = set(re.findall(r"\{glue:text\}`([\w-]*curve[\w-]*)`", notebook))
    assert taken == {name.replace("_", "-") for name in lengths().words()}


@pytest.mark.parametrize("given", [["ToDo", "CA-ToMe"], "ToDo, CA-ToMe"])
def test_the_chapter_may_ask_for_some_kinds(given):
    params = headline.Parameters(curve_kinds=given, curve_images=5, images=30, seed=7).knobs
    assert list(params.kinds) == ["CA-ToMe", "ToDo"]
    assert (params.images, params.seed) == (5, curves.HELD_OUT)
    assert {job.method for job in curves.jobs(params)} == {"unmerged", *labels_of(params.kinds)}


def labels_of(of_kind) -> set[str]:
    return {method.label for some in of_kind.values() for method in some.values()}


@pytest.mark.parametrize("given", [["Todo"], "ToDo,", [], 3])
def test_an_unknown_kind_is_refused(given):
    with pytest.raises(ValueError, match="curve_kinds="):
        headline.Parameters.checked({"curve_kinds": given})


def test_the_figure_fills_what_no_other_setting_beats():
    names = [("ToMe", "r = 0.25"), ("ToMe", "r = 0.5"), ("fewer steps", "30 steps")]
    found = result(dict(zip(names, (35.0, 28.0, 30.0), strict=True)))
    clocks = clock(
        found, dict(zip(names, (3.0, 2.0, 1.0), strict=True)), dict(zip(names, (4.0, 2.0, 6.0), strict=True))
    )
    records = found.records(clocks)
    figure = frontier(records)
    for ax, column, best in zip(
        figure.axes, ("speed-up", "flops"), ("best in time", "best in work"), strict=True
    ):
        drawn = {}
        for line in ax.lines:
            if line.get_marker() not in ("None", "") and len(line.get_xdata()):
                filled = line.get_markerfacecolor() != "white"
                drawn |= {round(float(x), 6): filled for x in line.get_xdata()}
        assert drawn == dict(zip(records[column].astype(float).round(6), records[best], strict=True))
        assert [1, 1] in [list(line.get_xdata()) for line in ax.lines]  # the unmerged pipeline
    plt.close(figure)


def test_the_frontier_keeps_equals_and_drops_what_is_beaten():
    closeness = np.array([3.0, 3.0, 2.0, 1.0, 2.0, 3.0, 1.5])
    gain = np.array([1.0, 1.0, 2.0, 1.5, 2.0, 0.5, 2.0])
    assert is_best(closeness, gain).tolist() == [True, True, True, False, True, False, False]


def test_the_unmerged_pipeline_competes():
    closeness = np.array([40.0, 30.0, 40.0, np.inf, np.inf])
    gain = np.array([0.9, 1.5, 1.0, 1.0, 0.8])
    assert unbeaten(closeness, gain).tolist() == [False, True, False, True, False]
    faster_first = np.array([2.0, 1.5, 1.0, 1.0, 0.8])
    both = unbeaten(np.stack([closeness, closeness]), np.stack([gain, faster_first]))
    assert both.tolist() == [[False, True, False, True, False], [True, False, False, True, False]]
    work = np.array([1.0, 0.9])
    assert unbeaten(np.array([45.0, 40.0]), -work, unmerged=-1).tolist() == [False, True]


def test_the_share_of_resamples_in_which_a_method_is_unbeaten():
    half = np.full((2, 3), 0.5)
    # of two images: in a quarter of the resamples the first alone, in a quarter the second
    shares = share_unbeaten(np.array([[40.0, 20.0], [30.0, 30.0]]), half)
    assert shares == pytest.approx([0.75, 0.75], abs=0.05)
    # images differ by more than the methods do: the comparison is paired
    images = np.array([20.0, 35.0, 50.0])
    assert share_unbeaten(np.stack([images + 1, images]), half).tolist() == [1, 0]
    assert share_unbeaten(np.stack([images, images]), half).tolist() == [1, 1]
    # of two turns: a geometric mean of 0.5, 0.89 or 1.6; the arithmetic one of both turns is above 1
    slow_once = np.array([[0.5, 1.6]])
    assert share_unbeaten(images[None], slow_once) == pytest.approx([0.75], abs=0.05)
    turns_too = share_unbeaten(np.array([[40.0], [30.0]]), np.array([[0.5, 0.9], [0.6, 1.0]]))
    assert turns_too.tolist() == [1, 0]
    # an image that is unchanged is left out of a mean, unless there is no other
    as_long = np.ones((1, 3))
    assert share_unbeaten(np.array([[np.inf, 40.0]]), as_long) == pytest.approx([0.25], abs=0.05)


def test_speed_ups_are_ratios_of_each_turn():
    rows = pd.DataFrame(
        [
            {"method": name, "image": image, "seconds": seconds, "flops": flops}
            for image, (long, short, left) in enumerate([(4.0, 2.0, 4.0), (40.0, 10.0, 2.0)])
            for name, seconds, flops in (("unmerged", long, 8.0), ("half", short, left))
        ]
    )
    table = faster(rows)
    # the ratios are 2 and 4; their logarithms have a standard error of log(2) / 2
    middle, reach = 8**0.5, 2 ** (stats.t.ppf(0.975, 1) / 2)
    assert table.loc["half", SPEED_UP].tolist() == pytest.approx([middle, middle / reach, middle * reach])
    assert table.loc["unmerged", SPEED_UP].tolist() == [1, 1, 1]
    # work adds up, so its mean is the arithmetic one; resamples of two images end at the two
    work = table.loc["half", ["flops", "flops low", "flops high"]].tolist()
    assert work == pytest.approx([3 / 8, 1 / 4, 1 / 2])
    assert table.loc["unmerged", "flops"] == 1


def test_speed_ups_over_images_and_over_turns_are_the_same_mean():
    rows = pd.DataFrame(
        [
            {"method": name, "image": turn, "repetition": turn, "seconds": seconds, "flops": 1.0}
            for turn, pair in enumerate([(4.0, 2.0), (40.0, 10.0), (3.0, 4.0), (5.0, 1.0)])
            for name, seconds in zip(("unmerged", "a"), pair, strict=True)
        ]
    )
    over_images, over_turns = faster(rows)[SPEED_UP], speed_ups(rows)
    assert over_images.loc["a", "speed-up"] == pytest.approx((2 * 4 * 3 / 4 * 5) ** 0.25)
    pd.testing.assert_frame_equal(over_images, over_turns)


def test_one_timed_image_has_no_interval():
    found = result(dict(zip(NAMES, (35.0, 28.0, 30.0), strict=True)))
    times = (dict(zip(NAMES, values, strict=True)) for values in ((3.0, 2.0, 1.0), (4.0, 2.0, 6.0)))
    clocks = clock(found, *times)
    records = found.records(clocks[clocks["image"] == 0])
    assert records["speed-up"].tolist() == pytest.approx([4 / 3, 2, 4])
    assert records[["speed-up low", "speed-up high"]].isna().all(axis=None)
    assert found.shown(records)["speed-up"].tolist() == ["1.33", "2.00", "4.00"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        figure = frontier(records)
    low, high = figure.axes[0].get_xlim()
    assert low <= 1
    assert high >= 4
    plt.close(figure)


def test_very_long_bars_are_cut_at_the_edge():
    """The speed-ups are 4 / 3, 2 and 4, and a fourth, a half and three fourths of the work are left."""
    records = found_and_records((35, 28, 30), (3.0, 2.0, 1.0), (4.0, 2.0, 6.0))[1]
    far = {"speed-up low": 0.1, "speed-up high": 60.0, "flops high": 9.0}
    uncertain = records.assign(**far)
    alone, several = frontier(uncertain), frontiers({8: records, 50: uncertain})
    for speed, work in (alone.axes, several.axes[::2], several.axes[1::2]):
        assert speed.get_xlim() == pytest.approx((1 - 3 / 4, 4 + 3 / 4))
        assert work.get_xlim() == pytest.approx((1 + 3 / 16, 1 / 4 - 3 / 16))  # its axis is inverted
    fitting = frontier(records)
    low, high = fitting.axes[0].get_xlim()
    assert 1 - 3 / 4 < low <= 1
    assert 4 <= high < 4 + 3 / 4
    assert fitting.axes[1].xaxis_inverted()
    for figure in (alone, several, fitting):
        plt.close(figure)


def test_generations_of_few_steps_have_their_sampler(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "kinds", lambda steps, few: {"ToDo": {"2x2": methods.todo(2)}})
    own = loaded.scheduler
    asked = {"images": 1, "steps": 2, "output": str(tmp_path)}
    few, long = (curves.Parameters(**asked, sampler=sampler) for sampler in ("DPM++", None))
    clocks = {}
    for params in (few, long):
        found = curves.run(params, loaded, recorded=None)
        clocks[params.sampler] = curves.timed(found, loaded, recorded=None)
        assert loaded.scheduler is own
    assert set(clocks["DPM++"]["sampler"]) == {"DPMSolverMultistepScheduler"}
    assert set(clocks[None]["sampler"]) == {type(own).__name__}
    rows = Store(QUALITY, tmp_path, None).find()
    assert rows["model"].nunique() == 2  # the name of a model covers its sampler
    assert rows.groupby("model")["psnr"].first().nunique() == 2


@pytest.fixture
def ways():
    return [methods.unmerged(), methods.todo(2), methods.ca_tome(0.9, None)]


def recorded_speed_ups(pipe) -> pd.DataFrame:
    """By the recorded turns over one image of each class."""
    every = [methods.unmerged(), *(method for some in curves.kinds().values() for method in some.values())]
    rows = Store(timing.TURNS, RECORDED, None).find(
        steps=50, model=fingerprint(pipe), method_set=method_set(every)
    )
    return faster(rows)


def test_the_readme_says_how_fast_merging_is(pipe):
    said = re.search(
        r"are ([\d.]+) times as fast \(([\d.]+) to ([\d.]+)\) with the first row, "
        r"and ([\d.]+) times \(([\d.]+) to ([\d.]+)\)",
        README,
    )
    table = recorded_speed_ups(pipe)
    found = []
    for config in (RECOMMENDED, FAST):
        row = table.loc[methods.named_configuration(config, "EVEN_13").label]
        found += [f"{row[name]:.2f}" for name in ("speed-up", "speed-up low", "speed-up high")]
    assert list(said.groups()) == found


def test_the_page_of_claims_says_how_fast_ca_tome_is_over_several_images(pipe):
    page = " ".join((CHECKOUT / "book/claims.md").read_text().split())
    table = recorded_speed_ups(pipe)
    said = []
    for method in (methods.ca_tome(0.7, "CONFIG_3"), methods.tome(0.5)):
        speed, low, high = table.loc[method.label, SPEED_UP]
        said.append(f"{speed:.2f} times [{low:.2f}, {high:.2f}]")
    assert f"Over one image of each class it is {said[0]} as fast, and ToMe {said[1]}." in page


def test_the_library_says_what_forecasts_give_in_few_steps(pipe):
    interval = r"([\d.]+) dB \(([\d.]+) to ([\d.]+)\)"
    said = re.search(
        r"\| `catome.Forecast\(first=2, growth=1.15\)` "
        rf"\| (\d) calls: {interval} \| (\d+) calls: {interval} \| "
        rf"\| fewer steps \| (\d) steps: {interval} \| (\d+) steps: {interval} \|",
        " ".join((CHECKOUT / "book/library.md").read_text().split()),
    )
    of_forecast, of_steps = [], []
    for steps, fewer in ((8, 6), (20, 12)):
        kinds = curves.kinds(steps, few=True)
        calls = sum(map(Forecast(2, 1.0, 1.15, 1).runs, range(steps)))
        with with_sampler(pipe, "DPM++"):
            model = fingerprint(pipe)
        for number, method, found in (
            (calls, kinds["forecast"]["growing by 1.15"], of_forecast),
            (fewer, kinds["fewer steps"][f"{fewer} steps"], of_steps),
        ):
            rows = Store(QUALITY, RECORDED, None).find(
                model=model, seed=curves.HELD_OUT, steps=steps, method=method.label
            )
            rows = rows[rows["image"] < 12]
            assert len(rows) == 12
            psnr = rows.sort_values("image")["psnr"].to_numpy(float)
            found += [str(number), *(f"{value:.1f}" for value in quality.mean_interval(psnr))]
    assert list(said.groups()) == of_forecast + of_steps


def test_each_turn_takes_another_image_and_is_kept(loaded, tmp_path, ways, monkeypatch):
    made = []
    own = timing.generate_batch
    monkeypatch.setattr(
        timing, "generate_batch", lambda pipe, given, images: made.append(images) or own(pipe, given, images)
    )
    asked = setting(tmp_path, images=2, steps=2, batch_size=1)
    rows = turns(loaded, asked, ways, recorded=None)
    assert rows.groupby("image")["method"].apply(set).to_list() == [{way.label for way in ways}] * 2
    assert rows["class"].tolist() == [asked.names[image] for image in rows["image"]]
    assert made[len(ways) :] == [range(image, image + 1) for image in (0, 1) for _ in range(2 * len(ways))]
    assert (rows["seconds"] > 0).all()
    flops = rows.pivot(index="image", columns="method", values="flops")
    assert (flops[ways[0].label] == flops[ways[0].label][0]).all()
    assert (flops[ways[1].label] < flops[ways[0].label]).all()
    made.clear()
    again = turns(loaded, asked, ways, recorded=None)
    assert not made
    pd.testing.assert_frame_equal(again, rows)
    more = turns(loaded, replace(asked, images=3), ways, recorded=None)
    assert sorted(set(more["image"])) == [0, 1, 2]
    timed = [images for images in made[len(ways) :]]
    assert set(timed) == {range(2, 3)}
    assert len(timed) == len(ways) + 1  # work is counted again only where it is not the same for all images
    assert "3 images of 3 classes" in turns_on(more)


def test_turns_of_two_devices_are_not_mixed(loaded, tmp_path, ways, monkeypatch):
    """One device has both images, another one only the first: the whole set is taken."""
    asked = setting(tmp_path, images=2, steps=1, batch_size=1)
    for device, images in (("first", 2), ("second", 1)):
        monkeypatch.setattr(timing, "device_name", lambda given, device=device: device)
        turns(loaded, replace(asked, images=images), ways, recorded=None, recompute=device == "second")
    kept = Store(timing.TURNS, tmp_path, None).find()
    assert kept.groupby("device")["image"].nunique().to_dict() == {"first": 2, "second": 1}
    monkeypatch.setattr(timing, "device_name", lambda given: "third")
    rows = turns(loaded, asked, ways, recorded=None)
    assert set(rows["device"]) == {"first"}
    assert len(rows) == 2 * len(ways)


def test_other_methods_take_turns_of_their_own(loaded, tmp_path, ways):
    asked = setting(tmp_path, images=1, steps=1, batch_size=1)
    both, all_three = (turns(loaded, asked, some, recorded=None) for some in (ways[:2], ways))
    assert both["method_set"].iloc[0] != all_three["method_set"].iloc[0]


def test_unmerged_images_are_made_once_for_all_kinds(loaded, tmp_path, monkeypatch):
    kinds = {"ToDo": {"2x2": methods.todo(2)}, "ToMe": {"r = 0.5": methods.tome(0.5)}}
    monkeypatch.setattr(curves, "kinds", lambda steps, few: kinds)
    made = []
    from catome.study.measure import comparison

    own = comparison._plain
    monkeypatch.setattr(comparison, "_plain", lambda *given: made.append(given[2]) or own(*given))
    params = curves.Parameters(images=3, batch_size=2, steps=2, output=str(tmp_path))
    found = curves.run(params, loaded, recorded=None)
    assert made == [range(2), range(2, 3)]
    assert set(found.made.rows["method"]) == {"unmerged", methods.todo(2).label, methods.tome(0.5).label}
    rows = found.made.of(methods.todo(2))
    alone = comparison.compare(loaded, params, [methods.todo(2)], folder=tmp_path / "alone", recorded=None)
    np.testing.assert_allclose(rows["psnr"], alone.of(methods.todo(2))["psnr"], rtol=1e-4)
