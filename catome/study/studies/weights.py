"""Chapter 8: the threshold sweep again, with queries merged or kept and with merged keys counted once or by their members."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from catome.study import methods
from catome.study.measure import quality, real_images
from catome.study.measure.comparison import Comparison, compare
from catome.study.methods import Method
from catome.study.run.parameters import Cosine, Cosines, Factor, Flag, Folder, ScheduleName, Setting, parameters
from catome.study.studies.jobs import Job, of_images

NOTEBOOK = "08_weigh_the_keys"

MERGED, WEIGHTED, KEPT, BOTH = "as ToMe does it", "groups weighted", "queries kept", "both"
"""The four ways to merge: what the paper does, one change each, and both."""


@parameters
class Parameters(Setting):
    """Which thresholds, and from what to what the steps in between lead.

    Attributes:
        thresholds: of the sweep, cosines; pairs are found afresh at every step.
        threshold: of the second comparison, which goes from the paper's configuration to the library's, change by change.
        schedule: the paper's checkpoints there.
        even: the library's.
        factor: ToDo keeps every so many-th key each way, 2 to 4; ToMe's share is such that it leaves as many scores.
        reference: a folder of real images; None for held-out scenes (embedded model only).
        recompute: compute again what was recorded or kept.
    """

    thresholds: Cosines = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    threshold: Cosine = 0.7
    schedule: ScheduleName = "CONFIG_3"
    even: ScheduleName = "EVEN_13"
    factor: Factor = 2
    reference: Folder = None
    recompute: Flag = False


def sweep_of(params: Parameters) -> dict[tuple[str, float], Method]:
    """The method of each way to merge and each threshold."""
    as_the_paper = dict(schedule=None, measure="cosine", compare="input")
    found = {}
    for t in sorted(set(params.thresholds)):
        found[MERGED, t] = methods.ca_tome(t, None)
        found[WEIGHTED, t] = methods.ca_tome(t, None, weighted=True)
        found[KEPT, t] = methods.merged_keys(t, weighted=False, **as_the_paper)
        found[BOTH, t] = methods.merged_keys(t, **as_the_paper)
    return found


def changes_of(params: Parameters) -> dict[str, Method]:
    """From the paper's configuration to the library's, one change after the other, and the last without its weights."""
    t, theirs, ours = params.threshold, params.schedule, params.even
    return {
        "CA-ToMe": methods.ca_tome(t, theirs),
        "groups weighted": methods.ca_tome(t, theirs, weighted=True),
        "queries kept": methods.merged_keys(t, schedule=theirs, measure="cosine", compare="input"),
        "similar by distance": methods.merged_keys(t, schedule=theirs, measure="distance", compare="input"),
        "keys compared, not the input": methods.merged_keys(t, schedule=theirs, compare="keys"),
        "evenly spaced checkpoints": methods.merged_keys(t, schedule=ours, compare="keys"),
        "without the weights again": methods.merged_keys(t, schedule=ours, compare="keys", weighted=False),
    }


def peers_of(params: Parameters) -> dict[str, Method]:
    """Two methods that leave equally many scores, a quarter with factor 2, by the names that the chapter gives them."""
    share = 1 - 1 / params.factor
    return {f"ToMe, r = {share:g}": methods.tome(share), f"ToDo, factor {params.factor}": methods.todo(params.factor)}


def _all_of(params: Parameters) -> list[Method]:
    everything = [*sweep_of(params).values(), *changes_of(params).values(), *peers_of(params).values()]
    return list({method.label: method for method in everything}.values())


def jobs(params: Parameters) -> Iterator[Job]:
    """All generations."""
    yield from of_images(1, params, [method.label for method in _all_of(params)])


def run(params: Parameters, pipe, **kept) -> Result:
    """Generate by all methods.

    Args:
        params: which.
        pipe: an unpatched pipeline.
        kept: ``folder`` and ``recorded`` as in `catome.study.compare`.
    """
    real = real_images.beside(pipe, params, params.reference)
    made = compare(pipe, params, _all_of(params), real, recompute=params.recompute, **kept)
    return Result(params, sweep_of(params), changes_of(params), peers_of(params), made)


def scores_left(made: Comparison, method: Method, factor: int) -> float:
    """The share of attention scores that a method leaves in the topmost blocks, mean over images and steps.

    Of merged queries and keys ``(1 - m)^2`` with the mean merged share ``m`` over blocks, which is a little too low where
    blocks differ. With queries kept ``1 - m``, which is exact. NaN for methods that merge nothing.

    Args:
        made: rows of the method.
        method: which.
        factor: ToDo's.
    """
    if method.family == "ToDo":
        return factor**-2
    shares = np.concatenate([np.asarray(row, float) for row in made.of(method)["merged_share"]])
    if not len(shares):
        return float("nan")
    left = 1 - shares
    return float((left if method.family == "merged keys" else left**2).mean())


def closeness(made: Comparison, method: Method, factor: int) -> dict[str, float]:
    """``PSNR`` with its 95 % interval (dB), ``poor``, the share of images below `catome.study.measure.quality.POOR_DB`, and
    ``scores left``; arguments as in `scores_left`."""
    psnr = made.of(method)["psnr"].to_numpy(float)
    mean, low, high = quality.mean_interval(psnr)
    row = {"PSNR": mean, "PSNR low": low, "PSNR high": high, "poor": float((psnr < quality.POOR_DB).mean())}
    return row | {"scores left": scores_left(made, method, factor)}


@dataclass(frozen=True)
class Result:
    """What was found.

    Attributes:
        params: the parameters.
        sweep: the method of each way to merge and each threshold.
        changes: the methods from the paper's configuration to the library's, by what each changes.
        peers: what they are compared with, by name.
        made: the rows of all of them.
    """

    params: Parameters
    sweep: dict[tuple[str, float], Method]
    changes: dict[str, Method]
    peers: dict[str, Method]
    made: Comparison

    def scores_left(self, method: Method) -> float:
        """The share of attention scores that a method leaves, as `scores_left`."""
        return scores_left(self.made, method, self.params.factor)

    def _row(self, method: Method) -> dict[str, float]:
        return closeness(self.made, method, self.params.factor)

    def curve(self) -> pd.DataFrame:
        """One row for each way to merge and each threshold: ``way``, ``threshold``, ``PSNR`` with ``low`` and ``high`` (95 %),
        ``poor`` (the share of images below `catome.study.measure.quality.POOR_DB`) and ``scores left``."""
        return pd.DataFrame([{"way": way, "threshold": t} | self._row(method) for (way, t), method in self.sweep.items()])

    def peer_rows(self) -> pd.DataFrame:
        """The same columns for the peers, by name."""
        return pd.DataFrame({name: self._row(method) for name, method in self.peers.items()}).T

    def gain(self, way: str, threshold: float, other: str = MERGED) -> tuple[float, float, float]:
        """PSNR of one way to merge minus that of another on the same seeds, in dB: ``(mean, low, high)``, 95 %."""
        return self.made.paired("psnr", self.sweep[way, threshold], self.sweep[other, threshold])

    def gains(self) -> pd.DataFrame:
        """What each way gains over the paper's at each threshold, paired over seeds, as a table to be read."""
        thresholds = sorted({t for _, t in self.sweep})
        columns = {}
        for way in (WEIGHTED, KEPT, BOTH):
            rows = {f"t = {t:g}": self.gain(way, t) for t in thresholds}
            columns[f"{way} (dB)"] = quality.paired_table(rows)["difference (dB)"]
        return pd.DataFrame(columns)

    def dip(self, way: str) -> tuple[float, tuple[float, float, float]]:
        """How much better the lowest threshold is than the worst of those above it: that threshold, and ``(mean, low, high)``.

        A sweep that only gets closer to the unmerged images as less is merged has no dip: the mean is below zero. A sweep of
        one threshold has none, either: the mean is zero."""
        lowest, *above = sorted({t for _, t in self.sweep})
        if not above:
            return lowest, (0.0, 0.0, 0.0)
        found = {t: self.made.paired("psnr", self.sweep[way, lowest], self.sweep[way, t]) for t in above}
        worst = max(found, key=lambda t: found[t][0])
        return worst, found[worst]

    def middle(self) -> float:
        """The threshold in the middle of the sweep, the upper of two."""
        thresholds = sorted({t for _, t in self.sweep})
        return thresholds[len(thresholds) // 2]

    def words(self) -> dict[str, str]:
        """The numbers that the chapter's text takes up, by their names there, with _ for -."""
        t = self.middle()

        paper, library = (self._row(self.changes[name]) for name in ("CA-ToMe", "evenly spaced checkpoints"))
        return {
            "images": str(self.made.rows["image"].nunique()),
            "middle": f"{t:g}",
            "filled": self.filled(),
            "dip_merged": quality.spoken(self.dip(MERGED)[1]),
            "dip_weighted": quality.spoken(self.dip(WEIGHTED)[1]),
            "dip_both": quality.spoken(self.dip(BOTH)[1]),
            "gain_weighted": quality.spoken(self.gain(WEIGHTED, t)),
            "gain_kept": quality.spoken(self.gain(KEPT, t)),
            "gain_both": quality.spoken(self.gain(BOTH, t)),
            "scores_merged": f"{self.scores_left(self.sweep[MERGED, t]):.2f}",
            "scores_both": f"{self.scores_left(self.sweep[BOTH, t]):.2f}",
            "psnr_paper": f"{paper['PSNR']:.1f}",
            "psnr_library": f"{library['PSNR']:.1f}",
            "poor_paper": f"{paper['poor']:.0%}",
            "poor_library": f"{library['poor']:.0%}",
            "needed": quality.power_words(
                self.made.differences("psnr", method, self.sweep[MERGED, t])
                for (way, t), method in self.sweep.items()
                if way != MERGED
            ),
        }

    def filling(self) -> tuple[float, float, float]:
        """By how much more weights raise the PSNR where the paper's way is worst than at the lowest threshold, in dB:
        ``(mean, low, high)``, 95 %, paired over seeds."""
        lowest, worst = min(t for _, t in self.sweep), self.dip(MERGED)[0]
        return quality.mean_interval(self._gained(worst) - self._gained(lowest))

    def _gained(self, threshold: float) -> np.ndarray:
        """PSNR of the paper's way with weights minus that without, by image, in dB."""
        return self.made.differences("psnr", self.sweep[WEIGHTED, threshold], self.sweep[MERGED, threshold])

    def filled(self) -> str:
        """What the intervals say of the dip, and of what weights do to it, as a sentence."""
        _, (_, low, _) = self.dip(MERGED)
        _, (_, low_weighted, _) = self.dip(WEIGHTED)
        if low <= 0:
            return "This sweep has no dip that can be told from chance."
        if low_weighted > 0:
            return "Weights do not remove the dip."
        mean, low, high = self.filling()
        if low <= 0:
            return "With weights no dip can be told from chance."
        more = f"{mean:.1f} dB [{low:.1f}, {high:.1f}]"
        return f"Weights remove the dip: they bring {more} more at its lowest point than at the lowest threshold."

    def dips(self) -> pd.DataFrame:
        """`dip` of every way to merge, as a table to be read."""
        lowest = min(t for _, t in self.sweep)
        rows = {}
        for way in (MERGED, WEIGHTED, KEPT, BOTH):
            worst, found = self.dip(way)
            rows[f"{way}: t = {lowest:g} - t = {worst:g}"] = found
        return quality.paired_table(rows, "PSNR (dB)", better="merging more is closer", worse="merging less is closer")

    def steps(self) -> pd.DataFrame:
        """From the paper's configuration to the library's: the scores left, the PSNR, and what each change adds to it."""
        names = list(self.changes)
        table = {}
        for name, before in zip(names, [None, *names], strict=False):
            row = self._row(self.changes[name])
            gain = ("", "")
            if before is not None:
                mean, low, high = self.made.paired("psnr", self.changes[name], self.changes[before])
                gain = (f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]", quality.verdict(low, high))
            table[name] = {
                "PSNR (dB)": f"{row['PSNR']:.1f} [{row['PSNR low']:.1f}, {row['PSNR high']:.1f}]",
                f"below {quality.POOR_DB} dB": f"{row['poor']:.0%}",
                "scores left": f"{row['scores left']:.2f}",
                "the change (dB)": gain[0],
                "verdict": gain[1],
            }
        return pd.DataFrame(table).T

    def against_peers(self) -> pd.DataFrame:
        """For each peer, the highest threshold of each weighted way that leaves no more scores than it, to two decimals; paired
        over seeds."""
        pairs, columns = {}, {}
        for name, peer in self.peers.items():
            most = round(self.scores_left(peer), 2)
            for way in (WEIGHTED, BOTH):
                fitting = [t for w, t in self.sweep if w == way and round(self.scores_left(self.sweep[way, t]), 2) <= most]
                if not fitting:
                    continue
                own = self.sweep[way, max(fitting)]
                key = f"{way}, t = {max(fitting):g}", name
                pairs[key] = self.made.paired("psnr", own, peer)
                columns[key] = f"{self.scores_left(own):.2f} - {most:.2f}"
        table = quality.paired_table(pairs)
        table.insert(0, "scores left", pd.Series(columns))
        return table.rename_axis([None, "minus"]).reset_index("minus") if pairs else table
