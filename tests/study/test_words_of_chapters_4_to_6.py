"""The words and tables of chapters 4, 5 and 6 follow from the numbers, and every number in their text is
given."""

import re
import warnings
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest

from catome.policy.schedule import SCHEDULES
from catome.study.measure import quality
from catome.study.measure.comparison import Comparison
from catome.study.measure.drift import Drift
from catome.study.measure.quality import UNTOLD
from catome.study.run.store import CHECKOUT
from catome.study.studies import drift, headline, schedules
from catome.study.studies import jobs as counting
from helpers.sentences import assert_says

IMAGES = 12
REAL = SimpleNamespace(features=np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32))
SCATTER = np.linspace(-0.1, 0.1, IMAGES)


def of_text(study) -> set[str]:
    """The names that a chapter's Markdown takes up."""
    notebook = nbformat.read(CHECKOUT / f"notebooks/{study.NOTEBOOK}.ipynb", 4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return set(re.findall(r"\{glue:text\}`([\w-]+)`", text))


def given(words: dict[str, str], *others: str) -> set[str]:
    assert all(isinstance(text, str) for text in words.values())
    return {name.replace("_", "-") for name in words} | set(others)


# Chapter 4


def drifted(neighbour, steps: int, classes=("desert",), lag=None, **params) -> drift.Result:
    """A result where every image has these distances of neighbouring steps at the fixed share, and none at t
    = 0.9.

    ``lag``: by class, how far apart any two steps are; else half of the generation and more is unrelated."""
    asked = drift.Parameters(steps=steps, images=len(classes), thresholds=(0.9,), **params)
    calls = asked.calls
    assert len(neighbour) == calls - 1
    rows = []
    for image, name in enumerate(classes):
        for amount, curve in (("t = 0.9", np.zeros(calls - 1)), ("r = 0.5", np.array(neighbour))):
            for block in ("down 0", "up 0"):
                # the mean over blocks is the curve
                shift = 0.0 if amount == "t = 0.9" else 0.02 if block == "down 0" else -0.02
                row = {
                    "image": image,
                    "class": name,
                    "amount": amount,
                    "block": block,
                    "neighbour": curve + shift,
                }
                rows.append(
                    row
                    | {
                        "by_lag": np.full(calls - 1, (lag or {}).get(name, 0.5))
                        if amount == "r = 0.5"
                        else curve
                    }
                )
    i, j = np.triu_indices(calls, 1)
    shards = [
        {
            "image": 0,
            "images": len(classes),
            "amount": amount,
            "block": "up 0",
            "distance": np.minimum((j - i) / 10, 1) * scale,
        }
        for amount, scale in (("t = 0.9", 0), ("r = 0.5", 1))
    ]
    return drift.Result(asked, Drift(pd.DataFrame(rows), pd.DataFrame(shards), calls, {}), {}, {})


def test_a_distance_leaves_a_share_of_pairs_in_common():
    """Of n pairs each, c n are common: J = 1 - c / (2 - c)."""
    for common in (0.0, 0.3, 0.5, 1.0):
        assert drift._common(1 - common / (2 - common)) == pytest.approx(common)


def test_the_middle_of_the_generation_is_its_middle_half():
    found = drifted([0.9, 0.9, 0.2, 0.25, 0.28, 0.3, 0.9, 0.95], 8)
    assert found.neighbours() == pytest.approx([0.9, 0.9, 0.2, 0.25, 0.28, 0.3, 0.9, 0.95])
    words = found.words()
    assert words["middle"] == "0.20 to 0.30"
    assert words["middle_common"] == "82% to 89%"
    assert drifted([0.5, 0.2], 2).words()["middle"] == "0.20 to 0.50"  # of two distances, both are the middle
    assert drifted([0.5, 0.2], 2).words()["middle_common"] == "67% to 89%"


@pytest.mark.parametrize(
    ("curve", "says"),
    [
        ([0.3, 0.1, 0.5], ("last two steps differ most", "0.50", "67%")),
        ([0.3, 0.6, 0.1], ("Steps 1 and 2 differ most", "0.60", "57%", "last two steps", "0.10")),
        ([0.5, 0.1, 0.5], ("last two steps differ most", "0.50", "67%")),
        ([0.5, 0.1, 0.4], ("Steps 0 and 1 differ most", "0.50", "67%", "last two steps", "0.40")),
    ],
)
def test_which_neighbours_differ_most(curve, says):
    said = drifted(curve, 3).farthest()
    assert_says(said, *says)
    assert said.count("last two steps") == 1


@pytest.mark.parametrize(
    ("by_lag", "says"),
    [
        ([0.7, 0.8, 0.9], "When they are 1 step old, fewer than half of them"),
        ([0.1, 0.66, 0.67], "When they are 3 steps old, fewer than half of them"),  # half are common at 2/3
        ([0.1, 0.7, 0.6], "When they are 2 steps old, fewer than half of them"),
        ([0.1, 0.2, 0.3], "at any age"),
    ],
)
def test_at_which_age_fewer_than_half_of_the_pairs_are_right(by_lag, says):
    found = drifted([0.3, 0.3, 0.3], 3)
    rows = found.drift.rows
    rows["by_lag"] = [np.array(by_lag if amount == found.amount else [0.0] * 3) for amount in rows["amount"]]
    assert says in found.half_life()
    assert found.words()["half_life"] == found.half_life()


def test_nothing_that_changes_is_said_so():
    found = drifted([0.0, 0.0, 0.0], 3)
    rows = found.drift.rows
    rows["neighbour"] = rows["neighbour"].map(np.zeros_like)
    assert "same pairs" in found.farthest()
    assert found.words()["middle_common"] == "100%"


def test_the_two_calls_at_plms_second_timestep_need_a_step_after_them():
    assert drifted([0.4, 0.1], 2).second_timestep() == ""
    said = drifted([0.4, 0.1, 0.3], 3).second_timestep()
    assert_says(said, "PLMS", "steps 1 and 2", "0.10", "0.40 from step 0 to 1", "0.30 from step 2 to 3")


def test_ages_are_as_many_as_the_generation_holds():
    table = drifted([0.3] * 6, 6).ages()
    assert table.columns.tolist() == ["1 step apart", "2 steps apart", "5 steps apart"]
    assert table.iloc[0].tolist() == ["0.10", "0.20", "0.50"]


def test_classes_stand_from_the_slowest_drift_to_the_fastest():
    found = drifted([0.3] * 3, 3, ("a", "b", "c", "a"), {"a": 0.7, "b": 0.2, "c": 0.4})
    curves = found.curves_by_class()
    assert list(curves) == ["b", "c", "a"]
    assert {name: curve.shape for name, curve in curves.items()} == {"a": (2, 3), "b": (1, 3), "c": (1, 3)}
    many = [f"class {place:02}" for place in range(13)]
    shown = drifted(
        [0.3] * 3, 3, many, {name: (place + 1) / 20 for place, name in enumerate(many)}
    ).curves_by_class()
    assert list(shown) == many[:4] + many[-4:]
    assert len(drifted([0.3] * 3, 3, many[:12]).curves_by_class()) == 12


def test_every_amount_has_its_curve():
    curves = drifted([0.3] * 3, 3, ("a", "b")).curves_by_amount()
    assert {name: curve.shape for name, curve in curves.items()} == {"t = 0.9": (2, 3), "r = 0.5": (2, 3)}
    assert curves["r = 0.5"].mean() == 0.5
    assert curves["t = 0.9"].mean() == 0


def test_the_papers_schedules_pay_as_they_run_in_a_generation_of_any_length():
    """A named schedule is fitted to the generation: of 6 calls, CONFIG_FIVE names all."""
    long, short = drifted([0.3] * 50, 50), drifted([0.3] * 5 + [0.4], 6)
    assert long.schedules() == {**SCHEDULES, "step 0 only": (0,)}
    assert short.schedules()["CONFIG_FIVE"] == tuple(range(7))
    assert short.bills()["CONFIG_FIVE"].tolist() == [0] * 7
    assert short.bills()["step 0 only"] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert len(short.least_stale()) == len(short.schedules()["CONFIG_3"])


def test_chapter_4_is_given_every_number_that_its_text_takes_up():
    found = drifted([0.3] * 50, 50, ("a", "b"))
    words = found.words()
    assert of_text(drift) == given(words, "recorded")
    assert words["images"] == "2"
    assert words["calls"] == "51"
    assert words["blocks"] == "2"
    assert words["rows"] == "8"
    assert words["amounts"] == "t = 0.9, r = 0.5"
    assert words["by_amount"] == "0.000 at t = 0.9, 0.300 at r = 0.5"
    paid = {name: found.paid(steps).mean() for name, steps in SCHEDULES.items()}
    assert words["paid_base"] == f"{paid['CONFIG_3']:.2f}"
    assert words["freshest"] == min(paid, key=paid.get) == "CONFIG_FIVE"
    assert words["paid_freshest"] == f"{paid['CONFIG_FIVE']:.2f}"
    least = [int(step) for step in words["least_stale"].split(", ")]
    assert len(least) == len(SCHEDULES["CONFIG_3"])
    assert words["paid_least"] == f"{found.paid(least).mean():.2f}" < words["paid_freshest"]


# Chapter 5


def test_pairs_found_at_every_step_may_be_compared_over_more_images():
    few = scheduled({(0.7, "every step"): 30.02})
    ways = [one.method for one in schedules.of_base(few.asked)]
    many = rows_of(ways, lambda label: 31.0 if "every step" in label else 30.0, images=2 * IMAGES)
    found = schedules.Result(**{**vars(few), "more": many})
    table = found.comparisons()
    assert table.loc[("t = 0.7", "every step - CONFIG_3"), "images"] == 2 * IMAGES
    assert set(table["images"]) == {IMAGES, 2 * IMAGES}
    assert found.gain(0.7, "every step")[0] == pytest.approx(1.0, abs=0.01)
    assert few.gain(0.7, "every step")[0] == pytest.approx(0.02, abs=0.01)
    counted = counting.table(schedules.jobs(schedules.Parameters(images=24, base_images=48)))
    more = counted[counted["phase"] == 3]
    assert set(more["images"]) == {48}
    assert len(more) == 5  # two schedules at two thresholds, and unmerged
    assert 3 not in set(counting.table(schedules.jobs(schedules.Parameters(images=24)))["phase"])


def rows_of(methods, psnr, share=0.5, images=IMAGES) -> Comparison:
    """Rows of methods whose images have the PSNR ``psnr(label)``, each method's scattered in an order of its
    own."""
    rows = []
    labels = list(dict.fromkeys(method.label for method in methods))
    for place, label in enumerate(labels):
        scatter = np.random.default_rng(place).permutation(np.resize(SCATTER, images))
        for image in range(images):
            row = {
                "method": label,
                "image": image,
                "class": f"class {image % 3}",
                "psnr": psnr(label) + scatter[image],
            }
            row |= dict.fromkeys(("ssim", "feature_distance", "psnr_real", "ssim_real"), 0.5)
            row |= {"features": np.random.default_rng([place, image]).normal(size=4)}
            rows.append(row | {"merged_share": np.array([share + 0.1 * (image == 0)])})
    return Comparison(pd.DataFrame(rows), labels, "scene", {})


def scheduled(psnr: dict, thresholds=(0.7,), budgets=(2, 13), searched=None, **params) -> schedules.Result:
    """A result with these PSNR by threshold and schedule; all others have 30 dB. Staleness is a tenth of the
    age. The online schedules search as ``searched`` says by threshold and name, or at every third step."""
    asked = schedules.Parameters(
        images=IMAGES, drift_images=48, thresholds=thresholds, budgets=budgets, **params
    )
    steps = np.arange(asked.calls)
    staleness = {t: np.abs(steps[:, None] - steps) / 10.0 for t in thresholds}
    derived = {(t, k): tuple(range(k)) for t in thresholds for k in budgets}
    of = schedules.asked_of(asked, derived)
    third = [[list(range(0, asked.calls, 3))]]  # one image, one block
    searched = searched or {key: third for key, one in of.items() if one.checkpoints is None}
    rivals = {(t, name): schedules.as_often(t, found, asked.calls) for (t, name), found in searched.items()}
    ways = {(one.threshold, one.name): one.method for one in (*of.values(), *rivals.values())}
    at = {ways[key].label: value for key, value in psnr.items()}
    made = rows_of(
        [schedules.methods.unmerged(), *(one.method for one in of.values())],
        lambda label: at.get(label, 30.0),
    )
    online = [of[key].method for key in rivals]
    beside = rows_of([*online, *(one.method for one in rivals.values())], lambda label: at.get(label, 30.0))
    return schedules.Result(asked, REAL, staleness, derived, of, made, made, searched, rivals, beside)


def records_of(found: schedules.Result, **columns) -> pd.DataFrame:
    """Rows as `records` makes them, without a pipeline: one second for each schedule by its place, and two
    unmerged."""
    summary = found.summary()
    rows = []
    for place, ((t, name), one) in enumerate(found.asked.items()):
        row = {"threshold": t, "kind": one.kind, "schedule": name}
        row |= {"checkpoints": 3.14 if one.checkpoints is None else len(one.checkpoints), "staleness": 0.5}
        row |= dict(
            summary.loc[one.method.label, ["PSNR", "FID change", "FID change low", "FID change high"]]
        )
        row |= {"seconds": 1 + place / 100, "time": 0.5 + place / 200}
        row |= dict(zip(("gain", "gain low", "gain high"), found.gain(t, name), strict=True))
        rows.append(row | columns)
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("names", "said"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), ("abc", "a, b and c")]
)
def test_names_are_listed(names, said):
    assert quality.listed(names) == said


def test_the_derived_schedules_are_listed_with_the_images_they_come_from():
    table = scheduled({}, budgets=(2, 3)).derived_steps()
    assert table.index.tolist() == [(0.7, "best 2"), (0.7, "best 3")]
    assert table.loc[(0.7, "best 3")].tolist() == ["24 to 47", "0 to 11", "0, 1, 2"]
    none = scheduled({}, budgets=())
    assert len(none.derived_steps()) == len(none.derived_staleness()) == len(none.even()) == 0
    assert none.derived_steps().columns.tolist() == table.columns.tolist()


def test_derived_schedules_stand_beside_the_papers_choice_in_staleness():
    table = scheduled({}, budgets=(13,)).derived_staleness()
    (least, base, change, even), gaps = table.loc[(0.7, "best 13")], np.diff([*SCHEDULES["CONFIG_3"], 51])
    paid = sum(gap * (gap - 1) / 2 for gap in gaps) / 10 / 51
    ours = sum(range(39)) / 10 / 51
    assert base == f"{paid:.3f}"
    assert least == f"{ours:.3f}"
    assert change == f"{ours / paid - 1:+.0%}"
    assert float(even) < paid < ours


def test_a_choice_that_pays_nothing_has_no_share():
    """In a generation of 5 steps CONFIG_3 looks at every call."""
    table = scheduled({}, budgets=(2,), steps=5).derived_staleness()
    assert table.loc[(0.7, "best 2"), ["that of CONFIG_3", "difference"]].tolist() == ["0.000", ""]


def test_the_papers_schedules_are_counted_as_they_run():
    asked = scheduled({}, budgets=(2,), steps=5).asked
    assert asked[0.7, "CONFIG_3"].checkpoints == (0, 1, 2, 3, 4, 5)
    assert asked[0.7, "CONFIG_1"].checkpoints == (0, 1, 2, 4)


@pytest.mark.parametrize(
    ("psnr", "says"),
    [
        ({}, ("best 2 at t = 0.7 and best 13 at t = 0.7 do not differ", "CONFIG_3")),
        (
            {(0.7, "best 2"): 33.0, (0.7, "best 13"): 31.0},
            ("best 2 at t = 0.7 and best 13 at t = 0.7 are closer", "CONFIG_3"),
        ),
        (
            {(0.7, "best 2"): 20.0, (0.7, "best 13"): 31.0},
            ("best 13 at t = 0.7 is closer", "CONFIG_3", "best 2 at t = 0.7 is farther", "CONFIG_3"),
        ),
    ],
)
def test_what_is_said_of_derived_schedules_follows_from_their_intervals(psnr, says):
    said = scheduled(psnr).beside_base("derived")
    assert_says(said, "PSNR", "tested at once", *says)
    assert said.count(" at t = ") == 2  # no other schedule is named


def test_where_nothing_was_derived_nothing_is_said_of_it():
    assert_says(scheduled({}, budgets=()).beside_base("derived"), "No derived schedule")


def test_online_schedules_stand_beside_the_papers_choice():
    found = scheduled({(0.7, "auto 0.3"): 25.0}, tolerances=(0.1, 0.3))
    table = found.online(records_of(found))
    assert table.index.tolist() == [(0.7, "auto 0.1"), (0.7, "auto 0.3")]
    assert table["searches for an image"].tolist() == ["3.1", "3.1"]
    assert table["after Holm"].tolist() == [UNTOLD, "farther"]
    assert found.gain(0.7, "auto 0.3")[0] == pytest.approx(-5, abs=0.01)
    told = ("auto 0.3 at t = 0.7 is farther", "CONFIG_3", "auto 0.1 at t = 0.7 does not differ", "CONFIG_3")
    assert_says(found.beside_base("online"), "PSNR", "tested at once", *told)
    assert found.beside_base("online").count(" at t = ") == 2


def test_an_online_schedule_stands_beside_as_many_checkpoints_at_equal_distances():
    """The means over images and blocks are 2.5, 2.75 and 51."""
    searched = {
        (0.7, "auto 0.3"): [[[0, 1], [0, 1, 2]]],
        (0.7, "auto 0.1"): [[[0, 1], [0, 1, 2]], [[0, 1, 2], [0, 5, 9]]],
        (0.7, "auto 0.03"): [[list(range(51))]],
    }
    psnr = {(0.7, "auto 0.3"): 27.0, (0.7, "EVEN_3"): 25.0, (0.7, "EVEN_2"): 28.0}
    found = scheduled(psnr, searched=searched, tolerances=(0.3, 0.1, 0.03))
    assert found.rivals[0.7, "auto 0.1"].checkpoints == (0, 17, 34)
    table = found.at_equal_searches()
    assert table["even"].tolist() == ["EVEN_2", "EVEN_3", "EVEN_51"]
    assert table["after Holm"].tolist() == ["farther", "closer", UNTOLD]
    assert table["difference (dB)"].iloc[0].startswith("-1.00 [")
    said = ("Of 3 online", "equal distances", "1 came closer", "1 fell behind", "1 did not")
    assert_says(found.beside_equal_searches(), *said)
    shown = found.online(records_of(found))
    assert shown["as often, evenly"].tolist() == table["even"].tolist()
    assert shown["after Holm"].tolist() == table["after Holm"].tolist()


def test_whether_a_search_at_every_step_is_the_best_that_one_can_do():
    assert_says(scheduled({}).no_upper_bound(), "paired", "none of the 10", "closer", "every step")
    found = scheduled({(0.7, "CONFIG_1"): 31.0, (0.7, "best 2"): 32.0})
    two = "CONFIG_1 at t = 0.7 and best 2 at t = 0.7"
    told = ("every step does not", "closest", f"with {two} the", "closer", "2 of 10")
    assert_says(found.no_upper_bound(), *told, f"tested at once, {two} stay.")
    table = found.against_every_step()
    assert table.loc["best 2 at t = 0.7", "verdict"] == "closer"
    assert not table.index.str.contains("step").any()  # the bounds are not tried


def test_a_single_lucky_interval_does_not_stay(monkeypatch):
    found = scheduled({})
    table = pd.DataFrame(
        {"verdict": ["closer", UNTOLD], "after Holm": UNTOLD}, index=["a at t = 0.7", "b at t = 0.7"]
    )
    monkeypatch.setattr(schedules.Result, "against_every_step", lambda self: table)
    told = ("every step may not", "closest", "with a at t = 0.7 the", "closer", "1 of 2")
    assert_says(found.no_upper_bound(), *told, "tested at once", "none stays")


def test_the_bounds_take_part_in_the_relation_only_where_asked():
    """Less stale is farther among sensible schedules, and closer with the bounds."""
    bills = {"CONFIG_FIVE": 29.0, "CONFIG_3": 30.0, "CONF_ADAPTIVE": 30.5, "CONFIG_1": 31.0, "best 2": 32.0}
    found = scheduled(
        {(0.7, name): value for name, value in bills.items()}
        | {(0.7, "every step"): 60.0, (0.7, "step 0 only"): 5.0}
    )
    assert found.relation()[0.7] > 0.5
    assert found.relation(bounds=True)[0.7] < found.relation()[0.7]


def test_ranks_that_are_all_equal_have_no_correlation_and_no_warning():
    same, other = pd.Series([1.0, 1.0, 1.0]), pd.Series([1.0, 3.0, 2.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(schedules._rank_correlation(same, other))
        assert np.isnan(schedules._rank_correlation(other, same))
    assert schedules._rank_correlation(other, -other) == pytest.approx(-1)
    assert (schedules._correlation(-0.314), schedules._correlation(float("nan"))) == ("-0.31", "undefined")


@pytest.mark.parametrize(
    ("relation", "says"),
    [
        ({0.7: -0.9}, ("less stale", "closer")),
        ({0.7: -0.7, 0.9: float("nan")}, ("staleness does not tell",)),
        ({0.7: -0.9, 0.8: 0.9, 0.9: -0.5}, ("tells", "at t = 0.7,", "does not at t = 0.8 and t = 0.9")),
    ],
)
def test_what_staleness_tells(monkeypatch, relation, says):
    monkeypatch.setattr(schedules.Result, "relation", lambda self, bounds=False: relation)
    assert_says(scheduled({}).staleness_tells(), "sensible schedules", *says)


def test_the_papers_table_stands_beside_the_first_threshold():
    found = scheduled({(0.7, "CONFIG_1"): 33.0, (0.9, "CONFIG_4"): 40.0}, thresholds=(0.7, 0.9))
    records = records_of(found)
    table = found.beside_paper(records)
    assert table.index.tolist() == list(SCHEDULES)
    assert table.loc["CONFIG_3", ("time / unmerged", "paper")] == f"{6.09 / 7.61:.3f}"
    assert table.loc["CONFIG_1", ("time / unmerged", "here")] == "0.510"
    assert table.loc["CONFIG_1", ("PSNR - best (dB)", "here")] == "0.00"
    assert table.loc["CONFIG_4", ("PSNR - best (dB)", "here")] == "-3.00"
    assert table.loc["CONFIG_1", ("FID - best", "paper (Inception)")] == "2.09"
    assert min(map(float, table["FID - best", "here (scene)"])) == 0
    records[["FID change", "FID change low", "FID change high"]] = np.nan
    assert found.beside_paper(records)["FID - best", "here (scene)"].tolist() == [""] * 6


def test_words_on_the_papers_table():
    found = scheduled({(0.7, "CONFIG_1"): 33.0, (0.7, "CONFIG_FIVE"): 33.0})
    records = records_of(found, **{"FID change low": -1.0, "FID change high": 1.0})
    words = found.words(records)
    assert words["first_threshold"] == "0.7"
    assert (words["paper_best"], words["paper_worst"], words["paper_apart"]) == (
        "CONFIG_3",
        "CONFIG_1",
        "2.1",
    )
    assert words["best"] in ("CONFIG_1", "CONFIG_FIVE")
    assert words["told_apart"] == "4 of the other 5 (CONFIG_2, CONFIG_3, CONFIG_4 and CONF_ADAPTIVE)"
    at = found.of_paper(records)
    assert_says(words["fid_apart"], "FID", f" {np.ptp(at['FID change']):.2f} apart", "±1.00")
    assert words["paper_slower"] == "1.6%"
    assert words["slower"] == f"{at['time'].iloc[-1] / at['time'].iloc[0] - 1:.1%}"
    assert -1 < float(words["order"]) < 0  # the paper's worst are the best here


def test_words_where_there_are_few_images_or_all_are_the_same():
    found = scheduled({})
    found.made.rows["psnr"] = np.inf
    records = records_of(found, **{"FID change low": np.nan, "FID change high": np.nan})
    words = found.words(records)
    assert words["told_apart"] == "0 of the other 5"
    assert words["order"] == "undefined"
    assert words["relation"] == "undefined at t = 0.7"
    assert words["searching"] == "+0.00 [+0.00, +0.00] dB at t = 0.7"
    assert words["fid_apart"].endswith("apart here.")
    assert found.beside_paper(records)["PSNR - best (dB)", "here"].tolist() == [""] * 6
    records["FID change"] = np.nan
    assert "no FID" in found.words(records)["fid_apart"]


def test_chapter_5_is_given_every_number_that_its_text_takes_up():
    psnr = {(0.7, "every step"): 31.0, (0.7, "step 0 only"): 21.0}
    found = scheduled(psnr, thresholds=(0.7, 0.9), tolerances=(0.1, 0.3))
    records = records_of(found)
    words = found.words(records)
    assert of_text(schedules) == given(words, "recorded", "clock")
    assert words["images"] == "12"
    assert words["ways"] == str(len(found.asked)) == "24"
    assert words["merged"] == "60% at t = 0.7 (51% over all images) and 60% at t = 0.9 (51% over all images)"
    first, second = words["searching"].split(" dB at t = 0.7 and ")
    assert float(first.split()[0]) == pytest.approx(10, abs=0.02)
    assert float(second.split()[0]) == pytest.approx(0, abs=0.02)
    assert words["time_searching"] == "0.50 at t = 0.7 and 0.56 at t = 0.9"
    assert words["time_cached"] == "0.51 to 0.56 at t = 0.7 and 0.56 to 0.61 at t = 0.9"
    assert words["relation_within"].endswith(f"{found.relation()[0.9]:+.2f} at t = 0.9")
    assert words["relation"].startswith(f"{found.relation(bounds=True)[0.7]:+.2f} at t = 0.7")


# Chapter 6


def peers(**params) -> headline.Result:
    asked = headline.Parameters(images=IMAGES, **params)
    methods = headline.peers_of(asked)
    return headline.Result(asked, REAL, methods, rows_of(list(methods.values()), lambda label: 30.0))


HEADLINE, GENTLE, FIXED = "CA-ToMe, t = 0.7", "CA-ToMe, t = 0.9", "ToMe, r = 0.5"


def measured(found: headline.Result, **changed) -> pd.DataFrame:
    """Records where each method takes as long as unmerged, has 30 dB, and an FID that does not differ
    detectably from it.

    ``changed``: by column, with _ for a space, the methods with another value."""
    table = pd.DataFrame(
        {
            "method": list(found.peers),
            "speed-up": 1.0,
            "speed-up low": 0.9,
            "speed-up high": 1.1,
            "PSNR": 30.0,
            "FID change": 0.1,
        },
        index=list(found.peers),
    ).assign(**{"FID change low": -0.1, "FID change high": 0.3})
    table.loc["unmerged", ["PSNR", "FID change", "FID change low", "FID change high"]] = (
        np.inf,
        np.nan,
        np.nan,
        np.nan,
    )
    for column, values in changed.items():
        for name, value in values.items():
            table.loc[name, column.replace("_", " ").replace("speed up", "speed-up")] = value
    return table.astype(object)


def test_the_closest_of_the_methods_that_are_always_faster():
    found = peers()
    assert_says(found.closest(measured(found)), "No method is faster", "every repetition")
    faster = {"speed_up_low": {HEADLINE: 1.2, FIXED: 1.01}}
    # the gentle one is not always faster
    records = measured(found, **faster, PSNR={FIXED: 31.26, GENTLE: 50.0})
    assert_says(found.closest(records), "faster", "every repetition", "closest", f"is {FIXED},", "31.3 dB")
    unchanged = found.closest(measured(found, **faster, PSNR={HEADLINE: np.inf}))
    assert_says(unchanged, "every repetition", "closest", f"is {HEADLINE},", "not change")


def test_where_the_papers_own_setting_stands():
    found = peers()
    assert found.papers_place(measured(found)) == "is among them"
    beaten = measured(found, speed_up={GENTLE: 2.0}, PSNR={GENTLE: 40.0})
    assert_says(found.papers_place(beaten), "is not among them", "as fast", "as close")
    assert found.words(beaten)["frontier"] == GENTLE


def test_which_methods_fid_tells_from_unmerged():
    found = peers()
    rows = found.made.rows
    rows["features"] = [np.random.default_rng(image).normal(size=4) for image in rows["image"]]
    assert_says(found.told_by_fid(), "permutation test of all methods", "no method's FID", "detectably")
    for name, shift in ((FIXED, 2.0), (HEADLINE, 3.0)):
        of_it = rows["method"] == found.peers[name].label
        rows.loc[of_it, "features"] = rows.loc[of_it, "features"].map(lambda one, shift=shift: one + shift)
    told = f": {FIXED} (p < 0.001); {HEADLINE} (p < 0.001)."
    assert_says(found.told_by_fid(), "permutation test", "more than chance", told)


def test_what_fid_tells_of_one_method_it_need_not_tell_of_two(monkeypatch):
    found = peers()
    monkeypatch.setattr(quality, "fid_chance", lambda features, plain, statistics, draws: 0.03)
    asked = {name: found.peers[name] for name in ("unmerged", FIXED)}
    assert found.made.told_by_fid(REAL.features, asked) == {FIXED: 0.03}
    assert found.made.told_by_fid(REAL.features, asked | {HEADLINE: found.peers[HEADLINE]}) == {}


def test_the_papers_table_stands_beside_the_same_methods():
    found = peers(ratio=0.3)
    records = measured(
        found,
        speed_up={"ToMe, r = 0.3": 1.5, HEADLINE: 1.25},
        FID_change={"ToMe, r = 0.3": -0.2, HEADLINE: np.nan},
    )
    table = found.beside_paper(records)
    assert table["speed-up", "paper"].tolist() == ["1.00", "1.19", "1.25"]
    assert table["speed-up", "here"].tolist() == ["1.00", "1.50", "1.25"]
    assert table["FID - unmerged", "paper (Inception)"].tolist() == ["+0.00", "+0.50", "+0.39"]
    assert table["FID - unmerged", "here (scene, against 40 real images)"].tolist() == ["", "-0.20", ""]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.6, 2.6, ("both rules", "cannot decide")),
        (1.6, 2.2, ("product alone",)),
        (2.2, 2.6, ("sum alone",)),
        (1.0, 1.5, ("neither rule",)),
    ],
)
def test_two_methods_at_once_beside_two_rules(low, high, verdict):
    together = f"{GENTLE}, with DeepCache"
    found = peers()
    single = {
        GENTLE: 1.25,
        "DeepCache, every 3": 1.6,
        together: 1.9,
    }  # leave 0.8 and 0.625: 0.425 if they add up, 0.5 as a product
    records = measured(found, speed_up=single, speed_up_low={together: low}, speed_up_high={together: high})
    words = found.both_together(records)
    assert (words["both_apart"], words["both_product"]) == ("2.35", "2.00")
    assert words["both"] == f"1.90 [{low:.2f}, {high:.2f}]"
    assert_says(words["both_verdict"], *verdict)


def test_savings_that_add_up_to_everything():
    found = peers()
    records = measured(found, speed_up={GENTLE: 2.0, "DeepCache, every 3": 2.0})
    assert found.both_together(records)["both_apart"] == "any number of"


def test_one_threshold_twice_is_said_once():
    assert (
        peers(threshold=0.9).words(measured(peers(threshold=0.9)))["merged"]
        == "60% at t = 0.9 (51% over all images)"
    )


def test_chapter_6_is_given_every_number_that_its_text_takes_up():
    found = peers()
    words = found.words(
        measured(found, speed_up={HEADLINE: 1.36, "ToDo": 1.4, "batch maximum, t = 0.9": np.nan})
    )
    of_curves = {
        name
        for name in of_text(headline)
        if name.startswith(("curve-", "best-in-")) or name.endswith("-curve")
    }
    assert of_text(headline) - of_curves == given(words, "recorded", "clock", "tokens")
    assert words["images"] == "12"
    assert words["methods"] == "9"
    assert (words["extractor"], words["real"]) == ("scene", "40")
    assert words["merged"] == "60% at t = 0.7 (51% over all images) and 60% at t = 0.9 (51% over all images)"
    assert words["paper_speed"] == "1.25"
    assert (words["speed"], words["fastest"], words["fastest_speed"]) == ("1.36", "ToDo", "1.40")
    assert words["threshold"] == "0.7"
    assert words["frontier"] == "ToDo"  # all are as close, and it is the fastest
