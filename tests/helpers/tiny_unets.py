"""U-Nets of every kind that catome declares, so small that a call takes milliseconds: random, and always the
same.

Their samples are wider than high, so that a height that is taken for a width shows. Weights that diffusers
begins with zeros are drawn, and queries and keys are enlarged: what the attention does can be seen in the
output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

FRAMES = 3
"""Frames of each video."""

TEXT = 5
"""Tokens of each prompt."""

WIDTH = 16
"""Channels of each prompt."""

Inputs = Callable[[int, float, int], dict]


@dataclass(frozen=True)
class TinyModel:
    """A small model, and what to call it with.

    Attributes:
        name: what tests call it.
        build: makes the model, with the same weights each time, in evaluation mode.
        inputs: ``inputs(batch, timestep, seed)`` makes the arguments of a call; those of image i depend on
            ``seed + i`` alone.
        attentions: how many self-attentions the family declares on it with ``max_downsample=1``.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    attentions: int


def built(name: str, **config) -> Callable[[], nn.Module]:
    """A function that builds a diffusers model by the name of its class."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        model = getattr(diffusers, name)(**config)
        enliven(model)
        return model.eval()

    return build


@torch.no_grad()
def enliven(model: nn.Module) -> None:
    """Draw the weights that are zeros, and make the attention choose."""
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            parameter.normal_(std=math.prod(parameter.shape[1:]) ** -0.5)
    for module in model.modules():
        if isinstance(module, Attention) and module.to_k is not None:
            # As torch draws them, all scores are nearly the same, and the attention is an average.
            module.to_q.weight.mul_(3)
            module.to_k.weight.mul_(3)
            module.to_out[0].weight.mul_(2)


def picture(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Draw a tensor whose last two dimensions are an image of 4x4 patches, in which pixels are alike."""
    *rest, height, width = shape
    patches = torch.randn(*rest, math.ceil(height / 4), math.ceil(width / 4), generator=generator)
    enlarged = patches.repeat_interleave(4, dim=-2).repeat_interleave(4, dim=-1)
    return enlarged[..., :height, :width] + 0.1 * torch.randn(shape, generator=generator)


def stacked(images: list[dict]) -> dict:
    """The arguments of a batch from those of each image; a dictionary among them is stacked by itself."""
    batch = {}
    for name, first in images[0].items():
        values = [image[name] for image in images]
        batch[name] = stacked(values) if isinstance(first, dict) else torch.stack(values)
    return batch


def random_inputs(
    pictures: dict[str, tuple[int, ...]],
    numbers: dict[str, tuple[int, ...]] | None = None,
    added: dict[str, tuple[int, ...]] | None = None,
    **fixed,
) -> Inputs:
    """The inputs of a U-Net, from the shapes that one image's have.

    Args:
        pictures: of what looks like an image, by name.
        numbers: of what does not.
        added: of what comes in ``added_cond_kwargs``.
        fixed: what is the same in each call.
    """

    def image(seed: int) -> dict:
        generator = torch.Generator().manual_seed(seed)
        drawn = {name: picture(generator, *shape) for name, shape in pictures.items()}
        for name, shape in (numbers or {}).items():
            drawn[name] = torch.randn(shape, generator=generator)
        if added is not None:
            more = {name: torch.randn(shape, generator=generator) for name, shape in added.items()}
            drawn["added_cond_kwargs"] = more
        return drawn

    def inputs(batch: int, timestep: float, seed: int) -> dict:
        arguments = stacked([image(seed + index) for index in range(batch)])
        return {**arguments, "timestep": timestep, "return_dict": False, **fixed}

    return inputs


def repeating_text(inputs: Inputs) -> Inputs:
    """Inputs whose prompt is there once for each frame, as AnimateDiff's pipelines give it."""

    def repeated(batch: int, timestep: float, seed: int) -> dict:
        arguments = inputs(batch, timestep, seed)
        text = arguments["encoder_hidden_states"]
        arguments["encoder_hidden_states"] = text.repeat_interleave(FRAMES, dim=0)
        return arguments

    return repeated


def listing_control(inputs: Inputs) -> Inputs:
    """Inputs whose ``controlnet_cond`` is in a list, as `ControlNetUnionModel` takes it."""

    def listed(batch: int, timestep: float, seed: int) -> dict:
        arguments = inputs(batch, timestep, seed)
        arguments["controlnet_cond"] = [arguments["controlnet_cond"]]
        return arguments

    return listed


def timed_by_ratio(inputs: Inputs) -> Inputs:
    """Inputs whose timestep is a share of 1000 for each image, as Stable Cascade takes it."""

    def timed(batch: int, timestep: float, seed: int) -> dict:
        arguments = inputs(batch, timestep, seed)
        arguments["timestep_ratio"] = torch.full((batch,), arguments.pop("timestep") / 1000)
        return arguments

    return timed


PROMPT = {"encoder_hidden_states": (TEXT, WIDTH)}

SMALL = {"block_out_channels": (32, 32), "layers_per_block": 1, "norm_num_groups": 8}

CROSS = {"cross_attention_dim": WIDTH, "attention_head_dim": 4}
"""Prompts of `WIDTH` channels, and 4 heads: ``attention_head_dim`` is their number where blocks are
transformers."""

THREE_LEVELS = {"block_out_channels": (32, 32, 32), "layers_per_block": 1, "norm_num_groups": 8}

SIMPLE_BLOCKS = {
    "down_block_types": (
        "ResnetDownsampleBlock2D",
        "SimpleCrossAttnDownBlock2D",
        "SimpleCrossAttnDownBlock2D",
    ),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
    "attention_head_dim": 8,
    "encoder_hid_dim": WIDTH,
}

UNETS = (
    TinyModel(
        name="unet-sd",
        build=built(
            "UNet2DConditionModel",
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            **THREE_LEVELS,
            **CROSS,
        ),
        inputs=random_inputs({"sample": (4, 8, 12)}, PROMPT),
        attentions=3,
    ),
    TinyModel(
        name="unet-sdxl",
        build=built(
            "UNet2DConditionModel",
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 1),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=8 + 6 * 8,
            **THREE_LEVELS,
            **CROSS,
        ),
        inputs=random_inputs({"sample": (4, 16, 24)}, PROMPT, {"text_embeds": (8,), "time_ids": (6,)}),
        attentions=6,
    ),
    TinyModel(
        # The x4 upscaler attends to its own tokens in its lowest level alone.
        name="unet-only-cross",
        build=built(
            "UNet2DConditionModel",
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            only_cross_attention=(True, False),
            **SMALL,
            **CROSS,
        ),
        inputs=random_inputs({"sample": (4, 16, 24)}, PROMPT),
        attentions=4,
    ),
    TinyModel(
        # The x2 latent upscaler.
        name="unet-k-blocks",
        build=built(
            "UNet2DConditionModel",
            down_block_types=("KDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D"),
            mid_block_type=None,
            up_block_types=("KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KUpBlock2D"),
            block_out_channels=(32, 64, 64),
            layers_per_block=2,
            norm_num_groups=None,
            resnet_time_scale_shift="scale_shift",
            time_embedding_type="fourier",
            timestep_post_act="gelu",
            act_fn="gelu",
            cross_attention_dim=WIDTH,
            attention_head_dim=16,
        ),
        inputs=random_inputs({"sample": (4, 32, 48)}, PROMPT),
        attentions=4,
    ),
    TinyModel(
        name="unet-if",
        build=built(
            "UNet2DConditionModel",
            encoder_hid_dim_type="text_proj",
            addition_embed_type="text",
            addition_embed_type_num_heads=4,
            resnet_skip_time_act=True,
            time_embedding_act_fn="gelu",
            act_fn="gelu",
            cross_attention_dim=32,
            cross_attention_norm="group_norm",
            **SIMPLE_BLOCKS,
            **THREE_LEVELS,
        ),
        inputs=random_inputs({"sample": (4, 16, 24)}, PROMPT),
        attentions=3,
    ),
    TinyModel(
        # The second stage of IF attends to its own tokens in the middle alone.
        name="unet-if-only-cross",
        build=built(
            "UNet2DConditionModel",
            only_cross_attention=True,
            mid_block_only_cross_attention=False,
            cross_attention_dim=WIDTH,
            **SIMPLE_BLOCKS,
            **THREE_LEVELS,
        ),
        inputs=random_inputs({"sample": (4, 32, 48)}, PROMPT),
        attentions=1,
    ),
    TinyModel(
        name="unet-kandinsky-2-2",
        build=built(
            "UNet2DConditionModel",
            encoder_hid_dim_type="image_proj",
            addition_embed_type="image",
            cross_attention_dim=WIDTH,
            **SIMPLE_BLOCKS,
            **THREE_LEVELS,
        ),
        inputs=random_inputs(
            {"sample": (4, 16, 24)},
            added={"image_embeds": (WIDTH,)},
            encoder_hidden_states=None,
        ),
        attentions=3,
    ),
    TinyModel(
        # The pipeline puts the image that is edited to the right of the one that is made.
        name="unet-dreamlite",
        build=built(
            "DreamLiteUNetModel",
            down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
            up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
            **SMALL,
            **CROSS,
        ),
        inputs=random_inputs({"sample": (4, 16, 24)}, PROMPT),
        attentions=4,
    ),
    TinyModel(
        # The sample is a spectrogram.
        name="unet-audioldm2",
        build=built(
            "AudioLDM2UNet2DConditionModel",
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=((None, WIDTH, WIDTH), (None, WIDTH, WIDTH)),
            attention_head_dim=4,
            **SMALL,
        ),
        inputs=random_inputs(
            {"sample": (4, 8, 12)},
            {**PROMPT, "encoder_hidden_states_1": (TEXT + 2, WIDTH)},
        ),
        attentions=12,
    ),
    TinyModel(
        name="unet-2d",
        build=built(
            "UNet2DModel",
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=8,
            **THREE_LEVELS,
        ),
        inputs=random_inputs({"sample": (3, 16, 24)}),
        attentions=3,
    ),
    TinyModel(
        name="kandinsky-3",
        build=built(
            "Kandinsky3UNet",
            time_embedding_dim=32,
            groups=8,
            attention_head_dim=8,
            block_out_channels=(32, 32, 32, 32),
            cross_attention_dim=WIDTH,
            encoder_hid_dim=WIDTH,
            layers_per_block=2,
        ),
        inputs=random_inputs({"sample": (4, 16, 24)}, {**PROMPT, "encoder_attention_mask": (TEXT,)}),
        attentions=2,
    ),
)

CONTROLNETS = (
    TinyModel(
        name="controlnet",
        build=built(
            "ControlNetModel",
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            conditioning_embedding_out_channels=(8, 8, 8, 8),
            **SMALL,
            **CROSS,
        ),
        inputs=random_inputs({"sample": (4, 8, 12), "controlnet_cond": (3, 64, 96)}, PROMPT),
        attentions=1,
    ),
    TinyModel(
        name="controlnet-union",
        build=built(
            "ControlNetUnionModel",
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            conditioning_embedding_out_channels=(8, 8, 8, 8),
            addition_time_embed_dim=8,
            num_trans_channel=32,
            num_trans_head=4,
            num_proj_channel=32,
            **SMALL,
            **CROSS,
        ),
        inputs=listing_control(
            random_inputs(
                {"sample": (4, 8, 12), "controlnet_cond": (3, 64, 96)},
                {**PROMPT, "control_type": (6,)},
                control_type_idx=[1],
            )
        ),
        attentions=1,
    ),
    TinyModel(
        name="controlnet-xs",
        build=built(
            "UNetControlNetXSModel",
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(32, 32, 32),
            norm_num_groups=8,
            cross_attention_dim=WIDTH,
            num_attention_heads=4,
            ctrl_block_out_channels=(16, 16, 16),
            ctrl_conditioning_embedding_out_channels=(8, 8, 8, 8),
        ),
        inputs=random_inputs({"sample": (4, 8, 12), "controlnet_cond": (3, 64, 96)}, PROMPT),
        attentions=7,
    ),
)

VIDEO_UNETS = (
    TinyModel(
        name="animatediff",
        build=built(
            "UNetMotionModel",
            down_block_types=("CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion"),
            up_block_types=("CrossAttnUpBlockMotion", "CrossAttnUpBlockMotion"),
            cross_attention_dim=WIDTH,
            num_attention_heads=4,
            motion_num_attention_heads=4,
            **SMALL,
        ),
        inputs=repeating_text(random_inputs({"sample": (4, FRAMES, 8, 12)}, PROMPT)),
        attentions=3,
    ),
    TinyModel(
        name="sparse-controlnet",
        build=built(
            "SparseControlNetModel",
            down_block_types=("CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion"),
            motion_num_attention_heads=4,
            **SMALL,
            **CROSS,
        ),
        inputs=repeating_text(
            random_inputs(
                {
                    "sample": (4, FRAMES, 8, 12),
                    "controlnet_cond": (4, FRAMES, 8, 12),
                    "conditioning_mask": (1, FRAMES, 8, 12),
                },
                PROMPT,
            )
        ),
        attentions=1,
    ),
    TinyModel(
        name="unet-3d",
        build=built(
            "UNet3DConditionModel",
            down_block_types=("CrossAttnDownBlock3D", "CrossAttnDownBlock3D"),
            up_block_types=("CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
            **SMALL,
            **CROSS,
        ),
        inputs=random_inputs({"sample": (4, FRAMES, 8, 12)}, PROMPT),
        attentions=3,
    ),
    TinyModel(
        name="svd",
        build=built(
            "UNetSpatioTemporalConditionModel",
            in_channels=8,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"),
            up_block_types=("CrossAttnUpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            block_out_channels=(32, 32),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            num_attention_heads=(4, 4),
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=3 * 8,
        ),
        inputs=random_inputs(
            {"sample": (FRAMES, 8, 8, 12)},
            {"encoder_hidden_states": (1, WIDTH), "added_time_ids": (3,)},
        ),
        attentions=3,
    ),
    TinyModel(
        name="i2vgen-xl",
        build=built(
            "I2VGenXLUNet",
            down_block_types=("CrossAttnDownBlock3D", "CrossAttnDownBlock3D"),
            up_block_types=("CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
            **SMALL,
            **CROSS,
        ),
        inputs=random_inputs(
            {"sample": (4, FRAMES, 8, 12), "image_latents": (4, FRAMES, 8, 12)},
            {**PROMPT, "image_embeddings": (WIDTH,), "fps": ()},
        ),
        attentions=3,
    ),
)

CASCADES = (
    TinyModel(
        # No level is smaller than the one above it, and so all attention is in the topmost.
        name="cascade-prior",
        build=built(
            "StableCascadeUNet",
            in_channels=4,
            out_channels=4,
            timestep_ratio_embedding_dim=8,
            conditioning_dim=WIDTH,
            block_out_channels=(32, 32),
            num_attention_heads=(4, 4),
            down_num_layers_per_block=(1, 2),
            up_num_layers_per_block=(2, 1),
            clip_text_in_channels=WIDTH,
            clip_text_pooled_in_channels=WIDTH,
            clip_image_in_channels=WIDTH,
            dropout=(0.0, 0.0),
            switch_level=(False,),
        ),
        inputs=timed_by_ratio(
            random_inputs(
                {"sample": (4, 8, 12)},
                {"clip_text": (TEXT, WIDTH), "clip_text_pooled": (1, WIDTH), "clip_img": (1, WIDTH)},
            )
        ),
        attentions=6,
    ),
    TinyModel(
        # The up-blocks run twice in a call.
        name="cascade-decoder",
        build=built(
            "StableCascadeUNet",
            in_channels=4,
            out_channels=4,
            timestep_ratio_embedding_dim=8,
            patch_size=2,
            conditioning_dim=WIDTH,
            block_out_channels=(32, 32, 32),
            num_attention_heads=(0, 4, 4),
            down_num_layers_per_block=(1, 1, 1),
            up_num_layers_per_block=(1, 1, 1),
            down_blocks_repeat_mappers=(1, 1, 1),
            up_blocks_repeat_mappers=(2, 2, 2),
            block_types_per_layer=(
                ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
                ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
                ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
            ),
            clip_text_pooled_in_channels=WIDTH,
            effnet_in_channels=4,
            dropout=(0.0, 0.0, 0.0),
            timestep_conditioning_type=("sca",),
        ),
        inputs=timed_by_ratio(
            random_inputs(
                {"sample": (4, 32, 48), "effnet": (4, 8, 12)},
                {"clip_text_pooled": (1, WIDTH)},
            )
        ),
        attentions=2,
    ),
)

TINY_UNETS: tuple[TinyModel, ...] = (*UNETS, *CONTROLNETS, *VIDEO_UNETS, *CASCADES)
