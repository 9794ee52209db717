"""The words and tables of chapters 4, 5 and 6 follow from the numbers, and every number in their text is
given."""

import math
import re
from dataclasses import replace
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
        assert drift.common_share(1 - common / (2 - common)) == pytest.approx(common)


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


def flat(values, lags: int = 50) -> np.ndarray:
    """Curves ``[images, lags]`` of images whose distance is the same at any age."""
    return np.repeat(np.asarray(values)[:, None], lags, 1)


FIRST = np.linspace(0.1, 0.2, IMAGES)
APART = np.random.default_rng(0).permutation(np.linspace(-0.01, 0.01, IMAGES))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (0.05, ("from 0.150 to 0.200", "+0.050 [+0.04", "faster")),
        (-0.05, ("from 0.150 to 0.100", "-0.050 [-0.05", "more slowly")),
        (0.0, ("from 0.150 to 0.150", "No effect")),
    ],
)
def test_what_guidance_does_to_the_drift_follows_from_its_interval(change, says):
    """Images differ much more from each other than guidance changes in each of them."""
    guided = {"1": flat(FIRST), "3": flat(FIRST), "7.5": flat(FIRST + change + APART)}
    found = replace(drifted([0.3] * 50, 50), guided=guided)
    assert_says(found.guidance_told(), "scale of 1 to one of 7.5", *says)
    assert found.words()["guidance"] == found.guidance_told()
    assert "single guidance scale" in replace(found, guided={"7.5": flat(FIRST)}).guidance_told()


def test_numbers_of_steps_are_compared_over_the_same_share_of_the_generation():
    def growing(lags: int) -> np.ndarray:
        """Curves that grow with the share of the generation, a little scattered over images."""
        apart = np.random.default_rng(lags).permutation(APART)
        return np.arange(1, lags + 1) / lags + apart[:, None]

    counted = {str(lags): growing(lags) for lags in (20, 50, 100)}
    same = replace(drifted([0.3] * 50, 50), counted=counted)
    assert_says(
        same.steps_told(),
        "0.250 in 20 steps, 0.250 in 50 steps and 0.250 in 100 steps",
        "Compared with 50 steps",
        "No difference",
    )
    faster = replace(same, counted=counted | {"20": growing(20) + 0.05})
    assert_says(faster.steps_told(), "0.300 in 20 steps", "+0.050 [+0.0", "differently in 20 steps")
    assert faster.words()["steps"] == faster.steps_told()
    assert "single number of steps" in replace(same, counted={"50": growing(50)}).steps_told()
    # of six images, no difference is rarer than 2 of 64 choices of signs: enough alone, and not for two
    few = {count: curves[:6] for count, curves in faster.counted.items()}
    assert_says(replace(same, counted=few).steps_told(), "No difference", "at once", "Holm")
    alone = replace(same, counted={count: few[count] for count in ("20", "50")}).steps_told()
    assert alone.endswith("differently in 20 steps.")


def test_a_quarter_of_the_generation_lies_between_two_steps():
    curve = np.arange(1, 51)[None] / 50
    assert drift.at_quarter(curve) == pytest.approx([0.25])  # between 12 and 13 steps
    assert drift.at_quarter(np.array([[0.5, 0.6, 0.7]])) == pytest.approx([0.5])


def test_how_far_apart_the_steps_of_a_short_generation_are():
    """Two steps at a distance J have 2 (1 - J) / (2 - J) of their pairs in common."""
    counted = {"20": flat(0.46 + APART, 20), "50": flat(0.16 + APART), "100": flat(0.08 + APART, 100)}
    found = replace(drifted([0.3] * 50, 50), counted=counted)
    said = found.short()
    assert_says(said, "In 20 steps of PLMS", "0.460 [0.45", "in 50 steps one of 0.160 [0.15", "70% and 91%")
    assert found.words()["short"] == said
    for counts in (("50", "100"), ("50",), ()):
        others = replace(found, counted={count: counted[count] for count in counts})
        assert "No shorter generation" in others.short()


def test_how_many_images_the_drift_needs():
    found = drifted([0.3] * 50, 50, ("a",) * IMAGES)
    rows = found.drift.rows
    rows["neighbour"] = rows["neighbour"] + 0.01 * (rows["image"] % 2)
    error = np.std([0.0, 0.01] * 6, ddof=1) / np.sqrt(IMAGES)
    assert_says(found.needed(), "these 12 images", f"standard error of {error:.4f}")
    assert found.needed().endswith(f"{error:.4f}.")
    guided = {"1": flat(FIRST), "7.5": flat(FIRST + APART)}
    counted = {"20": flat(FIRST + 3 * APART, 20), "50": flat(FIRST)}
    compared = replace(found, guided=guided, counted=counted)
    least, most = (quality.images_needed(APART * times, 0.01) for times in (1, 3))
    assert least < most
    assert_says(compared.needed(), "over 12 images", f"need {least} to {most} images")
    assert compared.words()["needed"] == compared.needed()
    assert "single image" in drifted([0.3] * 50, 50).needed()


def test_the_drift_of_classes_and_of_amounts():
    found = drifted([0.3] * 50, 50, ("a", "b", "a", "b"))
    rows = found.drift.rows
    faster = (rows["class"] == "b") & (rows["amount"] == "r = 0.5")
    rows["neighbour"] = rows["neighbour"] + 0.1 * faster
    assert_says(
        found.content(),
        "At r = 0.5",
        "between 0.300 (a) and 0.400 (b)",
        "between 0.000 (t = 0.9) and 0.350 (r = 0.5)",
        "the range is wider with the amount.",
    )
    assert found.words()["by_amount"].endswith("0.350 [0.300, 0.400] at r = 0.5")
    rows["neighbour"] = rows["neighbour"] + 0.6 * faster  # from 0.3 to 1.0 by class, and to 0.65 by amount
    assert_says(found.content(), "(a) and 1.000 (b)", "the range is wider with the class.")
    rows["neighbour"] = rows["neighbour"].map(np.zeros_like)
    assert "wider" not in found.content()
    for classes in (("a", "a"), ("a", "b"), ("a",)):  # one class, classes of one image, one image
        said = drifted([0.3] * 50, 50, classes).content()
        assert_says(said, "Depending on the amount", "between 0.000 (t = 0.9) and 0.300 (r = 0.5)")
        assert "class" not in said


def test_chapter_4_is_given_every_number_that_its_text_takes_up():
    found = drifted([0.3] * 50, 50, ("a", "b"))
    words = found.words()
    assert of_text(drift) == given(words, "recorded")
    assert words["images"] == "2"
    assert words["calls"] == "51"
    assert words["blocks"] == "2"
    assert words["rows"] == "8"
    assert words["amounts"] == "t = 0.9, r = 0.5"
    assert words["by_amount"] == "0.000 [0.000, 0.000] at t = 0.9, 0.300 [0.300, 0.300] at r = 0.5"
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
    """Rows as `records` makes them, without a pipeline: half of the unmerged time and more by the place; the
    even schedules are not timed."""
    summary = found.summary()
    rows = []
    for place, ((t, name), one) in enumerate(found.asked.items()):
        row = {"threshold": t, "kind": one.kind, "schedule": name}
        row |= {"checkpoints": 3.14 if one.checkpoints is None else len(one.checkpoints), "staleness": 0.5}
        took = np.nan if one.kind == "even" else 0.5 + place / 200
        row |= dict(
            summary.loc[one.method.label, ["PSNR", "FID change", "FID change low", "FID change high"]]
        )
        row |= {"seconds": 2 * took, "time": took, schedules.OVER_EVERY: 0.9}
        for column in ("time", schedules.OVER_EVERY):
            row |= {f"{column} low": row[column] - 0.02, f"{column} high": row[column] + 0.02}
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
    assert table.index.tolist() == [(0.7, "least stale 2"), (0.7, "least stale 3")]
    assert table.loc[(0.7, "least stale 3")].tolist() == ["24 to 47", "0 to 11", "0, 1, 2"]
    none = scheduled({}, budgets=())
    assert len(none.derived_steps()) == len(none.derived_staleness()) == len(none.even()) == 0
    assert none.derived_steps().columns.tolist() == table.columns.tolist()


def test_derived_schedules_stand_beside_the_papers_choice_in_staleness():
    table = scheduled({}, budgets=(13,)).derived_staleness()
    (least, base, change, even), gaps = (
        table.loc[(0.7, "least stale 13")],
        np.diff([*SCHEDULES["CONFIG_3"], 51]),
    )
    paid = sum(gap * (gap - 1) / 2 for gap in gaps) / 10 / 51
    ours = sum(range(39)) / 10 / 51
    assert base == f"{paid:.3f}"
    assert least == f"{ours:.3f}"
    assert change == f"{ours / paid - 1:+.0%}"
    assert float(even) < paid < ours


def test_a_choice_that_pays_nothing_has_no_share():
    """In a generation of 5 steps CONFIG_3 looks at every call."""
    table = scheduled({}, budgets=(2,), steps=5).derived_staleness()
    assert table.loc[(0.7, "least stale 2"), ["that of CONFIG_3", "difference"]].tolist() == ["0.000", ""]


def test_the_papers_schedules_are_counted_as_they_run():
    asked = scheduled({}, budgets=(2,), steps=5).asked
    assert asked[0.7, "CONFIG_3"].checkpoints == (0, 1, 2, 3, 4, 5)
    assert asked[0.7, "CONFIG_1"].checkpoints == (0, 1, 2, 4)


@pytest.mark.parametrize(
    ("psnr", "says"),
    [
        (
            {},
            (
                "schedules least stale 2 at t = 0.7 and least stale 13 at t = 0.7 do not differ",
                "CONFIG_3",
                "excluded",
            ),
        ),
        (
            {(0.7, "least stale 2"): 33.0, (0.7, "least stale 13"): 31.0},
            ("least stale 2 at t = 0.7 and least stale 13 at t = 0.7 are closer", "CONFIG_3"),
        ),
        (
            {(0.7, "least stale 2"): 20.0, (0.7, "least stale 13"): 31.0},
            (
                "at once, the schedule least stale 13 at t = 0.7 is closer",
                "CONFIG_3. The schedule least stale 2 at t = 0.7 is farther",
                "CONFIG_3.",
            ),
        ),
    ],
)
def test_what_is_said_of_derived_schedules_follows_from_their_intervals(psnr, says):
    said = scheduled(psnr).beside_base("derived")
    assert_says(said, "PSNR", "rows tested ", *says)
    assert said.count(" at t = ") == 2  # no other schedule is named


def test_where_nothing_is_detected_it_is_said_what_is_excluded():
    found = scheduled({(0.7, "least stale 13"): 33.0})
    of_one = found.differences()["t = 0.7", "least stale 2 - CONFIG_3"]
    _, low, high = quality.mean_interval(of_one)
    end = f"{max(-low, high):.2f} dB"
    assert low < 0 < high
    said = found.beside_base("derived")
    assert "least stale 2 at t = 0.7 does not differ detectably from CONFIG_3, where differences of " in said
    assert said.endswith(f"more than {end} are excluded.")
    both = scheduled({}).beside_base("derived")
    assert both.count(" dB") == 1  # both ends in one list
    assert "excluded" not in scheduled(
        {(0.7, "least stale 13"): 33.0, (0.7, "least stale 2"): 20.0}
    ).beside_base("derived")


def test_the_table_of_differences_says_what_it_excludes():
    found = scheduled({(0.7, "every step"): 35.0, (0.7, "step 0 only"): 5.0})
    verdicts = found.comparisons()["after Holm"]
    ends = [
        max(abs(end) for end in quality.mean_interval(values)[1:])
        for row, values in found.differences().items()
        if verdicts[row] == UNTOLD
    ]
    assert 0 < len(ends) < len(verdicts)
    told = f"In {len(ends)} of {len(verdicts)} rows", "not told apart"
    assert_says(found.excluded(), *told, "exclude only", f"{min(ends):.2f} to {max(ends):.2f} dB")
    names = [name for name in found.asked if name[1] != "CONFIG_3"]
    apart = scheduled({name: 50.0 - 3 * place for place, name in enumerate(names)})
    assert "In every row" in apart.excluded()


def test_where_nothing_was_derived_nothing_is_said_of_it():
    none = scheduled({}, budgets=())
    assert_says(none.beside_base("derived"), "No derived schedule")
    assert_says(none.beside_equal_budgets(), "No derived schedule")


def test_derived_schedules_stand_beside_as_many_even_checkpoints_by_their_images():
    """And the paper's even schedule beside its choice."""
    found = scheduled({(0.7, "EVEN_13"): 33.0, (0.7, "CONFIG_FIVE"): 31.0})
    assert found.asked[0.7, "EVEN_13"].kind == "even"
    assert found.asked[0.7, "EVEN_2"].checkpoints == (0, 25)
    table = found.comparisons()
    assert table.loc[("t = 0.7", "least stale 13 - EVEN_13"), "after Holm"] == "farther"
    assert table.loc[("t = 0.7", "least stale 2 - EVEN_2"), "after Holm"] == UNTOLD
    assert table.loc[("t = 0.7", "CONFIG_FIVE - CONFIG_3"), "after Holm"] == "closer"
    said = ("Each of the 2 derived", "beside as many", "unmerged with none of", "farther with 1", "with 1.")
    assert_says(found.beside_equal_budgets(), *said, "exclude differences of more", quality.held_words(1, 1))


def test_differences_of_schedules_have_intervals_for_other_prompts():
    found = scheduled({(0.7, "least stale 2"): 33.0})
    few = len(found.made.classes)
    ways = [one.method for one in schedules.of_base(found.asked)]
    found = schedules.Result(**{**vars(found), "more": rows_of(ways, lambda label: 30.0, images=2 * IMAGES)})
    table = found.comparisons()
    for row in (("t = 0.7", "least stale 2 - EVEN_2"), ("t = 0.7", "every step - CONFIG_3")):
        values = found.differences()[row]
        _, low, high = quality.over_classes(values, found.more.classes[: len(values)])
        assert table.loc[row, quality.OVER_CLASSES] == f"[{low:+.2f}, {high:+.2f}]"
    assert len(found.more.classes) == 2 * few


def test_the_first_table_of_schedules_shows_failures_and_the_distance_of_features():
    found = scheduled({(0.7, "EVEN_2"): 20.0, (0.7, "CONFIG_1"): 40.0})
    of_it = found.made.rows["method"] == found.asked[0.7, "CONFIG_1"].method.label
    found.made.rows.loc[of_it & (found.made.rows["image"] < 3), "psnr"] = 29.9
    found.made.rows.loc[of_it, "feature_distance"] = 0.25
    took = {
        method: 1.0 if method == "unmerged" else 0.5 for method in found.made.methods if "EVEN" not in method
    }
    clock = pd.DataFrame(
        [
            {"method": method, "repetition": turn, "seconds": seconds}
            for method, seconds in took.items()
            for turn in range(3)
        ]
    )
    records = found.records(clock).set_index("schedule")
    assert records.loc["CONFIG_1", ["poor", "distance"]].tolist() == [0.25, 0.25]
    assert records.loc[["EVEN_2", "CONFIG_1"], "poor"].tolist() == [1.0, 0.25]
    assert records.loc["CONFIG_1", ["time", "seconds"]].tolist() == pytest.approx([0.5, 0.5])
    assert records.loc["EVEN_2", ["time", "time low", "seconds"]].isna().all()
    assert records.loc["EVEN_2", "kind"] == "even"
    quality_of, time_of = found.expected(records.reset_index())
    assert np.isfinite([*quality_of[0.7].values(), *time_of[0.7].values()]).all()


def test_even_schedules_are_not_timed(monkeypatch):
    found, seen = scheduled({}), []
    monkeypatch.setattr(schedules, "timed_alone", lambda pipe, params, ways, **kept: seen.extend(ways))
    schedules.timed(found, None)
    labels = [method.label for method in seen]
    assert labels[0] == "unmerged"
    assert len(labels) == 1 + len(found.asked) - 2
    assert not any("EVEN" in label for label in labels)


def test_even_schedules_are_counted():
    """The derived ones are known only later."""
    counted = counting.table(schedules.jobs(schedules.Parameters(images=24)))
    first = counted[counted["phase"] == 2]["method"].tolist()
    assert len(first) == len(set(first)) == 1 + 28
    for t in (0.7, 0.9):
        for k in (8, 13):
            assert f"CA-ToMe(threshold={t}, schedule=EVEN_{k})" in first
            assert f"CA-ToMe, t = {t}, least stale {k}" in first
    short = counting.table(schedules.jobs(schedules.Parameters(images=24, steps=8)))
    assert (
        not short["method"].str.contains("EVEN_13").any()
    )  # nothing is derived of more steps than there are


def test_a_rival_that_is_tried_anyway_is_generated_once(monkeypatch):
    """One online schedule searches three times, as often as a derived schedule, and the other one five
    times."""
    calls = []

    def compare(pipe, setting, ways, real=None, recompute=False):
        calls.append(([method.label for method in ways], recompute))
        return rows_of(ways, lambda label: 30.0)

    steps = np.arange(51)
    apart = np.abs(steps[:, None] - steps) / 51
    drifts = SimpleNamespace(staleness=lambda amount, shards: apart)
    often = {"auto 0.1": 3, "auto 0.3": 5}
    monkeypatch.setattr(schedules, "compare", compare)
    monkeypatch.setattr(schedules, "drift_study", lambda *given, recompute: drifts)
    monkeypatch.setattr(schedules.real_images, "beside", lambda *given: REAL)
    monkeypatch.setattr(
        schedules,
        "searches",
        lambda pipe, setting, method, recompute: [
            [list(range(next(count for name, count in often.items() if name in method.label)))]
        ],
    )
    asked = schedules.Parameters(
        images=IMAGES, drift_images=48, thresholds=(0.7,), budgets=(2, 3), recompute=True
    )
    found = schedules.run(asked, None)
    assert [rival.name for rival in found.rivals.values()] == ["EVEN_3", "EVEN_5"]
    again = [label for labels, recompute in calls if recompute for label in labels]
    assert len(again) == len(set(again))
    assert {f"CA-ToMe(threshold=0.7, schedule=EVEN_{k})" for k in (2, 3, 5)} <= set(again)
    assert not calls[-1][1]
    assert [label.split("=")[-1] for label in calls[-1][0]] == [
        "auto 0.1)",
        "auto 0.3)",
        "EVEN_3)",
        "EVEN_5)",
    ]
    assert len(found.at_equal_searches()) == 2


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
    said = ("Each of the 3 online", "equal distances", "unmerged with 1 of", "farther with 1", "with 1.")
    assert_says(found.beside_equal_searches(), *said, "exclude differences of more", quality.held_words(2, 2))
    shown = found.online(records_of(found))
    assert shown["as often, evenly"].tolist() == table["even"].tolist()
    assert shown["after Holm"].tolist() == table["after Holm"].tolist()
    assert shown[quality.OVER_CLASSES].tolist() == table[quality.OVER_CLASSES].tolist()


def test_which_verdicts_on_online_schedules_hold_for_other_prompts():
    found = scheduled({}, tolerances=(0.3,))
    rows = found.beside.rows
    of_it = rows["method"] == found.asked[0.7, "auto 0.3"].method.label
    rows.loc[of_it & rows["class"].isin(["class 0", "class 1"]), "psnr"] += (
        9  # by the images alone it is closer
    )
    said = "With the one online schedule, beside about as many", "the images are closer to unmerged."
    assert_says(found.beside_equal_searches(), *said, quality.held_words(1, 0))
    assert "exclude" not in found.beside_equal_searches()
    values = found.beside.differences(
        "psnr", found.asked[0.7, "auto 0.3"].method, found.rivals[0.7, "auto 0.3"].method
    )
    _, low, high = quality.over_classes(values, found.beside.classes)
    assert low < 0 < high
    assert found.at_equal_searches()[quality.OVER_CLASSES].tolist() == [f"[{low:+.2f}, {high:+.2f}]"]
    rows["class"] = "one"
    assert "other prompts" not in found.beside_equal_searches()
    rows["class"] = rows["image"].map("class {0}".format)
    assert_says(found.beside_equal_searches(), *said, quality.ONE_OF_EACH)
    rows["psnr"] = 30.0
    assert_says(
        found.beside_equal_searches(), said[0], "the images are not detectably different.", " 0.00 dB."
    )
    rows.loc[of_it, "psnr"] = 20.0
    assert_says(found.beside_equal_searches(), said[0], "the images are farther from unmerged.")


def test_whether_a_search_at_every_step_is_the_best_that_one_can_do():
    found = scheduled({})
    every = found.asked[0.7, "every step"].method
    rest = [one.method for one in found.asked.values() if one.kind != "bounds"]
    highest = max(found.made.paired("psnr", method, every)[2] for method in rest)
    told = ("paired", "none of the 12", "closer", "every step", f"closer by more than {highest:.2f} dB.")
    assert_says(found.no_upper_bound(), *told)
    found = scheduled({(0.7, "CONFIG_1"): 31.0, (0.7, "least stale 2"): 32.0})
    two = "CONFIG_1 at t = 0.7 and least stale 2 at t = 0.7"
    told = ("2 of the 12", "are closer", f"every step: {two}.", f"tested at once, {two} stay.")
    assert_says(found.no_upper_bound(), *told, "do not give the closest", "closer by more than 2.")
    table = found.against_every_step()
    assert table.loc["least stale 2 at t = 0.7", "verdict"] == "closer"
    assert not table.index.str.contains("step").any()  # the bounds are not tried


def test_a_single_lucky_interval_does_not_stay(monkeypatch):
    found = scheduled({})
    table = pd.DataFrame(
        {"verdict": ["closer", UNTOLD], "after Holm": UNTOLD}, index=["a at t = 0.7", "b at t = 0.7"]
    )
    monkeypatch.setattr(schedules.Result, "against_every_step", lambda self: table)
    told = ("1 of the 2", "is closer", "every step: a at t = 0.7.")
    assert_says(found.no_upper_bound(), *told, "tested at once", "none stays", "not decided")


def test_the_bounds_take_part_in_the_relation_only_where_asked():
    """Less stale is farther among sensible schedules, and closer with the bounds."""
    bills = {
        "CONFIG_FIVE": 29.0,
        "CONFIG_3": 30.0,
        "CONF_ADAPTIVE": 30.5,
        "CONFIG_1": 31.0,
        "least stale 2": 32.0,
    }
    found = scheduled(
        {(0.7, name): value for name, value in bills.items()}
        | {(0.7, "every step"): 60.0, (0.7, "step 0 only"): 5.0}
    )
    assert found.relation()[0.7] > 0.5
    assert found.relation(bounds=True)[0.7] < found.relation()[0.7]


def test_a_correlation_is_said_with_its_sign():
    assert (schedules._correlation(-0.314), schedules._correlation(float("nan"))) == ("-0.31", "undefined")


def test_the_chance_of_a_relation_is_counted_over_all_orders_of_its_schedules():
    names = [*SCHEDULES, "least stale 2", "least stale 13"]
    found = scheduled({})
    bills = {
        name: schedules.mean_staleness(found.staleness[0.7], found.asked[0.7, name].checkpoints)
        for name in names
    }
    closer = scheduled({(0.7, name): 60.0 - 5 * bill for name, bill in bills.items()})
    assert closer.relation()[0.7] == pytest.approx(-1)
    assert closer.relation_chances()[0.7] == pytest.approx(2 / math.factorial(len(names)))
    farther = scheduled({(0.7, name): 30.0 + 5 * bill for name, bill in bills.items()})
    assert farther.relation()[0.7] == pytest.approx(1)
    assert "farther images at t = 0.7." in farther.staleness_tells()


@pytest.mark.parametrize(
    ("relation", "chances", "says"),
    [
        ({0.7: -0.9}, {0.7: 0.002}, ("8 schedules (p = 0.002 at t = 0.7)", "less stale", "closer")),
        (
            {0.7: -0.7, 0.9: np.nan},
            {0.7: 0.06, 0.9: np.nan},
            ("(p = 0.060 at t = 0.7)", "not detected", "only a strong"),
        ),
        ({0.7: -0.8, 0.9: -0.8}, {0.7: 0.03, 0.9: 0.04}, ("not detected", "only a strong")),  # two tests
        (
            {0.7: -0.9, 0.8: 0.9, 0.9: -0.5},
            {0.7: 0.002, 0.8: 0.002, 0.9: 0.2},
            (
                "closer images at t = 0.7, but farther images at t = 0.8.",
                "At t = 0.9 no relation",
                "a strong",
            ),
        ),
        (
            {0.7: -0.9, 0.8: 0.4, 0.9: -0.5},
            {0.7: 0.002, 0.8: 0.3, 0.9: 0.2},
            ("closer images at t = 0.7.", "At t = 0.8 and t = 0.9 no relation", "only a strong"),
        ),
        ({0.7: 0.9}, {0.7: 0.002}, ("less stale pairs give farther images at t = 0.7.",)),
    ],
)
def test_what_staleness_tells(monkeypatch, relation, chances, says):
    monkeypatch.setattr(schedules.Result, "relation", lambda self, bounds=False: relation)
    monkeypatch.setattr(schedules.Result, "relation_chances", lambda self: chances)
    assert_says(scheduled({}).staleness_tells(), "permutation test", *says)


def test_which_checkpoints_of_the_papers_choice_are_cheapest():
    """A checkpoint is worth the steps before it times the steps after it, if staleness is the age."""
    found = scheduled({})
    steps = [*SCHEDULES["CONFIG_3"], 51]
    worth = {
        step: (step - before) * (after - step) / 10 / 51
        for before, step, after in zip(steps, steps[1:], steps[2:], strict=False)
    }
    order = sorted(worth, key=worth.get)
    assert sorted(order[:4]) == [46, 47, 48, 49]
    cheap = f"{max(worth[step] for step in order[:4]):.3f}"
    most = (f"most without {order[-1]}, by {worth[order[-1]]:.3f}.",)
    told = ("t = 0.7", "checkpoints of CONFIG_3 are 46, 47, 48 and 49", f"by {cheap} at most")
    assert_says(found.cheapest(), *told, *most)
    one = scheduled({}, budgets=(2,), steps=3).cheapest()
    assert_says(
        one, "checkpoint of CONFIG_3 is", "Without it, the mean staleness rises by 0.", "most without"
    )
    assert "at most" not in one


def test_why_a_fid_of_few_images_tells_little():
    found = scheduled({})
    told = ("4 dimensions", f"{IMAGES} images", "leaving out 4 groups of images")
    assert_says(found.fid_little(), *told)
    found.made.rows["class"] = found.made.rows["image"].map("class {}".format)
    assert "groups" not in found.fid_little()  # one image of each class


def test_the_papers_table_stands_beside_the_first_threshold():
    found = scheduled({(0.7, "CONFIG_1"): 33.0, (0.9, "CONFIG_4"): 40.0}, thresholds=(0.7, 0.9))
    records = records_of(found)
    table = found.beside_paper(records)
    assert table.index.tolist() == list(SCHEDULES)
    assert table.loc["CONFIG_3", ("time / unmerged", "paper")] == f"{6.09 / 7.61:.3f}"
    assert table.loc["CONFIG_1", ("time / unmerged", "here")] == "0.51 [0.49,\u00a00.53]"
    assert table.loc["CONFIG_1", ("PSNR - best (dB)", "here")] == "0.00"
    assert table.loc["CONFIG_4", ("PSNR - best (dB)", "here")] == "-3.00"
    assert table.loc["CONFIG_1", ("FID - best", "paper (Inception)")] == "2.09"
    assert min(map(float, table["FID - best", "here (scene)"])) == 0
    records[["FID change", "FID change low", "FID change high"]] = np.nan
    assert found.beside_paper(records)["FID - best", "here (scene)"].tolist() == [""] * 6


def test_times_of_schedules_are_ratios_of_each_turn_with_an_interval():
    found = scheduled({}, tolerances=(0.1,))
    base = found.asked[0.7, "CONFIG_3"].method.label
    labels = dict.fromkeys(["unmerged", *(one.method.label for one in found.asked.values())])
    rows = []
    for turn, pace in enumerate((1.0, 10.0)):  # the second turn is slower for all
        for label in labels:
            # CONFIG_3 loses its lead over the others there
            seconds = pace * {"unmerged": 4, base: 1 + turn}.get(label, 2)
            rows.append({"method": label, "repetition": turn, "seconds": seconds})
    records = found.records(pd.DataFrame(rows)).set_index("schedule")
    row = records.loc["CONFIG_3"]
    assert row["time"] == pytest.approx(0.125**0.5)
    assert row[schedules.OVER_EVERY] == pytest.approx(0.5**0.5)
    for column in ("time", schedules.OVER_EVERY):
        low, high = row[[f"{column} low", f"{column} high"]]
        assert low < row[column] < high
        assert low * high == pytest.approx(row[column] ** 2)
    assert records.loc["every step", ["time", "time low", "time high"]].tolist() == pytest.approx([0.5] * 3)


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
    assert words["ways"] == str(len(found.asked)) == "28"
    assert words["merged"] == "60% at t = 0.7 (51% over all images) and 60% at t = 0.9 (51% over all images)"
    first, second = words["searching"].split(" dB at t = 0.7 and ")
    assert float(first.split()[0]) == pytest.approx(10, abs=0.02)
    assert float(second.split()[0]) == pytest.approx(0, abs=0.02)
    assert words["time_searching"] == "0.50 [0.48, 0.52] at t = 0.7 and 0.57 [0.55, 0.59] at t = 0.9"
    assert words["time_base"] == "0.90 [0.88, 0.92] at t = 0.7 and 0.90 [0.88, 0.92] at t = 0.9"
    assert words["time_cached"] == "0.51 to 0.56 at t = 0.7 and 0.57 to 0.64 at t = 0.9"
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
            "stays": 1.0,
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
    assert_says(found.closest(measured(found)), "intervals", "no method is detectably faster")
    one_turn = found.closest(measured(found).assign(**{"speed-up low": np.nan, "speed-up high": np.nan}))
    assert one_turn == "One turn cannot tell which methods are faster."
    faster = {"speed_up_low": {HEADLINE: 1.2, FIXED: 1.01}}
    # the gentle one is not always faster
    records = measured(found, **faster, PSNR={FIXED: 31.26, GENTLE: 50.0})
    assert_says(found.closest(records), "2 methods are faster", "closest", f"is {FIXED},", "31.3 dB")
    one = found.closest(measured(found, speed_up_low={FIXED: 1.01}))
    assert_says(one, "1 method is faster", "closest", f"is {FIXED},", "30.0 dB")
    unchanged = found.closest(measured(found, **faster, PSNR={HEADLINE: np.inf}))
    assert_says(unchanged, "intervals", "closest", f"is {HEADLINE},", "not change")


def test_where_the_papers_own_setting_stands():
    found = peers()
    all_faster = dict.fromkeys(found.peers, 1.1) | {"unmerged": 1.0}
    assert found.papers_place(measured(found, speed_up=all_faster)) == "is among them"
    by_chance = measured(found, speed_up=all_faster, stays={HEADLINE: 0.31})
    assert_says(found.papers_place(by_chance), "is among them", "in only 31% of resamples")
    assert f"{HEADLINE} [in only 31% of resamples]; {GENTLE};" in found.words(by_chance)["frontier"]
    beaten = measured(found, speed_up=all_faster | {GENTLE: 2.0}, PSNR={GENTLE: 40.0})
    assert_says(found.papers_place(beaten), "is not among them", "another method", "as fast", "as close")
    assert found.words(beaten)["frontier"] == GENTLE


def test_what_is_not_faster_is_beaten_by_the_unmerged_pipeline():
    found = peers()
    slow = measured(found, speed_up={HEADLINE: 0.9})
    assert_says(found.papers_place(slow), "is not among them", "the unmerged pipeline", "as fast")
    assert found.words(slow)["frontier"] == "none"


def test_which_methods_fid_tells_from_unmerged():
    found = peers()
    rows = found.made.rows
    rows["features"] = [np.random.default_rng(image).normal(size=4) for image in rows["image"]]
    said = found.told_by_fid(measured(found, FID_change_low={"ToDo": -0.4}))
    assert_says(said, "permutation test of all methods", "no method's FID", "detectably", "all of them")
    assert_says(said, "exclude changes below -0.40 and above +0.30.")
    for name, shift in ((FIXED, 2.0), (HEADLINE, 3.0)):
        of_it = rows["method"] == found.peers[name].label
        rows.loc[of_it, "features"] = rows.loc[of_it, "features"].map(lambda one, shift=shift: one + shift)
    told = f": {FIXED} (p < 0.001); {HEADLINE} (p < 0.001)."
    said = found.told_by_fid(measured(found, FID_change_high={FIXED: 9.0}))
    # the interval of a method that is told excludes nothing for the others
    assert_says(said, "permutation test", "more than chance", told, "For the others", "above +0.30.")


def test_what_fid_tells_of_one_method_it_need_not_tell_of_two(monkeypatch):
    found = peers()
    monkeypatch.setattr(quality, "fid_chance", lambda features, plain, statistics, draws: 0.03)
    asked = {name: found.peers[name] for name in ("unmerged", FIXED)}
    assert found.made.told_by_fid(REAL.features, asked) == {FIXED: 0.03}
    assert found.made.told_by_fid(REAL.features, asked | {HEADLINE: found.peers[HEADLINE]}) == {}


def closer_by(found: headline.Result, gain: float, classes=("class 0", "class 1", "class 2")) -> None:
    """Bring ToDo's images of these classes so many dB closer to the unmerged ones."""
    rows = found.made.rows
    of_it = (rows["method"] == found.peers["ToDo"].label) & rows["class"].isin(classes)
    rows.loc[of_it, "psnr"] += gain


def test_differences_that_are_not_told_say_what_they_exclude():
    found = peers()
    closer_by(found, 3.0)
    said = found.told_apart()
    assert_says(said, "all 7 rows", "detectable in 2 of them", "Elsewhere", "in these intervals: ", " dB)")
    _, low, high = quality.mean_interval(found.differences()[f"{HEADLINE} - {FIXED}"])
    assert f"{HEADLINE} - {FIXED} ({low:+.2f} to {high:+.2f} dB)" in said
    assert "ToDo" not in said
    none = peers().told_apart()
    assert_says(none, "all 7 rows", "in none of them. It may be chance, and lies in these intervals: ")


def test_a_single_difference_is_told_as_one(monkeypatch):
    found = peers()
    monkeypatch.setattr(headline.Result, "_pairs", lambda self: [(HEADLINE, "ToDo")])
    untold = "the difference is not detectable. It may be chance, and lies in this interval: "
    assert found.told_apart().startswith(f"In the only row, {untold}")
    closer_by(found, 3.0)
    assert found.told_apart() == "In the only row, the difference is detectable."


def test_which_verdicts_hold_for_other_prompts():
    found = peers()
    assert_says(found.other_prompts(), "No verdict stays")
    closer_by(found, 3.0)
    assert found.other_prompts() == quality.held_words(2, 2)
    found = peers()
    closer_by(found, 9.0, ("class 0", "class 1"))  # by the images alone this is certain
    held = (quality.held_words(2, 0), "nothing is shown", f"{HEADLINE} - ToDo; {GENTLE} - ToDo")
    assert_says(found.other_prompts(), *held)
    found.made.rows["class"] = "one"
    assert_says(found.other_prompts(), "single prompt")
    found.made.rows["class"] = found.made.rows["image"].map("class {0}".format)
    assert found.other_prompts() == quality.ONE_OF_EACH


def test_differences_have_an_interval_for_other_prompts():
    found = peers()
    closer_by(found, 3.0, ("class 0",))
    table = found.comparisons(measured(found).assign(share=0.5))
    name = f"{HEADLINE} - ToDo"
    _, low, high = quality.over_classes(found.differences()[name], found.made.classes)
    assert table.columns[-1] == quality.OVER_CLASSES
    assert table.loc[name, quality.OVER_CLASSES] == f"[{low:+.2f}, {high:+.2f}]"
    assert high > 0  # one class of three does not speak for others


def test_the_first_table_shows_failures_and_the_distance_of_features():
    found = peers()
    closer_by(found, 5.0)
    rows = found.made.rows
    of_todo = rows["method"] == found.peers["ToDo"].label
    rows.loc[of_todo & (rows["image"] < 3), "psnr"] = 29.9
    rows.loc[of_todo, "feature_distance"] = 0.25
    turns = {"seconds": 2.0, "flops": 4e11, "peak_bytes": np.nan, "batch": 1}
    clock = pd.DataFrame(
        [
            {"method": method.label, "repetition": turn} | turns
            for method in found.peers.values()
            for turn in range(2)
        ]
    )
    records = found.records(clock)
    assert records.loc["ToDo", "poor"] == 0.25
    table = found.shown(records)
    assert table.loc["ToDo", ["below 30 dB", "feature distance"]].tolist() == ["25%", "0.25"]
    assert table.loc[HEADLINE, ["below 30 dB", "feature distance"]].tolist() == ["50%", "0.50"]
    assert table.loc["batch maximum, t = 0.9", ["speed-up", "GFLOP"]].tolist() == ["", ""]
    assert "peak memory (MB)" not in table  # which nobody counted


def test_turns_that_lack_a_method_do_not_count():
    """ToDo is the closest of methods that are equally fast, so nothing beats it in any whole turn."""
    found = peers()
    closer_by(found, 3.0)
    left = {"flops": 4e11, "peak_bytes": np.nan, "batch": 1}
    whole = [
        {"method": method.label, "repetition": turn, "seconds": 2.0 if name == "unmerged" else 1.0} | left
        for name, method in found.peers.items()
        for turn in range(2)
    ]
    broken = [{"method": "unmerged", "repetition": 2, "seconds": 2.0} | left]
    shares = found.records(pd.DataFrame(whole + broken))["stays"]
    assert shares["ToDo"] == 1
    pd.testing.assert_series_equal(shares, found.records(pd.DataFrame(whole))["stays"])


def test_the_shares_of_batch_maximum_and_of_the_threshold_alone():
    found = peers(batch_size=6)
    rows = found.made.rows
    of_it = rows["method"] == found.peers["batch maximum, t = 0.9"].label
    rows.loc[of_it, "merged_share"] = rows.loc[of_it, "merged_share"].map(lambda share: share + 0.1)
    said = {"gentle": "0.9", "batch": "6", "gentle_merged": "0.508", "batch_merged": "0.608"}
    assert found.batch_shares() == said


def test_the_papers_table_stands_beside_the_same_methods():
    found = peers(ratio=0.3)
    fixed, here = "ToMe, r = 0.3", "here (scene, against 40 real images)"
    records = measured(
        found,
        speed_up={fixed: 1.5, HEADLINE: 1.25},
        speed_up_low={"unmerged": 1.0, fixed: 1.4, HEADLINE: np.nan},
        speed_up_high={"unmerged": 1.0, fixed: 1.61, HEADLINE: np.nan},
        FID_change={fixed: -0.2, HEADLINE: np.nan},
        FID_change_low={fixed: -0.5},
        FID_change_high={fixed: 0.1},
    )
    table = found.beside_paper(records)
    assert table["speed-up", "paper"].tolist() == ["1.00", "1.19", "1.25"]
    assert table["speed-up", "here"].tolist() == ["1.00 [1.00,\u00a01.00]", "1.50 [1.40,\u00a01.61]", "1.25"]
    assert table["FID - unmerged", "paper (Inception)"].tolist() == ["+0.00", "+0.50", "+0.39"]
    assert table["FID - unmerged", here].tolist() == ["", "-0.20 [-0.50,\u00a0+0.10]", ""]
    records.loc[HEADLINE, ["FID change", "FID change low"]] = 0.4, np.nan
    assert found.beside_paper(records)["FID - unmerged", here].tolist()[2] == "+0.40"


def test_the_seconds_of_an_image_fit_the_speed_ups():
    """One turn is eight times as slow for all, which no ratio of two methods may notice."""
    found = peers()
    closer_by(found, 3.0)
    left = {"flops": 4e11, "peak_bytes": np.nan, "batch": 1}
    clock = [
        {"method": method.label, "repetition": turn, "seconds": pace * (1 + (name == "unmerged"))} | left
        for name, method in found.peers.items()
        for turn, pace in enumerate((1.0, 1.0, 8.0))
    ]
    records = found.records(pd.DataFrame(clock))
    assert records.loc["ToDo", "speed-up"] == pytest.approx(2)
    assert records.loc["unmerged", "s/image"] == pytest.approx(4)
    table = found.shown(records)
    assert table.loc[["unmerged", "ToDo"], "s/image"].tolist() == ["4.00", "2.00"]
    assert table.loc["ToDo", "speed-up"] == "2.00 [2.00,\u00a02.00]"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.6, 2.6, ("both values", "cannot decide")),
        (1.6, 2.2, ("product alone",)),
        (2.2, 2.6, ("sum alone",)),
        (1.0, 1.5, ("neither value",)),
        (np.nan, np.nan, ("One turn cannot decide",)),
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
    assert words["both"] == ("1.90" if np.isnan(low) else f"1.90 [{low:.2f}, {high:.2f}]")
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
    assert words["rank"] == "These features have 4 dimensions, and 12 images can span all of them."
    assert_says(words["needed"], "difference of 0.5 dB", "there are 12")
    assert (words["extractor"], words["real"]) == ("scene", "40")
    assert words["merged"] == "60% at t = 0.7 (51% over all images) and 60% at t = 0.9 (51% over all images)"
    assert words["paper_speed"] == "1.25"
    assert (words["speed"], words["fastest"]) == ("1.36 [0.90, 1.10]", "ToDo")
    assert words["fastest_speed"] == "1.40 [0.90, 1.10]"
    assert words["threshold"] == "0.7"
    assert words["frontier"] == "ToDo"  # all are as close, and it is the fastest
