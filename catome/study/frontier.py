"""Images against scores: the library's configurations beside ToMe and ToDo at equal numbers of attention scores.

``python -m catome.study.frontier`` prints the table of the README. Its images have seeds of their own, which no choice of the
configurations was made by. What was generated is kept, and read again the next time.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np

from catome.runtime.config import FAST, PAPER, RECOMMENDED
from catome.study import methods
from catome.study.comparison import Comparison, compare
from catome.study.generate import load
from catome.study.methods import Method
from catome.study.parameters import Setting
from catome.tiny import GUIDANCE_SCALE
from catome.tiny.scenes import PROMPT

SEED = 1013
"""Of the images: of no other study, and of none by which a configuration was chosen."""

POOR_DB = 30
"""Below this PSNR an image has visibly changed."""


@dataclass(frozen=True)
class Frontier:
    """The rows of the comparison, and what is compared with what.

    Attributes:
        made: the comparison.
        names: how each method is called, by its label.
        scores: the share of attention scores that each method leaves, by its label.
        rivals: pairs of labels: one of the library's configurations, and a peer that computes at least as many scores.
    """

    made: Comparison
    names: dict[str, str]
    scores: dict[str, float]
    rivals: list[tuple[str, str]]

    def table(self) -> str:
        """Each method's scores, PSNR with a 95 % interval over images, and share of images that changed visibly."""
        summary = self.made.summary()
        width = max(map(len, self.names.values()))
        lines = [f"{'':{width}}  scores left  PSNR (95 % interval)   below {POOR_DB} dB"]
        for label, name in self.names.items():
            row = summary.loc[label]
            poor = float((self.made.of(label)["psnr"] < POOR_DB).mean())
            interval = f"{row['PSNR']:4.1f} dB [{row['PSNR low']:4.1f}, {row['PSNR high']:4.1f}]"
            lines.append(f"{name:{width}}  {self.scores[label]:11.2f}  {interval}    {poor:8.0%}")
        return "\n".join(lines)

    def differences(self) -> str:
        """Each configuration minus its rivals on the same seeds, with 95 % intervals."""
        lines = ["At equal scores, on the same seeds:"]
        for own, rival in self.rivals:
            mean, low, high = self.made.paired("psnr", own, rival)
            better = int((self.made.of(own)["psnr"].to_numpy() > self.made.of(rival)["psnr"].to_numpy()).sum())
            line = f"{self.names[own]} - {self.names[rival]}: {mean:+.1f} dB [{low:+.1f}, {high:+.1f}]"
            lines.append(f"{line}, closer in {better} of {len(self.made.of(own))} images")
        return "\n".join(lines)


def scores_left(made: Comparison, method: Method, keys_alone: bool) -> float:
    """The share of the scores of the topmost self-attentions that a method leaves, mean over images, steps and blocks.

    Exact where keys alone are merged, and for a fixed share of tokens; a little too low for a threshold on tokens, as the
    square of a mean is below the mean of squares."""
    merged = np.concatenate([np.asarray(share, float) for share in made.of(method)["merged_share"]])
    return float((1 - merged).mean() if keys_alone else ((1 - merged) ** 2).mean())


def frontier(pipe, setting: Setting, **kept) -> Frontier:
    """Generate by all methods; the shares of ToMe are those that leave as many scores as the library's configurations.

    Args:
        pipe: an unpatched pipeline.
        setting: what to generate.
        kept: ``folder``, ``recorded`` and ``recompute`` as in `catome.study.compare`.
    """
    best = methods.merged_keys(threshold=RECOMMENDED.threshold, stride=RECOMMENDED.stride, schedule="EVEN_13")
    fast = methods.merged_keys(threshold=FAST.threshold, stride=FAST.stride, schedule="EVEN_13")
    paper = methods.ca_tome(PAPER.threshold, "CONFIG_3")
    own = compare(pipe, setting, [best, fast, paper], **kept)
    scores = {
        best.label: scores_left(own, best, keys_alone=True),
        fast.label: scores_left(own, fast, keys_alone=True),
        paper.label: scores_left(own, paper, keys_alone=False),
    }
    as_best = methods.tome(_ratio(scores[best.label]))
    as_fast = methods.tome(_ratio(scores[fast.label]))
    half = methods.todo(factor=2, rows=1)
    quarter = methods.todo(factor=2)
    peers = {
        as_best: (f"ToMe, ratio {_ratio(scores[best.label]):g}", (1 - _ratio(scores[best.label])) ** 2),
        half: ("ToDo, every second column", 0.5),
        as_fast: (f"ToMe, ratio {_ratio(scores[fast.label]):g}", (1 - _ratio(scores[fast.label])) ** 2),
        quarter: ("ToDo, factor 2", 0.25),
    }
    made = compare(pipe, setting, [best, fast, paper, *peers], **kept)
    names = {best.label: "catome.RECOMMENDED", fast.label: "catome.FAST", paper.label: "catome.PAPER (CA-ToMe)"}
    for method, (name, left) in peers.items():
        names[method.label] = name
        scores[method.label] = left
    rivals = [(best.label, as_best.label), (best.label, half.label), (fast.label, as_fast.label), (fast.label, quarter.label)]
    return Frontier(made, dict(sorted(names.items(), key=lambda item: -scores[item[0]])), scores, rivals)


def _ratio(scores: float) -> float:
    """ToMe's ratio that leaves at least this share of the scores, in steps of a hundredth."""
    return math.floor(100 * (1 - math.sqrt(scores))) / 100


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m catome.study.frontier", description=__doc__)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", default="_build/output", help="where new rows are kept")
    parser.add_argument("--recompute", action="store_true", help="generate everything again, whatever is kept")
    options = parser.parse_args(argv)
    setting = Setting(
        model="tiny",
        classes=None,
        prompt=PROMPT,
        images=options.images,
        steps=options.steps,
        guidance=GUIDANCE_SCALE,
        guidance_rescale=0.0,
        height=None,
        width=None,
        seed=SEED,
        device=options.device,
        dtype="float32",
        batch_size=options.batch,
        output=options.output,
    )
    found = frontier(load(setting), setting, recompute=options.recompute)
    print(found.table())
    print()
    print(found.differences())


if __name__ == "__main__":
    main()
