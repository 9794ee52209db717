"""Bipartite soft matching: for every src token its most similar dst token. Plain torch, no state.

Tokens of a grid are split into *dst*, one of every ``stride`` window, and *src*, all the others (Bolya & Hoffman, "Token
Merging for Fast Stable Diffusion", arXiv 2303.17604). Each src token's best partner is the dst token of highest cosine
similarity; who is then merged is `catome.plan`'s business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from catome.checks import Dst, check_dst, check_pair, check_stride

_CHUNK_ELEMENTS = 1 << 25  # of the similarity matrix in memory at a time


@dataclass(frozen=True)
class Matches:
    """The best partner of every src token, for ``B`` images of ``N`` tokens, of which ``S`` are src and ``D`` dst.

    Attributes:
        src: ``[S]`` int64, indices of the src tokens, ascending.
        dst: ``[D]`` int64, indices of the dst tokens, ascending.
        best: ``[B, S]`` int64, the index (into the N tokens) of each src token's most similar dst token.
        similarity: ``[B, S]`` float32, their cosine similarity.
        identical: ``[B, S]`` bool, whether the src token equals that dst token exactly; None if it was not asked for.
        grid: ``(height, width)`` of the token grid, ``height * width == N``.
    """

    src: torch.Tensor
    dst: torch.Tensor
    best: torch.Tensor
    similarity: torch.Tensor
    identical: torch.Tensor | None
    grid: tuple[int, int]


def split_tokens(
    grid: tuple[int, int],
    stride: tuple[int, int] = (2, 2),
    dst: Dst = "top_left",
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split a token grid into src and dst (paper, Section IV: dst is always the top-left token).

    Only complete windows have a dst token: where ``stride`` does not divide ``grid``, the tokens left over are src.

    Args:
        grid: ``(height, width)`` in tokens.
        stride: ``(vertical, horizontal)`` size of a window in tokens.
        dst: "top_left", or "random" for a random token of every window, the same for all images of a batch.
        generator: CPU generator that "random" draws from; by default torch's global one.
        device: where the indices are to live.

    Returns:
        ``(src, dst)``, int64 index tensors ``[S]`` and ``[D]``, each ascending.

    Raises:
        ValueError: if the grid is smaller than one window, or an argument is out of range.
    """
    (height, width), (sy, sx) = check_pair("grid", grid), check_stride(stride)
    rows, columns = height // sy, width // sx
    if rows * columns == 0:
        raise ValueError(f"grid={(height, width)} is smaller than one window of stride={(sy, sx)}")
    within = torch.zeros(rows * columns, dtype=torch.int64)
    if check_dst(dst) == "random":
        within = torch.randint(sy * sx, (rows * columns,), generator=generator)
    window = torch.arange(rows * columns)
    y, x = window // columns * sy + within // sx, window % columns * sx + within % sx
    is_dst = torch.zeros(height * width, dtype=torch.bool)
    is_dst[y * width + x] = True
    tokens = torch.arange(height * width)
    return tokens[~is_dst].to(device), tokens[is_dst].to(device)


@torch.no_grad()
def best_matches(
    tokens: torch.Tensor,
    grid: tuple[int, int],
    stride: tuple[int, int] = (2, 2),
    dst: Dst = "top_left",
    generator: torch.Generator | None = None,
    find_identical: bool = True,
) -> Matches:
    """Find every src token's most similar dst token.

    Similarities are cosines, computed in float32 whatever the dtype of ``tokens`` (float64 stays float64), image by image:
    an image's result does not depend on the others in the batch. A token with a NaN or infinity matches nothing (similarity
    NaN); a zero token has similarity 0 to all.

    Args:
        tokens: ``[B, N, C]`` floating point; for Stable Diffusion the input of the transformer block.
        grid: ``(height, width)`` with ``height * width == N``.
        stride, dst, generator: see `split_tokens`.
        find_identical: fill in `Matches.identical`, which only a threshold of exactly 1.0 needs.

    Returns:
        The `Matches`.

    Raises:
        ValueError: if ``tokens`` is not ``[B, N, C]`` or ``N`` does not fit ``grid``; and see `split_tokens`.
        TypeError: if ``tokens`` is not a floating-point tensor.
    """
    if not isinstance(tokens, torch.Tensor) or not tokens.is_floating_point():
        raise TypeError(f"tokens must be a floating-point tensor, not {getattr(tokens, 'dtype', type(tokens).__name__)}")
    grid = check_pair("grid", grid)
    if tokens.ndim != 3 or tokens.shape[1] != math.prod(grid):
        raise ValueError(f"tokens of shape {list(tokens.shape)} must be [B, N, C] with N = {math.prod(grid)} for grid={grid}")
    src, dst_tokens = split_tokens(grid, stride, dst, generator, tokens.device)
    unit = F.normalize(tokens.to(torch.promote_types(tokens.dtype, torch.float32)), dim=-1)
    a, b = unit[:, src], unit[:, dst_tokens].transpose(1, 2)
    rows = max(1, _CHUNK_ELEMENTS // len(dst_tokens))
    found = [(chunk @ b[image]).max(-1) for image in range(len(a)) for chunk in a[image].split(rows)]
    similarity = torch.cat([unit.new_empty(0), *(part.values for part in found)]).view(len(a), len(src))
    index = torch.cat([src.new_empty(0), *(part.indices for part in found)]).view(len(a), len(src))
    best = dst_tokens[index]
    identical = None
    if find_identical:
        partner = tokens.gather(1, best[..., None].expand(-1, -1, tokens.shape[-1]))
        identical = (tokens[:, src] == partner).all(-1)
    return Matches(src, dst_tokens, best, similarity, identical, grid)
