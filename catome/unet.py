"""What there is to know of a diffusers U-Net: its transformer blocks, their token grids, and which step it is at."""

from __future__ import annotations

import math

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock


class StepCounter:
    """Counts the U-Net calls of a generation from 0, and notices where a generation begins.

    A pipeline hands out its timesteps as views of one tensor, its timetable: another timetable, or an earlier place in the
    same one, begins a generation (no value is read from the device). Timesteps that are numbers of their own begin one when
    they rise, or when the first is repeated; PLMS repeats its second."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """The next call begins a generation."""
        self.step, self._timetable, self._place, self._value = -1, None, 0, None

    def advance(self, timestep) -> bool:
        """Count a U-Net call at ``timestep``; returns whether it begins a generation."""
        timetable = _timetable(timestep)
        if timetable is not None:
            place = timestep.storage_offset()
            same = self._timetable is not None and self._timetable.data_ptr() == timetable.data_ptr()
            began = not same or place < self._place
            self._timetable, self._place, self._value = timetable, place, None
        else:
            value = float(timestep.flatten()[0]) if isinstance(timestep, torch.Tensor) else float(timestep)
            began = self._value is None or value > self._value or (value == self._value and self.step == 0)
            self._timetable, self._value = None, value
        self.step = 0 if began else self.step + 1
        return began


def _timetable(timestep) -> torch.UntypedStorage | None:
    """The memory of the longer tensor that ``timestep`` is one number of, or None; holding it keeps its address its own."""
    if not isinstance(timestep, torch.Tensor) or any(timestep.stride()):
        return None
    storage = timestep.untyped_storage()
    return storage if storage.nbytes() > timestep.element_size() else None


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


def topmost_downsample(unet: UNet2DConditionModel) -> int:
    """How much the topmost transformer blocks are downsampled: 1 in Stable Diffusion 1 and 2, 2 in SDXL.

    Raises:
        TypeError: if the U-Net has no transformer block.
    """
    halved = [getattr(block, "downsamplers", None) is not None for block in unet.down_blocks]
    downsample = [2 ** sum(halved[:level]) for level in range(len(halved))]
    found = []
    for name in transformer_blocks(unet):
        part, *rest = name.split(".")
        level = {"down_blocks": int(rest[0]), "up_blocks": -1 - int(rest[0])}[part] if part != "mid_block" else -1
        found.append(downsample[level])
    if not found:
        raise TypeError("pipe's U-Net has no BasicTransformerBlock, whose self-attention catome works on")
    return min(found)
