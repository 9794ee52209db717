"""The words of chapter 3 follow from the numbers, and every number in its text is given."""

import re
from dataclasses import replace
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest

from catome.study import methods
from catome.study.measure import quality, wrapping
from catome.study.measure.comparison import Comparison
from catome.study.studies import allocation, sweep
from catome.study.studies import jobs as counting
from helpers.paths import ROOT
from helpers.sentences import assert_says

IMAGES = 12
REAL = SimpleNamespace(features=np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32))
SCATTER = np.linspace(-0.1, 0.1, IMAGES)


def comparison(psnr: dict[str, float], share: float = 0.5) -> Comparison:
    """Rows of these methods by label: PSNR scattered a little, features as far off as PSNR is low."""
    rows = []
    for place, (label, value) in enumerate(psnr.items()):
        scatter = np.random.default_rng(place).permutation(SCATTER)
        for image in range(IMAGES):
            features = np.random.default_rng(image).normal(size=4) + (
                0 if np.isinf(value) else 0.01 * (60 - value)
            )
            rows.append(
                {
                    "method": label,
                    "image": image,
                    "class": ("desert", "beach")[image % 2],
                    "psnr": value + scatter[image],
                    "ssim": 0.9,
                    "feature_distance": 1.0,
                    "psnr_real": 9.0 + 0.01 * image,
                    "ssim_real": 0.3,
                    "merged_share": np.full(3, 0.25 if image == 0 else share) if label != "unmerged" else [],
                    "features": features,
                }
            )
    return Comparison(pd.DataFrame(rows), list(psnr), "scene", {})


def controlled(psnr: dict[str, float]) -> allocation.Result:
    """A result of the control where each freedom has this PSNR, 40 dB if none is given."""
    ways = {}
    for place, freedom in enumerate((*allocation.FREEDOMS, "image")):
        ways[0.9, freedom] = methods.fixed_shares(np.full((3, 5), 0.1 * (place + 1)), freedom)
    made = comparison({way.label: psnr.get(freedom, 40.0) for (_, freedom), way in ways.items()})
    scores = dict.fromkeys(ways, 0.5)
    return allocation.Result(allocation.Parameters(), {}, ways, scores, made)


def result(psnr: dict[float, float], control=None, **params) -> sweep.Result:
    """A sweep whose images have these PSNR by threshold."""
    asked = sweep.Parameters(
        images=IMAGES, thresholds=tuple(psnr), finer=tuple(psnr), compared=tuple(psnr), **params
    )
    ways = {t: methods.ca_tome(t, None) for t in psnr}
    made = comparison({"unmerged": np.inf} | {way.label: psnr[t] for t, way in ways.items()})
    return sweep.Result(asked, REAL, ways, {}, made, None, {}, control or controlled({}))


def clock(found: sweep.Result, slow: tuple[float, ...] = ()) -> pd.DataFrame:
    seconds = {"unmerged": 2.0} | {way.label: 3.0 if t in slow else 1.0 for t, way in found.sweep.items()}
    return pd.DataFrame(
        [
            {"method": label, "repetition": turn, "seconds": taken, "block_seconds": taken / 2, "flops": 1e9}
            for label, taken in seconds.items()
            for turn in range(3)
        ]
    )


def against_fixed_shares(gains: dict[float, dict[str, float]]) -> sweep.Result:
    """A sweep whose thresholds are closer to unmerged than their fixed shares, by so many dB in each
    class."""
    found = result(dict.fromkeys(gains, 30.0))
    twins, both = {t: methods.tome(round(t / 2, 3)) for t in gains}, {}
    for t, of_class in gains.items():
        both[t] = comparison({found.sweep[t].label: 30.0, twins[t].label: 30.0})
        rows = both[t].rows
        own = rows["method"] == found.sweep[t].label
        rows.loc[own, "psnr"] += rows.loc[own, "class"].map(of_class)
    return replace(found, twins=twins, both=both)


def test_the_sweep_is_told_from_its_first_threshold_to_the_last_that_changes_anything():
    found = result({0.5: 31.0, 0.7: 29.0, 0.9: 35.0, 1.0: np.inf})
    said = found.moving()
    assert "From t = 0.5 to t = 0.9" in said
    assert "from 31.0 to 35.0 dB" in said
    assert "lowest at t = 0.7" in said
    assert_says(result({1.0: np.inf}).moving(), "No threshold", "changed")


def test_a_dip_is_told_with_its_interval():
    said = result({0.5: 31.0, 0.7: 29.0, 0.9: 35.0}).dip()
    assert re.search(r"changes by \+2\.\d\d \[\+1\.\d\d, \+2\.\d\d\] dB from t = 0.7 to t = 0.5", said)
    assert_says(said, "Merging more is not always worse", "holds for other prompts", "t = 0.7 was chosen on")
    none = result({0.5: 29.01, 0.7: 29.0, 0.9: 35.0}).dip()
    assert_says(none, "changes by +0.01 [-", "no gain", "detectable", "other prompts", "nothing is decided")
    assert "not always worse" not in none
    assert "chosen" not in none
    assert "lowest where most is merged" in result({0.5: 28.0, 0.7: 29.0}).dip()
    assert "lowest where most is merged" in result({0.5: np.inf, 1.0: np.inf}).dip()


def test_the_rows_that_were_computed_are_those_of_all_comparisons():
    found = result({0.7: 30.0})
    of = {name: replace(found.made, runs={name: {}}) for name in ("made", "fixed", "both", "control")}
    control = replace(found.control, made=of["control"])
    both = replace(found, made=of["made"], fixed=of["fixed"], both={0.7: of["both"]}, control=control)
    assert list(both.runs) == ["made", "fixed", "both", "control"]


def test_a_comparison_may_have_more_images_than_the_sweep(monkeypatch):
    asked = []

    def made(pipe, setting, ways, real=None, recompute=False, **kept):
        asked.append((setting.images, recompute, [way.family for way in ways]))
        scatter = np.random.default_rng(len(asked)).normal(size=(len(ways), setting.images))
        rows = [
            {
                "method": way.label,
                "image": image,
                "psnr": 30 + scatter[at, image],
                "feature_distance": 1.0,
                "merged_share": np.array([0.25]),
            }
            for at, way in enumerate(ways)
            for image in range(setting.images)
        ]
        some = pd.DataFrame(rows).assign(ssim=0.9, psnr_real=9.0, ssim_real=0.1, **{"class": "desert"})
        return Comparison(some, [way.label for way in ways], "scene", {})

    monkeypatch.setattr(sweep, "compare", made)
    monkeypatch.setattr(sweep.real_images, "beside", lambda *given: REAL)
    monkeypatch.setattr(sweep.allocation, "run", lambda *given, **kept: None)
    given = {"images": 5, "thresholds": [0.8, 0.9], "finer": [0.9], "compared": [0.8, 0.9]}
    params = sweep.Parameters.checked(given | {"compared_images": [5, 9], "recompute": True})
    found = sweep.run(params, None)
    assert [(images, again) for images, again, _ in asked[-2:]] == [(5, False), (9, True)]
    assert {t: len(one) for t, one in found.differences().items()} == {0.8: 5, 0.9: 9}
    assert found.adapting_table()["images"].tolist() == [5, 9]
    assert_says(found.by_class(), "within their classes", "1.00 and 1.00 times as wide")
    counted = counting.table(sweep.jobs(params))
    of_twin = counted[counted["method"].str.contains("as much as t = 0.9")]
    assert of_twin["images"].tolist() == [5, 9]
    assert (counted.groupby("phase")["images"].nunique() == 1).all()
    equal = sweep.run(sweep.Parameters.checked(given), None)
    assert equal.adapting_table()["images"].tolist() == [5, 5]


@pytest.mark.parametrize("given", [[5], [5, 6, 7]])
def test_images_are_given_for_each_comparison_or_none(given):
    with pytest.raises(ValueError, match=r"compared_images=.* each of compared=\[0\.8, 0\.9\].* none"):
        sweep.Parameters.checked({"compared_images": given})


def turns_of(found: sweep.Result, t: float, seconds: list[float], turns: pd.DataFrame) -> pd.DataFrame:
    """Timed turns in which a threshold takes so many seconds."""
    turns = turns.copy()
    turns.loc[turns["method"] == found.sweep[t].label, "seconds"] = seconds
    return turns


def test_thresholds_that_change_the_time_are_named_by_their_intervals():
    found = result({0.5: 31.0, 0.7: 32.0, 0.9: 35.0})
    # of the threshold in the middle, the mean is slower than unmerged, but one turn is faster
    turns = turns_of(found, 0.7, [1.0, 4.0, 3.0], clock(found, slow=(0.9,)))
    said = found.slower(found.records(turns))
    assert_says(said, "taken alone", "At t = 0.9 a generation takes longer", "At t = 0.5 it takes less time")
    assert_says(said, "At t = 0.7 these turns do not decide")
    fast = found.slower(found.records(clock(found)))
    assert_says(fast, "At no threshold", "longer", "At t = 0.5, 0.7 and 0.9 it takes less time")
    assert "do not decide" not in fast
    assert_says(found.slower(found.records(turns[turns["repetition"] == 0])), "One turn cannot tell")


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        ([0.5, 0.6, 0.5], (" 0.53 [0.4", "So it is faster.")),
        ([3.0, 3.1, 3.0], (" 3.03 [2.", "So it is slower.")),
        ([0.5, 2.0, 1.0], (" 1.00 [0.", "these turns do not decide.")),
        ([0.5], (" 0.50 of the time.", "One turn cannot tell")),
    ],
)
def test_the_lowest_threshold_is_timed_against_the_highest_that_changes_anything(seconds, says):
    found = result({0.5: 31.0, 0.9: 35.0, 1.0: np.inf})
    turns = clock(found)
    turns = turns_of(found, 0.5, seconds, turns[turns["repetition"] < len(seconds)])
    turns.loc[turns["method"] == found.sweep[0.5].label, "flops"] = 8e8
    assert_says(found.lowest_time(turns), "At t = 0.5", " 0.80 of the work", "at t = 0.9.", *says)


def test_where_one_threshold_changes_anything_no_times_are_compared():
    found = result({0.5: 31.0, 1.0: np.inf})
    assert "Fewer than two thresholds" in found.lowest_time(clock(found))


def test_neighbouring_thresholds_are_compared_seed_by_seed():
    found = result({0.5: 29.0, 0.7: 29.0, 0.9: 35.0, 1.0: np.inf})
    differences = found.neighbours()
    assert list(differences) == [(0.5, 0.7), (0.7, 0.9)]
    assert differences[0.7, 0.9].mean() == pytest.approx(6)
    _, low, high = quality.mean_interval(differences[0.5, 0.7])
    said = found.neighbours_told()
    assert_says(
        said, "Holm", "1 of 2 pairs", f" {low:+.2f} to {high:+.2f} dB from t = 0.5 to 0.7, and exclude"
    )
    assert "0.9" not in said
    apart = result({0.5: 29.0, 0.7: 31.0, 0.9: 35.0}).neighbours_told()
    assert "2 of 2 pairs" in apart
    assert "exclude" not in apart
    assert_says(result({1.0: np.inf}).neighbours_told(), "Fewer than two thresholds")


def test_whether_adapting_pays_is_said_for_these_prompts_and_for_others():
    gains = {0.7: 2.0, 0.8: 4.0, 0.9: 0.0}
    found = against_fixed_shares(
        {t: {"desert": gain, "beach": gain if t != 0.8 else 1.0} for t, gain in gains.items()}
    )
    said = found.adapts()
    assert_says(
        said, "At t = 0.7 the threshold is closer", "these prompts", "+2.00 dB [+1.9", "This holds for"
    )
    assert_says(said, "At t = 0.8 the threshold is closer", "+2.50 dB [", "other prompts", "is not decided")
    assert_says(said, "At t = 0.9 no difference", "lies between -0.05 and +0.05 dB", "nothing is decided")
    table = found.adapting_table()
    assert table["verdict"].tolist() == ["closer", "closer", quality.UNTOLD]
    _, low, high = quality.over_classes(found.differences()[0.8], found.both[0.8].classes)
    assert low < 0 < high
    assert table[quality.OVER_CLASSES].iloc[1] == f"[{low:+.2f}, {high:+.2f}]"
    assert table["PSNR (dB)"].iloc[1].startswith("+2.50 [")
    assert table["feature distance"].tolist() == ["+0.00 [+0.00, +0.00]"] * 3
    none = result({0.5: 31.0})
    assert "No threshold was compared" in none.adapts()
    assert none.adapting_table().empty


def test_where_fid_tells_nothing_it_is_said_what_is_excluded(monkeypatch):
    found = result({0.5: 31.0, 0.9: 59.0})
    ends = found.summary[["FID change low", "FID change high"]].abs().max(axis=1)
    far, near = (ends[found.sweep[t].label] for t in (0.5, 0.9))
    assert far > near
    monkeypatch.setattr(Comparison, "told_by_fid", lambda self, reference, methods: {})
    assert_says(found.fid_told(), "no threshold changes FID", "At all of them", f"more than {far:.2f}.")
    monkeypatch.setattr(Comparison, "told_by_fid", lambda self, reference, methods: {0.5: 0.01})
    assert_says(found.fid_told(), "t = 0.5 (p = 0.010)", "At the others", f"more than {near:.2f}.")


def test_unrelated_images_are_told_for_the_papers_thresholds_alone():
    assert "PSNR is 9.05 to 9.05 dB" in result({0.5: 31.0, 0.55: 20.0}).unrelated()
    assert_says(result({0.55: 20.0}).unrelated(), "None of the thresholds", "paper")


def test_the_timed_image_stands_beside_the_mean():
    found = result({0.8: 31.0, 0.9: 33.0})
    twins = {0.8: methods.tome(0.4)}
    said = sweep.Result(**{**vars(found), "twins": twins}).merged_there()
    assert_says(said, "t = 0.8", " 25% of its tokens", " 48% on average", "all images")
    assert "0.9" not in said


def test_records_hold_the_change_of_kid():
    found = result({0.5: 31.0})
    table = found.records(clock(found))
    row = table.loc[found.sweep[0.5].label]
    assert row["KID change low"] <= row["KID change"] <= row["KID change high"]
    assert np.isnan(table.loc["unmerged", "KID change"])
    shown = found.shown(table)
    assert shown.index.tolist() == ["unmerged", "t = 0.5"]
    assert shown.loc["t = 0.5", "PSNR (dB)"].startswith("31.0 [")
    assert shown.loc["t = 0.5", f"below {quality.POOR_DB} dB"] == "0%"
    assert not shown.isin(["nan"]).any(axis=None)


@pytest.mark.parametrize(
    ("psnr", "says"),
    [
        ({"image": 42.0}, ("the image decides, too",)),
        ({"image": 38.0}, ("closer if the image does not decide",)),
        ({}, ("may be chance", "95 %", "gains no more than 0.1 dB", "loses no more than 0.1 dB")),
    ],
)
def test_who_decides_follows_from_the_interval(psnr, says):
    found = controlled(psnr | {"generation": 35.0})
    assert_says(found.decides(0.9), "step and the block", " +5.0 [", *says)
    others = "This holds for other prompts" if psnr else "nothing is decided, either"
    chapter = result({0.9: 30.0}, controlled(psnr))
    assert_says(chapter.decides(), *says, others)
    summary = chapter.image_decides()
    assert_says(summary, "image decide as well as the step and the block", says[0], others)
    assert "95 %" not in summary
    assert chapter.decides().startswith("Letting the share depend on the step and the block")


def test_an_image_that_decides_nothing_loses_nothing():
    found = controlled({})
    found.made.rows["psnr"] = 40.0
    assert_says(found.decides(0.9), "gains no more than 0.0 dB, and loses no more than 0.0 dB")


def test_the_controls_table_has_a_row_for_each_freedom():
    shown = controlled({"generation": 35.0, "image": 42.0}).shown(0.9)
    assert list(shown.index) == [*allocation.FREEDOMS.values(), allocation.BY_IMAGE]
    assert shown.loc["one share for all", "minus the threshold (dB)"].startswith("-7.0 [")
    assert shown.loc[allocation.BY_IMAGE, "minus the threshold (dB)"] == ""
    assert (shown["scores left"] == "0.500").all()


def test_what_each_freedom_adds_has_an_interval_for_other_prompts():
    found = controlled({"step": 42.0})
    rows = found.made.rows
    of_deserts = (rows["method"] == found.ways[0.9, "step"].label) & (rows["class"] == "desert")
    rows.loc[of_deserts, "psnr"] += 9.0
    table = found.steps_of_freedom(0.9)
    values = found.differences(0.9)["each step"]
    _, low, high = quality.over_classes(values, found.made.classes)
    assert table.loc["each step", "verdict"] == "closer"
    assert table.loc["each step", quality.OVER_CLASSES] == f"[{low:+.2f}, {high:+.2f}]"
    assert low < 0 < high
    assert_says(
        found.needed(), " 0.5 dB", f" to {quality.images_needed(values, 0.5)} images", "there are 12."
    )


def test_every_number_that_the_chapters_text_takes_up_is_given_to_it():
    notebook = nbformat.read(ROOT / f"notebooks/{sweep.NOTEBOOK}.ipynb", 4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    taken = set(re.findall(r"\{glue:text\}`([\w-]+)`", text))
    found = result({0.5: 31.0, 0.9: 33.0})
    words = found.words(found.records(clock(found)), clock(found))
    assert_says(words["needed_sweep"], " 0.5 dB", "there are 12.")
    assert words["prompts"] == "2"
    assert all(isinstance(word, str) and word for name, word in words.items() if name != "merged_there")
    assert taken == {name.replace("_", "-") for name in words} | {"recorded", "clock"}


def test_a_wrapped_psnr_by_hand():
    a = np.zeros((2, 1, 1, 3), np.uint8)
    b = np.array([[[[3, 20, 200]]], [[[1, 1, 1]]]], np.uint8)
    wrapped = [(3**2 + 20**2 % 256 + 200**2 % 256) / 3, 1]
    np.testing.assert_allclose(wrapping.wrapped_psnr(a, b), 10 * np.log10(255**2 / np.array(wrapped)))
    table = wrapping.wrapped_beside_right(a, {"other": b})
    low, high = sorted(wrapping.wrapped_psnr(a, b))
    assert table.loc["other", "bytes that wrap"] == f"{(low + high) / 2:.1f} dB ({low:.1f} to {high:.1f})"
    assert table.loc["other", "floating point"] == f"{quality.psnr(a, b).mean():.1f} dB"


def test_differences_spread_over_all_bytes_give_the_papers_number():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 4, 64, 64, 3), dtype=np.uint8)
    np.testing.assert_allclose(wrapping.wrapped_psnr(a, b), 27.9, atol=0.15)
