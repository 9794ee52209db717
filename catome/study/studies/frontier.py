"""Images against scores: the library's configurations beside settings of ToMe and ToDo that compute at least
as many scores.

``python -m catome.study frontier`` prints the table of the README. Its images have seeds of their own, which
no choice of the configurations was made by. What was generated is kept, and read again the next time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from catome.runtime.config import FAST, PAPER, RECOMMENDED
from catome.study import methods
from catome.study.measure import quality
from catome.study.measure.comparison import Comparison, compare
from catome.study.methods import Method
from catome.study.run.generate import generate_batch
from catome.study.run.parameters import Flag, Seed, Setting, parameters
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
from catome.study.studies.jobs import Job, of_images
from catome.summary import summary

NOTEBOOK = None

SEED = 1013
"""Of the images: of no other study, and of none by which a configuration was chosen."""


@parameters
class Parameters(Setting):
    """The parameters of this study; ``recompute``: generate everything again, whatever is kept."""

    seed: Seed = SEED
    recompute: Flag = False


SCORES = Table(
    "scores",
    1,
    {name: kind for name, kind in SHARED_KEYS.items() if name != "image"}
    | {"method": pa.string(), "images": pa.int32()},
    {"scores_left": pa.float64(), "merged_share": pa.float64()},
)
"""One row for each method: what `catome.summary` says after a generation of the first ``images`` images, over
all rows of their batch, also those without a prompt. ``prompt`` holds the prompts of all of them, with
newlines between."""


@dataclass(frozen=True)
class Frontier:
    """The rows of the comparison, and what is compared with what.

    Attributes:
        made: the comparison.
        names: how each method is called, by its label.
        scores: the share of attention scores that each method leaves, by its label.
        rivals: pairs of labels: one of the library's configurations, and a peer that computes at least as
            many scores.
    """

    made: Comparison
    names: dict[str, str]
    scores: dict[str, float]
    rivals: list[tuple[str, str]]

    def table(self) -> str:
        """Each method's scores, PSNR with a 95 % interval over images, and share of images that changed
        visibly."""
        summary = self.made.summary()
        width = max(map(len, self.names.values()))
        lines = [f"{'':{width}}  scores left  PSNR (95 % interval)   below {quality.POOR_DB} dB"]
        for label, name in self.names.items():
            row = summary.loc[label]
            poor = float((self.made.of(label)["psnr"] < quality.POOR_DB).mean())
            interval = f"{row['PSNR']:4.1f} dB [{row['PSNR low']:4.1f}, {row['PSNR high']:4.1f}]"
            lines.append(f"{name:{width}}  {self.scores[label]:11.2f}  {interval}    {poor:8.0%}")
        return "\n".join(lines)

    def report(self) -> str:
        """The table and the differences."""
        return f"{self.table()}\n\n{self.differences()}"

    def differences(self) -> str:
        """Each configuration minus its rivals on the same seeds, with 95 % intervals."""
        lines = ["On the same seeds, where the peer computes at least as many scores:"]
        for own, rival in self.rivals:
            mean, low, high = self.made.paired("psnr", own, rival)
            better = int(
                (self.made.of(own)["psnr"].to_numpy() > self.made.of(rival)["psnr"].to_numpy()).sum()
            )
            line = f"{self.names[own]} - {self.names[rival]}: {mean:+.1f} dB [{low:+.1f}, {high:+.1f}]"
            lines.append(f"{line}, closer in {better} of {len(self.made.of(own))} images")
        return "\n".join(lines)


def scores_left(
    pipe, setting: Setting, method: Method, folder=None, recorded=RECORDED, recompute: bool = False
) -> float:
    """The share of the scores of the patched self-attentions that a method of the library leaves, over the
    first batch.

    Args:
        pipe: an unpatched pipeline.
        setting: what to generate.
        method: a method that applies a patch of the library.
        folder, recorded, recompute: as in `catome.study.compare`.
    """
    images = min(setting.images, setting.batch_size)
    keys = shared_keys(pipe, setting) | prompts_of(setting, images) | {"method": method.label}
    store = Store(SCORES, folder or setting.output, recorded)
    held = store.find(**keys)
    if len(held) and not recompute:
        return float(held["scores_left"].iloc[-1])
    run = provenance(setting, keys["model"])
    watch = Stopwatch()
    with method.applied(pipe):
        generate_batch(pipe, setting, range(images))
        found = summary(pipe)
    store.add(
        [keys | {"scores_left": found.scores_left, "merged_share": found.merged_share}], run, watch.lap()
    )
    store.finish()
    return found.scores_left


def _with_a_prompt(made: Comparison, method: Method) -> float:
    """The share of keys that a method leaves of the rows with a prompt, over all images."""
    merged = np.concatenate([np.asarray(share, float) for share in made.of(method)["merged_share"]])
    return float((1 - merged).mean())


def frontier(pipe, setting: Setting, **kept) -> Frontier:
    """Generate by all methods; ToMe's shares are such that it computes more scores than the library's
    configurations.

    Args:
        pipe: an unpatched pipeline.
        setting: what to generate.
        kept: ``folder``, ``recorded`` and ``recompute`` as in `catome.study.compare`.
    """
    best = methods.named_configuration(RECOMMENDED, "EVEN_13")
    fast = methods.named_configuration(FAST, "EVEN_13")
    paper = methods.ca_tome(PAPER.threshold, "CONFIG_3")
    own = compare(pipe, setting, [best, fast, paper], **kept)
    scores = {method.label: scores_left(pipe, setting, method, **kept) for method in (best, fast, paper)}
    ratios = [_ratio(max(scores[method.label], _with_a_prompt(own, method))) for method in (best, fast)]
    as_best, as_fast = map(methods.tome, ratios)
    half = methods.todo(factor=2, rows=1)
    quarter = methods.todo(factor=2)
    peers = {
        as_best: (f"ToMe, ratio {ratios[0]:g}", (1 - ratios[0]) ** 2),
        half: ("ToDo, every second column", 0.5),
        as_fast: (f"ToMe, ratio {ratios[1]:g}", (1 - ratios[1]) ** 2),
        quarter: ("ToDo, factor 2", 0.25),
    }
    compare(pipe, setting, list(peers), **kept)
    made = compare(pipe, setting, [best, fast, paper, *peers], **(kept | {"recompute": False}))
    names = {
        best.label: "catome.RECOMMENDED",
        fast.label: "catome.FAST",
        paper.label: "catome.PAPER (CA-ToMe)",
    }
    for method, (name, left) in peers.items():
        names[method.label] = name
        scores[method.label] = left
    rivals = [
        (best.label, as_best.label),
        (best.label, half.label),
        (fast.label, as_fast.label),
        (fast.label, quarter.label),
    ]
    return Frontier(made, dict(sorted(names.items(), key=lambda item: -scores[item[0]])), scores, rivals)


def _ratio(scores: float) -> float:
    """ToMe's ratio that leaves at least this share of the scores, in steps of a hundredth."""
    return math.floor(100 * (1 - math.sqrt(scores))) / 100


def jobs(params: Parameters) -> Iterator[Job]:
    """All generations; ToMe's shares are known only when the library's configurations have run."""
    own = [methods.named_configuration(config, "EVEN_13") for config in (RECOMMENDED, FAST)]
    labels = [*(method.label for method in own), methods.ca_tome(PAPER.threshold, "CONFIG_3").label]
    yield from of_images(1, params, labels)
    twins = [f"ToMe, as many scores as {method.label}" for method in own]
    yield from of_images(
        2, params, [*twins, methods.todo(factor=2, rows=1).label, methods.todo(factor=2).label]
    )


def run(params: Parameters, pipe, **kept) -> Frontier:
    """`frontier` with these parameters."""
    return frontier(pipe, params, recompute=params.recompute, **kept)
