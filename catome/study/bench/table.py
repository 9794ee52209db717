"""The rows of the benchmark, and what they say: medians of the ratios within the rounds, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from catome.study.bench.points import named
from catome.study.run.store import Table

BENCH = Table(
    "bench",
    1,
    {
        "version": pa.int16(),
        "suite": pa.string(),
        "architecture": pa.string(),
        "kind": pa.string(),
        "device": pa.string(),
        "threads": pa.int16(),
        "dtype": pa.string(),
        "batch": pa.int32(),
        "height": pa.int32(),
        "width": pa.int32(),
        "channels": pa.int32(),
        "share": pa.float64(),
        "method": pa.string(),
        "round": pa.int32(),
    },
    {"seconds": pa.float64(), "peak_bytes": pa.int64(), "note": pa.string()},
)
"""One row for each point, method and round. ``batch`` is in images, each of which is two rows of a tensor by
classifier-free guidance; ``height`` and ``width`` are in pixels, in the suite "operations" in tokens;
``channels`` are those of the topmost blocks; ``share`` is the point's merged share, also for methods that
merge nothing. ``seconds`` are those of one operation or U-Net call (NaN where there is none, and ``note``
says why), ``peak_bytes`` is what the device held at most (suite "memory")."""


POINT = [
    "suite",
    "architecture",
    "kind",
    "device",
    "threads",
    "dtype",
    "batch",
    "height",
    "width",
    "channels",
    "share",
]


CACHED, FRESH, COPY = "merge + unmerge", "checkpoint step", "copy"
UNMERGED = "unmerged"
CATOME = "catome"
TOMESD = "tomesd"
AUTHORS = "batch maximum"
DOWNSAMPLED = "ToDo"
FREE = "free merging"
BY_COSINE, BY_DISTANCE = "pairs by cosine", "pairs by distance"
KEYS = "merged keys"
BEST = "recommended"


UNFUSED = ", unfused attention"


def ratio(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """The ratio of ``a`` to ``b``, in turns of the same rounds: ``(median, low, high)`` of ``a / b``.

    The interval is between order statistics of the rounds' ratios, and holds the median with at least 95 %;
    of fewer than 6 rounds it is their whole range, which holds it less often. NaN where there is no round."""
    found = np.sort(np.asarray(a, float) / np.asarray(b, float))
    found = found[np.isfinite(found)]
    n = len(found)
    if not n:
        return math.nan, math.nan, math.nan
    # chance that the median lies below the (i+1)-th
    outside = np.cumsum([math.comb(n, i) for i in range(n)]) / 2.0**n
    skip = max(int((2 * outside <= 0.05).sum()) - 1, 0)
    return float(np.median(found)), float(found[skip]), float(found[n - 1 - skip])


_COLUMNS = (UNMERGED, TOMESD, AUTHORS, DOWNSAMPLED, FREE, COPY, BY_COSINE, KEYS)


def baselines(suite: str, method: str) -> dict[str, str]:
    """The methods that a method is compared with, by the name of the column."""
    if suite == "operations":
        if method.endswith(CACHED):
            return {TOMESD: f"{TOMESD} {CACHED}", COPY: COPY}
        if method == BY_DISTANCE:
            return {BY_COSINE: BY_COSINE}
        return {TOMESD: f"{TOMESD} {FRESH}"} if method.endswith(FRESH) else {}
    if suite == "memory":
        return {UNMERGED: UNMERGED + (UNFUSED if method.endswith(UNFUSED) else "")}
    if suite == "compiled":
        return {UNMERGED: UNMERGED, KEYS: KEYS}
    return {name: name for name in (UNMERGED, TOMESD, AUTHORS, DOWNSAMPLED, FREE)}


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each point and method, of rows of `BENCH` from one run.

    Returns:
        The point's keys, ``method``, ``rounds``, ``ms`` (median), ``peak_bytes`` (largest), ``note``, and for
        each of "unmerged", "tomesd", "batch maximum", "ToDo", "free merging", "copy", "pairs by cosine" and
        "merged keys" how many times as fast the method is (in the suite "memory": how many times less it
        holds), with the interval of `ratio`: columns ``X``, ``X low``, ``X high``.
    """
    table = []
    for key, point in rows.groupby(POINT, sort=False):
        turns = {name: own.set_index("round") for name, own in point.groupby("method", sort=False)}
        for method, own in turns.items():
            line = dict(zip(POINT, key, strict=True)) | {
                "method": method,
                "rounds": int(own["seconds"].notna().sum()),
            }
            line |= {
                "ms": 1000 * own["seconds"].median(),
                "peak_bytes": own["peak_bytes"].astype(float).max(),
            }
            line["note"] = own["note"].iloc[-1]
            value = "peak_bytes" if line["suite"] == "memory" else "seconds"
            for column, baseline in baselines(line["suite"], method).items():
                other = turns.get(baseline)
                if other is not None and baseline != method:
                    both = other[value].astype(float).align(own[value].astype(float), join="inner")
                    line[column], line[f"{column} low"], line[f"{column} high"] = ratio(*both)
            table.append(line)
    ratios = [column + end for column in _COLUMNS for end in ("", " low", " high")]
    return pd.DataFrame(table, columns=[*POINT, "method", "rounds", "ms", "peak_bytes", "note", *ratios])


def report(table: pd.DataFrame) -> list[str]:
    """The `summary`, in lines to be read."""
    lines = [
        "",
        "vs X: how many times as fast as X (or how many times less memory), median of the rounds with its "
        "95 % interval",
    ]
    for _, point in table.groupby(POINT, sort=False):
        first, most = point.iloc[0], int(point["rounds"].max())
        columns = [name for name in _COLUMNS if point[name].notna().any()]
        memory = first["suite"] == "memory"
        width = max(len(method) for method in point["method"]) + 2
        lines += ["", named(first) + ("" if memory else f", {most} rounds")]
        lines.append(
            f"  {'':{width}}{'MiB' if memory else 'ms':>10}"
            + "".join(f"{'vs ' + name:>24}" for name in columns)
        )
        for _, row in point.iterrows():
            value = row["peak_bytes"] / 2**20 if memory else row["ms"]
            shown = "-" if math.isnan(value) else f"{value:.2f}"
            cells = "".join(f"{_interval(row, name):>24}" for name in columns)
            lines.append(f"  {row['method']:{width}}{shown:>10}{cells}  {row['note']}".rstrip())
        if not memory and most < 6:
            lines.append("  fewer than 6 rounds: intervals are their range")
    return lines


def _interval(row: Mapping, column: str) -> str:
    if math.isnan(row[column]):
        return ""
    return f"{row[column]:.3f} [{row[column + ' low']:.3f}, {row[column + ' high']:.3f}]"
