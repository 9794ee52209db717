"""Chapter 5: when to look again. The paper's schedules, bounds, schedules derived from measured staleness, and the online
one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from pydantic import model_validator

from catome.policy.schedule import SCHEDULES, Auto, derive, evenly
from catome.study import methods
from catome.study.measure import quality, real_images
from catome.study.measure.comparison import Comparison, compare, timed_alone
from catome.study.measure.drift import amount_name, checkpoints_made, drift_study, held_out, mean_staleness
from catome.study.measure.real_images import Reference
from catome.study.methods import Method
from catome.study.run.parameters import Cosines, Count, Counts, Flag, Folder, Setting, Shares, parameters
from catome.study.studies.jobs import Job, of_drift, of_images

NOTEBOOK = "05_checkpoint_schedules"

BASE = "CONFIG_3"
"""The paper's choice, which all others are compared with."""

EVEN = "CONFIG_FIVE"
"""The paper's schedule at equal distances, which needs no measurement."""


@parameters
class Parameters(Setting):
    """Which schedules.

    Attributes:
        thresholds: to merge by.
        tolerances: of the online schedule: the share of cached pairs that may have fallen below the threshold.
        budgets: checkpoints of the derived schedules.
        drift_images: derived schedules are made from the staleness of images ``images`` to ``drift_images`` and tried on the
            others.
        repetitions: timed generations of each schedule.
        reference: a folder of real images; None for held-out scenes (embedded model only).
        recompute: compute again what was recorded or kept.
    """

    thresholds: Cosines = (0.7, 0.9)
    tolerances: Shares = (0.1, 0.3)
    budgets: Counts = (8, 13)
    drift_images: Count = 240
    repetitions: Count = 5
    reference: Folder = None
    recompute: Flag = False

    @model_validator(mode="after")
    def _holds_images_out(self) -> Parameters:
        held_out(self, self.drift_images)
        return self

    @property
    def shards(self) -> tuple[range, range]:
        """Shards of images to derive schedules from, and shards to try them on."""
        return held_out(self, self.drift_images)

    @property
    def watched(self) -> Setting:
        """The setting whose staleness is measured."""
        return self.common(images=self.drift_images)


@dataclass(frozen=True)
class Asked:
    """A schedule that is tried.

    Attributes:
        threshold: to merge by.
        kind: "bounds", "paper", "derived" or "online".
        name: of the schedule.
        method: that merges so.
        checkpoints: its steps; None where it decides while it runs.
    """

    threshold: float
    kind: str
    name: str
    method: Method
    checkpoints: tuple[int, ...] | None


def asked_of(params: Parameters, derived: dict[tuple[float, int], tuple[int, ...]]) -> dict[tuple[float, str], Asked]:
    """Every schedule by threshold and name; ``derived`` by threshold and number of checkpoints."""
    found = {}

    def add(t: float, kind: str, name: str, schedule, steps) -> None:
        checkpoints = None if steps is None else tuple(steps)
        found[t, name] = Asked(t, kind, name, methods.ca_tome(t, schedule), checkpoints)

    for t in params.thresholds:
        add(t, "bounds", "every step", None, range(params.calls))
        add(t, "bounds", "step 0 only", (0,), (0,))
        for name, steps in SCHEDULES.items():
            add(t, "paper", name, name, steps)
        for (at, count), steps in derived.items():
            if at == t:
                add(t, "derived", f"best {count}", steps, steps)
        for tolerance in params.tolerances:
            add(t, "online", f"auto {tolerance:g}", Auto(tolerance), None)
    return found


def jobs(params: Parameters) -> Iterator[Job]:
    """All generations; which steps the derived schedules have is known only when staleness has been measured."""
    yield of_drift(1, params.watched)
    derived = {(t, k): tuple(range(k)) for t in params.thresholds for k in params.budgets if k <= params.calls}
    labels = [
        f"CA-ToMe, t = {one.threshold:g}, {one.name}" if one.kind == "derived" else one.method.label
        for one in asked_of(params, derived).values()
    ]
    yield from of_images(2, params, dict.fromkeys(labels))


def run(params: Parameters, pipe, **kept) -> Result:
    """Measure staleness, derive schedules from it, and generate by all of them.

    Args:
        params: which.
        pipe: an unpatched pipeline.
        kept: ``folder`` and ``recorded`` as in `catome.study.compare`.
    """
    real = real_images.beside(pipe, params, params.reference)
    drift = drift_study(pipe, params.watched, params.thresholds, **kept)
    unseen, tried = params.shards
    names = {t: amount_name(threshold=t) for t in params.thresholds}
    derived = {
        (t, k): derive(drift.staleness(names[t], shards=unseen), k)
        for t in params.thresholds
        for k in params.budgets
        if k <= params.calls
    }
    staleness = {t: drift.staleness(names[t], shards=tried) for t in params.thresholds}
    asked = asked_of(params, derived)
    made = compare(pipe, params, _distinct(asked), real, recompute=params.recompute, **kept)
    return Result(params, real, staleness, derived, asked, made)


def _distinct(asked: dict) -> list[Method]:
    """All methods, each once, the unmerged one first."""
    plain = methods.unmerged()
    return list({method.label: method for method in (plain, *(one.method for one in asked.values()))}.values())


def timed(result: Result, pipe, **kept) -> pd.DataFrame:
    """Rows of `catome.study.measure.comparison.COST`: every schedule of a result, one image at a time, in turns."""
    return timed_alone(pipe, result.params, _distinct(result.asked), **kept)


@dataclass(frozen=True)
class Result:
    """What was found.

    Attributes:
        params: the parameters.
        real: the real images that FID compares with.
        staleness: ``[T, T]`` of the images that schedules are tried on, by threshold.
        derived: steps of the derived schedules, by threshold and number of checkpoints.
        asked: all schedules, by threshold and name.
        made: the rows.
    """

    params: Parameters
    real: Reference
    staleness: dict[float, np.ndarray]
    derived: dict[tuple[float, int], tuple[int, ...]]
    asked: dict[tuple[float, str], Asked]
    made: Comparison

    def summary(self) -> pd.DataFrame:
        """`Comparison.summary` against the real images."""
        return self.made.summary(self.real.features)

    def gain(self, t: float, name: str, base: str = BASE) -> tuple[float, float, float]:
        """PSNR of a schedule minus that of another on the same seeds, in dB, with its 95 % interval."""
        return self.made.paired("psnr", self.asked[t, name].method, self.asked[t, base].method)

    def comparisons(self) -> pd.DataFrame:
        """PSNR of schedules against CONFIG_3, and of the derived ones against pairs found at every step and CONFIG_FIVE, to be
        read."""
        pairs = []
        for t in self.params.thresholds:
            rivals = ["every step", "step 0 only", *(f"best {k}" for k in sorted(self.params.budgets, reverse=True))]
            rivals += [f"auto {tolerance:g}" for tolerance in self.params.tolerances]
            for name in rivals:
                if (t, name) in self.asked:
                    pairs.append((t, name, BASE))
            for base in ("every step", EVEN):
                pairs += [(t, f"best {k}", base) for at, k in self.derived if at == t]
        found = {}
        for t, name, base in pairs:
            both = (self.asked[t, which].method for which in (name, base))
            found[f"t = {t:g}", f"{name} - {base}"] = self.made.differences("psnr", *both)
        return quality.difference_table(found)

    def relation(self) -> dict[float, float]:
        """By threshold the rank correlation of mean staleness and PSNR over the fixed schedules without the two bounds, pairs
        found at every step or once: these lie so far from the others that they would decide it. NaN for fewer than two."""
        psnr = self.made.summary()["PSNR"]
        found = {}
        for t in self.params.thresholds:
            steps = self.fixed_schedules(t)
            bills = pd.Series({name: mean_staleness(self.staleness[t], plan) for name, plan in steps.items()}, dtype=float)
            close = pd.Series({name: psnr[self.asked[t, name].method.label] for name in steps}, dtype=float)
            found[t] = float(bills.corr(close, method="spearman"))
        return found

    def even(self) -> pd.DataFrame:
        """Mean staleness of each derived schedule, ``derived``, and of as many checkpoints at equal distances, ``even``, by
        threshold and number of checkpoints; on the images that schedules are tried on."""
        calls = self.params.calls
        rows = {
            (t, k): {
                "even": mean_staleness(self.staleness[t], evenly(k).at(calls)),
                "derived": mean_staleness(self.staleness[t], steps),
            }
            for (t, k), steps in self.derived.items()
        }
        table = pd.DataFrame(rows, index=["even", "derived"]).T
        return table.rename_axis(["threshold", "checkpoints"])

    def fixed_schedules(self, t: float) -> dict[str, tuple[int, ...]]:
        """The steps of every fixed schedule at a threshold, by its name; without the bounds."""
        return {name: one.checkpoints for (at, name), one in self.asked.items() if at == t and one.kind in ("paper", "derived")}

    def expected(self, records: pd.DataFrame) -> tuple[dict[float, dict[str, float]], dict[float, dict[str, float]]]:
        """Straight lines through the fixed schedules of ``records``, by threshold: what a schedule of one's own may give.

        Returns:
            ``intercept`` and ``slope`` (dB) of PSNR over mean staleness, with the standard deviation around it, ``spread``; and
            time over the unmerged one, ``fixed`` and for ``each`` checkpoint. Pairs found once are left out: nothing else is as
            stale.
        """
        quality_of, time_of = {}, {}
        for t in self.params.thresholds:
            rows = records[(records["threshold"] == t) & (records["kind"] != "online") & (records["schedule"] != "step 0 only")]
            stale, count = rows["staleness"].astype(float), rows["checkpoints"].astype(float)
            intercept, slope, spread = _line(stale, rows["PSNR"].astype(float))
            fixed, each, _ = _line(count, rows["time"].astype(float))
            quality_of[t] = {"intercept": intercept, "slope": slope, "spread": spread}
            time_of[t] = {"fixed": fixed, "each": each}
        return quality_of, time_of

    def records(self, pipe, clock: pd.DataFrame) -> pd.DataFrame:
        """One row for each schedule.

        Args:
            pipe: to count the checkpoints of online schedules with, on two images.
            clock: of `timed`.

        Returns:
            ``threshold``, ``kind``, ``schedule``, ``checkpoints``, ``staleness``, the columns of `summary` that the chapter
            shows, ``seconds``, ``time`` (over unmerged) and ``gain`` over CONFIG_3 with its interval.
        """
        two = min(2, self.params.images)
        few = replace(self.params, images=two, batch_size=min(two, self.params.batch_size))
        seconds = clock.groupby("method")["seconds"].median()
        summary = self.summary()
        shown = ["PSNR", "PSNR low", "PSNR high", "share", "FID change", "FID change low", "FID change high"]
        rows = []
        for (t, name), one in self.asked.items():
            label = one.method.label
            if one.checkpoints is None:
                count, bill = checkpoints_made(pipe, few, one.method, self.staleness[t])
            else:
                count = sum(step < self.params.calls for step in one.checkpoints)
                bill = mean_staleness(self.staleness[t], one.checkpoints)
            row = {"threshold": t, "kind": one.kind, "schedule": name, "checkpoints": count, "staleness": bill}
            row |= {column: summary.loc[label, column] for column in shown}
            row |= {"seconds": seconds[label], "time": seconds[label] / seconds["unmerged"]}
            row |= dict(zip(("gain", "gain low", "gain high"), self.gain(t, name), strict=True))
            rows.append(row)
        return pd.DataFrame(rows)


def _line(x: pd.Series, y: pd.Series) -> tuple[float, float, float]:
    """A straight line of least squares: where it begins, its slope, and the standard deviation around it; level where all ``x``
    are equal. Infinite ``y``, of unchanged images, are left out."""
    kept = np.isfinite(y)
    x, y = x[kept], y[kept]
    if x.nunique() < 2:
        return float(y.mean()) if len(y) else 0.0, 0.0, float(y.std()) if len(y) > 1 else 0.0
    slope, intercept = np.polyfit(x, y, 1)
    around = y - intercept - slope * x
    return float(intercept), float(slope), float(np.sqrt((around**2).sum() / max(len(y) - 2, 1)))
