"""What a study costs before it is run: how many generations it needs, how long each takes at the least, and how far GPUs share it.

Three steps, each of which can be looked at alone:

1. `count` runs the notebook's own study cells with stand-ins that generate nothing and write down what they were asked for.
2. `generation_seconds` is the time of a generation on a device by the roofline of `catome.study.accounting`, divided by the
   *reach*: the share of its roofline's speed that a real program gets, from a time that somebody measured (`PRINTED`).
3. `makespan` deals the pieces out to processes as `catome.study.work` does.
"""

from __future__ import annotations

import heapq
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from catome import study
from catome.checks import check_integer, check_number
from catome.study import accounting
from catome.study.comparison import COST, QUALITY
from catome.study.drift import SHARD, amount_name
from catome.study.parameters import Setting
from catome.study.store import CHECKOUT, RECORDED, Store
from catome.study.work import Claims, deal

COLUMNS = ["phase", "what", "method", "images", "piece", "calls", "rows", "height", "width"]
WEIGHTS_BYTES = 2 * 1_066_000_000
"""Of Stable Diffusion v1.5 in half precision: U-Net 860 million numbers, text encoder 123 million, VAE 84 million."""


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
"""Seconds of one image by Stable Diffusion v1.5 at 512 x 512 pixels with 50 PLMS steps that others have measured and printed;
``source`` is a key of the bibliography. Nothing here was measured by this project."""


class _Asked:
    """Writes down what a study asks for, once each, as rows of `COLUMNS`."""

    def __init__(self) -> None:
        self.rows, self.phases, self._kept = [], 0, set()

    def _note(self, what: str, method: str, setting: Setting, piece: int) -> None:
        self.rows.append(
            {
                "phase": self.phases,
                "what": what,
                "method": method,
                "images": setting.images,
                "piece": piece,
                "calls": setting.calls,
                "rows": 2 if setting.guidance > 1 else 1,
                "height": setting.height,
                "width": setting.width,
            }
        )

    def _new(self, setting: Setting, label: object) -> bool:
        key = (label, setting.images, setting.steps, setting.guidance, setting.guidance_rescale, setting.seed)
        known = key in self._kept
        self._kept.add(key)
        return not known

    def compare(self, pipe, setting: Setting, methods: Sequence, *_, **__):
        new = [method for method in methods if self._new(setting, method.label)]
        self.phases += bool(new)
        for label in ["unmerged"] * bool(new) + [method.label for method in new if method.family != "unmerged"]:
            self._note("images", label, setting, setting.batch_size)
        # shares that differ: what they are is not known before, and equal ones would be counted once
        table = pd.DataFrame({"share": [0.3 + 0.001 * i for i in range(len(methods))]}, index=[m.label for m in methods])
        return SimpleNamespace(summary=lambda *_: table)

    def drift_study(self, pipe, setting: Setting, thresholds: Sequence = (), ratios: Sequence = (), **__):
        amounts = [amount_name(threshold=t) for t in thresholds] + [amount_name(ratio=r) for r in ratios]
        if self._new(setting, ("drift", *amounts)):
            self.phases += 1
            self._note("drift", "unmerged, watched", setting, SHARD)
        lag = np.abs(np.subtract.outer(np.arange(setting.calls), np.arange(setting.calls)))
        return SimpleNamespace(rows=None, steps=setting.calls, staleness=lambda *_, **__: lag / setting.calls)


@contextmanager
def _stand_ins(asked: _Asked) -> Iterator[None]:
    places = {
        (study, "load"): lambda setting: None,
        (study, "compare"): asked.compare,
        (study, "drift_study"): asked.drift_study,
        (study, "real_images"): lambda *_: None,
        (study, "image_size"): lambda _, setting: (setting.height, setting.width),
        (study, "lag_curves"): lambda rows: None,
        (study.quality, "extractor"): lambda *_: SimpleNamespace(name="", label=""),
    }
    before = {place: getattr(*place) for place in places}
    try:
        for (module, name), stand_in in places.items():
            setattr(module, name, stand_in)
        yield
    finally:
        for (module, name), real in before.items():
            setattr(module, name, real)


def count(notebook: str | Path, values: Mapping) -> pd.DataFrame:
    """What a study would generate, if nothing of it were kept already. Nothing is loaded, generated or written.

    Args:
        notebook: the name of one in ``notebooks/``, or a path; it has cells tagged "study".
        values: parameters over the notebook's own. ``device`` is not asked for.

    Returns:
        A row for each way of generating ``images``: ``phase`` (one begins when the one before has ended), ``what`` ("images" or
        "drift"), ``method``, ``piece`` (images that one process takes at a time), ``calls`` of the U-Net by one generation, ``rows`` of
        its batch for one image (2 with guidance), ``height`` and ``width`` (pixels; None: the model's own).

    Raises:
        ValueError, TypeError: for a wrong notebook or parameter, as `catome.study.parameters.settle`.
    """
    from catome.study.__main__ import cells_of, find

    asked, names = _Asked(), {"__name__": "__main__"}
    work = cells_of(find(notebook))
    for source in work.parameters:
        exec(source, names)
    names |= {**values, "device": "cpu"}
    with _stand_ins(asked):
        for source in work.study:
            exec(source, names)
    return pd.DataFrame(asked.rows, columns=COLUMNS)


def unet_calls(table: pd.DataFrame) -> int:
    """All U-Net calls of a table of `count`, for one image each (two rows of a batch with guidance)."""
    return int((table["images"] * table["calls"]).sum())


def generation_seconds(
    size: int,
    device: str,
    precision: str = "float16",
    attention: str = "fused",
    reach: float = 1.0,
    share: float = 0.0,
    calls: int = 51,
    architecture: str = "sd15",
) -> float:
    """Seconds of one image: ``calls`` of the U-Net with guidance, and one decoding.

    Args:
        size: of the square image, in pixels.
        device: a name in `catome.study.accounting.DEVICES`.
        precision: "float16", "bfloat16" or "float32".
        attention: "fused" or "naive".
        reach: share of the roofline's speed that is reached; at 1 no program can be faster.
        share: merged, of the topmost tokens.
        calls, architecture: of one generation.

    Raises:
        ValueError, TypeError: for a reach that is not in (0, 1], and as `catome.study.accounting.operations`.
    """
    if not check_number("reach", reach, 0.0, 1.0) > 0:
        raise ValueError(f"reach={reach!r} must be above 0 and at most 1")
    check_integer("calls", calls, 1)
    dtype_bytes, rates = accounting.DTYPE_BYTES[precision], accounting.device_rates(device, precision)
    call = accounting.roofline_seconds(accounting.operations(architecture, size, 2, dtype_bytes, share), *rates, attention)
    decoding = accounting.roofline_seconds(accounting.decoding(size, dtype_bytes), *rates, attention)
    return float(calls * call.sum() + decoding.sum()) / reach


def count_all(preset: str, batch_size: int | None = None) -> pd.DataFrame:
    """`count` of every study with the parameters of a preset, and those that it has for one study alone.

    Args:
        preset: name of a file in ``data/presets``, without ``.yaml``.
        batch_size: in place of the preset's.

    Returns:
        As `count`, with a column ``study``.

    Raises:
        ValueError: if there is no such preset.
    """
    from catome.study.__main__ import parameters, studies

    presets = CHECKOUT / "data/presets"
    known = sorted(path.stem for path in presets.glob("*.yaml"))
    if preset not in known:
        raise ValueError(f"preset={preset!r} must be one of {', '.join(known)}")
    tables = []
    for name in studies():
        files = [presets / f"{preset}.yaml", presets / preset / f"{name}.yaml"]
        values = parameters([str(file) for file in files if file.exists()], [])
        if batch_size is not None:
            values["batch_size"] = batch_size
        tables.append(count(name, values).assign(study=name))
    return pd.concat(tables, ignore_index=True)


def phases_of(table: pd.DataFrame, call_s: float) -> list[list[float]]:
    """Seconds of each piece of work, a list for each phase: a piece is some images by all methods of its phase.

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
    phases: Sequence[Sequence[float]], processes: int, start_s: float = 0.0, overhead_s: float = 0.0, spread: float = 0.0
) -> float:
    """Seconds until everything is done, when each process takes the next piece as soon as it has ended one.

    Args:
        phases: of `pieces_of`; a phase begins when the one before has ended.
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
    """What claiming a piece, keeping its rows and looking for those of others takes, measured here with pieces of no work.

    Args:
        pieces: how many to deal, one process, in a folder that is removed afterwards.
        methods, images, features: what a piece has rows for, and numbers of a row's features.

    Returns:
        Seconds of each piece, in the order in which they were dealt.
    """
    row = {name: 0 for name in (*QUALITY.keys, *QUALITY.values)} | {"features": [0.0] * features, "merged_share": []}
    row |= {name: "" for name, kind in QUALITY.keys.items() if str(kind) == "string"} | {"class": ""}
    times = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(QUALITY, Path(folder), None)
        run = {"id": "none", "date": ""}
        began = time.perf_counter()
        for piece, _ in deal(range(pieces), lambda _: True, str, Claims(folder), store.refresh):
            rows = [row | {"image": piece * images + i, "method": str(m)} for i in range(images) for m in range(methods)]
            store.add(rows, run, 0.0)
            now = time.perf_counter()
            times.append(now - began)
            began = now
    return times


def recorded_against_reckoned(recorded: Path = RECORDED) -> dict[str, float]:
    """How long the recorded images should have taken by the recorded times of single generations, and how long they took.

    Args:
        recorded: a folder with rows of `QUALITY` and of `COST`.

    Returns:
        ``images``, ``methods``, ``reckoned_hours`` of the machine (the median seconds of a method's generation times its images; a method
        that was never timed counts as the median one), and ``process_hours`` that the runs noted.
    """
    rows, timed = Store(QUALITY, recorded, None), Store(COST, recorded, None).find()
    made = rows.find().groupby("method").size()
    seconds = timed.groupby("method")["seconds"].median().reindex(made.index)
    return {
        "images": int(made.sum()),
        "methods": len(made),
        "reckoned_hours": float((made * seconds.fillna(seconds.median())).sum()) / 3600,
        "process_hours": sum(run["wall_seconds"] for run in rows.runs.values()) / 3600,
    }
