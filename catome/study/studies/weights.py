"""Chapter 8: the threshold sweep again, with queries merged or kept and with merged keys counted once or by
their members; what reusing pairs costs each way to merge, and what windows of other sizes change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

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

LIBRARYS = "the library's"
"""The library's way: both changes, and pairs that are similar by distance and found among keys and values."""

AGAIN = "without the weights again"
"""The last step of `changes_of`, which is no change to be tried but takes one back."""

WINDOWS = ((1, 2), (4, 4))
"""The windows that are tried beside those of two by two tokens: vertical and horizontal."""


@parameters
class Parameters(Setting):
    """The parameters of this study: which thresholds, and from what to what the steps in between lead.

    Attributes:
        thresholds: of the sweep, cosines; pairs are found afresh at every step.
        threshold: of all else: the way from the paper's configuration to the library's, change by change,
            reused pairs, and windows of other sizes.
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
        AGAIN: methods.merged_keys(t, schedule=ours, compare="keys", weighted=False),
    }


def caches_of(params: Parameters) -> dict[tuple[str, str], tuple[Method, Method]]:
    """By way to merge and schedule, the method that reuses pairs by it and the same with pairs found at every
    step.

    A schedule that finds pairs at every step reuses none and has no row; two equal schedules have one."""
    t, changes = params.threshold, changes_of(params)
    theirs, ours = (methods.schedule_name(schedule) for schedule in (params.schedule, params.even))
    both = methods.merged_keys(t, schedule=None, measure="cosine", compare="input")
    librarys = methods.merged_keys(t, schedule=None, compare="keys")
    pairs = {
        (MERGED, theirs): (changes["CA-ToMe"], methods.ca_tome(t, None)),
        (WEIGHTED, theirs): (changes["groups weighted"], methods.ca_tome(t, None, weighted=True)),
        (BOTH, theirs): (changes["queries kept"], both),
        (LIBRARYS, theirs): (changes["keys compared, not the input"], librarys),
    }
    if ours != theirs:
        pairs[LIBRARYS, ours] = changes["evenly spaced checkpoints"], librarys
    return {
        name: (reused, afresh) for name, (reused, afresh) in pairs.items() if reused.label != afresh.label
    }


def windows_of(params: Parameters) -> dict[tuple[str, str], tuple[Method, Method]]:
    """By way to merge and window, the method that finds pairs in such windows at every step and the same in
    windows of two by two tokens."""

    def of(way: str, stride: tuple[int, int]) -> Method:
        if way == MERGED:
            return methods.ca_tome(params.threshold, None, stride=stride)
        return methods.merged_keys(
            params.threshold, stride=stride, schedule=None, measure="cosine", compare="input"
        )

    return {
        (way, f"windows of {height} \u00d7 {width}"): (of(way, (height, width)), of(way, (2, 2)))
        for way in (MERGED, BOTH)
        for height, width in WINDOWS
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
    for pairs in (caches_of(params), windows_of(params)):
        everything += [method for pair in pairs.values() for method in pair]
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

    @property
    def runs(self) -> dict[str, dict]:
        """The provenance of all rows."""
        return self.made.runs | self.more.runs

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

    def _minus(self, pairs: Mapping[Any, tuple[Method, Method]]) -> dict[Any, np.ndarray]:
        """PSNR of the first method of each pair minus that of the second, in dB, by image."""
        return {name: self.made.differences("psnr", *pair) for name, pair in pairs.items()}

    def _table(self, differences: Mapping[Any, np.ndarray], column: str = "difference (dB)") -> pd.DataFrame:
        """Differences of the rows of all methods to be read, with the interval for other prompts."""
        return quality.difference_table(differences, column, self.made.classes)

    def _scores_of(self, pairs: Mapping[Any, tuple[Method, Method]]) -> pd.Series:
        """The scores left by the methods of each pair, to be read: ``0.20 - 0.25``."""
        return pd.Series(
            {name: " - ".join(f"{self.scores_left(one):.2f}" for one in pair) for name, pair in pairs.items()}
        )

    def gains(self) -> dict[tuple[str, str], np.ndarray]:
        """PSNR of each way to merge minus that of the paper's at each threshold, in dB, by image."""
        thresholds = sorted({t for _, t in self.sweep})
        return self._minus(
            {
                (way, f"t = {t:g}"): (self.sweep[way, t], self.sweep[MERGED, t])
                for way in (WEIGHTED, KEPT, BOTH)
                for t in thresholds
            }
        )

    def gains_table(self) -> pd.DataFrame:
        """`gains` to be read."""
        return self._table(self.gains())

    def cache_costs(self) -> dict[tuple[str, str], np.ndarray]:
        """PSNR with pairs reused minus PSNR with pairs found at every step, in dB, by image, for each way to
        merge and schedule of `caches_of`."""
        return self._minus(caches_of(self.params))

    def cache_costs_table(self) -> pd.DataFrame:
        """`cache_costs` to be read."""
        return self._table(self.cache_costs(), "reused - every step (dB)")

    def cache_told(self) -> str:
        """Say which ways to merge reused pairs detectably cost something, and what the intervals of the
        others allow."""
        table, costs = self.cache_costs_table(), self.cache_costs()
        said = _told(table, "images with reused pairs are")
        unclear = [quality.mean_interval(costs[name]) for name in _rows(table, quality.UNTOLD)]
        most = max((-low for _, low, _ in unclear), default=0.0)
        if not most > 0:
            return said
        return f"{said} Where no cost is detectable, the intervals allow one of up to {most:.1f} dB."

    def other_windows(self) -> dict[tuple[str, str], np.ndarray]:
        """PSNR in windows of other sizes minus PSNR in windows of two by two, in dB, by image."""
        return self._minus(windows_of(self.params))

    def other_windows_table(self) -> pd.DataFrame:
        """`other_windows` to be read, with the scores that either size leaves."""
        table = self._table(self.other_windows(), "minus 2 \u00d7 2 (dB)")
        table.insert(0, "scores left", self._scores_of(windows_of(self.params)))
        return table

    def windows_told(self) -> str:
        """Say which windows of other sizes bring images closer, and which do not."""
        return _told(self.other_windows_table(), "images from such windows are")

    def tried(self) -> dict[tuple[str, str], np.ndarray]:
        """All that the study tries, as PSNR with the change minus PSNR without it, in dB, by image, by what
        it is and where.

        The step that takes the weights back is left out."""
        found, changes = self.gains(), self.step_changes()
        for before, name in pairwise(self.changes):
            if name != AGAIN:
                found[name, f"after {before}"] = changes[name]
        for (way, schedule), values in self.cache_costs().items():
            found[f"pairs reused by {schedule}", way] = values
        for (way, window), values in self.other_windows().items():
            found[window, way] = values
        return found

    def unhelpful(self) -> pd.DataFrame:
        """The rows of `tried` that do not bring images detectably closer when all of them are tested at once,
        to be read."""
        table = self._table(self.tried())
        return table[table["after Holm"] != "closer"]

    def helped(self) -> str:
        """Say how many of the tried changes helped, how many did not, and how many of these verdicts hold for
        other prompts."""
        tried = self.tried()
        verdicts = list(self._table(tried)["after Holm"])
        closer, farther, untold = (verdicts.count(one) for one in ("closer", "farther", quality.UNTOLD))
        said = (
            f"In {len(verdicts)} comparisons, all tested at once, images are detectably closer with the "
            f"change in {closer}, farther in {farther}, and not detectably different in {untold}."
        )
        stays, holds = quality.held_over_classes(tried, self.made.classes)
        if not stays or len(set(self.made.classes)) == 1:
            return said
        if quality.one_of_each(self.made.classes):
            return f"{said} {quality.ONE_OF_EACH}"
        return f"{said} {quality.held_words(len(stays), len(holds))}"

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

        ends = self.changes["CA-ToMe"], self.changes["evenly spaced checkpoints"]
        paper, library = (self._row(method) for method in ends)
        compared = [self.gains(), self.peer_differences(), self.at_equal_scores()]
        compared += [self.step_changes(), self.cache_costs(), self.other_windows()]
        return {
            "images": str(self.made.rows["image"].nunique()),
            "middle": f"{t:g}",
            "threshold": f"{self.params.threshold:g}",
            "filled": self.filled(),
            "over_prompts": self.over_prompts(),
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
            "gain_library": quality.spoken(self.made.paired("psnr", *reversed(ends))),
            "poor_paper": f"{paper['poor']:.0%}",
            "poor_library": f"{library['poor']:.0%}",
            "cache_told": self.cache_told(),
            "windows_told": self.windows_told(),
            "helped": self.helped(),
            "needed": quality.power_words(values for found in compared for values in found.values()),
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
        mean, low, high = quality.mean_interval(self.filling())
        if low_weighted > 0:
            said = "Weights do not remove the dip."
        elif low <= 0:
            said = (
                "With weights no dip is detectable, but whether weights change it is not detectable, either."
            )
        else:
            said = (
                f"Weights remove the dip: they bring {mean:.1f} dB [{low:.1f}, {high:.1f}] more at the worst "
                "threshold than at the lowest."
            )
        return said

    def over_prompts(self) -> str:
        """Say what holds for other prompts of the dip, and of what weights bring more at the worst threshold
        than at the lowest threshold."""
        classes = self.more.classes
        lowest, worst = dip_at(self.made, self.sweep)
        if lowest == worst:
            return "A single threshold has nothing to be compared with."
        if quality.one_of_each(classes):
            return quality.ONE_OF_EACH
        _, low, high = quality.over_classes(self.dip(MERGED), classes)
        if np.isnan(low):
            return "With so few prompts nobody can say what others would give."
        _, least, most = quality.over_classes(self.filling(), classes)
        dip = {
            "closer": "That there is a dip holds",
            "farther": "That there is no dip holds",
            quality.UNTOLD: "Whether there is a dip is not decided",
        }[quality.verdict(low, high)]
        where = "at the worst threshold than at the lowest"
        more = {
            "more": f"That weights bring more {where} holds",
            "less": f"That weights bring less {where} holds",
            quality.UNTOLD: f"Whether weights bring more {where} is not decided",
        }[quality.verdict(least, most, "more", "less")]
        return (
            f"{dip} for other prompts ([{low:+.2f}, {high:+.2f}] dB). {more} for other prompts "
            f"([{least:+.2f}, {most:+.2f}] dB)."
        )

    def dips(self) -> pd.DataFrame:
        """`dip` of every way to merge, and over how many images, as a table to be read."""
        lowest, worst = dip_at(self.made, self.sweep)
        found = {
            f"{way}: t = {lowest:g} - t = {worst:g}": self.dip(way) for way in (MERGED, WEIGHTED, KEPT, BOTH)
        }
        table = quality.difference_table(
            found,
            "PSNR (dB)",
            self.more.classes,
            better="merging more is closer",
            worse="merging less is closer",
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
        return self._table(self.at_equal_scores())

    def queries_told(self) -> str:
        """Say in sentences at how many points of `at_equal_scores` kept queries are closer, with all points
        tested at once."""
        differences = self.at_equal_scores()
        if not differences:
            return "The four ways leave no share of scores in common here."
        verdicts = self.at_equal_scores_table()["after Holm"]
        said = []
        starts = "Without weights, kept queries are", "With weights, they are"
        for pair, start in zip(dict.fromkeys(pair for pair, _ in differences), starts, strict=True):
            means = [float(values.mean()) for (own, _), values in differences.items() if own == pair]
            found = list(verdicts[pair])
            closer, farther = (found.count(one) or "none" for one in ("closer", "farther"))
            said.append(
                f"{start} detectably closer at {closer} of {len(found)} points and farther at {farther}. The "
                f"differences are {min(means):+.1f} to {max(means):+.1f} dB."
            )
        return f"{' '.join(said)} All {len(differences)} points are tested at once, by Holm's method."

    def step_changes(self) -> dict[str, np.ndarray]:
        """PSNR with each change on the way to the library's configuration minus PSNR before it, in dB, by
        image."""
        names = list(self.changes)
        return self._minus(
            {name: (self.changes[name], self.changes[before]) for before, name in pairwise(names)}
        )

    def steps(self) -> pd.DataFrame:
        """From the paper's configuration to the library's: the scores left, the PSNR, and what each change
        adds to it."""
        table = {}
        for name, method in self.changes.items():
            row = self._row(method)
            table[name] = {
                "PSNR (dB)": f"{row['PSNR']:.1f} [{row['PSNR low']:.1f}, {row['PSNR high']:.1f}]",
                f"below {quality.POOR_DB} dB": f"{row['poor']:.0%}",
                "scores left": f"{row['scores left']:.2f}",
            }
        # the first row changes nothing
        return pd.DataFrame(table).T.join(self._table(self.step_changes(), "the change (dB)")).fillna("")

    def _peer_pairs(self) -> dict[tuple[str, str], tuple[Method, Method]]:
        """For each peer, the highest threshold of each weighted way that leaves no more scores than it, to
        two decimals, and the peer."""
        pairs = {}
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
                pairs[f"{way}, t = {max(fitting):g}", name] = self.sweep[way, max(fitting)], peer
        return pairs

    def peer_differences(self) -> dict[tuple[str, str], np.ndarray]:
        """PSNR of the weighted ways minus that of each peer, in dB, by image, at the highest threshold that
        leaves no more scores than it."""
        return self._minus(self._peer_pairs())

    def against_peers(self) -> pd.DataFrame:
        """`peer_differences` to be read, with the scores that either leaves."""
        pairs = self._peer_pairs()
        table = self._table(self.peer_differences())
        table.insert(0, "scores left", self._scores_of(pairs))
        return table.rename_axis([None, "minus"]).reset_index("minus") if pairs else table


def _rows(table: pd.DataFrame, verdict: str) -> list:
    """The rows of a `quality.difference_table` that have a verdict when all are tested at once, by name."""
    return list(table.index[table["after Holm"] == verdict])


def _told(table: pd.DataFrame, what: str) -> str:
    """Say which rows of a `quality.difference_table` are detectably closer to the unmerged images, and which
    farther; ``what`` names what is compared, with its verb."""

    def named(verdict: str) -> str:
        names = [", ".join(name) for name in _rows(table, verdict)]
        return f"{len(names)} ({'; '.join(names)})" if names else "none"

    if not len(table):
        return "Nothing was compared here."
    of = "In the one comparison here" if len(table) == 1 else f"Of these {len(table)} comparisons"
    return (
        f"{of}, {what} detectably closer to the unmerged ones in "
        f"{named('closer')} and farther in {named('farther')}, if all are tested at once."
    )
