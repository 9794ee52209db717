"""Chapter 6: the paper's headline, and the peers, on the same noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from catome.study import methods, paper
from catome.study.measure import quality, real_images
from catome.study.measure.comparison import Comparison, compare, speed_ups, timed_alone
from catome.study.measure.real_images import Reference
from catome.study.methods import Method
from catome.study.run.denoiser import check_has_unet as check
from catome.study.run.parameters import Cosine, Count, Flag, Folder, ScheduleName, Setting, Share, parameters
from catome.study.studies import curves
from catome.study.studies.jobs import Job, of_images

NOTEBOOK = "06_headline"


@parameters
class Parameters(Setting):
    """The parameters of this study.

    Attributes:
        ratio: ToMe's fixed share.
        threshold: CA-ToMe's, as in the paper.
        gentle: one at which merging on the embedded model is nearly free.
        schedule: CA-ToMe's checkpoints.
        interval: of DeepCache: the deep part of the U-Net runs every so many steps.
        repetitions: timed generations of each method.
        reference: a folder of real images; None for held-out scenes (embedded model only).
        curve_images: that every method is tried on at several settings.
        curve_kinds: methods that are, by their names in `catome.study.studies.curves.kinds`; None for all.
        recompute: compute again what was recorded or kept.
    """

    ratio: Share = 0.5
    threshold: Cosine = 0.7
    gentle: Cosine = 0.9
    schedule: ScheduleName = "CONFIG_3"
    interval: Count = 3
    repetitions: Count = 5
    reference: Folder = None
    curve_images: Count = 12
    curve_kinds: curves.Kinds = None
    recompute: Flag = False

    @property
    def knobs(self) -> curves.Parameters:
        """The study of all methods at several settings, which the chapter shows, too."""
        return curves.beside(self, self.curve_images, only=self.curve_kinds, recompute=self.recompute)


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
        f"batch maximum, t = {params.gentle:g}": methods.batch_maximum(
            params.gentle, params.schedule, params.batch_size
        ),
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
    check(params, pipe)
    real = real_images.beside(pipe, params, params.reference)
    peers = peers_of(params)
    return Result(
        params,
        real,
        peers,
        compare(pipe, params, list(peers.values()), real, recompute=params.recompute, **kept),
    )


def timed(result: Result, pipe, **kept) -> pd.DataFrame:
    """Rows of `catome.study.measure.comparison.COST`: every method, one image at a time, in turns."""
    return timed_alone(pipe, result.params, list(result.peers.values()), **kept)


@dataclass(frozen=True)
class Result:
    """The results of this study.

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

        The speed-up is that of `catome.study.measure.comparison.speed_ups`. What a method costs is NaN where
        its images depend on their batch and ``clock`` has another one: what was timed is not what made
        them."""
        summary = self.summary()
        faster = speed_ups(clock)
        shown = [
            "PSNR",
            "PSNR low",
            "PSNR high",
            "SSIM",
            "share",
            "FID change",
            "FID change low",
            "FID change high",
        ]
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

    def _pairs(self) -> list[tuple[str, str]]:
        """The pairs of methods that the chapter compares."""
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
        return [(a, b) for a, b in dict.fromkeys(pairs) if a in self.peers and b in self.peers]

    def differences(self) -> dict[str, np.ndarray]:
        """PSNR of methods against each other, seed by seed, in dB."""
        return {
            f"{a} - {b}": self.made.differences("psnr", self.peers[a], self.peers[b])
            for a, b in self._pairs()
        }

    def comparisons(self, records: pd.DataFrame) -> pd.DataFrame:
        """`differences` to be read, with how fast each of the two methods is and what share of the tokens it
        merges: a dash where that is not known, or nothing is merged."""
        pairs = self._pairs()
        table = quality.difference_table(self.differences())
        for place, (title, column) in enumerate(
            {"times as fast": "speed-up", "merged share": "share"}.items()
        ):
            shown = records[column].astype(float).map("{:.2f}".format).replace("nan", "\u2013")
            table.insert(place, title, [f"{shown[a]} / {shown[b]}" for a, b in pairs])
        return table

    def frontier(self, records: pd.DataFrame) -> list[str]:
        """The methods of known speed that no other one beats: none is at least as fast and as close, and
        better in one."""
        points = records.drop(index="unmerged")[["speed-up", "PSNR"]].astype(float).dropna()
        return list(points.index[quality.is_best(points["PSNR"].to_numpy(), points["speed-up"].to_numpy())])

    def beside_paper(self, records: pd.DataFrame) -> pd.DataFrame:
        """The paper's Table IV beside the same methods here, to be read; ``records`` of `records`."""
        theirs = paper.METHODS
        faster, change = theirs.iloc[0]["seconds"] / theirs["seconds"], theirs["FID"] - theirs.iloc[0]["FID"]
        names = "unmerged", f"ToMe, r = {self.params.ratio:g}", f"CA-ToMe, t = {self.params.threshold:g}"
        ours = records.loc[list(names), ["speed-up", "FID change"]].astype(float).set_axis(theirs.index)
        here = f"here ({self.made.label}, against {len(self.real.features):,} real images)"
        return pd.DataFrame(
            {
                ("speed-up", "paper"): faster.map("{:.2f}".format),
                ("speed-up", "here"): ours["speed-up"].map("{:.2f}".format),
                ("FID - unmerged", "paper (Inception)"): change.map("{:+.2f}".format),
                ("FID - unmerged", here): ours["FID change"].map("{:+.2f}".format).replace("+nan", ""),
            }
        ).rename_axis(None)

    def words(self, records: pd.DataFrame) -> dict[str, str]:
        """The numbers that the chapter's text takes up, by their names there, with _ for -; ``records`` of
        `records`."""
        headline = f"CA-ToMe, t = {self.params.threshold:g}"
        fast, seconds = records["speed-up"].astype(float).drop("unmerged"), paper.METHODS["seconds"]
        return {
            "images": str(self.made.rows["image"].nunique()),
            "methods": str(len(self.peers)),
            "extractor": self.made.label,
            "real": f"{len(self.real.features):,}",
            "merged": self._merged(),
            "paper_speed": f"{seconds.iloc[0] / seconds.iloc[-1]:.2f}",
            "speed": f"{fast[headline]:.2f}",
            "fastest": fast.idxmax(),
            "fastest_speed": f"{fast.max():.2f}",
            "closest": self.closest(records),
            "frontier": "; ".join(self.frontier(records)),
            "threshold": f"{self.params.threshold:g}",
            "papers_place": self.papers_place(records),
            "told_by_fid": self.told_by_fid(),
            "needed": quality.power_words(self.differences().values()),
            **self.both_together(records),
        }

    def both_together(self, records: pd.DataFrame) -> dict[str, str]:
        """The speed-up of CA-ToMe and DeepCache together, beside what two rules of thumb expect of their
        single speed-ups.

        Returns:
            ``both_apart`` (the two shorten different parts of the work), ``both_product`` (each takes its
            share of what the other leaves), ``both`` with its lowest and highest repetition, and
            ``both_verdict``, which rules these allow.
        """
        merging = f"CA-ToMe, t = {self.params.gentle:g}"
        caching = f"DeepCache, every {self.params.interval}"
        columns = ["speed-up", "speed-up low", "speed-up high"]
        a, b = (float(records.loc[name, "speed-up"]) for name in (merging, caching))
        both, low, high = records.loc[f"{merging}, with DeepCache", columns].astype(float)
        left = 1 / a + 1 / b - 1
        apart = 1 / left if left > 0 else np.inf
        allowed = [
            name for name, value in (("the sum", apart), ("the product", a * b)) if low <= value <= high
        ]
        verdicts = {
            0: "The repetitions agree with neither rule.",
            1: f"The repetitions agree with {quality.listed(allowed)} alone.",
            2: "The repetitions agree with both rules, so these times cannot decide between them.",
        }
        return {
            "both_apart": f"{apart:.2f}" if np.isfinite(apart) else "any number of",
            "both_product": f"{a * b:.2f}",
            "both": f"{both:.2f} [{low:.2f}, {high:.2f}]",
            "both_verdict": verdicts[len(allowed)],
        }

    def _merged(self) -> str:
        """The share of the tokens that each CA-ToMe merges in the first image, which was timed, and over all
        images."""
        said = []
        for t in dict.fromkeys((self.params.threshold, self.params.gentle)):
            one, mean = self.made.share_of_image(self.peers[f"CA-ToMe, t = {t:g}"])
            said.append(f"{one:.0%} at t = {t:g} ({mean:.0%} over all images)")
        return " and ".join(said)

    def closest(self, records: pd.DataFrame) -> str:
        """Say in a sentence which of the methods that are faster at every repetition is closest to the
        unmerged images."""
        psnr = records.loc[(records["speed-up low"] > 1) & (records.index != "unmerged"), "PSNR"].astype(
            float
        )
        if not len(psnr):
            return "No method is faster than doing nothing here at every repetition."
        best = psnr.idxmax()
        near = f"with {psnr[best]:.1f} dB" if np.isfinite(psnr[best]) else "which it does not change"
        return (
            "Of those in the first table that are faster than doing nothing here at "
            f"every repetition, the closest to the unmerged images is {best}, {near}."
        )

    def papers_place(self, records: pd.DataFrame) -> str:
        """Say as the end of a sentence whether the paper's own setting is on the frontier."""
        there = f"CA-ToMe, t = {self.params.threshold:g}" in self.frontier(records)
        return (
            "is among them" if there else "is not among them: another method is at least as fast and as close"
        )

    def told_by_fid(self) -> str:
        """Say in a sentence which methods FID tells from unmerged."""
        test = "By a paired permutation test of all methods at once"
        found = self.made.told_by_fid(self.real.features, self.peers)
        if not found:
            return f"{test}, no method's FID differs detectably from unmerged."
        told = "; ".join(f"{name} ({quality.chance_words(chance)})" for name, chance in found.items())
        return f"{test}, FID differs from unmerged by more than chance with these methods: {told}."
