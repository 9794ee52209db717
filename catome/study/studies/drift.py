"""Chapter 4: how fast the pairs drift, at several amounts of merging, guidance scales and numbers of
steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from catome.policy.schedule import SCHEDULES, derive, parse_schedule
from catome.study.measure import quality
from catome.study.measure.drift import Drift, amount_name, drift_study, lag_curves
from catome.study.run.parameters import (
    Cosines,
    Count,
    Flag,
    Guidances,
    OtherStepCounts,
    Setting,
    Share,
    parameters,
)
from catome.study.studies.jobs import Job, of_drift
from catome.study.studies.schedules import BASE

NOTEBOOK = "04_pair_drift"

EFFECT = 0.01
"""The difference of two mean Jaccard distances for which `Result.needed` counts images."""


@parameters
class Parameters(Setting):
    """The parameters of this study: what is merged, and what else is varied.

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
    step_counts: OtherStepCounts = (20, 100)
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
        "guidance": {
            f"{scale:g}": replace(few, guidance=scale)
            for scale in sorted({*params.guidances, params.guidance})
        },
        "steps": {
            str(count): replace(few, steps=count) for count in sorted({*params.step_counts, params.steps})
        },
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
    """The results of this study.

    Attributes:
        params: the parameters.
        drift: distances at the parameters' own guidance and steps.
        guided, counted: mean distance of steps k apart, ``[images, T - 1]``, by guidance scale and by number
            of steps.
    """

    params: Parameters
    drift: Drift
    guided: dict[str, np.ndarray]
    counted: dict[str, np.ndarray]

    @property
    def amount(self) -> str:
        """The name of the fixed share."""
        return amount_name(ratio=self.params.ratio)

    @cached_property
    def staleness(self) -> np.ndarray:
        """Mean distances ``[T, T]`` at the fixed share."""
        return self.drift.staleness(self.amount)

    def _at(self, amount: str) -> pd.DataFrame:
        return self.drift.rows[self.drift.rows["amount"] == amount]

    def neighbours(self) -> np.ndarray:
        """The distance ``[T - 1]`` of each step's pairs from the next's at the fixed share, mean over images
        and blocks."""
        return np.stack(self._at(self.amount)["neighbour"].to_numpy()).astype(float).mean(0)

    def by_amount(self) -> dict[str, tuple[float, float, float]]:
        """The mean distance of neighbouring steps with its 95 % interval over images, by the amount of
        merging: ``(mean, low, high)``."""
        return {
            name: quality.mean_interval(_neighbours_of(part))
            for name, part in self.drift.rows.groupby("amount", sort=False)
        }

    def content(self) -> str:
        """Say in sentences how far the mean distance of neighbouring steps varies with the class, how far
        with the amount of merging, and with which of them more. Nothing is said of a single class, or of
        classes of one image."""
        of_class = self._at(self.amount).groupby("class")
        by_class = {name: float(_neighbours_of(part).mean()) for name, part in of_class}
        by_amount = {name: mean for name, (mean, _, _) in self.by_amount().items()}

        def ends(found: dict[str, float]) -> str:
            low, high = min(found, key=found.get), max(found, key=found.get)
            return f"between {found[low]:.3f} ({low}) and {found[high]:.3f} ({high})"

        if len(by_class) == 1 or of_class["image"].nunique().max() == 1:
            return f"Depending on the amount, the mean distance of neighbouring steps lies {ends(by_amount)}."
        ranges = {"class": np.ptp(list(by_class.values())), "amount": np.ptp(list(by_amount.values()))}
        less, more = sorted(ranges, key=ranges.get)
        verdict = ""
        if ranges[more] > ranges[less]:
            verdict = f" So among these classes and amounts, the range is wider with the {more}."
        return (
            f"At {self.amount} the mean distance of neighbouring steps lies {ends(by_class)}, depending on "
            f"the class. Depending on the amount, it lies {ends(by_amount)}.{verdict}"
        )

    def needed(self) -> str:
        """Say how well the mean distance of neighbouring steps at the fixed share is known, and how many
        images the comparisons of settings need."""
        near = _neighbours_of(self._at(self.amount))
        if len(near) < 2:
            return "Of a single image, nobody can say how well a mean distance is known."
        error = near.std(ddof=1) / np.sqrt(len(near))
        known = (
            f"Over these {len(near):,} images, the mean distance of neighbouring steps at {self.amount} has "
            f"a standard error of {error:.4f}."
        )
        compared = [*self._guided().values(), *self._counted().values()]
        needed = [images for one in compared if (images := quality.images_needed(one, EFFECT))]
        if not needed:
            return known
        return (
            f"{known} Other settings are compared over {len(compared[0])} images. To find a difference of "
            f"{EFFECT:g} in four studies out of five, these comparisons need "
            f"{_span(min(needed), max(needed), ',')} images."
        )

    def _guided(self) -> dict[str, np.ndarray]:
        """The distance of neighbouring steps at each guidance scale minus that at the lowest, by image."""
        scales = list(self.guided)
        return {scale: self.guided[scale][:, 0] - self.guided[scales[0]][:, 0] for scale in scales[1:]}

    def guidance_told(self) -> str:
        """Say what the highest guidance scale changes in the distance of neighbouring steps against the
        lowest, paired over images."""
        if len(self.guided) < 2:
            return "A single guidance scale was watched here."
        lowest, *_, highest = self.guided
        low, high = (self.guided[scale][:, 0].mean() for scale in (lowest, highest))
        found = quality.mean_interval(self._guided()[highest])
        verdict = quality.verdict(*found[1:], "faster", "more slowly")
        effect = f"Stronger guidance makes the pairs drift {verdict}."
        if verdict == quality.UNTOLD:
            effect = "No effect of guidance is detectable."
        return (
            f"From a guidance scale of {lowest} to one of {highest}, the distance of neighbouring steps goes "
            f"from {low:.3f} to {high:.3f}, a change of {quality.spoken(found, 3)}. {effect}"
        )

    def _counted(self) -> dict[str, np.ndarray]:
        """The distance of pairs a quarter of the generation apart in each other number of steps minus that in
        the base one, by image."""
        own = str(self.params.steps)
        return {
            count: at_quarter(curves) - at_quarter(self.counted[own])
            for count, curves in self.counted.items()
            if count != own
        }

    def steps_told(self) -> str:
        """Say what the number of steps changes in the distance of pairs a quarter of the generation apart,
        paired over images; all numbers of steps are tested at once."""
        counted = self._counted()
        changes = {count: quality.mean_interval(values) for count, values in counted.items()}
        if not changes:
            return "A single number of steps was watched here."
        distances = [
            f"{at_quarter(curves).mean():.3f} in {count} steps" for count, curves in self.counted.items()
        ]
        against = [f"{quality.spoken(found, 3)} in {count} steps" for count, found in changes.items()]
        stays = quality.holm([quality.mean_chance(values) for values in counted.values()])
        differ = [
            f"{count} steps"
            for (count, (_, low, high)), stay in zip(changes.items(), stays, strict=True)
            if stay and quality.verdict(low, high) != quality.UNTOLD
        ]
        together = " (all tested at once, by Holm's method)" if len(changes) > 1 else ""
        verdict = (
            f"So over the same share of the generation, pairs drift differently in {quality.listed(differ)}"
            f"{together}."
            if differ
            else f"No difference over the same share of the generation is detectable{together}."
        )
        return (
            "A quarter of the generation apart, the pairs have a distance of "
            f"{quality.listed(distances)}. Compared with {self.params.steps} steps, the change is "
            f"{quality.listed(against)}. {verdict}"
        )

    def short(self) -> str:
        """Say how far apart neighbouring steps are in the shortest generation that was watched, and in the
        base one."""
        fewest, own = min(self.counted, key=int, default=None), str(self.params.steps)
        if fewest is None or int(fewest) >= self.params.steps:
            return "No shorter generation was watched here."
        found = {count: quality.mean_interval(self.counted[count][:, 0]) for count in (fewest, own)}
        distances = {count: quality.bracketed(ends, 3) for count, ends in found.items()}
        common = {count: f"{common_share(mean):.0%}" for count, (mean, _, _) in found.items()}
        return (
            f"In {fewest} steps of PLMS, neighbouring steps have a mean distance of {distances[fewest]}, in "
            f"{own} steps one of {distances[own]}. Such distances leave {common[fewest]} and {common[own]} "
            "of the pairs in common."
        )

    def ages(self) -> pd.DataFrame:
        """The mean distance of steps so far apart, at the fixed share, as a table to be read: one row."""
        return pd.DataFrame(self.drift.ages(self.amount), index=["Jaccard distance"])

    def curves_by_class(self, most: int = 12) -> dict[str, np.ndarray]:
        """The mean distance of steps k apart, ``[images, T - 1]``, at the fixed share by class, from the
        slowest drift to the fastest. Where there are more classes than ``most``, the four slowest and the
        four fastest."""
        curves = {name: lag_curves(part) for name, part in self._at(self.amount).groupby("class")}
        order = sorted(curves, key=lambda name: curves[name].mean())
        return {name: curves[name] for name in (order if len(order) <= most else [*order[:4], *order[-4:]])}

    def curves_by_amount(self) -> dict[str, np.ndarray]:
        """The mean distance of steps k apart, ``[images, T - 1]``, by the amount of merging."""
        return {name: lag_curves(part) for name, part in self.drift.rows.groupby("amount", sort=False)}

    def schedules(self) -> dict[str, tuple[int, ...]]:
        """The paper's schedules, fitted to the generation's length, and pairs that are found once."""
        return {
            **{name: parse_schedule(name).at(self.drift.steps) for name in SCHEDULES},
            "step 0 only": (0,),
        }

    def paid(self, schedule) -> np.ndarray:
        """The staleness ``[T]`` that a schedule of checkpoints pays at each step."""
        steps = np.arange(self.drift.steps)
        last = np.maximum.accumulate(np.where(np.isin(steps, schedule), steps, 0))
        return self.staleness[last, steps]

    def bills(self) -> dict[str, np.ndarray]:
        """The staleness ``[T]`` that each of `schedules` pays at each step."""
        return {name: self.paid(steps) for name, steps in self.schedules().items()}

    def least_stale(self, like: str = BASE) -> tuple[int, ...]:
        """The schedule that pays least with as many checkpoints as a named one has."""
        return derive(self.staleness, sum(step < self.drift.steps for step in self.schedules()[like]))

    def farthest(self) -> str:
        """Say in a sentence which neighbouring steps differ most at the fixed share."""
        curve = self.neighbours()
        at = len(curve) - 1 if curve[-1] == curve.max() else int(curve.argmax())
        if curve[at] == 0:
            return "All steps merge the same pairs."
        leaves = f"a distance of {curve[at]:.2f} leaves {common_share(curve[at]):.0%} of the pairs in common."
        if at == len(curve) - 1:
            return f"The last two steps differ most: {leaves}"
        return (
            f"Steps {at} and {at + 1} differ most: {leaves} Between the last two steps it is {curve[-1]:.2f}."
        )

    def half_life(self) -> str:
        """Say in a sentence at which age fewer than half of the pairs are still right for the first time, at
        the fixed share, mean over images, blocks and the steps at which they were found."""
        common = common_share(lag_curves(self._at(self.amount)).mean(0))
        old = np.flatnonzero(common < 0.5)
        if not len(old):
            return "Half of them or more are still right at any age."
        age = int(old[0]) + 1
        return f"When they are {age} step{'s' * (age > 1)} old, fewer than half of them are still right."

    def second_timestep(self) -> str:
        """Say in a sentence how far apart the two calls of PLMS at its second timestep are; empty if no step
        follows them."""
        if self.params.steps < 3:
            return ""
        before, within, after = self.neighbours()[:3]
        return (
            "PLMS calls the U-Net twice at its second timestep, as steps 1 and 2. Their distance is "
            f"{within:.2f}, compared with {before:.2f} from step 0 to 1 and {after:.2f} from step 2 to 3."
        )

    def words(self) -> dict[str, str]:
        """The numbers that the chapter's text takes up, by their names there, with _ for -."""
        rows = self.drift.rows
        curve = self.neighbours()
        quarter = len(curve) // 4
        middle = curve[quarter : len(curve) - quarter]
        means = {name: bill.mean() for name, bill in self.bills().items()}
        freshest, least = min(SCHEDULES, key=means.get), self.least_stale()
        by_amount = self.by_amount()
        return {
            "images": f"{rows['image'].nunique():,}",
            "calls": str(self.drift.steps),
            "blocks": str(len(self.drift.blocks)),
            "amounts": ", ".join(by_amount),
            "rows": f"{len(rows):,}",
            "amount": self.amount,
            "middle": _span(middle.min(), middle.max(), ".2f"),
            "middle_common": _span(common_share(middle.max()), common_share(middle.min()), ".0%"),
            "farthest": self.farthest(),
            "half_life": self.half_life(),
            "second_timestep": self.second_timestep(),
            "by_amount": ", ".join(
                f"{quality.bracketed(ends, 3)} at {name}" for name, ends in by_amount.items()
            ),
            "needed": self.needed(),
            "content": self.content(),
            "guidance": self.guidance_told(),
            "steps": self.steps_told(),
            "short": self.short(),
            "paid_base": f"{means[BASE]:.2f}",
            "freshest": freshest,
            "paid_freshest": f"{means[freshest]:.2f}",
            "least_stale": ", ".join(map(str, least)),
            "paid_least": f"{self.paid(least).mean():.2f}",
        }


def _neighbours_of(rows: pd.DataFrame) -> np.ndarray:
    """The distance of neighbouring steps of each image, mean over steps and blocks: ``[images]``."""
    curves = rows.groupby("image")["neighbour"]
    return np.array([np.stack(one.to_numpy()).astype(float).mean() for _, one in curves])


def at_quarter(curves: np.ndarray) -> np.ndarray:
    """The distance of pairs a quarter of the generation apart, by image, of `lag_curves`: ``[images]``.

    Where a quarter is no whole number of steps, it lies between those of the two nearest; a single step is
    the least."""
    shares = np.arange(1, curves.shape[1] + 1) / curves.shape[1]
    return np.array([np.interp(0.25, shares, curve) for curve in curves])


def common_share(distance: float | np.ndarray) -> float | np.ndarray:
    """The share of each step's pairs that two steps with equally many have in common at a Jaccard
    distance."""
    return 2 * (1 - distance) / (2 - distance)


def _span(low: float, high: float, digits: str) -> str:
    """``0.10 to 0.14``, or one number where both look the same."""
    return " to ".join(dict.fromkeys((f"{low:{digits}}", f"{high:{digits}}")))
