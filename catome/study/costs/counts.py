"""Chapter 7: what is counted there, as tables to be read and as the words that its text takes up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from catome.policy.cost_model import least_share
from catome.policy.rates import ESTIMATES
from catome.policy.schedule import parse_schedule
from catome.study import paper
from catome.study.bench.kernel_table import SHARE, least_times
from catome.study.costs import accounting
from catome.study.measure import quality

NOTEBOOK = "07_where_the_time_goes"

PANELS = (("Tesla V100S", "float32"), ("Tesla V100S", "float16"), ("H200 SXM", "float16"))
"""Devices and precisions for which the chapter draws what merging can give."""

PRINTED = {
    f"Tesla V100S, {precision}": (512, paper.METHODS["seconds"].iloc[0] / paper.METHODS["seconds"].iloc[-1])
    for precision in ("float32", "float16")
}
"""By panel, the size in pixels for which the paper prints a speed-up, and this speed-up. Its precision is not
known."""

WORTHWHILE = 1.2
"""The speed-up from which on the chapter calls merging worth its while."""

_NEW = "H200 SXM"
_TOP = "topmost self-attention"


@dataclass(frozen=True)
class Counted:
    """The counts of the chapter with its parameters.

    Attributes:
        sizes: of the square image, in pixels, in order.
        size: of the image whose parts are shown, in pixels; it need not be among ``sizes``.
        shares: of the topmost tokens that are merged, in order.
        rows: of the U-Net's batch.
        schedule: how often pairs are found, as it was asked for.
        calls: of the U-Net in one generation.
    """

    sizes: tuple[int, ...]
    size: int
    shares: tuple[float, ...]
    rows: int
    schedule: object
    calls: int

    @cached_property
    def match_every(self) -> float:
        """Pairs are found once in so many calls, on average."""
        checkpoints = parse_schedule(self.schedule)
        return 1 if checkpoints is None else self.calls / len(checkpoints.at(self.calls))

    @cached_property
    def tables(self) -> dict[str, dict[int, pd.DataFrame]]:
        """`catome.study.costs.accounting.parts` by architecture and size."""
        return {
            name: {s: accounting.parts(name, s, self.rows) for s in self.sizes}
            for name in accounting.ARCHITECTURES
        }

    def parts_table(self) -> pd.DataFrame:
        """The parts of one call of SD v1.5 at `size`, as it is and with half of the topmost tokens merged, to
        be read."""
        plain = accounting.parts("sd15", self.size, self.rows)
        merged = accounting.merged_parts("sd15", self.size, 0.5, self.match_every, self.rows)
        columns = {
            "GFLOP": plain["flops"] / 1e9,
            "MB, fused": plain["bytes_fused"] / 1e6,
            "MB, naive": plain["bytes_naive"] / 1e6,
            "GFLOP, half merged": merged["flops"] / 1e9,
            "MB, half merged, fused": merged["bytes_fused"] / 1e6,
        }
        shown = {name: values.map("{:,.0f}".format) for name, values in columns.items()}
        return pd.DataFrame(shown, index=merged.index).fillna("")

    def topmost_shares(self) -> pd.DataFrame:
        """The share of a call's FLOPs that the topmost self-attentions compute, by architecture and size, to
        be read."""
        shares = {
            accounting.TITLES[name]: {
                f"{size} px": f"{_share(table['flops']):.0%}" for size, table in by_size.items()
            }
            for name, by_size in self.tables.items()
        }
        return pd.DataFrame(shares).T

    @cached_property
    def least(self) -> dict[tuple[str, str], dict[int, pd.Series]]:
        """The least seconds of one call of SD v1.5 by part, by (device and precision, kind of attention) and
        size."""
        return {
            (f"{_short(device)}, {precision}", attention): {
                size: self._least_seconds(device, precision, attention, size) for size in self.sizes
            }
            for device, precision in (PANELS[0], PANELS[-1])
            for attention in ("naive", "fused")
        }

    def _least_seconds(self, device: str, precision: str, attention: str, size: int) -> pd.Series:
        """The least seconds of one call of SD v1.5 by part."""
        rates, width = accounting.device_rates(device, precision), accounting.DTYPE_BYTES[precision]
        operations = accounting.operations("sd15", size, self.rows, width)
        return accounting.roofline_seconds(operations, *rates, attention)

    @cached_property
    def bounds(self) -> pd.DataFrame:
        """`catome.study.costs.accounting.speedup_bounds` of SD v1.5 on `PANELS`."""
        return accounting.speedup_bounds("sd15", self.sizes, self.shares, PANELS, self.rows, self.match_every)

    def bounds_table(self) -> pd.DataFrame:
        """The most that merging can give on an H200, by size, kind of attention and share, to be read."""
        new = self.bounds[self.bounds["device"] == _NEW]
        table = new.pivot(index="size", columns=["attention", "share"], values="free").map("{:.2f}x".format)
        table.columns = [f"{attention}, {share:.0%} merged" for attention, share in table.columns]
        return table.rename_axis(index="px, on an H200")

    def least_shares(self) -> dict[str, tuple[list[int], list[float]]]:
        """By kind of device, numbers of tokens of a block of 320 channels, and the least merged share that
        pays at each."""
        tokens = [round(2 ** (k / 4)) for k in range(16, 57)]
        kinds = {"CPU, float32": ("cpu", 4), "GPU, half precision": ("cuda", 2)}
        return {
            name: (
                tokens,
                [least_share(n, 320, ESTIMATES[kind], kind[1], interval=self.match_every) for n in tokens],
            )
            for name, kind in kinds.items()
        }

    def words(self) -> dict[str, str]:
        """The numbers and words that the chapter's text takes up and that depend on its parameters, by their
        names there, with _ for -."""
        return self._words_of_one_size() | self._words_of_least_time() | self._words_of_bounds()

    def _words_of_one_size(self) -> dict[str, str]:
        plain = accounting.parts("sd15", self.size, self.rows)
        scores = {size: accounting.scores_bytes("sd15", size, self.rows) for size in self.sizes}
        return {
            "size": str(self.size),
            "rows": f"{self.rows} row{'s' * (self.rows != 1)}",
            "tflop": f"{plain['flops'].sum() / 1e12:.2f}",
            "top_share": f"{_share(plain['flops']):.0%}",
            "gb_fused": f"{plain['bytes_fused'].sum() / 1e9:.1f}",
            "gb_naive": f"{plain['bytes_naive'].sum() / 1e9:.1f}",
            "searches": searches(self.schedule, self.match_every),
            "scores": quality.listed([f"{gigabytes(value)} at {size} px" for size, value in scores.items()]),
            "intensity_naive": f"{plain.at[_TOP, 'flops'] / plain.at[_TOP, 'bytes_naive']:.0f}",
            "intensity_fused": f"{plain.at[_TOP, 'flops'] / plain.at[_TOP, 'bytes_fused']:,.0f}",
        }

    def _words_of_least_time(self) -> dict[str, str]:
        naive, fused = (self._least_seconds(*PANELS[-1], kind, self.size) for kind in ("naive", "fused"))
        return {
            "time_naive": f"{_share(naive):.0%}",
            "time_fused": f"{_share(fused):.0%}",
            "fused_faster": f"{naive.sum() / fused.sum():.1f}",
            "time_moving": f"{_share(fused, 'norms and elementwise'):.0%}",
        }

    def _words_of_bounds(self) -> dict[str, str]:
        most = self.shares[-1]
        cost = merging_cost(self.bounds)
        sdxl = _free(
            accounting.speedup_bounds("sdxl", self.sizes, [most], PANELS[-1:], self.rows, self.match_every),
            most,
        )
        gains = kernel_gains(self.match_every)
        return {
            "most": f"{most:.0%}",
            "cost": f"{cost:.1%}",
            "cost_is": "small" if cost < 0.1 else "not small",
            "sdxl_bounds": quality.listed([f"{bound:.2f} at {size} px" for size, bound in sdxl.items()]),
            "how_often": how_often(self.match_every),
            "kernels_share": f"{SHARE:.0%}",
            "kernels_least": f"{gains.min():.1f}",
            "kernels_most": f"{gains.max():.1f}",
            "worth": worthwhile_sizes(_free(self.bounds, most)),
        }


def of(setting) -> Counted:
    """The counts of chapter 7.

    Args:
        setting: `catome.study.studies.chapters.Accounting`.
    """
    sizes, shares = tuple(sorted(set(setting.sizes))), tuple(sorted(set(setting.shares)))
    return Counted(sizes, setting.size, shares, setting.rows, setting.schedule, setting.calls)


def _share(values: pd.Series, part: str = _TOP) -> float:
    return float(values[part] / values.sum())


def _short(device: str) -> str:
    return device.removeprefix("Tesla ").removesuffix(" SXM")


def _free(bounds: pd.DataFrame, share: float) -> pd.Series:
    """The bounds on an H200 with fused attention if merging costs nothing, by size."""
    rows = (bounds["device"] == _NEW) & (bounds["attention"] == "fused") & (bounds["share"] == share)
    return bounds[rows].set_index("size")["free"]


def gigabytes(value: float) -> str:
    """Bytes as gigabytes, to a whole number or to two digits where that is more: ``137 GB``, ``0.54 GB``."""
    value = value / 1e9
    return f"{value:,.2g} GB" if value < 10 else f"{value:,.0f} GB"


def how_often(match_every: float) -> str:
    """At which of the steps pairs are found: ``every step``, ``one of 3.9 steps``."""
    return f"one of {match_every:.1f} steps" if match_every > 1 else "every step"


def searches(schedule, match_every: float) -> str:
    """The generation that matching counts for: with a named schedule, or with how often pairs are found."""
    if isinstance(schedule, str) and match_every > 1:
        return f"with {schedule}"
    return f"with pairs found at {how_often(match_every)}"


def merging_cost(bounds: pd.DataFrame) -> float:
    """The most that merging costs with fused attention, as a share of the call.

    Args:
        bounds: of `catome.study.costs.accounting.speedup_bounds`.
    """
    fused = bounds[bounds["attention"] == "fused"]
    return float((fused["free"] / fused["charged"]).max() - 1)


def worthwhile_sizes(bounds: pd.Series) -> str:
    """From which size on merging can give `WORTHWHILE`: ``from 768 px on``.

    Args:
        bounds: speed-ups by size in pixels, in order.
    """
    sizes = [size for size, bound in bounds.items() if bound >= WORTHWHILE]
    return f"from {sizes[0]} px on" if sizes else "at none of these sizes"


def datasheet() -> pd.DataFrame:
    """The rates and ridges of `catome.study.costs.accounting.DEVICES`, to be read."""
    rates = accounting.DEVICES
    columns = {
        "float16, TFLOP/s": (rates["float16"] / 1e12, "{:.4g}"),
        "float32, TFLOP/s": (rates["float32"] / 1e12, "{:.3g}"),
        "memory, GB/s": (rates["bytes"] / 1e9, "{:,.0f}"),
        "ridge float16, FLOP/byte": (rates["float16"] / rates["bytes"], "{:.0f}"),
        "ridge float32, FLOP/byte": (rates["float32"] / rates["bytes"], "{:.1f}"),
    }
    return pd.DataFrame({name: values.map(digits.format) for name, (values, digits) in columns.items()})


@dataclass(frozen=True)
class PaperSetting:
    """The paper's setting, counted on a V100S at 512 pixels, beside what the paper prints.

    Attributes:
        half, whole: `catome.study.costs.accounting.speedup_bounds` by (precision, attention) with half of the
            tokens merged and with 75 %.
        seconds: of an image without merging, as printed.
        printed_half, printed_end: speed-ups of ToMe with r = 0.5 and of CA-ToMe at the lowest threshold, as
            printed.
    """

    half: pd.DataFrame
    whole: pd.DataFrame
    seconds: float
    printed_half: float
    printed_end: float

    @property
    def least(self) -> pd.Series:
        """The least seconds of the 51 calls of an image, by (precision, attention)."""
        return 51 * self.whole["seconds"]

    @property
    def nearest(self) -> tuple[str, str]:
        """The (precision, attention) whose bound with 75 % merged is closest to what is printed."""
        return (self.whole["free"] - self.printed_end).abs().idxmin()

    def table(self) -> pd.DataFrame:
        """Counted and printed seconds and speed-ups, to be read."""
        columns = {
            "51 calls": [*self.least.map("at least {:.2f} s".format), f"{self.seconds:.2f} s"],
            "half merged": [
                *self.half["free"].map("{:.3f}x".format),
                f"{self.printed_half:.3f}x (ToMe, r = 0.5)",
            ],
            "75 % merged": [*self.whole["free"].map("{:.3f}x".format), f"{self.printed_end:.3f}x (t = 0.4)"],
        }
        names = [f"{precision}, {attention} attention" for precision, attention in self.whole.index]
        return pd.DataFrame(columns, index=[*names, "printed in the paper"])

    def words(self) -> dict[str, str]:
        """The words of the chapter's text about it, by the names there, with _ for -."""
        precision, attention = near = self.nearest
        return {
            "paper_end": f"{self.printed_end:.3f}",
            "nearest": f"{precision} with {attention} attention",
            "nearest_end": f"{self.whole.at[near, 'free']:.3f}",
            "nearest_time": f"{self.least[near] / self.seconds:.0%}",
            "paper_half": f"{self.printed_half:.3f}",
            "nearest_half": f"{self.half.at[near, 'free']:.3f}",
            "float16_times": f"{self.seconds / self.least['float16', 'naive']:.0f}",
            "float16_end": f"{self.whole.at[('float16', 'naive'), 'free']:.2f}",
            "fused_end": f"{self.whole.at[('float32', 'fused'), 'free']:.2f}",
        }


def paper_setting() -> PaperSetting:
    """Count what the paper timed."""
    half, whole = (
        accounting.speedup_bounds("sd15", [512], [share], PANELS[:2]).set_index(["precision", "attention"])
        for share in (0.5, 0.75)
    )
    timed, end = paper.METHODS["seconds"], paper.THRESHOLDS["seconds"]
    return PaperSetting(
        half, whole, timed.iloc[0], timed.iloc[0] / timed.iloc[1], end.loc[1.0] / end.loc[0.4]
    )


def modern_words() -> dict[str, str]:
    """The most that merging can give at 512 pixels on two newer GPUs in float16.

    The names are those in the chapter's text, with _ for -."""
    devices = {"h200": "H200 SXM", "rtx": "RTX 4090"}
    found = accounting.speedup_bounds(
        "sd15", [512], [0.5, 0.75], [(device, "float16") for device in devices.values()]
    )
    free = found.set_index(["device", "attention", "share"])["free"]
    kinds = {"all": ("fused", 0.75), "half": ("fused", 0.5), "half_naive": ("naive", 0.5)}
    return {
        f"{short}_{kind}": f"{free[name, *key]:.2f}"
        for short, name in devices.items()
        for kind, key in kinds.items()
    }


WORKS = ("attention, unmerged", "attention, keys merged", "merge keys and values", "find pairs")


def kernel_times() -> pd.DataFrame:
    """Least microseconds of what merged keys take in one self-attention on an H200, by model and work
    (`WORKS`)."""
    times = least_times(_NEW).pivot(index="model", columns="work", values="us")[list(WORKS)]
    return times.rename_axis(index=None, columns="us, on an H200")


def kernel_gains(match_every: float) -> pd.Series:
    """The largest speed-up that merged keys can give one self-attention, by model."""
    whole, merged, merging, finding = (kernel_times()[work] for work in WORKS)
    return whole / (merged + merging + finding / match_every)


def measured_words(measured: pd.DataFrame) -> dict[str, str]:
    """The words about where U-Net calls were timed.

    ``measured`` is of `catome.study.costs.accounting.with_bounds`, and may have no rows."""
    if measured.empty:
        return {"timed_on": "No GPU's times are recorded yet."}
    said = f"Recorded on {quality.listed(sorted(measured['device'].unique()))}, with fused attention (SDPA)."
    return {
        "timed_on": (
            f"{said} Each call is the mean of a CONFIG_3 generation, so matching counts for its share."
        )
    }


def own_speedups(measured: pd.DataFrame) -> pd.DataFrame:
    """The library's timed speed-ups, each beside the most that it could be, to be read.

    ``measured`` is as in `measured_words`, with rows."""
    own = measured[measured["method"] == "catome"]
    said = [
        f"{row.unmerged:.2f}x" + (f" of {row.bound:.2f}x" if row.bound == row.bound else "")
        for row in own.itertuples()
    ]
    own = own.assign(words=said, architecture=own["architecture"].map(accounting.TITLES))
    return own.pivot(
        index=["architecture", "width", "dtype", "batch"], columns="share", values="words"
    ).fillna("")


def turns_words(turns: pd.DataFrame) -> dict[str, str]:
    """Say whether the model of savings and costs foretold what was timed, by the names in the chapter's text,
    with _ for -.

    Args:
        turns: of `catome.study.bench.contenders.attention_turns`.
    """

    def agreeing(rows: pd.DataFrame) -> int:
        return int(((rows["speedup"] > 1) == (rows["expected"] > 0)).sum())

    clear = turns[(turns["low"] > 1) | (turns["high"] < 1)]
    said = "The timing is conclusive at none of them."
    if len(clear):
        said = (
            f"Of the {len(clear)} where the timing is conclusive, they disagree at "
            f"{len(clear) - agreeing(clear)}."
        )
    launch = f"{1e6 * ESTIMATES['cuda', 2].launch:.0f}"
    return {"agree": str(agreeing(turns)), "points": str(len(turns)), "conclusive": said, "launch": launch}


def words(
    counted: Counted, papers: PaperSetting, measured: pd.DataFrame, turns: pd.DataFrame
) -> dict[str, str]:
    """All that the chapter's text takes up, by the names there, with _ for -.

    Args:
        counted: with the chapter's parameters.
        papers: the paper's own setting.
        measured: as in `measured_words`.
        turns: as in `turns_words`.
    """
    return counted.words() | papers.words() | modern_words() | measured_words(measured) | turns_words(turns)
