"""Estimate the cost of a study before it is run: its generations, the least time of each, and how far GPUs
share it.

Three steps, each of which can be looked at alone:

1. `count` asks a study for its list of generations.
2. `generation_seconds` is the time of a generation on a device by the roofline of
   `catome.study.costs.accounting`, divided by the *efficiency*: the share of its roofline's speed that a real
   program gets, from a time that somebody measured (`PRINTED`).
3. `makespan` deals the pieces out to processes as `catome.study.run.claims` does.
"""

from __future__ import annotations

import heapq
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import yaml

from catome.checks import check_integer, check_number
from catome.study.bench.kernel_table import SIZES, least_times
from catome.study.costs import accounting
from catome.study.measure.comparison import COST, QUALITY
from catome.study.run.claims import Claims, deal
from catome.study.run.parameters import Setting
from catome.study.run.store import CHECKOUT, RECORDED, Store
from catome.study.studies import OF_CHAPTERS, curves, find, jobs

WEIGHTS_BYTES = 2 * 1_066_000_000
"""Of Stable Diffusion v1.5 in half precision: U-Net 860 million numbers, text encoder 123 million, VAE 84
million."""


PRINTED = pd.DataFrame(
    {
        "what": ["this paper's baseline, unfused float32 assumed", "diffusers with SDPA on torch 2.1"],
        "device": ["Tesla V100S", "A100 80 GB SXM"],
        "precision": ["float32", "float16"],
        "attention": ["naive", "fused"],
        "seconds": [7.61, 1.590],
        "source": ["saghatchian2025catome", "fal2023benchmarks"],
    }
)
"""Seconds of one image by Stable Diffusion v1.5 at 512 x 512 pixels with 50 PLMS steps that others have
measured and printed; ``source`` is a key of the bibliography. Nothing here was measured by this project."""


def count(name: str, values: Mapping) -> pd.DataFrame:
    """Count what a study would generate, if nothing of it were kept already:
    `catome.study.studies.jobs.table`.

    Args:
        name: of a study.
        values: its parameters; ``device`` is not asked for.

    Raises:
        ValueError, TypeError: for an unknown study, and as its parameters.
    """
    study = find(name)
    return jobs.table(study.jobs(_parameters(study, values)))


def _parameters(study: ModuleType, values: Mapping) -> Setting:
    """The parameters of a study that only counts."""
    return study.Parameters.checked({**values, "device": "cpu"})


def generation_seconds(
    size: int,
    device: str,
    precision: str = "float16",
    attention: str = "fused",
    efficiency: float = 1.0,
    share: float = 0.0,
    calls: int = 51,
    architecture: str = "sd15",
) -> float:
    """Seconds of one image: ``calls`` of the U-Net with guidance, and one decoding.

    Args:
        size: of the square image, in pixels.
        device: a name in `catome.study.costs.accounting.DEVICES`.
        precision: "float16", "bfloat16" or "float32".
        attention: "fused" or "naive".
        efficiency: share of the roofline's speed that is reached; at 1 no program can be faster.
        share: merged, of the topmost tokens.
        calls, architecture: of one generation.

    Raises:
        ValueError, TypeError: for an efficiency that is not in (0, 1], and as
            `catome.study.costs.accounting.operations`.
    """
    if not check_number("efficiency", efficiency, 0.0, 1.0) > 0:
        raise ValueError(f"efficiency={efficiency!r} must be above 0 and at most 1")
    check_integer("calls", calls, 1)
    dtype_bytes, rates = accounting.DTYPE_BYTES[precision], accounting.device_rates(device, precision)
    call = accounting.roofline_seconds(
        accounting.operations(architecture, size, 2, dtype_bytes, share), *rates, attention
    )
    decoding = accounting.roofline_seconds(accounting.decoding(size, dtype_bytes), *rates, attention)
    return float(calls * call.sum() + decoding.sum()) / efficiency


def merged_keys_seconds(
    size: int, device: str, share: float, efficiency: float = 1.0, match_every: float = 51 / 13
) -> float:
    """Seconds of one image of Stable Diffusion v1.5 with a share of the keys merged in the topmost
    self-attentions: `generation_seconds` in float16, less what `least_times` says that this saves.

    Args:
        size: of the square image, in pixels: 512 or 1024.
        device, efficiency: as in `generation_seconds`.
        share: of an image's keys that is merged away.
        match_every: pairs are found once in so many of the 51 calls.

    Raises:
        ValueError, TypeError: for another size, and as `generation_seconds`.
    """
    whole = generation_seconds(size, device, efficiency=efficiency)
    model = f"SD 1.5, {size} px"
    if model not in SIZES:
        raise ValueError(f"size={size!r} must be 512 or 1024")
    times = least_times(device, share)
    us = times[times["model"] == model].set_index("work")["us"]
    added = us["merge keys and values"] + us["find pairs"] / match_every
    saved = us["attention, unmerged"] - us["attention, keys merged"] - added
    layers = accounting.operations("sd15", size).loc["topmost self-attention", "module"].nunique()
    return float(whole - 51 * layers * 1e-6 * saved / efficiency)


def count_all(preset: str, batch_size: int | None = None) -> pd.DataFrame:
    """`count` of every chapter's study with the parameters of a preset, and those that it has for one study
    alone; and of ``curves``, the methods at several settings that chapters 6 and 9 show.

    Images of another model than the preset's are left out, since calls of another model take another time:
    see `left_out`.

    Args:
        preset: name of a file in ``data/presets``, without ``.yaml``.
        batch_size: in place of the preset's.

    Returns:
        As `count`, with a column ``study``.

    Raises:
        ValueError: if there is no such preset.
    """
    own = preset_of(preset)["model"]
    found: dict[str, list[jobs.Job]] = {}
    for name, job in _asked(preset, batch_size):
        if job.setting.model == own:
            found.setdefault(name, []).append(job)
    tables = [jobs.table(some).assign(study=name) for name, some in found.items()]
    return pd.concat(tables, ignore_index=True)


def left_out(preset: str) -> int:
    """The number of images that `count_all` leaves out because another model generates them: those of the
    transformer of chapter 10. Those of a distilled model in chapter 9 are not counted at all."""
    own = preset_of(preset)["model"]
    return sum(job.setting.images for _, job in _asked(preset) if job.setting.model != own)


def _asked(preset: str, batch_size: int | None = None) -> Iterator[tuple[str, jobs.Job]]:
    """All generations, each with the name of its study; arguments as in `count_all`."""
    of_curves: dict[int, curves.Parameters] = {}
    for name, study in OF_CHAPTERS.items():
        values = preset_of(preset, study.NOTEBOOK)
        if batch_size is not None:
            values["batch_size"] = batch_size
        params = _parameters(study, values)
        for job in study.jobs(params):
            yield name, job
        if name == "headline":
            of_curves[params.steps] = params.knobs
        if name == "short":
            of_curves = params.knobs | of_curves  # its long generations are those of chapter 6
    for phase, knobs in enumerate(of_curves.values(), 1):
        for job in curves.jobs(knobs):
            yield "curves", replace(job, phase=phase)


def preset_of(preset: str, notebook: str | None = None) -> dict:
    """The parameters of a preset by name, those that it has for one notebook alone among them where one is
    given.

    Raises:
        ValueError: if there is no such preset.
    """
    presets = CHECKOUT / "data/presets"
    # a preset that names its notebooks is not for all, so the whole study cannot be counted with it
    known = sorted(
        path.stem for path in presets.glob("*.yaml") if not (presets / path.stem / "notebooks.txt").exists()
    )
    if preset not in known:
        raise ValueError(f"preset={preset!r} must be one of {', '.join(known)}")
    values = {}
    files = [presets / f"{preset}.yaml"]
    if notebook is not None:
        files.append(presets / preset / f"{notebook}.yaml")
    for file in files:
        if file.exists():
            values |= yaml.safe_load(file.read_text())
    return values


def phases_of(table: pd.DataFrame, call_s: float) -> list[list[float]]:
    """Seconds of each piece of work, a list for each phase: a piece is some images by all methods of its
    phase.

    Args:
        table: of `count` or `count_all`.
        call_s: seconds of one U-Net call for one image.
    """
    phases = []
    for _, rows in table.groupby(["study", "phase"] if "study" in table else "phase", sort=False):
        images, piece, each = rows["images"].iloc[0], rows["piece"].iloc[0], rows["calls"].sum() * call_s
        phases.append([min(piece, images - at) * each for at in range(0, images, piece)])
    return phases


def makespan(
    phases: Sequence[Sequence[float]],
    processes: int,
    start_s: float = 0.0,
    overhead_s: float = 0.0,
    spread: float = 0.0,
) -> float:
    """Seconds until everything is done, when each process takes the next piece as soon as it has ended one.

    Args:
        phases: of `phases_of`; a phase begins when the one before has ended.
        processes: how many share the work.
        start_s: seconds before a process takes its first piece.
        overhead_s: seconds a piece takes beside computing.
        spread: standard deviation of a process's speed, as a share of it (seeded).
    """
    check_integer("processes", processes, 1)
    speeds = (1 + spread * np.random.default_rng(0).standard_normal(processes)).clip(min=0.1)
    speeds /= speeds.mean()
    end = start_s
    for pieces in phases:
        free = [(end, process) for process in range(processes)]
        heapq.heapify(free)
        for seconds in pieces:
            now, process = heapq.heappop(free)
            end = max(end, now + seconds / speeds[process] + overhead_s)
            heapq.heappush(free, (now + seconds / speeds[process] + overhead_s, process))
    return end


def bookkeeping_seconds(pieces: int, methods: int = 16, images: int = 4, features: int = 2048) -> list[float]:
    """Measure here how long claiming a piece, keeping its rows and looking for those of others takes, with
    pieces of no work.

    Args:
        pieces: how many to deal, one process, in a folder that is removed afterwards.
        methods, images, features: what a piece has rows for, and numbers of a row's features.

    Returns:
        Seconds of each piece, in the order in which they were dealt.
    """
    row = {name: 0 for name in (*QUALITY.keys, *QUALITY.values)} | {
        "features": [0.0] * features,
        "merged_share": [],
    }
    row |= {name: "" for name, kind in QUALITY.keys.items() if str(kind) == "string"} | {"class": ""}
    times = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(QUALITY, Path(folder), None)
        run = {"id": "none", "date": ""}
        began = time.perf_counter()
        for piece, _ in deal(range(pieces), lambda _: True, str, Claims(folder), store.refresh):
            rows = [
                row | {"image": piece * images + i, "method": str(m)}
                for i in range(images)
                for m in range(methods)
            ]
            store.add(rows, run, 0.0)
            now = time.perf_counter()
            times.append(now - began)
            began = now
    return times


def recorded_against_reckoned(recorded: Path = RECORDED) -> dict[str, float]:
    """The time that the recorded images should have taken by the recorded times of single generations, and
    the time they took.

    Args:
        recorded: a folder with rows of `QUALITY` and of `COST`.

    Returns:
        ``images``, ``methods``, ``reckoned_hours`` of the machine (the median seconds of a method's
        generation times its images; a method that was never timed counts as the median one of as many steps),
        and ``process_hours`` that the runs noted.
    """
    rows, timed = Store(QUALITY, recorded, None), Store(COST, recorded, None).find()
    alike = ["model", "steps", "method"]
    made = rows.find().groupby(alike).size()
    seconds = timed.groupby(alike)["seconds"].median().reindex(made.index)
    like = seconds.groupby(["model", "steps"]).transform("median")
    return {
        "images": int(made.sum()),
        "methods": made.index.get_level_values("method").nunique(),
        "reckoned_hours": float((made * seconds.fillna(like).fillna(seconds.median())).sum()) / 3600,
        "process_hours": sum(run["wall_seconds"] for run in rows.runs.values()) / 3600,
    }
