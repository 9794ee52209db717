"""Chapter 6: the paper's headline, and the peers, on the same noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from catome.study import methods
from catome.study.measure import quality, real_images
from catome.study.measure.comparison import Comparison, compare, speed_ups, timed_alone
from catome.study.measure.real_images import Reference
from catome.study.methods import Method
from catome.study.run.parameters import Cosine, Count, Flag, Folder, ScheduleName, Setting, Share, parameters
from catome.study.studies.jobs import Job, of_images

NOTEBOOK = "06_headline"


@parameters
class Parameters(Setting):
    """Which methods.

    Attributes:
        ratio: ToMe's fixed share.
        threshold: CA-ToMe's, as in the paper.
        gentle: one at which merging on the embedded model is nearly free.
        schedule: CA-ToMe's checkpoints.
        interval: of DeepCache: the deep part of the U-Net runs every so many steps.
        repetitions: timed generations of each method.
        reference: a folder of real images; None for held-out scenes (embedded model only).
        recompute: compute again what was recorded or kept.
    """

    ratio: Share = 0.5
    threshold: Cosine = 0.7
    gentle: Cosine = 0.9
    schedule: ScheduleName = "CONFIG_3"
    interval: Count = 3
    repetitions: Count = 5
    reference: Folder = None
    recompute: Flag = False


def peers_of(params: Parameters) -> dict[str, Method]:
    """The methods by the names that the chapter gives them, each once."""
    gentle = methods.ca_tome(params.gentle, params.schedule)
    cache = methods.deep_cache(params.interval)
    named = {
        "unmerged": methods.unmerged(),
        f"tomesd, r = {params.ratio:g}": methods.tomesd(params.ratio),
        f"ToMe, r = {params.ratio:g}": methods.tome(params.ratio),
        f"CA-ToMe, t = {params.threshold:g}": methods.ca_tome(params.threshold, params.schedule),
        f"CA-ToMe, t = {params.gentle:g}": gentle,
        f"batch maximum, t = {params.gentle:g}": methods.batch_maximum(params.gentle, params.schedule, params.batch_size),
        "ToDo": methods.todo(2),
        f"DeepCache, every {params.interval}": cache,
        f"CA-ToMe, t = {params.gentle:g}, with DeepCache": methods.together(gentle, cache),
    }
    found: dict[str, Method] = {}
    for name, method in named.items():
        if method.label not in {other.label for other in found.values()}:
            found[name] = method
    return found


def jobs(params: Parameters) -> Iterator[Job]:
    """All generations."""
    yield from of_images(1, params, [method.label for method in peers_of(params).values()])


def run(params: Parameters, pipe, **kept) -> Result:
    """Generate by all methods.

    Args:
        params: which.
        pipe: an unpatched pipeline.
        kept: ``folder`` and ``recorded`` as in `catome.study.compare`.
    """
    real = real_images.beside(pipe, params, params.reference)
    peers = peers_of(params)
    return Result(params, real, peers, compare(pipe, params, list(peers.values()), real, recompute=params.recompute, **kept))


def timed(result: Result, pipe, **kept) -> pd.DataFrame:
    """Rows of `catome.study.measure.comparison.COST`: every method, one image at a time, in turns."""
    return timed_alone(pipe, result.params, list(result.peers.values()), **kept)


@dataclass(frozen=True)
class Result:
    """What was found.

    Attributes:
        params: the parameters.
        real: the real images that FID compares with.
        peers: the methods, by name.
        made: the rows.
    """

    params: Parameters
    real: Reference
    peers: dict[str, Method]
    made: Comparison

    def summary(self) -> pd.DataFrame:
        """`Comparison.summary` against the real images."""
        return self.made.summary(self.real.features)

    def records(self, clock: pd.DataFrame) -> pd.DataFrame:
        """One row for each method by its name: what changed, and what it costs by ``clock``, rows of `timed`.

        The speed-up is that of `catome.study.measure.comparison.speed_ups`. What a method costs is NaN where its images depend
        on their batch and ``clock`` has another one: what was timed is not what made them."""
        summary = self.summary()
        faster = speed_ups(clock)
        shown = ["PSNR", "PSNR low", "PSNR high", "SSIM", "share", "FID change", "FID change low", "FID change high"]
        rows = {}
        for name, method in self.peers.items():
            turns = clock[clock["method"] == method.label]
            cost = dict(faster.loc[method.label])
            cost |= {"s/image": turns["seconds"].median(), "GFLOP": turns["flops"].iloc[0] / 1e9}
            cost["peak MB"] = turns["peak_bytes"].astype(float).max() / 1e6
            if method.batch not in (None, turns["batch"].iloc[0]):
                cost = dict.fromkeys(cost, np.nan)
            rows[name] = {"method": name, "family": method.family} | cost
            found = summary.loc[method.label]
            rows[name] |= {column: found.get(column, np.nan) for column in shown}
        return pd.DataFrame(rows).T.infer_objects()

    def gain(self, a: str, b: str) -> tuple[float, float, float]:
        """PSNR of one method minus another's on the same seeds, in dB, with its 95 % interval."""
        return self.made.paired("psnr", self.peers[a], self.peers[b])

    def comparisons(self, records: pd.DataFrame) -> pd.DataFrame:
        """PSNR of methods against each other on the same seeds, to be read, with how fast each of the two is and what share of
        the tokens it merges: a dash where that is not known, or nothing is merged."""
        params = self.params
        headline = f"CA-ToMe, t = {params.threshold:g}"
        gentle = f"CA-ToMe, t = {params.gentle:g}"
        cache = f"DeepCache, every {params.interval}"
        pairs = [
            (headline, f"ToMe, r = {params.ratio:g}"),
            (headline, "ToDo"),
            (headline, cache),
            (gentle, "ToDo"),
            (gentle, cache),
            (gentle, f"batch maximum, t = {params.gentle:g}"),
            (f"tomesd, r = {params.ratio:g}", f"ToMe, r = {params.ratio:g}"),
        ]
        pairs = [(a, b) for a, b in dict.fromkeys(pairs) if a in self.peers and b in self.peers]
        found = {f"{a} - {b}": self.made.differences("psnr", self.peers[a], self.peers[b]) for a, b in pairs}
        table = quality.difference_table(found)
        for place, (title, column) in enumerate({"times as fast": "speed-up", "merged share": "share"}.items()):
            shown = records[column].astype(float).map("{:.2f}".format).replace("nan", "\u2013")
            table.insert(place, title, [f"{shown[a]} / {shown[b]}" for a, b in pairs])
        return table

    def frontier(self, records: pd.DataFrame) -> list[str]:
        """The methods that no other one beats in both speed and closeness, of those whose speed is known."""
        points = records.drop(index="unmerged")[["speed-up", "PSNR"]].astype(float).dropna()
        return [name for name, point in points.iterrows() if not (points > point).all(axis=1).any()]
