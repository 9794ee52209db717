r"""Bipartite soft matching: for every src token its most similar dst token. Plain torch, no state.

Tokens of a grid are split into *dst*, one of every ``stride`` window, and *src*, all the others (Bolya &
Hoffman, "Token Merging for Fast Stable Diffusion", arXiv 2303.17604). Each src token's best partner is the
dst token of highest similarity; who is then merged is `catome.tensors.plan`'s business.

How similar two tokens are can be measured in two ways:

- "cosine", as ToMe and the paper do: the cosine of the angle between them, seen from the origin.
- "distance" (beyond the paper): how near they lie, on the scale of their image,

  .. math:: s_{ij} = 1 - \frac{|x_i - x_j|^2}{2 \sigma^2}, \qquad \sigma^2 = \frac1N \sum_n |x_n - \bar x|^2,

  which is 1 for equal tokens and 0, on average, for two tokens drawn at random from the image. It is cut off
  at -1, so that both measures have one range.

What merging changes in attention is decided by differences of keys and of values within a group
(`catome.tensors.attention`), and these are linear in differences of tokens. A vector that all tokens have in
common is no difference: it changes no attention weight, and no distance. But it makes every cosine larger.
Some layers of a network have a large common vector and others a small one, so that one threshold for cosines
merges far too much here and too little there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F

from catome import checks
from catome.tensors import kernels

Measure = Literal["cosine", "distance"]
MEASURES = ("cosine", "distance")

_CHUNK_ELEMENTS = 1 << 25  # of the similarity matrix in memory at a time
# on processors whose AVX-512 the default library leaves alone, oneDNN's product takes less than half the time
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@dataclass(frozen=True)
class Matches:
    """The best partner of every src token, for ``B`` images of ``N`` tokens, of which ``S`` are src and ``D``
    dst.

    Attributes:
        src: ``[S]`` int64, indices of the src tokens, ascending.
        dst: ``[D]`` int64, indices of the dst tokens, ascending.
        best: ``[B, S]`` int64, the index (into the N tokens) of each src token's most similar dst token.
        similarity: ``[B, S]`` float32, how similar they are.
        duplicate: ``[B, S]`` int64, the first dst token that equals the src token exactly, or -1; None if not
            asked for.
        grid: ``(height, width)`` of the token grid, ``height * width == N``; of one frame, where there are
            several.
    """

    src: torch.Tensor
    dst: torch.Tensor
    best: torch.Tensor
    similarity: torch.Tensor
    duplicate: torch.Tensor | None
    grid: tuple[int, int]


@checks.suggests_arguments
def split_tokens(
    grid: tuple[int, int],
    stride: tuple[int, int] = (2, 2),
    dst: checks.Dst = "top_left",
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split a token grid into src and dst (paper, Section IV: dst is always the top-left token).

    Only complete windows have a dst token: where ``stride`` does not divide ``grid``, the tokens left over
    are src.

    Args:
        grid: ``(height, width)`` in tokens.
        stride: ``(vertical, horizontal)`` size of a window in tokens.
        dst: "top_left", or "random" for a random token of every window, the same for all images of a batch.
        generator: CPU generator that "random" draws from; by default torch's global one.
        device: where the indices are to live.

    Returns:
        ``(src, dst)``, int64 index tensors ``[S]`` and ``[D]``, each ascending; not to be written to.

    Raises:
        ValueError: if the grid is smaller than one window, or an argument is out of range.
        TypeError: for an argument of another type.
    """
    (height, width), (sy, sx) = checks.check_windows(grid, stride)
    checks.check_generator(generator)
    device = checks.check_device("device", device)
    windows = (height // sy) * (width // sx)
    if checks.check_dst(dst) == "random":
        return _split(
            (height, width),
            (sy, sx),
            torch.randint(sy * sx, (windows,), generator=generator, device="cpu"),
            device,
        )
    return _top_left((height, width), (sy, sx), device)


@lru_cache(maxsize=64)
def _top_left(
    grid: tuple[int, int], stride: tuple[int, int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Kept, for each copy to a GPU would make it wait; not as inference tensors, which autograd refuses
    later."""
    with torch.inference_mode(False):
        windows = (grid[0] // stride[0]) * (grid[1] // stride[1])
        return _split(grid, stride, torch.zeros(windows, dtype=torch.int64, device="cpu"), device)


def _split(grid, stride, within: torch.Tensor, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every window the token at place ``within`` is dst."""
    height, width = grid
    sy, sx = stride
    columns = width // sx
    window = torch.arange(len(within), device="cpu")
    y = window // columns * sy + within // sx
    x = window % columns * sx + within % sx
    is_dst = torch.zeros(height * width, dtype=torch.bool, device="cpu")
    is_dst[y * width + x] = True
    tokens = torch.arange(height * width, device="cpu")
    return tokens[~is_dst].to(device), tokens[is_dst].to(device)


@checks.suggests_arguments
@torch.no_grad()
def best_matches(
    tokens: torch.Tensor,
    grid: tuple[int, int],
    stride: tuple[int, int] = (2, 2),
    dst: checks.Dst = "top_left",
    generator: torch.Generator | None = None,
    find_duplicates: bool = True,
    frames: int = 1,
    measure: Measure = "cosine",
) -> Matches:
    """Find every src token's most similar dst token.

    Similarities are computed in float32 whatever the dtype of ``tokens`` and also under autocast (float64
    stays float64), image by image: an image's result does not depend on the others in the batch. A token with
    a NaN or infinity is like no other: a src token has similarity NaN then, a dst token is nobody's partner.
    A zero token has the cosine 0 to all.

    Args:
        tokens: ``[B, N, C]`` floating point; for Stable Diffusion the input of the transformer block.
        grid: ``(height, width)`` with ``height * width == N``.
        stride, dst, generator: see `split_tokens`.
        find_duplicates: fill in `Matches.duplicate`, which only a threshold of exactly 1.0 needs.
        frames: of a video, whose frames lie behind each other; each is split alike, and tokens find partners
            in all of them.
        measure: "cosine" or "distance" (see the module's first lines).

    Returns:
        The `Matches`.

    Raises:
        ValueError: if ``tokens`` is not ``[B, N, C]``, ``N`` does not fit ``grid`` or ``C`` is 0; and see
            `split_tokens`.
        TypeError: if ``tokens`` is not a dense floating-point tensor of at least 16 bits; and see
            `split_tokens`.
    """
    grid = checks.check_tokens(tokens, grid, checks.check_integer("frames", frames, 1))
    checks.check_flag("find_duplicates", find_duplicates)
    checks.check_choice("measure", measure, MEASURES)
    src, dst_tokens = split_tokens(grid, stride, dst, generator, tokens.device)
    if frames > 1:
        offsets = torch.arange(frames, device=tokens.device)[:, None] * (grid[0] * grid[1])
        src = (src + offsets).flatten()
        dst_tokens = (dst_tokens + offsets).flatten()
    similarity, best = best_matches_of(tokens, src, dst_tokens, measure)
    duplicate = _duplicates(tokens, src, dst_tokens) if find_duplicates else None
    return Matches(src, dst_tokens, best, similarity, duplicate, grid)


def best_matches_of(
    tokens: torch.Tensor, src: torch.Tensor, dst: torch.Tensor, measure: Measure = "cosine"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarity and index of the most similar of the tokens ``dst`` ``[D]`` for each of ``src`` ``[S]``: two
    ``[B, S]``.

    ``tokens`` are ``[B, N, C]``; see `best_matches`."""
    if kernels.usable(tokens):
        return kernels.best_matches_of(tokens, src, dst, measure)
    wide = torch.promote_types(tokens.dtype, torch.float32)
    of_image = _by_cosine if measure == "cosine" else _by_distance
    similarities = [tokens.new_empty(0, dtype=wide)]
    indices = [src.new_empty(0)]
    with torch.autocast(tokens.device.type, enabled=False):
        # each in memory of its own: how a product is rounded depends on where its factors begin
        for image in tokens:
            # a U-Net's tokens lie channel by channel, in which order norms and selections take twice the time
            similarity, index = of_image(image.to(wide).contiguous(), src, dst)
            similarities.append(similarity)
            indices.append(index)
    shape = (len(tokens), len(src))
    return torch.cat(similarities).view(shape), dst[torch.cat(indices).view(shape)]


def _by_cosine(
    image: torch.Tensor, src: torch.Tensor, dst: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and place in ``dst`` of the best dst token, for each src token of one image ``[N, C]``."""
    unit = F.normalize(image, dim=-1)
    a = unit.index_select(0, src)
    b = unit.index_select(0, dst)
    # sums of the unit vectors tell the dst tokens that nobody may choose; they count as -inf
    finite = b.sum(1).isfinite()
    b = torch.where(finite[:, None], b, 0)
    return _highest(a, b, torch.where(finite, 0.0, -math.inf).to(b.dtype))


def _by_distance(
    image: torch.Tensor, src: torch.Tensor, dst: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarity by distance and place in ``dst`` of the nearest dst token, for each src token of one image
    ``[N, C]``."""
    centred, variance = centre(image)
    half_squares = centred.square().sum(1) / 2
    half_squares = torch.where(half_squares.isfinite(), half_squares, math.nan)
    b = centred.index_select(0, dst)
    # of -|a - b|^2 / 2 = ab - |b|^2 / 2 - |a|^2 / 2 the last term is the same for all dst tokens
    bias = -half_squares.index_select(0, dst)
    finite = bias.isfinite()
    b = torch.where(finite[:, None], b, 0)
    highest, index = _highest(centred.index_select(0, src), b, torch.where(finite, bias, -math.inf))
    return within_range(1 + (highest - half_squares.index_select(0, src)) / variance), index


def within_range(similarity: torch.Tensor) -> torch.Tensor:
    """Similarities by distance, cut off at -1 and 1; minus infinity and NaN, of tokens that are like no
    other, stay."""
    return torch.where(similarity.isfinite(), similarity.clamp(-1, 1), similarity)


def centre(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens ``[..., N, C]`` less their mean, and the mean square ``[..., 1]`` of what is left; of the finite
    tokens.

    Where all are equal the mean square is taken as 1."""
    finite = tokens.sum(-1, keepdim=True).isfinite()
    count = finite.sum(-2, keepdim=True).clamp(min=1)
    mean = torch.where(finite, tokens, 0).sum(-2, keepdim=True) / count
    centred = tokens - mean
    variance = torch.where(finite, centred, 0).square().sum((-2, -1)) / count[..., 0, 0]
    return centred, torch.where(variance > 0, variance, 1.0)[..., None]


def _highest(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of ``a @ b.T + bias`` in each row, and its place."""
    rows = max(1, _CHUNK_ELEMENTS // len(b))
    found = [_products(chunk, b, bias).max(-1) for chunk in a.split(rows)]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


def _products(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """``a @ b.T + bias`` of ``[S, C]``, ``[D, C]`` and ``[D]``."""
    if _ONEDNN and a.device.type == "cpu" and a.dtype == torch.float32:
        return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return torch.addmm(bias, a, b.t())


def _duplicates(tokens: torch.Tensor, src: torch.Tensor, dst: torch.Tensor) -> torch.Tensor:
    """The first dst token that equals each src token bit by bit (but 0 equals -0), or -1: ``[B, S]``.

    Hashes in integers, which add up to the same in any order, find the candidate; the tokens themselves
    decide."""
    tokens = tokens + 0.0  # -0 becomes 0
    bits = tokens.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tokens.element_size()])
    generator = torch.Generator("cpu").manual_seed(0)
    channels = tokens.shape[-1]
    factors = torch.randint(-(2**63), 2**63 - 1, (channels,), generator=generator, device="cpu").to(
        tokens.device
    )
    hashes = (bits.long() * factors).sum(-1)
    ordered, order = hashes[:, dst].sort(dim=1, stable=True)
    place = torch.searchsorted(ordered, hashes[:, src].contiguous()).clamp(max=len(dst) - 1)
    candidate = dst[order.gather(1, place)]
    partner = tokens.gather(1, candidate[..., None].expand(-1, -1, tokens.shape[-1]))
    return torch.where(((tokens[:, src] == partner) & partner.isfinite()).all(-1), candidate, -1)
