"""The code that the declarations of the diffusion transformers share: it finds attentions and image tokens.

A declaration names the lists of blocks that the model runs one after another, and for each of them a layout
function. Where the tokens lie is told from shapes and from Python's numbers. Some models say it in a tensor
only; it is read once, since a pipeline passes the same tensor at every step and reading it makes the host
wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from catome.models.base import Layout, ModelCall, SelfAttention

GridFunction = Callable[[ModelCall], tuple[int, int, int] | None]
"""``grid(call)``: the frames, height and width of the image in tokens; None if they cannot be told."""

LayoutFunction = Callable[[ModelCall, int, int], Layout | None]
"""``layout(call, queries, keys)``, as in `catome.models.base.SelfAttention`."""


@dataclass(frozen=True)
class Stack:
    """A list of blocks that the model runs one after another.

    Attributes:
        blocks: its path in the model.
        attentions: the paths of the attentions in one block, in the order in which they run; a block may lack
            some of them.
        layout: where their image tokens are.
    """

    blocks: str
    attentions: tuple[str, ...]
    layout: LayoutFunction


def attentions_of(*stacks: Stack) -> Callable[[torch.nn.Module, int], list[SelfAttention]]:
    """A family's ``attentions``: those of the stacks, which are given in the order in which they run."""

    def attentions(model: torch.nn.Module, max_downsample: int) -> list[SelfAttention]:
        found = []
        for stack in stacks:
            blocks = _submodule(model, stack.blocks)
            for index in range(len(blocks) if blocks is not None else 0):
                for attention in stack.attentions:
                    name = f"{stack.blocks}.{index}.{attention}"
                    module = _submodule(model, name)
                    if module is not None:
                        found.append(SelfAttention(name, module, _unless_perturbed(module, stack.layout)))
        return found

    return attentions


def _submodule(model: torch.nn.Module, path: str) -> torch.nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _unless_perturbed(module: torch.nn.Module, layout: LayoutFunction) -> LayoutFunction:
    """``layout``, but None while the attention works for perturbed-attention guidance (PAG).

    Its processors call attention once for each part of the batch, and for the perturbed part with a mask in
    which no two image tokens are alike. A pipeline sets them for a generation and takes them away behind it.
    """

    def guarded(call: ModelCall, queries: int, keys: int) -> Layout | None:
        processor = getattr(module, "processor", None)
        if type(processor).__name__.startswith("PAG"):
            return None
        return layout(call, queries, keys)

    return guarded


def placed(first: int, grid: tuple[int, int, int] | None, keys: int) -> Layout | None:
    """The layout of a grid whose first token is key ``first``; None if there is none or it does not fit."""
    if grid is None or first < 0 or math.prod(grid) < 1 or first + math.prod(grid) > keys:
        return None
    return Layout(first, *grid)


def image_alone(grid: GridFunction) -> LayoutFunction:
    """The layout function of a self-attention that has image tokens only."""

    def layout(call: ModelCall, queries: int, keys: int) -> Layout | None:
        size = grid(call)
        if size is None or not queries == keys == math.prod(size):
            return None
        return placed(0, size, keys)

    return layout


def image_first(grid: GridFunction) -> LayoutFunction:
    """The layout function of a self-attention whose keys begin with the image tokens."""

    def layout(call: ModelCall, queries: int, keys: int) -> Layout | None:
        return placed(0, grid(call), keys) if queries == keys else None

    return layout


def image_last(grid: GridFunction) -> LayoutFunction:
    """The layout function of a self-attention whose keys end with the image tokens."""

    def layout(call: ModelCall, queries: int, keys: int) -> Layout | None:
        size = grid(call)
        if size is None or queries != keys:
            return None
        return placed(keys - math.prod(size), size, keys)

    return layout


def latent_image(name: str = "hidden_states") -> GridFunction:
    """The grid of an image whose latents ``[B, C, H, W]`` are the model's argument ``name``."""

    def grid(call: ModelCall) -> tuple[int, int, int] | None:
        sample = call.arguments.get(name)
        if not isinstance(sample, torch.Tensor) or sample.ndim != 4:
            return None
        _, patch_height, patch_width = patch_size(call.model)
        return 1, sample.shape[2] // patch_height, sample.shape[3] // patch_width

    return grid


def latent_video(name: str = "hidden_states", axes: tuple[int, int, int] = (2, 3, 4)) -> GridFunction:
    """The grid of a video whose latents, of five axes, are the argument ``name``.

    ``axes`` are those of the frames, the height and the width.
    """

    def grid(call: ModelCall) -> tuple[int, int, int] | None:
        sample = call.arguments.get(name)
        if not isinstance(sample, torch.Tensor) or sample.ndim != 5:
            return None
        frames, height, width = (sample.shape[axis] for axis in axes)
        patch_frames, patch_height, patch_width = patch_size(call.model)
        return frames // patch_frames, height // patch_height, width // patch_width

    return grid


def patch_size(model: torch.nn.Module) -> tuple[int, int, int]:
    """The numbers of frames, rows and columns of latents that are one token, from the model's
    configuration."""
    size = getattr(model.config, "patch_size", None) or 1
    if isinstance(size, int):
        frames = getattr(model.config, "patch_size_t", None) or 1
        return frames, size, size
    frames, height, width = (1, 1, *size)[-3:]
    return frames, height, width


def length(call: ModelCall, name: str) -> int:
    """The number of tokens that the argument ``name`` has, ``[B, tokens, ...]``; 0 if it was not passed."""
    tokens = call.arguments.get(name)
    return tokens.shape[1] if isinstance(tokens, torch.Tensor) else 0


_told = WeakTensorKeyDictionary()


def told_by(tensor: torch.Tensor, what: Any, read: Callable[[torch.Tensor], Any]) -> Any:
    """``read(tensor)``, computed on the CPU once as long as the tensor lives and is not written to.

    ``what`` tells readings of the same tensor apart.
    """
    version = 0 if tensor.is_inference() else tensor._version
    readings = _told.setdefault(tensor, {})
    if (what, version) not in readings:
        readings[what, version] = read(tensor.detach().cpu())
    return readings[what, version]


def grid_of_positions(positions: Any, first: int) -> tuple[int, int, int] | None:
    """The grid of the image whose tokens' positions begin at row ``first`` of ``positions``.

    ``positions`` are ``[tokens, axes]`` or ``[B, tokens, axes]``, of which the first of the batch counts; the
    axes begin with the image (or point in time), the row and the column. The image ends where another begins.

    Returns:
        ``(1, height, width)``; None if the positions are no such grid, row by row.
    """
    if not isinstance(positions, torch.Tensor) or positions.ndim not in (2, 3) or positions.shape[-1] < 3:
        return None
    return told_by(
        positions, ("grid", first), lambda rows: _grid(rows.reshape(-1, *rows.shape[-2:])[0, first:].float())
    )


def _grid(positions: torch.Tensor) -> tuple[int, int, int] | None:
    if len(positions) == 0:
        return None
    image = positions[: _run(positions[:, 0])]
    width = _run(image[:, 1])
    height = len(image) // width
    if height * width != len(image):
        return None
    rows = image[:, 1].view(height, width)
    columns = image[:, 2].view(height, width)
    if (rows != rows[:, :1]).any() or (columns != columns[:1]).any():
        return None
    if (rows[:, 0].diff() <= 0).any() or (columns[0].diff() <= 0).any():
        return None
    return 1, height, width


def _run(values: torch.Tensor) -> int:
    """The number of values at the beginning that are the same."""
    return int((values == values[0]).long().cumprod(0).sum())
