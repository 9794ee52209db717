"""Forecasts, and the search for the fastest composition."""

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from catome.study import methods
from catome.study.measure.comparison import QUALITY
from catome.study.methods import Method
from catome.study.run.parameters import Setting
from catome.study.run.store import RECORDED, Store, fingerprint
from catome.study.studies import compose
from catome.study.studies.compose import (
    COMPOSED,
    Tried,
    chosen,
    frontier,
    judged,
    predicted,
    promising,
    report,
    search,
)
from helpers.paths import ROOT
from helpers.sentences import assert_says
from helpers.settings import setting


def test_parts_that_change_nothing_are_predicted_to_change_nothing():
    unchanged = Tried(methods.todo(2), 0.0, float("inf"), 2.0)
    assert predicted([unchanged, unchanged], unmerged_s=4.0) == (float("inf"), 1.0)


def test_fewer_steps_are_shares_of_the_steps():
    assert [method.label for method in compose.kinds(50)["fewer steps"]] == [
        f"fewer steps(steps={steps})" for steps in (15, 20, 25, 30)
    ]
    assert [method.label for method in compose.kinds(20)["fewer steps"]] == [
        f"fewer steps(steps={steps})" for steps in (6, 8, 10, 12)
    ]


def test_fewer_steps_are_as_many_as_were_named(pipe):
    calls = []
    handle = pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with methods.fewer_steps(3).applied(pipe):
            pipe("a", num_inference_steps=9, output_type="latent")
        assert len(calls) == 4  # PLMS calls the model once more
        pipe("a", num_inference_steps=5, output_type="latent")
        assert len(calls) == 4 + 6
    finally:
        handle.remove()


def tried(family, psnr, seconds, label=None):
    method = Method(label or f"{family}({psnr}, {seconds})", family, None)
    return Tried(method, 10 ** (-psnr / 10), psnr, seconds)


def test_the_frontier_is_what_no_other_is_both_faster_and_closer_than():
    a, b, c, d = tried("a", 40, 4.0), tried("b", 35, 3.0), tried("c", 34, 3.5), tried("d", 30, 1.0)
    assert frontier([d, c, b, a]) == [a, b, d]


def test_the_unmerged_pipeline_beats_what_is_slower():
    unmerged, slow, fast = tried("unmerged", math.inf, 4.0), tried("a", 45, 4.5), tried("b", 35, 3.0)
    assert frontier([slow, fast, unmerged]) == [unmerged, fast]
    assert chosen([unmerged, fast], floors=(30.0,))[0] == fast.method
    assert unmerged.method not in chosen([unmerged, fast], floors=(30.0,))


def test_errors_add_up_and_times_multiply():
    psnr, seconds = predicted([tried("a", 33.0, 2.0), tried("b", 33.0, 3.0)], unmerged_s=4.0)
    assert psnr == pytest.approx(33 - 3.01, abs=0.01)
    assert seconds == pytest.approx(4 * 0.5 * 0.75)


def test_combinations_are_of_different_kinds_and_near_a_floor():
    singles = {
        "a": [tried("a", 40, 3.0), tried("a", 31, 2.0)],
        "b": [tried("b", 36, 2.0), tried("b", 20, 0.5)],
        "c": [tried("c", 41, 3.5)],
    }
    found = promising(singles, unmerged_s=4.0, floors=(30.0,))
    families = [[part.method.family for part in parts] for parts in found]
    assert all(len(parts) == len(set(parts)) > 1 for parts in families)
    assert not any(part.psnr == 20 for parts in found for part in parts)
    seconds = [predicted(parts, 4.0)[1] for parts in found]
    assert seconds == sorted(seconds)
    assert ["a", "b", "c"] in families


def test_what_is_judged_is_the_fastest_above_each_floor_and_the_best_of_each_kind():
    some = [
        tried("forecast", 36, 2.0),
        tried("forecast", 31, 1.0),
        tried("DeepCache", 33, 2.5),
        tried("a + b", 30.5, 0.5),
    ]
    some += [tried("merged keys", 40, 3.5), tried("a + b", 29, 0.3)]
    families = [method.family for method in chosen(some, floors=(30.0,))]
    assert families[:3] == ["a + b", "forecast", "forecast"]
    assert {"merged keys", "DeepCache"} <= set(families)
    assert "a + b(29, 0.3)" not in [method.label for method in chosen(some, floors=(30.0,))]


def test_the_search_from_end_to_end(pipe, tmp_path, monkeypatch):
    """Few steps and images; what was made is found again."""
    few = {
        "merged keys": [methods.merged_keys(0.7)],
        "forecast": [methods.forecast(2, 1, 2)],
    }
    monkeypatch.setattr(compose, "kinds", lambda steps: few)
    monkeypatch.setattr(compose, "FLOORS", (5.0,))
    asked = setting(tmp_path, images=2, steps=5, batch_size=2)
    found = search(pipe, asked, recorded=None)
    labels = [one.method.label for one in found]
    together = (
        "merged keys(threshold=0.7, stride=2x2, schedule=EVEN_13) + forecast(interval=2, order=1, first=2)"
    )
    assert labels == ["unmerged", few["merged keys"][0].label, few["forecast"][0].label, together]
    assert all(one.seconds > 0 for one in found)
    assert found[3].psnr < found[1].psnr < found[0].psnr == math.inf
    monkeypatch.setattr(
        "catome.study.measure.comparison.generate_batch", lambda *_: pytest.fail("it was made again")
    )
    again = search(pipe, asked, recorded=None)
    assert [(one.method.label, one.psnr, one.seconds) for one in again] == [
        (one.method.label, one.psnr, one.seconds) for one in found
    ]
    monkeypatch.undo()
    merging = [one.method for one in found[1:]]
    table = judged(pipe, replace(asked, seed=7), merging, repetitions=2, recorded=None)
    assert table["speedup"].is_monotonic_increasing
    assert (table["least"] <= table["speedup"]).all()
    assert (table["speedup"] <= table["most"]).all()
    assert set(table["method"]) == {method.label for method in merging}
    kept = Store(COMPOSED, tmp_path, None).find().set_index("method")["speedup"]
    assert kept.to_dict() == table.set_index("method")["speedup"].to_dict()
    said = report(table, floors=(5.0, 99.0))
    assert "Fastest above 5 dB: " in said
    assert "99 dB" not in said


TURNS = {"unmerged": (4.0, 4.0, 32.0), "fast": (1.0, 2.0, 8.0), "slow": (4.0, 4.0, 32.0)}
"""Seconds of three turns; the last one is slower for all. Turn by turn "fast" is 4, 2 and 4 times as fast as
unmerged."""


@pytest.fixture
def timed(monkeypatch):
    """A function that judges "fast" and "slow", of 36 and 31 dB, by the first so many turns of `TURNS`, and
    times them for the search."""
    some = [Method(label, label, None) for label in ("fast", "slow")]
    monkeypatch.setattr(compose, "shared_keys", lambda *_: {"model": "m"})
    monkeypatch.setattr(compose, "provenance", lambda *_: {})
    monkeypatch.setattr(
        compose, "Store", lambda *_: SimpleNamespace(add=lambda *_: None, finish=lambda: None)
    )
    psnr = {"fast": [35.0, 37.0], "slow": [29.0, 33.0]}

    class Made:
        def of(self, method):
            return pd.DataFrame({"psnr": psnr[method.label]})

    def judge(turns: int):
        rows = [
            {"method": label, "repetition": turn, "seconds": seconds, "device": "a machine", "threads": 2}
            for label, times in TURNS.items()
            for turn, seconds in enumerate(times[:turns])
        ]
        monkeypatch.setattr(compose, "compare", lambda *_, **__: Made())
        monkeypatch.setattr(compose, "cost", lambda *_, **__: pd.DataFrame(rows))
        return judged(None, Setting(images=2), some, turns), compose._seconds(None, Setting(), some, turns)

    return judge


def test_what_is_judged_has_the_speed_up_of_the_book_with_its_interval(timed):
    table, seconds = timed(3)
    assert table["method"].tolist() == ["slow", "fast"]
    fast = table.set_index("method").loc["fast"]
    assert fast["speedup"] == pytest.approx(32 ** (1 / 3))  # neither the median, 4, nor the mean
    assert fast["least"] * fast["most"] == pytest.approx(fast["speedup"] ** 2)
    reach = 4.30265 * np.std(np.log([4, 2, 4]), ddof=1) / 3**0.5  # Student's t of two degrees of freedom
    assert fast["least"] == pytest.approx(np.exp(np.log(32) / 3 - reach), rel=1e-4)
    assert table.loc[0, ["speedup", "least", "most"]].tolist() == pytest.approx([1, 1, 1])
    assert seconds["unmerged"] / seconds["fast"] == pytest.approx(fast["speedup"])


def test_the_report_says_every_speed_up_with_its_interval(timed):
    table, _ = timed(3)
    fast = table.set_index("method").loc["fast"]
    interval = f"3.17 [{fast['least']:.2f}, {fast['most']:.2f}]"
    said = report(table, floors=(30.0, 35.0))
    assert_says(said, "speed-up (95 % interval)", "slow  1.00 [1.00, 1.00]", f"fast  {interval}", "36.0 dB")
    assert_says(said, "a machine, 2 threads", "geometric mean over turns", "Student")
    assert_says(said, "Fastest above 30 dB: fast", interval, "Fastest above 35 dB: fast", interval)
    assert_says(said, "below 30 dB", "50%", "0%")


def test_one_turn_has_no_interval(timed):
    table, _ = timed(1)
    assert table[["least", "most"]].isna().all(axis=None)
    said = report(table, floors=(30.0,))
    assert_says(said, "Fastest above 30 dB: fast, 4.00 times")
    assert "nan" not in said


ROW = re.compile(
    r"^\| .*? \| `(?P<label>.*?)` \| ([\d.]+) dB \(([\d.]+) to ([\d.]+)\) \| ([\d.]+) \|$", re.MULTILINE
)


def recorded_rows():
    """The newest version of what is recorded; version 1 has medians."""
    rows = Store(COMPOSED, RECORDED, None).find(version=[1, COMPOSED.version])
    return rows[rows["version"] == rows["version"].max()]


def test_the_library_page_says_what_was_recorded():
    """Its table of whole generations is of the rows in the repository."""
    text = (ROOT / "book/library.md").read_text()
    table = ROW.findall(text)
    assert len(table) >= 5
    recorded = recorded_rows()
    means = set(recorded["version"]) == {COMPOSED.version}
    assert f"Each time is the {'geometric mean' if means else 'median'} of fifteen " in text
    for label, *said in table:
        row = recorded[recorded["method"] == label].iloc[-1]
        found = [*(f"{row[name]:.1f}" for name in ("psnr", "low", "high")), f"{row['speedup']:.1f}"]
        assert said == found, label


def test_what_was_judged_was_judged_on_images_that_nothing_was_chosen_by(pipe):
    recorded = recorded_rows()
    assert set(recorded["seed"]) == {compose.HELD_OUT}
    assert compose.HELD_OUT != compose.SEARCHED
    rows = Store(QUALITY, RECORDED, None).find(seed=compose.HELD_OUT, model=fingerprint(pipe))
    for row in recorded.itertuples():
        psnr = rows[rows["method"] == row.method].sort_values("image")["psnr"].to_numpy(float)
        assert len(psnr) == row.images
        assert psnr.mean() == pytest.approx(row.psnr, abs=1e-3)
        assert (psnr < 30).mean() == pytest.approx(row.poor)
