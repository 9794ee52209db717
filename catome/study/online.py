"""A schedule that decides while it runs, for chapter 5 (beyond the paper): an image gets new pairs when too
many of the cached ones are no longer similar.

At each step a block looks at the pairs in its cache and at how similar they are *now*, which costs one gather
and one product for each pair, not a search. An image in which more than the tolerated share of pairs has
fallen below the threshold gets new pairs; the others keep theirs. So each image has checkpoints of its own,
whatever else is in the batch.

The library has no such schedule: chapter 5 found its images nowhere detectably closer to the unmerged ones
than those of about as many checkpoints at equal distances, and mostly farther.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from catome.checks import check_number, check_values
from catome.runtime.config import PAPER, MergeConfig
from catome.runtime.install import install, uninstall
from catome.study.methods import Method
from catome.study.run.denoiser import denoiser
from catome.tensors.plan import MergePlan

_ROUNDING = 1e-5  # two computations of one similarity may differ by this much


def online(threshold: float, tolerance: float = 0.3) -> Method:
    """CA-ToMe whose pairs are found at the first step, and again for each image when too many no longer hold.

    Costs a look at the cached pairs, and one device synchronisation, at each step and block.

    Args:
        threshold: pairs above it are merged, as in the paper.
        tolerance: share in [0, 1] of an image's cached pairs that may have fallen below the threshold before
            the image's pairs are found afresh.

    Raises:
        TypeError, ValueError: for a tolerance out of range.
    """
    outdated = Outdated(check_number("tolerance", tolerance, 0.0, 1.0))

    @contextmanager
    def applied(pipe) -> Iterator:
        model = denoiser(pipe)
        config = PAPER.changed(threshold=float(threshold), schedule=(0,))
        install(model, config, pipe=pipe, outdated=outdated)
        try:
            yield pipe
        finally:
            uninstall(model)

    return Method(f"CA-ToMe(threshold={threshold:g}, schedule=auto {tolerance:g})", "CA-ToMe", applied)


@dataclass(frozen=True)
class Outdated:
    """`catome.runtime.state.Rule.outdated`: True for images of which too large a share of pairs is broken.

    Attributes:
        tolerance: the share that is not too large.
    """

    tolerance: float

    def __call__(self, plan: MergePlan, tokens: torch.Tensor, config: MergeConfig) -> torch.Tensor:
        return broken_share(plan, tokens, config.threshold) > self.tolerance


@torch.no_grad()
def broken_share(plan: MergePlan, tokens: torch.Tensor, floor: torch.Tensor | float) -> torch.Tensor:
    """The share of an image's cached pairs whose similarity has fallen below ``floor``: ``[B]`` float32.

    Args:
        plan: made for ``[B, N, C]`` tokens at an earlier step.
        tokens: ``[B, N, C]``, as they are now.
        floor: a cosine, or one for each image ``[B]``.

    Returns:
        A share in [0, 1]; 1 for an image that has no pairs, and so nothing to reuse.

    Raises:
        ValueError: if the tokens do not fit the plan.
    """
    similarity = pair_similarity(plan, tokens)
    merged = _merged(plan)
    least = torch.as_tensor(floor, dtype=similarity.dtype, device=tokens.device).reshape(-1, 1) - _ROUNDING
    pairs = merged.sum(1)
    broken = (merged & ~(similarity >= least)).sum(1)
    return torch.where(pairs > 0, broken / pairs.clamp(min=1), 1.0)


@torch.no_grad()
def pair_similarity(plan: MergePlan, tokens: torch.Tensor) -> torch.Tensor:
    """Cosine, in float32 at least, of every token of ``tokens`` ``[B, N, C]`` and its target: ``[B, N]``.

    1 for tokens that are not merged; NaN where a token is not finite.

    Raises:
        ValueError: if the tokens do not fit the plan.
    """
    check_values("tokens", tokens, plan.target)
    exact = tokens.to(torch.promote_types(tokens.dtype, torch.float32)).contiguous()
    with torch.autocast(tokens.device.type, enabled=False):
        unit = F.normalize(exact, dim=-1)
        partners = unit.gather(1, plan.target[..., None].expand_as(unit))
        similarity = (unit * partners).sum(-1)
    return torch.where(_merged(plan), similarity, 1.0)


def _merged(plan: MergePlan) -> torch.Tensor:
    return plan.target != torch.arange(plan.target.shape[1], device=plan.target.device)
