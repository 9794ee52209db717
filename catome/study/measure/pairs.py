"""Measure how far apart the pairs of an image lie, and whether within a window."""

from __future__ import annotations

import torch


def _places(pairs: torch.Tensor, width: int) -> torch.Tensor:
    """Row and column of both tokens of each pair: ``[P, 2, 2]``."""
    return torch.stack([pairs // width, pairs % width], -1)


def distances(pairs: torch.Tensor, width: int) -> torch.Tensor:
    """The distance between the two tokens of each pair, in tokens, as the crow flies: ``[P]`` float32.

    Args:
        pairs: ``[P, 2]`` int64, as of `catome.MergePlan.pairs`.
        width: tokens in a row of the grid.
    """
    return _places(pairs, width).diff(dim=1)[:, 0].float().norm(dim=1)


def leave_window(pairs: torch.Tensor, width: int) -> torch.Tensor:
    """Tell of each pair whether its two tokens lie in different windows of 2 x 2: ``[P]`` bool; arguments as
    in `distances`."""
    return (_places(pairs, width) // 2).diff(dim=1)[:, 0].any(dim=1)


def words(pairs: torch.Tensor, width: int) -> dict[str, str]:
    """The words of chapter 1 about the pairs, by its names there, with _ for -; arguments as in
    `distances`."""
    if not len(pairs):
        return {"distances": "Nothing is merged at this share, so there are no pairs.", "leaving": "none"}
    apart = distances(pairs, width)
    said = (
        f"The median pair lies {apart.median():.1f} tokens apart, {(apart <= 2).float().mean():.0%} lie "
        "within two"
    )
    return {
        "distances": f"{said}, and the farthest {apart.max():.0f} apart.",
        "leaving": f"{leave_window(pairs, width).float().mean():.0%}",
    }
