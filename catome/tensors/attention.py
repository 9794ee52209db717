r"""Attention over merged keys: every query is kept, and a merged key counts as many times as it has members.

Softmax attention of a query :math:`q` over a group of :math:`s` tokens with keys :math:`k_i` and values :math:`v_i` adds
:math:`\sum_i e^{q k_i} v_i` to its numerator and :math:`\sum_i e^{q k_i}` to its denominator. With the means
:math:`\bar k` and :math:`\bar v`,

.. math:: \sum_i e^{q k_i} = s\, e^{q \bar k} \Bigl(1 + \tfrac12 \operatorname{Var}_i(q k_i) + \dots\Bigr)

because the first-order term :math:`\sum_i (q k_i - q \bar k)` is zero. So one key with the score :math:`q \bar k + \log s` stands
for the group: exactly where its keys are equal, and to first order elsewhere. What is left out is of second order: half the
variance of the group's scores, and the covariance of its scores and values.

A bound. Let the scores of each group lie within :math:`\delta` of their mean. A group's true weight is then between 1 and
:math:`\cosh\delta` times the one it gets (Jensen's inequality below, convexity above). Two distributions whose ratio stays
within a factor :math:`e^R` differ by at most :math:`\tanh(R/4)` in total variation, so the output moves by at most

.. math:: \tanh\bigl(\tfrac14 \log\cosh\delta\bigr)\, D + \tanh\bigl(\tfrac12 \delta\bigr)\, d
   \;\le\; \tfrac18 \delta^2 D + \tfrac12 \delta\, d

where :math:`D` is the largest distance between the mean values of two groups, and :math:`d` the largest between two values of
one group. Similar tokens make :math:`\delta` and :math:`d` small together, and that is what a similarity threshold does.

Without the bias ("proportional attention" in Bolya et al., Token Merging, arXiv 2210.09461, Section 3) a group counts as one
token, whatever it stands for: even merging *identical* tokens changes the result.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from catome.tensors.plan import MergePlan


def padded(plan: MergePlan, packed: torch.Tensor) -> torch.Tensor:
    """The packed tokens ``[S, C]`` as a batch ``[B, L, C]``, L of the image that keeps most; zeros where others keep fewer."""
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
    """What is added to the scores of merged keys, ``[B, L]`` as in `padded`; None where that is zero for all.

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
    **rest,
) -> torch.Tensor:
    """`F.scaled_dot_product_attention` in which the image tokens among the keys and values are merged.

    Args:
        query: ``[B, H, Q, D]``.
        key, value: ``[B, G, K, D]``; fewer heads than the query where ``enable_gqa`` is given.
        plan: for the ``N`` keys from ``first`` on.
        first: the first image token among the keys.
        weighted: let each group count as often as it has members.
        merge_queries: merge the image tokens among the queries, too, and give each the result of its group. They must be all
            queries, or lie where the keys lie.
        attn_mask: as torch's, the same for all image tokens among the keys; boolean, or added to the scores.
        rest: ``dropout_p``, ``scale``, ``enable_gqa``, as torch's.

    Returns:
        ``[B, H, Q, D]``.
    """
    tokens = plan.slot.shape[1]
    around = [(0, first), (first + tokens, key.shape[2])]
    # Image tokens go last, behind the text: then what pads an image that keeps fewer is at the end, and can be cut off.
    keys = torch.cat([*_spans(key, around), _merged(plan, key, first)], 2)
    values = torch.cat([*_spans(value, around), _merged(plan, value, first)], 2)
    kept = key.shape[2] - tokens
    mask = _mask(plan, weighted, attn_mask, first, kept, query.dtype)
    if not merge_queries:
        return _attention(query, keys, values, mask, plan, kept, None, rest)
    own = first if query.shape[2] == key.shape[2] else 0
    spans = [(0, own), (own + tokens, query.shape[2])]
    queries = torch.cat([*_spans(query, spans), _merged(plan, query, own)], 2)
    text = query.shape[2] - tokens
    out = _attention(queries, keys, values, mask, plan, kept, text, rest)
    image = plan.unmerge(unpadded(plan, out[:, :, text:].transpose(1, 2).flatten(2)))
    image = image.unflatten(2, (out.shape[1], out.shape[3])).transpose(1, 2)
    return torch.cat([out[:, :, :own], image, out[:, :, own:text]], 2)


def _spans(x: torch.Tensor, spans: list[tuple[int, int]]) -> list[torch.Tensor]:
    return [x[:, :, begin:end] for begin, end in spans if begin < end]


def _merged(plan: MergePlan, x: torch.Tensor, first: int) -> torch.Tensor:
    """The image tokens of ``x`` ``[B, H, L, D]``, merged: ``[B, H, S, D]``."""
    heads = x.shape[1]
    image = x[:, :, first : first + plan.slot.shape[1]]
    packed = plan.merge(image.transpose(1, 2).flatten(2))
    return padded(plan, packed).unflatten(2, (heads, -1)).transpose(1, 2)


def _mask(
    plan: MergePlan,
    weighted: bool,
    given: torch.Tensor | None,
    first: int,
    kept: int,
    dtype: torch.dtype,
) -> torch.Tensor | None:
    """The mask for the keys as `attend` orders them: what was ``given``, and the bias of groups."""
    bias = key_bias(plan, weighted, dtype)
    if bias is not None:
        bias = F.pad(bias, (kept, 0))[:, None, None]
    if given is None:
        return bias
    given = unexpanded(given)  # or copies of it would take the room of all scores
    if given.dtype == torch.bool:
        given = torch.zeros(given.shape, dtype=dtype, device=given.device).masked_fill(~given, -math.inf)
    tokens = plan.slot.shape[1]
    image = given[..., first : first + 1].expand(*given.shape[:-1], max(plan.lengths))
    given = torch.cat([given[..., :first], given[..., first + tokens :], image], -1)
    return given if bias is None else given + bias


def _pads(query: torch.Tensor) -> bool:
    """Whether images that keep different numbers of keys are computed together, padded and masked."""
    return query.device.type != "cpu"


def _attention(query, key, value, mask, plan: MergePlan, kept: int, text: int | None, rest: dict) -> torch.Tensor:
    """One call, or one for each image where they keep different numbers of tokens on a CPU, which has no use for padding."""
    if not plan.ragged or _pads(query):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **rest)
    images = []
    for i, length in enumerate(plan.lengths):
        of_keys = slice(kept + length)
        of_queries = slice(None) if text is None else slice(text + length)
        own_mask = mask[i if mask.shape[0] > 1 else 0][None, ..., of_keys]
        if own_mask.shape[-2] > 1:
            own_mask = own_mask[..., of_queries, :]
        out = F.scaled_dot_product_attention(
            query[i : i + 1, :, of_queries],
            key[i : i + 1, :, of_keys],
            value[i : i + 1, :, of_keys],
            attn_mask=own_mask,
            **rest,
        )
        images.append(F.pad(out, (0, 0, 0, query.shape[2] - out.shape[2])))
    return torch.cat(images)
