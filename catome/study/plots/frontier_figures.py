"""Every method over its own knob: how close it stays, over how fast it is and how much work it leaves."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from catome.study.plots.figures import PALETTE, WIDTH

GROUPS = {
    "fewer tokens": (
        ":",
        (
            "ToMe",
            "tomesd",
            "CA-ToMe",
            "CA-ToMe with fresh pairs",
            "CA-ToMe with even spacing",
            "ToFu",
            "SiTo",
        ),
    ),
    "fewer keys": ("-", ("merged keys", "merged keys (few searches)", "ToDo", "average pooling")),
    "fewer calls": ("--", ("DeepCache", "forecast", "forecast (equal gaps)", "fewer steps")),
    "both": ("-.", ("merged keys + DeepCache", "merged keys + forecast")),
}
"""The groups of methods, by how they save: each group has a line of its own."""

LOOKS = {
    "ToMe": (0, "o"),
    "tomesd": (9, "s"),
    "CA-ToMe": (1, "D"),
    "CA-ToMe with fresh pairs": (1, "o"),
    "CA-ToMe with even spacing": (1, "s"),
    "ToFu": (6, "^"),
    "SiTo": (5, "v"),
    "merged keys": (3, "o"),
    "merged keys (few searches)": (3, "v"),
    "ToDo": (2, "s"),
    "average pooling": (8, "D"),
    "DeepCache": (4, "o"),
    "forecast": (0, "P"),
    "forecast (equal gaps)": (9, "P"),
    "fewer steps": (7, "X"),
    "merged keys + DeepCache": (3, "*"),
    "merged keys + forecast": (1, "*"),
}
"""A place in the palette and a marker for each kind."""


def line_of(kind: str) -> str:
    """The line style of a kind's group."""
    return next((line for line, kinds in GROUPS.values() if kind in kinds), "-")


PANELS = {
    "speed-up": ("best in time", "times as fast as unmerged"),
    "flops": ("best in work", "share of the work left"),
}
"""For each cost: the column that says which settings are unbeaten, and a name for the axis."""


def frontier(records: pd.DataFrame):
    """PSNR over the speed-up, and over the work that is left; what neither another setting nor the unmerged
    pipeline beats is filled. A line marks the cost of the unmerged pipeline. Bars that are very long are cut
    at the edge of the panel.

    Args:
        records: of `catome.study.studies.curves.Result.records`.
    """
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 4.6), sharey=True)
    for ax, column in zip(axes, PANELS, strict=True):
        _panel(ax, records, column)
        _cut(ax, records, column)
    axes[0].set_ylabel("PSNR against unmerged (dB)")
    _legend(figure, axes[0])
    return figure


def frontiers(by_steps: dict[int, pd.DataFrame]):
    """`frontier` for each number of steps, a column for each.

    Args:
        by_steps: records of `catome.study.studies.curves.Result.records`, by the number of steps.
    """
    figure, axes = plt.subplots(
        2, len(by_steps), figsize=(WIDTH, 7.4), sharey=True, sharex="row", squeeze=False
    )
    for row, column in zip(axes, PANELS, strict=True):
        for ax, (steps, records) in zip(row, by_steps.items(), strict=True):
            _panel(ax, records, column)
            ax.set_title(f"{steps} steps")
        _cut(row[0], pd.concat(by_steps.values()), column)  # the panels of a row share this axis
        row[0].set_ylabel("PSNR against unmerged (dB)")
    _legend(figure, axes[0, 0])
    return figure


def _panel(ax, records: pd.DataFrame, column: str) -> None:
    """Each kind's line over one cost. Settings that change no image have no finite PSNR, and are left out, as
    are the bars of a speed-up without an interval."""
    best, label = PANELS[column]
    for kind, rows in _drawn(records).groupby("kind", sort=False):
        place, marker = LOOKS.get(kind, (7, "o"))
        colour = PALETTE[place]
        along = [rows[column] - rows[f"{column} low"], rows[f"{column} high"] - rows[column]]
        up = [rows["PSNR"] - rows["PSNR low"], rows["PSNR high"] - rows["PSNR"]]
        ax.errorbar(
            rows[column], rows["PSNR"], up, along, fmt="none", ecolor=colour, elinewidth=0.7, alpha=0.45
        )
        ax.plot(rows[column], rows["PSNR"], line_of(kind), color=colour, lw=1.1)
        size = 9 if marker == "*" else 5
        for filled, points in rows.groupby(best):
            face = colour if filled else "white"
            ax.plot(points[column], points["PSNR"], marker, ms=size, mfc=face, mec=colour, mew=1.1, zorder=3)
        ax.plot([], [], f"{marker}", ls=line_of(kind), ms=size, color=colour, label=kind)
    ax.set(xlabel=label)
    ax.axvline(1, color="0.6", lw=0.8)  # the unmerged pipeline, whose PSNR is infinite
    if column == "flops" and not ax.xaxis_inverted():
        ax.invert_xaxis()  # to the right is better in both


def _drawn(records: pd.DataFrame) -> pd.DataFrame:
    """The settings that have a finite PSNR."""
    return records[np.isfinite(records["PSNR"].astype(float))]


def _cut(ax, records: pd.DataFrame, column: str) -> None:
    """Let no bar of ``column`` reach farther beyond the points than a fourth of the range that they take up,
    the unmerged pipeline among them.

    Over two or three timed images Student's intervals are so wide that the points would lie in a corner."""
    points = [1.0, *_drawn(records)[column].astype(float)]
    least, most = min(points), max(points)
    beyond = (most - least) / 4
    if beyond:
        low, high = sorted(ax.get_xlim())
        limits = max(low, least - beyond), min(high, most + beyond)
        ax.set_xlim(limits[::-1] if ax.xaxis_inverted() else limits)


def _legend(figure, ax) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
