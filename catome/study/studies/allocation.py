"""Does the image decide how many tokens are merged, or the step and the block?

A threshold merges another share of each image, at each step, in each block. Is all of this needed? Here a
threshold is compared with fixed shares that are ever freer: one for the whole generation, one for each block,
one for each step, and one for each step and block. What the last of them lacks is the image alone. All leave
as many attention scores as the threshold does on average: shares are measured on images of another seed, and
set so that ``(1 - share) ** 2`` has the mean that was measured.

``python -m catome.study allocation`` prints the table; chapter 3 shows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa

from catome.patch import applied_patch
from catome.study import methods
from catome.study.measure import quality
from catome.study.measure.comparison import Comparison, compare
from catome.study.methods import Method
from catome.study.run.generate import batches, generate_batch
from catome.study.run.parameters import Cosines, Count, Flag, Setting, parameters
from catome.study.run.store import (
    RECORDED,
    SHARED_KEYS,
    Stopwatch,
    Store,
    Table,
    prompts_of,
    provenance,
    shared_keys,
)
from catome.study.studies.frontier import scores_left
from catome.study.studies.jobs import Job, of_images

NOTEBOOK = None

FREEDOMS = {
    "generation": "one share for all",
    "block": "a share for each block",
    "step": "a share for each step",
    "step and block": "a share for each step and block",
}
"""The things that fixed shares may depend on, and how a table calls that."""

BY_IMAGE = "a threshold: each image, step and block"
"""The name of the threshold in a table."""

EFFECT = 0.5
"""The difference in PSNR, in dB, that these comparisons and those of chapter 3 should be able to find."""


@parameters
class Parameters(Setting):
    """The parameters of this study.

    Attributes:
        thresholds: to compare fixed shares with.
        measured_images: that the shares are measured on; their seed is the next one.
        recompute: generate everything again, whatever is kept.
    """

    images: Count = 24
    thresholds: Cosines = (0.9,)
    measured_images: Count = 24
    recompute: Flag = False

    @property
    def measured(self) -> Setting:
        """The images that shares are measured on."""
        return self.common(images=self.measured_images, seed=self.seed + 1)


LEFT = Table(
    "left",
    1,
    {name: kind for name, kind in SHARED_KEYS.items() if name != "image"}
    | {"threshold": pa.float64(), "images": pa.int32(), "block": pa.int32()},
    {"left": pa.list_(pa.float32())},
)
"""One row for each threshold and block: the share of attention scores that it leaves at each step, ``(1 -
merged share) ** 2``, mean over the first ``images`` images, with and without their prompts. ``prompt`` holds
these, with newlines between."""


def measured_left(
    pipe, setting: Setting, threshold: float, folder=None, recorded=RECORDED, recompute=False
) -> np.ndarray:
    """The share of attention scores that CA-ToMe leaves at each step in each block, ``[calls, blocks]``, mean
    over images.

    Args:
        pipe: an unpatched pipeline.
        setting: which images.
        threshold: pairs above it are merged, found afresh at each step.
        folder, recorded, recompute: as in `catome.study.compare`.
    """
    keys = shared_keys(pipe, setting) | prompts_of(setting, setting.images) | {"threshold": float(threshold)}
    store = Store(LEFT, folder or setting.output, recorded)
    held = store.find(**keys).sort_values("block")
    if len(held) and not recompute:
        return np.stack(held["left"].to_numpy(), 1).astype(float)
    run, watch = provenance(setting, keys["model"]), Stopwatch()
    total = 0.0
    for part in batches(setting):
        seen = []

        def note(seen=seen) -> None:
            shares = [plan.merged_share.double() for plan in applied_patch(pipe).cached()]
            seen.append([float(((1 - share) ** 2).mean()) for share in shares])

        with methods.ca_tome(threshold, None).applied(pipe):
            generate_batch(pipe, setting, part, note)
        total = total + len(part) * np.array(seen)
    left = total / setting.images
    rows = [
        keys | {"block": block, "left": left[:, block].astype(np.float32)} for block in range(left.shape[1])
    ]
    store.add(rows, run, watch.lap())
    store.finish()
    return left.astype(np.float32).astype(float)


def shares_by(left: np.ndarray, freedom: str) -> np.ndarray:
    """Fixed shares that leave as many scores as were measured, ``[calls, blocks]``.

    Args:
        left: of `measured_left`.
        freedom: what they may depend on, one of `FREEDOMS`.
    """
    over = {"generation": (0, 1), "block": (0,), "step": (1,), "step and block": ()}[freedom]
    mean = left.mean(over, keepdims=True) if over else left
    return np.broadcast_to(1 - np.sqrt(mean), left.shape)


def jobs(params: Parameters) -> Iterator[Job]:
    """All generations; the shares are known only when they have been measured."""
    for t in params.thresholds:
        yield Job(
            1, "images", methods.ca_tome(t, None).label, params.measured, params.batch_size, params.calls
        )
    fixed = [f"fixed shares by {freedom}, as t = {t:g}" for t in params.thresholds for freedom in FREEDOMS]
    yield from of_images(2, params, [*(methods.ca_tome(t, None).label for t in params.thresholds), *fixed])


def beside(setting: Setting, images: int, thresholds: tuple, recompute: bool) -> Parameters:
    """The parameters for the first images of another study."""
    common = setting.common(images=min(images, setting.images))
    measured = min(Parameters.measured_images, setting.images)
    return Parameters(**asdict(common), thresholds=thresholds, measured_images=measured, recompute=recompute)


def run(params: Parameters, pipe, **kept) -> Result:
    """Measure the shares, and generate by them and by the thresholds.

    Args:
        params: which.
        pipe: an unpatched pipeline.
        kept: ``folder`` and ``recorded`` as in `catome.study.compare`.
    """
    ways, left = {}, {}
    for t in dict.fromkeys(params.thresholds):
        left[t] = measured_left(pipe, params.measured, t, recompute=params.recompute, **kept)
        for freedom in FREEDOMS:
            ways[t, freedom] = methods.fixed_shares(shares_by(left[t], freedom), f"{freedom}, as t = {t:g}")
        ways[t, "image"] = methods.ca_tome(t, None)
    made = compare(pipe, params, list(ways.values()), recompute=params.recompute, **kept)
    few = replace(params, images=min(params.images, params.batch_size))
    scores = {
        key: scores_left(pipe, few, method, recompute=params.recompute, **kept)
        for key, method in ways.items()
    }
    return Result(params, left, ways, scores, made)


@dataclass(frozen=True)
class Result:
    """The results of this study.

    Attributes:
        params: the parameters.
        left: of `measured_left`, by threshold.
        ways: the method of each threshold and freedom ("image" is the threshold itself).
        scores: the share of attention scores that each of them leaves, over the first batch.
        made: the rows.
    """

    params: Parameters
    left: dict[float, np.ndarray]
    ways: dict[tuple[float, str], Method]
    scores: dict[tuple[float, str], float]
    made: Comparison

    def table(self, t: float) -> pd.DataFrame:
        """A row for each freedom: ``PSNR`` with its interval, the share of images below `quality.POOR_DB`,
        the scores left."""
        summary = self.made.summary()
        rows = {}
        for freedom, name in {**FREEDOMS, "image": BY_IMAGE}.items():
            method = self.ways[t, freedom]
            rows[name] = summary.loc[method.label, ["PSNR", "PSNR low", "PSNR high"]].to_dict() | {
                "poor": float((self.made.of(method)["psnr"] < quality.POOR_DB).mean()),
                "scores left": self.scores[t, freedom],
            }
        return pd.DataFrame(rows).T

    def gain(self, t: float, freedom: str, over: str) -> tuple[float, float, float]:
        """PSNR of one freedom minus that of another on the same seeds, in dB, with its 95 % interval."""
        return self.made.paired("psnr", self.ways[t, freedom], self.ways[t, over])

    def differences(self, t: float) -> dict[str, np.ndarray]:
        """The gain of each freedom in PSNR, in dB, seed by seed: over one share for all, and the image's over
        all others."""
        pairs = {
            "each block": ("block", "generation"),
            "each step": ("step", "generation"),
            "each step and block": ("step and block", "generation"),
            "and each image": ("image", "step and block"),
        }
        return {
            name: self.made.differences("psnr", *(self.ways[t, one] for one in pair))
            for name, pair in pairs.items()
        }

    def steps_of_freedom(self, t: float) -> pd.DataFrame:
        """`differences` to be read, with their intervals for other prompts."""
        return quality.difference_table(self.differences(t), classes=self.made.classes)

    def needed(self) -> str:
        """Say in a sentence how many images `differences` need, over all thresholds, to find `EFFECT`."""
        thresholds = dict.fromkeys(self.params.thresholds)
        return quality.power_words((one for t in thresholds for one in self.differences(t).values()), EFFECT)

    def decides(self, t: float) -> str:
        """Say in sentences what the intervals tell of who decides how much is merged, for these prompts and
        for others."""
        freer = self.gain(t, "step and block", "generation")
        return (
            f"Letting the share depend on the step and the block changes PSNR by {quality.spoken(freer)} dB. "
            f"{self.image_decides(t, limits=True)}"
        )

    def image_decides(self, t: float, limits: bool = False) -> str:
        """Say in sentences what the intervals tell of letting the image decide as well as the step and the
        block, for these prompts and for others.

        Args:
            t: the threshold.
            limits: where it may be chance, say how much it gains at most, and how much it loses.
        """
        own = self.gain(t, "image", "step and block")
        _, low, high = own
        said = (
            "Letting the image decide as well as the step and the block changes PSNR by "
            f"{quality.spoken(own)} dB"
        )
        if low > 0:
            verdict = ". So the image decides, too."
        elif high < 0:
            verdict = ". So the images are closer if the image does not decide."
        else:
            verdict = ", which may be chance."
            if limits:
                verdict += (
                    f" At 95 % confidence, it gains no more than {high:.1f} dB, and loses no more than "
                    f"{max(0.0, -low):.1f} dB."
                )
        differences = self.made.differences("psnr", self.ways[t, "image"], self.ways[t, "step and block"])
        return f"{said}{verdict} {quality.other_prompts(differences, self.made.classes)}"

    def shown(self, t: float) -> pd.DataFrame:
        """`table` to be read, with a column for the difference from the threshold."""
        found = self.table(t)
        differences = []
        for freedom in (*FREEDOMS, "image"):
            differences.append("" if freedom == "image" else quality.spoken(self.gain(t, freedom, "image")))
        return pd.DataFrame(
            {
                "PSNR (dB)": quality.with_interval(found, "PSNR", 1).to_list(),
                "minus the threshold (dB)": differences,
                f"below {quality.POOR_DB} dB": found["poor"].map("{:.0%}".format).to_list(),
                "scores left": found["scores left"].map("{:.3f}".format).to_list(),
            },
            index=found.index,
        )

    def report(self) -> str:
        """The tables of each threshold, and what they say."""
        parts = []
        for t in dict.fromkeys(self.params.thresholds):
            parts.append(f"t = {t:g}, {self.params.images} images")
            parts.append(self.shown(t).to_string())
            parts.append(self.steps_of_freedom(t).to_string())
            parts.append(self.decides(t))
        parts.append(self.needed())
        return "\n\n".join(parts)
