"""Chapter 9: generations of few steps, as people make them, beside the paper's fifty."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Self

import numpy as np
import pandas as pd
from pydantic import model_validator

from catome.policy.schedule import parse_schedule
from catome.study import methods
from catome.study.measure import quality, real_images
from catome.study.measure.comparison import Comparison, compare, speed_ups, timed_alone
from catome.study.measure.drift import Drift, drift_study, lag_curves
from catome.study.measure.real_images import Reference
from catome.study.methods import Method
from catome.study.run.denoiser import check_has_unet as check
from catome.study.run.generate import with_sampler
from catome.study.run.parameters import (
    Cosine,
    Count,
    Factor,
    FewSteps,
    Flag,
    Folder,
    OwnSampler,
    Part,
    Sampler,
    ScheduleName,
    Setting,
    Share,
    StepCounts,
    parameters,
)
from catome.study.studies import curves, distilled
from catome.study.studies.compose import HELD_OUT
from catome.study.studies.drift import at_quarter, common_share
from catome.study.studies.jobs import Job, of_drift, of_images
from catome.study.studies.weights import closeness

NOTEBOOK = "09_short_generations"

AFRESH, CACHED = "merged keys, found at every call", "merged keys, cached"
PAPER_AFRESH, PAPER_CACHED = "CA-ToMe, found at every call", "CA-ToMe, cached"
CACHES = [(PAPER_CACHED, PAPER_AFRESH), (CACHED, AFRESH)]
"""The methods whose difference is the cost of reusing pairs: the first minus the second."""

FEWER = "fewer steps"


@parameters
class Parameters(Setting):
    """The parameters of this study: how many steps, and which methods.

    Attributes:
        step_counts: of the short generations; ``steps`` is that of the long one, which PLMS makes.
        sampler: of the short ones: "DPM++" or "Euler", as diffusers has them.
        other_sampler: by which the short ones are compared again; None, or the same as the first, for by the
            first alone.
        threshold: of CA-ToMe and of merged keys.
        ratio: ToMe's fixed share, and that whose pairs are watched.
        schedule: CA-ToMe's checkpoints; a named schedule is fitted to the number of calls.
        every: merged keys find pairs at every so many-th call, evenly spaced.
        factor: ToDo keeps every so many-th key each way.
        interval: DeepCache runs the deep part at every so many-th call.
        kept_steps: the share of its steps that a generation keeps as the simplest way to be faster.
        drift_images: whose pairs are watched, unmerged, with every number of steps.
        repetitions: timed generations of each method.
        reference: a folder of real images; None for held-out scenes (embedded model only).
        curve_images: that every method is tried on at several settings.
        curve_kinds: methods that are, by their names in `catome.study.studies.curves.kinds`; None for all.
        timed_images: of those, that they are timed on.
        distilled: a model that was distilled to few steps, for the sampler LCM: "tiny-lcm" (the embedded one,
            which is left out beside another ``model``), a folder, or a name on the Hub; None for none.
        distilled_steps: of its generations.
        distilled_images: that every method is tried on there.
        recompute: compute again what was recorded or kept.
    """

    step_counts: StepCounts = (8, 20)
    sampler: Sampler = "DPM++"
    other_sampler: OwnSampler = "Euler"
    threshold: Cosine = 0.7
    ratio: Share = 0.5
    schedule: ScheduleName = "CONFIG_3"
    every: Count = 4
    factor: Factor = 2
    interval: Count = 3
    kept_steps: Part = 0.75
    drift_images: Count = 24
    repetitions: Count = 3
    reference: Folder = None
    curve_images: Count = 24
    curve_kinds: curves.Kinds = None
    timed_images: Count = 6
    distilled: Folder = "tiny-lcm"
    distilled_steps: FewSteps = 4
    distilled_images: Count = 48
    recompute: Flag = False

    @model_validator(mode="after")
    def _can_be_distilled(self) -> Self:
        _ = self.of_distilled  # what is wrong for that model is said before anything is generated
        return self

    @property
    def second(self) -> str | None:
        """The second sampler; None where there is only one."""
        return None if self.other_sampler == self.sampler else self.other_sampler

    @property
    def settings(self) -> dict[int, Parameters]:
        """The parameters for each number of steps, from few to many."""
        return {steps: replace(self, steps=steps) for steps in sorted({*self.step_counts, self.steps})}

    @property
    def by_other_sampler(self) -> dict[int, Parameters]:
        """The parameters for each short generation that another sampler makes as well."""
        if self.second is None:
            return {}
        return {steps: setting for steps, setting in self.settings.items() if steps != self.steps}

    @property
    def watched(self) -> dict[int, Setting]:
        """The images whose pairs are watched, for each number of steps; none where there is only one call, of
        which nothing can drift."""
        return {
            steps: setting.common(images=self.drift_images)
            for steps, setting in self.settings.items()
            if self.calls_with(steps) > 1
        }

    @property
    def knobs(self) -> dict[int, curves.Parameters]:
        """The study of all methods at several settings, for each number of steps."""
        own = {"only": self.curve_kinds, "recompute": self.recompute, "timed_images": self.timed_images}
        found = {}
        for steps, setting in self.settings.items():
            sampler = None if steps == self.steps else self.sampler
            found[steps] = curves.beside(setting, self.curve_images, sampler=sampler, **own)
        return found

    @property
    def of_distilled(self) -> distilled.Parameters | None:
        """The study of the model that was distilled, timed on an image of each class; None where there is
        none for ``model``, or where no kind of method that is asked for has a setting in so few steps."""
        if self.distilled is None or (self.distilled == "tiny-lcm" and self.model != "tiny"):
            return None
        common = self.common(
            model=self.distilled,
            steps=self.distilled_steps,
            images=self.distilled_images,
            seed=HELD_OUT,
            guidance=distilled.GUIDANCE,
            guidance_rescale=0.0,
        )
        few = {"only": self.curve_kinds, "ratio": self.ratio, "drift_images": self.drift_images}
        asked = distilled.Parameters(**asdict(common), **few, recompute=self.recompute)
        return asked if asked.kinds else None

    def calls_with(self, steps: int) -> int:
        """Calls of the model in a generation: PLMS takes one more than its steps."""
        return self.calls if steps == self.steps else steps

    def paper_checkpoints(self, steps: int) -> int:
        """The number of calls at which CA-ToMe finds pairs: all where its schedule names none."""
        parsed = parse_schedule(self.schedule)
        calls = self.calls_with(steps)
        return calls if parsed is None else len(parsed.at(calls))


def sampled(pipe, params: Parameters, steps: int) -> AbstractContextManager:
    """The pipeline with the sampler of short generations, but for the long one; afterwards its own again."""
    return with_sampler(pipe, params.sampler if steps != params.steps else None)


def checkpoints_of(params: Parameters, steps: int) -> int:
    """The number of calls of a generation at which merged keys find pairs."""
    return max(1, round(params.calls_with(steps) / params.every))


def methods_of(params: Parameters, steps: int) -> dict[str, Method]:
    """The methods for a number of steps, by the names that the chapter gives them."""
    t, checkpoints = params.threshold, checkpoints_of(params, steps)
    kept = methods.kept_steps(params.kept_steps, steps)
    return {
        "unmerged": methods.unmerged(),
        f"ToMe, r = {params.ratio:g}": methods.tome(params.ratio),
        PAPER_AFRESH: methods.ca_tome(t, None),
        PAPER_CACHED: methods.ca_tome(t, params.schedule),
        AFRESH: methods.merged_keys(t, schedule=None, compare="keys"),
        CACHED: methods.merged_keys(t, schedule=f"EVEN_{checkpoints}", compare="keys"),
        f"ToDo, factor {params.factor}": methods.todo(params.factor),
        f"DeepCache, every {params.interval}": methods.deep_cache(params.interval),
        FEWER: methods.fewer_steps(kept),
    }


def jobs(params: Parameters) -> Iterator[Job]:
    """All generations."""
    asked = [*params.settings.items(), *params.by_other_sampler.items()]
    for phase, (steps, setting) in enumerate(asked, 1):
        labels = [method.label for method in methods_of(params, steps).values()]
        yield from of_images(phase, setting, labels, params.calls_with(steps))
    for phase, (steps, setting) in enumerate(params.watched.items(), len(asked) + 1):
        yield of_drift(phase, setting, params.calls_with(steps))


def run(params: Parameters, pipe, **kept) -> Result:
    """Generate by all methods with each number of steps.

    Args:
        params: which.
        pipe: an unpatched pipeline.
        kept: ``folder`` and ``recorded`` as in `catome.study.compare`.
    """
    check(params, pipe)
    real = real_images.beside(pipe, params, params.reference)
    by_steps = {steps: methods_of(params, steps) for steps in params.settings}

    def compared(steps: int, setting: Parameters) -> Comparison:
        ways = list(by_steps[steps].values())
        return compare(pipe, setting, ways, real, recompute=params.recompute, **kept)

    made, other = {}, {}
    for steps, setting in params.settings.items():
        with sampled(pipe, params, steps):
            made[steps] = compared(steps, setting)
    with with_sampler(pipe, params.second):
        for steps, setting in params.by_other_sampler.items():
            other[steps] = compared(steps, setting)
    watched = {}
    for steps, setting in params.watched.items():
        with sampled(pipe, params, steps):
            watched[steps] = drift_study(
                pipe, setting, ratios=[params.ratio], recompute=params.recompute, **kept
            )
    return Result(params, real, by_steps, made, other, watched)


def timed(result: Result, pipe, **kept) -> dict[int, pd.DataFrame]:
    """Rows of `catome.study.measure.comparison.COST` for each number of steps: every method, one image at a
    time, in turns."""
    found = {}
    for steps, setting in result.params.settings.items():
        with sampled(pipe, result.params, steps):
            found[steps] = timed_alone(pipe, setting, list(result.methods[steps].values()), **kept)
    return found


@dataclass(frozen=True)
class Result:
    """The results of this study.

    Attributes:
        params: the parameters.
        real: the real images that rows are kept with.
        methods: for each number of steps, the methods by name.
        made: for each number of steps, the rows.
        other: the same of the short generations by the other sampler.
        watched: for each number of steps, how far the pairs drift.
    """

    params: Parameters
    real: Reference
    methods: dict[int, dict[str, Method]]
    made: dict[int, Comparison]
    other: dict[int, Comparison] = field(default_factory=dict)
    watched: dict[int, Drift] = field(default_factory=dict)

    def records(self, clocks: dict[int, pd.DataFrame]) -> pd.DataFrame:
        """One row for each number of steps and method: ``steps``, ``method``, ``family``, ``PSNR`` with its
        95 % interval (dB), ``poor`` (the share of images below `catome.study.measure.quality.POOR_DB`),
        ``scores left`` (NaN where all are) and ``speed-up`` with its 95 % interval over the turns, as by
        `catome.study.measure.comparison.speed_ups`."""
        rows = []
        for steps, named in self.methods.items():
            faster = speed_ups(clocks[steps])
            for name, method in named.items():
                row = {"steps": steps, "method": name, "family": method.family}
                row |= closeness(self.made[steps], method, self.params.factor)
                rows.append(row | dict(faster.loc[method.label]))
        return pd.DataFrame(rows)

    def gain(self, steps: int, a: str, b: str) -> tuple[float, float, float]:
        """PSNR of one method minus another's on the same seeds, in dB, with its 95 % interval."""
        return self.made[steps].paired("psnr", self.methods[steps][a], self.methods[steps][b])

    def differences(self, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], np.ndarray]:
        """PSNR of methods against each other for each number of steps, seed by seed, in dB."""
        found = {}
        for steps, named in self.methods.items():
            for a, b in pairs:
                found[f"{steps} steps", f"{a} - {b}"] = self.made[steps].differences(
                    "psnr", named[a], named[b]
                )
        return found

    def sampler_of(self, steps: int) -> str:
        """The sampler of a number of steps, as it is named in tables."""
        return "PLMS" if steps == self.params.steps else self.params.sampler

    def drift_curves(self) -> dict[str, np.ndarray]:
        """The mean distance of calls k apart, ``[images, T - 1]``, by the number of steps and their
        sampler."""
        return {
            f"{steps} ({self.sampler_of(steps)})": lag_curves(found.rows)
            for steps, found in self.watched.items()
        }

    def stride(self) -> dict[str, float]:
        """The share of the generation that lies between two neighbouring calls, by the names of
        `drift_curves`."""
        return {name: 1 / by_lag.shape[1] for name, by_lag in self.drift_curves().items()}

    def drift(self) -> pd.DataFrame:
        """The drift of pairs in each number of steps, with 95 % intervals over images, to be read: between
        neighbouring calls, with the share of pairs that such calls have in common; until merged keys look for
        new ones; and over a quarter of the generation."""
        oldest = self.params.every - 1
        rows = {}
        for name, by_lag in self.drift_curves().items():
            near = quality.mean_interval(by_lag[:, 0])
            row = {"neighbouring calls": quality.bracketed(near)}
            row["pairs in common"] = f"{common_share(near[0]):.0%}"
            if oldest > 1:
                old = by_lag[:, oldest - 1 : oldest]  # empty in a generation of fewer calls
                row[f"{oldest} calls apart"] = (
                    quality.bracketed(quality.mean_interval(old[:, 0])) if old.size else ""
                )
            quarter = quality.mean_interval(at_quarter(by_lag))
            row["a quarter of the generation apart"] = quality.bracketed(quarter)
            rows[name.replace(" (", " steps (")] = row
        return pd.DataFrame(rows).T

    def drift_told(self) -> str:
        """Say how far the pairs of neighbouring calls, and those a quarter of the generation apart, differ in
        the shortest and in the longest generation, paired over images."""
        if len(self.watched) < 2:
            return "Pairs of a single number of steps were watched here."
        by_lag = {steps: lag_curves(found.rows) for steps, found in self.watched.items()}
        near = {steps: curve[:, 0] for steps, curve in by_lag.items()}
        few, many = min(near), max(near)
        _, low, high = change = quality.mean_interval(near[few] - near[many])
        far = {steps: at_quarter(by_lag[steps]) for steps in (few, many)}
        over = quality.mean_interval(far[few] - far[many])
        short, long = (f"in {steps} steps of {self.sampler_of(steps)}" for steps in (few, many))
        verdict = quality.verdict(low, high, "differ more", "differ less")
        said = f"The pairs of neighbouring calls {verdict} {short} than {long}."
        if verdict == quality.UNTOLD:
            said = f"Whether the pairs of neighbouring calls differ more {short} or {long} is not decided."
        return (
            f"{said} Their mean distance is {near[few].mean():.2f} in {few} steps and "
            f"{near[many].mean():.2f} in {many}. The difference is {quality.spoken(change, 2)} over "
            f"{len(near[few])} images. A quarter of the generation apart, the distance is "
            f"{far[few].mean():.2f} and {far[many].mean():.2f}, a difference of {quality.spoken(over, 2)}."
        )

    @property
    def _classes(self) -> Sequence[str]:
        """The class of each image."""
        return self.made[min(self.made)].classes

    def cost_of_a_cache(self) -> pd.DataFrame:
        """The cost of reusing pairs, for the paper's method and for merged keys, to be read."""
        return quality.difference_table(self.differences(CACHES), classes=self._classes)

    def _others(self) -> list[tuple[str, str]]:
        todo, deep = f"ToDo, factor {self.params.factor}", f"DeepCache, every {self.params.interval}"
        return [(CACHED, other) for other in (PAPER_CACHED, todo, deep, FEWER)]

    def against_others(self) -> pd.DataFrame:
        """Merged keys with a cache against the others, to be read."""
        return quality.difference_table(self.differences(self._others()), classes=self._classes)

    def _by(self, made: Mapping[int, Comparison]) -> dict[tuple[str, str], np.ndarray]:
        """PSNR of merged keys with a cache minus that of the others in the short generations of one sampler,
        seed by seed, in dB."""
        found = {}
        for steps in self.other:
            named = self.methods[steps]
            for a, b in [(CACHED, AFRESH), *self._others()]:
                found[f"{steps} steps", f"{a} - {b}"] = made[steps].differences("psnr", named[a], named[b])
        return found

    def by_sampler(self) -> pd.DataFrame:
        """Merged keys with a cache minus the others by each sampler, and how far the two samplers are apart,
        seed by seed; to be read. Empty where there is one sampler."""
        first, second = self.params.sampler, self.params.second
        if second is None:
            return pd.DataFrame()
        one, two = self._by(self.made), self._by(self.other)
        shown = {}
        for sampler, found in ((first, one), (second, two)):
            shown[f"{sampler} (dB)"] = quality.difference_table(found)["difference (dB)"]
        apart = {name: two[name] - one[name] for name in one}
        column = f"{second} minus {first} (dB)"
        changes = quality.difference_table(apart, column, self._classes, better="more", worse="less")
        return pd.DataFrame(shown).join(changes)

    def samplers(self) -> str:
        """Say what the other sampler changes in the verdicts on merged keys with a cache."""
        first, second = self.params.sampler, self.params.second
        if second is None:
            return f"No other sampler than {first} was tried here."
        one = quality.difference_table(self._by(self.made))["after Holm"]
        two = quality.difference_table(self._by(self.other))["after Holm"]
        both_told = (one != quality.UNTOLD) & (two != quality.UNTOLD)
        opposite = int((both_told & (one != two)).sum())
        moved = int((self.by_sampler()["after Holm"] != quality.UNTOLD).sum())
        turned = (
            f"In {opposite} of them both samplers detect a difference, with opposite signs."
            if opposite
            else "In none of them do both samplers detect a difference, with opposite signs."
        )
        return (
            f"{first} and {second} give the same verdict in {int((one == two).sum())} of {len(one)} "
            "differences. Those that neither tells apart count, too, and all of one sampler are tested at "
            f"once. {turned} The size of the difference changes detectably with the sampler in "
            f"{moved or 'none'} of them."
        )

    def words(self) -> dict[str, str]:
        """The numbers that the chapter's text takes up, by their names there, with _ for -."""
        few, many = min(self.methods), max(self.methods)
        papers = {steps: self.params.paper_checkpoints(steps) for steps in (few, many)}
        words = {"images": str(self.made[few].rows["image"].nunique()), "sampler": self.params.sampler}
        words |= {"other_sampler": self.params.second or "a second sampler"}
        words |= {"needed": quality.power_words(self.differences([*CACHES, *self._others()]).values())}
        words |= {"few": str(few), "many": str(many), "schedule": str(self.params.schedule)}
        words |= {"drift": self.drift_told(), "drift_images": str(self.params.drift_images)}
        words |= {"watched_ratio": f"{self.params.ratio:g}"}
        words |= {"reused_paper_few": str(self.params.calls_with(few) - papers[few])}
        for place, steps in (("few", few), ("many", many)):
            words[f"cache_{place}"] = quality.spoken(self.gain(steps, CACHED, AFRESH))
            words[f"cache_paper_{place}"] = quality.spoken(self.gain(steps, PAPER_CACHED, PAPER_AFRESH))
            words[f"paper_{place}"] = quality.spoken(self.gain(steps, CACHED, PAPER_CACHED))
            words[f"fewer_{place}"] = quality.spoken(self.gain(steps, CACHED, FEWER))
            words[f"todo_{place}"] = quality.spoken(
                self.gain(steps, CACHED, f"ToDo, factor {self.params.factor}")
            )
            words[f"checkpoints_{place}"] = str(checkpoints_of(self.params, steps))
            words[f"checkpoints_paper_{place}"] = str(papers[steps])
        return words

    def works(self) -> str:
        """Say in a sentence whether merged keys with a cache are closer than leaving out steps, in the
        shortest generation."""
        few = min(self.methods)
        _, low, high = self.gain(few, CACHED, FEWER)
        kept = methods.kept_steps(self.params.kept_steps, few)
        ours = f"In {few} steps, images by merged keys with a cache are"
        rival = f"the unmerged ones than images of {kept} unmerged steps are"
        if low > 0:
            return f"{ours} closer to {rival}."
        if high < 0:
            return f"{ours} farther from {rival}."
        return f"{ours} neither detectably closer to nor farther from {rival}."

    def lasting(self) -> str:
        """Say in a sentence what the intervals tell of reusing pairs in the shortest generation."""
        few = min(self.methods)
        _, low, high = self.gain(few, CACHED, AFRESH)
        if high < 0:
            return f"In {few} steps, reusing the pairs of merged keys costs at least {-high:.1f} dB."
        if low > 0:
            return f"In {few} steps reusing pairs even brings the images closer."
        costs = f"In {few} steps, reusing the pairs of merged keys costs at most {max(0.0, -low):.1f} dB"
        return f"{costs}, and no cost is detectable."
