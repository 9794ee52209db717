"""The figures of the chapter on where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from catome.study.costs.accounting import MERGING, PARTS, TITLES, device_rates
from catome.study.plots.figures import METHOD_COLOURS, PALETTE, WIDTH

PART_COLOURS = dict(
    zip(
        (*PARTS, *MERGING),
        [*(PALETTE[i] for i in (3, 1, 6, 8, 9, 2, 0, 7, 5)), "0.2", "0.4", "0.7"],
        strict=True,
    )
)
"""One colour for each part of the U-Net; what merging acts on is warm."""

ATTENTION_COLOURS = {"naive": PALETTE[3], "fused": PALETTE[0]}


def _stacked(ax, shares: pd.DataFrame) -> None:
    """Bars of the columns of ``shares``, parts upon each other: index ``part``, columns sizes in pixels."""
    bottom = np.zeros(shares.shape[1])
    for part, values in shares.iterrows():
        ax.bar(
            range(len(values)),
            values,
            0.78,
            bottom,
            color=PART_COLOURS[part],
            label=part,
            lw=0.4,
            edgecolor="white",
        )
        bottom += values.to_numpy(float)
    ax.set_xticks(range(shares.shape[1]), shares.columns)
    ax.set(ylim=(0, 1), xlim=(-0.5, shares.shape[1] - 0.5))
    ax.yaxis.set_major_formatter("{x:.0%}")
    ax.grid(False, axis="x")


def _legend_of_parts(figure, ax) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", frameon=False, fontsize="small")


def flop_shares(tables: Mapping[str, Mapping[int, pd.DataFrame]]):
    """Share of a call's FLOPs by part over sizes, a panel for each architecture.

    Args:
        tables: of `catome.study.costs.accounting.parts`, by architecture and size in pixels.
    """
    figure, axes = plt.subplots(1, len(tables), figsize=(WIDTH, 3.3), sharey=True, squeeze=False)
    for ax, (name, by_size) in zip(axes[0], tables.items(), strict=True):
        flops = pd.DataFrame({size: table["flops"] for size, table in by_size.items()})
        flops = flops[flops.sum(axis=1) > 0]  # what computes no products has no share of them
        _stacked(ax, flops / flops.sum())
        ax.set(title=TITLES.get(name, name), xlabel="image size (px)")
        ax.tick_params("x", rotation=60)
    axes[0][0].set_ylabel("share of the U-Net's FLOPs")
    _legend_of_parts(figure, axes[0][0])
    return figure


def bytes_moved(tables: Mapping[str, Mapping[int, pd.DataFrame]]):
    """Bytes that a call moves against size, logarithmic, a panel for each architecture; ``tables`` as in
    `flop_shares`."""
    figure, axes = plt.subplots(1, len(tables), figsize=(WIDTH, 3.2), sharey=True, squeeze=False)
    for ax, (name, by_size) in zip(axes[0], tables.items(), strict=True):
        top = pd.DataFrame({size: table.loc["topmost self-attention"] for size, table in by_size.items()}).T
        rest = pd.Series(
            {
                size: table["bytes_fused"].drop("topmost self-attention").sum()
                for size, table in by_size.items()
            }
        )
        ax.fill_between(
            top.index,
            top["bytes_fused"],
            top["bytes_naive"],
            color=ATTENTION_COLOURS["naive"],
            alpha=0.10,
            lw=0,
        )
        for kind, values in (("naive", top["bytes_naive"]), ("fused", top["bytes_fused"])):
            ax.plot(
                values, "o-", ms=4, color=ATTENTION_COLOURS[kind], label=f"topmost self-attention, {kind}"
            )
        ax.plot(rest, "s--", ms=4, color="0.4", label="everything else")
        _sizes_axis(ax, top.index)
        ax.set(title=TITLES.get(name, name), yscale="log")
    axes[0][0].set_ylabel("bytes moved in one call")
    axes[0][0].yaxis.set_major_formatter(lambda value, _: _bytes_words(value))
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _sizes_axis(ax, sizes) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(sizes), [str(size) for size in sizes], rotation=60)
    ax.minorticks_off()
    ax.set_xlabel("image size (px)")


def _bytes_words(value: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= scale:
            return f"{value / scale:g} {unit}"
    return f"{value:g} B"


def time_shares(
    seconds: Mapping[tuple[str, str], Mapping[int, pd.Series]], title: str = "{0}, {1} attention"
):
    """Draw where the least time of a call goes, and how much it is: a panel for each key.

    Args:
        seconds: of `catome.study.costs.accounting.roofline_seconds`, by (device, attention) and size in
            pixels.
        title: of a panel, filled in with its key.
    """
    columns = 2
    rows = -(-len(seconds) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, 2.75 * rows), sharex=True, sharey=True, squeeze=False
    )
    for ax, (key, by_size) in zip(axes.flat, seconds.items(), strict=True):
        table = pd.DataFrame(by_size)
        _stacked(ax, table / table.sum())
        for place, total in enumerate(table.sum()):
            ax.annotate(
                _time_words(total),
                (place, 1.015),
                ha="center",
                va="bottom",
                fontsize="x-small",
                annotation_clip=False,
            )
        ax.set_title(title.format(*key), pad=15)
    for ax in axes[-1]:
        ax.set_xlabel("image size (px)")
    for ax in axes[:, 0]:
        ax.set_ylabel("share of the least time")
    _legend_of_parts(figure, axes[0][0])
    return figure


def _time_words(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"


def roofline(tables: Mapping[int, pd.DataFrame], devices: Mapping[str, tuple[str, str]]):
    """Draw how fast devices can be at most, by arithmetic intensity, above the intensity of each part over
    sizes.

    Args:
        tables: of `catome.study.costs.accounting.parts` in the devices' precision, by size in pixels.
        devices: by what to call it, a device and a precision; the last one's ridge parts the lower panel.
    """
    figure, (roofs, lanes) = plt.subplots(2, 1, figsize=(WIDTH, 5.4), sharex=True, height_ratios=(1, 1.25))
    x = np.geomspace(4, 40_000, 400)
    for position, (name, device) in enumerate(devices.items()):
        flops, moved = device_rates(*device)
        colour = plt.get_cmap("viridis")(0.8 - 0.7 * position / max(1, len(devices) - 1))
        roofs.plot(x, np.minimum(flops, x * moved) / 1e12, color=colour, lw=1.8)
        words = f"{name}: {flops / 1e12:.4g} TFLOP/s, {moved / 1e12:.3g} TB/s"
        roofs.annotate(words, (x[-1], flops / 1e12 * 1.1), ha="right", fontsize="small", color=colour)
        for ax in (roofs, lanes):
            ax.axvline(flops / moved, color=colour, lw=1, ls="--", zorder=1)
    lanes.axvspan(x[0], flops / moved, color="0.93", zorder=0)
    for place, words in (
        (x[0] * 1.15, f"on {name} bound by memory"),
        (flops / moved * 1.15, "bound by arithmetic"),
    ):
        lanes.annotate(words, (place, -0.1), va="center", fontsize="small", color="0.35")
    kinds = [("topmost self-attention", "naive")] + [
        (part, "fused") for part in PARTS if tables[min(tables)].at[part, "flops"] > 0
    ]
    for lane, (part, attention) in enumerate(kinds, 1):
        places = [table.at[part, "flops"] / table.at[part, f"bytes_{attention}"] for table in tables.values()]
        fill = "white" if attention == "naive" else PART_COLOURS[part]
        lanes.plot(places, [lane] * len(places), color=PART_COLOURS[part], lw=1.4, zorder=2)
        sizes = np.linspace(18, 80, len(places))
        lanes.scatter(
            places, [lane] * len(places), sizes, color=fill, edgecolors=PART_COLOURS[part], lw=1.4, zorder=3
        )
    names = [f"{part}, {kind}" if part.endswith("self-attention") else part for part, kind in kinds]
    lanes.set_yticks(range(1, len(kinds) + 1), names, fontsize="small")
    lanes.set(ylim=(len(kinds) + 0.6, -0.6), xlabel="arithmetic intensity (FLOP for each byte moved)")
    lanes.grid(False, axis="x")
    roofs.set(xscale="log", yscale="log", xlim=(x[0], x[-1]), ylabel="most TFLOP/s")
    roofs.yaxis.set_major_formatter("{x:g}")
    lanes.xaxis.set_major_formatter("{x:,g}")
    return figure


def speedup_bounds(bounds: pd.DataFrame, printed: Mapping[str, tuple[int, float]] | None = None):
    """Draw what merging could give at most against size: a panel for each device and precision.

    Args:
        bounds: of `catome.study.costs.accounting.speedup_bounds`.
        printed: by panel ("device, precision"), a size and a speed-up that somebody printed.
    """
    groups = list(bounds.groupby(["device", "precision"], sort=False))
    figure, axes = plt.subplots(1, len(groups), figsize=(WIDTH, 3.4), sharey=True, squeeze=False)
    shares = sorted(bounds["share"].unique())
    for ax, (key, rows) in zip(axes[0], groups, strict=True):
        for (attention, share), line in rows.groupby(["attention", "share"], sort=False):
            style = dict(color=ATTENTION_COLOURS[attention], alpha=1 if share == shares[-1] else 0.55)
            ax.plot(line["size"], line["free"], "o-", ms=3.5, lw=1.5, **style)
            ax.plot(line["size"], line["charged"], ":", lw=1.2, **style)
        name = ", ".join(key)
        if name in (printed or {}):
            ax.plot(
                *printed[name], "*", ms=13, color=METHOD_COLOURS["CA-ToMe"], mec="black", mew=0.6, zorder=4
            )
        _sizes_axis(ax, rows["size"].unique())
        ax.axhline(1, color="0.6", lw=0.8, ls="--")
        ax.set(title=name, yscale="log")
        ax.yaxis.set_major_formatter("{x:g}x")
        ax.set_yticks([1, 1.25, 1.5, 2, 3, 4, 6])
    axes[0][0].set_ylabel("speed-up of a U-Net call")
    handles = [
        Line2D(
            [],
            [],
            color=colour,
            alpha=1 if share == shares[-1] else 0.55,
            label=f"{attention} attention, {share:.0%} merged",
        )
        for attention, colour in ATTENTION_COLOURS.items()
        for share in shares[::-1]
    ]
    handles += [Line2D([], [], color="0.4", ls=":", label="with the least that merging costs")]
    if printed:
        handles += [
            Line2D(
                [],
                [],
                marker="*",
                ls="",
                ms=11,
                color=METHOD_COLOURS["CA-ToMe"],
                mec="black",
                label="printed in the paper",
            )
        ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return figure


def hours_by_size(table: pd.DataFrame):
    """Hours for a thousand images against size, unmerged and merged, a line for each device.

    Args:
        table: columns ``device``, ``size`` (pixels), ``share`` (merged) and ``hours``.
    """
    figure, ax = plt.subplots(figsize=(WIDTH, 3.4))
    shares = sorted(table["share"].unique())
    for colour, (device, rows) in zip(PALETTE, table.groupby("device", sort=False), strict=False):
        for style, share in zip(("o-", "s--"), shares, strict=False):
            line = rows[rows["share"] == share]
            name = f"{device}, {share:.0%} merged" if share else device
            ax.plot(
                line["size"],
                line["hours"],
                style,
                ms=4,
                color=colour,
                mfc=colour if not share else "white",
                label=name,
            )
    _sizes_axis(ax, table["size"].unique())
    ax.set(yscale="log", ylabel="GPU hours for 1000 images")
    ax.yaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside right center", frameon=False, fontsize="small")
    return figure


def scaling(table: pd.DataFrame, ideal: pd.Series, ticks: Sequence[int]):
    """Hours that a study takes against the number of GPUs, and the share of their time in which they compute.

    Args:
        table: columns ``gpus``, ``case``, ``hours`` and ``used`` (share).
        ideal: hours by number of GPUs if no time were lost.
        ticks: numbers of GPUs to name on the axes.
    """
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.3))
    axes[0].plot(ideal.index, ideal, color="0.6", lw=1, ls="--", label="no time lost")
    for colour, (case, rows) in zip(PALETTE, table.groupby("case", sort=False), strict=False):
        axes[0].plot(rows["gpus"], rows["hours"], "o-", ms=4, color=colour, label=case)
        axes[1].plot(rows["gpus"], rows["used"], "o-", ms=4, color=colour)
    axes[0].set(yscale="log", ylabel="hours until the study has ended")
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[1].set(ylim=(0, 1.04), ylabel="of the GPUs' time is used")
    axes[1].yaxis.set_major_formatter("{x:.0%}")
    for ax in axes:
        ax.set(xscale="log", xlabel="GPUs")
        ax.set_xticks(ticks, [f"{n:,}" for n in ticks])
        ax.minorticks_off()
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize="small",
    )
    return figure


def worth_merging(
    lines: Mapping[str, tuple[Sequence[int], Sequence[float]]], measured: pd.DataFrame | None = None
):
    """The least merged share that pays, against the number of tokens.

    Args:
        lines: by name, numbers of tokens and the least share at each (infinite where none pays).
        measured: of `catome.study.bench.contenders.attention_turns`; a dot at each point, filled where
            merging was faster.
    """
    figure, ax = plt.subplots(figsize=(WIDTH * 0.72, 3.4))
    for (name, (tokens, least)), colour in zip(
        lines.items(), (PALETTE[0], PALETTE[3], PALETTE[2]), strict=False
    ):
        least = np.asarray(least, float)
        ax.plot(tokens, np.where(np.isfinite(least), least, np.nan), color=colour, lw=1.8, label=name)
    if measured is not None:
        for faster, face, words in (
            (True, "0.25", "measured: faster merged"),
            (False, "none", "measured: slower merged"),
        ):
            rows = measured[(measured["speedup"] > 1) == faster]
            ax.plot(rows["tokens"], rows["share"], "o", ms=6, mec="0.25", mfc=face, label=words)
    ax.set(xscale="log", xlabel="tokens of an image in the block", ylabel="merged share", ylim=(-0.02, 0.78))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.yaxis.set_major_formatter("{x:.0%}")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def measured(table: pd.DataFrame):
    """Measured speed-up of U-Net calls against what merging could give, a panel for each method.

    Args:
        table: of `catome.study.costs.accounting.with_bounds`, with the measured ``unmerged``: how many times
            as fast as unmerged.
    """
    table = table.dropna(subset=["bound", "unmerged"])
    methods, sizes = list(dict.fromkeys(table["method"])), sorted(table["width"].unique())
    figure, axes = plt.subplots(
        1, max(1, len(methods)), figsize=(WIDTH, 3.3), sharex=True, sharey=True, squeeze=False
    )
    ends = [min(1, table["unmerged"].min()) * 0.97, max(table["bound"].max(), table["unmerged"].max()) * 1.03]
    for ax, method in zip(axes[0], methods, strict=False):
        for position, size in enumerate(sizes):
            rows = table[(table["method"] == method) & (table["width"] == size)]
            colour = plt.get_cmap("viridis")(0.85 - 0.75 * position / max(1, len(sizes) - 1))
            ax.plot(rows["bound"], rows["unmerged"], "o", ms=5, color=colour, alpha=0.8, label=f"{size} px")
        ax.plot(ends, ends, color="0.4", lw=1)
        ax.axhline(1, color="0.6", lw=0.8, ls="--")
        ax.set(title=method, xlabel="at the roofline, at most", xlim=ends, ylim=ends)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter("{x:g}x")
    axes[0][0].set_ylabel("measured speed-up of a call")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, len(labels)), frameon=False)
    return figure
