"""The steps at which an online schedule finds new pairs: each image and each block has its own."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from catome.probe import Record, probe
from catome.study.measure.drift import mean_staleness
from catome.study.methods import Method
from catome.study.run.claims import Claims, deal
from catome.study.run.generate import batches, by_halves, generate_batch
from catome.study.run.parameters import Setting
from catome.study.run.store import (
    RECORDED,
    SHARED_KEYS,
    Stopwatch,
    Store,
    Table,
    image_keys,
    of_these_images,
    provenance,
    shared_keys,
)

SEARCHES = Table(
    "searches",
    1,
    SHARED_KEYS | {"method": pa.string()},
    {"found": pa.list_(pa.list_(pa.int16()))},
)
"""One row for each image and method: ``found`` are, for each block, the steps at which it found new pairs."""


def searches(
    pipe,
    setting: Setting,
    method: Method,
    folder: Path | None = None,
    recompute: bool = False,
    recorded: Path | None = RECORDED,
) -> list[list[list[int]]]:
    """Generate by an online schedule, and see when it finds new pairs.

    Args:
        pipe: an unpatched pipeline.
        setting: what to generate.
        method: of the online schedule.
        folder: where to keep new rows; ``setting.output`` unless given.
        recompute: generate again, whatever was kept.
        recorded: a folder of recorded rows.

    Returns:
        For each image, for each block, the steps.
    """
    shared = shared_keys(pipe, setting)
    store = Store(SEARCHES, Path(folder or setting.output), recorded)
    keys = shared | {"method": method.label}
    run = provenance(setting, shared["model"])
    watch = Stopwatch()
    again = set()

    def watched(images: range) -> list[dict]:
        with method.applied(pipe), probe(pipe) as record:
            generate_batch(pipe, setting, images)
        # with guidance the rows without a prompt come first
        rows = zip(images, range(-len(images), 0), strict=True)
        return [keys | image_keys(setting, image) | {"found": _steps(record, row)} for image, row in rows]

    def need(part: range) -> bool:
        if recompute:
            return part not in again
        return len(of_these_images(store.find(**keys, image=list(part)), setting)) < len(part)

    def name(part: range) -> str:
        about = json.dumps([keys, recompute and run["id"]], sort_keys=True)
        return f"searches of images {part[0]} to {part[-1]} of {about}"

    parts = [part for part in batches(setting) if need(part)]
    with closing(deal(parts, need, name, Claims(store.file.parent), store.refresh)) as pieces:
        for part, _ in pieces:
            store.add([row for rows in by_halves(watched, part) for row in rows], run, watch.lap())
            again.add(part)
    store.finish()
    rows = of_these_images(store.find(**keys), setting)
    return [[[int(step) for step in block] for block in blocks] for blocks in rows["found"]]


def _steps(record: Record, row: int) -> list[list[int]]:
    """The steps at which a row of the batch gets new pairs, for each block; the first step is one of them."""
    found = []
    for block in range(len(record.blocks())):
        targets = [record.at(step, block).plan.target[row] for step in record.steps()]
        later = range(1, len(targets))
        found.append([0, *(step for step in later if not torch.equal(targets[step], targets[step - 1]))])
    return found


def searches_made(steps: list[list[list[int]]]) -> float:
    """The mean number of searches, of an image and a block; ``steps`` of `searches`."""
    return float(np.mean([len(block) for blocks in steps for block in blocks]))


def staleness_of(steps: list[list[list[int]]], staleness: np.ndarray) -> float:
    """The mean staleness of pairs that are found at these steps, given a matrix ``[T, T]``."""
    return float(np.mean([mean_staleness(staleness, block) for blocks in steps for block in blocks]))
