"""The figures of chapters 1 and 2, of the page about the embedded model, and of the front page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML

from catome.probe import Observation
from catome.study.measure import quality
from catome.study.measure.pairs import distances
from catome.study.measure.similarity import short_name
from catome.study.plots import interactive
from catome.study.plots.figures import (
    BLOCK_COLOURS,
    METHOD_COLOURS,
    PALETTE,
    WIDTH,
    difference,
    merge_picture,
    pair_lines,
    show_image,
    token_map,
)
from catome.study.run.denoiser import topmost_blocks
from catome.study.run.parameters import Setting
from catome.study.run.store import image_size
from catome.tensors.matching import Matches


def closeness(image: np.ndarray, plain: np.ndarray, digits: int = 1) -> str:
    """PSNR of an image ``[H, W, 3]`` in [0, 1] against another, in words."""
    error = float(np.mean((image - plain) ** 2))
    return f"{-10 * np.log10(error):.{digits}f} dB" if error else "unchanged"


def best_similarity(image: np.ndarray, name: str, matches: Matches, row: int, ratio: float, threshold: float):
    """An image, a map of the best similarity of its src tokens, and their distribution with what a threshold
    and a share merge.

    Args:
        image: ``[H, W, 3]`` in [0, 1], and its ``name``.
        matches: of a batch.
        row: the image's place in that batch.
        ratio: a share of all tokens.
        threshold: a cosine.
    """
    found, grid = matches.similarity[row], matches.grid
    best = torch.full((grid[0] * grid[1],), float("nan"))
    best[matches.src] = found
    least = found.sort(descending=True).values[max(int(ratio * len(best)) - 1, 0)]
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.9), width_ratios=(1, 1, 1.15))
    show_image(axes[0], image, name)
    drawn = token_map(axes[1], image, best.reshape(grid).numpy(), "best similarity")
    figure.colorbar(drawn, ax=axes[1], shrink=0.8)
    axes[2].hist(found, 40, color=PALETTE[0])
    axes[2].axvline(threshold, color=METHOD_COLOURS["CA-ToMe"], lw=2, label=f"t = {threshold:g}")
    axes[2].axvline(least, color=METHOD_COLOURS["ToMe"], lw=2, ls="--", label=f"r = {ratio:g}")
    axes[2].set(xlabel="best similarity", ylabel="src tokens")
    axes[2].legend(frameon=False)
    return figure


def pairs_and_distances(image: np.ndarray, matches: Matches, row: int, pairs: torch.Tensor, most: int = 70):
    """Some pairs over their image, and how far apart all of them lie.

    Args:
        image: ``[H, W, 3]`` in [0, 1].
        matches, row: as in `best_similarity`.
        pairs: ``[P, 2]``, src and dst of each merged pair of that image, found in these matches.
        most: how many are drawn over the image.
    """
    similarity = matches.similarity[row].contiguous()[
        torch.searchsorted(matches.src, pairs[:, 0].contiguous())
    ]
    shown = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:most]
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.9))
    title = f"{len(shown)} of {len(pairs)} pairs"
    lines = pair_lines(axes[0], image, pairs[shown], similarity[shown], matches.grid, title)
    if len(pairs):
        figure.colorbar(lines, ax=axes[0], shrink=0.8, label="similarity")
    axes[1].hist(distances(pairs, matches.grid[1]), 40, color=PALETTE[2])
    axes[1].set(xlabel="distance of a pair in tokens", ylabel="pairs")
    return figure


def merging_by_hand(frames: Mapping, images: Mapping, grid: tuple[int, int], block: torch.nn.Module) -> HTML:
    """`catome.study.plots.interactive.merging`, or a line that says why a page cannot show it."""
    some = next(iter(next(iter(frames.values())).values()))
    if some.numel() > interactive.MOST_NUMBERS:
        return HTML("<p>A page cannot compute as many tokens as this model has.</p>")
    return interactive.merging(frames, images, grid, block)


def growing_shares(images: Mapping[str, np.ndarray], gain: float = 8):
    """Images ``[H, W, 3]`` in [0, 1] by name, and below each but the first, which nothing was merged in, what
    changed."""
    (name, plain), *merged = images.items()
    figure, axes = plt.subplots(2, len(images), figsize=(WIDTH, 4.6), squeeze=False)
    show_image(axes[0, 0], plain, name)
    axes[1, 0].axis("off")
    axes[1, 0].text(0.5, 0.5, f"difference\nto unmerged,\n{gain:g} times", ha="center", va="center")
    for (name, image), above, below in zip(merged, axes[0, 1:], axes[1, 1:], strict=True):
        show_image(above, image, name)
        show_image(below, difference(image, plain, gain), closeness(image, plain))
    return figure


def least_and_most(images: np.ndarray, names: Sequence[str], shares: pd.Series, threshold: float):
    """Images beside each other with their class and the share that a threshold merges in them.

    Args:
        images: ``[images, H, W, 3]`` in [0, 1].
        names: the class of each.
        shares: by the number of the image, as of `catome.study.measure.similarity.extremes`; others are not
            shown.
        threshold: a cosine.
    """
    size = WIDTH, WIDTH / max(len(shares), 3) + 0.3
    figure, axes = plt.subplots(1, len(shares), figsize=size, squeeze=False)
    for ax, (i, share) in zip(axes[0], shares.items(), strict=True):
        show_image(ax, images[i], f"{names[i]}: {share:.0%} at t = {threshold:g}")
    return figure


def rows_of_scenes(images: Mapping[str, Sequence[np.ndarray]], columns: int):
    """Images ``[H, W, 3]`` of eight bits, a row for each class and two classes beside each other; ``columns``
    in each row."""
    rows = -(-len(images) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(WIDTH, WIDTH * rows / 2 / columns * 1.16), squeeze=False)
    for ax, (name, row) in zip(axes.T.flat, images.items(), strict=False):
        ax.imshow(np.concatenate(list(row), 1))
        ax.set(xticks=[], yticks=[])
        ax.set_title(name, fontsize="small")
        ax.grid(False)
    for ax in axes.T.flat[len(images) :]:
        ax.axis("off")
    return figure


Ratio = tuple[float, float, float]
"""A ratio of times and the ends of its 95 % interval, of `catome.study.measure.comparison.time_ratio`."""


def cover(plain: np.ndarray, merged: np.ndarray, seen: Observation, times: Mapping[str, Ratio]):
    """The picture of the front page: an image, what a layer merges in it, the image that comes out, and the
    time that it takes.

    Args:
        plain, merged: the image with every token in place and that of the same seed with merging, ``[H, W,
            3]`` in [0, 1].
        seen: the layer at one step, with its plan; the image's prompted row is the last.
        times: of one image by name, relative to the first, in which nothing is merged; the ends are NaN for
            one turn.
    """
    figure, axes = plt.subplots(1, 4, figsize=(WIDTH, 2.55), width_ratios=(1, 1, 1, 0.92))
    show_image(axes[0], plain, "all tokens")
    label = f"{seen.plan.merged_share[-1]:.0%} merged, step {seen.step}"
    merge_picture(axes[1], merged, seen.plan, len(seen.plan.lengths) - 1, seen.matches.grid, label)
    show_image(axes[2], merged, f"the result, {closeness(merged, plain, 0)}")
    _bars_of_time(axes[3], times)
    return figure


def _bars_of_time(ax, times: Mapping[str, Ratio]) -> None:
    """A bar for each, its share written into it, with a line for its interval; the first is the one in which
    nothing is merged."""
    colours = [METHOD_COLOURS["unmerged"], *[METHOD_COLOURS["CA-ToMe"]] * (len(times) - 1)]
    ax.barh(range(len(times)), [share for share, _, _ in times.values()], 0.62, color=colours)
    ax.set_yticks(range(len(times)), times, fontsize="small")
    for place, (share, low, high) in enumerate(times.values()):
        ax.text(0.03, place, f"{share:.0%}", ha="left", va="center", color="white", weight="bold")
        if high > low:  # not for the first one, nor after one turn
            ax.plot([low, high], [place, place], color="0.2", lw=1.2, marker="|", ms=7)
    longest = max(float(np.nanmax([share, high])) for share, _, high in times.values())
    ax.set(xlim=(0, 1.02 * longest), xticks=[], ylim=(len(times) - 0.4, -0.6))
    ax.set_title("time for one image")
    ax.set_box_aspect(1.09)
    ax.grid(False)
    for side in ax.spines.values():
        side.set_visible(False)


def time_words(times: Mapping[str, Ratio]) -> str:
    """Say in a sentence which share of the first one's time the others take; ``times`` as in `cover`."""
    first, *others = times
    said = []
    for name in others:
        share, low, high = times[name]
        interval = f" [{low:.0%}, {high:.0%}]" if high > low else ""
        said.append(f"{share:.0%}{interval} at {name}")
    return f"Of the time with {first}, the image takes {quality.listed(said)}."


def unet(pipe, setting: Setting):
    """Draw a U-Net with its levels, its skip connections and, in colour, the transformer blocks that merge:
    the topmost ones.

    Args:
        pipe: a pipeline with a U-Net.
        setting: whose images have the size that decides how many tokens there are.
    """
    model, levels = pipe.unet, len(pipe.unet.config.block_out_channels)
    grid = [edge // pipe.vae_scale_factor for edge in image_size(pipe, setting)]
    blocks = list(topmost_blocks(model))
    figure, ax = plt.subplots(figsize=(WIDTH, 0.62 * levels + 0.6))
    ax.set(xlim=(-1, 101), ylim=(-levels * 8, 8))
    ax.axis("off")
    for level in range(levels):
        y, rows, columns = -8 * level, -(-grid[0] // 2**level), -(-grid[1] // 2**level)
        left, right = 6 * level, 100 - 6 * level
        merging = {
            "down": [name for name in blocks if name.startswith(f"down_blocks.{level}.")],
            "up": [name for name in blocks if name.startswith(f"up_blocks.{levels - 1 - level}.")],
        }
        for way, start, end in (("down", left, 36), ("up", 60, right)):
            ax.add_patch(plt.Rectangle((start, y), end - start, 5, facecolor="0.93", edgecolor="0.6", lw=0.8))
            width = (end - start - 1) / max(len(merging[way]), 1)
            for place, name in enumerate(merging[way]):
                corner = (start + 1 + place * width, y + 0.8)
                colour = BLOCK_COLOURS.get(short_name(name), PALETTE[1])
                ax.add_patch(plt.Rectangle(corner, width - 1, 3.4, facecolor=colour, edgecolor="none"))
        ax.annotate(
            "",
            (59.5, y + 2.5),
            (36.5, y + 2.5),
            arrowprops=dict(arrowstyle="->", color="0.6", ls="--", lw=0.8),
        )
        size = f"{rows} \u00d7 {columns} = {rows * columns:,} tokens"
        ax.text(48, y + 3.1, size, ha="center", va="bottom", fontsize="small")
        if level + 1 < levels:
            flow = dict(arrowstyle="->", color="0.3", lw=1.2)
            ax.annotate("", (left + 9, y - 3), (left + 9, y), arrowprops=flow)
            ax.annotate("", (right - 9, y), (right - 9, y - 3), arrowprops=flow)
    bottom = -8 * (levels - 1)
    ax.annotate(
        "", (60, bottom - 2.5), (36, bottom - 2.5), arrowprops=dict(arrowstyle="->", color="0.3", lw=1.2)
    )
    ax.text(18, 6.2, "noisy latents in", ha="center", va="bottom", fontsize="small")
    ax.text(80, 6.2, "noise estimate out", ha="center", va="bottom", fontsize="small")
    ax.text(
        48,
        bottom - 3.6,
        "dashed: skip connections; in colour: blocks that merge",
        ha="center",
        va="top",
        fontsize="small",
    )
    return figure
