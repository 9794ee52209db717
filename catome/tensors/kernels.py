"""The operations of `catome.tensors.matching` and `catome.tensors.plan` as Triton kernels, for CUDA devices.

The plain torch versions are the reference; these give the same values up to the rounding of float32 and write
nothing that is not needed: the similarity matrix never exists, the sum over a group of merged tokens is taken
in one order (so that two runs are equal to the bit), and keys and values are merged in one pass that also
writes the weights of groups. With ``TRITON_INTERPRET=1`` in the environment they run on the CPU, to be
tested; `tests/core/test_kernel_table.py` compiles each for several GPUs where there is none.
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
# tokens of a group that are read at a time: most groups have few, a plain sky has thousands
_FEW, _MANY = 4, 8
_WIDEST = 256  # numbers of a token that one program takes; more would spill registers


def usable(x: torch.Tensor) -> bool:
    """Return True if these kernels take ``x``: on a CUDA device, float16, bfloat16 or float32, no gradient
    asked for."""
    return (
        triton is not None
        and x.is_cuda
        and x.dtype in DTYPES
        and not (torch.is_grad_enabled() and x.requires_grad)
    )


if triton is not None:

    @triton.jit
    def _squares(x, out, tokens, channels, of_image, of_token, of_channel, BLOCK: tl.constexpr):  # noqa: N803
        """The sum of squares of each token; NaN for one that is not finite."""
        token = tl.program_id(0).to(tl.int64)
        columns = tl.arange(0, BLOCK)
        at = x + token // tokens * of_image + token % tokens * of_token + columns * of_channel
        value = tl.load(at, mask=columns < channels, other=0.0).to(tl.float32)
        # what is not finite gives NaN times 0; everything else gives 0
        poison = tl.sum(value * 0.0, 0)
        tl.store(out + token, tl.sum(value * value, 0) + poison)

    @triton.jit
    def _best(
        x,
        factor,
        shift,
        src,
        dst,
        highest_of,
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
        factor += image * tokens
        shift += image * tokens
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
                a = tl.load(
                    x + source[:, None] * of_token + channel[None, :] * of_channel,
                    mask=held[None, :],
                    other=0.0,
                )
                b = tl.load(
                    x + target[None, :] * of_token + channel[:, None] * of_channel,
                    mask=held[:, None],
                    other=0.0,
                )
                if WIDEN:
                    a = a.to(tl.float32)
                    b = b.to(tl.float32)
                product = tl.dot(a, b, product, input_precision=PRECISION)
            scale = tl.load(factor + target, mask=column < targets, other=float("nan"))
            offset = tl.load(shift + target, mask=column < targets, other=0.0)
            chosen = scale == scale  # not NaN: a whole dst token
            value = tl.where(chosen[None, :], product * scale[None, :] + offset[None, :], float("-inf"))
            here = tl.max(value, 1)
            better = here > highest  # of equal ones the first stays
            partner = tl.where(better, first + tl.argmax(value, 1).to(tl.int32), partner)
            highest = tl.where(better, here, highest)
        at = image * sources + row
        tl.store(highest_of + at, highest, mask=row < sources)
        tl.store(best + at, tl.load(dst + partner), mask=row < sources)

    @triton.jit
    def _sum_of(x, order, start, end, at, held, tokens, of_image, of_token, ROWS: tl.constexpr):  # noqa: N803
        """The sum of tokens ``order[start:end]``, ROWS of them at most; ``at`` says where in a token its
        numbers are."""
        place = start + tl.arange(0, ROWS)
        token = tl.load(order + place, mask=place < end, other=0).to(tl.int64)
        row = token // tokens * of_image + token % tokens * of_token
        inside = (place < end)[:, None] & held[None, :]
        return tl.sum(tl.load(x + row[:, None] + at[None, :], mask=inside, other=0.0).to(tl.float32), 0)

    @triton.jit
    def _group_mean(
        x,
        order,
        begin,
        end,
        at,
        held,
        tokens,
        of_image,
        of_token,
        FEW: tl.constexpr,  # noqa: N803
        MANY: tl.constexpr,  # noqa: N803
    ):
        """The mean of tokens ``order[begin:end]``, in float32."""
        total = _sum_of(x, order, begin, end, at, held, tokens, of_image, of_token, FEW)
        for start in range(begin + FEW, end, MANY):
            total += _sum_of(x, order, start, end, at, held, tokens, of_image, of_token, MANY)
        return total / (end - begin).to(tl.float32)

    @triton.jit
    def _merge(
        x,
        order,
        offsets,
        out,
        tokens,
        channels,
        of_image,
        of_token,
        of_channel,
        FEW: tl.constexpr,  # noqa: N803
        MANY: tl.constexpr,  # noqa: N803
        BLOCK: tl.constexpr,  # noqa: N803
    ):
        slot = tl.program_id(0).to(tl.int64)
        columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        held = columns < channels
        begin = tl.load(offsets + slot)
        end = tl.load(offsets + slot + 1)
        at = columns * of_channel
        mean = _group_mean(x, order, begin, end, at, held, tokens, of_image, of_token, FEW, MANY)
        tl.store(out + slot * channels + columns, mean.to(out.dtype.element_ty), mask=held)

    @triton.jit
    def _merge_keys(
        key,
        value,
        order,
        offsets,
        first_slot,
        keys,
        values,
        log_factor,
        tokens,
        heads,
        channels,
        key_of_image,
        key_of_head,
        key_of_token,
        key_of_channel,
        value_of_image,
        value_of_head,
        value_of_token,
        value_of_channel,
        out_of_image,
        out_of_head,
        WIDTH: tl.constexpr,  # noqa: N803
        WEIGHTED: tl.constexpr,  # noqa: N803
        FEW: tl.constexpr,  # noqa: N803
        MANY: tl.constexpr,  # noqa: N803
        BLOCK: tl.constexpr,  # noqa: N803
    ):
        slot = tl.program_id(0).to(tl.int64)
        begin = tl.load(offsets + slot)
        end = tl.load(offsets + slot + 1)
        image = tl.load(order + begin) // tokens
        row = slot - tl.load(first_slot + image)
        # The columns are those of what is written: WIDTH for each head, of which the first ``channels`` are
        # read.
        columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        head = columns // WIDTH
        channel = columns % WIDTH
        written = head < heads
        held = written & (channel < channels)
        at = head * key_of_head + channel * key_of_channel
        mean = _group_mean(key, order, begin, end, at, held, tokens, key_of_image, key_of_token, FEW, MANY)
        if WEIGHTED:
            size = (end - begin).to(tl.float32)
            mean = tl.where(channel == channels, tl.log(size) * log_factor, mean)
        out = image * out_of_image + head * out_of_head + row * WIDTH + channel
        tl.store(keys + out, mean.to(keys.dtype.element_ty), mask=written)
        at = head * value_of_head + channel * value_of_channel
        mean = _group_mean(
            value, order, begin, end, at, held, tokens, value_of_image, value_of_token, FEW, MANY
        )
        tl.store(values + out, mean.to(values.dtype.element_ty), mask=written)

    @triton.jit
    def _unmerge(y, slot, out, rows, channels, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        columns = tl.arange(0, BLOCK)
        inside = (row < rows)[:, None] & (columns < channels)[None, :]
        source = tl.load(slot + row, mask=row < rows, other=0).to(tl.int64)
        value = tl.load(y + source[:, None] * channels + columns[None, :], mask=inside, other=0.0)
        tl.store(out + row[:, None] * channels + columns[None, :], value, mask=inside)


def best_matches_of(
    tokens: torch.Tensor, src: torch.Tensor, dst: torch.Tensor, measure: str = "cosine"
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `catome.tensors.matching.best_matches_of`: similarity (float32) and index of each src token's best
    dst, two ``[B, S]``.

    Products are of the tokens as they are, in float32 (three TF32 products for float32 tokens), and scaled
    afterwards; among equally similar dst tokens the first is taken. Memory: nothing beside the result and a
    few numbers for each token."""
    images, count, channels = tokens.shape
    squares = torch.empty(images, count, dtype=torch.float32, device=tokens.device)
    strides = tokens.stride()
    highest = torch.empty(images, len(src), dtype=torch.float32, device=tokens.device)
    best = torch.empty(images, len(src), dtype=torch.int64, device=tokens.device)
    if not highest.numel():
        return highest, best
    wide = tokens.dtype == torch.float32  # whose products take three times the registers
    with _on(tokens):
        _squares[(images * count,)](
            tokens, squares, count, channels, *strides, BLOCK=triton.next_power_of_2(channels)
        )  # fmt: skip
        if measure == "cosine":
            factor = 1 / squares.sqrt().clamp(min=1e-12)
            shift = torch.zeros_like(squares)
        else:
            factor = torch.where(squares.isnan(), squares, 1.0)
            shift = -squares / 2
        _best[(triton.cdiv(len(src), 64), images)](
            tokens, factor, shift, src, dst, highest, best, count, len(src), len(dst), channels, *strides,
            PRECISION="tf32x3" if wide else "ieee", SRC=64, DST=64 if wide else 128,
            CHANNELS=16 if wide else 32, WIDEN=not tokens.is_cuda,
        )  # fmt: skip
    if measure == "cosine":
        return highest * factor[:, src], best
    similarity = 1 + (highest + shift[:, src]) / _variance(tokens, squares)
    return torch.where(similarity.isfinite(), similarity.clamp(-1, 1), similarity), best


def _variance(tokens: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """The mean square of an image's tokens less their mean, ``[B, 1]``; of the finite ones, and 1 where all
    are equal."""
    finite = squares.isfinite()
    count = finite.sum(1).clamp(min=1)
    mean = torch.where(finite[..., None], tokens, 0).sum(1, dtype=torch.float32) / count[:, None]
    variance = torch.where(finite, squares, 0).sum(1) / count - mean.square().sum(1)
    return torch.where(variance > 0, variance, 1.0)[:, None]


def merge(x: torch.Tensor, order: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """The mean of every group of tokens: ``[B, N, C]`` to ``[S, C]``, summed in float32 in the order of
    ``order``.

    Args:
        x: ``[B, N, C]``, of any strides.
        order: ``[B * N]``, the tokens of all images, group by group.
        offsets: ``[S + 1]``, where in ``order`` each group begins.
    """
    count, channels = x.shape[1:]
    groups = len(offsets) - 1
    out = torch.empty(groups, channels, dtype=x.dtype, device=x.device)
    if out.numel():
        block = _block(channels)
        with _on(x):
            _merge[(groups, triton.cdiv(channels, block))](
                x, order, offsets, out, count, channels, *x.stride(), FEW=_FEW, MANY=_MANY, BLOCK=block
            )  # fmt: skip
    return out


def merge_keys(
    key: torch.Tensor,
    value: torch.Tensor,
    order: torch.Tensor,
    offsets: torch.Tensor,
    first_slot: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    log_factor: float | None = None,
) -> None:
    """Write the means of keys and of values to their rows of ``keys`` and ``values``, in one pass over both.

    Args:
        key, value: ``[B, H, N, D]``, of any strides.
        order, offsets: as in `merge`.
        first_slot: ``[B + 1]``, the first group of each image.
        keys, values: ``[B, H, L, W]`` with W >= D, of the same strides, the last two of them (W, 1). Image
            ``b`` fills as many rows as it has groups; columns from D on get zeros.
        log_factor: write the logarithm of each group's size, times this, to column D of ``keys``; needs W >
            D.
    """
    _, heads, count, channels = key.shape
    width = keys.shape[3]
    block = _block(heads * width)
    with _on(key):
        _merge_keys[(len(offsets) - 1, triton.cdiv(heads * width, block))](
            key, value, order, offsets, first_slot, keys, values, log_factor or 0.0, count, heads, channels,
            *key.stride(), *value.stride(), *keys.stride()[:2],
            WIDTH=width, WEIGHTED=log_factor is not None, FEW=_FEW, MANY=_MANY, BLOCK=block,
        )  # fmt: skip


def _block(columns: int) -> int:
    """Columns that one program of the merging kernels takes."""
    return min(triton.next_power_of_2(columns), _WIDEST)


def unmerge(y: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
    """Row ``slot[b, n]`` of ``y`` ``[S, C]`` for every token: ``[B, N, C]``."""
    y = y.contiguous()
    channels = y.shape[1]
    out = torch.empty(*slot.shape, channels, dtype=y.dtype, device=y.device)
    if out.numel():
        with _on(y):
            grid = (triton.cdiv(slot.numel(), 4),)
            _unmerge[grid](
                y, slot, out, slot.numel(), channels, ROWS=4, BLOCK=triton.next_power_of_2(channels)
            )
    return out


def _on(x: torch.Tensor):
    """Kernels run on the current device; this makes it the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
