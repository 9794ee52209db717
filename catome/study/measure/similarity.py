"""How similar tokens are: the best similarity of every src token, at every step and block, over many images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from catome.probe import Record, probe
from catome.study.run.generate import batches, generate_batch
from catome.study.run.parameters import Setting


@dataclass(frozen=True)
class Similarities:
    """What `similarity_study` saw.

    Attributes:
        best: ``[steps, blocks, images, S]`` float32, best similarity of every src token in the prompted half of the batch; 1 if
            and only if it has an exact duplicate.
        tokens: tokens of one image in a block, src and dst.
        blocks: short names of the blocks, in running order.
        names: the class of each image.
        images: the generated images, float ``[images, H, W, 3]`` in [0, 1].
    """

    best: np.ndarray
    tokens: int
    blocks: list[str]
    names: list[str]
    images: np.ndarray


def short_name(block: str) -> str:
    """``down_blocks.0.attentions.1.transformer_blocks.0`` -> ``down 1``: the way down or up, and which attention there."""
    parts = block.split(".")
    return "middle" if parts[0] == "mid_block" else f"{parts[0].split('_')[0]} {parts[3]}"


def similarity_study(pipe, setting: Setting) -> Similarities:
    """Generate the study's images once and watch every topmost block at every step, with a progress bar."""
    best, images = [], []
    parts = batches(setting)
    with tqdm(total=len(parts) * setting.calls, desc="similarities", unit="step", leave=False) as bar:
        for part in parts:
            with probe(pipe) as record:
                images.append(generate_batch(pipe, setting, part, bar.update))
            best.append(_best(record)[:, :, -len(part) :].numpy())  # the prompted half comes last
    seen = record.at(0, 0)
    tokens = len(seen.matches.src) + len(seen.matches.dst)
    blocks = [short_name(name) for name in record.blocks()]
    return Similarities(np.concatenate(best, 2), tokens, blocks, setting.names, np.concatenate(images))


def _best(record: Record) -> torch.Tensor:
    """`Record.similarity`, exactly 1 where a src token has a duplicate and below 1 elsewhere, however cosines are rounded."""
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
    """How much of the variance of the merged share goes by the step, how much by the image, and how much by both together.

    Args:
        shares: of `shares_above`.

    Returns:
        For each threshold ``step``, ``image`` and ``both``, shares that add up to 1 (NaN where nothing varies): the parts of a
        two-way analysis of variance, of the mean over blocks.
    """
    rows = {}
    for threshold, own in shares.groupby("threshold"):
        table = own.groupby(["step", "image"])["share"].mean().unstack()
        centred = table - table.to_numpy().mean()
        total = (centred**2).to_numpy().sum()
        step = len(table.columns) * (centred.mean(axis=1) ** 2).sum()
        image = len(table) * (centred.mean(axis=0) ** 2).sum()
        parts = np.array([step, image, total - step - image])
        rows[threshold] = parts / total if total else np.full(3, np.nan)
    return pd.DataFrame(rows, index=["step", "image", "both"]).T


def weakest_merged(study: Similarities, ratio: float) -> np.ndarray:
    """The lowest similarity that merging a fixed share accepts, ``[steps, blocks, images]``."""
    count = int(ratio * study.tokens)
    if count == 0:
        raise ValueError(f"ratio={ratio!r} merges no token of {study.tokens}: there is no weakest pair")
    return torch.from_numpy(study.best).topk(count, -1).values[..., -1].numpy()
