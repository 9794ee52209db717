"""Small pipelines of real diffusers classes with random weights, and what watches them."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import catome
import catome.runtime.state
from catome import tiny

CONFIGS = {
    "PAPER": catome.PAPER.changed(threshold=0.3),
    "RECOMMENDED": catome.RECOMMENDED.changed(threshold=0.3),
    "input": catome.RECOMMENDED.changed(threshold=0.3, compare="input"),
}
"""Ways to merge; random weights make tokens less alike than trained ones, hence the threshold."""

ATTENTIONS = 3
"""Self-attentions that are merged in `unet`, and in its copies."""

SIZE = 16
"""Edge of the latents that most tests use."""


def unet(**changes) -> UNet2DConditionModel:
    """Attention on the topmost level, as in Stable Diffusion 1; the same weights each time."""
    torch.manual_seed(0)
    config = dict(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=SIZE,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
    )
    model = UNet2DConditionModel(**{**config, **changes})
    for name, weight in model.named_parameters():
        if "attn1" in name and name.endswith("weight"):
            weight.data.mul_(4)  # what attention does must be seen in the output
    return model.eval()


def unet_xl() -> UNet2DConditionModel:
    """Attention from the second level on, as in Stable Diffusion XL."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=2 * SIZE,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
    ).eval()


@cache
def tokenizer():
    """The embedded model's; tokens are nothing to these tests."""
    return tiny.load_pipeline().tokenizer


def text_encoder(kind: type = CLIPTextModel):
    torch.manual_seed(0)
    config = CLIPTextConfig(
        bos_token_id=0,
        eos_token_id=2,
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        pad_token_id=1,
        vocab_size=max(1000, len(tokenizer())),
        max_position_embeddings=77,
        projection_dim=32,
    )
    return kind(config).eval()


def vae(levels: int = 2) -> AutoencoderKL:
    """Downsamples by 2 for each level but the first."""
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=[4] * levels,
        norm_num_groups=2,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
    ).eval()


def ddim() -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False)


def sd(kind: type = StableDiffusionPipeline, without: tuple[str, ...] = (), **changes):
    """A pipeline like Stable Diffusion's."""
    parts = dict(
        vae=vae(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        unet=unet(),
        scheduler=ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    parts.update(changes)
    for name in without:
        del parts[name]
    pipe = kind(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sdxl(kind: type = StableDiffusionXLPipeline, **changes):
    """A pipeline like Stable Diffusion XL's."""
    parts = dict(
        vae=vae(),
        text_encoder=text_encoder(),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet_xl(),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    )
    parts.update(changes)
    pipe = kind(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, steps: int = 4, seed: int = 0, images: int = 1, **arguments) -> torch.Tensor:
    """The latents of a few images, by prompts that need no tokenizer."""
    given = dict(
        prompt_embeds=prompt(0, rows=images),
        negative_prompt_embeds=prompt(1, rows=images),
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(seed + i) for i in range(images)],
        output_type="latent",
    )
    if "image" not in arguments:
        given.update(height=2 * SIZE, width=2 * SIZE)
    return pipe(**{**given, **arguments}).images


def noise(seed: int = 0, rows: int = 1, size: int = SIZE) -> torch.Tensor:
    return torch.randn(rows, 4, size, size, generator=torch.Generator().manual_seed(seed))


def prompt(seed: int = 0, rows: int = 1, channels: int = 32) -> torch.Tensor:
    return (
        torch.randn(1, 7, channels, generator=torch.Generator().manual_seed(1000 + seed))
        .expand(rows, -1, -1)
        .contiguous()
    )


@torch.no_grad()
def call(model, sample: torch.Tensor, timestep=401, text: torch.Tensor | None = None) -> torch.Tensor:
    return model(sample, timestep, prompt(0, len(sample)) if text is None else text).sample


class Searches:
    """Counts the searches for pairs, and the rows that they were for."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    @property
    def count(self) -> int:
        return len(self.rows)

    def since(self) -> int:
        """The number of searches since this was asked last."""
        count = self.count
        self.rows.clear()
        return count


@contextmanager
def searches():
    """Watch `best_matches` as the runtime calls it."""
    real = catome.runtime.state.best_matches
    seen = Searches()

    def counting(tokens, *args, **kwargs):
        seen.rows.append(len(tokens))
        return real(tokens, *args, **kwargs)

    catome.runtime.state.best_matches = counting
    try:
        yield seen
    finally:
        catome.runtime.state.best_matches = real
