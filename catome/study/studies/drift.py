"""Chapter 4: how fast the pairs drift, at several amounts of merging, guidance scales and numbers of steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from catome.policy.schedule import SCHEDULES, derive
from catome.study.measure.drift import Drift, amount_name, drift_study, lag_curves
from catome.study.run.parameters import Cosines, Count, Counts, Flag, Guidances, Setting, Share, parameters
from catome.study.studies.jobs import Job, of_drift

NOTEBOOK = "04_pair_drift"


@parameters
class Parameters(Setting):
    """What is merged, and what else is varied.

    Attributes:
        ratio: a fixed share to merge, as in the paper's Figure 4.
        thresholds: cosines to merge by beside it.
        guidances, step_counts: other guidance scales and numbers of denoising steps to compare with.
        variation_images: images for each of those comparisons.
        recompute: compute again what was recorded or kept.
    """

    ratio: Share = 0.5
    thresholds: Cosines = (0.7, 0.9)
    guidances: Guidances = (1.0, 3.0)
    step_counts: Counts = (20, 100)
    variation_images: Count = 24
    recompute: Flag = False

    @property
    def few(self) -> Parameters:
        """The same with as many images as the variations have."""
        return replace(self, images=min(self.images, self.variation_images))


def variations(params: Parameters) -> dict[str, dict[str, Parameters]]:
    """The settings that are compared, by "guidance" and "steps", and by the value that is varied."""
    few = params.few
    return {
        "guidance": {f"{scale:g}": replace(few, guidance=scale) for scale in sorted({*params.guidances, params.guidance})},
        "steps": {str(count): replace(few, steps=count) for count in sorted({*params.step_counts, params.steps})},
    }


def jobs(params: Parameters) -> Iterator[Job]:
    """All generations, the base ones first."""
    yield of_drift(1, params)
    phase = 2
    for kind, settings in variations(params).items():
        for setting in settings.values():
            if kind == "guidance" or setting.steps != params.steps:  # the base ones are among both
                yield of_drift(phase, setting)
                phase += 1


def run(params: Parameters, pipe, **kept) -> Result:
    """Watch the pairs of every setting.

    Args:
        params: which.
        pipe: an unpatched pipeline.
        kept: ``folder`` and ``recorded`` as in `catome.study.drift_study`.
    """
    base = drift_study(pipe, params, params.thresholds, [params.ratio], recompute=params.recompute, **kept)
    curves = {}
    for kind, settings in variations(params).items():
        curves[kind] = {}
        for value, setting in settings.items():
            other = (setting.guidance, setting.steps) != (params.guidance, params.steps)
            recompute = params.recompute and other
            found = drift_study(pipe, setting, ratios=[params.ratio], recompute=recompute, **kept)
            curves[kind][value] = lag_curves(found.rows)
    return Result(params, base, curves["guidance"], curves["steps"])


@dataclass(frozen=True)
class Result:
    """What was found.

    Attributes:
        params: the parameters.
        drift: distances at the parameters' own guidance and steps.
        guided, counted: mean distance of steps k apart, ``[images, T - 1]``, by guidance scale and by number of steps.
    """

    params: Parameters
    drift: Drift
    guided: dict[str, np.ndarray]
    counted: dict[str, np.ndarray]

    @property
    def amount(self) -> str:
        """The name of the fixed share."""
        return amount_name(ratio=self.params.ratio)

    @property
    def staleness(self) -> np.ndarray:
        """Mean distances ``[T, T]`` at the fixed share."""
        return self.drift.staleness(self.amount)

    def by_amount(self) -> dict[str, float]:
        """The mean distance of neighbouring steps, by the amount of merging."""
        return {
            name: float(np.stack(part["neighbour"].to_numpy()).astype(float).mean())
            for name, part in self.drift.rows.groupby("amount", sort=False)
        }

    def by_lag(self, lags=(1, 2, 5, 10, 25)) -> dict[int, float]:
        """The mean distance of steps so far apart, at the fixed share."""
        return {lag: float(np.diagonal(self.staleness, lag).mean()) for lag in lags if lag < self.drift.steps}

    def paid(self, schedule) -> np.ndarray:
        """The staleness ``[T]`` that a schedule of checkpoints pays at each step."""
        matrix = self.staleness
        bill = np.zeros(self.drift.steps)
        last = 0
        for step in range(self.drift.steps):
            last = step if step in schedule else last
            bill[step] = matrix[last, step]
        return bill

    def bills(self) -> dict[str, np.ndarray]:
        """What the paper's schedules pay, and pairs that are found once."""
        return {name: self.paid(steps) for name, steps in {**SCHEDULES, "step 0 only": (0,)}.items()}

    def least_stale(self, like: str = "CONFIG_3") -> tuple[int, ...]:
        """The schedule that pays least with as many checkpoints as a named one has."""
        return derive(self.staleness, sum(step < self.drift.steps for step in SCHEDULES[like]))
