r"""Attention over merged keys: every query is kept, and a merged key counts as many times as it has members.

Softmax attention of a query :math:`q` over a group of :math:`s` tokens with keys :math:`k_i` and values
:math:`v_i` adds :math:`\sum_i e^{q k_i} v_i` to its numerator and :math:`\sum_i e^{q k_i}` to its
denominator. With the means :math:`\bar k` and :math:`\bar v`,

.. math:: \sum_i e^{q k_i} = s\, e^{q \bar k} \Bigl(1 + \tfrac12 \operatorname{Var}_i(q k_i) + \dots\Bigr)

because the first-order term :math:`\sum_i (q k_i - q \bar k)` is zero. So one key with the score
:math:`q \bar k + \log s` stands for the group: exactly where its keys are equal, and to first order
elsewhere. What is left out is of second order: half the variance of the group's scores, and the covariance of
its scores and values.

A bound. Let the scores of each group lie within :math:`\delta` of their mean. A group's true weight is then
between 1 and :math:`\cosh\delta` times the one it gets (Jensen's inequality below, convexity above). Two
distributions whose ratio stays within a factor :math:`e^R` differ by at most :math:`\tanh(R/4)` in total
variation, so the output moves by at most

.. math:: \tanh\bigl(\tfrac14 \log\cosh\delta\bigr)\, D + \tanh\bigl(\tfrac12 \delta\bigr)\, d
   \;\le\; \tfrac18 \delta^2 D + \tfrac12 \delta\, d

where :math:`D` is the largest distance between the mean values of two groups, and :math:`d` the largest
between two values of one group. Similar tokens make :math:`\delta` and :math:`d` small together, and that is
what a similarity threshold does.

Without the bias ("proportional attention" in Bolya et al., Token Merging, arXiv 2210.09461, Section 3) a
group counts as one token, whatever it stands for: even merging *identical* tokens changes the result.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F

from catome.tensors import kernels
from catome.tensors.matching import centre
from catome.tensors.plan import MergePlan

Way = Literal["bias", "channel", "values"]
"""The ways to tell attention that a key counts more than once; all three are exact, see
`weighted_attention`."""

_NEVER = -1e4
"""As a score, never chosen; fits in float16."""


_VALUES = 0.5
"""The weight of a difference of values beside one of keys, each on the scale of its image.

In the bound above the spread of values appears only in a product with that of scores: where keys are equal,
values may differ and nothing is lost. That they count half, and not at all or as much, was chosen on images
of the embedded model."""


@torch.no_grad()
def joined(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Join keys ``[B, N, C]`` and values ``[B, N, D]`` into what is compared where keys are, ``[B, N, C +
    D]``.

    Each of the two is divided by the spread that it has in its image."""
    wide = torch.promote_types(keys.dtype, torch.float32)
    images = []
    # one by one: what an image gives must not depend on the others
    for key, value in zip(keys, values, strict=True):
        scaled = (part / centre(part.to(wide))[1].sqrt()[..., None] for part in (key, value))
        images.append(
            torch.cat(
                [part.to(keys.dtype) * weight for part, weight in zip(scaled, (1.0, _VALUES), strict=True)],
                -1,
            )
        )
    return torch.stack(images) if images else torch.cat([keys, values], -1)


def padded(plan: MergePlan, packed: torch.Tensor) -> torch.Tensor:
    """The packed tokens ``[S, C]`` as a batch ``[B, L, C]``, L of the image that keeps most; zeros where
    others keep fewer."""
    images = len(plan.lengths)
    longest = max(plan.lengths)
    if not plan.ragged:
        return packed.unflatten(0, (images, longest))
    return torch.nn.utils.rnn.pad_sequence(plan.split(packed), batch_first=True)


def unpadded(plan: MergePlan, batch: torch.Tensor) -> torch.Tensor:
    """The inverse of `padded`: ``[B, L, C]`` to ``[S, C]``."""
    if not plan.ragged:
        return batch.flatten(0, 1)
    return torch.cat([image[:length] for image, length in zip(batch, plan.lengths, strict=True)])


def key_bias(plan: MergePlan, weighted: bool, dtype: torch.dtype) -> torch.Tensor | None:
    """The bias that is added to the scores of merged keys, ``[B, L]`` as in `padded`; None where that is zero
    for all.

    Args:
        plan: of ``B`` images.
        weighted: add the logarithm of each group's size (see the module's first lines).
        dtype: of the scores.
    """
    if not weighted and not plan.ragged:
        return None
    sizes = plan.sizes.to(torch.promote_types(dtype, torch.float32))
    counted = sizes if weighted else sizes.clamp(max=1)
    return counted.log().to(dtype)  # minus infinity where there is no key


def way_for(query: torch.Tensor, attn_mask: torch.Tensor | None = None) -> Way:
    """The way of `weighted_attention` that is taken where none is asked for.

    A mask takes CUDA's attention off its flash kernels, which know no bias. They compute heads in widths of
    32, 64, 96, 128, 160, 192, 224 and 256 numbers, so that one more channel costs nothing where the head does
    not fill its width: 40 and 80 of Stable Diffusion 1.5 do not, 64 and 128 of most other models do. On a CPU
    a bias costs nothing."""
    trained = torch.is_grad_enabled() and query.requires_grad
    if attn_mask is None and avoids_masks(query) and not trained:
        channels = query.shape[-1]
        if -(-channels // 32) == -(-_widened(channels) // 32) and _widened(channels) <= 256:
            return "channel"
    return "bias"


def avoids_masks(x: torch.Tensor) -> bool:
    """Return True if attention over tokens like ``x`` may be faster without a mask, which `way_for` then
    decides."""
    return x.is_cuda and x.dtype in (torch.float16, torch.bfloat16)


def _widened(channels: int) -> int:
    """Channels of a head with at least one more, in a multiple of 8, as flash kernels want it."""
    return 8 * (channels // 8 + 1)


def weighted_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_weights: torch.Tensor | None,
    attn_mask: torch.Tensor | None = None,
    way: Way | None = None,
    scale: float | None = None,
    **rest,
) -> torch.Tensor:
    """Softmax attention in which each key counts with a weight.

    - "bias": the logarithms are added to the scores, as an attention mask.
    - "channel": queries get one more channel, a constant, and keys the logarithm over that constant.
    - "values": values are multiplied by the weights, beside a column of the weights alone, by which the
      result is divided.

    Args:
        query: ``[B, H, Q, D]``.
        key, value: ``[B, G, K, D]``.
        log_weights: ``[B, K]``, logarithms of the keys' weights; minus infinity for a key that does not
            count.
        attn_mask: as torch's; needs the way "bias".
        way: None for `way_for`.
        scale: of the scores; ``1 / sqrt(D)`` by default.
        rest: ``dropout_p``, ``enable_gqa``, as torch's.

    Returns:
        ``[B, H, Q, D]``.

    Raises:
        ValueError: for a mask with another way than "bias".
    """
    if log_weights is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, scale=scale, **rest)
    way = way or way_for(query, attn_mask)
    if way != "bias" and attn_mask is not None:
        raise ValueError(f"way={way!r} cannot go with a mask: only 'bias' can")
    if way == "bias":
        bias = log_weights[:, None, None].to(query.dtype)
        mask = bias if attn_mask is None else attn_mask + bias
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, **rest)
    channels = query.shape[-1]
    width = _widened(channels)
    scale = scale or 1 / math.sqrt(channels)
    if way == "channel":
        key = F.pad(key, (0, width - channels))
        key[..., channels] = (log_weights.clamp(min=_NEVER) * _log_factor(scale))[:, None]
        return _by_channel(query, key, F.pad(value, (0, width - channels)), scale, **rest)
    weights = (log_weights - log_weights.amax(1, keepdim=True)).exp()[:, None, :, None].to(value.dtype)
    wide = F.pad(value * weights, (0, width - channels))
    wide[..., channels] = weights[..., 0]
    query = F.pad(query, (0, width - channels))
    key = F.pad(key, (0, width - channels))
    out = F.scaled_dot_product_attention(query, key, wide, scale=scale, **rest)
    return out[..., :channels] / out[..., channels : channels + 1]


_CONSTANT = 8.0
"""The value that queries get as their further channel; a power of two, by which a division is exact."""


def _log_factor(scale: float) -> float:
    """By what the logarithm of a weight is multiplied in a key's further channel, so that it comes out of the
    scores as it is."""
    return 1 / (scale * _CONSTANT)


def _by_channel(query, key, value, scale: float, **rest) -> torch.Tensor:
    """Attention over keys ``[B, G, K, W]`` that have the weights in channel D, with queries ``[B, H, Q,
    D]``."""
    channels = query.shape[-1]
    query = F.pad(query, (0, key.shape[-1] - channels))
    query[..., channels] = _CONSTANT
    return F.scaled_dot_product_attention(query, key, value, scale=scale, **rest)[..., :channels]


def unexpanded(mask: torch.Tensor) -> torch.Tensor:
    """A mask without the heads, queries and rows of the batch that `torch.Tensor.expand` has repeated."""
    for dim in range(mask.ndim - 1):
        if mask.shape[dim] > 1 and mask.stride(dim) == 0:
            mask = mask.narrow(dim, 0, 1)
    return mask


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: MergePlan,
    first: int = 0,
    *,
    weighted: bool = True,
    merge_queries: bool = False,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
    **rest,
) -> torch.Tensor:
    """`F.scaled_dot_product_attention` in which the image tokens among the keys and values are merged.

    Args:
        query: ``[B, H, Q, D]``.
        key, value: ``[B, G, K, D]``; fewer heads than the query where ``enable_gqa`` is given.
        plan: for the ``N`` keys from ``first`` on.
        first: the first image token among the keys.
        weighted: let each group count as often as it has members.
        merge_queries: merge the image tokens among the queries, too, and give each the result of its group.
            They must be all queries, or lie where the keys lie.
        attn_mask: as torch's, the same for all image tokens among the keys; boolean, or added to the scores.
        scale: of the scores; ``1 / sqrt(D)`` by default.
        rest: ``dropout_p``, ``enable_gqa``, as torch's.

    Returns:
        ``[B, H, Q, D]``.
    """
    tokens = plan.slot.shape[1]
    kept = key.shape[2] - tokens
    mask = in_order(attn_mask, first, tokens, max(plan.lengths), query.dtype)
    if not merge_queries:
        return _over_merged(query, key, value, plan, first, weighted, mask, scale, rest)
    own = first if query.shape[2] == key.shape[2] else 0
    spans = [(0, own), (own + tokens, query.shape[2])]
    queries = torch.cat([*_spans(query, spans), _merged(plan, query, own)], 2)
    text = query.shape[2] - tokens
    keys, values = _merged_keys(plan, key, value, first)
    log_weights = _log_weights(plan, weighted, kept, query.dtype)
    out = _attention(queries, keys, values, log_weights, mask, plan, kept, text, dict(rest, scale=scale))
    image = plan.unmerge(unpadded(plan, out[:, :, text:].transpose(1, 2).flatten(2)))
    image = image.unflatten(2, (out.shape[1], out.shape[3])).transpose(1, 2)
    return torch.cat([out[:, :, :own], image, out[:, :, own:text]], 2)


def _over_merged(
    query, key, value, plan: MergePlan, first: int, weighted: bool, mask, scale, rest: dict
) -> torch.Tensor:
    """Attention with every query, over merged keys."""
    kept = key.shape[2] - plan.slot.shape[1]
    channels = key.shape[3]
    usable = kernels.usable(key) and kernels.usable(value)
    if usable and (weighted or plan.ragged) and way_for(query, mask) == "channel":
        scale = scale or 1 / math.sqrt(channels)
        keys, values = _by_kernel(
            plan, key, value, first, _widened(channels), _log_factor(scale) if weighted else None
        )
        if plan.ragged:
            longest = torch.arange(max(plan.lengths), device=key.device)
            missing = longest >= plan.bounds.diff()[:, None]
            keys[:, :, kept:, channels].masked_fill_(missing[:, None], _NEVER * _log_factor(scale))
        return _by_channel(query, keys, values, scale, **rest)
    if usable:
        keys, values = _by_kernel(plan, key, value, first, channels, None)
    else:
        keys, values = _merged_keys(plan, key, value, first)
    log_weights = _log_weights(plan, weighted, kept, query.dtype)
    return _attention(query, keys, values, log_weights, mask, plan, kept, None, dict(rest, scale=scale))


def _by_kernel(
    plan: MergePlan, key, value, first: int, width: int, log_factor: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merged keys and values ``[B, G, L, width]``, what is no image token before the others, written in one
    pass."""
    tokens = plan.slot.shape[1]
    kept = key.shape[2] - tokens
    images, heads, _, channels = key.shape
    # What no group fills, and further channels of text, must be zeros.
    make = torch.zeros if plan.ragged or (kept and width > channels) else torch.empty
    shape = (images, heads, kept + max(plan.lengths), width)
    keys = make(shape, dtype=key.dtype, device=key.device)
    values = make(shape, dtype=value.dtype, device=value.device)
    for begin, end, at in ((0, first, 0), (first + tokens, key.shape[2], first)):
        keys[:, :, at : at + end - begin, :channels] = key[:, :, begin:end]
        values[:, :, at : at + end - begin, :channels] = value[:, :, begin:end]
    image = slice(first, first + tokens)
    order, offsets = plan.groups
    kernels.merge_keys(
        key[:, :, image],
        value[:, :, image],
        order,
        offsets,
        plan.bounds,
        keys[:, :, kept:],
        values[:, :, kept:],
        log_factor,
    )
    return keys, values


def _merged_keys(plan: MergePlan, key, value, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Merged keys and values ``[B, G, L, D]``, image tokens last: what pads an image that keeps fewer can
    then be cut off."""
    around = [(0, first), (first + plan.slot.shape[1], key.shape[2])]
    keys = torch.cat([*_spans(key, around), _merged(plan, key, first)], 2)
    values = torch.cat([*_spans(value, around), _merged(plan, value, first)], 2)
    return keys, values


def _spans(x: torch.Tensor, spans: list[tuple[int, int]]) -> list[torch.Tensor]:
    return [x[:, :, begin:end] for begin, end in spans if begin < end]


def _merged(plan: MergePlan, x: torch.Tensor, first: int) -> torch.Tensor:
    """The image tokens of ``x`` ``[B, H, L, D]``, merged: ``[B, H, S, D]``."""
    heads = x.shape[1]
    image = x[:, :, first : first + plan.slot.shape[1]]
    packed = plan.merge(image.transpose(1, 2).flatten(2))
    return padded(plan, packed).unflatten(2, (heads, -1)).transpose(1, 2)


def _log_weights(plan: MergePlan, weighted: bool, kept: int, dtype: torch.dtype) -> torch.Tensor | None:
    """The logarithms of the weights of all keys, ``[B, kept + L]``; None where each counts once."""
    bias = key_bias(plan, weighted, dtype)
    return None if bias is None else F.pad(bias, (kept, 0))


def in_order(mask: torch.Tensor | None, first: int, tokens: int, longest: int, dtype) -> torch.Tensor | None:
    """A mask ``[B or 1, H or 1, Q or 1, L]`` of numbers, with the keys in the order that `attend` gives
    them."""
    if mask is None:
        return None
    mask = unexpanded(mask)  # or copies of it would take the room of all scores
    mask = mask[(None,) * (4 - mask.ndim)]
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -math.inf)
    image = mask[..., first : first + 1].expand(*mask.shape[:-1], longest)
    return torch.cat([mask[..., :first], mask[..., first + tokens :], image], -1)


def _pads(query: torch.Tensor) -> bool:
    """Return True if images that keep different numbers of keys are computed together, padded and masked."""
    return query.device.type != "cpu"


def _attention(
    query, key, value, log_weights, mask, plan: MergePlan, kept: int, text: int | None, rest: dict
) -> torch.Tensor:
    """One call, or one for each image where they keep different numbers of tokens on a CPU, which has no use
    for padding."""
    if not plan.ragged or _pads(query):
        return weighted_attention(query, key, value, log_weights, mask, **rest)
    images = []
    for i, length in enumerate(plan.lengths):
        of_keys = slice(kept + length)
        of_queries = slice(None) if text is None else slice(text + length)
        own_mask = None
        if mask is not None:
            own_mask = mask[i if mask.shape[0] > 1 else 0][None, ..., of_keys]
            if own_mask.shape[-2] > 1:
                own_mask = own_mask[..., of_queries, :]
        out = weighted_attention(
            query[i : i + 1, :, of_queries],
            key[i : i + 1, :, of_keys],
            value[i : i + 1, :, of_keys],
            log_weights[i : i + 1, of_keys],
            own_mask,
            **rest,
        )
        images.append(F.pad(out, (0, 0, 0, query.shape[2] - out.shape[2])))
    return torch.cat(images)
