"""The accounting of FLOPs and bytes: against hand-written formulas, torch's own counter, and a merged forward
that really runs."""

from itertools import pairwise

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

import catome
from catome.study.costs import accounting
from catome.study.costs.accounting import (
    ARCHITECTURES,
    DEVICES,
    FORMULAS,
    MERGING,
    PARTS,
    amdahl,
    merged_parts,
    operations,
    parts,
    roofline_seconds,
)
from catome.study.plots import accounting_figures

TEXT, CROSS = 77, 24
# at 64 px three topmost blocks of 64 tokens and 32 channels, one below of 16 tokens and 64 channels
SMALL = dict(
    block_out_channels=(32, 64),
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    attention_head_dim=4,
    cross_attention_dim=CROSS,
    norm_num_groups=8,
)
BLOCKS = [(3, 64, 32), (1, 16, 64)]  # how many, tokens, channels


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "small", SMALL)


def test_flops_are_those_of_the_formulas():
    table, batch = parts("small", 64, batch=3)["flops"], 3
    (three, n, c), (one, m, d) = BLOCKS
    assert table["topmost self-attention"] == three * 4 * batch * n**2 * c
    assert table["other self-attention"] == one * 4 * batch * m**2 * d
    assert table["topmost projections"] == three * 4 * 2 * batch * n * c**2
    assert table["other projections"] == one * 4 * 2 * batch * m * d**2
    assert table["feed-forward"] == sum(k * 2 * batch * n * (c * 8 * c + 4 * c * c) for k, n, c in BLOCKS)
    assert table["cross-attention"] == sum(
        k * batch * (2 * 2 * n * c**2 + 2 * 2 * TEXT * CROSS * c + 4 * n * TEXT * c) for k, n, c in BLOCKS
    )
    assert table["norms and elementwise"] == 0
    in_and_out = sum(k * 2 * 2 * batch * n * c**2 for k, n, c in BLOCKS)
    # and one layer in each of 8 ResNets
    time = 2 * batch * (32 * 128 + 128 * 128) + 2 * batch * 128 * (2 * 32 + 6 * 64)
    assert in_and_out < table["other"] <= in_and_out + time


def test_convolutions_are_those_of_every_layer():
    unet = UNet2DConditionModel(**SMALL).eval()
    flops, moved = [], []

    def note(layer, args, out):
        flops.append(2 * out.numel() * layer.weight[0].numel())
        moved.append(4 * sum(t.numel() for t in (args[0], layer.weight, layer.bias, out)))

    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Conv2d) and "proj_" not in name:
            module.register_forward_hook(note)
    with torch.no_grad():
        unet(torch.randn(2, 4, 8, 8), 1, torch.randn(2, TEXT, CROSS))
    row = parts("small", 64, dtype_bytes=4).loc["convolutions"]
    assert row["flops"] == sum(flops)
    assert row["bytes_fused"] == row["bytes_naive"] == sum(moved)


@pytest.mark.parametrize("dtype_bytes", [2, 4])
def test_bytes_of_attention_are_those_of_the_model(dtype_bytes):
    three, n, c = BLOCKS[0]
    row = parts("small", 64, batch=2, dtype_bytes=dtype_bytes).loc["topmost self-attention"]
    tokens, scores = 2 * n * c, 2 * 4 * n**2
    assert row["bytes_fused"] == three * dtype_bytes * 4 * tokens
    assert row["bytes_naive"] == three * dtype_bytes * (4 * tokens + 4 * scores)
    assert accounting.scores_bytes("small", 64, 2, dtype_bytes) == dtype_bytes * scores


def test_attention_moves_nothing_that_the_model_does_not_say():
    table = operations("small", 64)
    assert set(table.loc[table["module"].str.endswith(".attn1"), "operation"]) == {
        "scores",
        "softmax",
        "values",
        "div",
    }


def test_every_operand_moves_once_and_views_move_nothing():
    layer, x = torch.nn.Linear(5, 7, device="meta"), torch.empty(3, 5, device="meta")
    [(_, operation, flops, fused, naive)] = accounting._ledger(lambda: layer(x))
    assert (operation, flops) == ("addmm", 2 * 3 * 5 * 7)
    assert fused == naive == 4 * (3 * 5 + 5 * 7 + 7 + 3 * 7)
    assert accounting._ledger(lambda: x.t().reshape(5, 3)[1:].expand(2, 4, 3)) == []
    [(*_, naive)] = accounting._ledger(lambda: x + x[:1].expand(3, 5).t().t())
    assert naive == 4 * (3 * 5 + 5 * 3 + 3 * 5)  # the storage that was expanded is x's


@pytest.mark.parametrize("architecture", ["sd15", "sd21", "sdxl", "small"])
def test_totals_are_those_of_torchs_counter(architecture):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**ARCHITECTURES[architecture])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(**accounting.unet_inputs(architecture, 256, dtype_bytes=4))
    assert parts(architecture, 256)["flops"].sum() == counter.get_total_flops() > 0


@pytest.mark.parametrize(
    ("architecture", "parameters", "topmost"),
    [
        ("sd15", 859_520_964, (5, 64 * 64, 320)),
        ("sd21", 865_910_724, (5, 64 * 64, 320)),
        ("sdxl", 2_567_463_684, (10, 32 * 32, 640)),
    ],
)
def test_the_architectures_are_the_public_models(architecture, parameters, topmost):
    assert sum(p.numel() for p in accounting._unet(architecture, 2).parameters()) == parameters
    blocks, tokens, channels = topmost
    assert (
        parts(architecture, 512).at["topmost self-attention", "flops"]
        == blocks * 4 * 2 * tokens**2 * channels
    )


def test_a_share_of_nothing_is_the_unmerged_call():
    table = merged_parts("small", 64, 0.0)
    pd.testing.assert_frame_equal(table.loc[list(PARTS)], parts("small", 64))
    assert (table.loc[list(MERGING)] == 0).all(axis=None)


def test_merging_shortens_the_topmost_self_attention_only():
    before, after = parts("small", 64), merged_parts("small", 64, 0.5, match_every=4)
    (three, n, c), half = BLOCKS[0], 32
    assert after.at["topmost self-attention", "flops"] == three * 4 * 2 * half**2 * c
    assert after.at["topmost projections", "flops"] == three * 4 * 2 * 2 * half * c**2
    assert after.at["matching", "flops"] == three * 2 * 2 * 48 * 16 * c / 4
    moved = three * (2 * 2 * (n + half) * c + 8 * 2 * n)
    assert after.at["merge", "bytes_fused"] == after.at["unmerge", "bytes_naive"] == moved
    assert after.at["matching", "bytes_fused"] == three * (2 * 2 * n * c + 12 * 2 * 48) / 4
    assert (
        after.at["matching", "bytes_naive"]
        > after.at["matching", "bytes_fused"] + three * 4 * 2 * 2 * 48 * 16 / 4
    )
    same = [part for part in PARTS if not part.startswith(("topmost", "norms"))]
    pd.testing.assert_frame_equal(before.loc[same], after.loc[same], check_dtype=False)


@pytest.mark.parametrize("share", [0.3, 0.75])
def test_a_merged_forward_computes_what_is_accounted(share):
    unet = UNet2DConditionModel(**SMALL).eval()
    with (
        torch.no_grad(),
        catome.patched(unet, catome.PAPER, ratio=share, schedule=None),
        FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter,
    ):
        unet(torch.randn(2, 4, 8, 8), 1, torch.randn(2, TEXT, CROSS))
    assert merged_parts("small", 64, share, match_every=1)["flops"].sum() == counter.get_total_flops()


def test_more_pixels_cost_more_and_more_merging_less():
    totals = [parts("small", size).sum() for size in (64, 96, 128)]
    shares = [parts("small", size)["flops"] for size in (64, 96, 128)]
    assert all((a < b).all() for a, b in pairwise(totals))
    tops = [flops["topmost self-attention"] / flops.sum() for flops in shares]
    assert tops == sorted(tops)
    assert tops[0] < tops[-1]
    left = [
        merged_parts("small", 128, share).loc["topmost self-attention"] for share in (0.0, 0.25, 0.5, 0.75)
    ]
    assert all((a > b).all() for a, b in pairwise(left))


def test_a_part_takes_as_long_as_what_bounds_it():
    table = pd.DataFrame(
        {"flops": [100, 10], "bytes_fused": [2, 40], "bytes_naive": [60, 40]},
        index=["convolutions", "feed-forward"],
    ).rename_axis("part")
    assert dict(roofline_seconds(table, 10, 2)) == {"feed-forward": 20, "convolutions": 10}
    assert dict(roofline_seconds(table, 10, 2, "naive")) == {"feed-forward": 20, "convolutions": 30}
    assert dict(roofline_seconds(table, 1, 1000)) == {"feed-forward": 10, "convolutions": 100}
    with pytest.raises(ValueError, match="attention='flash' must be"):
        roofline_seconds(table, 1, 1, "flash")


def test_operations_one_after_another_take_longer_than_overlapping():
    row = parts("small", 64).loc["feed-forward"]
    rates = row["flops"], row["bytes_fused"]  # products and movement take a second each
    one_by_one, at_once = (
        roofline_seconds(table, *rates) for table in (operations("small", 64), parts("small", 64))
    )
    assert (one_by_one >= at_once * (1 - 1e-12)).all()
    assert at_once["feed-forward"] == 1 < one_by_one["feed-forward"] < 2


def test_amdahls_law():
    before = pd.Series({"a": 3.0, "b": 1.0})
    assert amdahl(before, pd.Series({"a": 1.0, "b": 1.0, "merge": 100.0})) == 4 / 2
    assert amdahl(before, pd.Series({"a": 3.0, "b": 1.5})) == 1
    assert amdahl(before, pd.Series({"b": 1.0})) == 4


def test_the_bounds_stand_in_order():
    bounds = accounting.speedup_bounds(
        "small", [64, 256], [0.5, 0.75], [("H200 SXM", "float16"), ("Tesla V100S", "float32")]
    )
    assert len(bounds) == 2 * 2 * 2 * 2
    assert (bounds["free"] > bounds["charged"]).all()
    assert (bounds["free"] > 1).all()
    wide = bounds.pivot(index=["device", "size", "attention"], columns="share", values="free")
    assert (wide[0.75] > wide[0.5]).all()
    wide = bounds.pivot(index=["device", "size", "share"], columns="attention", values="free")
    assert (wide["naive"] > wide["fused"]).all()
    accounting_figures.speedup_bounds(bounds, {"H200 SXM, float16": (64, 1.2)})
    plt.close("all")


def test_measured_calls_get_their_bounds():
    point = dict(
        device="NVIDIA H200", architecture="small", height=64, width=64, batch=1, dtype="bfloat16", share=0.5
    )
    table = pd.DataFrame(
        [
            point | dict(method="unmerged", unmerged=float("nan")),
            point | dict(method="catome", unmerged=1.5),
            point | dict(method="ToDo", unmerged=1.4),
            point | dict(method="catome", unmerged=1.2, device="a GPU of another make"),
            point | dict(method="catome", unmerged=1.2, height=128),
        ]
    )
    found = accounting.with_bounds(table)
    rates = accounting.device_rates("H200 SXM", "float16")
    plain, merged = (roofline_seconds(operations("small", 64, share=share), *rates) for share in (0.0, 0.5))
    assert found["least_ms"].tolist()[:3] == [1e3 * plain.sum()] * 3
    assert found["bound"][1] == amdahl(plain, merged)
    assert found["bound"].isna().tolist() == [True, False, True, True, True]
    assert found["least_ms"].isna().tolist() == [False, False, False, True, True]
    axes = accounting_figures.measured(found).axes
    assert [ax.get_title() for ax in axes] == ["catome"]
    plt.close("all")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(architecture="SD3"), "architecture='SD3' must be one of 'sd15'"),
        (dict(size=100), "size=100 must be a multiple of 8"),
        (dict(size=32), "size=32 must be at least 64"),
        (dict(batch=0), "batch=0 must be at least 1"),
        (dict(dtype_bytes=1), "dtype_bytes=1 must be 2 or 4"),
        (dict(share=0.8), "share=0.8 must be between 0 and 0.75"),
        (dict(match_every=0.5), "match_every=0.5 must be between 1 and inf"),
    ],
)
def test_what_makes_no_sense_is_an_error(change, says):
    with pytest.raises(ValueError, match=says):
        operations(**{"architecture": "small", "size": 64, **change})


def test_the_figures_show_every_part_and_device():
    tables = {"small": {size: parts("small", size) for size in (64, 128)}}
    figure = accounting_figures.flop_shares(tables)
    tops = [
        max(bar.get_y() + bar.get_height() for bar in container) for container in figure.axes[0].containers
    ]
    assert max(tops) == pytest.approx(1)
    assert set(accounting_figures.PART_COLOURS) == {*PARTS, *MERGING}
    accounting_figures.bytes_moved(tables)
    accounting_figures.roofline(
        tables["small"], {"one": ("Tesla V100S", "float16"), "other": ("H200 SXM", "float16")}
    )
    seconds = {
        ("H200", attention): {
            size: roofline_seconds(
                operations("small", size), *accounting.device_rates("H200 SXM", "float16"), attention
            )
            for size in (64, 128)
        }
        for attention in ("naive", "fused")
    }
    accounting_figures.time_shares(seconds)
    plt.close("all")
    assert (DEVICES[["float16", "float32", "bytes"]] > 1e11).all(axis=None)
