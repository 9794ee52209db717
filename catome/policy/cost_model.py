"""Where merging saves more time than it costs: the rule behind ``apply_patch(only_where_faster=True)`` (beyond the paper).

A model of one image in one block, of N tokens of C channels, of which the share m is merged. Saved, at every step, in FLOPs:

- self-attention: :math:`4 N^2 C (1 - (1 - m)^2)` of its two products, :math:`8 N C^2 m` of its four projections; where
  queries are kept, :math:`4 N^2 C m` of its products and :math:`4 N C^2 m` of the projections of keys and values;
- cross-attention, if it runs on merged tokens: :math:`4 N C^2 m` of its two projections of them;
- the MLP, if it does: :math:`24 N C^2 m`.

Paid, at every step and for each of these parts, are the :math:`(4 - 2 m) N C` numbers that merging and unmerging read and
write (:math:`(2 - m) N C` where queries are kept, for nothing is unmerged), and `LAUNCHES` operations that have to be started; at every checkpoint, the similarities of src and dst tokens,
:math:`2 s (1 - s) N^2 C` FLOPs, where s is the share of src tokens. `RATES` makes them all seconds. It is a model of one
image, whatever the batch, so that an image's result does not depend on what else is in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from catome.tensors.plan import MergePlan, pack


@dataclass(frozen=True)
class Rates:
    """What a kind of device reaches: FLOPs and bytes a second, and the seconds that starting an operation takes."""

    flops: float
    bytes: float
    launch: float


RATES = {
    ("cpu", 4): Rates(150e9, 30e9, 20e-6),
    ("cpu", 2): Rates(50e9, 30e9, 20e-6),
    ("cuda", 4): Rates(50e12, 2e12, 8e-6),
    ("cuda", 2): Rates(400e12, 2e12, 8e-6),
}
"""By type of device and bytes of a number. Those of the CPU in float32 are rounded from self-attention and merging timed on two
cores; in half precision, which few CPUs multiply natively, a third of that is assumed. Those of CUDA are rounded down from a
data sheet (H100), and the time to start a kernel from Python is an assumption: none of them has been measured."""

LAUNCHES = 3  # merge, unmerge, and what is between


def gain(
    tokens: int,
    channels: int,
    share: float,
    rates: Rates,
    itemsize: int,
    sources: float = 0.75,
    interval: float = math.inf,
    parts: tuple[bool, bool, bool] = (True, False, False),
    keep_queries: bool = False,
) -> float:
    """Seconds that merging saves in one block and step, for one image; negative where it costs more than it saves.

    Args:
        tokens, channels: of the block.
        share: of all tokens that are merged, in [0, 1].
        rates: of the device.
        itemsize: bytes of a number.
        sources: share of src tokens.
        interval: steps for which a checkpoint's matches serve; infinite where they are already there.
        parts: whether self-attention, cross-attention and the MLP run on merged tokens.
        keep_queries: whether self-attention merges keys and values alone.
    """
    attention, cross, mlp = parts
    scores_left = 1 - share if keep_queries else (1 - share) ** 2
    projections = 2 if keep_queries else 4
    saved = attention * 4 * tokens**2 * channels * (1 - scores_left)
    saved += attention * 2 * projections * tokens * channels**2 * share
    saved += (cross * 4 + mlp * 24) * tokens * channels**2 * share
    both_ways = cross + mlp + attention * (0.5 if keep_queries else 1)
    moved = both_ways * (4 - 2 * share) * tokens * channels * itemsize
    matching = 2 * sources * (1 - sources) * tokens**2 * channels
    return (saved - matching / interval) / rates.flops - moved / rates.bytes - sum(parts) * LAUNCHES * rates.launch


@lru_cache(maxsize=256)
def least_share(tokens: int, channels: int, rates: Rates, itemsize: int, **rest) -> float:
    """The least merged share, in steps of a hundredth, that pays; infinite if none does. Arguments as in `gain`."""
    most = int(100 * rest.get("sources", 0.75))
    shares = (share / 100 for share in range(1, most + 1))
    return next((share for share in shares if gain(tokens, channels, share, rates, itemsize, **rest) > 0), math.inf)


def rates_of(x: torch.Tensor) -> Rates:
    """The rates of the kind of device that ``x`` is on; of a CPU for a kind that is not in `RATES`."""
    kind = x.device.type if x.device.type == "cuda" else "cpu"
    return RATES[kind, 2 if x.element_size() == 2 else 4]


def without_small(plan: MergePlan, share: float) -> MergePlan:
    """The plan, but without the pairs of images in which less than ``share`` of the tokens are merged."""
    images, tokens = plan.slot.shape
    few = [i for i in range(images) if 0 < tokens - plan.lengths[i] < share * tokens]
    if not few:
        return plan
    target = plan.target.clone()
    lengths = list(plan.lengths)
    for i in few:
        target[i] = torch.arange(tokens, device=target.device)
        lengths[i] = tokens
    return pack(target, tuple(lengths))
