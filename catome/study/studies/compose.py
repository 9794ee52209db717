"""The fastest generation at a given quality: merged keys, feature caching and forecasts, alone and together.

``python -m catome.study compose`` searches and prints the frontier. Four kinds of methods save different
things: merged keys save attention within a call of the model, DeepCache the deep part of some calls, a
forecast whole calls, and so do fewer denoising steps, which is what all others have to be better than. The
search has three stages.

1. Every single setting is tried on a few images. Its quality is a mean squared error, its cost a time.
2. Settings of different kinds are put together. Their errors nearly add up and their times nearly multiply,
   which tells the combinations that are worth trying; these are tried on the same images.
3. What then lies on the frontier, and the best of each kind alone, is generated again for other seeds and
   timed in turns.

All that was generated is kept, and the search goes on from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from catome.runtime.config import FAST, RECOMMENDED
from catome.study import methods
from catome.study.measure import quality
from catome.study.measure.comparison import SPEED_UP, compare, cost, speed_ups
from catome.study.methods import Method, together
from catome.study.run.denoiser import check_has_unet as check
from catome.study.run.parameters import Flag, Seed, Setting, parameters
from catome.study.run.store import SHARED_KEYS, Stopwatch, Store, Table, prompts_of, provenance, shared_keys
from catome.study.studies.jobs import Job, of_images

SEARCHED, HELD_OUT = 2027, 3041
"""Seeds of the images that the search sees, and of those that it is judged by."""

NOTEBOOK = None

ALONE = True
"""It times while it searches, so no other process may run beside it."""


@parameters
class Parameters(Setting):
    """The parameters of this study: its images are judged, and half as many are searched by.

    Attributes:
        seed: of those that are judged.
        searched_seed: of those that the search sees.
        recompute: generate everything again, whatever is kept.
    """

    seed: Seed = HELD_OUT
    searched_seed: Seed = SEARCHED
    recompute: Flag = False

    @property
    def searched(self) -> Setting:
        """The images that the search sees."""
        return self.common(images=max(1, self.images // 2), seed=self.searched_seed)


KEPT_STEPS = (0.3, 0.4, 0.5, 0.6)
"""Shares of the steps, for generations of fewer steps."""

FLOORS = (30.0, 35.0, 40.0)
"""PSNR in dB above which the fastest generation is looked for."""

MARGIN_DB = 3.0
"""Combinations are tried where the prediction falls short of a floor by no more than this."""

MOST_TRIED = 6
"""Combinations that are tried for each floor."""

COMPOSED = Table(
    "composed",
    2,
    {name: kind for name, kind in SHARED_KEYS.items() if name != "image"}
    | {"method": pa.string(), "images": pa.int32(), "device": pa.string(), "threads": pa.int16()},
    {name: pa.float64() for name in ("psnr", "low", "high", "poor", "speedup", "least", "most")},
)
"""One row for each method that was judged: mean ``psnr`` (dB) over images with its 95 % interval, the share
of images below `catome.study.measure.quality.POOR_DB` (``poor``), and the ``speedup`` against unmerged of
`catome.study.measure.comparison.speed_ups`, the ``least`` and the ``most`` that its 95 % interval over turns
allows. In rows of version 1 these three are the median, the least and the most of the turns. ``prompt`` holds
the prompts of all images, with newlines between."""

SEARCH_TURNS = 2
"""Turns in which the search times each single setting. They are too few for an interval."""


def kinds(steps: int = 50) -> dict[str, list[Method]]:
    """The single settings that are searched for generations of so many steps, by the kind of what they
    save."""
    fewer = dict.fromkeys(methods.kept_steps(share, steps) for share in KEPT_STEPS)
    return {
        "merged keys": [methods.named_configuration(config, "EVEN_13") for config in (RECOMMENDED, FAST)],
        "DeepCache": [methods.deep_cache(interval) for interval in (2, 3, 5)],
        "forecast": [*_forecasts()],
        "fewer steps": [methods.fewer_steps(kept) for kept in fewer],
    }


def _forecasts() -> Iterator[Method]:
    """Forecasts at equal intervals, and at intervals that grow."""
    for interval, order in product((2, 3, 4, 5), (1, 2)):
        yield methods.forecast(interval, order)
    for first, growth in product((5, 6, 7), (1.15, 1.2, 1.25, 1.3, 1.4)):
        yield methods.forecast(1, 1, first, growth)


@dataclass(frozen=True)
class Tried:
    """The results of one method.

    Attributes:
        method: the method.
        error: mean squared error against the unmerged image, on a scale from 0 to 1; mean over images.
        psnr: mean over images, in dB.
        seconds: of an image, the geometric mean over turns; of a combination, as `predicted`.
    """

    method: Method
    error: float
    psnr: float
    seconds: float


def frontier(tried: Iterable[Tried]) -> list[Tried]:
    """Those that no other is both faster and closer than, the slowest first."""
    slowest_first = sorted(tried, key=lambda one: -one.seconds)
    best = quality.is_best(
        np.array([one.psnr for one in slowest_first]), -np.array([one.seconds for one in slowest_first])
    )
    return [one for one, kept in zip(slowest_first, best, strict=True) if kept]


def predicted(parts: Sequence[Tried], unmerged_s: float) -> tuple[float, float]:
    """PSNR and seconds that methods have together, if their errors add up and their savings multiply."""
    error = sum(one.error for one in parts)
    seconds = unmerged_s * math.prod(one.seconds / unmerged_s for one in parts)
    return (-10 * math.log10(error) if error else math.inf), seconds


def promising(
    singles: dict[str, list[Tried]], unmerged_s: float, floors: Sequence[float] = FLOORS
) -> list[tuple[Tried, ...]]:
    """The combinations of two or three kinds that may be the fastest above a floor, those with the best
    prospects first."""
    found = []
    for parts in product(*([None, *of_kind] for of_kind in singles.values())):
        chosen = tuple(part for part in parts if part is not None)
        if len(chosen) > 1:
            found.append((chosen, *predicted(chosen, unmerged_s)))
    kept = []
    for floor in floors:
        likely = [(parts, seconds) for parts, psnr, seconds in found if psnr >= floor - MARGIN_DB]
        kept += [parts for parts, _ in sorted(likely, key=lambda pair: pair[1])[:MOST_TRIED]]
    return list(dict.fromkeys(kept))


def search(pipe, setting: Setting, **kept) -> list[Tried]:
    """Stages 1 and 2 on the images of ``setting``, the unmerged pipeline first; ``kept`` as in
    `catome.study.compare`."""
    of_kind, plain = kinds(setting.steps), {}
    everything = [methods.unmerged(), *(method for some in of_kind.values() for method in some)]
    seconds = _seconds(pipe, setting, everything, SEARCH_TURNS, **kept)
    unmerged_s = seconds["unmerged"]
    singles = {}
    for kind, some in of_kind.items():
        made = compare(pipe, setting, some, plain=plain, **kept)
        singles[kind] = [_tried(made, method, seconds[method.label]) for method in some]
    tried = [Tried(methods.unmerged(), 0.0, math.inf, unmerged_s)]  # competes, too
    tried += [one for some in singles.values() for one in some]
    combined = {
        together(*(one.method for one in parts)): parts for parts in promising(singles, unmerged_s, FLOORS)
    }
    if combined:
        made = compare(pipe, setting, list(combined), plain=plain, **kept)
        tried += [_tried(made, method, predicted(parts, unmerged_s)[1]) for method, parts in combined.items()]
    return tried


def _tried(made, method: Method, seconds: float) -> Tried:
    psnr = made.of(method)["psnr"].to_numpy(float)
    return Tried(method, float((10 ** (-psnr / 10)).mean()), float(psnr.mean()), seconds)


def _seconds(pipe, setting: Setting, some: Sequence[Method], repetitions: int, **kept) -> dict[str, float]:
    """The geometric mean over turns, by label: two of them have the ratio of
    `catome.study.measure.comparison.time_ratio`."""
    rows = cost(pipe, replace(setting, batch_size=1), some, repetitions, **kept)
    by_method = rows.groupby("method")["seconds"]
    return {method: quality.geometric_mean(seconds)[0] for method, seconds in by_method}


def chosen(tried: Sequence[Tried], floors: Sequence[float] = FLOORS) -> list[Method]:
    """The methods to be judged: for each floor the fastest of each kind alone and the fastest three of
    all."""
    found = []
    tried = [one for one in tried if one.method.family != "unmerged"]
    for floor in floors:
        above = sorted((one for one in tried if one.psnr >= floor), key=lambda one: one.seconds)
        found += [one.method for one in above[:3]]
        for family in kinds():
            found += [one.method for one in above if one.method.family == family][:1]
    found.append(methods.deep_cache(3))
    return list({method.label: method for method in found}.values())


def judged(
    pipe, setting: Setting, some: Sequence[Method], repetitions: int = 15, folder: Path | None = None, **kept
) -> pd.DataFrame:
    """Stage 3: methods on other seeds, timed in turns with the unmerged pipeline. What comes out is kept.

    Args:
        pipe, setting, folder, kept: as in `catome.study.compare`.
        some: methods.
        repetitions: turns.

    Returns:
        Rows of `COMPOSED`, the slowest first.
    """
    made = compare(pipe, setting, some, folder=folder, **kept)
    watch = Stopwatch()
    rows = cost(
        pipe, replace(setting, batch_size=1), [methods.unmerged(), *some], repetitions, folder=folder, **kept
    )
    faster = speed_ups(rows)
    keys = shared_keys(pipe, setting) | prompts_of(setting, setting.images)
    keys |= {"device": rows["device"].iloc[0], "threads": int(rows["threads"].iloc[0])}
    found = []
    for method in some:
        psnr = made.of(method)["psnr"].to_numpy(float)
        mean, low, high = quality.mean_interval(psnr)
        speed, least, most = faster.loc[method.label, SPEED_UP]
        found.append(
            keys
            | {
                "method": method.label,
                "psnr": mean,
                "low": low,
                "high": high,
                "poor": float((psnr < quality.POOR_DB).mean()),
                "speedup": float(speed),
                "least": float(least),
                "most": float(most),
            }
        )
    store = Store(COMPOSED, folder or setting.output, None)
    store.add(found, provenance(setting, keys["model"]), watch.lap())
    store.finish()
    return pd.DataFrame(found).sort_values("speedup", ignore_index=True)


def report(table: pd.DataFrame, floors: Sequence[float] = FLOORS) -> str:
    """Rows of `COMPOSED` in lines, and for each floor the fastest method above it; every speed-up with its
    95 % interval over the turns, where there was more than one."""

    def speed(row: pd.Series) -> str:
        return quality.bracketed((row["speedup"], row["least"], row["most"]))

    width = table["method"].str.len().max()
    poor = f"below {quality.POOR_DB} dB"
    lines = [f"{'':{width}}  {'speed-up (95 % interval)':24}  {'PSNR (95 % interval)':24}  {poor}"]
    for _, row in table.iterrows():
        near = f"{row['psnr']:.1f} dB [{row['low']:.1f}, {row['high']:.1f}]"
        lines.append(f"{row['method']:{width}}  {speed(row):24}  {near:24}  {row['poor']:{len(poor)}.0%}")
    lines += [
        "",
        f"Timed on {table['device'].iloc[0]}, {table['threads'].iloc[0]} threads, one image at a time.",
        "A speed-up is the geometric mean over turns, with Student's interval of the logarithms.",
    ]
    for floor in floors:
        above = table[table["psnr"] >= floor]
        if len(above):
            best = above.sort_values("speedup").iloc[-1]
            lines.append(f"Fastest above {floor:g} dB: {best['method']}, {speed(best)} times as fast.")
    return "\n".join(lines)


def jobs(params: Parameters) -> Iterator[Job]:
    """All generations; which combinations are tried and judged is known only when the single settings have
    run."""
    singles = [method.label for some in kinds(params.steps).values() for method in some]
    yield from of_images(1, params.searched, singles)
    yield from of_images(
        2, params.searched, [f"combination {i}" for i in range(1, MOST_TRIED * len(FLOORS) + 1)]
    )
    yield from of_images(3, params, [f"of the frontier, {i}" for i in range(1, 3 * len(FLOORS) + 1)])


def run(params: Parameters, pipe, **kept) -> Result:
    """Search, and judge what was found."""
    check(params, pipe)
    tried = search(pipe, params.searched, recompute=params.recompute, **kept)
    return Result(tried, judged(pipe, params, chosen(tried), recompute=params.recompute, **kept))


@dataclass(frozen=True)
class Result:
    """The results of this study.

    Attributes:
        tried: everything that was searched.
        table: what was judged, as rows of `COMPOSED`.
    """

    tried: list[Tried]
    table: pd.DataFrame

    def report(self) -> str:
        """The frontier of the search, and what became of it on other seeds."""
        lines = [
            "On the images of the search, with the seconds of an image: the geometric mean over turns of a",
            "method alone, and the prediction for methods together.",
        ]
        lines += [
            f"  {one.psnr:5.1f} dB  {one.seconds:6.2f} s  {one.method.label}" for one in frontier(self.tried)
        ]
        return "\n".join([*lines, "", report(self.table)])
