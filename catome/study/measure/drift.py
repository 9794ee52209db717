"""Measure how fast pairs drift: Jaccard distances between the pair sets of any two steps (paper, Figure 4,
and beyond)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from tqdm import tqdm

from catome.policy.staleness import total_staleness
from catome.probe import Record, probe
from catome.study.measure.similarity import short_name
from catome.study.run.claims import Claims, deal
from catome.study.run.generate import by_halves, generate_batch
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
from catome.tensors.plan import make_plan

SHARD = 24
"""Images whose results are kept together: what a kill costs at most, and the grain of the staleness
matrices."""

_AMOUNT = {"threshold": pa.float64(), "ratio": pa.float64(), "block": pa.string()}
_CURVE = pa.list_(pa.float16())

DRIFT = Table(
    "drift",
    1,
    SHARED_KEYS | _AMOUNT,
    {"class": pa.string(), "neighbour": _CURVE, "by_lag": _CURVE, "merged_share": _CURVE},
)
"""One row for each image, amount and block (``threshold`` or ``ratio``, the other is -2).

``neighbour[i]``: distance between the pairs of steps i and i + 1; ``by_lag[k - 1]``: mean distance of steps k
apart; ``merged_share[i]``: share of all tokens merged at step i."""

STALENESS = Table("staleness", 1, SHARED_KEYS | _AMOUNT | {"images": pa.int32()}, {"distance": _CURVE})
"""One row for each shard of images (its first, and how many), amount and block: the mean distance between the
pairs of steps i < j, the upper triangle row by row. ``prompt`` holds the shard's prompts, with newlines
between them."""

NONE = -2.0
"""Stands in the column of the amount that was not given (a cosine and a share are never -2)."""


@dataclass(frozen=True)
class Drift:
    """The results of `drift_study`.

    Attributes:
        rows: one row for each image, amount and block, as in `DRIFT`, with a column ``amount`` ("r = 0.5", "t
            = 0.9").
        shards: one row for each shard of images, amount and block, as in `STALENESS`, with ``amount``.
        steps: U-Net calls of one generation.
        runs: provenance of the rows, by their ``run`` column.
    """

    rows: pd.DataFrame
    shards: pd.DataFrame
    steps: int
    runs: dict[str, dict]

    @property
    def blocks(self) -> list[str]:
        return list(dict.fromkeys(self.rows["block"]))

    def staleness(
        self, amount: str, block: str | None = None, shards: Sequence[int] | None = None
    ) -> np.ndarray:
        """Mean distance ``[steps, steps]`` (symmetric, zero diagonal) over images, and over blocks unless one
        is named.

        Args:
            amount: as in the ``amount`` column.
            block: short name of a block.
            shards: positions of the shards to average over, to hold out the others; None for all.
        """
        rows = self.shards[self.shards["amount"] == amount]
        rows = rows if block is None else rows[rows["block"] == block]
        if shards is not None:
            rows = rows[rows["image"].isin([SHARD * i for i in shards])]
        if not len(rows):
            raise ValueError(
                f"amount={amount!r}, block={block!r}, shards={shards!r}: nothing was computed for them"
            )
        weights = rows["images"].to_numpy(float)
        mean = np.average(np.stack(rows["distance"].to_numpy()).astype(float), axis=0, weights=weights)
        matrix = np.zeros((self.steps, self.steps))
        matrix[np.triu_indices(self.steps, 1)] = mean
        return matrix + matrix.T

    def by_lag(self, amount: str) -> dict[int, float]:
        """The mean distance of steps so far apart, for a few lags, over images and blocks; ``amount`` as in
        the column."""
        matrix = self.staleness(amount)
        return {lag: float(np.diagonal(matrix, lag).mean()) for lag in (1, 2, 5, 10, 25) if lag < self.steps}

    def ages(self, amount: str) -> dict[str, str]:
        """`by_lag` to be read, by the heads of a table's columns."""
        return {
            f"{lag} step{'s' * (lag > 1)} apart": f"{value:.2f}" for lag, value in self.by_lag(amount).items()
        }


def jaccard_distances(partner: torch.Tensor) -> torch.Tensor:
    """Jaccard distance between the pair sets of every two steps (paper, Section III-B).

    Args:
        partner: ``[T, ..., S]`` integer, for each step and src token the dst token it is merged into, or -1.

    Returns:
        ``[T, T, ...]`` float32 in [0, 1], ``1 - |A n B| / |A u B|``; two empty sets have distance 0.
    """
    steps = len(partner)
    merged = partner >= 0
    size = merged.sum(-1)
    distance = torch.zeros(steps, steps, *partner.shape[1:-1])
    for lag in range(1, steps):
        common = ((partner[lag:] == partner[:-lag]) & merged[lag:]).sum(-1)
        union = size[lag:] + size[:-lag] - common
        value = torch.where(union > 0, 1 - common / union.clamp(min=1), 0.0)
        i = torch.arange(steps - lag)
        distance[i, i + lag] = distance[i + lag, i] = value
    return distance


def partners(record: Record, block: int, rows: slice, **amount) -> torch.Tensor:
    """The dst token of every merged src token, else -1: ``[T, B, S]`` int16 or int32 for one block of a
    probed generation.

    Args:
        record: of `catome.probe`, of one generation.
        block: position of the block.
        rows: rows of the batch.
        amount: ``threshold=`` or ``ratio=``.
    """
    result = []
    for step in record.steps():
        matches = record.at(step, block).matches
        target = make_plan(matches, **amount).target[rows][:, matches.src]
        small = torch.int16 if target.shape[-1] < 2**14 else torch.int32
        result.append(torch.where(target == matches.src, -1, target).to(small))
    return torch.stack(result)


def lag_curves(rows: pd.DataFrame) -> np.ndarray:
    """Mean distance of steps k apart for each image, over its blocks: ``[images, T - 1]``, from rows of
    `DRIFT`."""
    images = rows.groupby("image")["by_lag"]
    return np.stack([np.stack(curves.to_numpy()).astype(float).mean(0) for _, curves in images])


def amount_name(threshold: float | None = None, ratio: float | None = None) -> str:
    """``t = 0.9`` or ``r = 0.5``."""
    return f"t = {threshold:g}" if ratio is None or ratio == NONE else f"r = {ratio:g}"


def mean_staleness(staleness: np.ndarray, schedule: Sequence[int]) -> float:
    """The mean staleness of a schedule over the steps, given a matrix ``[T, T]``: see
    `catome.policy.schedule.derive`."""
    return total_staleness(staleness, schedule) / len(staleness)


def held_out(setting: Setting, drift_images: int) -> tuple[range, range]:
    """Shards to derive schedules from and shards to try them on: ``(unseen, tried)``, positions for
    `Drift.staleness`.

    Those tried hold the setting's own images, the unseen ones none of them.

    Raises:
        ValueError: if ``drift_images`` reach no further than the shards of the setting's own images.
    """
    tried, shards = len(shards_of(setting.images)), len(shards_of(drift_images))
    if shards <= tried:
        raise ValueError(
            f"drift_images={drift_images!r} must be above {SHARD * tried}: images={setting.images} "
            f"are kept for trying out what is derived from the others, in shards of {SHARD}"
        )
    return range(tried, shards), range(tried)


def shards_of(images: int) -> list[range]:
    return [range(at, min(at + SHARD, images)) for at in range(0, images, SHARD)]


def _shard_keys(setting: Setting, shard: range) -> dict:
    return {"image": shard[0], "images": len(shard), "prompt": "\n".join(setting.prompts[i] for i in shard)}


def drift_study(
    pipe,
    setting: Setting,
    thresholds: Sequence[float] = (),
    ratios: Sequence[float] = (),
    folder: Path | None = None,
    recompute: bool = False,
    recorded: Path | None = RECORDED,
) -> Drift:
    """Distances between the pairs of all steps, in the prompted half of the batch, for several amounts of
    merging.

    Each image is generated once, unmerged, whatever the number of amounts. Shards of `SHARD` images whose
    rows are kept already are not computed again.

    Args:
        pipe: an unpatched pipeline.
        setting: what to generate.
        thresholds, ratios: the amounts of merging, as in `catome.apply_patch`.
        folder: where to keep new rows; ``setting.output`` unless given.
        recompute: compute everything again, whatever was kept.
        recorded: a folder of recorded rows.

    Raises:
        ValueError: if there is nothing to merge by, an amount is out of range, or there is only one step.
    """
    amounts = [dict(threshold=float(t)) for t in thresholds] + [dict(ratio=float(r)) for r in ratios]
    if not amounts:
        raise ValueError(f"thresholds={thresholds!r}, ratios={ratios!r}: give at least one of either")
    if setting.calls < 2:
        raise ValueError(f"steps={setting.steps!r} must be at least 2: drift compares steps with each other")
    shared = shared_keys(pipe, setting)
    folder = Path(folder or setting.output)
    stores = [Store(table, folder, recorded) for table in (DRIFT, STALENESS)]
    columns = [{"threshold": NONE, "ratio": NONE} | amount for amount in amounts]
    calls = setting.calls
    shards = shards_of(setting.images)
    run, watch, again = provenance(setting, shared["model"]), Stopwatch(), set()

    def need(shard: range) -> bool:
        if recompute:
            return shard not in again
        return not _kept(stores, setting, shared, shard, columns)

    def name(shard: range) -> str:
        about = json.dumps([shared, amounts, recompute and run["id"]], sort_keys=True)
        return f"drift of images {shard[0]} to {shard[-1]} of {about}"

    def watched(images: range) -> tuple[Record, range]:
        with probe(pipe) as record:
            generate_batch(pipe, setting, images, bar.update)
        return record, images

    missing = [shard for shard in shards if need(shard)]
    parts = [
        shard[at : at + setting.batch_size]
        for shard in missing
        for at in range(0, len(shard), setting.batch_size)
    ]
    pieces = deal(missing, need, name, Claims(folder), lambda: [store.refresh() for store in stores])
    with (
        tqdm(total=len(parts) * calls, desc="drift", unit="step", leave=False, disable=not parts) as bar,
        closing(pieces),
    ):
        for shard, _ in pieces:
            rows, sums = [], {}
            for at in range(0, len(shard), setting.batch_size):
                for record, images in by_halves(watched, shard[at : at + setting.batch_size]):
                    rows += _image_rows(record, setting, shared, images, amounts, columns, sums)
            whole = shared | _shard_keys(setting, shard)
            means = [
                whole | columns[a] | {"block": block, "distance": (total / len(shard)).astype(np.float16)}
                for (a, block), total in sums.items()
            ]
            seconds = watch.lap()
            stores[0].add(rows, run, seconds)
            stores[1].add(means, run, seconds)
            again.add(shard)
    for store in stores:
        store.finish()
    return _collect(stores, setting, shared, columns)


def _kept(stores, setting: Setting, shared: dict, shard: range, columns: list[dict]) -> bool:
    """Return True if both stores hold everything of a shard."""
    for amount in columns:
        images = of_these_images(stores[0].find(**shared, **amount, image=shard), setting)
        whole = stores[1].find(**shared, **amount, **_shard_keys(setting, shard))
        if not len(whole) or len(images) != len(shard) * len(whole):
            return False
    return True


def _image_rows(record, setting, shared, images, amounts, columns, sums) -> list[dict]:
    rows = []
    names = record.blocks()
    calls = len(record.steps())
    i, j = np.triu_indices(calls, 1)
    prompted = slice(-len(images), None)  # the prompted half comes last
    for (a, amount), (b, name) in itertools.product(enumerate(amounts), enumerate(names)):
        partner = partners(record, b, prompted, **amount)
        distance = jaccard_distances(partner).numpy()  # [T, T, B]
        merged = (partner >= 0).sum(-1) / record.at(0, b).matches.grid[0] / record.at(0, b).matches.grid[1]
        key = (a, short_name(name))
        sums[key] = sums.get(key, 0) + distance[i, j].sum(-1, dtype=float)
        lag = np.stack([np.diagonal(distance, k).mean(-1) for k in range(1, calls)], -1)  # [B, T - 1]
        for at, image in enumerate(images):
            rows.append(
                shared
                | image_keys(setting, image)
                | columns[a]
                | {
                    "block": short_name(name),
                    "class": setting.names[image],
                    "neighbour": np.diagonal(distance[..., at], 1).astype(np.float16),
                    "by_lag": lag[at].astype(np.float16),
                    "merged_share": merged[:, at].numpy().astype(np.float16),
                }
            )
    return rows


def _collect(stores, setting: Setting, shared: dict, columns: list[dict]) -> Drift:
    rows, shards = [], []
    for amount in columns:
        name = amount_name(**amount)
        rows.append(
            of_these_images(stores[0].find(**shared, **amount, image=range(setting.images)), setting).assign(
                amount=name
            )
        )
        for shard in shards_of(setting.images):
            shards.append(
                stores[1].find(**shared, **amount, **_shard_keys(setting, shard)).assign(amount=name)
            )
    table = pd.concat(rows, ignore_index=True)
    calls = len(table["by_lag"].iloc[0]) + 1  # not of the setting: other samplers than PLMS call once less
    runs = {name: run for store in stores for name, run in store.runs_of(table).items()}
    return Drift(table, pd.concat(shards, ignore_index=True), calls, runs)
