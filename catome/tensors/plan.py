"""Merge plans: which tokens become one, as a token -> slot map over the packed tokens of all images.

Every image keeps as many tokens as *it* needs; the tokens left of all images lie behind each other in one
packed ``[S, C]`` tensor. Merging is then one segment mean, unmerging one gather, and no image has to merge a
pair below the threshold because its neighbour in the batch has more pairs above it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from catome import checks
from catome.tensors import kernels
from catome.tensors.matching import Matches, Measure, best_matches


@dataclass(frozen=True)
class MergePlan:
    """The plan of who merges into whom, for ``B`` images of ``N`` tokens.

    Its tensors are plain: it can be pickled, copied and moved.

    Attributes:
        target: ``[B, N]`` int64, for every token the token of its image whose place it takes: its dst if it
            is merged, else itself.
        slot: ``[B, N]`` int64, for every token its row in the packed tensor. Rows are image by image, in
            token order.
        lengths: number of packed rows of each image; their sum is ``S``.
    """

    target: torch.Tensor
    slot: torch.Tensor
    lengths: tuple[int, ...]

    @property
    def merged_share(self) -> torch.Tensor:
        """``[B]`` float32 on the CPU: the share of each image's tokens that are merged away."""
        return 1 - torch.tensor(self.lengths, dtype=torch.float32, device="cpu") / self.slot.shape[1]

    @property
    def ragged(self) -> bool:
        """True if images keep different numbers of tokens."""
        return len(set(self.lengths)) > 1

    @property
    def merges(self) -> bool:
        """True if any token of any image is merged."""
        return sum(self.lengths) < self.slot.numel()

    @cached_property
    def sizes(self) -> torch.Tensor:
        """The number of tokens in each image's slots, ``[B, L]`` float32, L of the image that keeps most; 0
        behind the last."""
        with torch.inference_mode(False):  # autograd may read it later
            ones = torch.ones(self.slot.numel(), device=self.slot.device)
            sizes = ones.new_zeros(sum(self.lengths)).index_add_(0, self.slot.flatten(), ones)
            if not self.ragged:
                return sizes.view(len(self.lengths), -1)
            return torch.nn.utils.rnn.pad_sequence(sizes.split(self.lengths), batch_first=True)

    @cached_property
    def groups(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All tokens ``[B * N]``, slot by slot, and where in them each slot begins ``[S + 1]``."""
        slot = self.slot.flatten()
        order = slot.argsort(stable=True)
        ends = torch.searchsorted(slot[order], torch.arange(sum(self.lengths) + 1, device=slot.device))
        return order, ends

    @cached_property
    def bounds(self) -> torch.Tensor:
        """The places in the packed tokens where the images begin, and last the number of these tokens: ``[B +
        1]`` int64."""
        return F.pad(self.slot.amax(1) + 1, (1, 0))

    def pairs(self, image: int) -> torch.Tensor:
        """The merged ``(src, dst)`` token pairs of one image, ``[P, 2]`` int64, by ascending src.

        Raises an IndexError if there is no such image."""
        target = self.target[checks.check_index("image", image, len(self.lengths), "merged by this plan")]
        src = (target != torch.arange(len(target), device=target.device)).nonzero()[:, 0]
        return torch.stack([src, target[src]], 1)

    def merge(self, x: torch.Tensor) -> torch.Tensor:
        """Replace each dst token and the src tokens merged into it by their mean (paper, Section III-A).

        Takes ``[B, N, C]`` and returns ``[S, C]``, the tokens left of all images behind each other (see
        `split`); half precisions are summed in float32. Raises a ValueError if ``x`` does not have the plan's
        ``B``, ``N`` and device, a TypeError if it is not floating-point, as means are."""
        checks.check_values("x", x, self.slot)
        if kernels.usable(x):
            return kernels.merge(x, *self.groups)
        exact = x.flatten(0, 1).to(torch.promote_types(x.dtype, torch.float32))
        order, begins = self.groups
        return F.embedding_bag(order, exact, begins[:-1], mode="mean").to(x.dtype)

    def unmerge(self, y: torch.Tensor) -> torch.Tensor:
        """Give every token the value of its slot: the inverse of `merge` up to what the mean lost.

        Takes packed tokens ``[S, C]`` and returns ``[B, N, C]``, of any dtype; raises a ValueError if ``y``
        does not have ``S`` rows and the plan's device."""
        checks.check_packed("y", y, sum(self.lengths), self.slot.device)
        if kernels.usable(y):
            return kernels.unmerge(y, self.slot)
        return y.index_select(0, self.slot.flatten()).unflatten(0, self.slot.shape)

    def split(self, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Views ``[L_i, C]`` of the packed tokens ``[S, C]``, one for each image; raises a ValueError as
        `unmerge` does."""
        checks.check_packed("y", y, sum(self.lengths))
        return y.split(self.lengths)

    def to(self, device: torch.device | str) -> MergePlan:
        device = checks.check_device("device", device)
        return MergePlan(self.target.to(device), self.slot.to(device), self.lengths)


@checks.suggests_arguments
@torch.no_grad()
def make_plan(matches: Matches, threshold: float | None = None, ratio: float | None = None) -> MergePlan:
    """Decide who is merged.

    Args:
        matches: what `catome.best_matches` found for ``[B, N, C]`` tokens.
        threshold: CA-ToMe (paper, Section III-A): merge a src token if and only if its best similarity is at
            least this; 1.0 merges the exact duplicates of a dst token, and those only, however similarities
            are rounded.
        ratio: ToMe: merge the ``int(ratio * N)`` src tokens of highest similarity, in each image (tokens that
            are not finite come last).

    Returns:
        The `MergePlan`. Finding out how many tokens each image keeps is one device synchronisation for a
        threshold, none for a ratio.

    Raises:
        ValueError, TypeError: unless exactly one of threshold and ratio is given, in range.
    """
    checks.check_kind("matches", matches, Matches, "what catome.best_matches returned")
    images, sources = matches.best.shape
    tokens = sources + len(matches.dst)
    threshold, ratio = checks.check_amount(threshold, ratio, most=sources / tokens)
    best = matches.best
    device = best.device
    count = None
    if ratio is not None:
        count = int(ratio * tokens)
        order = matches.similarity.nan_to_num(nan=-math.inf, neginf=-math.inf).topk(count, dim=1).indices
        merged = torch.zeros(images, sources, dtype=torch.bool, device=device).scatter_(1, order, True)
    elif threshold == 1.0:
        if matches.duplicate is None:
            raise ValueError("threshold=1.0 needs matches that were found with find_duplicates=True")
        best = matches.duplicate
        merged = best >= 0
    else:
        merged = matches.similarity >= threshold
    target = torch.arange(tokens, device=device).repeat(images, 1)
    target[:, matches.src] = torch.where(merged, best, matches.src)
    return pack(target, None if count is None else (tokens - count,) * images)


def pack(target: torch.Tensor, lengths: tuple[int, ...] | None = None) -> MergePlan:
    """The plan in which every token takes the place of its ``target`` ``[B, N]``; without ``lengths`` they
    are counted."""
    kept = target == torch.arange(target.shape[1], device=target.device)
    rank = (kept.flatten().cumsum(0) - 1).view(target.shape)
    return MergePlan(
        target, rank.gather(1, target), tuple(kept.sum(1).tolist()) if lengths is None else lengths
    )


@checks.suggests_arguments
def match(
    tokens: torch.Tensor,
    grid: tuple[int, int],
    *,
    threshold: float | None = None,
    ratio: float | None = None,
    stride: tuple[int, int] = (2, 2),
    dst: checks.Dst = "top_left",
    generator: torch.Generator | None = None,
    measure: Measure = "cosine",
) -> MergePlan:
    """Token merging on plain tensors: find the pairs in ``tokens`` and plan their merging.

    >>> plan = match(torch.randn(2, 64 * 64, 320), (64, 64), ratio=0.5)
    >>> plan.unmerge(plan.merge(torch.randn(2, 4096, 320))).shape
    torch.Size([2, 4096, 320])

    Args:
        tokens, grid, stride, dst, generator, measure: see `catome.best_matches`; ``stride`` need not divide
            ``grid``.
        threshold, ratio: see `catome.make_plan`; exactly one of them, ``ratio`` at most 1 - 1/(sy*sx).

    Returns:
        A `MergePlan` with ``merge(x)``, ``unmerge(y)`` and ``pairs(image)``.

    Raises:
        ValueError, TypeError: for arguments out of range or of the wrong shape or type.
    """
    threshold, ratio = checks.check_amount(threshold, ratio, stride)
    matches = best_matches(tokens, grid, stride, dst, generator, threshold == 1.0, measure=measure)
    return make_plan(matches, threshold, ratio)
