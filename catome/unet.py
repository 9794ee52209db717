"""What there is to know of a diffusers U-Net: its transformer blocks, their token grids, and which step it is at."""

from __future__ import annotations

import math
import weakref

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock


class StepCounter:
    """Counts the U-Net calls of a generation from 0, and notices where a generation begins.

    A pipeline lays out its timesteps anew in each call and hands out views of that tensor, which says it without reading a
    value from the device; on a bare U-Net a timestep that rises does."""

    def __init__(self, pipe) -> None:
        self._pipe = weakref.ref(pipe)
        self.reset()

    def reset(self) -> None:
        """The next call begins a generation."""
        self.step, self._timetable, self._timestep = -1, None, None

    def advance(self, timestep) -> bool:
        """Count a U-Net call at ``timestep``; returns whether it begins a generation."""
        timetable = getattr(getattr(self._pipe(), "scheduler", None), "timesteps", None)
        if _shares_storage(timestep, timetable):
            began = self._timetable is not timetable
            self._timetable, self._timestep = timetable, None
        else:
            value = float(timestep.flatten()[0]) if isinstance(timestep, torch.Tensor) else float(timestep)
            began = self._timestep is None or value > self._timestep
            self._timetable, self._timestep = None, value
        self.step = 0 if began else self.step + 1
        return began


def _shares_storage(view, base) -> bool:
    if not isinstance(view, torch.Tensor) or not isinstance(base, torch.Tensor):
        return False
    return view.untyped_storage().data_ptr() == base.untyped_storage().data_ptr()


def token_grid(
    x: torch.Tensor, size: tuple[int, int] | None, max_downsample: int, stride: tuple[int, int]
) -> tuple[int, int] | None:
    """The token grid of a block input ``[B, N, C]`` in a U-Net whose sample has ``size`` ``(height, width)``.

    None if the block is downsampled more than ``max_downsample``, or its grid is smaller than one window of ``stride``."""
    if x.ndim != 3 or size is None:
        return None
    for downsample in (2**level for level in range(max_downsample.bit_length())):
        grid = tuple(math.ceil(edge / downsample) for edge in size)
        if math.prod(grid) == x.shape[1] and grid[0] >= stride[0] and grid[1] >= stride[1]:
            return grid
    return None


def find_unet(pipe) -> UNet2DConditionModel:
    """The U-Net of a diffusers pipeline, or the U-Net itself.

    Raises:
        TypeError: if there is none.
    """
    unet = getattr(pipe, "unet", pipe)
    if not isinstance(unet, UNet2DConditionModel):
        raise TypeError(
            f"pipe={type(pipe).__name__} must be a diffusers pipeline with a UNet2DConditionModel as its unet, or such a U-Net"
        )
    return unet


def transformer_blocks(unet: UNet2DConditionModel) -> dict[str, BasicTransformerBlock]:
    """The transformer blocks of a U-Net by module name, in the order in which they run."""
    blocks = {name: module for name, module in unet.named_modules() if isinstance(module, BasicTransformerBlock)}
    order = ("down_blocks", "mid_block", "up_blocks")
    return dict(sorted(blocks.items(), key=lambda item: order.index(item[0].split(".")[0])))
