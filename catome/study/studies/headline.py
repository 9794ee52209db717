"""Chapter 6: the paper's headline, and the peers, on the same noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from catome.study import methods, paper
from catome.study.measure import quality, real_images
from catome.study.measure.comparison import SPEED_UP, Comparison, compare, speed_ups, timed_alone
from catome.study.measure.real_images import Reference
from catome.study.methods import Method
from catome.study.run.denoiser import check_has_unet as check
from catome.study.run.parameters import Cosine, Count, Flag, Folder, ScheduleName, Setting, Share, parameters
from catome.study.studies import curves
from catome.study.studies.jobs import Job, of_images

NOTEBOOK = "06_headline"

FID_CHANGE = ["FID change", "FID change low", "FID change high"]
"""The columns of a change of FID and its interval."""


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
    curve_images: Count = 24
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


def _signed(change: float, low: float, high: float) -> str:
    """A change with its interval, for a table: ``+0.10 [-0.10, +0.30]``; without brackets where the interval
    is NaN, and nothing where the change is."""
    if np.isnan(change):
        return ""
    if np.isnan(low) or np.isnan(high):
        return f"{change:+.2f}"
    # as in `quality.with_interval`, an interval stays on one line
    return f"{change:+.2f} [{low:+.2f},\u00a0{high:+.2f}]"


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

        The speed-up with its interval is that of `catome.study.measure.comparison.speed_ups`, and ``s/image``
        the geometric mean over turns, too. What a method costs is NaN where its images depend on their batch
        and ``clock`` has another one: what was timed is not what made them. ``distance`` is that of the
        features, and ``poor`` the share of images below `catome.study.measure.quality.POOR_DB`. ``stays`` is
        the share of resamples, of images and of turns, in which neither another method nor the unmerged
        pipeline beats it in closeness and speed; NaN where the speed is not known."""
        summary = self.summary()
        faster = speed_ups(clock)
        shown = ["PSNR", "PSNR low", "PSNR high", "SSIM", "distance", "share", *FID_CHANGE]
        rows = {}
        for name, method in self.peers.items():
            turns = clock[clock["method"] == method.label]
            cost = dict(faster.loc[method.label])
            seconds, _, _ = quality.geometric_mean(turns["seconds"])
            cost |= {"s/image": seconds, "GFLOP": turns["flops"].iloc[0] / 1e9}
            cost["peak MB"] = turns["peak_bytes"].astype(float).max() / 1e6
            if method.batch not in (None, turns["batch"].iloc[0]):
                cost = dict.fromkeys(cost, np.nan)
            rows[name] = {"method": name, "family": method.family} | cost
            found = summary.loc[method.label]
            rows[name] |= {column: found.get(column, np.nan) for column in shown}
            rows[name]["poor"] = float((self.made.of(method)["psnr"] < quality.POOR_DB).mean())
        table = pd.DataFrame(rows).T.infer_objects()
        table["stays"] = self._stays(clock, table["speed-up"].astype(float).drop("unmerged").dropna().index)
        return table

    def _stays(self, clock: pd.DataFrame, names: pd.Index) -> pd.Series:
        """The share of resamples, of images and of turns, in which each of these methods is unbeaten in time.
        Turns that lack one of them are left out; NaN if no turn is left."""
        labels = [self.peers[name].label for name in names]
        seconds = clock.pivot(index="repetition", columns="method", values="seconds")
        seconds = seconds[["unmerged", *labels]].dropna()
        if seconds.empty:
            return pd.Series(np.nan, index=names)
        shares = quality.share_unbeaten(
            np.stack([self.made.of(label)["psnr"].to_numpy(float) for label in labels]),
            seconds.div(seconds["unmerged"], axis=0)[labels].to_numpy(float).T,
        )
        return pd.Series(shares, index=names)

    def shown(self, records: pd.DataFrame) -> pd.DataFrame:
        """``records`` of `records`, to be read; without columns of which nothing is known, such as the memory
        on a CPU."""

        def words(column: str, form: str) -> pd.Series:
            return records[column].astype(float).map(form.format).replace("nan", "")

        table = pd.DataFrame(
            {
                "speed-up": quality.with_interval(records, "speed-up"),
                "PSNR (dB)": quality.with_interval(records, "PSNR"),
                f"below {quality.POOR_DB} dB": words("poor", "{:.0%}"),
                "SSIM": words("SSIM", "{:.3f}"),
                "feature distance": words("distance", "{:.2f}"),
                "FID change": quality.with_interval(records, "FID change"),
                "merged share": words("share", "{:.2f}"),
                "GFLOP": words("GFLOP", "{:.0f}"),
                "s/image": words("s/image", "{:.2f}"),
                "peak memory (MB)": words("peak MB", "{:.0f}"),
            }
        )
        return table.loc[:, (table != "").any()]

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
        table = quality.difference_table(self.differences(), classes=self.made.classes)
        for place, (title, column) in enumerate(
            {"times as fast": "speed-up", "merged share": "share"}.items()
        ):
            shown = records[column].astype(float).map("{:.2f}".format).replace("nan", "\u2013")
            table.insert(place, title, [f"{shown[a]} / {shown[b]}" for a, b in pairs])
        return table

    def frontier(self, records: pd.DataFrame) -> list[str]:
        """The methods of known speed that no other one beats, nor the unmerged pipeline: none is at least as
        fast and as close, and better in one."""
        points = records.drop(index="unmerged")[["speed-up", "PSNR"]].astype(float).dropna()
        return list(points.index[quality.unbeaten(points["PSNR"].to_numpy(), points["speed-up"].to_numpy())])

    def frontier_words(self, records: pd.DataFrame) -> str:
        """`frontier` in a sentence, each method that is unbeaten in fewer than half of the resamples with its
        share; "none" where all are beaten."""
        names = [name + quality.by_chance(records.loc[name, "stays"]) for name in self.frontier(records)]
        return "; ".join(names) or "none"

    def beside_paper(self, records: pd.DataFrame) -> pd.DataFrame:
        """The paper's Table IV beside the same methods here, these with 95 % intervals, to be read;
        ``records`` of `records`."""
        theirs = paper.METHODS
        faster, change = theirs.iloc[0]["seconds"] / theirs["seconds"], theirs["FID"] - theirs.iloc[0]["FID"]
        names = "unmerged", f"ToMe, r = {self.params.ratio:g}", f"CA-ToMe, t = {self.params.threshold:g}"
        ours = records.loc[list(names), [*SPEED_UP, *FID_CHANGE]].astype(float).set_axis(theirs.index)
        here = f"here ({self.made.label}, against {len(self.real.features):,} real images)"
        return pd.DataFrame(
            {
                ("speed-up", "paper"): faster.map("{:.2f}".format),
                ("speed-up", "here"): quality.with_interval(ours, "speed-up"),
                ("FID - unmerged", "paper (Inception)"): change.map("{:+.2f}".format),
                ("FID - unmerged", here): ours[FID_CHANGE].apply(lambda row: _signed(*row), axis=1),
            }
        ).rename_axis(None)

    def words(self, records: pd.DataFrame) -> dict[str, str]:
        """The numbers that the chapter's text takes up, by their names there, with _ for -; ``records`` of
        `records`."""
        headline = f"CA-ToMe, t = {self.params.threshold:g}"
        fast, seconds = records["speed-up"].astype(float).drop("unmerged"), paper.METHODS["seconds"]
        of = {name: quality.bracketed(tuple(records.loc[name, SPEED_UP])) for name in fast.index}
        return {
            "images": str(self.made.rows["image"].nunique()),
            "methods": str(len(self.peers)),
            "extractor": self.made.label,
            "real": f"{len(self.real.features):,}",
            "merged": self._merged(),
            "paper_speed": f"{seconds.iloc[0] / seconds.iloc[-1]:.2f}",
            "speed": of[headline],
            "fastest": fast.idxmax(),
            "fastest_speed": of[fast.idxmax()],
            "closest": self.closest(records),
            "frontier": self.frontier_words(records),
            "threshold": f"{self.params.threshold:g}",
            "papers_place": self.papers_place(records),
            "told_by_fid": self.told_by_fid(records),
            "rank": quality.rank_words(self.made.features("unmerged")),
            "needed": quality.power_words(self.differences().values(), effect=0.5),
            "told_apart": self.told_apart(),
            "other_prompts": self.other_prompts(),
            **self.batch_shares(),
            **self.both_together(records),
        }

    def both_together(self, records: pd.DataFrame) -> dict[str, str]:
        """The speed-up of CA-ToMe and DeepCache together, beside what two rules of thumb expect of their
        single speed-ups.

        Returns:
            ``both_apart`` (the two shorten different parts of the work), ``both_product`` (each takes its
            share of what the other leaves), ``both`` with its interval over the turns, and
            ``both_verdict``, which rules this allows.
        """
        merging = f"CA-ToMe, t = {self.params.gentle:g}"
        caching = f"DeepCache, every {self.params.interval}"
        a, b = (float(records.loc[name, "speed-up"]) for name in (merging, caching))
        both, low, high = records.loc[f"{merging}, with DeepCache", SPEED_UP].astype(float)
        left = 1 / a + 1 / b - 1
        apart = 1 / left if left > 0 else np.inf
        allowed = [
            name for name, value in (("the sum", apart), ("the product", a * b)) if low <= value <= high
        ]
        verdicts = {
            0: "The interval contains neither value.",
            1: f"The interval contains that of {quality.listed(allowed)} alone.",
            2: "The interval contains both values, so these times cannot decide between the rules.",
        }
        known = np.isfinite([low, high]).all()
        return {
            "both_apart": f"{apart:.2f}" if np.isfinite(apart) else "any number of",
            "both_product": f"{a * b:.2f}",
            "both": quality.bracketed((both, low, high)),
            "both_verdict": verdicts[len(allowed)] if known else "One turn cannot decide between the rules.",
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
        """Say in sentences which of the methods whose interval says that they are faster is closest to the
        unmerged images."""
        low = records["speed-up low"].astype(float).drop("unmerged")
        if low.isna().all():
            return "One turn cannot tell which methods are faster."
        psnr = records.loc[low[low > 1].index, "PSNR"].astype(float)
        if not len(psnr):
            return "By the intervals over the turns, no method is detectably faster than doing nothing here."
        best = psnr.idxmax()
        near = f"with {psnr[best]:.1f} dB" if np.isfinite(psnr[best]) else "which it does not change"
        are = "methods are" if len(psnr) > 1 else "method is"
        return (
            f"By their intervals, each taken alone, {len(psnr)} {are} faster than doing nothing here. Of "
            f"these, the closest to the unmerged images is {best}, {near}."
        )

    def papers_place(self, records: pd.DataFrame) -> str:
        """Say as the end of a sentence whether the paper's own setting is on the frontier."""
        own = f"CA-ToMe, t = {self.params.threshold:g}"
        if own in self.frontier(records):
            return f"is among them{quality.by_chance(records.loc[own, 'stays'])}"
        faster = float(records.loc[own, "speed-up"]) > 1
        rival = "another method" if faster else "the unmerged pipeline"
        return f"is not among them: {rival} is at least as fast and as close"

    def told_by_fid(self, records: pd.DataFrame) -> str:
        """Say in sentences which methods FID tells from unmerged, and how large a change of the others is
        excluded; ``records`` of `records`."""
        test = "By a paired permutation test of all methods at once"
        found = self.made.told_by_fid(self.real.features, self.peers)
        others = [name for name in self.peers if name not in found and name != "unmerged"]
        ends = records.loc[others, FID_CHANGE[1:]].astype(float).dropna()
        excluded = ""
        if len(ends):
            excluded = (
                f" For {'the others' if found else 'all of them'}, the 95 % intervals exclude changes below "
                f"{ends['FID change low'].min():+.2f} and above {ends['FID change high'].max():+.2f}."
            )
        if not found:
            return f"{test}, no method's FID differs detectably from unmerged.{excluded}"
        told = "; ".join(f"{name} ({quality.chance_words(chance)})" for name, chance in found.items())
        return f"{test}, FID differs from unmerged by more than chance with these methods: {told}.{excluded}"

    def told_apart(self) -> str:
        """Say in sentences in how many rows `differences` are told from zero when all are tested at once, and
        where the intervals of the others lie."""
        differences = self.differences()
        stays, _ = quality.held_over_classes(differences, self.made.classes)
        said = (
            f"With all {len(differences)} rows tested at once, the difference is detectable in "
            f"{len(stays) or 'none'} of them."
        )
        if len(differences) == 1:
            said = f"In the only row, the difference is {'' if stays else 'not '}detectable."
        others = []
        for name, values in differences.items():
            if name not in stays:
                _, low, high = quality.mean_interval(values)
                others.append(f"{name} ({low:+.2f} to {high:+.2f} dB)")
        if not others:
            return said
        where = "Elsewhere it" if stays else "It"
        ends = "these intervals" if len(others) > 1 else "this interval"
        return f"{said} {where} may be chance, and lies in {ends}: {'; '.join(others)}."

    def other_prompts(self) -> str:
        """Say in a sentence which verdicts of `differences` would be found with other prompts: for which the
        interval over classes excludes zero as well."""
        stays, holds = quality.held_over_classes(self.differences(), self.made.classes)
        if len(set(self.made.classes)) < 2:
            return "With images of a single prompt, nothing can be said about other prompts."
        if quality.one_of_each(self.made.classes):
            return quality.ONE_OF_EACH
        if not stays:
            return "No verdict stays after Holm that other prompts could confirm."
        said = quality.held_words(len(stays), len(holds))
        lost = [name for name in stays if name not in holds]
        return f"{said} For other prompts nothing is shown of {'; '.join(lost)}." if lost else said

    def batch_shares(self) -> dict[str, str]:
        """The merged share by batch maximum and by CA-ToMe at the same threshold, mean over all images, with
        the threshold and the number of images in a batch."""
        t = self.params.gentle
        shares = {
            "gentle_merged": f"CA-ToMe, t = {t:g}",
            "batch_merged": f"batch maximum, t = {t:g}",
        }
        found = {name: self.made.share_of_image(self.peers[peer])[1] for name, peer in shares.items()}
        return {"gentle": f"{t:g}", "batch": str(self.params.batch_size)} | {
            name: f"{share:.3f}" for name, share in found.items()
        }
