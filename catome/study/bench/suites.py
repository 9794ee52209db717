"""Measure how fast catome is against its peers on this machine: a run of the benchmark.

The contenders of one point take turns in one run, so that drift of the machine hits all alike, and what is
compared are the ratios within each round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import pandas as pd
import torch

from catome.study.bench.contenders import (
    attention,
    block_calls,
    compiled,
    operations,
    peak_memory,
    random_unet,
    unet_calls,
)
from catome.study.bench.points import Options, Point, points
from catome.study.bench.rounds import Clock, cpu_clock, cuda_clock, or_why_not, take_turns
from catome.study.bench.table import BENCH, COPY, POINT, UNMERGED, report, summary
from catome.study.bench.targets import targets_report
from catome.study.measure.clock import device_name
from catome.study.run.store import Stopwatch, Store, provenance


@torch.no_grad()
def measure(point: Point, device: str, clock: Clock, deadline: float = math.inf) -> list[dict]:
    """Rows of `BENCH` for one point, without the device's keys; one without seconds for each method that
    could not run."""

    def row(
        method: str, turn: int, seconds: float = math.nan, peak: int | None = None, note: str = ""
    ) -> dict:
        keys = {name: value for name, value in vars(point).items() if name != "rounds"}
        return keys | {"method": method, "round": turn, "seconds": seconds, "peak_bytes": peak, "note": note}

    if point.suite == "memory":
        (peaks, notes), why = or_why_not(partial(peak_memory, point, device), ({UNMERGED: None}, {}))
        return [row(method, 0, peak=peak, note=notes.get(method, why)) for method, peak in peaks.items()]
    build = {
        "operations": operations,
        "attention": attention,
        "block": block_calls,
        "unet": unet_calls,
        "compiled": compiled,
    }[point.suite]
    contenders, why = or_why_not(partial(build, point, device), None)
    if contenders is None:
        return [row(COPY if point.suite == "operations" else UNMERGED, 0, note=why)]
    samples, notes = take_turns(contenders, point.rounds, clock, deadline)
    rows = []
    for contender in contenders:
        method, note = contender.method, notes.get(contender.method, "")
        for turn, seconds in enumerate(samples[method]):
            for call, own in zip(contender.calls, seconds, strict=True):
                if call.name:
                    rows.append(row(f"{method} {call.name}", turn, own, note=note))
            total = sum(call.weight * own for call, own in zip(contender.calls, seconds, strict=True))
            rows.append(row(method, turn, total, note=note))
        if not samples[method]:
            rows.append(row(method, 0, note=note))
    return rows


def run(
    options: Options,
    say: Callable[[str], None] = print,
    progress: Callable[[str], None] = lambda line: None,
    clock: Clock | None = None,
) -> pd.DataFrame:
    """Measure what the options ask for, keep the rows, and print what came out.

    Args:
        options: what to measure, and where to keep the rows: the file of `BENCH`; each point is kept when it
            is done.
        say: prints a line of the report at the end.
        progress: prints a line at each point before it is measured.
        clock: what to time with; by default the device's.

    Returns:
        The `summary`.

    Raises:
        ValueError: for a suite that the device does not have, or a file of rows that is broken; before
            anything is measured.
    """
    todo, store = points(options), Store(BENCH, options.output, None)
    cuda = options.kind == "cuda"
    clock = clock or (cuda_clock if cuda else cpu_clock)
    where = {
        "kind": options.kind,
        "device": device_name(options.device),
        "threads": torch.get_num_threads(),
    }
    entry, watch = provenance(options, "random weights"), Stopwatch()
    deadline, kept, left = time.monotonic() + options.budget_s, [], []
    with torch.cuda.device(options.device) if cuda else nullcontext():
        for number, point in enumerate(todo, 1):
            if time.monotonic() > deadline:
                left.append(point)
                continue
            progress(f"{number} of {len(todo)}: {point}")
            rows = [where | row for row in measure(point, options.device, clock, deadline)]
            store.add(rows, entry, watch.lap())
            kept += rows
    store.finish()
    random_unet.cache_clear()
    table = summary(pd.DataFrame(kept, columns=[*POINT, "method", "round", *BENCH.values]))
    threads = "" if cuda else f", {where['threads']} threads"
    say(
        f"{where['device']}{threads}; torch {entry['torch']}, catome {entry['catome']}, commit "
        f"{entry['commit']}"
    )
    for line in [*report(table), *_left_out(left, options), "", *targets_report(table, options.kind)]:
        say(line)
    say(f"\n{len(kept)} rows of run {entry['id']} are in {store.file}")
    return table


def _left_out(left: Sequence[Point], options: Options) -> list[str]:
    if not left:
        return []
    return [
        "",
        f"Left out, since the budget of {options.budget_s:g} s was over:",
        *(f"  {point}" for point in left),
    ]


def bench_rows(setting) -> pd.DataFrame:
    """The `summary` of the last recorded run of the suite "unet" on a GPU, from the recorded rows or
    ``setting.output``."""
    held = Store(BENCH, setting.output).find(suite="unet", kind="cuda")
    return summary(held[held["run"] == held["run"].iloc[-1]] if len(held) else held)
