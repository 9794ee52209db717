"""Chapter 3: the threshold sweep, and fixed shares that merge as much as some of the thresholds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from catome.study import methods, paper
from catome.study.measure import quality, real_images
from catome.study.measure.comparison import Comparison, compare, speed_ups, timed_alone
from catome.study.measure.real_images import Reference
from catome.study.methods import Method
from catome.study.run.parameters import Cosines, Count, Flag, Folder, Setting, parameters
from catome.study.studies.jobs import Job, of_images

NOTEBOOK = "03_threshold_sweep"


@parameters
class Parameters(Setting):
    """Which thresholds.

    Attributes:
        thresholds: the paper's, cosines.
        finer: between them, where the embedded model's similarities lie.
        compared: thresholds to set against a fixed share that merges as much.
        shown: thresholds to show images of.
        repetitions: timed generations of each threshold.
        reference: a folder of real images; None for held-out scenes (embedded model only).
        recompute: compute again what was recorded or kept.
    """

    thresholds: Cosines = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    finer: Cosines = (0.85, 0.95, 0.975)
    compared: Cosines = (0.8, 0.9)
    shown: Cosines = (0.7, 0.8, 0.9, 0.95)
    repetitions: Count = 5
    reference: Folder = None
    recompute: Flag = False


def sweep_of(params: Parameters) -> dict[float, Method]:
    """The method of each threshold, pairs found afresh at every step."""
    return {t: methods.ca_tome(t, None) for t in sorted({*params.thresholds, *params.finer})}


def jobs(params: Parameters) -> Iterator[Job]:
    """All generations; the fixed shares are known only when the thresholds have run."""
    sweep = sweep_of(params)
    yield from of_images(1, params, [method.label for method in sweep.values()])
    twins = [f"ToMe, as much as t = {t:g} merges" for t in dict.fromkeys(params.compared) if t in sweep]
    if twins:
        yield from of_images(2, params, twins)


def run(params: Parameters, pipe, **kept) -> Result:
    """Generate by every threshold, then by fixed shares.

    Args:
        params: which.
        pipe: an unpatched pipeline.
        kept: ``folder`` and ``recorded`` as in `catome.study.compare`.
    """
    real = real_images.beside(pipe, params, params.reference)
    sweep = sweep_of(params)
    made = compare(pipe, params, [methods.unmerged(), *sweep.values()], real, recompute=params.recompute, **kept)
    shares = made.summary()["share"]
    twins = {t: methods.tome(round(float(shares[sweep[t].label]), 3)) for t in params.compared if t in sweep}
    distinct = list({method.label: method for method in twins.values()}.values())
    fixed = compare(pipe, params, distinct, real, recompute=params.recompute, **kept)
    both = compare(pipe, params, [*(sweep[t] for t in dict.fromkeys(twins)), *distinct], real, **kept)
    return Result(params, real, sweep, twins, made, fixed, both)


def timed(result: Result, pipe, **kept) -> pd.DataFrame:
    """Rows of `catome.study.measure.comparison.COST`: every threshold, one image at a time, in turns."""
    return timed_alone(pipe, result.params, [methods.unmerged(), *result.sweep.values()], **kept)


@dataclass(frozen=True)
class Result:
    """What was found.

    Attributes:
        params: the parameters.
        real: the real images that FID compares with.
        sweep: the method of each threshold.
        twins: the fixed share that merges as much as each compared threshold, as a method.
        made, fixed: the rows of both.
        both: the rows of the compared thresholds and their twins.
    """

    params: Parameters
    real: Reference
    sweep: dict[float, Method]
    twins: dict[float, Method]
    made: Comparison
    fixed: Comparison
    both: Comparison

    def summary(self) -> pd.DataFrame:
        """`Comparison.summary` against the real images."""
        return self.made.summary(self.real.features)

    def records(self, clock: pd.DataFrame) -> pd.DataFrame:
        """`summary` with what each method costs by ``clock``, rows of `timed`: the columns of
        `catome.study.measure.comparison.speed_ups`, and the medians of ``seconds``, ``block_seconds`` and ``flops``."""
        medians = clock.groupby("method")[["seconds", "block_seconds", "flops"]].median()
        return self.summary().join(speed_ups(clock)).join(medians)

    def hardest(self, threshold: float) -> int:
        """The first image of the class that changes most at a threshold: whose mean PSNR is lowest there."""
        rows = self.made.of(self.sweep[threshold])
        worst = rows.groupby("class")["psnr"].mean().idxmin()
        return int(rows.loc[rows["class"] == worst, "image"].min())

    def curve(self) -> pd.DataFrame:
        """The thresholds' rows of `summary`, with a column ``threshold``."""
        labels = [method.label for method in self.sweep.values()]
        return self.summary().loc[labels].assign(threshold=list(self.sweep))

    def fixed_curve(self) -> pd.DataFrame:
        """The same of the fixed shares; ``threshold`` is the one that each stands beside."""
        labels = [method.label for method in self.twins.values()]
        return self.fixed.summary().loc[labels].assign(threshold=list(self.twins))

    def adapting(self) -> pd.DataFrame:
        """Each compared threshold minus its fixed share, paired over seeds: ``psnr`` and ``feature_distance`` with ``low`` and
        ``high``, and the ``share`` that both merge."""
        shares = self.made.summary()["share"]
        rows = {}
        for t, twin in self.twins.items():
            rows[t] = {"share": shares[self.sweep[t].label]}
            for column in ("psnr", "feature_distance"):
                found = self.both.paired(column, self.sweep[t], twin)
                rows[t] |= dict(zip((column, f"{column} low", f"{column} high"), found, strict=True))
        return pd.DataFrame(rows).T

    def adapting_table(self) -> pd.DataFrame:
        """`adapting` to be read, with a verdict on the PSNR."""
        found = self.adapting()
        rows = {f"t = {t:g} - r = {row['share']:.3f}": row for t, row in found.iterrows()}
        table = quality.paired_table(
            {name: tuple(row[["psnr", "psnr low", "psnr high"]]) for name, row in rows.items()}, "PSNR (dB)"
        )
        away = {name: tuple(row[[f"feature_distance{end}" for end in ("", " low", " high")]]) for name, row in rows.items()}
        table.insert(1, "distance of features", quality.paired_table(away, "away")["away"])
        return table

    def beside_the_paper(self, seconds: pd.Series) -> pd.DataFrame:
        """The paper's Table I and the same figures here; ``seconds`` of one image by each method's label.

        The columns of FID name the features it was computed from: only values from the same features can be compared."""
        table = self.summary()
        theirs = paper.THRESHOLDS
        rows = {}
        for t, method in self.sweep.items():
            if t not in theirs.index:
                continue
            found = table.loc[method.label]
            printed = theirs.loc[t]
            rows[f"t = {t:g}"] = {
                ("time / unmerged", "paper"): f"{printed['seconds'] / theirs.loc[1.0, 'seconds']:.2f}",
                ("time / unmerged", "here"): f"{seconds[method.label] / seconds['unmerged']:.2f}",
                ("FID - unmerged", "paper (Inception)"): f"{printed['FID'] - theirs.loc[1.0, 'FID']:+.2f}",
                ("FID - unmerged", f"here ({self.made.label})"): f"{found['FID change']:+.2f}",
                ("PSNR to unrelated", "paper"): f"{printed['PSNR']:.3f}",
                ("PSNR to unrelated", "here"): f"{found['PSNR real']:.3f}",
                ("SSIM to unrelated", "paper"): f"{printed['SSIM']:.3f}",
                ("SSIM to unrelated", "here"): f"{found['SSIM real']:.3f}",
            }
        return pd.DataFrame(rows).T
