"""The frontier, not points: every method over its own knob, quality over measured time and over counted work.

``python -m catome.study curves --timed`` records it; chapter 6 shows it. The images have a seed by which no
setting was chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Annotated

import numpy as np
import pandas as pd

from catome.policy.forecast import Forecast
from catome.runtime.config import FAST, RECOMMENDED
from catome.study import from_papers, methods
from catome.study.measure import quality
from catome.study.measure.comparison import Comparison, compare
from catome.study.measure.turns import faster, of_unmerged, turns, turns_on
from catome.study.methods import Method, together
from catome.study.run.denoiser import check_has_unet
from catome.study.run.generate import with_sampler
from catome.study.run.parameters import (
    AnySampler,
    Count,
    Flag,
    Seed,
    Setting,
    checked_by,
    names_among,
    parameters,
)
from catome.study.studies.compose import HELD_OUT
from catome.study.studies.jobs import Job, of_images

NOTEBOOK = None


Kinds = Annotated[list[str] | None, checked_by(names_among(lambda: kinds()))]
"""Names of `kinds`; None for all."""

TIMED_IMAGES = 12
"""One of each class of the embedded model."""


@parameters
class Parameters(Setting):
    """The parameters of this study: which images, and which methods.

    Attributes:
        seed: of the images, by which no setting was chosen.
        sampler: "DPM++" or "Euler", as diffusers has them, for generations of few steps, "LCM" for a model
            that was distilled to them; None for the pipeline's own.
        only: kinds of methods, by their names in `kinds`; None for all.
        timed_images: that the methods are timed on: of the embedded model, one of each class.
        recompute: generate everything again, whatever is kept.
    """

    seed: Seed = HELD_OUT
    sampler: AnySampler = None
    only: Kinds = None
    timed_images: Count = TIMED_IMAGES
    recompute: Flag = False

    @property
    def timed(self) -> Setting:
        """The images that the methods are timed on."""
        return self.common(images=min(self.timed_images, self.images))

    @property
    def kinds(self) -> dict[str, dict[str, Method]]:
        """`kinds`, as far as they are asked for."""
        every = kinds(self.steps, few=self.sampler is not None)
        return {
            name: some
            for name, some in every.items()
            if self.only is None or name.split(" (")[0] in self.only
        }


def beside(setting: Setting, images: int, **own) -> Parameters:
    """The parameters for as many images, at most, as another study has, under the seed that is held out;
    ``own`` are others of `Parameters`."""
    common = setting.common(images=min(images, setting.images), seed=HELD_OUT)
    return Parameters(**asdict(common), **own)


SHARES = (0.25, 0.5, 0.75)
"""Of tokens, for the methods that are given one."""


GROWING = ((6, 1.15), (5, 1.3), (5, 1.4))
"""Forecasts: the calls that are computed at first in 50 steps, and by what each interval is longer than the
one before."""

KEPT_STEPS = (0.75, 0.6, 0.5, 0.4)
"""Shares of the steps, for generations of fewer steps."""


OF_THE_PAPER = ("CA-ToMe", "CA-ToMe with fresh pairs", "CA-ToMe with even spacing")
"""The paper's method as its tables have it, with pairs found at every call, and with checkpoints at even
intervals."""


def kinds(steps: int = 50, few: bool = False) -> dict[str, dict[str, Method]]:
    """The settings of each kind of method for a generation of so many steps, gentle ones first, by what a
    table calls them.

    Args:
        steps: of the generation.
        few: for a sampler that makes images in few steps. Then the checkpoints of the library's
            configurations are at nearly every call, so merged keys are tried with pairs kept for four calls,
            too, as is CA-ToMe with even spacing; and forecasts begin as much earlier as the generation is
            shorter, and at equal intervals, too.

    A forecast that leaves out no call in so few steps is no setting, and a kind without settings is none.
    """
    keys = methods.merged_keys
    best, fast = (methods.named_configuration(config, "EVEN_13") for config in (RECOMMENDED, FAST))
    gentle = keys(0.8, schedule="EVEN_13", compare="keys")
    strong = keys(0.4, stride=(4, 4), schedule="EVEN_13", compare="keys")
    deep = {interval: methods.deep_cache(interval) for interval in (2, 3, 5)}
    skipped = {
        f"growing by {growth:g}": _growing(first, growth, steps, few)
        for first, growth in GROWING
        if _leaves_out(first, growth, steps, few)
    }
    fewer = dict.fromkeys(methods.kept_steps(share, steps) for share in KEPT_STEPS)
    if few:
        fewer = [kept for kept in fewer if kept < steps]
    found = {
        "merged keys": {"t = 0.8": gentle, "t = 0.7": best, "t = 0.6, 4x4": fast, "t = 0.4, 4x4": strong},
    }
    every_four = f"EVEN_{max(1, round(steps / 4))}"
    seldom = keys(0.7, schedule=every_four, compare="keys")
    schedules = ("CONFIG_3", None, every_four if few else "EVEN_13")
    if few and seldom.label != best.label:
        found["merged keys (few searches)"] = {"t = 0.7, kept for 4 calls": seldom}
    for kind, schedule in zip(OF_THE_PAPER, schedules, strict=True):
        found[kind] = {f"t = {t:g}": methods.ca_tome(t, schedule) for t in (0.9, 0.8, 0.7)}
    found |= {
        "ToMe": {f"r = {r:g}": methods.tome(r) for r in SHARES},
        "tomesd": {f"r = {r:g}": methods.tomesd(r) for r in SHARES},
        "ToFu": {f"r = {r:g}": from_papers.tofu(r) for r in SHARES},
        "SiTo": {f"r = {r:g}": from_papers.sito(r) for r in SHARES},
        "ToDo": {"1x2": methods.todo(2, rows=1), "2x2": methods.todo(2), "4x4": methods.todo(4)},
        "average pooling": {"2x2": from_papers.average_pooling(2), "4x4": from_papers.average_pooling(4)},
        "DeepCache": {f"every {interval}": method for interval, method in deep.items()},
        "forecast": skipped,
    }
    if few:
        found["forecast (equal gaps)"] = _equal_gaps(steps)
    found |= {
        "fewer steps": {f"{kept} steps": methods.fewer_steps(kept) for kept in fewer},
        "merged keys + DeepCache": {
            f"every {interval}": together(best, deep[interval]) for interval in (2, 3)
        },
        "merged keys + forecast": {
            name: together(best, skipped[name])
            for name in ("growing by 1.15", "growing by 1.3")
            if name in skipped
        },
    }
    return {kind: some for kind, some in found.items() if some}


def first_calls(first: int, steps: int, few: bool) -> int:
    """Calls that a forecast computes at first: of a sampler for few steps, as many fewer as the generation is
    shorter."""
    return max(2, round(first * steps / 50)) if few else first


def _growing(first: int, growth: float, steps: int, few: bool) -> Method:
    """A forecast whose intervals grow."""
    return methods.forecast(1, 1, first_calls(first, steps, few), growth)


def _leaves_out(first: int, growth: float, steps: int, few: bool) -> bool:
    """True if such a forecast leaves out a call of the generation; PLMS has one more than its steps."""
    made = Forecast(first_calls(first, steps, few), 1.0, growth, 1)
    return not all(map(made.runs, range(steps if few else steps + 1)))


def _equal_gaps(steps: int) -> dict[str, Method]:
    """Forecasts that compute every second or third call after the first two, each of which leaves out other
    calls of so many."""
    left_out, found = set(), {}
    for interval in (2, 3):
        made = Forecast(2, float(interval), 1.0, 1)
        skipped = tuple(call for call in range(steps) if not made.runs(call))
        if skipped and skipped not in left_out:
            found[f"every {interval}"] = methods.forecast(interval, 1, 2)
        left_out.add(skipped)
    return found


OF_UNETS = ("tomesd", "ToFu", "SiTo", "DeepCache", "merged keys + DeepCache")
"""The kinds that only a U-Net can have."""


def _in_which(time: bool, work: bool) -> str:
    """The measures, time or work, by which nothing beats a setting, for a table."""
    return ", ".join(name for name, best in (("time", time), ("work", work)) if best)


STAYS = "unbeaten in time (share of resamples)"
"""The column of tables with the share of resamples in which a setting is unbeaten in time."""


def _said(rows: pd.DataFrame, column: str) -> str:
    """Settings that are ``column`` ("best in time" or "best in work"), as a sentence names them.

    Where a setting is unbeaten in time in fewer of the resamples than `catome.study.measure.quality.SURE`,
    its share stands behind it: ``t = 0.8 and t = 0.7 [in only 39% of resamples]``."""
    names = []
    for setting, stays in zip(rows["setting"], rows["stays"], strict=True):
        names.append(setting + quality.by_chance(stays) * (column == "best in time"))
    return quality.listed(names)


def _variants(records: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The rows of a kind and of its variants, whose names go on behind it by "with": the settings of a
    variant have its name behind them, as ``t = 0.9 (fresh pairs)``."""
    own = records[(records["kind"] == kind) | records["kind"].str.startswith(f"{kind} with ")]
    behind = own["kind"].str.removeprefix(kind).str.removeprefix(" with ")
    return own.assign(setting=own["setting"].where(behind == "", own["setting"] + " (" + behind + ")"))


def _all_of(of_kind: dict[str, dict[str, Method]]) -> list[Method]:
    return [method for some in of_kind.values() for method in some.values()]


def jobs(params: Parameters) -> Iterator[Job]:
    """All generations."""
    calls = None if params.sampler is None else params.steps
    yield from of_images(1, params, [method.label for method in _all_of(params.kinds)], calls)


def check(params: Parameters, pipe) -> None:
    """Refuse a model that some of the methods cannot have: `catome.study.run.denoiser.check_has_unet`."""
    if set(params.kinds) & set(OF_UNETS):
        check_has_unet(params, pipe)


def run(params: Parameters, pipe, **kept) -> Result:
    """Generate by every setting of every method.

    Args:
        params: which.
        pipe: an unpatched pipeline.
        kept: ``folder`` and ``recorded`` as in `catome.study.compare`.
    """
    check(params, pipe)
    of_kind = params.kinds
    every, plain = [methods.unmerged(), *_all_of(of_kind)], {}
    with with_sampler(pipe, params.sampler):
        for some in of_kind.values():  # kind by kind, so that what was made is kept soon
            compare(pipe, params, list(some.values()), recompute=params.recompute, plain=plain, **kept)
        made = compare(pipe, params, every, plain=plain, **kept)
    return Result(params, of_kind, made)


def timed(result: Result, pipe, **kept) -> pd.DataFrame:
    """Rows of `catome.study.measure.turns.TURNS`: every setting, over images of several classes."""
    asked = replace(result.params.timed, batch_size=1)
    every = [methods.unmerged(), *_all_of(result.kinds)]
    with with_sampler(pipe, result.params.sampler):
        return turns(pipe, asked, every, recompute=result.params.recompute, **kept)


@dataclass(frozen=True)
class Result:
    """The results of this study.

    Attributes:
        params: the parameters.
        kinds: the methods, by kind and setting.
        made: the rows.
    """

    params: Parameters
    kinds: dict[str, dict[str, Method]]
    made: Comparison

    def records(self, clock: pd.DataFrame) -> pd.DataFrame:
        """One row for each setting.

        Args:
            clock: rows of `timed`.

        Returns:
            ``kind``, ``setting``, ``PSNR`` (dB), ``speed-up`` and ``flops`` (the share of the unmerged
            generation's that is left), each with ``low`` and ``high`` of its 95 % interval over images, that
            of the speed-up and of the work over the timed ones, as by `catome.study.measure.turns.faster`;
            ``poor``, the share of images below `catome.study.measure.quality.POOR_DB`; ``best in time`` and
            ``best in work``, whether neither another setting nor the unmerged pipeline beats it; and
            ``stays``, the share of resamples, of images and of timed images, in which this holds in time.
        """
        summary, speed = self.made.summary(), faster(clock)
        rows = []
        for kind, some in self.kinds.items():
            for setting, method in some.items():
                row = {"kind": kind, "setting": setting} | speed.loc[method.label].to_dict()
                row |= summary.loc[method.label, ["PSNR", "PSNR low", "PSNR high"]].to_dict()
                rows.append(row | {"poor": float((self.made.of(method)["psnr"] < quality.POOR_DB).mean())})
        table = pd.DataFrame(rows)
        psnr = table["PSNR"].to_numpy(float)
        table["best in time"] = quality.unbeaten(psnr, table["speed-up"].to_numpy(float))
        table["best in work"] = quality.unbeaten(psnr, -table["flops"].to_numpy(float), unmerged=-1)
        every = _all_of(self.kinds)
        by_image = np.stack([self.made.of(method)["psnr"].to_numpy(float) for method in every])
        time_left = of_unmerged(clock, "seconds")[[method.label for method in every]]
        table["stays"] = quality.share_unbeaten(by_image, time_left.to_numpy(float).T)
        return table

    def gain(self, a: tuple[str, str], b: tuple[str, str]) -> tuple[float, float, float]:
        """PSNR of one ``(kind, setting)`` minus another's on the same seeds, in dB, with its 95 %
        interval."""
        return self.made.paired("psnr", self.kinds[a[0]][a[1]], self.kinds[b[0]][b[1]])

    def shown(self, records: pd.DataFrame) -> pd.DataFrame:
        """``records`` of `records`, to be read."""
        best = records[["best in time", "best in work"]].apply(lambda row: _in_which(*row), axis=1)
        return pd.DataFrame(
            {
                "PSNR (dB)": quality.with_interval(records, "PSNR", 1).to_list(),
                "speed-up": quality.with_interval(records, "speed-up").to_list(),
                "work left": quality.with_interval(records, "flops").to_list(),
                f"below {quality.POOR_DB} dB": records["poor"].map("{:.0%}".format).to_list(),
                "unbeaten in": best.to_list(),
                STAYS: records["stays"].map("{:.0%}".format).to_list(),
            },
            index=pd.MultiIndex.from_frame(records[["kind", "setting"]], names=[None, None]),
        )

    def unbeaten(self, records: pd.DataFrame) -> pd.DataFrame:
        """The rows of `shown` that neither another setting nor the unmerged pipeline beats, in time or in
        work."""
        best = records["best in time"] | records["best in work"]
        return self.shown(records)[best.to_numpy(bool)]

    def rivals(self, records: pd.DataFrame, kind: str, variants: bool = True) -> pd.DataFrame:
        """For each setting of one kind, the closest setting of another kind that costs no more, to be read.

        Variants of the kind, and combinations with it, are no rivals of it. The rival is chosen by the images
        that it is then compared on, so its lead is a little too large.

        Args:
            records: of `records`.
            kind: one of `kinds`.
            variants: whether the settings of its variants, as ``CA-ToMe with fresh pairs``, have rows, too.
        """
        others = records[~records["kind"].str.startswith(kind)]
        asked = records["kind"] == kind
        if variants:
            asked |= records["kind"].str.startswith(f"{kind} with ")
        rows = {}
        for _, own in records[asked].iterrows():
            row = {"PSNR (dB)": f"{own['PSNR']:.1f}"}
            for cost, no_dearer in (
                ("work", others["flops"] <= own["flops"]),
                ("time", others["speed-up"] >= own["speed-up"]),
            ):
                cheap = others[no_dearer]
                if cheap.empty:
                    row |= {f"closest at no more {cost}": "none", f"its lead in {cost} (dB)": ""}
                    continue
                rival = cheap.loc[cheap["PSNR"].idxmax()]
                lead = self.gain((rival["kind"], rival["setting"]), (own["kind"], own["setting"]))
                row[f"closest at no more {cost}"] = f"{rival['kind']}, {rival['setting']}"
                row[f"its lead in {cost} (dB)"] = quality.spoken(lead)
            rows[f"{own['kind']}, {own['setting']}"] = row
        return pd.DataFrame(rows).T

    def forecasts(self) -> dict[str, np.ndarray]:
        """PSNR of each forecast that grows minus that of fewer steps that call the model at least as often,
        in dB, by image.

        Of several such numbers of steps it is the least. A forecast that calls the model more often than all
        of them is left out."""
        few = self.params.sampler is not None
        more = 0 if few else 1  # PLMS calls the model once more than it has steps
        steps = self.params.steps
        kept = sorted({methods.kept_steps(share, steps) for share in KEPT_STEPS})
        found = {}
        for first, growth in GROWING:
            name = f"growing by {growth:g}"
            made = Forecast(first_calls(first, steps, few), 1.0, growth, 1)
            calls = sum(map(made.runs, range(steps + more)))
            enough = [count for count in kept if count + more >= calls]
            if (
                name in self.kinds.get("forecast", {})
                and enough
                and f"{enough[0]} steps" in self.kinds.get("fewer steps", {})
            ):
                pair = self.kinds["forecast"][name], self.kinds["fewer steps"][f"{enough[0]} steps"]
                label = f"{name} ({calls} calls) - {enough[0]} steps ({enough[0] + more} calls)"
                found[label] = self.made.differences("psnr", *pair)
        return found

    def best(self, records: pd.DataFrame, column: str) -> str:
        """The settings that no other one beats, nor the unmerged pipeline, kind by kind: ``ToDo (1x2); merged
        keys (t = 0.8 and t = 0.7)``; "none" where all are beaten.

        Args:
            records: of `records`.
            column: "best in time" or "best in work".
        """
        unbeaten = records[records[column]].groupby("kind", sort=False)
        return "; ".join(f"{kind} ({_said(rows, column)})" for kind, rows in unbeaten) or "none"

    def place_of(self, records: pd.DataFrame, kind: str) -> str:
        """Name in sentences the settings of a kind and of its variants that no other one beats, nor the
        unmerged pipeline, and say how many the latter beats in time."""
        own = _variants(records, kind)
        if own.empty:
            return f"No setting of {kind} was tried."
        found = []
        for column, name in (("best in time", "in time"), ("best in work", "in work")):
            best = own[own[column]]
            verb = "are" if len(best) > 1 else "is"
            found.append(f"{_said(best, column) or 'no setting'} {verb} unbeaten {name}")
        if own[["best in time", "best in work"]].any(axis=None):
            said = f"Of {kind}, {'; '.join(found)}."
        else:
            said = f"No setting of {kind} is unbeaten, in time or in work."
        psnr, speed = (own[[column]].to_numpy(float) for column in ("PSNR", "speed-up"))
        slow = int((~quality.unbeaten(psnr, speed)).sum())  # each alone, so only the unmerged one can beat it
        if not slow:
            return said
        if len(own) == 1:
            which = "the one setting"
        elif slow == len(own):
            which = f"all {slow} settings"
        else:
            which = f"{slow} of the {len(own)} settings"
        return f"{said} The unmerged pipeline beats {which} of {kind} in time."

    def words(self, records: pd.DataFrame) -> dict[str, str]:
        """The numbers that the chapter's text takes up, by their names there, with _ for -; ``records`` of
        `records`."""
        return {
            "curve_images": str(self.params.images),
            "curve_settings": str(len(records)),
            "curve_kinds": str(records["kind"].str.split(" with ").str[0].nunique()),  # a variant is no other
            "best_in_time": self.best(records, "best in time"),
            "best_in_work": self.best(records, "best in work"),
            "papers_curve": self.place_of(records, "CA-ToMe"),
            "own_curve": self.place_of(records, "merged keys"),
            "curve_resamples": f"{quality.DRAWS:,}",
        }

    def report(self) -> str:
        """PSNR of every setting; the times are in `records`."""
        summary = self.made.summary()
        lines = [f"{self.params.images} images, PSNR against unmerged (dB)"]
        for kind, some in self.kinds.items():
            for setting, method in some.items():
                mean, low, high = summary.loc[method.label, ["PSNR", "PSNR low", "PSNR high"]]
                lines.append(f"{kind:24} {setting:16} {mean:5.1f} [{low:5.1f}, {high:5.1f}]")
        return "\n".join(lines)


def of_lengths(params: Mapping[int, Parameters], pipe, **kept) -> Lengths:
    """Generate and time by every setting of every method, for several numbers of steps; ``params`` by that
    number."""
    results = {steps: run(own, pipe, **kept) for steps, own in params.items()}
    clocks = {steps: timed(result, pipe, **kept) for steps, result in results.items()}
    return Lengths(results, clocks)


@dataclass(frozen=True)
class Lengths:
    """The frontier for several numbers of steps.

    Attributes:
        results: by the number of steps.
        clocks: rows of `timed`, likewise.
    """

    results: dict[int, Result]
    clocks: dict[int, pd.DataFrame]

    @cached_property
    def records(self) -> dict[int, pd.DataFrame]:
        """`Result.records` by the number of steps."""
        return {steps: result.records(self.clocks[steps]) for steps, result in self.results.items()}

    def _joined(self, tables: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
        return pd.concat({f"{steps} steps": table for steps, table in tables.items()})

    def unbeaten(self) -> pd.DataFrame:
        """`Result.unbeaten` for each number of steps."""
        return self._joined(
            {steps: self.results[steps].unbeaten(records) for steps, records in self.records.items()}
        )

    def forecasts(self) -> pd.DataFrame:
        """`Result.forecasts` for each number of steps, to be read; with the interval for other prompts,
        unless each image has a prompt of its own."""
        differences = {
            (f"{steps} steps", name): values
            for steps, result in self.results.items()
            for name, values in result.forecasts().items()
        }
        classes = self.results[min(self.results)].made.classes
        return quality.difference_table(differences, classes=classes)

    def rivals(self, kind: str) -> pd.DataFrame:
        """`Result.rivals` of a kind without its variants, for each number of steps."""
        return self._joined(
            {
                steps: self.results[steps].rivals(records, kind, variants=False)
                for steps, records in self.records.items()
            }
        )

    def shown(self) -> pd.DataFrame:
        """`Result.shown` for each number of steps."""
        return self._joined(
            {steps: self.results[steps].shown(records) for steps, records in self.records.items()}
        )

    def settings(self) -> str:
        """A sentence on how many settings each number of steps has."""
        counts = [f"{len(records)} in {steps} steps" for steps, records in self.records.items()]
        return f"The numbers of settings are {quality.listed(counts)}."

    def forecasts_told(self, steps: int) -> str:
        """A sentence on the first forecast of `forecasts` for a number of steps."""
        for name, values in self.results[steps].forecasts().items():
            mean, low, high = quality.mean_interval(values)
            verdict = quality.verdict(
                low, high, "are closer to unmerged than", "are farther from unmerged than"
            )
            verdict = "differ in no detectable way from" if verdict == quality.UNTOLD else verdict
            forecast, fewer = name.split(" - ")
            return (
                f"In {steps} steps, images by a forecast {forecast} {verdict} those of {fewer}: "
                f"{quality.spoken((mean, low, high))} dB."
            )
        return f"In {steps} steps, no forecast was tried beside fewer steps."

    def words(self) -> dict[str, str]:
        """The numbers that the chapter's text takes up, by their names there, with _ for -."""
        few = min(self.results)
        return {
            "curve_images": str(self.results[few].params.images),
            "curve_settings": self.settings(),
            "curve_clock": turns_on(self.clocks[few]),
            "papers_curve_few": self.results[few].place_of(self.records[few], "CA-ToMe"),
            "forecasts_curve_few": self.forecasts_told(few),
            "own_curve_few": self.results[few].place_of(self.records[few], "merged keys"),
            "curve_resamples": f"{quality.DRAWS:,}",
        }
