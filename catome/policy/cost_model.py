"""The rule behind ``apply_patch(only_where_faster=True)``: merge where it saves more time than it costs
(beyond the paper).

A model of one image in one block, of N tokens of C channels, of which the share m is merged. Saved, at every
step, in FLOPs:

- self-attention: :math:`4 N^2 C (1 - (1 - m)^2)` of its two products, :math:`8 N C^2 m` of its four
  projections; where queries are kept, :math:`4 N^2 C m` of its products and, if tokens are merged before
  them, :math:`4 N C^2 m` of the projections of keys and values;
- cross-attention, if it runs on merged tokens: :math:`4 N C^2 m` of its two projections of them;
- the MLP, if it does: :math:`24 N C^2 m`.

Paid, at every step and for each of these parts, are the :math:`(4 - 2 m) N C` numbers that merging and
unmerging read and write (:math:`(2 - m) N C` where queries are kept and tokens are merged before the
projections, for nothing is unmerged), and `LAUNCHES` operations that have to be started. At every checkpoint,
the similarities of src and dst tokens are paid: :math:`2 s (1 - s) N^2 C` FLOPs, where s is the share of src
tokens. The device's rates (`catome.policy.rates`) make them all seconds. It is a model of one image, whatever
the batch, so that an image's result does not depend on what else is in it.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from catome.policy.rates import Rates
from catome.tensors.plan import MergePlan, pack

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
    at_the_call: bool = False,
) -> float:
    """Seconds that merging saves in one block and step, for one image; negative where it costs more than it
    saves.

    Args:
        tokens, channels: of the block.
        share: of all tokens that are merged, in [0, 1].
        rates: of the device.
        itemsize: bytes of a number.
        sources: share of src tokens.
        interval: steps for which a checkpoint's matches serve; infinite where they are already there.
        parts: whether self-attention, cross-attention and the MLP run on merged tokens.
        keep_queries: whether self-attention merges keys and values alone.
        at_the_call: whether it does so behind the projections.
    """
    attention, cross, mlp = parts
    scores_left = 1 - share if keep_queries else (1 - share) ** 2
    projections = (0 if at_the_call else 2) if keep_queries else 4
    saved = attention * 4 * tokens**2 * channels * (1 - scores_left)
    saved += attention * 2 * projections * tokens * channels**2 * share
    saved += (cross * 4 + mlp * 24) * tokens * channels**2 * share
    both_ways = cross + mlp + attention * (0.5 if keep_queries and not at_the_call else 1)
    moved = both_ways * (4 - 2 * share) * tokens * channels * itemsize
    matching = 2 * sources * (1 - sources) * tokens**2 * channels
    return (
        (saved - matching / interval) / rates.flops
        - moved / rates.bytes
        - sum(parts) * LAUNCHES * rates.launch
    )


@lru_cache(maxsize=256)
def least_share(tokens: int, channels: int, rates: Rates, itemsize: int, **rest) -> float:
    """The least merged share, in steps of a hundredth, that pays; infinite if none does. Arguments as in
    `gain`."""
    most = int(100 * rest.get("sources", 0.75))
    shares = (share / 100 for share in range(1, most + 1))
    return next(
        (share for share in shares if gain(tokens, channels, share, rates, itemsize, **rest) > 0), math.inf
    )


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
