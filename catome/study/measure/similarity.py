"""Measure how similar tokens are: the best similarity of every src token, at every step and block, over many
images."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from tqdm import tqdm

from catome.probe import Record, probe
from catome.study.measure import quality
from catome.study.run.claims import Claims, deal
from catome.study.run.generate import batches, by_halves, generate_batch
from catome.study.run.parameters import Setting
from catome.study.run.store import (
    RECORDED,
    SHARED_KEYS,
    Stopwatch,
    Store,
    Table,
    image_keys,
    of_these_images,
    provenance,
    shared_keys,
)


@dataclass(frozen=True)
class Similarities:
    """The results of `similarity_study`.

    Attributes:
        best: ``[steps, blocks, images, S]`` float32, best similarities of all src tokens in the prompted half
            of the batch, the least first, rounded down to multiples of 0.002; 1 if and only if a token has an
            exact duplicate.
        tokens: tokens of one image in a block, src and dst.
        blocks: short names of the blocks, in running order.
        names: the class of each image.
        runs: provenance of what is kept, by run.
    """

    best: np.ndarray
    tokens: int
    blocks: list[str]
    names: list[str]
    runs: dict[str, dict]

    def counts(self) -> pd.DataFrame:
        """The numbers of what was seen, as a table to be read."""
        steps, blocks, images, sources = self.best.shape
        row = {"U-Net calls": steps, "blocks": blocks, "src tokens": sources, "all tokens": self.tokens}
        row["best similarities"] = f"{self.best.size:,}"
        return pd.DataFrame(row, index=[f"{images} image{'s' * (images > 1)}"])

    def by_block(self) -> pd.DataFrame:
        """The mean best similarity of each block, by its name: at the ``first step`` and at the ``last
        step``, and over the ``first quarter`` and the ``last quarter`` of the steps, which are one step at
        least."""
        mean = self.best.mean((2, 3))
        quarter = max(1, len(mean) // 4)
        columns = {
            "first step": mean[0],
            "last step": mean[-1],
            "first quarter": mean[:quarter].mean(0),
            "last quarter": mean[-quarter:].mean(0),
        }
        return pd.DataFrame(columns, index=self.blocks)

    def quarters(self) -> dict[str, np.ndarray]:
        """The mean best similarity over the first quarter of the steps minus that over the last one, by image
        ``[images]``, for each block by its name."""
        mean = self.best.mean(3, dtype=float)
        quarter = max(1, len(mean) // 4)
        return dict(zip(self.blocks, mean[:quarter].mean(0) - mean[-quarter:].mean(0), strict=True))

    def by_block_table(self) -> pd.DataFrame:
        """`by_block` to be read, with the difference of both quarters, its 95 % interval over images, and the
        verdicts."""
        found = quality.difference_table(
            self.quarters(), "first - last quarter", better="more similar early", worse="more similar late"
        )
        return self.by_block().map("{:.2f}".format).join(found)


def short_name(block: str) -> str:
    """``down_blocks.0.attentions.1.transformer_blocks.0`` -> ``down 1``: the way down or up, and which
    attention there.

    Of a transformer, ``transformer_blocks.3`` -> ``layer 3``."""
    parts = block.split(".")
    if parts[0] == "transformer_blocks":
        return f"layer {parts[1]}"
    return "middle" if parts[0] == "mid_block" else f"{parts[0].split('_')[0]} {parts[3]}"


GRAIN = 500
"""Similarities are kept as whole numbers, so many for 1, rounded down: thresholds of two digits merge exactly
what they did."""

SIMILARITY = Table(
    "similarity",
    1,
    SHARED_KEYS | {"block": pa.string()},
    {"class": pa.string(), "place": pa.int32(), "tokens": pa.int32(), "best": pa.list_(pa.int16())},
)
"""One row for each image and block: ``best`` similarities of its src tokens times `GRAIN`, step by step, in
the prompted half of the batch. Those of a step are sorted, which makes the file a fifth as large; where in
the image a token lies is not kept. ``place`` counts the blocks in running order, ``tokens`` those of one
image, src and dst."""


def similarity_study(
    pipe,
    setting: Setting,
    folder: Path | None = None,
    recorded: Path | None = RECORDED,
    recompute: bool = False,
) -> Similarities:
    """Generate the study's images once and watch every topmost block at every step; what was watched before
    is read.

    Args:
        pipe: an unpatched pipeline.
        setting: which images.
        folder, recorded, recompute: as in `catome.study.compare`.
    """
    shared = shared_keys(pipe, setting)
    store = Store(SIMILARITY, Path(folder or setting.output), recorded)
    run, watch, again = provenance(setting, shared["model"]), Stopwatch(), set()

    def watched(images: range) -> tuple[Record, range]:
        with probe(pipe) as record:
            generate_batch(pipe, setting, images, bar.update)
        return record, images

    def need(part: range) -> bool:
        return part not in again if recompute else not _is_held(store, shared, setting, part)

    def name(part: range) -> str:
        about = json.dumps([shared, recompute and run["id"]], sort_keys=True)
        return f"similarities of images {part[0]} to {part[-1]} of {about}"

    parts = [part for part in batches(setting) if need(part)]
    pieces = deal(parts, need, name, Claims(store.file.parent), store.refresh)
    with (
        tqdm(
            total=len(parts) * setting.calls, desc="similarities", unit="step", leave=False, disable=not parts
        ) as bar,
        closing(pieces),
    ):
        for part, _ in pieces:
            for record, images in by_halves(watched, part):
                store.add(_rows(record, setting, shared, images), run, watch.lap())
            again.add(part)
    store.finish()
    rows = of_these_images(store.find(**shared, image=range(setting.images)), setting)
    rows = rows.sort_values(["place", "image"])
    blocks = rows.drop_duplicates("block")["block"].tolist()
    whole = np.stack(rows["best"].to_numpy()).reshape(len(blocks), setting.images, setting.calls, -1)
    best = whole.transpose(2, 0, 1, 3).astype(np.float32) / GRAIN
    runs = store.runs_of(rows)
    return Similarities(best, int(rows["tokens"].iloc[0]), blocks, setting.names, runs)


def _is_held(store: Store, shared: dict, setting: Setting, part: range) -> bool:
    """Return True if every block of every image is kept."""
    rows = of_these_images(store.find(**shared, image=part), setting)
    of_image = rows.groupby("image")["block"].nunique()
    return len(of_image) == len(part) and of_image.nunique() == 1


def _rows(record: Record, setting: Setting, shared: dict, part: range) -> list[dict]:
    # [steps, blocks, images, S]; the prompted half comes last
    prompted = _best(record)[:, :, -len(part) :].numpy()
    best = np.sort(np.floor(prompted.clip(-1, 1) * GRAIN), axis=-1)
    seen = record.at(0, 0)
    tokens = len(seen.matches.src) + len(seen.matches.dst)
    return [
        shared
        | image_keys(setting, image)
        | {
            "block": short_name(name),
            "place": place,
            "class": setting.names[image],
            "tokens": tokens,
            "best": best[:, place, at].astype(np.int16).ravel(),
        }
        for place, name in enumerate(record.blocks())
        for at, image in enumerate(part)
    ]


def _best(record: Record) -> torch.Tensor:
    """`Record.similarity`, exactly 1 where a src token has a duplicate and below 1 elsewhere, however cosines
    are rounded."""
    below = torch.tensor(1.0).nextafter(torch.tensor(0.0))
    at = [[record.at(step, block).matches for block in record.blocks()] for step in record.steps()]
    twin = torch.stack([torch.stack([matches.duplicate >= 0 for matches in row]) for row in at])
    return torch.where(twin, 1.0, record.similarity().minimum(below))


def shares_above(study: Similarities, thresholds) -> pd.DataFrame:
    """The share of all tokens that a threshold merges: one row per threshold, step, block and image."""
    frames = []
    for threshold in thresholds:
        share = (study.best >= threshold).mean(-1) * study.best.shape[-1] / study.tokens
        index = pd.MultiIndex.from_product(
            [[threshold], range(share.shape[0]), study.blocks, range(share.shape[2])],
            names=["threshold", "step", "block", "image"],
        )
        frames.append(pd.DataFrame({"share": share.ravel()}, index=index).reset_index())
    table = pd.concat(frames, ignore_index=True)
    table["class"] = np.array(study.names)[table["image"]]
    return table


def variance_of_share(shares: pd.DataFrame) -> pd.DataFrame:
    """Split the variance of the merged share into what goes by the step, what by the image, and what by both
    together.

    Args:
        shares: of `shares_above`.

    Returns:
        For each threshold ``step``, ``image`` and ``both``, shares that add up to 1 (NaN where nothing
        varies): the parts of a two-way analysis of variance, of the mean over blocks.
    """
    rows = {}
    for threshold, own in shares.groupby("threshold"):
        table = own.groupby(["step", "image"])["share"].mean().unstack()
        centred = table - table.to_numpy().mean()
        total = (centred**2).to_numpy().sum()
        step = len(table.columns) * (centred.mean(axis=1) ** 2).sum()
        image = len(table) * (centred.mean(axis=0) ** 2).sum()
        parts = np.array([step, image, max(total - step - image, 0.0)])
        # what is less comes from rounding
        rows[threshold] = parts / total if total > 1e-20 else np.full(3, np.nan)
    return pd.DataFrame(rows, index=["step", "image", "both"]).T


def weakest_merged(study: Similarities, ratio: float) -> np.ndarray:
    """The lowest similarity that merging a fixed share accepts, ``[steps, blocks, images]``."""
    count = int(ratio * study.tokens)
    if count == 0:
        raise ValueError(f"ratio={ratio!r} merges no token of {study.tokens}: there is no weakest pair")
    return torch.from_numpy(study.best).topk(count, -1).values[..., -1].numpy()


def most_adaptive(shares: pd.DataFrame) -> float:
    """The threshold whose merged share varies most from image to image, the lowest of several; ``shares`` of
    `shares_above`."""
    spread = shares.groupby(["threshold", "image"])["share"].mean().groupby("threshold").std().fillna(0)
    return float(spread.idxmax())


def extremes(shares: pd.DataFrame, threshold: float) -> pd.Series:
    """The images in which a threshold merges the least, the median and the largest share: that share, by
    image.

    All images, where there are no more than two. Arguments as in `most_adaptive`."""
    mean = shares[shares["threshold"] == threshold].groupby("image")["share"].mean().sort_values()
    return mean if len(mean) <= 2 else mean.iloc[[0, len(mean) // 2, -1]]


def earlier_more_similar(by_block: pd.DataFrame) -> str:
    """The blocks in which the first quarter of the steps is more similar than the last; ``by_block`` of
    `Similarities`."""
    early = list(by_block.index[by_block["first quarter"] > by_block["last quarter"]])
    return f"{len(early)} of {len(by_block)} blocks ({', '.join(early)})" if early else "none of the blocks"


def deciding(shares: pd.DataFrame) -> str:
    """Say in a sentence whether the step or the image decides more about the merged share; ``shares`` of
    `shares_above`."""
    parts = variance_of_share(shares).dropna()
    if parts.empty:
        return "Here the share does not vary at any threshold."
    for column, other in (("image", "step"), ("step", "image")):
        if shares[column].nunique() == 1:
            return f"Here there is a single {column}, so the {other} decides all of it."
    by_step = parts.index[parts["step"] > parts["image"]]
    where = "at every threshold" if len(parts) > 1 else f"at t = {parts.index[0]:g}"
    if len(by_step) == len(parts):
        return f"The step decides more than the image {where}."
    if (parts["image"] > parts["step"]).all():
        return f"The image decides more than the step {where}."
    only = " and ".join(f"t = {t:g}" for t in by_step)
    return f"The step decides more than the image {f'at {only} only' if only else 'at no threshold'}."


def roughness(images: np.ndarray) -> np.ndarray:
    """The mean absolute difference of pixels that are neighbours, ``[B]``, of images ``[B, H, W, 3]`` in [0,
    1]: the calmer an image, the less."""
    values = images.astype(float)
    return sum(np.abs(np.diff(values, axis=axis)).mean((1, 2, 3)) for axis in (1, 2)) / 2


def calm(shares: pd.DataFrame, images: np.ndarray) -> str:
    """Say whether calm images have more to merge: by the rank correlation of the merged share with
    `roughness`, over images and over the means of their classes. Its p-values are by permutations.

    Args:
        shares: of `shares_above`.
        images: ``[B, H, W, 3]`` in [0, 1], the first ones of the study.
    """
    threshold = most_adaptive(shares)
    own = shares[(shares["threshold"] == threshold) & (shares["image"] < len(images))].groupby("image")
    table = pd.DataFrame({"share": own["share"].mean(), "roughness": roughness(images)})
    if len(table) < 3 or (table.nunique() == 1).any():
        return "So few or so similar images cannot tell whether calm images have more to merge."
    found, chance = quality.rank_correlation(table["share"], table["roughness"])
    said = (
        f"At t = {threshold:g}, the rank correlation of the merged share with the mean difference of "
        f"neighbouring pixels is {found:+.2f} over {len(table)} images ({quality.chance_words(chance)})"
    )
    more = "Calm" if found < 0 else "Busy"
    verdict = f"{more} images have more to merge."
    if chance > 0.05:
        verdict = "Whether calm images have more to merge is not decided."
    by_class = table.groupby(own["class"].first()).mean()
    if not 2 < len(by_class) < len(table) or (by_class.nunique() == 1).any():
        return f"{verdict} {said}."
    over, chance_of_classes = quality.rank_correlation(by_class["share"], by_class["roughness"])
    said = f"{said}, and {over:+.2f} over the means of {len(by_class)} classes"
    if chance <= 0.05 < chance_of_classes:
        verdict = f"{more} images of these classes have more to merge. For other classes this is not decided."
    return f"{verdict} {said} ({quality.chance_words(chance_of_classes)})."


def needed(study: Similarities) -> str:
    """Say in a sentence how many images it takes to tell the first quarter of the steps from the last."""
    found = [images for one in study.quarters().values() if (images := quality.images_needed(one, 0.01))]
    if not found:
        return "With so few images nobody can say how many would be enough."
    span = " to ".join(dict.fromkeys((f"{min(found):,}", f"{max(found):,}")))
    return (
        "To find a difference of 0.01 between the two quarters in four studies out of five, these "
        f"comparisons need {span} images, depending on how much the difference varies from image to image; "
        f"there are {study.best.shape[2]:,}."
    )


def words(study: Similarities, shares: pd.DataFrame, ratio: float) -> dict[str, str]:
    """The numbers that chapter 2 takes up in its text, by their names there, with _ for -.

    Args:
        study: of `similarity_study`.
        shares: of `shares_above`.
        ratio: the fixed share to compare with.
    """
    mean, weakest, adaptive = study.best.mean((2, 3)), weakest_merged(study, ratio), most_adaptive(shares)
    share = shares[shares["threshold"] == adaptive]["share"]
    found = {}
    for name, place in (("lowest", mean.argmin()), ("highest", mean.argmax())):
        step, block = np.unravel_index(place, mean.shape)
        found |= {
            name: f"{mean[step, block]:.2f}",
            f"{name}_block": study.blocks[block],
            f"{name}_step": str(step),
        }
    return found | {
        "earlier": earlier_more_similar(study.by_block()),
        "needed": needed(study),
        "deciding": deciding(shares),
        "fixed_share": f"{ratio:g}",
        "weakest_low": f"{weakest.min():.2f}",
        "weakest_high": f"{weakest.max():.2f}",
        "share_low": f"{share.min():.0%}",
        "share_high": f"{share.max():.0%}",
        "adaptive": f"{adaptive:g}",
    }
