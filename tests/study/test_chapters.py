"""The tables of chapters 3, 5 and 6, from rows that nobody generated."""

from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle
from scipy import stats

from catome import SCHEDULES
from catome.study.measure import quality
from catome.study.measure.comparison import Comparison
from catome.study.measure.drift import mean_staleness
from catome.study.methods import Method
from catome.study.plots import figures, review_figures
from catome.study.studies import headline, schedules, sweep
from helpers.settings import setting

IMAGES = 12
REAL = SimpleNamespace(features=np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32))


def compared(methods: list[Method], psnr=lambda label: 30.0, share=lambda label: 0.5) -> Comparison:
    """Rows of methods with a mean PSNR and a merged share by their labels; images differ a little."""
    rng, rows = np.random.default_rng(0), []
    labels = list(dict.fromkeys(method.label for method in methods))
    for label in labels:
        scatter = rng.normal(0, 0.1, IMAGES)
        for image in range(IMAGES):
            merged = share(label)
            row = {
                "method": label,
                "image": image,
                "class": f"class {image % 3}",
                "psnr": psnr(label) + scatter[image],
            }
            row |= dict.fromkeys(("ssim", "feature_distance", "psnr_real", "ssim_real"), 0.5)
            row |= {
                "features": rng.normal(size=4),
                "merged_share": np.array([] if merged is None else [merged] * 2),
            }
            rows.append(row)
    return Comparison(pd.DataFrame(rows), labels, "scene", {})


def timed(methods: list[Method], batch: int = 1) -> pd.DataFrame:
    """Rows as of `cost`: every method takes 1, 2 and 4 seconds, the unmerged one twice as long; but once
    three times."""
    rows = []
    for label in dict.fromkeys(method.label for method in methods):
        for repetition, seconds in enumerate((1.0, 2.0, 4.0)):
            factor = 1 if label != "unmerged" else 3 if repetition == 2 else 2
            row = {"method": label, "repetition": repetition, "seconds": factor * seconds, "batch": batch}
            rows.append(row | {"block_seconds": 0.5, "flops": 4e9, "peak_bytes": None})
    return pd.DataFrame(rows)


# of ratios 2, 2 and 3, whose logarithms have a standard error of log(1.5) / 3
FASTER, REACH = 12 ** (1 / 3), 1.5 ** (stats.t.ppf(0.975, 2) / 3)
SPEED_UP = [FASTER, FASTER / REACH, FASTER * REACH]
COSTS = ["speed-up", "speed-up low", "speed-up high", "s/image", "GFLOP"]
MAXIMUM = "batch maximum, t = 0.9"


@pytest.fixture(scope="module")
def peers() -> headline.Result:
    params = headline.Parameters(images=IMAGES, batch_size=6)
    methods = headline.peers_of(params)
    shares = {"ToMe": 0.38, "CA-ToMe(threshold=0.9": 0.27, "CA-ToMe(threshold=0.7": 0.7, "batch maximum": 0.4}

    def share(label: str) -> float | None:
        return next((value for name, value in shares.items() if label.startswith(name)), None)

    def psnr(label: str) -> float:
        return 40.0 if label.startswith("batch maximum") else 30.0

    return headline.Result(params, REAL, methods, compared(list(methods.values()), psnr, share))


def test_a_method_judged_in_a_batch_costs_nothing_that_was_timed_in_another(peers):
    methods = list(peers.peers.values())
    alone = peers.records(timed(methods))
    assert alone.loc[MAXIMUM, [*COSTS, "peak MB"]].isna().all()
    assert alone.drop(index=MAXIMUM)[COSTS].notna().all(axis=None)
    assert alone.loc["ToDo", COSTS].tolist() == pytest.approx([*SPEED_UP, 2, 4])
    assert np.isfinite(alone.loc[MAXIMUM, "PSNR"])
    whole = peers.records(timed(methods, batch=6))
    assert whole.loc[MAXIMUM, COSTS].tolist() == pytest.approx([*SPEED_UP, 2, 4])


def test_what_has_no_speed_is_on_no_frontier_and_in_no_figure(peers):
    methods = list(peers.peers.values())
    alone, whole = (peers.records(timed(methods, batch)) for batch in (1, 6))
    assert MAXIMUM not in peers.frontier(alone)
    assert MAXIMUM in peers.frontier(whole)
    for records, shown in ((alone, False), (whole, True)):
        figure = figures.quality_against_speed(records)
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        assert (MAXIMUM in names) == shown
        assert "ToDo" in names
        plt.close(figure)


def test_methods_are_compared_with_their_speeds_and_shares(peers):
    table = peers.comparisons(peers.records(timed(list(peers.peers.values()))))
    row = table.loc[f"CA-ToMe, t = 0.9 - {MAXIMUM}"]
    assert row["times as fast"] == "2.29 / \u2013"
    assert row["merged share"] == "0.27 / 0.40"
    assert row["verdict"] == row["after Holm"] == "farther"
    assert table.loc["CA-ToMe, t = 0.7 - ToDo", "merged share"] == "0.70 / \u2013"
    assert table.columns.tolist() == [
        "times as fast",
        "merged share",
        "difference (dB)",
        "verdict",
        "after Holm",
        quality.OVER_CLASSES,
    ]


def test_two_thresholds_that_are_one_are_compared_once():
    params = headline.Parameters(images=IMAGES, threshold=0.9)
    methods = headline.peers_of(params)
    found = headline.Result(params, REAL, methods, compared(list(methods.values())))
    table = found.comparisons(found.records(timed(list(methods.values()))))
    assert table.index.is_unique


@pytest.fixture(scope="module")
def scheduled() -> schedules.Result:
    """The less stale, the closer; but the bounds and the online schedules are the other way round."""
    params = schedules.Parameters(
        images=IMAGES, drift_images=48, thresholds=(0.7,), tolerances=(0.3,), budgets=(2, 3)
    )
    steps = np.arange(params.calls)
    staleness = {0.7: np.abs(steps[:, None] - steps) / 10.0}
    derived = {(0.7, 2): (0, 1), (0.7, 3): (0, 17, 34)}
    asked = schedules.asked_of(params, derived)
    bills = {
        one.method.label: mean_staleness(staleness[0.7], one.checkpoints)
        for one in asked.values()
        if one.checkpoints
    }
    bills |= {one.method.label: -bills[one.method.label] for one in asked.values() if one.kind == "bounds"}
    made = compared([one.method for one in asked.values()], lambda label: 30 - 10 * bills.get(label, 9.0))
    return schedules.Result(params, REAL, staleness, derived, asked, made, made, {}, {}, made)


def test_staleness_and_closeness_are_related_without_the_bounds(scheduled):
    assert scheduled.relation() == {0.7: pytest.approx(-1, abs=0.05)}
    assert scheduled.relation_chances()[0.7] < 0.01
    few = schedules.Result(
        scheduled.params,
        REAL,
        scheduled.staleness,
        {},
        {(0.7, "every step"): scheduled.asked[0.7, "every step"]},
        scheduled.made,
        scheduled.made,
        {},
        {},
        scheduled.made,
    )
    assert np.isnan(few.relation()[0.7])
    assert np.isnan(few.relation_chances()[0.7])


def test_even_schedules_take_no_part_in_the_relation(scheduled):
    """They would count the derived ones twice."""
    rows = scheduled.made.rows.copy()
    even = [one.method.label for one in scheduled.asked.values() if one.kind == "even"]
    assert len(even) == 2
    rows.loc[rows["method"].isin(even), "psnr"] -= 99
    moved = replace(scheduled, made=Comparison(rows, scheduled.made.methods, "scene", {}))
    for bounds in (False, True):
        assert moved.relation(bounds) == scheduled.relation(bounds)
    assert moved.relation_chances() == scheduled.relation_chances()


def test_derived_schedules_stand_beside_as_many_evenly_spaced_checkpoints(scheduled):
    table = scheduled.even()
    assert table.index.tolist() == [(0.7, 2), (0.7, 3)]
    assert table.loc[(0.7, 2), "even"] == pytest.approx((sum(range(25)) + sum(range(26))) / 10 / 51)
    assert table.loc[(0.7, 2), "derived"] == pytest.approx(sum(range(50)) / 10 / 51)
    assert table.loc[(0.7, 3), "even"] == table.loc[(0.7, 3), "derived"]


def test_derived_schedules_are_compared_with_the_papers_evenly_spaced_one(scheduled):
    assert SCHEDULES[schedules.EVEN] == tuple(range(0, 51, 5))
    table = scheduled.comparisons()
    found = scheduled.made.paired(
        "psnr", *(scheduled.asked[0.7, name].method for name in ("least stale 2", "CONFIG_FIVE"))
    )
    assert table.loc[("t = 0.7", "least stale 2 - CONFIG_FIVE"), "difference (dB)"].startswith(
        f"{found[0]:+.2f} [{found[1]:+.2f}"
    )
    # beside CONFIG_3 the bounds, CONFIG_FIVE, the derived and the online one, then the derived beside three
    assert len(table) == 2 + 1 + 2 + 1 + 2 + 2 + 2
    assert set(table["after Holm"]) <= {"closer", "farther", "not told apart"}


@pytest.fixture(scope="module")
def swept() -> sweep.Result:
    params = sweep.Parameters(images=IMAGES, thresholds=(0.7, 1.0), finer=(0.7,), compared=(0.7,))
    methods = sweep.sweep_of(params)
    made = compared([sweep.methods.unmerged(), *methods.values()])
    return sweep.Result(params, REAL, methods, {}, made, made, {}, None)


def test_the_sweep_says_how_far_its_speed_ups_spread(swept):
    clock = timed([sweep.methods.unmerged(), *swept.sweep.values()])
    records = swept.records(clock)
    row = records.loc[swept.sweep[0.7].label]
    columns = ["speed-up", "speed-up low", "speed-up high", "seconds", "flops"]
    assert row[columns].tolist() == pytest.approx([*SPEED_UP, 2, 4e9])
    assert row["PSNR"] == swept.summary.loc[swept.sweep[0.7].label, "PSNR"]
    assert records.index.tolist() == swept.summary.index.tolist()


def test_the_sweep_counts_the_images_that_visibly_changed(swept):
    rows = swept.made.rows.copy()
    of = rows["method"] == swept.sweep[0.7].label
    rows.loc[of, "psnr"] = np.where(rows.loc[of, "image"] < 3, 29.9, 30.0)
    rows.loc[of, "feature_distance"] = 0.25
    found = replace(swept, made=Comparison(rows, swept.made.methods, "scene", {}))
    records = found.records(timed([sweep.methods.unmerged(), *found.sweep.values()]))
    assert records.loc[found.sweep[0.7].label, ["poor", "distance"]].tolist() == [0.25, 0.25]


def test_every_fid_says_of_which_features_it_is(swept):
    clock = timed([sweep.methods.unmerged(), *swept.sweep.values()])
    table = swept.beside_the_paper(swept.records(clock))
    assert [side for what, side in table.columns if what == "FID - unmerged"] == [
        "paper (Inception)",
        "here (scene)",
    ]
    assert table.loc["t = 0.7", ("FID - unmerged", "paper (Inception)")] == "+0.64"
    # the median of the seconds would give 0.50
    assert table.loc["t = 0.7", ("time / unmerged", "here")] == "0.44 [0.24, 0.78]"


def test_the_hardest_scene_is_the_class_that_changes_most(swept):
    rows = swept.made.rows.copy()
    of = (rows["method"] == swept.sweep[0.7].label) & (rows["class"] == "class 2")
    rows.loc[of, "psnr"] -= 5
    found = replace(swept, made=Comparison(rows, swept.made.methods, "scene", {}))
    assert found.hardest(0.7) == 2  # its first image
    rows.loc[rows["class"] == "class 1", "psnr"] -= 9
    found = replace(swept, made=Comparison(rows, swept.made.methods, "scene", {}))
    assert found.hardest(0.7) == 1


def test_what_a_schedule_may_give_is_a_line_through_the_others(scheduled):
    names = ["every step", "CONFIG_1", "CONFIG_3", "least stale 3", "auto 0.3", "step 0 only", "EVEN_3"]
    kinds = ["bounds", "paper", "paper", "derived", "online", "bounds", "even"]
    stale = np.array([0.0, 0.3, 0.2, 0.1, 0.9, 0.9, 0.1])
    # what is online, pairs found once, and what is not timed would spoil the line
    off = np.array([0.0, 0.5, 0.0, -0.5, 9.0, 9.0, 9.0])
    count = np.array([51, 10, 13, 3, 5, 1, 3])
    table = pd.DataFrame(
        {"threshold": 0.7, "kind": kinds, "schedule": names, "staleness": stale, "checkpoints": count}
    )
    table["PSNR"] = 30 - 6 * stale + off
    table["time"] = 0.7 + 0.002 * count + np.where(off == 9, 1.0, 0.0)
    quality_of, time_of = scheduled.expected(table)
    slope, intercept = np.polyfit(stale[:4], table["PSNR"][:4], 1)
    around = table["PSNR"][:4] - intercept - slope * stale[:4]
    assert quality_of[0.7] == pytest.approx(
        {"slope": slope, "intercept": intercept, "spread": np.sqrt((around**2).sum() / 2)}
    )
    assert time_of[0.7] == pytest.approx({"fixed": 0.7, "each": 0.002})


def test_schedules_that_cannot_be_told_apart_give_a_level_line(scheduled):
    table = pd.DataFrame(
        {"threshold": 0.7, "kind": "paper", "schedule": ["CONFIG_1", "CONFIG_3"], "staleness": 0.2}
    )
    table["checkpoints"], table["PSNR"], table["time"] = 3, [30.0, np.inf], [0.8, 0.9]
    quality_of, time_of = scheduled.expected(table)
    assert quality_of[0.7] == {"intercept": 30, "slope": 0, "spread": 0}
    assert time_of[0.7]["fixed"] == pytest.approx(0.85)
    assert time_of[0.7]["each"] == 0


def test_the_schedules_of_the_designer_are_the_fixed_ones(scheduled):
    derived = {"least stale 2": (0, 1), "least stale 3": (0, 17, 34)}
    assert scheduled.fixed_schedules(0.7) == dict(SCHEDULES) | derived


def test_a_table_has_its_caption_above_its_rows():
    table = figures.Captioned(pd.DataFrame({"a": [1, 2]}, index=["x", "y"]), "Less < more")
    shown = table._repr_html_()
    assert shown.index("<table") < shown.index("<caption>Less &lt; more</caption>") < shown.index("<thead>")
    assert shown.count("<caption>") == 1
    assert repr(table).startswith("Less < more\n\n")


def test_a_chapter_opens_with_named_pictures_in_a_row():
    pictures = {name: np.full((4, 4, 3), 0.5) for name in ("unmerged", "t = 0.9", "t = 0.7")}
    figure = figures.opening(pictures, "unmerged")
    assert [ax.get_title() for ax in figure.axes] == list(pictures)
    assert [ax.get_gridspec().get_geometry() for ax in figure.axes] == [(1, 3)] * 3
    assert [ax.spines["top"].get_linewidth() == 3 for ax in figure.axes] == [True, False, False]
    assert figure.get_figwidth() == figures.WIDTH
    plt.close(figure)
    figure = figures.opening({f"image {i}": pictures["unmerged"] for i in range(7)})
    shown = [ax for ax in figure.axes if ax.axison]
    assert [ax.get_title() for ax in shown] == [f"image {i}" for i in range(7)]
    assert {ax.get_gridspec().get_geometry() for ax in figure.axes} == {(2, 4)}
    plt.close(figure)


def test_the_unet_is_drawn_with_its_topmost_blocks_in_colour(pipe, tmp_path):
    for height, tokens in ((None, "32 \u00d7 32 = 1,024 tokens"), (128, "16 \u00d7 32 = 512 tokens")):
        width = None if height is None else 256
        figure = review_figures.unet(pipe, setting(tmp_path, height=height, width=width))
        texts = [text.get_text() for text in figure.axes[0].texts]
        assert tokens in texts
        coloured = {
            patch.get_facecolor()[:3] for patch in figure.axes[0].patches if isinstance(patch, Rectangle)
        }
        assert set(figures.BLOCK_COLOURS.values()) <= coloured
        plt.close(figure)


def test_of_curves_from_the_slowest_to_the_fastest_only_these_are_named():
    curves = {f"class {place}": np.full(4, place / 10) for place in range(5)}
    named = figures.staleness_by_lag(curves, "class", extremes=True)
    texts = [text.get_text() for text in named.legends[0].get_texts()] if named.legends else []
    texts = texts or [text.get_text() for text in named.axes[0].get_legend().get_texts()]
    assert texts == ["others", "class 0 (slowest)", "class 4 (fastest)"]
    every = figures.staleness_by_lag(curves, "class")
    assert [text.get_text() for text in every.axes[0].get_legend().get_texts()] == list(curves)
    plt.close("all")


def test_a_schedule_that_is_far_off_has_its_number_at_the_edge():
    gains = {"least stale 2": ("derived", 0.5), "EVEN_2": ("even", 0.3), "CONFIG_3": ("paper", 0.0)}
    gains |= {"step 0 only": ("bounds", -9.0)}
    rows = [
        {"threshold": 0.7, "kind": kind, "schedule": name, "checkpoints": 2, "staleness": place, "gain": gain}
        | {"gain low": gain - 0.2, "gain high": gain + 0.2}
        for place, (name, (kind, gain)) in enumerate(gains.items())
    ]
    figure = figures.schedule_plot(pd.DataFrame(rows), "CONFIG_3")
    ax = figure.axes[0]
    kinds = [text.get_text() for text in figure.legends[0].get_texts()]
    assert kinds == ["paper", "derived", "even", "bounds"]
    assert [text.get_text() for text in ax.texts] == ["\u2190 -9.0 [-9.2, -8.8]"]
    assert ax.get_xlim()[0] > -2
    plt.close("all")


def test_pictures_of_an_opening_are_made_smaller():
    image = np.random.default_rng(0).random((2 * figures.OPENING, figures.OPENING, 3))
    figure = figures.opening({"tall": image, "small": image[:8, :8]})
    tall, small = (ax.images[0].get_array().shape[:2] for ax in figure.axes[:2])
    assert tall == (figures.OPENING, figures.OPENING // 2)
    assert small == (8, 8)
    plt.close(figure)
