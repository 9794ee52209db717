"""The operations of `catome.tensors.matching` and `catome.tensors.plan` as Triton kernels, for CUDA devices.

The plain torch versions are the reference; these give the same values up to the rounding of float32 and write nothing that
is not needed: the similarity matrix never exists, the sum over a group of merged tokens is taken in one order (so that two
runs are equal to the bit), and a block's LayerNorm is taken on the way into the merge. With ``TRITON_INTERPRET=1`` in the
environment they run on the CPU, to be tested.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # a platform without Triton: the torch versions serve
    triton = None

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_FEW, _MANY = 4, 32  # tokens of a group that are read at a time: most groups have few, a plain sky has thousands


def usable(x: torch.Tensor) -> bool:
    """Whether these kernels take ``x``: on a CUDA device, float16, bfloat16 or float32, and no gradient is asked for."""
    return triton is not None and x.is_cuda and x.dtype in DTYPES and not (torch.is_grad_enabled() and x.requires_grad)


if triton is not None:

    @triton.jit
    def _inverse_norms(x, out, tokens, channels, of_image, of_token, of_channel, BLOCK: tl.constexpr):  # noqa: N803
        token = tl.program_id(0).to(tl.int64)
        columns = tl.arange(0, BLOCK)
        at = x + token // tokens * of_image + token % tokens * of_token + columns * of_channel
        value = tl.load(at, mask=columns < channels, other=0.0).to(tl.float32)
        # what is not finite gives NaN times 0; everything else gives 0
        poison = tl.sum(value * 0.0, 0)
        norm = tl.sqrt(tl.sum(value * value, 0))
        tl.store(out + token, 1.0 / tl.maximum(norm, 1e-12) + poison)

    @triton.jit
    def _best(
        x,
        inverse,
        src,
        dst,
        similarity,
        best,
        tokens,
        sources,
        targets,
        channels,
        of_image,
        of_token,
        of_channel,
        PRECISION: tl.constexpr,  # noqa: N803
        SRC: tl.constexpr,  # noqa: N803
        DST: tl.constexpr,  # noqa: N803
        CHANNELS: tl.constexpr,  # noqa: N803
        WIDEN: tl.constexpr,  # noqa: N803  # the interpreter cannot multiply bfloat16
    ):
        image = tl.program_id(1).to(tl.int64)
        x += image * of_image
        inverse += image * tokens
        row = tl.program_id(0) * SRC + tl.arange(0, SRC)
        source = tl.load(src + row, mask=row < sources, other=0)
        highest = tl.full([SRC], float("-inf"), tl.float32)
        partner = tl.zeros([SRC], tl.int32)
        for first in range(0, targets, DST):
            column = first + tl.arange(0, DST)
            target = tl.load(dst + column, mask=column < targets, other=0)
            product = tl.zeros([SRC, DST], tl.float32)
            for start in range(0, channels, CHANNELS):
                channel = start + tl.arange(0, CHANNELS)
                held = channel < channels
                a = tl.load(x + source[:, None] * of_token + channel[None, :] * of_channel, mask=held[None, :], other=0.0)
                b = tl.load(x + target[None, :] * of_token + channel[:, None] * of_channel, mask=held[:, None], other=0.0)
                if WIDEN:
                    a = a.to(tl.float32)
                    b = b.to(tl.float32)
                product = tl.dot(a, b, product, input_precision=PRECISION)
            scale = tl.load(inverse + target, mask=column < targets, other=float("nan"))
            chosen = scale == scale  # not NaN: a whole dst token
            cosine = tl.where(chosen[None, :], product * scale[None, :], float("-inf"))
            here = tl.max(cosine, 1)
            better = here > highest  # of equal ones the first stays
            partner = tl.where(better, first + tl.argmax(cosine, 1).to(tl.int32), partner)
            highest = tl.where(better, here, highest)
        scale = tl.load(inverse + source, mask=row < sources, other=0.0)
        at = image * sources + row
        tl.store(similarity + at, highest * scale, mask=row < sources)
        tl.store(best + at, tl.load(dst + partner), mask=row < sources)

    @triton.jit
    def _group_sum(
        x,
        order,
        start,
        end,
        total,
        weight,
        bias,
        tokens,
        channels,
        of_image,
        of_token,
        of_channel,
        eps,
        NORM: tl.constexpr,  # noqa: N803
        AFFINE: tl.constexpr,  # noqa: N803
        BLOCK: tl.constexpr,  # noqa: N803
        AT_ONCE: tl.constexpr,  # noqa: N803
    ):
        """Add tokens ``order[start:end]``, normed if need be, to ``total``."""
        columns = tl.arange(0, BLOCK)
        held = columns < channels
        place = start + tl.arange(0, AT_ONCE)
        token = tl.load(order + place, mask=place < end, other=0).to(tl.int64)
        at = x + (token // tokens * of_image + token % tokens * of_token)[:, None] + columns[None, :] * of_channel
        inside = (place < end)[:, None] & held[None, :]
        value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            mean = tl.sum(value, 1) / channels
            value = tl.where(held[None, :], value - mean[:, None], 0.0)
            variance = tl.sum(value * value, 1) / channels
            value = value * (1.0 / tl.sqrt(variance + eps))[:, None]
            if AFFINE:
                value = value * tl.load(weight + columns, mask=held, other=0.0).to(tl.float32)[None, :]
                value = value + tl.load(bias + columns, mask=held, other=0.0).to(tl.float32)[None, :]
            value = tl.where(inside, value, 0.0)
        return total + tl.sum(value, 0)

    @triton.jit
    def _merge(
        x,
        order,
        offsets,
        out,
        weight,
        bias,
        tokens,
        channels,
        of_image,
        of_token,
        of_channel,
        eps,
        NORM: tl.constexpr,  # noqa: N803
        AFFINE: tl.constexpr,  # noqa: N803
        BLOCK: tl.constexpr,  # noqa: N803
        FEW: tl.constexpr,  # noqa: N803
        MANY: tl.constexpr,  # noqa: N803
    ):
        slot = tl.program_id(0).to(tl.int64)
        begin = tl.load(offsets + slot)
        end = tl.load(offsets + slot + 1)
        total = tl.zeros([BLOCK], tl.float32)
        total = _group_sum(
            x, order, begin, end, total, weight, bias, tokens, channels, of_image, of_token, of_channel, eps,
            NORM, AFFINE, BLOCK, FEW,
        )  # fmt: skip
        for start in range(begin + FEW, end, MANY):
            total = _group_sum(
                x, order, start, end, total, weight, bias, tokens, channels, of_image, of_token, of_channel, eps,
                NORM, AFFINE, BLOCK, MANY,
            )  # fmt: skip
        columns = tl.arange(0, BLOCK)
        mean = total / (end - begin).to(tl.float32)
        tl.store(out + slot * channels + columns, mean.to(out.dtype.element_ty), mask=columns < channels)

    @triton.jit
    def _unmerge(y, slot, out, rows, channels, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        columns = tl.arange(0, BLOCK)
        inside = (row < rows)[:, None] & (columns < channels)[None, :]
        source = tl.load(slot + row, mask=row < rows, other=0).to(tl.int64)
        value = tl.load(y + source[:, None] * channels + columns[None, :], mask=inside, other=0.0)
        tl.store(out + row[:, None] * channels + columns[None, :], value, mask=inside)


def best_matches_of(tokens: torch.Tensor, src: torch.Tensor, dst: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `catome.tensors.matching.best_matches_of`: similarity (float32) and index of each src token's best dst, two ``[B, S]``.

    Products are of the tokens as they are, in float32 (three TF32 products for float32 tokens), and divided by the norms;
    among equally similar dst tokens the first is taken. Memory: nothing beside the result and one number for each token."""
    images, count, channels = tokens.shape
    inverse = torch.empty(images, count, dtype=torch.float32, device=tokens.device)
    strides = tokens.stride()
    block = triton.next_power_of_2(channels)
    similarity = torch.empty(images, len(src), dtype=torch.float32, device=tokens.device)
    best = torch.empty(images, len(src), dtype=torch.int64, device=tokens.device)
    if not similarity.numel():
        return similarity, best
    with _on(tokens):
        _inverse_norms[(images * count,)](tokens, inverse, count, channels, *strides, BLOCK=block)
        _best[(triton.cdiv(len(src), 64), images)](
            tokens, inverse, src, dst, similarity, best, count, len(src), len(dst), channels, *strides,
            PRECISION="tf32x3" if tokens.dtype == torch.float32 else "ieee", SRC=64, DST=128, CHANNELS=32,
            WIDEN=not tokens.is_cuda,
        )  # fmt: skip
    return similarity, best


def merge(x: torch.Tensor, order: torch.Tensor, offsets: torch.Tensor, norm: torch.nn.LayerNorm | None = None) -> torch.Tensor:
    """The mean of every group of tokens: ``[B, N, C]`` to ``[S, C]``, summed in float32 in the order of ``order``.

    Args:
        x: ``[B, N, C]``, of any strides.
        order: ``[B * N]``, the tokens of all images, group by group.
        offsets: ``[S + 1]``, where in ``order`` each group begins.
        norm: a LayerNorm over C to take of each token first; what it gives is not rounded before it is summed.
    """
    count, channels = x.shape[1:]
    groups = len(offsets) - 1
    out = torch.empty(groups, channels, dtype=x.dtype, device=x.device)
    affine = norm is not None and norm.weight is not None
    weight = norm.weight if affine else x
    bias = x if not affine else norm.bias if norm.bias is not None else torch.zeros_like(norm.weight)
    if out.numel():
        with _on(x):
            _merge[(groups,)](
                x, order, offsets, out, weight, bias, count, channels, *x.stride(), norm.eps if norm is not None else 0.0,
                NORM=norm is not None, AFFINE=affine, BLOCK=triton.next_power_of_2(channels), FEW=_FEW, MANY=_MANY,
            )  # fmt: skip
    return out


def unmerge(y: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
    """Row ``slot[b, n]`` of ``y`` ``[S, C]`` for every token: ``[B, N, C]``."""
    y = y.contiguous()
    channels = y.shape[1]
    out = torch.empty(*slot.shape, channels, dtype=y.dtype, device=y.device)
    if out.numel():
        with _on(y):
            grid = (triton.cdiv(slot.numel(), 4),)
            _unmerge[grid](y, slot, out, slot.numel(), channels, ROWS=4, BLOCK=triton.next_power_of_2(channels))
    return out


def _on(x: torch.Tensor):
    """Kernels run on the current device; this makes it the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
