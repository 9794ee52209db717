"""The paper's method as its text tells it, and as the code does it that its authors have released.

The two differ in four ways (version 0.1.3 on PyPI). Each is tried alone, and all together:

- Steps are counted from 1. The checkpoint 0 never comes, and every other one comes a call earlier than its
  number says.
- The cache is never emptied. Until the first checkpoint, a generation uses the pairs of the generation
  before.
- The dst token of each window is a random one, not the top-left one.
- Every row of a batch merges as many tokens as the row with the most pairs above the threshold.

Whether the paper's images were made by that code is not known. ``python -m catome.study released`` prints the
tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import pandas as pd

from catome.policy.schedule import LENGTH, Schedule, parse_schedule
from catome.runtime.config import PAPER, MergeConfig
from catome.runtime.install import install, uninstall
from catome.runtime.state import decide
from catome.study import methods
from catome.study.measure import quality
from catome.study.measure.comparison import Comparison, compare
from catome.study.methods import Method, PlaceInCall, fullest_row
from catome.study.run.denoiser import denoiser
from catome.study.run.generate import generate_batch
from catome.study.run.parameters import Cosines, Flag, Setting, checked_by, parameters
from catome.study.studies.jobs import Job, of_images
from catome.tensors.matching import Matches
from catome.tensors.plan import MergePlan

NOTEBOOK = None


def _of_steps(name: str, value) -> object:
    if parse_schedule(value) is None:
        raise ValueError(f"{name}={value!r} must be a schedule of steps, such as 'CONFIG_3'")
    return value


@parameters
class Parameters(Setting):
    """The parameters of this study.

    Attributes:
        thresholds: to merge by.
        schedule: of checkpoints; a name, or steps.
        recompute: generate everything again, whatever is kept.
    """

    thresholds: Cosines = (0.7, 0.9)
    schedule: Annotated[object, checked_by(_of_steps)] = "CONFIG_3"
    recompute: Flag = False

    @property
    def before(self) -> Setting:
        """The batch whose pairs a generation finds in the cache: of the next seed, each image of the class
        before."""
        names = self.names[: min(self.batch_size, self.images)]
        return self.common(images=len(names), seed=self.seed + 1, classes=[names[-1], *names[:-1]])


@dataclass(frozen=True)
class Details:
    """The differences of the code as released from the paper's text; by default there are none.

    Attributes:
        from_one: steps are counted from 1.
        kept: the cache is not emptied after a generation.
        random: the dst token of a window is a random one.
        by_batch: every row of a batch merges as many tokens as the fullest row.
    """

    from_one: bool = False
    kept: bool = False
    random: bool = False
    by_batch: bool = False

    def __str__(self) -> str:
        named = {
            "steps from 1": self.from_one,
            "pairs kept": self.kept,
            "random dst": self.random,
            "by the fullest row": self.by_batch,
        }
        return ", ".join(words for words, given in named.items() if given)


TEXT = "the paper's text"
RELEASED = "all four: as released"
VARIANTS = {
    TEXT: Details(),
    "steps counted from 1": Details(from_one=True),
    "steps from 1, and the cache never emptied": Details(from_one=True, kept=True),
    "a random dst token": Details(random=True),
    "as many in every row as in the fullest": Details(by_batch=True),
    RELEASED: Details(True, True, True, True),
}
"""The variants that are tried, by what a table calls them.

A cache that is never emptied changes something only where checkpoint 0 never comes."""


def counted_from_one(schedule) -> Schedule:
    """A schedule whose steps are counted from 1, in calls counted from 0. Where nothing is kept, pairs are
    found at call 0."""
    parsed = parse_schedule(schedule)
    earlier = {step - 1 for step in parsed.at(LENGTH) if step > 0}
    return Schedule(tuple(sorted({0} | earlier)), None if parsed.length is None else LENGTH)


def variant(threshold: float, params: Parameters, details: Details) -> Method:
    """CA-ToMe with some of the differences.

    Args:
        threshold: to merge by.
        params: of the study: the schedule, and the batch whose pairs are left in the cache.
        details: the differences.
    """
    batch = min(params.batch_size, params.images)
    if details == Details():
        return methods.ca_tome(threshold, params.schedule)
    if details == Details(by_batch=True):
        return methods.batch_maximum(threshold, params.schedule, batch)
    config = PAPER.changed(
        threshold=float(threshold),
        schedule=counted_from_one(params.schedule) if details.from_one else params.schedule,
        dst="random" if details.random else "top_left",
    )

    @contextmanager
    def applied(pipe) -> Iterator:
        model, place = denoiser(pipe), PlaceInCall()
        last: dict[int, MergePlan] = {}

        def choose(matches: Matches, config: MergeConfig) -> MergePlan:
            step, here = place.next(patch)
            old = last.get(here)
            rows, tokens = len(matches.best), matches.grid[0] * matches.grid[1]
            if details.kept and step == 0 and old is not None and old.target.shape == (rows, tokens):
                return old
            last[here] = fullest_row(matches, config) if details.by_batch else decide(matches, config)
            return last[here]

        patch = install(model, config, choose, pipe)
        try:
            if details.kept:
                generate_batch(pipe, params.before, range(batch))
            yield pipe
        finally:
            uninstall(model)

    of_batch = f", batch={batch}" if details.by_batch else ""
    told = f"threshold={threshold:g}, schedule={methods.schedule_name(params.schedule)}, {details}{of_batch}"
    return Method(f"CA-ToMe as released({told})", "CA-ToMe", applied, batch if details.by_batch else None)


def ways_of(params: Parameters) -> dict[tuple[float, str], Method]:
    """The method of each threshold and variant."""
    return {
        (t, name): variant(t, params, details)
        for t in dict.fromkeys(params.thresholds)
        for name, details in VARIANTS.items()
    }


def jobs(params: Parameters) -> Iterator[Job]:
    """All generations, with those that leave their pairs in the cache: one for each batch and variant that
    keeps them."""
    ways = ways_of(params)
    yield from of_images(1, params, [way.label for way in ways.values()])
    batches = -(-params.images // params.batch_size)
    for (_, name), way in ways.items():
        if VARIANTS[name].kept:
            for _ in range(batches):
                yield Job(1, "images", f"before {way.label}", params.before, params.batch_size, params.calls)


def run(params: Parameters, pipe, **kept) -> Result:
    """Generate by all variants.

    Args:
        params: which.
        pipe: an unpatched pipeline.
        kept: ``folder`` and ``recorded`` as in `catome.study.compare`.
    """
    ways = ways_of(params)
    return Result(
        params, ways, compare(pipe, params, list(ways.values()), recompute=params.recompute, **kept)
    )


@dataclass(frozen=True)
class Result:
    """The results of this study.

    Attributes:
        params: the parameters.
        ways: the method of each threshold and variant.
        made: the rows.
    """

    params: Parameters
    ways: dict[tuple[float, str], Method]
    made: Comparison

    def change(self, t: float, name: str) -> tuple[float, float, float]:
        """PSNR of a variant minus that of the paper's text on the same seeds, in dB, with its 95 %
        interval."""
        return self.made.paired("psnr", self.ways[t, name], self.ways[t, TEXT])

    def told(self) -> set[tuple[float, str]]:
        """The thresholds and variants whose change is told from zero when all of them are tested at once, by
        Holm's method."""
        changes = {
            (t, name): self.made.differences("psnr", self.ways[t, name], self.ways[t, TEXT])
            for t, name in self.ways
            if name != TEXT
        }
        stays = quality.holm([quality.mean_chance(found) for found in changes.values()])
        return {which for which, stay in zip(changes, stays, strict=True) if stay}

    def table(self, t: float) -> pd.DataFrame:
        """A row for each variant, to be read."""
        summary, told = self.made.summary(), self.told()
        rows = {}
        for name in VARIANTS:
            mean, low, high, share = summary.loc[
                self.ways[t, name].label, ["PSNR", "PSNR low", "PSNR high", "share"]
            ]
            rows[name] = {
                "PSNR (dB)": f"{mean:.1f} [{low:.1f}, {high:.1f}]",
                "minus the text (dB)": "" if name == TEXT else quality.spoken(self.change(t, name)),
                "told after Holm": "yes" if (t, name) in told else "",
                "merged share": f"{share:.3f}",
            }
        return pd.DataFrame(rows).T

    def report(self) -> str:
        """The table of each threshold."""
        parts = []
        for t in dict.fromkeys(self.params.thresholds):
            parts.append(f"t = {t:g}, {self.params.images} images, PSNR against unmerged")
            parts.append(self.table(t).to_string())
        return "\n\n".join(parts)
