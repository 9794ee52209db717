"""Chapter 5: when to look again. The paper's schedules, bounds, and schedules derived from measured staleness
and online ones, both beside as many checkpoints at equal distances."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from pydantic import model_validator

from catome.policy.schedule import SCHEDULES, derive, evenly, parse_schedule
from catome.study import methods, paper
from catome.study.measure import quality, real_images
from catome.study.measure.comparison import Comparison, compare, time_ratio, timed_alone
from catome.study.measure.drift import (
    SHARD,
    amount_name,
    drift_study,
    held_out,
    mean_staleness,
)
from catome.study.measure.quality import listed
from catome.study.measure.real_images import Reference
from catome.study.measure.searches import searches, searches_made, staleness_of
from catome.study.methods import Method
from catome.study.online import online
from catome.study.run.parameters import (
    AllOr,
    Cosines,
    Count,
    Counts,
    Distances,
    Flag,
    Folder,
    Setting,
    parameters,
)
from catome.study.studies.jobs import Job, of_drift, of_images, of_searches

NOTEBOOK = "05_checkpoint_schedules"

BASE = "CONFIG_3"
"""The paper's choice, which all others are compared with."""

EVERY = "every step"
"""Pairs found at every step."""

OVER_EVERY = "time over every step"
"""The column with a schedule's time over that of pairs found at every step."""

COUNTED = 12
"""Images over which the searches of online schedules are counted: one of each of the embedded classes."""

EVEN = "CONFIG_FIVE"
"""The paper's schedule at equal distances, which needs no measurement."""

RANKED = ("paper", "derived")
"""The kinds of schedules over which staleness and PSNR are correlated. Those at equal distances that stand
beside the derived ones are nearly as stale as these, and would count them twice."""


def least_stale(checkpoints: int) -> str:
    """The name of a derived schedule."""
    return f"least stale {checkpoints}"


def even_as(checkpoints: int) -> str:
    """The name of the schedule with as many checkpoints at equal distances."""
    return f"EVEN_{checkpoints}"


@parameters
class Parameters(Setting):
    """The parameters of this study.

    Attributes:
        thresholds: to merge by.
        tolerances: of the online schedule: the share of cached pairs that may have fallen below the
            threshold.
        budgets: checkpoints of the derived schedules.
        base_images: over which pairs found at every step are compared with CONFIG_3; None for as many as of
            all others.
        drift_images: derived schedules are made from the staleness of images ``images`` to ``drift_images``
            and tried on the others.
        repetitions: timed generations of each schedule.
        reference: a folder of real images; None for held-out scenes (embedded model only).
        recompute: compute again what was recorded or kept.
    """

    thresholds: Cosines = (0.7, 0.9)
    tolerances: Distances = (0.1, 0.3)
    budgets: Counts = (8, 13)
    base_images: AllOr = None
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
    def of_base(self) -> Setting:
        """The images over which pairs found at every step are compared with CONFIG_3."""
        return self.at_least(self.base_images)

    @property
    def watched(self) -> Setting:
        """The setting whose staleness is measured."""
        return self.common(images=self.drift_images)

    @property
    def counted(self) -> Setting:
        """The images over which the searches of online schedules are counted."""
        return self.common(images=min(COUNTED, self.images))


@dataclass(frozen=True)
class Asked:
    """A schedule that is tried.

    Attributes:
        threshold: to merge by.
        kind: "bounds", "paper", "derived", "even" (as many checkpoints at equal distances) or "online".
        name: of the schedule.
        method: that merges so.
        checkpoints: its steps; None where it decides while it runs.
    """

    threshold: float
    kind: str
    name: str
    method: Method
    checkpoints: tuple[int, ...] | None


def asked_of(
    params: Parameters, derived: dict[tuple[float, int], tuple[int, ...]]
) -> dict[tuple[float, str], Asked]:
    """Every schedule by threshold and name; ``derived`` by threshold and number of checkpoints."""
    found = {}

    def add(t: float, kind: str, name: str, schedule, steps) -> None:
        found[t, name] = Asked(t, kind, name, methods.ca_tome(t, schedule), tuple(steps))

    for t in params.thresholds:
        add(t, "bounds", EVERY, None, range(params.calls))
        add(t, "bounds", "step 0 only", (0,), (0,))
        for name in SCHEDULES:
            add(t, "paper", name, name, parse_schedule(name).at(params.calls))
        for (at, count), steps in derived.items():
            if at == t:
                add(t, "derived", least_stale(count), steps, steps)
        for at, count in derived:
            if at == t:
                name = even_as(count)
                add(t, "even", name, name, parse_schedule(name).at(params.calls))
        for tolerance in params.tolerances:
            name = f"auto {tolerance:g}"
            found[t, name] = Asked(t, "online", name, online(t, tolerance), None)
    return found


def jobs(params: Parameters) -> Iterator[Job]:
    """All generations; which steps the derived schedules have is known only when staleness has been measured,
    and how often the online ones search when they have run.

    Two of these may search equally often, or as often as a derived schedule has checkpoints. Then there are
    fewer generations."""
    yield of_drift(1, params.watched)
    derived = {
        (t, k): tuple(range(k)) for t in params.thresholds for k in params.budgets if k <= params.calls
    }
    labels = [
        f"CA-ToMe, t = {one.threshold:g}, {one.name}" if one.kind == "derived" else one.method.label
        for one in asked_of(params, derived).values()
    ]
    yield from of_images(2, params, dict.fromkeys(labels))
    if params.of_base.images > params.images:
        yield from of_images(3, params.of_base, [one.method.label for one in of_base(asked_of(params, {}))])
    deciding = [one for one in asked_of(params, {}).values() if one.checkpoints is None]
    for one in deciding:
        yield of_searches(4, params.counted, one.method.label)
    rivals = [f"CA-ToMe, t = {one.threshold:g}, evenly, as often as {one.name} searches" for one in deciding]
    yield from of_images(5, params, rivals)


def run(params: Parameters, pipe, **kept) -> Result:
    """Measure staleness, derive schedules from it, and generate by all of them.

    Args:
        params: which.
        pipe: an unpatched pipeline.
        kept: ``folder`` and ``recorded`` as in `catome.study.compare`.
    """
    real = real_images.beside(pipe, params, params.reference)
    drift = drift_study(pipe, params.watched, params.thresholds, recompute=params.recompute, **kept)
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
    again = params.recompute and params.of_base.images > params.images  # the others have just been computed
    more = compare(
        pipe, params.of_base, [one.method for one in of_base(asked)], real, recompute=again, **kept
    )
    searched = {
        key: searches(pipe, params.counted, one.method, recompute=params.recompute, **kept)
        for key, one in asked.items()
        if one.checkpoints is None
    }
    rivals = {(t, name): as_often(t, steps, params.calls) for (t, name), steps in searched.items()}
    even = {one.method.label: one.method for one in rivals.values()}
    if new := [method for label, method in even.items() if label not in made.methods]:
        compare(pipe, params, new, real, recompute=params.recompute, **kept)
    deciding = [asked[key].method for key in rivals]
    # all of them are there by now
    beside = compare(pipe, params, [*deciding, *even.values()], real, **kept)
    return Result(params, real, staleness, derived, asked, made, more, searched, rivals, beside)


def as_often(t: float, searched: list[list[list[int]]], calls: int) -> Asked:
    """The rival of an online schedule: checkpoints at equal distances, as many as it makes searches.

    Args:
        t: the threshold.
        searched: `catome.study.measure.searches.searches` of the online schedule; the mean is rounded.
        calls: of the U-Net by one generation.
    """
    name = even_as(round(searches_made(searched)))
    return Asked(t, "even", name, methods.ca_tome(t, name), parse_schedule(name).at(calls))


def of_base(asked: dict[tuple[float, str], Asked]) -> list[Asked]:
    """Pairs found at every step, and CONFIG_3, at each threshold."""
    return [one for (_, name), one in asked.items() if name in (EVERY, BASE)]


def _distinct(asked: dict) -> list[Method]:
    """All methods, each once, the unmerged one first."""
    plain = methods.unmerged()
    return list(
        {method.label: method for method in (plain, *(one.method for one in asked.values()))}.values()
    )


def timed(result: Result, pipe, **kept) -> pd.DataFrame:
    """Rows of `catome.study.measure.comparison.COST`: every schedule of a result, one image at a time, in
    turns. Those of the kind "even" are left out: the derived ones beside them make as many searches."""
    chosen = {key: one for key, one in result.asked.items() if one.kind != "even"}
    return timed_alone(pipe, result.params, _distinct(chosen), **kept)


@dataclass(frozen=True)
class Result:
    """The results of this study.

    Attributes:
        params: the parameters.
        real: the real images that FID compares with.
        staleness: ``[T, T]`` of the images that schedules are tried on, by threshold.
        derived: steps of the derived schedules, by threshold and number of checkpoints.
        asked: all schedules, by threshold and name.
        made: the rows.
        more: the rows of `of_base`, over more images.
        searched: `catome.study.measure.searches.searches` of the online schedules, by threshold and name.
        rivals: of each online schedule `as_often`, by the online one's threshold and name.
        beside: the rows of the online schedules and of their rivals.
    """

    params: Parameters
    real: Reference
    staleness: dict[float, np.ndarray]
    derived: dict[tuple[float, int], tuple[int, ...]]
    asked: dict[tuple[float, str], Asked]
    made: Comparison
    more: Comparison
    searched: dict[tuple[float, str], list[list[list[int]]]]
    rivals: dict[tuple[float, str], Asked]
    beside: Comparison

    def summary(self) -> pd.DataFrame:
        """`Comparison.summary` against the real images."""
        return self.made.summary(self.real.features)

    def gain(self, t: float, name: str, base: str = BASE) -> tuple[float, float, float]:
        """PSNR of a schedule minus that of another on the same seeds, in dB, with its 95 % interval."""
        return quality.mean_interval(self._difference(t, name, base))

    def _difference(self, t: float, name: str, base: str) -> np.ndarray:
        """PSNR of a schedule minus that of another by image, in dB, over all images that both have."""
        rows = self.more if {name, base} == {EVERY, BASE} else self.made
        return rows.differences("psnr", self.asked[t, name].method, self.asked[t, base].method)

    def differences(self) -> dict[tuple[str, str], np.ndarray]:
        """PSNR of schedules against CONFIG_3, and of the derived ones against pairs found at every step,
        CONFIG_FIVE and as many checkpoints at equal distances, in dB, seed by seed."""
        pairs = []
        for t in self.params.thresholds:
            budgets = [k for at, k in self.derived if at == t]
            rivals = [EVERY, "step 0 only", EVEN, *(least_stale(k) for k in sorted(budgets, reverse=True))]
            rivals += [f"auto {tolerance:g}" for tolerance in self.params.tolerances]
            pairs += [(t, name, BASE) for name in rivals]
            for base in (EVERY, EVEN):
                pairs += [(t, least_stale(k), base) for k in budgets]
            pairs += [(t, least_stale(k), even_as(k)) for k in budgets]
        found = {}
        for t, name, base in pairs:
            found[f"t = {t:g}", f"{name} - {base}"] = self._difference(t, name, base)
        return found

    @cached_property
    def _compared(self) -> pd.DataFrame:
        return quality.difference_table(self.differences(), classes=self.more.classes)

    def comparisons(self) -> pd.DataFrame:
        """`differences` to be read, and over how many images they are."""
        table = self._compared.copy()
        table.insert(0, "images", [len(one) for one in self.differences().values()])
        return table

    def excluded(self) -> str:
        """Say in a sentence how large a difference the intervals of `comparisons` exclude where nothing is
        told apart."""
        verdicts = self._compared["after Holm"]
        ends = [
            _far_end(found) for row, found in self.differences().items() if verdicts[row] == quality.UNTOLD
        ]
        if not ends:
            return "In every row the schedules are told apart after Holm."
        least, most = f"{min(ends):.2f}", f"{max(ends):.2f}"
        span = f"{most} dB" if least == most else f"{least} to {most} dB, depending on the row"
        return (
            f"In {len(ends)} of {len(verdicts)} rows the schedules are not told apart after Holm. That does "
            f"not make them equal. The intervals exclude only differences of more than {span}."
        )

    def relation(self, bounds: bool = False) -> dict[float, float]:
        """By threshold the rank correlation of mean staleness and PSNR over the paper's and the derived
        schedules, `RANKED`, as by `quality.rank_correlation`. NaN for fewer than two.

        Args:
            bounds: take in the two bounds, pairs found at every step and pairs found once. They lie so far
                from the others that they may decide it.
        """
        kinds = ("bounds", *RANKED) if bounds else RANKED
        return {t: quality.rank_correlation(*pair)[0] for t, pair in self._ranked(kinds).items()}

    def relation_chances(self) -> dict[float, float]:
        """By threshold the two-sided p-value of `relation` without the bounds."""
        return {t: quality.rank_correlation(*pair)[1] for t, pair in self._ranked(RANKED).items()}

    def _ranked(self, kinds: tuple[str, ...]) -> dict[float, tuple[pd.Series, pd.Series]]:
        """By threshold the mean staleness and the mean PSNR (dB) of the schedules of these kinds."""
        psnr = self.made.summary()["PSNR"]
        found = {}
        for t in self.params.thresholds:
            tried = [one for (at, _), one in self.asked.items() if at == t and one.kind in kinds]
            bills = [mean_staleness(self.staleness[t], one.checkpoints) for one in tried]
            close = [psnr[one.method.label] for one in tried]
            found[t] = pd.Series(bills, dtype=float), pd.Series(close, dtype=float)
        return found

    def derived_steps(self) -> pd.DataFrame:
        """The checkpoints of the derived schedules, with the images that they were derived on and tried on,
        to be read."""
        unseen, _ = self.params.shards
        images = f"{unseen[0] * SHARD} to {self.params.drift_images - 1}", f"0 to {self.params.images - 1}"
        columns = ["derived on images", "tried on images", "checkpoints at the steps"]
        rows = {
            (t, least_stale(k)): [*images, ", ".join(map(str, steps))]
            for (t, k), steps in self.derived.items()
        }
        index = pd.MultiIndex.from_tuples(list(rows), names=["threshold", "schedule"])
        return pd.DataFrame(list(rows.values()), index, columns)

    def even(self) -> pd.DataFrame:
        """Mean staleness of each derived schedule, ``derived``, and of as many checkpoints at equal
        distances, ``even``, by threshold and number of checkpoints; on the images that schedules are tried
        on."""
        calls = self.params.calls
        rows = {
            (t, k): {
                "even": mean_staleness(self.staleness[t], evenly(k).at(calls)),
                "derived": mean_staleness(self.staleness[t], steps),
            }
            for (t, k), steps in self.derived.items()
        }
        index = pd.MultiIndex.from_tuples(list(rows), names=["threshold", "checkpoints"])
        return pd.DataFrame(list(rows.values()), index, ["even", "derived"])

    def even_staler(self) -> str:
        """By how much checkpoints at equal distances are staler than the least stale ones, at most: the end
        of a sentence."""
        both = self.even()
        more = (both["even"] / both["derived"] - 1).replace(np.inf, np.nan).max() if len(both) else np.nan
        return (
            f"are at most {more:.0%} staler than the least stale ones"
            if np.isfinite(more)
            else "were not compared here"
        )

    def derived_staleness(self) -> pd.DataFrame:
        """The mean staleness of each derived schedule, of CONFIG_3, and of as many checkpoints at equal
        distances, to be read; on the images that schedules are tried on."""
        columns = ["mean staleness", f"that of {BASE}", "difference", "as many at equal distances"]
        rows = {}
        for (t, k), row in self.even().iterrows():
            base = mean_staleness(self.staleness[t], self.asked[t, BASE].checkpoints)
            change = f"{row['derived'] / base - 1:+.0%}" if base else ""
            rows[t, least_stale(k)] = [
                f"{row['derived']:.3f}",
                f"{base:.3f}",
                change,
                f"{row['even']:.3f}",
            ]
        index = pd.MultiIndex.from_tuples(list(rows), names=["threshold", "schedule"])
        return pd.DataFrame(list(rows.values()), index, columns)

    def fixed_schedules(self, t: float) -> dict[str, tuple[int, ...]]:
        """The steps of the paper's and the derived schedules at a threshold, by their names."""
        return {
            name: one.checkpoints for (at, name), one in self.asked.items() if at == t and one.kind in RANKED
        }

    def expected(
        self, records: pd.DataFrame
    ) -> tuple[dict[float, dict[str, float]], dict[float, dict[str, float]]]:
        """Straight lines through the bounds, the paper's and the derived schedules of ``records``, by
        threshold: what a schedule of one's own may give.

        Returns:
            ``intercept`` and ``slope`` (dB) of PSNR over mean staleness, with the standard deviation around
            it, ``spread``; and time over the unmerged one, ``fixed`` and for ``each`` checkpoint. Pairs found
            once are left out, since nothing else is as stale, and so are the even schedules, which are not
            timed.
        """
        quality_of, time_of = {}, {}
        for t in self.params.thresholds:
            rows = records[
                (records["threshold"] == t)
                & ~records["kind"].isin(["online", "even"])
                & (records["schedule"] != "step 0 only")
            ]
            stale, count = rows["staleness"].astype(float), rows["checkpoints"].astype(float)
            intercept, slope, spread = _line(stale, rows["PSNR"].astype(float))
            fixed, each, _ = _line(count, rows["time"].astype(float))
            quality_of[t] = {"intercept": intercept, "slope": slope, "spread": spread}
            time_of[t] = {"fixed": fixed, "each": each}
        return quality_of, time_of

    def records(self, clock: pd.DataFrame) -> pd.DataFrame:
        """One row for each schedule.

        Args:
            clock: of `timed`.

        Returns:
            ``threshold``, ``kind``, ``schedule``, ``checkpoints``, ``staleness``, the columns of `summary`
            that the chapter shows, ``poor`` (the share of images below `quality.POOR_DB`), ``seconds`` (the
            median over turns), ``time`` (over unmerged), `OVER_EVERY` (at the same threshold) and ``gain``
            over CONFIG_3. The last three have intervals, those of times as by
            `catome.study.measure.comparison.time_ratio`. Times are NaN of schedules that were not timed.
        """
        seconds = clock.groupby("method")["seconds"].median()
        summary = self.summary()
        shown = [
            f"{name}{end}" for name in ("PSNR", "distance", "FID change") for end in ("", " low", " high")
        ]
        shown.append("share")
        rows = []
        for (t, name), one in self.asked.items():
            label = one.method.label
            if one.checkpoints is None:
                steps = self.searched[t, name]
                count, bill = searches_made(steps), staleness_of(steps, self.staleness[t])
            else:
                count = sum(step < self.params.calls for step in one.checkpoints)
                bill = mean_staleness(self.staleness[t], one.checkpoints)
            row = {
                "threshold": t,
                "kind": one.kind,
                "schedule": name,
                "checkpoints": count,
                "staleness": bill,
            }
            row |= {column: summary.loc[label, column] for column in shown}
            row["poor"] = float((self.made.of(label)["psnr"] < quality.POOR_DB).mean())
            row["seconds"] = seconds.get(label, np.nan)
            every = self.asked[t, EVERY].method
            for column, other in (("time", "unmerged"), (OVER_EVERY, every)):
                ends = (column, f"{column} low", f"{column} high")
                took = time_ratio(clock, label, other) if label in seconds else (np.nan,) * 3
                row |= dict(zip(ends, took, strict=True))
            row |= dict(zip(("gain", "gain low", "gain high"), self.gain(t, name), strict=True))
            rows.append(row)
        return pd.DataFrame(rows)

    def online(self, records: pd.DataFrame) -> pd.DataFrame:
        """The cost of the online schedules, and their images beside those of `as_often`, to be read;
        ``records`` of `records`."""
        rows = records[records["kind"] == "online"]
        keys = list(zip(rows["threshold"], rows["schedule"], strict=True))
        beside = self.at_equal_searches().reindex(keys)
        table = {
            "threshold": rows["threshold"],
            "schedule": rows["schedule"],
            "searches for an image": rows["checkpoints"].map("{:.1f}".format),
            "mean staleness": rows["staleness"].map("{:.2f}".format),
            "time / unmerged": quality.with_interval(rows, "time"),
            "as often, evenly": beside["even"].to_numpy(),
            "PSNR beside it (dB)": beside["difference (dB)"].to_numpy(),
            "after Holm": beside["after Holm"].to_numpy(),
            **{name: beside[name].to_numpy() for name in beside if name == quality.OVER_CLASSES},
        }
        return pd.DataFrame(table).set_index(["threshold", "schedule"])

    def _equal_searches(self) -> dict[tuple[float, str], np.ndarray]:
        """PSNR of each online schedule minus that of its rival, in dB, seed by seed, by threshold and
        name."""
        return {
            key: self.beside.differences("psnr", self.asked[key].method, rival.method)
            for key, rival in self.rivals.items()
        }

    def at_equal_searches(self) -> pd.DataFrame:
        """Online schedules beside checkpoints at equal distances that search as often, `as_often`.

        Returns:
            `quality.difference_table` of PSNR, online minus even, by threshold and name of the online one,
            with the even one's name, ``even``, and the interval for other prompts.
        """
        table = quality.difference_table(self._equal_searches(), classes=self.beside.classes)
        table["even"] = [rival.name for rival in self.rivals.values()]
        return table

    def beside_equal_searches(self) -> str:
        """Sentences on the online schedules, each beside checkpoints at equal distances."""
        verdicts = self.at_equal_searches()["after Holm"]
        classes = self.beside.classes
        return _beside_even("online", "about as many", self._equal_searches(), verdicts, classes)

    def beside_equal_budgets(self) -> str:
        """Sentences on the derived schedules, each beside as many checkpoints at equal distances: the
        verdicts of `comparisons` after Holm."""
        rows = [(f"t = {t:g}", f"{least_stale(k)} - {even_as(k)}") for t, k in self.derived]
        if not rows:
            return "No derived schedule was tried."
        every = self.differences()
        differences = {row: every[row] for row in rows}
        verdicts = self._compared["after Holm"]
        return _beside_even("derived", "as many", differences, verdicts, self.more.classes)

    def beside_base(self, kind: str) -> str:
        """Sentences on all schedules of a kind, "derived" or "online", beside CONFIG_3: the verdicts of
        `comparisons` after Holm, and how large a difference is excluded where nothing is told apart."""
        said = {
            "closer": (f"is closer to unmerged than {BASE}", f"are closer to unmerged than {BASE}", []),
            "farther": (
                f"is farther from unmerged than {BASE}",
                f"are farther from unmerged than {BASE}",
                [],
            ),
            quality.UNTOLD: (
                f"does not differ detectably from {BASE}",
                f"do not differ detectably from {BASE}",
                [],
            ),
        }
        verdicts, differences = self._compared["after Holm"], self.differences()
        untold = []
        for (t, name), one in self.asked.items():
            if one.kind == kind:
                row = f"t = {t:g}", f"{name} - {BASE}"
                said[verdicts[row]][2].append(f"{name} at t = {t:g}")
                if verdicts[row] == quality.UNTOLD:
                    untold.append(differences[row])
        parts = [
            f"schedule {names[0]} {one}" if len(names) == 1 else f"schedules {listed(names)} {many}"
            for one, many, names in said.values()
            if names
        ]
        if untold:
            parts[-1] += f", where differences of more than {_far_ends(untold)} are excluded"
        return (
            f"By PSNR, with all rows tested at once, the {'. The '.join(parts)}."
            if parts
            else f"No {kind} schedule was tried."
        )

    def _beside_every_step(self) -> dict[str, np.ndarray]:
        """PSNR of every schedule but the bounds minus that of pairs found at every step, in dB, seed by
        seed."""
        return {
            f"{name} at t = {t:g}": self.made.differences("psnr", one.method, self.asked[t, EVERY].method)
            for (t, name), one in self.asked.items()
            if one.kind != "bounds"
        }

    def against_every_step(self) -> pd.DataFrame:
        """`quality.difference_table` of every schedule but the bounds against pairs found at every step."""
        return quality.difference_table(self._beside_every_step())

    def no_upper_bound(self) -> str:
        """Say in sentences what the intervals tell of schedules that may be closer than pairs found at every
        step."""
        table = self.against_every_step()
        highest = max(quality.mean_interval(found)[2] for found in self._beside_every_step().values())
        excluded = f"No interval allows a schedule to be closer by more than {max(0.0, highest):.2f} dB."
        beats, stay = (
            table.index[table[column] == "closer"].tolist() for column in ("verdict", "after Holm")
        )
        if not beats:
            return (
                f"By the paired intervals, none of the {len(table)} schedules tried is detectably closer "
                f"than pairs found at every step. {excluded}"
            )
        verdict = "So whether pairs found at every step give the closest images is not decided."
        if stay:
            verdict = "So pairs found at every step do not give the closest images."
        return (
            f"By the paired intervals, each taken alone, {len(beats)} of the {len(table)} schedules tried "
            f"{'is' if len(beats) == 1 else 'are'} closer to unmerged than pairs found at every step: "
            f"{listed(beats)}. With all schedules tested at once, {listed(stay) or 'none'} "
            f"stay{'s' * (len(stay) < 2)}. {verdict} {excluded}"
        )

    def of_paper(self, records: pd.DataFrame) -> pd.DataFrame:
        """Rows of ``records`` for the paper's schedules at the first threshold, by name."""
        return (
            records[records["threshold"] == self.params.thresholds[0]]
            .set_index("schedule")
            .loc[list(SCHEDULES)]
        )

    def beside_paper(self, records: pd.DataFrame) -> pd.DataFrame:
        """The paper's Table III beside the first threshold here, to be read: time relative to no merging, FID
        and PSNR to the best of the six."""
        ours, theirs = self.of_paper(records), paper.SCHEDULES.loc[list(SCHEDULES)]
        columns = {
            ("checkpoints", ""): ours["checkpoints"].map("{:.0f}".format),
            ("time / unmerged", "paper"): (theirs["seconds"] / paper.METHODS["seconds"].iloc[0]).map(
                "{:.3f}".format
            ),
            ("time / unmerged", "here"): quality.with_interval(ours, "time"),
            ("FID - best", "paper (Inception)"): (theirs["FID"] - theirs["FID"].min()).map("{:.2f}".format),
            ("FID - best", f"here ({self.made.label})"): (ours["FID change"] - ours["FID change"].min()).map(
                "{:.2f}".format
            ),
            ("PSNR - best (dB)", "here"): (ours["PSNR"] - ours["PSNR"].max()).map("{:.2f}".format),
        }
        return pd.DataFrame(columns).rename_axis(None).replace("nan", "")

    def words(self, records: pd.DataFrame) -> dict[str, str]:
        """The numbers that the chapter's text takes up, by their names there, with _ for -; ``records`` of
        `records`."""
        at = {
            t: records[records["threshold"] == t].set_index("schedule")["time"]
            for t in self.params.thresholds
        }
        cached = {t: times.drop(EVERY) for t, times in at.items()}
        merged = {t: self.made.share_of_image(self.asked[t, BASE].method) for t in at}
        words = {
            "images": str(self.made.rows["image"].nunique()),
            "ways": str(len(self.asked)),
            "merged": listed(
                [f"{one:.0%} at t = {t:g} ({mean:.0%} over all images)" for t, (one, mean) in merged.items()]
            ),
            "online": self.beside_base("online"),
            "online_equal": self.beside_equal_searches(),
            "counted": str(self.params.counted.images),
            "derived": self.beside_base("derived"),
            "derived_equal": self.beside_equal_budgets(),
            "excluded": self.excluded(),
            "no_upper_bound": self.no_upper_bound(),
            "searching": _by_threshold(
                {t: f"{quality.spoken(self.gain(t, 'every step', 'step 0 only'), 2)} dB" for t in at}
            ),
            "every_base": _by_threshold(
                {t: f"{quality.spoken(self.gain(t, 'every step', BASE), 2)} dB" for t in at}
            ),
            "even_staler": self.even_staler(),
            "relation": _by_threshold(
                {t: _correlation(value) for t, value in self.relation(bounds=True).items()}
            ),
            "relation_within": _by_threshold(
                {t: _correlation(value) for t, value in self.relation().items()}
            ),
            "staleness_tells": self.staleness_tells(),
            "cheapest": self.cheapest(),
            "fid_little": self.fid_little(),
            "needed": quality.power_words(self.differences().values()),
            "time_searching": _by_threshold({t: self._time(records, t, EVERY, "time") for t in at}),
            "time_base": _by_threshold({t: self._time(records, t, BASE, OVER_EVERY) for t in at}),
            "time_cached": _by_threshold(
                {t: f"{times.min():.2f} to {times.max():.2f}" for t, times in cached.items()}
            ),
        }
        return words | self._words_on_the_paper(records)

    @staticmethod
    def _time(records: pd.DataFrame, t: float, name: str, column: str) -> str:
        """A time of ``records`` with its interval: ``column`` is "time" or `OVER_EVERY`."""
        row = records[records["threshold"] == t].set_index("schedule").loc[name]
        return quality.bracketed(tuple(row[[column, f"{column} low", f"{column} high"]]))

    def staleness_tells(self) -> str:
        """Say in sentences whether staleness ranks the schedules of `relation`: by a permutation test, of all
        thresholds at once (`quality.holm`)."""
        relation, chances = self.relation(), self.relation_chances()
        stays = dict(zip(chances, quality.holm(list(chances.values())), strict=True))
        closer = [t for t in chances if stays[t] and relation[t] < 0]
        farther = [t for t in chances if stays[t] and relation[t] > 0]
        count = sum(
            t == self.params.thresholds[0] and one.kind in RANKED for (t, _), one in self.asked.items()
        )
        known = _by_threshold({t: quality.chance_words(p) for t, p in chances.items() if not np.isnan(p)})
        test = f"By a permutation test over {count} schedules{f' ({known})' * bool(known)}"
        few = "So few schedules can show only a strong relation."
        if len(closer) == len(chances):
            return f"{test}, the less stale the pairs, the closer the images."
        if not closer and not farther:
            return f"{test}, it is not detected that less stale pairs give closer images. {few}"
        neither = [t for t in chances if t not in (*closer, *farther)]
        yes, against, no = (listed([f"t = {t:g}" for t in some]) for some in (closer, farther, neither))
        told = [f"closer images at {yes}"] * bool(closer) + [f"farther images at {against}"] * bool(farther)
        said = f"{test}, less stale pairs give {', but '.join(told)}."
        return f"{said} At {no} no relation is detected. {few}" if neither else said

    def cheapest(self) -> str:
        """Say in sentences which checkpoints of CONFIG_3 could be left out at the lowest price in staleness,
        and which at the highest, at the first threshold."""
        t = self.params.thresholds[0]
        steps = [step for step in self.asked[t, BASE].checkpoints if step < self.params.calls]
        whole = mean_staleness(self.staleness[t], steps)
        prices = {
            left_out: mean_staleness(self.staleness[t], [step for step in steps if step != left_out]) - whole
            for left_out in steps
            if left_out  # the first must stay
        }
        order = sorted(prices, key=prices.get)
        cheap = order[: max(1, len(order) // 3)]
        rises = f"the mean staleness rises by {prices[cheap[-1]]:.3f}"
        if len(cheap) == 1:
            said = f"At t = {t:g} the cheapest checkpoint of {BASE} is {cheap[0]}. Without it, {rises}."
        else:
            named = listed([str(step) for step in sorted(cheap)])
            said = (
                f"At t = {t:g} the cheapest checkpoints of {BASE} are {named}. Without one of them, {rises} "
                "at most."
            )
        if len(order) == 1:
            return said
        return f"{said} It rises most without {order[-1]}, by {prices[order[-1]]:.3f}."

    def fid_little(self) -> str:
        """Say in sentences why a FID of these images tells little."""
        of_class = int(self.made.of("unmerged").groupby("class").size().max())
        groups = f" The interval of a change comes from leaving out {of_class} groups of images in turn."
        return quality.rank_words(self.made.features("unmerged")) + groups * (of_class > 1)

    def _words_on_the_paper(self, records: pd.DataFrame) -> dict[str, str]:
        ours, theirs = self.of_paper(records), paper.SCHEDULES.loc[list(SCHEDULES)]
        t, best = self.params.thresholds[0], ours["PSNR"].astype(float).idxmax()
        apart = [name for name in SCHEDULES if name != best and self.gain(t, best, name)[1] > 0]
        order, _ = quality.rank_correlation(-ours["PSNR"], theirs["FID"])
        return {
            "first_threshold": f"{t:g}",
            "paper_best": theirs["FID"].idxmin(),
            "paper_worst": theirs["FID"].idxmax(),
            "paper_apart": f"{np.ptp(theirs['FID']):.1f}",
            "best": best,
            "told_apart": f"{len(apart)} of the other {len(ours) - 1}{f' ({listed(apart)})' * bool(apart)}",
            "order": _correlation(order),
            "fid_apart": self._fid_apart(ours),
            "paper_slower": f"{theirs['seconds'].max() / theirs['seconds'].min() - 1:.1%}",
            "slower": f"{ours['time'].max() / ours['time'].min() - 1:.1%}",
        }

    @staticmethod
    def _fid_apart(ours: pd.DataFrame) -> str:
        spread = np.ptp(ours["FID change"])
        halves = (ours["FID change high"] - ours["FID change low"]).median() / 2
        if np.isnan(spread):
            return "So few images have no FID."
        known = "" if np.isnan(halves) else f", where each is known to ±{halves:.2f}"
        return f"In FID the six lie {spread:.2f} apart here{known}."


def _line(x: pd.Series, y: pd.Series) -> tuple[float, float, float]:
    """A straight line of least squares: where it begins, its slope, and the standard deviation around it;
    level where all ``x`` are equal. Infinite ``y``, of unchanged images, are left out."""
    kept = np.isfinite(y)
    x, y = x[kept], y[kept]
    if x.nunique() < 2:
        return float(y.mean()) if len(y) else 0.0, 0.0, float(y.std()) if len(y) > 1 else 0.0
    slope, intercept = np.polyfit(x, y, 1)
    around = y - intercept - slope * x
    return float(intercept), float(slope), float(np.sqrt((around**2).sum() / max(len(y) - 2, 1)))


def _by_threshold(found: dict[float, str]) -> str:
    """``x at t = 0.7 and y at t = 0.9``."""
    return listed([f"{said} at t = {t:g}" for t, said in found.items()])


def _correlation(value: float) -> str:
    """A rank correlation with its sign; there is none where all ranks are equal."""
    return "undefined" if np.isnan(value) else f"{value:+.2f}"


def _far_end(differences: np.ndarray) -> float:
    """The end of the interval of a difference that is farther from zero, in dB: a larger one is excluded."""
    _, low, high = quality.mean_interval(differences)
    return max(abs(low), abs(high))


def _far_ends(found: Iterable[np.ndarray]) -> str:
    """The least and the largest `_far_end` of several differences, to be read: ``0.62 to 1.10 dB``."""
    ends = [_far_end(one) for one in found]
    span = dict.fromkeys((f"{min(ends):.2f}", f"{max(ends):.2f}"))
    return f"{' to '.join(span)} dB"


def _beside_even(
    kind: str,
    as_many: str,
    differences: Mapping[tuple, np.ndarray],
    verdicts: Mapping[tuple, str],
    classes: np.ndarray,
) -> str:
    """Sentences on schedules that each stand beside checkpoints at equal distances.

    Args:
        kind: of the schedules, "derived" or "online".
        as_many: how many checkpoints they stand beside.
        differences: PSNR minus that of the even one, in dB, seed by seed.
        verdicts: on these and perhaps other differences, "closer", "farther" or `quality.UNTOLD`.
        classes: of the images, by number; there may be more than there are differences.
    """
    told = {row: [] for row in ("closer", "farther", quality.UNTOLD)}
    for row, found in differences.items():
        told[verdicts[row]].append(found)
    holds = sum(
        quality.verdict(*quality.over_classes(found, classes[: len(found)])[1:]) == said
        for said in ("closer", "farther")
        for found in told[said]
    )
    detected, untold = len(told["closer"]) + len(told["farther"]), told[quality.UNTOLD]
    if len(differences) == 1:
        how = "not detectably different"
        if detected:
            how = "closer to unmerged" if told["closer"] else "farther from unmerged"
        sentences = [
            f"With the one {kind} schedule, beside {as_many} checkpoints at equal distances, the images "
            f"are {how}."
        ]
    else:
        closer, farther, neither = (len(some) or "none" for some in told.values())
        sentences = [
            f"Each of the {len(differences)} {kind} schedules stands beside {as_many} checkpoints at equal "
            f"distances. The images are closer to unmerged with {closer} of them, farther with {farther}, "
            f"and not detectably different with {neither}."
        ]
    if untold:
        sentences.append(
            "Where no difference is detectable, the intervals exclude differences of more than "
            f"{_far_ends(untold)}."
        )
    if detected and len(set(classes)) > 1:
        tried = classes[: max(map(len, differences.values()))]
        once = quality.one_of_each(tried)
        sentences.append(quality.ONE_OF_EACH if once else quality.held_words(detected, holds))
    return " ".join(sentences)
