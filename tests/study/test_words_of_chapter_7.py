"""The tables and words of chapter 7: what is said follows from what was counted and timed."""

import re
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest

from catome.study.costs import accounting, counts
from catome.study.costs.counts import Counted
from catome.study.measure import quality
from catome.study.run.store import CHECKOUT
from catome.study.studies.chapters import Accounting
from helpers.sentences import assert_says

TOP = "topmost self-attention"


def asked(
    schedule="CONFIG_3",
    calls: int = 51,
    sizes=(512,),
    size: int = 512,
    shares=(0.5, 0.75),
    rows: int = 2,
    **known,
) -> Counted:
    """Counts of a notebook; ``known`` takes the place of what would be counted."""
    counted = Counted(sizes, size, shares, rows, schedule, calls)
    counted.__dict__.update(known)
    return counted


@pytest.fixture(scope="module")
def counted():
    """Counts of SD v1.5, which stands in for SDXL: that one takes many seconds."""

    def bounds_of(architecture, *args):
        return real("sd15" if architecture == "sdxl" else architecture, *args)

    real = accounting.speedup_bounds
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(accounting, "speedup_bounds", bounds_of)
        yield asked()


def bounds(free: dict, charged: float = 1.0, share: float = 0.75) -> pd.DataFrame:
    """As of `accounting.speedup_bounds` on an H200, by kind of attention and size."""
    rows = [
        dict(
            device="H200 SXM",
            precision="float16",
            size=size,
            attention=kind,
            share=share,
            free=value,
            charged=value / charged,
        )
        for kind, by_size in free.items()
        for size, value in by_size.items()
    ]
    return pd.DataFrame(rows)


def test_parameters_become_sorted_lists():
    found = counts.of(
        SimpleNamespace(sizes=(512, 256, 512), size=768, shares=(0.75, 0.5), rows=3, schedule=None, calls=6)
    )
    assert found == Counted((256, 512), 768, (0.5, 0.75), 3, None, 6)


@pytest.mark.parametrize(
    ("schedule", "calls", "every", "said"),
    [
        ("CONFIG_3", 51, 51 / 13, "with CONFIG_3"),
        ("EVEN_2", 8, 4, "with EVEN_2"),
        ("EVEN_51", 51, 1, "with pairs found at every step"),
        (None, 51, 1, "with pairs found at every step"),
        ([0, 3], 5, 2.5, "with pairs found at one of 2.5 steps"),
    ],
)
def test_how_often_pairs_are_found(schedule, calls, every, said):
    found = asked(schedule, calls)
    assert found.match_every == pytest.approx(every)
    assert counts.searches(schedule, found.match_every) == said


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (quality.listed(["a", "b", "c"]), "a, b and c"),
        (quality.listed(["a"]), "a"),
        (counts.gigabytes(33.6e6), "0.034 GB"),
        (counts.gigabytes(2.72e9), "2.7 GB"),
        (counts.gigabytes(137.4e9), "137 GB"),
        (counts.gigabytes(5e12), "5,000 GB"),
        (counts.how_often(51 / 13), "one of 3.9 steps"),
        (counts.how_often(1), "every step"),
        (counts.worthwhile_sizes(pd.Series({256: 1.1, 512: 1.2, 1024: 1.5})), "from 512 px on"),
        (counts.worthwhile_sizes(pd.Series({256: 1.1})), "at none of these sizes"),
    ],
)
def test_short_words(said, expected):
    assert said == expected


def test_one_call_at_512_pixels_is_that_of_the_formulas(counted):
    """Five blocks of 4096 tokens, 320 channels and 8 heads, two rows, two bytes a number; 13 checkpoints in
    51 calls."""
    products, outer, scores = (
        5 * 4 * 2 * 4096**2 * 320,
        5 * 4 * 2 * 4096 * 320 * 2,
        5 * 4 * 2 * 8 * 4096**2 * 2,
    )
    matching = 5 * 2 * 2 * 3072 * 1024 * 320 * 13 / 51
    table = counted.parts_table()
    row = [products / 1e9, outer / 1e6, (outer + scores) / 1e6, products / 4e9, outer / 2e6]
    assert table.loc[TOP].tolist() == [f"{value:,.0f}" for value in row]
    assert table.loc["matching"].tolist()[:4] == ["", "", "", f"{matching / 1e9:.0f}"]
    assert list(table.index) == [*accounting.PARTS, *accounting.MERGING]
    words = counted.words()
    assert words["scores"] == f"{2 * 8 * 4096**2 * 2 / 1e9:.2f} GB at 512 px" == "0.54 GB at 512 px"
    assert words["intensity_naive"] == f"{products / (outer + scores):.0f}"
    assert words["intensity_fused"] == f"{4096 / 2:,.0f}"
    assert words["top_share"] == f"{products / accounting.parts('sd15', 512)['flops'].sum():.0%}"
    assert (words["tflop"], words["gb_fused"], words["gb_naive"]) == ("1.61", "6.9", "18.6")
    assert (words["rows"], words["searches"], words["how_often"]) == (
        "2 rows",
        "with CONFIG_3",
        "one of 3.9 steps",
    )


def test_one_row_is_one_row():
    words = asked(rows=1)._words_of_one_size()
    assert (words["rows"], words["gb_fused"]) == (
        "1 row",
        f"{accounting.parts('sd15', 512, 1)['bytes_fused'].sum() / 1e9:.1f}",
    )


def test_another_size_has_a_table_and_words_of_its_own():
    """96 x 96 tokens; the size is not among those that are drawn."""
    found, parts = asked(size=768), accounting.parts("sd15", 768)
    products = 5 * 4 * 2 * (96 * 96) ** 2 * 320
    table, words = found.parts_table(), found._words_of_one_size() | found._words_of_least_time()
    assert table.loc[TOP, ["GFLOP", "GFLOP, half merged"]].tolist() == [
        f"{products / 1e9:,.0f}",
        f"{products / 4e9:,.0f}",
    ]
    assert table.loc["convolutions", "MB, fused"] == f"{parts.at['convolutions', 'bytes_fused'] / 1e6:,.0f}"
    assert words["size"] == "768"
    assert words["tflop"] == f"{parts['flops'].sum() / 1e12:.2f}"
    assert words["top_share"] == f"{products / parts['flops'].sum():.0%}"
    assert words["gb_fused"] == f"{parts['bytes_fused'].sum() / 1e9:.1f}"
    assert words["gb_naive"] == f"{parts['bytes_naive'].sum() / 1e9:.1f}"
    assert words["intensity_fused"] == f"{96 * 96 / 2:,.0f}"
    assert (words["time_naive"], words["time_fused"]) == ("67%", "19%")
    assert words["scores"] == "0.54 GB at 512 px"


def test_the_share_of_the_topmost_self_attentions():
    tables = {
        "sd15": {
            256: pd.DataFrame({"flops": [1, 3]}, [TOP, "other"]),
            320: pd.DataFrame({"flops": [1, 1]}, [TOP, "other"]),
        }
    }
    assert asked(tables=tables).topmost_shares().loc["SD v1.5"].to_dict() == {
        "256 px": "25%",
        "320 px": "50%",
    }


def test_least_times_are_rooflines_of_the_old_and_the_new_gpu(counted):
    assert list(counted.least) == [
        (name, kind) for name in ("V100S, float32", "H200, float16") for kind in ("naive", "fused")
    ]
    table = accounting.operations("sd15", 512, dtype_bytes=4)
    expected = accounting.roofline_seconds(table, *accounting.device_rates("Tesla V100S", "float32"), "naive")
    pd.testing.assert_series_equal(counted.least["V100S, float32", "naive"][512], expected)
    assert counted.words()["time_naive"] == "49%"
    assert counted.words()["time_fused"] == "9%"


@pytest.mark.parametrize("size", [256, 512, 768, 1024, 2048])
def test_fusing_attention_saves_as_much_as_merging_can(size):
    """The text says so whatever the parameters are."""
    found = asked(sizes=(size,), size=size)
    saved = float(found.words()["fused_faster"])
    best = found.bounds[(found.bounds["device"] == "H200 SXM") & (found.bounds["attention"] == "naive")]
    assert saved + 0.05 >= best["free"].max()  # it has one decimal


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"size": 500}, ("size=500", "multiple of 8 pixels")),
        ({"size": 32}, ("size=32", "at least 64")),
        ({"sizes": [512, 100]}, ("sizes[1]=100", "multiple of 8 pixels")),
        ({"sizes": 512}, ("sizes=512", "list of integers")),
    ],
)
def test_sizes_that_cannot_be_counted_are_refused(given, says):
    with pytest.raises((ValueError, TypeError)) as caught:
        Accounting.checked(given)
    assert_says(str(caught.value), *says)


@pytest.mark.parametrize("sizes", [(256, 1024), (256, 640)])
def test_the_least_time_is_told_of_the_size_whether_it_is_drawn_or_not(sizes, monkeypatch):
    def seconds(call, flops_per_s, bytes_per_s, attention):
        assert call == ("sd15", 640, 2, 2)
        assert (flops_per_s, bytes_per_s) == accounting.device_rates("H200 SXM", "float16")
        top = {"naive": 9.0, "fused": 1.0}[attention]
        return pd.Series({TOP: top, "norms and elementwise": 1.0, "convolutions": 2.0})

    monkeypatch.setattr(accounting, "operations", lambda *call: call)
    monkeypatch.setattr(accounting, "roofline_seconds", seconds)
    words = asked(sizes=sizes, size=640)._words_of_least_time()
    assert words == dict(time_naive="75%", time_fused="25%", fused_faster="3.0", time_moving="25%")


@pytest.mark.parametrize(("charged", "said", "cost"), [(1.04, "small", "4.0%"), (1.15, "not small", "15.0%")])
def test_what_merging_costs_and_can_give(charged, said, cost, monkeypatch):
    own = bounds({"fused": {256: 1.1, 512: 1.3}}, charged)
    own = pd.concat(
        [
            own,
            bounds({"naive": {256: 9.0, 512: 9.0}}, 2.0),
            bounds({"fused": {256: 2.0, 512: 2.0}}, share=0.5),
        ]
    )
    other = bounds({"fused": {256: 1.01, 512: 1.02}, "naive": {256: 3.0, 512: 3.0}})
    asked_for = []
    monkeypatch.setattr(accounting, "speedup_bounds", lambda *args: asked_for.append(args) or other)
    words = asked(sizes=(256, 512), bounds=own)._words_of_bounds()
    assert (words["cost_is"], words["cost"]) == (said, cost)
    assert words["sdxl_bounds"] == "1.01 at 256 px and 1.02 at 512 px"
    assert asked_for == [("sdxl", (256, 512), [0.75], (("H200 SXM", "float16"),), 2, 51 / 13)]
    assert words["most"] == "75%"
    assert words["worth"] == "from 512 px on"


def test_bounds_to_be_read():
    own = pd.concat(
        [bounds({"naive": {256: 1.5}, "fused": {256: 1.25}}, share=share) for share in (0.5, 0.75)]
    )
    own = pd.concat([own, own.assign(device="Tesla V100S", free=7.0)])
    table = asked(bounds=own).bounds_table()
    assert table.loc[256].to_dict() == {
        "naive, 50% merged": "1.50x",
        "fused, 50% merged": "1.25x",
        "naive, 75% merged": "1.50x",
        "fused, 75% merged": "1.25x",
    }


def test_the_printed_speed_up_stands_in_panels_that_are_drawn():
    panels = {f"{device}, {precision}" for device, precision in counts.PANELS}
    assert set(counts.PRINTED) < panels
    assert set(counts.PRINTED.values()) == {(512, 7.61 / 6.09)}


def test_the_datasheets_to_be_read():
    row = counts.datasheet().loc["Tesla V100S"].tolist()
    assert row == ["130", "16.4", "1,134", f"{130e12 / 1134e9:.0f}", f"{16.4e12 / 1134e9:.1f}"]


def test_the_papers_setting_is_closest_to_float32_and_unfused_attention():
    """The conclusions that the text draws from the numbers."""
    found = counts.paper_setting()
    words = found.words()
    assert found.nearest == ("float32", "naive")
    assert words["nearest"] == "float32 with naive attention"
    assert (words["paper_end"], words["paper_half"]) == (f"{7.61 / 6.07:.3f}", f"{7.61 / 6.39:.3f}")
    assert words["nearest_end"] == "1.250"
    assert words["nearest_time"] == f"{5.81 / 7.61:.0%}"
    assert float(words["fused_end"]) < float(words["nearest_end"]) < float(words["float16_end"])
    table = found.table()
    assert table.loc["float32, naive attention"].tolist() == [
        "at least 5.81 s",
        f"{words['nearest_half']}x",
        "1.250x",
    ]
    assert table.loc["printed in the paper"].tolist() == [
        "7.61 s",
        "1.191x (ToMe, r = 0.5)",
        "1.254x (t = 0.4)",
    ]


def test_the_nearest_count_may_be_another_one():
    index = pd.MultiIndex.from_product([["float32", "float16"], ["naive", "fused"]])
    whole = pd.DataFrame({"free": [1.5, 1.4, 1.3, 1.2], "seconds": [0.1, 0.08, 0.04, 0.02]}, index)
    words = counts.PaperSetting(whole - 0.1, whole, 5.1, 1.1, 1.31).words()
    assert words["nearest"] == "float16 with naive attention"
    assert (words["nearest_end"], words["nearest_half"], words["nearest_time"]) == ("1.300", "1.200", "40%")
    assert (words["float16_times"], words["float16_end"], words["fused_end"]) == ("2", "1.30", "1.40")


def test_what_is_left_on_newer_gpus(monkeypatch):
    def free(architecture, sizes, shares, devices):
        assert (architecture, sizes) == ("sd15", [512])
        rows = [
            dict(
                device=device,
                attention=kind,
                share=share,
                free=1 + share + (kind == "naive") + 2 * (device == "RTX 4090"),
            )
            for device, _ in devices
            for kind in ("naive", "fused")
            for share in shares
        ]
        return pd.DataFrame(rows)

    monkeypatch.setattr(accounting, "speedup_bounds", free)
    expected = dict(h200_all="1.75", h200_half="1.50", h200_half_naive="2.50")
    assert counts.modern_words() == expected | dict(rtx_all="3.75", rtx_half="3.50", rtx_half_naive="4.50")


def test_a_search_counts_for_its_share_among_the_kernels(monkeypatch):
    times = dict(zip(counts.WORKS, (100.0, 40.0, 5.0, 20.0), strict=True))
    rows = pd.DataFrame(
        [
            {"model": model, "work": work, "us": us * n}
            for n, model in enumerate("ab", 1)
            for work, us in times.items()
        ]
    )
    monkeypatch.setattr(counts, "least_times", lambda device: rows)
    assert counts.kernel_gains(4).tolist() == [2.0, 2.0]
    assert counts.kernel_gains(1)["a"] == pytest.approx(100 / 65)
    assert counts.kernel_times().loc["b"].tolist() == [200.0, 80.0, 10.0, 40.0]


def test_the_share_of_merged_keys_that_is_told_is_the_one_that_is_counted(counted):
    share = int(counted.words()["kernels_share"].removesuffix("%")) / 100
    told = counts.least_times("H200 SXM", share=share).set_index(["model", "work"])["us"]
    shown = counts.kernel_times()
    assert len(told) == shown.size
    for (model, work), us in told.items():
        assert shown.loc[model, work] == pytest.approx(us)


MEASURED = pd.DataFrame(
    [
        dict(
            device="NVIDIA H200",
            architecture="sd15",
            width=512,
            dtype="float16",
            batch=1,
            share=0.5,
            method="catome",
        ),
        dict(
            device="NVIDIA A100",
            architecture="sd15",
            width=512,
            dtype="float16",
            batch=1,
            share=0.75,
            method="catome",
        ),
        dict(
            device="NVIDIA A100",
            architecture="sd15",
            width=512,
            dtype="float16",
            batch=1,
            share=0.75,
            method="tomesd",
        ),
        dict(
            device="NVIDIA A100",
            architecture="sdxl",
            width=768,
            dtype="float16",
            batch=4,
            share=0.75,
            method="catome",
        ),
    ]
).assign(unmerged=[1.04, 1.1, 0.9, 1.02], bound=[1.09, 1.11, 1.11, np.nan])


def test_where_calls_were_timed():
    none, some = counts.measured_words(MEASURED.iloc[:0]), counts.measured_words(MEASURED)
    assert list(none) == list(some) == ["timed_on"]
    assert_says(none["timed_on"], "No GPU", "recorded")
    assert_says(some["timed_on"], "on NVIDIA A100 and NVIDIA H200,", "fused attention")


def test_speed_ups_beside_what_could_be():
    table = counts.own_speedups(MEASURED)
    assert table.loc["SD v1.5", 512, "float16", 1].to_dict() == {
        0.5: "1.04x of 1.09x",
        0.75: "1.10x of 1.11x",
    }
    assert table.loc["SDXL", 768, "float16", 4].to_dict() == {0.5: "", 0.75: "1.02x"}
    assert len(table) == 2


def turns(*rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["speedup", "low", "high", "expected"])


def test_whether_the_model_foretold_what_was_timed(estimates):
    fast, slow, unclear = (1.2, 1.1, 1.3, 1.0), (0.8, 0.7, 0.9, 1.0), (1.01, 0.9, 1.1, -1.0)
    words = counts.turns_words(turns(fast, fast, slow, unclear))
    assert_says(words.pop("conclusive"), " 3 where", "conclusive", "disagree at 1.")
    assert words == {"agree": "2", "points": "4", "launch": "8"}
    assert "conclusive at none" in counts.turns_words(turns(unclear))["conclusive"]


def test_searching_at_every_step_needs_more_to_merge(estimates):
    seldom, always = asked("EVEN_2", 50).least_shares(), asked(None).least_shares()
    assert list(seldom) == ["CPU, float32", "GPU, half precision"]
    for name, (tokens, least) in always.items():
        assert (tokens[0], tokens[-1], len(tokens)) == (16, 16384, len(least))
        assert all(a >= b for a, b in zip(least, seldom[name][1], strict=True))
        assert least != seldom[name][1]
    gpu = seldom["GPU, half precision"][1]
    assert gpu[0] == float("inf")
    assert gpu[-1] < 0.1


def test_every_word_that_the_chapters_text_takes_up_is_given_to_it(counted):
    notebook = nbformat.read(CHECKOUT / f"notebooks/{counts.NOTEBOOK}.ipynb", 4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    taken = set(re.findall(r"\{glue:text\}`([\w-]+)`", text))
    given = counts.words(counted, counts.paper_setting(), MEASURED, turns((1.2, 1.1, 1.3, 1.0)))
    assert taken == {name.replace("_", "-") for name in given}
    assert all(isinstance(word, str) and "nan" not in word for word in given.values())
    assert f"{counts.WORTHWHILE} times as fast or more **{{glue:text}}`worth`**" in text
