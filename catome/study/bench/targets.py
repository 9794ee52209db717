"""The targets of the benchmark, and the verdict on whether a run reaches them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from catome.study.bench.contenders import SCHEDULE
from catome.study.bench.points import OF_LAYERS
from catome.study.bench.table import (
    AUTHORS,
    BEST,
    BY_COSINE,
    BY_DISTANCE,
    CACHED,
    CATOME,
    COPY,
    DOWNSAMPLED,
    FREE,
    FRESH,
    KEYS,
    POINT,
    TOMESD,
    UNFUSED,
    UNMERGED,
    baselines,
)


@dataclass(frozen=True)
class Target:
    """A target, to be reached at every point where it was measured.

    Attributes:
        work, against: what is compared, in words.
        kind: of device.
        column: of `summary`, in the rows of ``method``.
        least: how many times as fast (or less memory) it is to be.
        where: the points it is about: columns of `summary` and the values they must have.
        beyond_noise: it counts as missed only where the whole interval lies below ``least``.
        paying: only at points where some token-reducing method is faster than unmerged.
    """

    work: str
    against: str
    kind: str
    method: str
    column: str
    least: float
    where: Mapping[str, object]
    beyond_noise: bool = False
    paying: bool = False


_STATED = {
    "suite": "operations",
    "dtype": "float32",
    "batch": 1,
    "height": 64,
    "width": 64,
    "channels": 320,
    "share": 0.5,
}
_SD15 = {
    "suite": "unet",
    "architecture": "sd15",
    "dtype": "float32",
    "batch": 1,
    "height": 512,
    "width": 512,
    "share": 0.5,
}
_ANY = {"suite": "unet"}
_AT_1024 = {"suite": "memory", "height": 1024, "width": 1024}
_LAYER = {"suite": "attention", "dtype": "float32", "batch": 1, "height": 512, "width": 512, "share": 0.75}
_BLOCK = {"suite": "block", "dtype": "float32", "batch": 1, "height": 1024, "width": 1024, "share": 0.7}

TARGETS = (
    Target(f"{CACHED}, cached plan", TOMESD, "cpu", f"{CATOME} {CACHED}", TOMESD, 10, _STATED),
    Target("match + plan + merge + unmerge", TOMESD, "cpu", f"{CATOME} {FRESH}", TOMESD, 1.8, _STATED),
    Target(f"SD v1.5 U-Net, {SCHEDULE} mean", TOMESD, "cpu", CATOME, TOMESD, 1.1, _SD15),
    Target(f"SD v1.5 U-Net, {SCHEDULE} mean", UNMERGED, "cpu", CATOME, UNMERGED, 1, _SD15, beyond_noise=True),
    Target(f"SD v1.5 U-Net, {SCHEDULE} mean", FREE, "cpu", CATOME, FREE, 0.95, _SD15),
    Target(
        "pairs by distance, same size",
        BY_COSINE,
        "cpu",
        BY_DISTANCE,
        BY_COSINE,
        1,
        _STATED,
        beyond_noise=True,
    ),
    Target("SD v1.5 U-Net, recommended", UNMERGED, "cpu", BEST, UNMERGED, 1.25, _SD15),
    Target("SD v1.5 U-Net, recommended", f"{TOMESD} r=0.5", "cpu", BEST, TOMESD, 1.1, _SD15),
    Target("its topmost attention, keys merged", UNMERGED, "cpu", KEYS, UNMERGED, 3, _LAYER),
    Target(
        "its topmost attention, keys merged",
        f"{DOWNSAMPLED}, factor 2",
        "cpu",
        KEYS,
        DOWNSAMPLED,
        0.95,
        _LAYER,
    ),
    *(
        Target(
            f"{name} block at 1024 px, keys merged",
            UNMERGED,
            "cpu",
            KEYS,
            UNMERGED,
            1.15,
            _BLOCK | {"architecture": name},
        )
        for name in OF_LAYERS["block"]
    ),
    Target(
        "a block, keys merged, every share",
        UNMERGED,
        "cpu",
        KEYS,
        UNMERGED,
        1,
        {"suite": "block"},
        beyond_noise=True,
    ),
    Target(
        f"U-Net, {SCHEDULE} mean, every point", UNMERGED, "cuda", CATOME, UNMERGED, 1, _ANY, beyond_noise=True
    ),
    *(
        Target(
            "the same, where reducing pays",
            peer,
            "cuda",
            CATOME,
            peer,
            1,
            _ANY,
            beyond_noise=True,
            paying=True,
        )
        for peer in (TOMESD, AUTHORS, DOWNSAMPLED)
    ),
    Target(f"U-Net, {SCHEDULE} mean, every point", FREE, "cuda", CATOME, FREE, 0.95, _ANY, paying=True),
    Target(f"{CACHED}, cached plan", COPY, "cuda", f"{CATOME} {CACHED}", COPY, 0.7, {"suite": "operations"}),
    Target("peak memory", UNMERGED, "cuda", CATOME, UNMERGED, 1, {"suite": "memory"}),
    Target("peak memory" + UNFUSED, UNMERGED, "cuda", CATOME + UNFUSED, UNMERGED, 1, {"suite": "memory"}),
    Target(f"peak memory{UNFUSED}, 1024 px", UNMERGED, "cuda", CATOME + UNFUSED, UNMERGED, 1.25, _AT_1024),
)
"""The targets of the benchmark. 1.25 times less memory is 20 % lower."""


def targets(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Judge by a `summary` whether each of the `TARGETS` for a kind of device is reached.

    Returns:
        Columns ``work``, ``against``, ``at least``, ``figure`` (of the point where it is lowest, with ``low``
        and ``high``), ``points`` (how many reach it, of how many) and ``verdict``: "reached", "not reached"
        or "not measured". Where catome could not run but the other could, the figure is 0; where the other
        could not, there is nothing to compare.
    """
    return pd.DataFrame([_judged(target, table) for target in TARGETS if target.kind == kind])


def _judged(target: Target, table: pd.DataFrame) -> dict:
    fitting = table[table["kind"] == target.kind]
    for name, value in target.where.items():
        fitting = fitting[fitting[name] == value]
    found = []
    for _, point in fitting.groupby(POINT, sort=False):
        reducing = point[point["method"].isin([CATOME, TOMESD, AUTHORS, DOWNSAMPLED])]
        own = point[point["method"] == target.method]
        if own.empty or (target.paying and not (reducing[UNMERGED] > 1).any()):
            continue
        figures = tuple(own.iloc[0][[target.column, f"{target.column} low", f"{target.column} high"]])
        failed, value = own.iloc[0]["note"], "peak_bytes" if own.iloc[0]["suite"] == "memory" else "ms"
        other = point[point["method"] == baselines(own.iloc[0]["suite"], target.method)[target.column]]
        if math.isnan(own.iloc[0][value]) and failed and other[value].notna().any():
            figures = (0.0, 0.0, 0.0)
        if not math.isnan(figures[0]):
            found.append(figures)
    line = {"work": target.work, "against": target.against, "at least": target.least}
    if not found:
        return line | {
            "figure": math.nan,
            "low": math.nan,
            "high": math.nan,
            "points": "0 of 0",
            "verdict": "not measured",
        }
    reached = sum(figures[2 if target.beyond_noise else 0] >= target.least for figures in found)
    figure, low, high = min(found)
    verdict = "reached" if reached == len(found) else "not reached"
    points = f"{reached} of {len(found)}"
    return line | {"figure": figure, "low": low, "high": high, "points": points, "verdict": verdict}


def targets_report(table: pd.DataFrame, kind: str) -> list[str]:
    """The `targets`, in lines to be read."""
    lines = [
        f"{'target':44}{'against':15}{'at least':>9}  {'measured (lowest point)':26}{'points':>10}  verdict"
    ]
    for _, row in targets(table, kind).iterrows():
        figure = (
            "-" if math.isnan(row["figure"]) else f"{row['figure']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        )
        least = f"{row['at least']:g}x"
        lines.append(
            f"{row['work']:44}{row['against']:15}{least:>9}  {figure:26}{row['points']:>10}  {row['verdict']}"
        )
    threads = table["threads"].unique().tolist()
    if kind == "cpu" and threads not in ([], [2]):
        lines.append(f"(what is to be reached is meant for 2 cores; measured with {threads[0]} threads)")
    return lines
