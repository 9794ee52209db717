"""Four steps: every method over its own knob on a model that was distilled to so few, a latent consistency
model.

``python -m catome.study distilled --timed`` records it; chapter 9 shows it. Its images have a seed by which
no setting was chosen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from catome import tiny
from catome.policy.schedule import parse_schedule
from catome.study.measure import quality
from catome.study.measure.drift import Drift, drift_study, lag_curves
from catome.study.measure.turns import turns_on
from catome.study.run.generate import with_sampler
from catome.study.run.parameters import (
    LCM,
    AnySampler,
    Count,
    FewSteps,
    Number,
    Setting,
    Share,
    Text,
    parameters,
)
from catome.study.studies import curves
from catome.study.studies.drift import common_share
from catome.study.studies.jobs import Job, of_drift

NOTEBOOK = None

check = curves.check

GUIDANCE = 1.0
"""None: a distilled model has the guidance of its teacher in its weights."""

KINDS = ("CA-ToMe", "merged keys")
"""The methods whose place on the frontier `words` tells: the paper's, and the library's."""

SKIPPING = ("forecast", "forecast (equal gaps)", "DeepCache", "fewer steps")
"""The kinds that leave out calls of the model, or parts of them."""


@parameters
class Parameters(curves.Parameters):
    """The parameters of this study: those of `catome.study.studies.curves`, for a distilled model.

    Attributes:
        model: "tiny-lcm" (the embedded one), or a diffusers folder of Stable Diffusion with such a LoRA in
            its weights.
        guidance: 1 for a model that has its teacher's guidance in its weights.
        ratio: the fixed share whose pairs are watched.
        drift_images: whose pairs are watched, unmerged.
    """

    model: Text = "tiny-lcm"
    steps: FewSteps = 4
    guidance: Number = GUIDANCE
    images: Count = 48
    sampler: AnySampler = LCM
    ratio: Share = 0.5
    drift_images: Count = 24

    @property
    def watched(self) -> Setting:
        """The images whose pairs are watched."""
        return self.common(images=self.drift_images)


def jobs(params: Parameters) -> Iterator[Job]:
    """All generations."""
    yield from curves.jobs(params)
    calls = None if params.sampler is None else params.steps
    yield of_drift(2, params.watched, calls)


def run(params: Parameters, pipe, **kept) -> Result:
    """Generate by every setting of every method, and watch the pairs of unmerged generations.

    Args:
        params: which.
        pipe: an unpatched pipeline with a distilled model.
        kept: ``folder`` and ``recorded`` as in `catome.study.compare`.
    """
    turned = curves.run(params, pipe, **kept)
    with with_sampler(pipe, params.sampler):
        drift = drift_study(pipe, params.watched, ratios=[params.ratio], recompute=params.recompute, **kept)
    return Result(params, turned, drift)


def timed(result: Result, pipe, **kept) -> pd.DataFrame:
    """Rows of `catome.study.measure.turns.TURNS`, as by `catome.study.studies.curves.timed`."""
    return curves.timed(result.curves, pipe, **kept)


def of_card(params: Parameters) -> str:
    """Say how good the images of the embedded distilled model are, by its card; nothing of other models, or
    of other numbers of steps than the card has."""
    if params.model != "tiny-lcm":
        return ""
    figures = json.loads((tiny.find_lcm() / "figures.json").read_text())
    few = str(params.steps)
    if few not in figures["lcm"]:
        return ""
    own, plain = figures["lcm"][few], figures["dpm"][few]
    return (
        f"Of its samples in {few} steps, a classifier names {own['named_correctly']:.1%} as asked for, and "
        f"their scene FID is {own['scene_fid']:.1f}. The embedded model has {plain['named_correctly']:.1%} "
        f"and {plain['scene_fid']:.1f} in as many steps of DPM++, with guidance."
    )


def no_words() -> dict[str, str]:
    """`Result.words` where there is no distilled model."""
    names = ("made", "clock", "searches", "skipping", "papers", "own", "drift", "card", "summary")
    words = dict.fromkeys((f"distilled_{name}" for name in names), "")
    none = "No distilled model was given, so this is not measured."
    return words | {"distilled_made": none, "distilled_summary": none}


@dataclass(frozen=True)
class Result:
    """The results of this study.

    Attributes:
        params: the parameters.
        curves: every method over its own knob.
        drift: how far the pairs of unmerged generations drift.
    """

    params: Parameters
    curves: curves.Result
    drift: Drift

    def neighbours(self) -> np.ndarray:
        """The mean distance of the pairs of neighbouring calls, ``[images]``."""
        return lag_curves(self.drift.rows)[:, 0]

    def words(self, clock: pd.DataFrame) -> dict[str, str]:
        """The numbers that the chapter's text takes up, by their names there, with _ for -.

        Args:
            clock: rows of `timed`.
        """
        records = self.curves.records(clock)
        near = quality.mean_interval(self.neighbours())
        papers, own = (self.curves.place_of(records, kind) for kind in KINDS)
        best = self.curves.best(records, "best in time")
        return {
            "distilled_made": (
                f"Here every method generates {self.params.images} images in {self.params.steps} steps of "
                f"it, in {len(records)} settings as above:"
            ),
            "distilled_clock": turns_on(clock),
            "distilled_card": of_card(self.params),
            "distilled_summary": (
                f"In {self.params.steps} steps of it, {common_share(near[0]):.0%} of the pairs are common to "
                f"neighbouring calls. Unbeaten in time are: {best}. {papers} {own}"
            ),
            "distilled_searches": (
                f"Fitted to {self.params.steps} calls, CONFIG_3 finds pairs at "
                f"{len(parse_schedule('CONFIG_3').at(self.params.steps))} of them."
            ),
            "distilled_skipping": self.skipping(records),
            "distilled_papers": papers,
            "distilled_own": own,
            "distilled_drift": (
                f"The pairs of its neighbouring calls have a mean distance of {quality.bracketed(near)} over "
                f"{self.params.drift_images} images. So {common_share(near[0]):.0%} of the pairs are common "
                "to both calls."
            ),
        }

    def skipping(self, records: pd.DataFrame) -> str:
        """Say how close methods stay that leave out calls of the model, or parts of them; ``records`` of
        ``curves``."""
        found = []
        for kind in SKIPPING:
            psnr = records.loc[records["kind"] == kind, "PSNR"]
            if len(psnr) > 1:
                found.append(f"{psnr.min():.1f} to {psnr.max():.1f} dB ({kind})")
            elif len(psnr):
                found.append(f"{psnr.iloc[0]:.1f} dB ({kind})")
        if not found:
            return "No method was tried that leaves out calls of the model, or parts of them."
        return (
            "By methods that leave out calls of the model, or parts of them, the mean PSNR is "
            f"{quality.listed(found)}."
        )

    def report(self) -> str:
        """PSNR of every setting, and the drift; the times are in the records of ``curves``."""
        near = quality.bracketed(quality.mean_interval(self.neighbours()))
        return f"{self.curves.report()}\ndistance of the pairs of neighbouring calls: {near}"
