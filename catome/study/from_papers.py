"""Methods that no registry has, written plainly from their papers for the comparison.

Each is what its paper describes for Stable Diffusion's topmost self-attentions, at its simplest: pairs are
found afresh at every step. Where a paper leaves something open, the docstring says what is done here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from catome.study.methods import Method, fewer_keys, hooked
from catome.tensors.matching import best_matches
from catome.tensors.plan import MergePlan, make_plan, pack

PATCH = 2
"""Edge of the windows in tokens, as in ToMe for Stable Diffusion."""


def average_pooling(factor: int = 2) -> Method:
    """Keys and values averaged over windows of ``factor`` x ``factor`` tokens; all queries are kept. ToDo's
    paper compares with it (arXiv 2402.13573)."""

    def reduce(grid: torch.Tensor) -> torch.Tensor:
        pooled = F.avg_pool2d(grid.permute(0, 3, 1, 2), factor, ceil_mode=True)
        return pooled.flatten(2).transpose(1, 2)

    return Method(f"average pooling(factor={factor})", "average pooling", fewer_keys(reduce))


def tofu(ratio: float) -> Method:
    """Token fusion (arXiv 2312.01026): a share of the tokens is pruned in the first half of the blocks, and
    merged in the rest.

    Pairs are ToMe's. A pruned token is left out, and gets what its partner gets. A merged group is the mean
    of its tokens, scaled to the norm of the longest of them, which the paper calls MLERP. That the first half
    of the U-Net's blocks prunes is what the paper says of transformers in general."""

    def fuse(depth: float, hidden: torch.Tensor, grid: tuple[int, int]) -> tuple[torch.Tensor, MergePlan]:
        plan = make_plan(best_matches(hidden, grid, (PATCH, PATCH), find_duplicates=False), ratio=ratio)
        return (kept(hidden, plan) if depth < 0.5 else mlerp(hidden, plan)), plan

    return Method(f"ToFu(ratio={ratio:g})", "ToFu", _with_fewer_tokens(fuse))


def sito(ratio: float, noise: float = 0.1) -> Method:
    """Similarity-based token pruning (SiTo, AAAI 2025): a share of the tokens is left out, and copies what
    its base token gets.

    In each window of 2 x 2 tokens the one that is most similar to all tokens of the image, by the sum of
    cosines, is the base token; normal noise makes the choice differ from step to step. What is most similar
    to a base token is left out. The noise is ``noise`` times the standard deviation of the sums here, from a
    generator of its own, which begins with the method."""

    @contextmanager
    def applied(pipe) -> Iterator:
        generator = torch.Generator().manual_seed(0)

        def prune(
            depth: float, hidden: torch.Tensor, grid: tuple[int, int]
        ) -> tuple[torch.Tensor, MergePlan]:
            plan = similarity_plan(hidden, grid, ratio, noise, generator)
            return kept(hidden, plan), plan

        with _with_fewer_tokens(prune)(pipe):
            yield pipe

    return Method(f"SiTo(ratio={ratio:g}, noise={noise:g})", "SiTo", applied)


def _with_fewer_tokens(reduce: Callable) -> Callable:
    """The ``applied`` of a `Method` that attends on fewer tokens, and copies the results back.

    Args:
        reduce: ``reduce(depth, hidden, grid)`` gives the tokens to attend on ``[B, M, C]`` and the plan by
        which they were made.
    """

    @contextmanager
    def applied(pipe) -> Iterator:
        plans = []

        def before(depth, hidden, grid):
            fewer, plan = reduce(depth, hidden, grid)
            plans.append(plan)
            return fewer, None

        def after(output):
            return plans.pop().unmerge(output.flatten(0, 1))

        with hooked(pipe, before, after):
            yield pipe

    return applied


def kept(hidden: torch.Tensor, plan: MergePlan) -> torch.Tensor:
    """The tokens that a plan keeps, as they are: ``[B, M, C]`` of ``[B, N, C]``, for a plan that keeps
    equally many of each image."""
    itself = plan.target == torch.arange(hidden.shape[1], device=hidden.device)
    return hidden[itself].view(len(hidden), -1, hidden.shape[2])


def mlerp(hidden: torch.Tensor, plan: MergePlan) -> torch.Tensor:
    """The mean of each group, scaled to the norm of its longest token: ``[B, M, C]`` of ``[B, N, C]``, for
    such a plan as well."""
    mean = plan.merge(hidden)
    norms = hidden.norm(dim=-1).flatten()
    longest = torch.zeros(len(mean), device=hidden.device, dtype=norms.dtype)
    longest = longest.scatter_reduce(0, plan.slot.flatten(), norms, "amax")
    scaled = F.normalize(mean, dim=-1) * longest[:, None]
    return scaled.to(hidden.dtype).view(len(hidden), -1, hidden.shape[2])


def similarity_plan(
    hidden: torch.Tensor, grid: tuple[int, int], ratio: float, noise: float, generator: torch.Generator
) -> MergePlan:
    """The plan of SiTo, of tokens ``[B, N, C]``: who is left out, and whom it copies.

    Raises:
        ValueError: if the grid has no whole windows.
    """
    height, width = grid
    if height % PATCH or width % PATCH:
        raise ValueError(f"grid={grid!r}: SiTo is written for grids of whole {PATCH}x{PATCH} windows")
    unit = F.normalize(hidden.float(), dim=-1)
    cosines = unit @ unit.transpose(1, 2)  # [B, N, N]
    score = cosines.sum(-1)
    drawn = torch.randn(score.shape, generator=generator).to(score.device)
    score = score + noise * score.std(-1, keepdim=True) * drawn
    base = _best_of_windows(score, grid)  # [B, N], whether a token is the base token of its window
    cosines = cosines.masked_fill(~base[:, None, :], -2.0)
    similarity, partner = cosines.max(-1)
    count = min(int(ratio * height * width), height * width - int(base[0].sum()))
    left_out = similarity.masked_fill(base, -3.0).topk(count, dim=1).indices
    target = torch.arange(height * width, device=hidden.device).repeat(len(hidden), 1)
    target.scatter_(1, left_out, partner.gather(1, left_out))
    return pack(target, (height * width - count,) * len(hidden))


def _best_of_windows(score: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Mark the token with the highest score of each window, ``[B, N]``."""
    height, width = grid
    windows = score.view(-1, height // PATCH, PATCH, width // PATCH, PATCH).permute(0, 1, 3, 2, 4)
    highest = windows.flatten(3).argmax(-1)
    chosen = F.one_hot(highest, PATCH * PATCH).view(windows.shape).permute(0, 1, 3, 2, 4)
    return chosen.reshape(score.shape).bool()
