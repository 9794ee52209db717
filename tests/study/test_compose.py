"""Forecasts, and the search for the fastest composition."""

import math
import re
from dataclasses import replace

import pytest

from catome.study import methods
from catome.study.measure.comparison import QUALITY
from catome.study.methods import Method
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
    assert set(table["method"]) == {method.label for method in merging}
    said = report(table, floors=(5.0, 99.0))
    assert "Fastest above 5 dB: " in said
    assert "99 dB" not in said


ROW = re.compile(
    r"^\| .*? \| `(?P<label>.*?)` \| ([\d.]+) dB \(([\d.]+) to ([\d.]+)\) \| ([\d.]+) \|$", re.MULTILINE
)


def test_the_library_page_says_what_was_recorded():
    """Its table of whole generations is of the rows in the repository."""
    table = ROW.findall((ROOT / "book/library.md").read_text())
    assert len(table) >= 5
    recorded = Store(COMPOSED, RECORDED, None).find()
    for label, *said in table:
        row = recorded[recorded["method"] == label].iloc[-1]
        found = [*(f"{row[name]:.1f}" for name in ("psnr", "low", "high")), f"{row['speedup']:.1f}"]
        assert said == found, label


def test_what_was_judged_was_judged_on_images_that_nothing_was_chosen_by(pipe):
    recorded = Store(COMPOSED, RECORDED, None).find()
    assert set(recorded["seed"]) == {compose.HELD_OUT}
    assert compose.HELD_OUT != compose.SEARCHED
    rows = Store(QUALITY, RECORDED, None).find(seed=compose.HELD_OUT, model=fingerprint(pipe))
    for row in recorded.itertuples():
        psnr = rows[rows["method"] == row.method].sort_values("image")["psnr"].to_numpy(float)
        assert len(psnr) == row.images
        assert psnr.mean() == pytest.approx(row.psnr, abs=1e-3)
        assert (psnr < 30).mean() == pytest.approx(row.poor)
