"""Chapter 8: the threshold sweep again, with queries merged or kept and with merged keys counted once or by
their members."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from catome.study import methods
from catome.study.measure import quality, real_images
from catome.study.measure.comparison import Comparison, compare
from catome.study.methods import Method
from catome.study.run.parameters import (
    AllOr,
    Cosine,
    Cosines,
    Factor,
    Flag,
    Folder,
    ScheduleName,
    Setting,
    parameters,
)
from catome.study.studies.jobs import Job, of_images

NOTEBOOK = "08_weigh_the_keys"

MERGED, WEIGHTED, KEPT, BOTH = "as ToMe does it", "groups weighted", "queries kept", "both"
"""The four ways to merge: what the paper does, one change each, and both."""


@parameters
class Parameters(Setting):
    """The parameters of this study: which thresholds, and from what to what the steps in between lead.

    Attributes:
        thresholds: of the sweep, cosines; pairs are found afresh at every step.
        threshold: of the second comparison, which goes from the paper's configuration to the library's,
            change by change.
        schedule: the paper's checkpoints there.
        even: the library's.
        dip_images: over which the dip is judged, as ToMe merges and with groups weighted; None for as many as
            of all others.
        factor: ToDo keeps every so many-th key each way, 2 to 4; ToMe's share is such that it leaves as many
            scores.
        reference: a folder of real images; None for held-out scenes (embedded model only).
        recompute: compute again what was recorded or kept.
    """

    thresholds: Cosines = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    threshold: Cosine = 0.7
    schedule: ScheduleName = "CONFIG_3"
    even: ScheduleName = "EVEN_13"
    dip_images: AllOr = None
    factor: Factor = 2
    reference: Folder = None
    recompute: Flag = False

    @property
    def of_dip(self) -> Setting:
        """The images over which the dip is judged: at least as many as there are of all others."""
        return self.at_least(self.dip_images)


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
    """From the paper's configuration to the library's, one change after the other, and the last without its
    weights."""
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
    """Two methods that leave equally many scores, a quarter with factor 2, by the names that the chapter
    gives them."""
    share = 1 - 1 / params.factor
    return {
        f"ToMe, r = {share:g}": methods.tome(share),
        f"ToDo, factor {params.factor}": methods.todo(params.factor),
    }


def _all_of(params: Parameters) -> list[Method]:
    everything = [*sweep_of(params).values(), *changes_of(params).values(), *peers_of(params).values()]
    return list({method.label: method for method in everything}.values())


def jobs(params: Parameters) -> Iterator[Job]:
    """All generations."""
    yield from of_images(1, params, [method.label for method in _all_of(params)])
    if params.of_dip.images > params.images:
        sweep = sweep_of(params)
        # the highest stands for the worst, which is not known yet
        lowest, highest = min(params.thresholds), max(params.thresholds)
        labels = [sweep[way, t].label for way in (MERGED, WEIGHTED) for t in dict.fromkeys((lowest, highest))]
        yield from of_images(2, params.of_dip, labels)


def run(params: Parameters, pipe, **kept) -> Result:
    """Generate by all methods.

    Args:
        params: which.
        pipe: an unpatched pipeline.
        kept: ``folder`` and ``recorded`` as in `catome.study.compare`.
    """
    real = real_images.beside(pipe, params, params.reference)
    sweep = sweep_of(params)
    made = compare(pipe, params, _all_of(params), real, recompute=params.recompute, **kept)
    ways = [sweep[way, t] for way in (MERGED, WEIGHTED) for t in dict.fromkeys(dip_at(made, sweep))]
    again = params.recompute and params.of_dip.images > params.images  # the others have just been computed
    more = compare(pipe, params.of_dip, ways, real, recompute=again, **kept)
    return Result(params, sweep, changes_of(params), peers_of(params), made, more)


def dip_at(made: Comparison, sweep: dict[tuple[str, float], Method]) -> tuple[float, float]:
    """The lowest threshold, and the one above it at which merging as ToMe does it changes the images most."""
    lowest, *above = sorted({t for _, t in sweep})
    worst = {t: made.paired("psnr", sweep[MERGED, lowest], sweep[MERGED, t])[0] for t in above}
    return lowest, max(worst, key=worst.get, default=lowest)


def scores_left(made: Comparison, method: Method, factor: int) -> float:
    """The share of attention scores that a method leaves in the topmost blocks, mean over images and steps.

    Of merged queries and keys ``(1 - m)^2`` with the mean merged share ``m`` over blocks, which is a little
    too low where blocks differ. With queries kept ``1 - m``, which is exact. NaN for methods that merge
    nothing.

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
    """``PSNR`` with its 95 % interval (dB), ``poor``, the share of images below
    `catome.study.measure.quality.POOR_DB`, and ``scores left``; arguments as in `scores_left`."""
    psnr = made.of(method)["psnr"].to_numpy(float)
    mean, low, high = quality.mean_interval(psnr)
    row = {"PSNR": mean, "PSNR low": low, "PSNR high": high, "poor": float((psnr < quality.POOR_DB).mean())}
    return row | {"scores left": scores_left(made, method, factor)}


@dataclass(frozen=True)
class Result:
    """The results of this study.

    Attributes:
        params: the parameters.
        sweep: the method of each way to merge and each threshold.
        changes: the methods from the paper's configuration to the library's, by what each changes.
        peers: what they are compared with, by name.
        made: the rows of all of them.
        more: the rows of the two thresholds of `dip_at`, as ToMe does it and with groups weighted, over more
            images.
    """

    params: Parameters
    sweep: dict[tuple[str, float], Method]
    changes: dict[str, Method]
    peers: dict[str, Method]
    made: Comparison
    more: Comparison

    def scores_left(self, method: Method) -> float:
        """The share of attention scores that a method leaves, as `scores_left`."""
        return scores_left(self.made, method, self.params.factor)

    def _row(self, method: Method) -> dict[str, float]:
        return closeness(self.made, method, self.params.factor)

    def curve(self) -> pd.DataFrame:
        """One row for each way to merge and each threshold: ``way``, ``threshold``, ``PSNR`` with ``low`` and
        ``high`` (95 %), ``poor`` (the share of images below `catome.study.measure.quality.POOR_DB`) and
        ``scores left``."""
        return pd.DataFrame(
            [{"way": way, "threshold": t} | self._row(method) for (way, t), method in self.sweep.items()]
        )

    def peer_rows(self) -> pd.DataFrame:
        """The same columns for the peers, by name."""
        return pd.DataFrame({name: self._row(method) for name, method in self.peers.items()}).T

    def gain(self, way: str, threshold: float, other: str = MERGED) -> tuple[float, float, float]:
        """PSNR of one way to merge minus that of another on the same seeds, in dB: ``(mean, low, high)``, 95
        %."""
        return self.made.paired("psnr", self.sweep[way, threshold], self.sweep[other, threshold])

    def gains(self) -> pd.DataFrame:
        """The gain of each way over the paper's at each threshold, paired over seeds, as a table to be
        read."""
        thresholds = sorted({t for _, t in self.sweep})
        columns = {}
        for way in (WEIGHTED, KEPT, BOTH):
            rows = {f"t = {t:g}": self.gain(way, t) for t in thresholds}
            columns[f"{way} (dB)"] = quality.paired_table(rows)["difference (dB)"]
        return pd.DataFrame(columns)

    def dip(self, way: str) -> np.ndarray:
        """By how much the lowest threshold is closer than the one at which merging as ToMe does it is worst,
        in dB, by image.

        A sweep that only gets closer to the unmerged images as less is merged has no dip: the mean is below
        zero. A sweep of one threshold has none, either: all are zero."""
        lowest, worst = dip_at(self.made, self.sweep)
        rows = self.more if way in (MERGED, WEIGHTED) else self.made
        return rows.differences("psnr", self.sweep[way, lowest], self.sweep[way, worst])

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
            "dip_merged": quality.spoken(quality.mean_interval(self.dip(MERGED))),
            "dip_weighted": quality.spoken(quality.mean_interval(self.dip(WEIGHTED))),
            "dip_images": str(len(self.dip(MERGED))),
            "dip_needed": quality.power_words([self.dip(MERGED), self.filling()]),
            "queries_told": self.queries_told(),
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

    def filling(self) -> np.ndarray:
        """By how much more weights raise the PSNR where ToMe's way is worst than at the lowest threshold, in
        dB, by image."""
        lowest, worst = dip_at(self.made, self.sweep)
        at = {
            t: self.more.differences("psnr", self.sweep[WEIGHTED, t], self.sweep[MERGED, t])
            for t in (lowest, worst)
        }
        return at[worst] - at[lowest]

    def filled(self) -> str:
        """Say in a sentence what the intervals tell of the dip, and of what weights do to it."""
        _, low, _ = quality.mean_interval(self.dip(MERGED))
        _, low_weighted, _ = quality.mean_interval(self.dip(WEIGHTED))
        if low <= 0:
            return "This sweep has no detectable dip."
        if low_weighted > 0:
            return "Weights do not remove the dip."
        mean, low, high = quality.mean_interval(self.filling())
        if low <= 0:
            return (
                "With weights no dip is detectable, but whether weights change it is not detectable, either."
            )
        more = f"{mean:.1f} dB [{low:.1f}, {high:.1f}]"
        return (
            f"Weights remove the dip: they bring {more} more at its lowest point than at the lowest "
            "threshold."
        )

    def dips(self) -> pd.DataFrame:
        """`dip` of every way to merge, and over how many images, as a table to be read."""
        lowest, worst = dip_at(self.made, self.sweep)
        found = {
            f"{way}: t = {lowest:g} - t = {worst:g}": self.dip(way) for way in (MERGED, WEIGHTED, KEPT, BOTH)
        }
        table = quality.difference_table(
            found, "PSNR (dB)", better="merging more is closer", worse="merging less is closer"
        )
        table.insert(0, "images", [len(one) for one in found.values()])
        return table

    def _known(self, way: str) -> tuple[np.ndarray, np.ndarray]:
        """The scores left at the thresholds of a way to merge ``[thresholds]``, in rising order, and the PSNR
        ``[thresholds, images]``, in dB; without thresholds that leave some image unchanged."""
        rows = []
        for (own, _), method in self.sweep.items():
            psnr = self.made.of(method)["psnr"].to_numpy(float)
            if own == way and np.isfinite(psnr).all():
                rows.append((self.scores_left(method), psnr))
        rows.sort(key=lambda row: row[0])
        return np.array([left for left, _ in rows]), np.array([psnr for _, psnr in rows])

    def _at_scores(self, way: str, scores: Sequence[float]) -> np.ndarray:
        """PSNR of a way by image, at shares of scores left between those of its thresholds: ``[scores,
        images]``, in dB."""
        left, psnr = self._known(way)
        return np.stack([np.interp(scores, left, image) for image in psnr.T], axis=1)

    def scores_of_all(self, count: int = 5) -> np.ndarray:
        """Shares of scores left, evenly spaced, that every way to merge has between its thresholds; empty if
        there are none."""
        known = [self._known(way)[0] for way in (MERGED, WEIGHTED, KEPT, BOTH)]
        if not all(map(len, known)):
            return np.zeros(0)
        low, high = max(left[0] for left in known), min(left[-1] for left in known)
        return np.linspace(low, high, count) if low < high else np.zeros(0)

    def at_equal_scores(self) -> dict[tuple[str, str], np.ndarray]:
        """PSNR of kept queries minus that of merged ones where both leave equally many scores, in dB, by
        image: without weights on either side, and with weights on both. PSNR between two thresholds is
        interpolated."""
        scores = self.scores_of_all()
        found = {}
        for kept, merged in ((KEPT, MERGED), (BOTH, WEIGHTED)):
            differences = (
                self._at_scores(kept, scores) - self._at_scores(merged, scores) if len(scores) else []
            )
            for share, values in zip(scores, differences, strict=True):
                found[f"{kept} - {merged}", f"{share:.2f} of the scores"] = values
        return found

    def at_equal_scores_table(self) -> pd.DataFrame:
        """`at_equal_scores` to be read."""
        return quality.difference_table(self.at_equal_scores())

    def queries_told(self) -> str:
        """A sentence on the points of `at_equal_scores` at which kept queries are closer, with all points
        tested at once."""
        differences = self.at_equal_scores()
        if not differences:
            return "The four ways leave no share of scores in common here."
        verdicts = self.at_equal_scores_table()["after Holm"]
        said = []
        for pair, weights in zip(
            dict.fromkeys(pair for pair, _ in differences), ("Without weights", "With weights"), strict=True
        ):
            means = [float(values.mean()) for (own, _), values in differences.items() if own == pair]
            found = list(verdicts[pair])
            counts = (
                f"closer at {found.count('closer')} of {len(found)} points and farther at "
                f"{found.count('farther')}"
            )
            span = f"{min(means):+.1f} to {max(means):+.1f} dB"
            said.append(
                f"{weights}, kept queries are detectably {counts} (Holm's method); the differences are "
                f"{span}."
            )
        return " ".join(said)

    def steps(self) -> pd.DataFrame:
        """From the paper's configuration to the library's: the scores left, the PSNR, and what each change
        adds to it."""
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
        """For each peer, the highest threshold of each weighted way that leaves no more scores than it, to
        two decimals; paired over seeds."""
        pairs, columns = {}, {}
        for name, peer in self.peers.items():
            most = round(self.scores_left(peer), 2)
            for way in (WEIGHTED, BOTH):
                fitting = [
                    t
                    for w, t in self.sweep
                    if w == way and round(self.scores_left(self.sweep[way, t]), 2) <= most
                ]
                if not fitting:
                    continue
                own = self.sweep[way, max(fitting)]
                key = f"{way}, t = {max(fitting):g}", name
                pairs[key] = self.made.differences("psnr", own, peer)
                columns[key] = f"{self.scores_left(own):.2f} - {most:.2f}"
        table = quality.difference_table(pairs)
        table.insert(0, "scores left", pd.Series(columns))
        return table.rename_axis([None, "minus"]).reset_index("minus") if pairs else table
