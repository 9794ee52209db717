"""Merging with a number of keys that is fixed beforehand, as one static program needs it.

Images keep as many keys as they need. A program that is compiled as a whole, or recorded as a CUDA graph, has
one shape. So every image gets the same number of slots here, and slots that it does not need have no members:
their weight is zero, and attention never chooses them. The result is that of the plan.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from catome.tensors.attention import in_order, weighted_attention
from catome.tensors.plan import MergePlan


class PaddedGroups(NamedTuple):
    """The groups of a plan for ``B`` images of ``N`` tokens, in ``L`` slots for each image.

    Attributes:
        order: ``[B * N]`` int64, all tokens, slot by slot.
        begins: ``[B * L]`` int64, where in ``order`` each slot begins.
        log_weights: ``[B, L]`` float32, what is added to the scores of each slot; minus infinity where it has
            no member.
    """

    order: torch.Tensor
    begins: torch.Tensor
    log_weights: torch.Tensor


@torch.no_grad()
def padded_groups(plan: MergePlan, slots: int, weighted: bool = True) -> PaddedGroups:
    """The groups of a plan in so many slots for each image.

    Args:
        plan: whose images keep at most ``slots`` tokens.
        slots: for each image.
        weighted: let each group count as often as it has members.

    Raises:
        ValueError: if an image keeps more.
    """
    if max(plan.lengths) > slots:
        raise ValueError(
            f"slots={slots} must be at least {max(plan.lengths)}, the tokens that an image of this plan keeps"
        )
    order, bounds = plan.groups
    device = order.device
    first = plan.bounds[:-1, None]
    last = plan.bounds[1:, None]
    packed = torch.minimum(first + torch.arange(slots, device=device), last)
    sizes = F.pad(plan.sizes, (0, slots - plan.sizes.shape[1]))
    log_weights = (sizes if weighted else sizes.clamp(max=1)).log()
    return PaddedGroups(order, bounds[packed].flatten(), log_weights)


def merge_padded(x: torch.Tensor, groups: PaddedGroups) -> torch.Tensor:
    """The mean of each group of the tokens ``x`` ``[B, N, C]``: ``[B, L, C]``, zeros in a slot without
    members."""
    exact = x.flatten(0, 1).to(torch.promote_types(x.dtype, torch.float32))
    means = F.embedding_bag(groups.order, exact, groups.begins, mode="mean")
    return means.to(x.dtype).unflatten(0, groups.log_weights.shape)


def attend_padded(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    groups: PaddedGroups,
    first: int = 0,
    attn_mask: torch.Tensor | None = None,
    **rest,
) -> torch.Tensor:
    """Do what `catome.tensors.attention.attend` does with every query, in shapes that do not depend on the
    plan.

    Args:
        query: ``[B, H, Q, D]``.
        key, value: ``[B, G, K, D]``.
        groups: of the ``N`` keys from ``first`` on.
        first: the first image token among the keys.
        attn_mask: the same for all image tokens among the keys.
        rest: ``scale``, ``dropout_p``, ``enable_gqa``, as torch's.

    Returns:
        ``[B, H, Q, D]``.
    """
    images, slots = groups.log_weights.shape
    tokens = len(groups.order) // images
    kept = key.shape[2] - tokens
    mask = in_order(attn_mask, first, tokens, slots, query.dtype)
    log_weights = F.pad(groups.log_weights, (kept, 0))
    keys = _merged(key, groups, first, tokens)
    values = _merged(value, groups, first, tokens)
    return weighted_attention(query, keys, values, log_weights, mask, **rest)


def _merged(x: torch.Tensor, groups: PaddedGroups, first: int, tokens: int) -> torch.Tensor:
    """Keys or values ``[B, G, K, D]`` with the image tokens merged, and behind all others."""
    heads = x.shape[1]
    image = x[:, :, first : first + tokens].transpose(1, 2).flatten(2)
    merged = merge_padded(image, groups).unflatten(2, (heads, -1)).transpose(1, 2)
    return torch.cat([x[:, :, :first], x[:, :, first + tokens :], merged], 2)
