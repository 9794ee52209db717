"""The page on what the study costs: its tables, and the words that its text takes up, by their names there,
with _ for -."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import pandas as pd

from catome.study import paper
from catome.study.costs import accounting, estimate

NOTEBOOK = "study_cost"

DEVICES = ("RTX 4090", "A100 80 GB SXM", "H100 SXM", "H200 SXM")
"""The devices whose hours the page estimates."""

SIZES = (512, 1024)
"""Pixels of the square images that `hours_by_way` has, those of
`catome.study.costs.estimate.merged_keys_seconds`."""

USUAL = "A100 80 GB SXM"
"""The GPU of the page's sentences and of its figure over many GPUs."""

START_S = 10
"""Seconds to load the model from the machine's own disk: an assumption."""

SHARED_DISK = 2e9
"""Bytes/s that one shared folder gives to all processes together: an assumption."""

_CALLS = 51  # of a generation of `estimate.generation_seconds`
_NUMBERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)


def by_study(counted: pd.DataFrame) -> pd.DataFrame:
    """Count what each study generates, and all of them together.

    Args:
        counted: of `catome.study.costs.estimate.count_all`.

    Returns:
        A row for each study and one named "all": "ways to generate", "images" and "U-Net calls".
    """
    each = counted.assign(calls=counted["images"] * counted["calls"]).groupby("study")
    table = each.agg(
        **{
            "ways to generate": ("method", "size"),
            "images": ("images", "sum"),
            "U-Net calls": ("calls", "sum"),
        }
    )
    table.loc["all"] = table.sum()
    return table


def left_out_words(images: int) -> dict[str, str]:
    """The words about the images that are not counted; ``images`` of
    `catome.study.costs.estimate.left_out`."""
    if not images:
        return {"left_out": "No image of another model is left out."}
    which = f"so {images:,} images of chapter 10's transformer are left out"
    return {"left_out": f"The roofline of this page is that of a U-Net, {which}."}


def timed_by_others() -> pd.DataFrame:
    """The rows of `catome.study.costs.estimate.PRINTED` with ``least``, the least seconds by the roofline,
    and ``efficiency``, the share of these in the printed seconds."""
    how = ["device", "precision", "attention"]
    printed = estimate.PRINTED
    least = [estimate.generation_seconds(512, *row) for row in printed[how].itertuples(index=False)]
    return printed.assign(least=least, efficiency=least / printed["seconds"])


def timed_by_others_table() -> pd.DataFrame:
    """`timed_by_others`, to be read."""
    rows = timed_by_others()
    columns = {
        "on": rows["device"] + ", " + rows["precision"],
        "least time": rows["least"].map("{:.2f} s".format),
        "measured": rows["seconds"].map("{:.2f} s".format),
        "efficiency": rows["efficiency"].map("{:.0%}".format),
    }
    return pd.DataFrame(columns).set_axis(rows["what"]).rename_axis(index=None, columns="measured by others")


@dataclass(frozen=True)
class Efficiency:
    """The share of the roofline's speed that every GPU is taken to reach in half precision.

    Attributes:
        share: above 0 and at most 1.
        source: a sentence that says where it is from.
    """

    share: float
    source: str

    def words(self) -> dict[str, str]:
        """The words that the page's text says of it."""
        return {"efficiency": f"{self.share:.0%}", "efficiency_from": self.source}


def efficiency_of(measured: pd.DataFrame) -> Efficiency:
    """The efficiency that this project measured with the largest batch, else that of others' seconds in half
    precision.

    Args:
        measured: of `catome.study.bench_rows`; may have no rows.
    """
    plain = measured[(measured["method"] == "unmerged") & (measured["architecture"] == "sd15")]
    plain = accounting.with_bounds(plain[(plain["width"] == 512) & (plain["dtype"] == "float16")])
    # a GPU whose data sheet is not among the devices has no roofline
    plain = plain.dropna(subset=["least_ms", "ms"])
    if plain.empty:
        printed = timed_by_others()
        efficiency = printed.loc[printed["precision"] == "float16", "efficiency"].iloc[0]
        return Efficiency(float(efficiency), "This is an estimate, good to a factor of two or so.")
    row = plain.loc[plain["batch"].idxmax()]
    return Efficiency(
        float(row["least_ms"] / row["ms"]),
        f"This project measured it on {row['device']}, in batches of {row['batch']}.",
    )


def hours_by_size(sizes: Sequence[int], share: float, efficiency: float) -> pd.DataFrame:
    """Hours for a thousand images of Stable Diffusion v1.5 with nothing and with a share merged.

    Returns:
        Columns ``device``, ``size`` (pixels), ``share`` (merged) and ``hours``.
    """
    rows = []
    for device, size in product(DEVICES, sizes):
        for merged in dict.fromkeys((0.0, share)):
            seconds = estimate.generation_seconds(size, device, efficiency=efficiency, share=merged)
            rows.append({"device": device, "size": size, "share": merged, "hours": 1000 * seconds / 3600})
    return pd.DataFrame(rows)


def hours_by_way(share: float, efficiency: float) -> pd.DataFrame:
    """Hours of each device for a thousand images of Stable Diffusion v1.5 with nothing merged, with a share
    of the tokens and with as many of the keys, to be read: a row for each of `SIZES` and each way."""

    def hours(seconds: Callable[..., float], size: int, **given: float) -> list[str]:
        found = [seconds(size, device, efficiency=efficiency, **given) for device in DEVICES]
        return [f"{1000 * one / 3600:.2f}" for one in found]

    rows = {}
    for size in SIZES:
        rows[f"{size} px", "nothing merged"] = hours(estimate.generation_seconds, size)
        if share:
            tokens = hours(estimate.generation_seconds, size, share=share)
            rows[f"{size} px", f"{share:.0%} of the tokens merged"] = tokens
            keys = hours(estimate.merged_keys_seconds, size, share=share)
            rows[f"{size} px", f"{share:.0%} of the keys merged"] = keys
    return pd.DataFrame(rows, index=list(DEVICES)).T.rename_axis(columns="GPU hours")


def gpu_hours(table: pd.DataFrame, efficiency: float) -> pd.DataFrame:
    """Hours of one GPU at 512 pixels for each row of `by_study`, every method as an unmerged generation, by
    device."""
    hours = {device: table["U-Net calls"] * call_seconds(device, efficiency) / 3600 for device in DEVICES}
    return pd.DataFrame(hours).rename_axis(columns="GPU hours at 512 px")


def call_seconds(device: str, efficiency: float) -> float:
    """Seconds of one U-Net call for one image of 512 pixels, with its part of the decoding."""
    return estimate.generation_seconds(512, device, efficiency=efficiency) / _CALLS


def scaled(
    preset: str, gpus: Sequence[int], batches: Sequence[int], efficiency: float, overhead_s: float
) -> tuple[pd.DataFrame, pd.Series]:
    """The hours that a preset's study takes on many GPUs.

    Args:
        preset: as in `catome.study.costs.estimate.count_all`.
        gpus: how many, in order; numbers between the least and the most of them are looked at as well.
        batches: images of a piece, the smallest one last. It comes once more, with weights that all load from
            one folder.
        efficiency: of every GPU.
        overhead_s: seconds of bookkeeping for each piece.

    Returns:
        Columns ``gpus``, ``case``, ``hours`` and ``used`` (the share of the GPUs' time in which they
        compute); and the hours by number of GPUs if no time were lost.
    """
    every = sorted({*gpus, *(n for n in _NUMBERS if min(gpus) <= n <= max(gpus))})
    lines = []
    for batch, shared in [*((batch, False) for batch in batches), (batches[-1], True)]:
        counted = estimate.count_all(preset, batch_size=batch)
        phases = estimate.phases_of(counted, call_seconds(USUAL, efficiency))
        work = sum(map(sum, phases))
        case = f"{_images_a_piece(batch)}{', weights from one folder' * shared}"
        for n in every:
            start_s = START_S + shared * loading_seconds(n)
            seconds = estimate.makespan(phases, n, start_s, overhead_s, spread=0.03)
            lines.append({"gpus": n, "case": case, "hours": seconds / 3600, "used": work / n / seconds})
    return pd.DataFrame(lines), pd.Series({n: work / 3600 / n for n in every})


def scaled_table(table: pd.DataFrame, gpus: Sequence[int]) -> pd.DataFrame:
    """The hours of `scaled` for these numbers of GPUs, by number and case."""
    chosen = table[table["gpus"].isin(gpus)].pivot(index="gpus", columns="case", values="hours")
    return chosen[list(table["case"].unique())].rename_axis(index="GPUs", columns="hours")


def loading_seconds(gpus: int) -> float:
    """Seconds until so many processes have loaded their weights from one shared folder."""
    return gpus * estimate.WEIGHTS_BYTES / SHARED_DISK


def _images_a_piece(batch: int) -> str:
    return "one image a piece" if batch == 1 else f"{batch} images a piece"


def spoken_time(seconds: float) -> str:
    """A time to a whole number of hours, minutes or seconds, whichever is the longest that it has two of:
    ``43 minutes``."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} second{'s' * (round(seconds) != 1)}"


def total_words(table: pd.DataFrame, hours: pd.DataFrame) -> dict[str, str]:
    """The time that the whole study would take one GPU, in words; ``table`` and ``hours`` of `by_study` and
    `gpu_hours`. The paper's seconds are those of 51 calls, and a short generation has fewer."""
    printed = table.at["all", "U-Net calls"] / _CALLS * paper.METHODS["seconds"].iloc[0]
    devices = {"a100": "A100 80 GB SXM", "h100": "H100 SXM"}
    words = {f"hours_{short}": spoken_time(3600 * hours.at["all", name]) for short, name in devices.items()}
    return words | {"hours_v100s": spoken_time(printed)}


def recorded_words(check: Mapping[str, float]) -> dict[str, str]:
    """The time that the recorded studies took, in words, of
    `catome.study.costs.estimate.recorded_against_reckoned`."""
    return {
        "recorded_images": f"{check['images']:,}",
        "recorded_methods": str(check["methods"]),
        "reckoned_hours": f"{check['reckoned_hours']:.1f}",
        "process_hours": f"{check['process_hours']:.1f}",
        "machine_hours": f"{check['process_hours'] / 2:.1f}",
    }


def bookkeeping_ends(ticks: Sequence[float]) -> tuple[float, float]:
    """The median of the first and of the last quarter, in seconds, of
    `catome.study.costs.estimate.bookkeeping_seconds`."""
    quarter = max(1, len(ticks) // 4)
    return float(pd.Series(ticks[:quarter]).median()), float(pd.Series(ticks[-quarter:]).median())


def bookkeeping_words(ticks: Sequence[float], efficiency: float) -> dict[str, str]:
    """The time that bookkeeping takes beside computing, in words; ``ticks`` as in `bookkeeping_ends`."""
    early, late = bookkeeping_ends(ticks)
    piece = 40 * estimate.generation_seconds(512, USUAL, efficiency=efficiency)  # four images by ten methods
    return {
        "ms_early": f"{1e3 * early:.0f}",
        "ms_late": f"{1e3 * late:.0f}",
        "pieces": str(len(ticks)),
        "piece_time": spoken_time(piece),
    }


def scaling_words(table: pd.DataFrame) -> dict[str, str]:
    """The words about how far the most GPUs help; ``table`` of `scaled`."""
    most = int(table["gpus"].max())
    at_most = table[table["gpus"] == most].set_index("case")
    *cases, _ = at_most.index  # the last one loads its weights from one folder

    def said(case: str) -> str:
        row, whose = at_most.loc[case], "the GPUs'" if most > 1 else "the GPU's"
        return f"{spoken_time(3600 * row['hours'])} and uses {row['used']:.0%} of {whose} time"

    sentences = f"With {most:,} GPU{'s' * (most != 1)} and {cases[0]} the study takes {said(cases[0])}."
    if len(cases) > 1:
        sentences += f" With {cases[-1]} it takes {said(cases[-1])}."
    return {
        "most_gpus": sentences,
        "disk": f"{SHARED_DISK / 1e9:.0f}",
        "loading": spoken_time(loading_seconds(most)),
    }
