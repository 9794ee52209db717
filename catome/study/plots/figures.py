"""The book's figures: one style, one colour for each method and block wherever they appear."""

from __future__ import annotations

import base64
import html
import io
import re
import uuid

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import HTML
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from catome.study.measure.quality import with_interval as with_interval
from catome.tensors.plan import MergePlan

PALETTE = sns.color_palette("colorblind")
BLOCK_COLOURS = dict(
    zip(["down 0", "down 1", "up 0", "up 1", "up 2"], [PALETTE[i] for i in (0, 9, 3, 1, 2)], strict=True)
)
_FAMILIES = (
    "unmerged",
    "ToMe",
    "tomesd",
    "CA-ToMe",
    "batch maximum",
    "ToDo",
    "DeepCache",
    "CA-ToMe + DeepCache",
)
METHOD_COLOURS = dict(zip(_FAMILIES, [PALETTE[i] for i in (7, 0, 9, 1, 3, 2, 4, 5)], strict=True))
WIDTH = 8.5
"""Inches; a figure as wide as the text."""


def use_style() -> None:
    """Set the book's theme, and vector figures in notebooks."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.85)
    plt.rcParams.update(
        {
            "figure.constrained_layout.use": True,
            "axes.titlesize": "medium",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.fonttype": "path",
            "svg.hashsalt": "catome",
            "image.interpolation": "nearest",
        }
    )
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg", metadata={"Date": None})
    except (ImportError, AttributeError):  # not in a notebook
        pass


class _Plain(str):
    """Text whose representation has no quotation marks."""

    def __repr__(self) -> str:
        return str(self)


def glue(**words: str) -> None:
    """Give words to the text around the cell, which takes them up as ``{glue:text}`` by their name, with -
    for _."""
    from myst_nb import glue as paste

    for name, text in words.items():
        paste(name.replace("_", "-"), _Plain(text), display=False)


class Captioned:
    """A table with a caption above it, for notebooks and pages.

    Attributes:
        table: as pandas shows it.
        caption: plain text.
    """

    def __init__(self, table: pd.DataFrame, caption: str) -> None:
        self.table = table
        self.caption = caption

    def _repr_html_(self) -> str:
        caption = f"\n  <caption>{html.escape(self.caption)}</caption>"
        return re.sub(r"<table[^>]*>", lambda found: found[0] + caption, self.table.to_html(), count=1)

    def __repr__(self) -> str:
        return f"{self.caption}\n\n{self.table}"


SCENE = np.array([[0, 0, 0, 1], [0, 0, 1, 1], [2, 2, 1, 3], [2, 2, 2, 3]])
"""The region, one of four, that each of 4 x 4 tokens shows, for `mechanism`."""


def mechanism():
    """Draw how a transformer block attends on merged tokens: match, merge, attend, unmerge, and the residual
    around them."""
    colours = [PALETTE[i] for i in (9, 7, 2, 1)]
    own = SCENE.flatten()
    figure, ax = plt.subplots(figsize=(WIDTH, 3.3))
    ax.set(xlim=(0, 100), ylim=(0, 38), aspect="equal")
    ax.axis("off")

    def squares(
        left: float, bottom: float, regions, columns: int, edge: float = 3.0, strong: bool = False
    ) -> None:
        rows = -(-len(regions) // columns)
        for i, region in enumerate(regions):
            row, column = divmod(i, columns)
            corner = (left + column * edge, bottom + (rows - 1 - row) * edge)
            line = (
                dict(edgecolor="black", linewidth=1.2) if strong else dict(edgecolor="white", linewidth=0.8)
            )
            ax.add_patch(plt.Rectangle(corner, edge, edge, facecolor=colours[region], **line))

    def box(left: float, label: str, width: float = 11.0) -> None:
        shape = dict(boxstyle="round,pad=0.2,rounding_size=1", facecolor="0.94", edgecolor="0.3")
        ax.add_patch(FancyBboxPatch((left, 16.5), width, 7.0, **shape))
        ax.text(left + width / 2, 20.0, label, ha="center", va="center", fontsize="small")

    def arrow(start: float, end: float, bottom: float = 20.0) -> None:
        ax.annotate("", (end, bottom), (start, bottom), arrowprops=dict(arrowstyle="->", color="0.3", lw=1.2))

    squares(1, 14, own, 4)
    ax.text(7, 11.0, "16 tokens $x$", ha="center", va="center", fontsize="small")
    arrow(13.6, 16)
    box(16.4, "norm, match\nand merge")
    arrow(28, 30.4)
    squares(31, 18.5, [0, 1, 2, 3], 4, strong=True)
    ax.text(37, 15.0, "4 means", ha="center", va="center", fontsize="small")
    arrow(43.6, 46)
    box(46.4, "self-\nattention")
    arrow(58, 60.4)
    box(60.8, "unmerge:\ncopy back", 12.0)
    arrow(73.4, 75.8)
    squares(76, 14, own, 4)
    ax.text(82, 11.0, "16 results", ha="center", va="center", fontsize="small")
    ax.add_patch(plt.Circle((92.5, 20), 1.9, facecolor="white", edgecolor="0.3", lw=1.2))
    ax.text(92.5, 19.9, "+", ha="center", va="center")
    arrow(88.6, 90.5)
    arrow(94.5, 99)
    way = dict(color=PALETTE[3], lw=1.8)
    ax.plot([7, 7, 92.5], [26.6, 33.5, 33.5], **way)
    ax.annotate("", (92.5, 22.2), (92.5, 33.6), arrowprops=dict(arrowstyle="->", **way))
    ax.text(
        50,
        35.6,
        "the residual: every token keeps what it was",
        ha="center",
        color=PALETTE[3],
        fontsize="small",
    )
    ax.text(
        50,
        4.0,
        "attention compares 4 × 4 pairs of tokens instead of 16 × 16",
        ha="center",
        fontsize="small",
        color="0.3",
    )
    return figure


def show_image(ax, image: np.ndarray, title: str = "") -> None:
    ax.imshow(np.clip(image, 0, 1), extent=(0, 1, 1, 0))
    ax.set(xticks=[], yticks=[], title=title)
    ax.grid(False)


def contact_sheet(images: np.ndarray, names: list[str], columns: int = 6):
    """Images ``[B, H, W, 3]`` side by side with their names."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, WIDTH / columns * rows * 1.14), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, name in zip(axes.flat, images, names, strict=False):
        show_image(ax, image)
        ax.set_title(name, fontsize="small")
    return figure


OPENING = 176
"""Pixels that a picture of `opening` has at most, each way: a little more than are shown, so that the page
stays small."""


def _smaller(image: np.ndarray, most: int) -> np.ndarray:
    """An image ``[H, W, 3]`` in [0, 1], made smaller if one of its edges is longer than that."""
    height, width = image.shape[:2]
    share = most / max(height, width)
    if share >= 1:
        return image
    pixels = Image.fromarray((np.clip(image, 0, 1) * 255).round().astype(np.uint8))
    return np.asarray(pixels.resize((round(width * share), round(height * share)), Image.LANCZOS)) / 255


def opening(pictures: dict[str, np.ndarray], plain: str | None = None):
    """Draw the pictures that a chapter opens with, ``[H, W, 3]`` in [0, 1]: in one row, or in two if there
    are more than six.

    Args:
        pictures: by the names to write above them.
        plain: the name of the one that the others are compared with, if there is one; it gets a frame.
    """
    rows = 1 if len(pictures) <= 6 else 2
    columns = -(-len(pictures) // rows)
    title = 0.2 * max(len(name.splitlines()) for name in pictures)
    height = rows * (min(WIDTH / columns, 2.8) + title)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), layout="compressed", squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, (name, image) in zip(axes.flat, pictures.items(), strict=False):
        ax.axis("on")
        show_image(ax, _smaller(image, OPENING))
        ax.set_title(name, fontsize="small")
        if name == plain:
            ax.spines[:].set(visible=True, color=METHOD_COLOURS["unmerged"], linewidth=3)
    return figure


def token_map(ax, image: np.ndarray, values: np.ndarray, title: str = "", cmap: str = "viridis", **norm):
    """One value for each token, ``[h, w]``, drawn beside where it is in the image; NaN is left
    transparent."""
    show_image(ax, image.mean(-1, keepdims=True).repeat(3, -1) * 0.35 + 0.65, title)
    return ax.imshow(
        values, extent=(0, 1, 1, 0), cmap=cmap, alpha=np.where(np.isnan(values), 0.0, 0.92), **norm
    )


def split_grid(
    ax, src: torch.Tensor, dst: torch.Tensor, grid: tuple[int, int], title: str = "", stride=(2, 2)
) -> None:
    """The corner of a token grid: dst tokens filled, src tokens hollow, and the windows, ``stride`` rows by
    columns, outlined."""
    height, width = grid
    outline = dict(color="0.75", lw=0.8, zorder=0)
    for y in range(0, height + 1, stride[0]):
        ax.plot([-0.5, width - 0.5], [y - 0.5, y - 0.5], **outline)
    for x in range(0, width + 1, stride[1]):
        ax.plot([x - 0.5, x - 0.5], [-0.5, height - 0.5], **outline)
    for tokens, style in (
        (dst, dict(c=[PALETTE[1]], s=46)),
        (src, dict(facecolors="none", edgecolors=[PALETTE[0]], s=30)),
    ):
        ax.scatter(tokens % width, tokens // width, **style)
    ax.set(
        xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect="equal", xticks=[], yticks=[], title=title
    )
    ax.grid(False)


def merged_colours(image: np.ndarray, plan: MergePlan, index: int, grid: tuple[int, int]) -> np.ndarray:
    """Paint every group of merged tokens in its mean colour: ``[h, w, 3]``."""
    height, width = image.shape[0] // grid[0], image.shape[1] // grid[1]
    tokens = (
        image[: grid[0] * height, : grid[1] * width].reshape(grid[0], height, grid[1], width, 3).mean((1, 3))
    )
    one = MergePlan(plan.target[index : index + 1], _own_slots(plan, index), (plan.lengths[index],))
    flat = torch.from_numpy(np.ascontiguousarray(tokens)).flatten(0, 1)[None].float()
    return one.unmerge(one.merge(flat))[0].reshape(*grid, 3).numpy()


def _own_slots(plan: MergePlan, index: int) -> torch.Tensor:
    return plan.slot[index : index + 1] - sum(plan.lengths[:index])


def merge_picture(
    ax, image: np.ndarray, plan: MergePlan, index: int, grid: tuple[int, int], title: str = ""
) -> None:
    """Draw which tokens merge into which: groups in their mean colour, with outlines between neighbours of
    different groups."""
    show_image(ax, merged_colours(image, plan, index, grid), title)
    slots = _own_slots(plan, index)[0].reshape(grid).numpy()
    lines = []
    for y, x in np.argwhere(slots[:, 1:] != slots[:, :-1]):
        lines.append([((x + 1) / grid[1], y / grid[0]), ((x + 1) / grid[1], (y + 1) / grid[0])])
    for y, x in np.argwhere(slots[1:] != slots[:-1]):
        lines.append([(x / grid[1], (y + 1) / grid[0]), ((x + 1) / grid[1], (y + 1) / grid[0])])
    ax.add_collection(LineCollection(lines, colors="white", linewidths=0.35, alpha=0.85))


def pair_lines(
    ax,
    image: np.ndarray,
    pairs: torch.Tensor,
    similarity: torch.Tensor,
    grid: tuple[int, int],
    title: str = "",
):
    """A line from each src token to its dst, coloured by their similarity."""
    show_image(ax, image, title)
    y, x = (pairs // grid[1] + 0.5) / grid[0], (pairs % grid[1] + 0.5) / grid[1]
    segments = torch.stack([x, y], -1).numpy()
    lines = LineCollection(segments, cmap="viridis", linewidths=0.9, alpha=0.9)
    lines.set_array(similarity.numpy())
    ax.add_collection(lines)
    ax.scatter(x[:, 1], y[:, 1], s=7, color=[PALETTE[1]], zorder=3)
    return lines


def difference(a: np.ndarray, b: np.ndarray, gain: float) -> np.ndarray:
    """The difference of two images, mean over colours times ``gain``, as a grey image."""
    return np.clip(np.abs(a - b).mean(-1, keepdims=True).repeat(3, -1) * gain, 0, 1)


def similarity_by_step(best: np.ndarray, blocks: list[str], low: float | None = None):
    """For each block, the distribution of best similarities over the steps: ``[steps, blocks, images,
    S]``."""
    low = float(np.quantile(best, 0.002)) if low is None else low
    edges = np.linspace(min(low, 0.99), 1.0, 61)
    figure, axes = plt.subplots(1, len(blocks), figsize=(WIDTH, 2.7), sharey=True)
    for i, (ax, block) in enumerate(zip(np.atleast_1d(axes), blocks, strict=True)):
        density = np.stack(
            [np.histogram(step, edges, density=True)[0] for step in best[:, i].reshape(len(best), -1)]
        )
        middles = (edges[1:] + edges[:-1]) / 2
        # as pixels within the drawing: thousands of little rectangles would make the page megabytes larger
        ax.pcolormesh(
            np.arange(len(best)), middles, density.T, cmap="rocket_r", shading="nearest", rasterized=True
        )
        quantiles = np.quantile(best[:, i].reshape(len(best), -1), [0.1, 0.5, 0.9], axis=1)
        for line, style in zip(quantiles, (":", "-", ":"), strict=True):
            ax.plot(line, style, color="white", lw=2.6)
            ax.plot(line, style, color="black", lw=1.1)
        ax.set(title=block, xlabel="step")
        ax.grid(False)
    np.atleast_1d(axes)[0].set_ylabel("best similarity of a src token")
    return figure


def shares_by_step(table: pd.DataFrame):
    """Merged share of all tokens over the steps, one panel for each threshold, one line for each block."""
    thresholds = sorted(table["threshold"].unique())
    figure, axes = plt.subplots(1, len(thresholds), figsize=(WIDTH, 2.8), sharey=True, squeeze=False)
    for ax, threshold in zip(axes[0], thresholds, strict=True):
        rows = table[table["threshold"] == threshold]
        sns.lineplot(
            rows,
            x="step",
            y="share",
            hue="block",
            palette=_block_palette(rows),
            ax=ax,
            errorbar=("ci", 95),
            n_boot=200,
            seed=0,
        )
        ax.set(title=f"t = {threshold:g}", ylim=(0, 0.78), ylabel="merged share of all tokens")
        ax.axhline(0.75, color="0.6", lw=0.8, ls="--")
        ax.get_legend().remove()
    handles, labels = axes[0][-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _block_palette(rows: pd.DataFrame) -> dict:
    blocks = list(rows["block"].unique())
    spare = iter(sns.color_palette("husl", len(blocks)))
    return {block: BLOCK_COLOURS.get(block, next(spare)) for block in blocks}


def shares_by_class(table: pd.DataFrame, ratio: float):
    """Merged share of each image, mean over steps and blocks, by class and threshold, beside a fixed
    share."""
    means = table.groupby(["threshold", "class", "image"], as_index=False)["share"].mean()
    order = means.groupby("class")["share"].mean().sort_values().index
    figure, ax = plt.subplots(figsize=(WIDTH, 0.6 + 0.32 * len(order)))
    sns.stripplot(
        means,
        y="class",
        x="share",
        hue="threshold",
        order=order,
        palette="flare",
        ax=ax,
        jitter=False,
        dodge=False,
        alpha=0.85,
    )
    ax.axvline(ratio, color=METHOD_COLOURS["ToMe"], lw=2)
    ax.annotate(
        f"fixed share {ratio:g}",
        (ratio, -0.62),
        color=METHOD_COLOURS["ToMe"],
        ha="center",
        annotation_clip=False,
    )
    ax.set(xlabel="merged share of all tokens, mean over steps and blocks", ylabel="", xlim=(-0.01, 0.77))
    sns.move_legend(ax, "center left", bbox_to_anchor=(1, 0.5), title="threshold", frameon=False)
    return figure


def weakest_by_step(weakest: np.ndarray, blocks: list[str], ratio: float):
    """The least similar pair that a fixed share merges, over the steps: mean and range over images, for each
    block."""
    figure, ax = plt.subplots(figsize=(WIDTH, 3.0))
    spare = iter(sns.color_palette("husl", len(blocks)))
    for i, block in enumerate(blocks):
        colour = BLOCK_COLOURS.get(block, next(spare))
        ax.plot(weakest[:, i].mean(-1), color=colour, label=block)
        ax.fill_between(
            range(len(weakest)), weakest[:, i].min(-1), weakest[:, i].max(-1), color=colour, alpha=0.13, lw=0
        )
    ax.set(
        xlabel="step",
        ylabel=f"similarity of the weakest\npair merged at r = {ratio:g}",
        xlim=(0, len(weakest) - 1),
    )
    ax.legend(frameon=False, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _colour(block: str, position: int):
    return BLOCK_COLOURS.get(block, PALETTE[position % len(PALETTE)])


def drift_by_step(rows: pd.DataFrame, blocks: list[str], column: str = "neighbour"):
    """A curve of each image over the steps, by amount (panels) and block (lines): mean, its 95 % interval, 95
    % of images."""
    amounts = list(dict.fromkeys(rows["amount"]))
    figure, axes = plt.subplots(1, len(amounts), figsize=(WIDTH, 3.1), sharey=True, squeeze=False)
    for ax, amount in zip(axes[0], amounts, strict=True):
        for position, block in enumerate(blocks):
            chosen = rows[(rows["amount"] == amount) & (rows["block"] == block)]
            curves = np.stack(chosen[column].to_numpy()).astype(float)
            mean = curves.mean(0)
            error = 1.96 * curves.std(0, ddof=min(1, len(curves) - 1)) / np.sqrt(len(curves))
            x, colour = np.arange(curves.shape[1]), _colour(block, position)
            ax.fill_between(x, *np.quantile(curves, [0.025, 0.975], axis=0), color=colour, alpha=0.10, lw=0)
            ax.fill_between(x, mean - error, mean + error, color=colour, alpha=0.5, lw=0)
            ax.plot(x, mean, color=colour, lw=1.2, label=block)
        ax.set(title=amount, xlabel="step i", ylim=(0, 1))
    axes[0][0].set_ylabel("Jaccard distance, step i to i + 1")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def staleness_maps(matrices: dict[str, np.ndarray]):
    """Distance between the pairs of any two steps, ``[steps, steps]`` each, one panel for each name."""
    figure, axes = plt.subplots(1, len(matrices), figsize=(WIDTH, 2.5), sharey=True, squeeze=False)
    for ax, (name, matrix) in zip(axes[0], matrices.items(), strict=True):
        drawn = ax.imshow(matrix, vmin=0, vmax=1, cmap="rocket_r", origin="lower")
        ax.set(title=name, xlabel="step j")
        ax.grid(False)
    axes[0][0].set_ylabel("step i")
    figure.colorbar(drawn, ax=axes[0].tolist(), label="Jaccard distance", shrink=0.8, pad=0.01)
    return figure


def staleness_by_lag(
    curves: dict[str, np.ndarray],
    label: str,
    scale: dict[str, float] | None = None,
    palette: str = "flare",
    extremes=False,
):
    """Mean distance of steps that are k apart: curves ``[k]`` or, with a band, ``[images, k]``; ``scale``
    stretches the x axis. With ``extremes``, curves go from the slowest to the fastest, and only these two
    have a colour and a name."""
    figure, ax = plt.subplots(figsize=(WIDTH * 0.62, 3.0))
    colours = dict(zip(curves, sns.color_palette(palette, len(curves)), strict=True))
    names = {name: name for name in curves}
    if extremes and len(curves) > 2:
        first, *others, last = curves
        colours = dict.fromkeys(others, (0.75, 0.75, 0.75)) | {first: PALETTE[2], last: PALETTE[3]}
        names = {first: f"{first} (slowest)", others[0]: "others", last: f"{last} (fastest)"}
        curves = {name: curves[name] for name in (*others, first, last)}  # the coloured ones lie on top
    for name, values in curves.items():
        colour = colours[name]
        values = np.atleast_2d(values).astype(float)
        x = np.arange(1, values.shape[1] + 1) * (scale or {}).get(name, 1)
        mean = values.mean(0)
        if len(values) > 1:
            error = 1.96 * values.std(0, ddof=1) / np.sqrt(len(values))
            ax.fill_between(x, mean - error, mean + error, color=colour, alpha=0.25, lw=0)
        ax.plot(x, mean, color=colour, lw=1.6, label=names.get(name))
    ax.set(
        xlabel="steps apart" if scale is None else "share of the generation apart",
        ylabel="Jaccard distance",
        ylim=(0, 1),
    )
    ax.legend(title=label, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def staleness_paid(paid: dict[str, np.ndarray], checkpoints: dict[str, tuple[int, ...]]):
    """Draw how old the reused pairs are at each step under several schedules; a dot is a checkpoint."""
    figure, axes = plt.subplots(
        len(paid), 1, figsize=(WIDTH, 0.62 * len(paid) + 0.6), sharex=True, sharey=True, squeeze=False
    )
    for ax, (name, values) in zip(axes[:, 0], paid.items(), strict=True):
        ax.fill_between(range(len(values)), values, color=METHOD_COLOURS["CA-ToMe"], alpha=0.45, lw=0)
        at = [step for step in checkpoints[name] if step < len(values)]
        ax.plot(at, [0] * len(at), "o", ms=4, color=METHOD_COLOURS["ToMe"], clip_on=False, zorder=3)
        ax.set(ylim=(0, 1), yticks=[0, 1], xlim=(-0.5, len(values) - 0.5))
        ax.set_ylabel(
            f"{name}\n{len(at)} checkpoint{'s' * (len(at) != 1)}, mean {values.mean():.2f}",
            rotation=0,
            ha="right",
            va="center",
            fontsize="small",
        )
    axes[-1, 0].set_xlabel("step")
    return figure


def sweep_curves(table: pd.DataFrame, fixed: pd.DataFrame | None = None):
    """PSNR, SSIM and merged share against the threshold, each with its interval: columns ``threshold``,
    ``x``, ``x low``, ``x high``."""
    columns = {"PSNR (dB)": "PSNR", "SSIM": "SSIM", "merged share": "share"}
    figure, axes = plt.subplots(1, len(columns), figsize=(WIDTH, 2.7))
    for ax, (label, name) in zip(axes, columns.items(), strict=True):
        finite = table[np.isfinite(table[name])]
        colour = METHOD_COLOURS["CA-ToMe"]
        ax.fill_between(
            finite["threshold"], finite[f"{name} low"], finite[f"{name} high"], color=colour, alpha=0.3, lw=0
        )
        ax.plot(finite["threshold"], finite[name], "o-", ms=4, color=colour, label="threshold")
        if fixed is not None and name != "share":
            ax.errorbar(
                fixed["threshold"],
                fixed[name],
                [fixed[name] - fixed[f"{name} low"], fixed[f"{name} high"] - fixed[name]],
                fmt="s",
                ms=4,
                color=METHOD_COLOURS["ToMe"],
                label="fixed share, as much merged",
            )
        ax.set(xlabel="threshold", ylabel=label)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


WAY_COLOURS = [PALETTE[i] for i in (1, 3, 9, 2)]
"""Of the ways to merge, in the order of `catome.study.studies.weights`."""


def ways_to_merge(curve: pd.DataFrame, peers: pd.DataFrame):
    """PSNR by the ways to merge, over the threshold and over the scores that are left.

    Args:
        curve: rows with ``way``, ``threshold``, ``scores left``, and ``PSNR`` with ``PSNR low`` and ``PSNR
            high``.
        peers: the same but for the first two, by name; drawn as single points.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.4), sharey=True)
    for colour, (way, rows) in zip(WAY_COLOURS, curve.groupby("way", sort=False), strict=False):
        finite = rows[np.isfinite(rows["PSNR"])]
        for ax, column in ((left, "threshold"), (right, "scores left")):
            along = finite.sort_values(column)
            ax.fill_between(
                along[column], along["PSNR low"], along["PSNR high"], color=colour, alpha=0.15, lw=0
            )
            ax.plot(along[column], along["PSNR"], "o-", ms=4, color=colour, label=way)
    for marker, (name, row) in zip("sD", peers.iterrows(), strict=False):
        span = [[row["PSNR"] - row["PSNR low"]], [row["PSNR high"] - row["PSNR"]]]
        right.errorbar(row["scores left"], row["PSNR"], span, fmt=marker, ms=6, color=PALETTE[7], label=name)
    left.set(xlabel="threshold", ylabel="PSNR (dB)")
    right.set(xlabel="attention scores left", xlim=(0, None))
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def by_steps(records: pd.DataFrame):
    """Each method's PSNR, a panel for each number of steps, with how many times as fast it is.

    Args:
        records: columns ``steps``, ``method``, ``family``, ``PSNR`` with ``PSNR low`` and ``PSNR high``, and
            ``speed-up``; methods whose images are unchanged are left out.
    """
    shown = records[np.isfinite(records["PSNR"].astype(float))]
    panels = list(shown.groupby("steps"))
    names = list(dict.fromkeys(shown["method"]))
    colours = METHOD_COLOURS | {"merged keys": PALETTE[3], "fewer steps": PALETTE[7]}
    figure, axes = plt.subplots(
        1, len(panels), figsize=(WIDTH, 0.9 + 0.34 * len(names)), sharex=True, sharey=True, squeeze=False
    )
    for ax, (steps, rows) in zip(axes[0], panels, strict=True):
        for row in rows.to_dict("records"):
            span = [[row["PSNR"] - row["PSNR low"]], [row["PSNR high"] - row["PSNR"]]]
            place, colour = names.index(row["method"]), colours[row["family"]]
            ax.errorbar(row["PSNR"], place, xerr=span, fmt="o", ms=5, color=colour, capsize=2)
            ax.annotate(
                f"{row['speed-up']:.2f}×",
                (row["PSNR high"], place),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
            )
        ax.set(title=f"{steps} steps", xlabel="PSNR (dB)", ylim=(len(names) - 0.5, -0.5))
        ax.margins(x=0.25)
        ax.grid(False, axis="y")
    axes[0, 0].set_yticks(range(len(names)), names)
    return figure


def side_by_side(images: dict[str, np.ndarray], plain: np.ndarray, gain: float = 4.0):
    """Images over what changed in them against ``plain``, each a column: ``[H, W, 3]`` in [0, 1]."""
    figure, axes = plt.subplots(2, len(images), figsize=(WIDTH, WIDTH / len(images) * 2.15), squeeze=False)
    for column, (name, image) in enumerate(images.items()):
        show_image(axes[0, column], image, name)
        show_image(axes[1, column], difference(image, plain, gain))
    axes[1, 0].set_ylabel(f"difference x {gain:g}", fontsize="small")
    return figure


def _strip(frames: list[np.ndarray]) -> str:
    """Frames ``[h, w, 3]`` in [0, 1] beside each other, as the address of a PNG that is part of the page."""
    strip = np.concatenate(
        [(np.clip(frame, 0, 1) * 255).round().astype(np.uint8) for frame in frames], axis=1
    )
    buffer = io.BytesIO()
    Image.fromarray(strip).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def merging_by_step(record, picture: np.ndarray) -> tuple[list, list[str]]:
    """The pictures of what the last block merges of an image at each step, as `merged_colours`, and what to
    write below each.

    Args:
        record: of `catome.probe`, of a patched generation.
        picture: the final image.
    """
    frames, labels = [], []
    where = len(record.blocks()) - 1
    for step in record.steps():
        seen = record.at(step, where)
        frames.append(merged_colours(picture, seen.plan, len(seen.plan.lengths) - 1, seen.matches.grid))
        labels.append(f"{step}, {seen.plan.merged_share[-1]:.0%} merged")
    return frames, labels


def slider(frames: list[np.ndarray], labels: list[str], alt: str, width: int = 300):
    """Frames ``[h, w, 3]`` in [0, 1] behind a slider, as HTML that needs no server and no other host."""
    name, last = f"slider-{uuid.uuid4().hex[:8]}", len(frames) - 1
    height = round(width * frames[0].shape[0] / frames[0].shape[1])
    words = "".join(f"<option value='{i}' label='{label}'></option>" for i, label in enumerate(labels))
    return HTML(f"""<figure class="catome-slider" id="{name}">
<div role="img" aria-label="{alt}" style="width:{width}px;max-width:100%;aspect-ratio:{width}/{height};image-rendering:pixelated;
background-image:url({_strip(frames)});background-size:{len(frames) * 100}% 100%;background-position:0 0"></div>
<label>step <output>{labels[0]}</output><br>
<input type="range" min="0" max="{last}" value="0" style="width:{width}px;max-width:100%" aria-label="denoising step"></label>
<datalist>{words}</datalist>
<script>(() => {{
  const box = document.getElementById("{name}"), shown = box.querySelector("div"), input = box.querySelector("input");
  const names = [...box.querySelectorAll("option")].map((option) => option.label);
  const move = () => {{
    shown.style.backgroundPosition = ({last} ? 100 * input.value / {last} : 0) + "% 0";
    box.querySelector("output").textContent = names[input.value];
  }};
  input.addEventListener("input", move);
}})();</script></figure>""")


def wipe(before: np.ndarray, after: dict[str, np.ndarray], alt: str, width: int = 384):
    """One image over another, with a line between them that is moved by hand, as HTML that needs no server
    and no other host.

    Args:
        before: ``[h, w, 3]`` in [0, 1], left of the line.
        after: images of the same size by name, to the right of it; with more than one, a list to choose from.
        alt: what is to be seen.
        width: in pixels of the page.
    """
    name, last = f"wipe-{uuid.uuid4().hex[:8]}", len(after)
    height = round(width * before.shape[0] / before.shape[1])
    strip = (
        f"background-image:url({_strip([before, *after.values()])});background-size:{100 * (last + 1)}% 100%"
    )
    layer = f"position:absolute;inset:0;{strip}"
    names = "".join(f"<option value='{i}'>{label}</option>" for i, label in enumerate(after, 1))
    return HTML(f"""<figure class="catome-wipe" id="{name}">
<div style="position:relative;width:{width}px;max-width:100%;aspect-ratio:{width}/{height};overflow:hidden;margin:auto">
<div role="img" aria-label="{alt}" style="{layer};background-position:0 0"></div>
<div data-part="after" style="{layer};background-position:{100 / last}% 0;clip-path:inset(0 0 0 50%)"></div>
<div data-part="line" style="position:absolute;top:0;bottom:0;left:50%;width:2px;margin-left:-1px;background:#fff;outline:1px solid #0008"></div>
<input type="range" min="0" max="100" value="50" step="0.5" aria-label="where the two images meet, in percent of the width"
 style="position:absolute;inset:0;width:100%;height:100%;margin:0;opacity:0;cursor:ew-resize">
</div>
<p style="text-align:center;margin:0.4rem 0">left: unmerged; right: <select aria-label="method">{names}</select>; move the line with the mouse or the arrow keys</p>
<script>(() => {{
  const box = document.getElementById("{name}"), part = (name) => box.querySelector(`[data-part=${{name}}]`);
  const range = box.querySelector("input"), choice = box.querySelector("select");
  const show = () => {{
    part("after").style.clipPath = `inset(0 0 0 ${{range.value}}%)`;
    part("after").style.backgroundPosition = 100 * choice.value / {last} + "% 0";
    part("line").style.left = range.value + "%";
  }};
  range.addEventListener("input", show);
  range.addEventListener("focus", () => part("line").style.width = "4px");
  range.addEventListener("blur", () => part("line").style.width = "2px");
  choice.addEventListener("input", show);
  show();
}})();</script></figure>""")


def schedule_plot(table: pd.DataFrame, beside: str):
    """Draw the PSNR of schedules minus that of one of them, from the least stale to the most: a panel for
    each threshold.

    Args:
        table: columns ``threshold``, ``kind``, ``schedule``, ``checkpoints``, ``staleness``, and ``gain``
            (dB) with its interval.
        beside: the schedule that the gain is measured against.
    """
    kinds = {
        "paper": METHOD_COLOURS["CA-ToMe"],
        "derived": PALETTE[2],
        "even": PALETTE[0],
        "online": PALETTE[4],
        "bounds": PALETTE[7],
    }
    groups = list(table.groupby("threshold", sort=False))
    height = 0.9 + 0.24 * max(len(rows) for _, rows in groups)
    figure, axes = plt.subplots(1, len(groups), figsize=(WIDTH, height), squeeze=False)
    for ax, (threshold, rows) in zip(axes[0], groups, strict=True):
        rows = rows.sort_values("staleness", kind="stable", ignore_index=True)
        near = rows[rows["kind"] != "bounds"] if (rows["kind"] != "bounds").any() else rows
        span = float(near["gain high"].max() - near["gain low"].min()) or 1.0
        least = min(float(near["gain low"].min()), 0.0) - 0.25 * span
        most = float(rows["gain high"].max()) + 0.1 * span
        for place, row in rows.iterrows():
            error = [[row["gain"] - row["gain low"]], [row["gain high"] - row["gain"]]]
            if row["gain"] < least:  # so far off that it would squeeze all others
                text = f"\u2190 {row['gain']:.1f} [{row['gain low']:.1f}, {row['gain high']:.1f}]"
                ax.text(least, place, text, color=kinds[row["kind"]], va="center", fontsize="small")
                continue
            ax.errorbar(row["gain"], place, xerr=error, fmt="o", ms=5, color=kinds[row["kind"]], capsize=2)
        ax.set_xlim(least, most)
        words = [
            f"{row['schedule']}  {row['checkpoints']:.3g} | {row['staleness']:.2f}"
            for _, row in rows.iterrows()
        ]
        ax.set_yticks(range(len(rows)), words, fontsize="small")
        ax.axvline(0, color="0.6", lw=0.8, ls="--")
        ax.set(title=f"t = {threshold:g}", xlabel=f"PSNR beside {beside} (dB)", ylim=(len(rows) - 0.5, -0.5))
        ax.grid(False, axis="y")
    handles = [
        Line2D([], [], marker="o", ls="", color=colour, label=kind)
        for kind, colour in kinds.items()
        if kind in set(table["kind"])
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def quality_against_speed(table: pd.DataFrame):
    """Each method's quality against its speed-up: columns ``method``, ``family``, ``speed-up`` and ``PSNR``
    with their intervals. Rows where one of the two is NaN or infinite are left out, and so is the bar of a
    speed-up without an interval."""
    table = table[np.isfinite(table[["speed-up", "PSNR"]].astype(float)).all(axis=1)]
    figure, ax = plt.subplots(figsize=(WIDTH, 3.8))
    seen: dict[str, int] = {}
    for _, row in table.iterrows():
        family = row["family"]
        seen[family] = seen.get(family, -1) + 1
        faster = [[row["speed-up"] - row["speed-up low"]], [row["speed-up high"] - row["speed-up"]]]
        ax.errorbar(
            row["speed-up"],
            row["PSNR"],
            xerr=np.nan_to_num(np.array(faster, float)),
            yerr=[[row["PSNR"] - row["PSNR low"]], [row["PSNR high"] - row["PSNR"]]],
            fmt="osD^"[seen[family] % 4],
            ms=7,
            color=METHOD_COLOURS.get(family, "0.3"),
            capsize=2,
            label=row["method"],
        )
    ax.axvline(1, color="0.6", lw=0.8, ls="--")
    ax.set(xlabel="speed-up of a whole generation", ylabel="PSNR against unmerged (dB)")
    figure.legend(loc="outside right center", frameon=False)
    return figure
