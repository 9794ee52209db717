"""The families of the U-Nets: where their spatial self-attention is, and the token grid of each level.

A U-Net halves its sample from level to level, and doubles it again. The levels are numbered by their
*downsample*: 1 is the size of the sample, 2 half of it, and so on. The rows of an attention are images, or
the frames of videos in the order ``[B, F]``: frames do not see each other here, and the modules in which they
do are not declared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from torch import nn

from catome.models import _diffusers
from catome.models.base import Family, Layout, ModelCall, SelfAttention


def transformer_blocks(unet: UNet2DConditionModel) -> dict[str, BasicTransformerBlock]:
    """The transformer blocks of a U-Net by module name, in the order in which they run."""
    blocks = {
        name: module for name, module in unet.named_modules() if isinstance(module, BasicTransformerBlock)
    }
    order = ("down_blocks", "mid_block", "up_blocks")
    return dict(sorted(blocks.items(), key=lambda item: order.index(item[0].split(".")[0])))


def topmost_downsample(unet: UNet2DConditionModel) -> int:
    """The factor by which the topmost transformer blocks are downsampled: 1 in Stable Diffusion 1 and 2, 2 in
    SDXL.

    Raises:
        TypeError: if the U-Net has no transformer block.
    """
    halved = [getattr(block, "downsamplers", None) is not None for block in unet.down_blocks]
    downsample = [2 ** sum(halved[:level]) for level in range(len(halved))]
    found = []
    for name in transformer_blocks(unet):
        part, *rest = name.split(".")
        level = (
            {"down_blocks": int(rest[0]), "up_blocks": -1 - int(rest[0])}[part] if part != "mid_block" else -1
        )
        found.append(downsample[level])
    if not found:
        raise TypeError("pipe's U-Net has no BasicTransformerBlock, whose self-attention catome works on")
    return min(found)


def token_layout(grid: tuple[int, int], first: int = 0) -> Layout:
    """The layout of one image whose tokens lie in ``grid`` ``(height, width)``, from key ``first`` on."""
    return Layout(first=first, frames=1, height=grid[0], width=grid[1])


def level_grid(call: ModelCall, downsample: int, tokens: int) -> tuple[int, int] | None:
    """The grid ``(height, width)`` of a level, by the sample's size; None if it has not ``tokens`` tokens.

    An attention on ``[B, C, H, W]`` flattens its image row by row before it makes queries and keys, as the
    input of a transformer block is flattened already, and so one rule serves both. Whether an odd edge was
    rounded up (by a convolution that pads) or down (by one that does not, or by pooling) shows in the number
    of tokens.
    """
    sample = call.arguments.get("sample")
    if sample is None:
        return None
    for rounded in (math.ceil, math.floor):
        height, width = (rounded(edge / downsample) for edge in sample.shape[-2:])
        if height * width == tokens:
            return height, width
    return None


def _image_alone(downsample: int, call: ModelCall, queries: int, keys: int) -> Layout | None:
    """The layout where image tokens are all the keys."""
    grid = level_grid(call, downsample, queries)
    return token_layout(grid) if grid is not None and keys == queries else None


def _image_then_text(downsample: int, call: ModelCall, queries: int, keys: int) -> Layout | None:
    """The layout where image tokens are the first keys."""
    grid = level_grid(call, downsample, queries)
    return token_layout(grid) if grid is not None and keys >= queries else None


def _text_then_image(downsample: int, call: ModelCall, queries: int, keys: int) -> Layout | None:
    """The layout where image tokens are the last keys."""
    grid = level_grid(call, downsample, queries)
    return token_layout(grid, first=keys - queries) if grid is not None and keys >= queries else None


_Found = tuple[str, nn.Module, nn.Module | None, Callable]
"""A self-attention whose level is yet to come: its name, the module, its block, and what lays it out."""


def _search(name: str, module: nn.Module) -> Iterator[_Found]:
    """Find the spatial self-attentions in a part of a U-Net, in the order in which they run.

    Only what is known to be one is found; everything else is searched through, but for the temporal modules.
    """
    if isinstance(module, _diffusers.TEMPORAL_MODULES):
        return
    if isinstance(module, _diffusers.TRANSFORMER_BLOCKS):
        if module.attn1 is not None and not module.only_cross_attention:
            yield f"{name}.attn1", module.attn1, module, _image_alone
        if module.attn2 is not None and module.double_self_attention:
            yield f"{name}.attn2", module.attn2, module, _image_alone
    elif isinstance(module, _diffusers.K_BLOCKS):
        # What enters this block is [B, C, H, W], which is not what the paper compares: None for the block.
        if module.add_self_attention:
            yield f"{name}.attn1", module.attn1, None, _image_alone
    elif isinstance(module, _diffusers.KANDINSKY_3_BLOCKS):
        if module.self_attention:
            yield f"{name}.attentions.0.attention", module.attentions[0].attention, None, _image_alone
    elif isinstance(module, _diffusers.CASCADE_BLOCKS):
        if module.self_attn:
            yield f"{name}.attention", module.attention, None, _image_then_text
    elif isinstance(module, _diffusers.IMAGE_BLOCKS):
        for index, attention in module.attentions.named_children():
            yield f"{name}.attentions.{index}", attention, None, _image_alone
    elif isinstance(module, _diffusers.TEXT_AND_IMAGE_BLOCKS):
        for index, attention in module.attentions.named_children():
            if not attention.only_cross_attention:
                yield f"{name}.attentions.{index}", attention, None, _text_then_image
    else:
        for child_name, child in _children(module):
            yield from _search(f"{name}.{child_name}", child)


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children of a module by name, in the order in which they run."""
    if not isinstance(module, _diffusers.TWIN_BLOCKS):
        yield from module.named_children()
        return
    for index, twins in enumerate(zip(module.base_attentions, module.ctrl_attentions, strict=True)):
        for which, attention in zip(("base", "ctrl"), twins, strict=True):
            if attention is not None:  # a level without attention has two lists of None
                yield f"{which}_attentions.{index}", attention


def _halvings(model: nn.Module) -> list[bool]:
    """A flag for each level but the last: True if the sample is halved between it and the next one."""
    blocks = list(model.down_blocks)
    if hasattr(model, "down_downscalers"):  # Stable Cascade
        switches = model.config.switch_level
        return [True] * (len(blocks) - 1) if switches is None else list(switches)
    if any(isinstance(block, _diffusers.KANDINSKY_3_BLOCKS) for block in blocks):
        return [True] * (len(blocks) - 1)
    name = "base_downsamplers" if isinstance(blocks[0], _diffusers.TWIN_BLOCKS) else "downsamplers"
    return [getattr(block, name, None) is not None for block in blocks[:-1]]


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module, int]]:
    """The parts of a U-Net in the order in which they run: name, module and downsample of each."""
    downsamples = [model.config.get("patch_size", 1)]
    for halved in _halvings(model):
        downsamples.append(downsamples[-1] * (2 if halved else 1))
    for level, block in enumerate(model.down_blocks):
        yield f"down_blocks.{level}", block, downsamples[level]
    if getattr(model, "mid_block", None) is not None:
        yield "mid_block", model.mid_block, downsamples[-1]
    # A ControlNet ends here.
    for index, block in enumerate(getattr(model, "up_blocks", ())):
        yield f"up_blocks.{index}", block, downsamples[-1 - index]


def spatial_attentions(model: nn.Module, max_downsample: int) -> list[SelfAttention]:
    """The spatial self-attentions of a U-Net, in the order in which they run.

    Those that are downsampled more than ``max_downsample`` against the topmost of them are left out: 1 leaves
    the topmost level that has any, 2 the next one, too.
    """
    found = []
    for part_name, part, downsample in _parts(model):
        for name, module, block, layout in _search(part_name, part):
            found.append((downsample, SelfAttention(name, module, partial(layout, downsample), block)))
    topmost = min((downsample for downsample, _ in found), default=1)
    return [attention for downsample, attention in found if downsample <= topmost * max_downsample]


FAMILIES: tuple[Family, ...] = (
    Family(
        # SD 1, 2 and XL, the upscalers, DeepFloyd IF, Kandinsky 2, AudioLDM ...: the blocks tell them apart.
        name="U-Net",
        classes=("UNet2DConditionModel", "DreamLiteUNetModel", "AudioLDM2UNet2DConditionModel"),
        attentions=spatial_attentions,
        sample="sample",
    ),
    Family(
        # What runs beside a denoising model; `catome.models.registry` patches it where it is asked for alone.
        name="ControlNet",
        classes=("ControlNetModel", "ControlNetUnionModel", "SparseControlNetModel"),
        attentions=spatial_attentions,
        sample="sample",
    ),
    Family(
        # A denoising model with a ControlNet inside.
        name="ControlNet-XS",
        classes=("UNetControlNetXSModel",),
        attentions=spatial_attentions,
        sample="sample",
    ),
    Family(
        name="video U-Net",
        classes=(
            "UNetMotionModel",
            "UNet3DConditionModel",
            "UNetSpatioTemporalConditionModel",
            "I2VGenXLUNet",
        ),
        attentions=spatial_attentions,
        sample="sample",
    ),
    Family(
        name="unconditional U-Net",
        classes=("UNet2DModel",),
        attentions=spatial_attentions,
        sample="sample",
        condition=None,
    ),
    Family(
        name="Kandinsky 3",
        classes=("Kandinsky3UNet",),
        attentions=spatial_attentions,
        sample="sample",
    ),
    Family(
        # In the decoder, an attention runs several times in a call (`up_blocks_repeat_mappers`).
        name="Stable Cascade",
        classes=("StableCascadeUNet",),
        attentions=spatial_attentions,
        timestep="timestep_ratio",
        sample="sample",
        condition="clip_text_pooled",
    ),
)

REFUSED: dict[str, str] = {
    "ControlNetXSAdapter": "it never runs alone: give the UNetControlNetXSModel around it",
    "MotionAdapter": "it has no spatial attention: give the UNetMotionModel that it is in",
    "MultiControlNetModel": "it is several ControlNets: give each of its nets",
    "MultiControlNetUnionModel": "it is several ControlNets: give each of its nets",
    "UNet1DModel": "it has no image grid: its tokens lie along one axis",
    "UNetFlatConditionModel": "it has no image grid: its tokens are a text's",
    "UVit2DModel": "it is called without a timestep: nothing tells the steps of a generation",
    "WuerstchenDiffNeXt": "it is deprecated in diffusers; StableCascadeUNet came after it",
    "WuerstchenPrior": "it is deprecated in diffusers; StableCascadeUNet came after it",
}
"""The reason why a U-Net is no family, by the name of its class."""
