"""The denoising model of a pipeline, U-Net or transformer, as the studies see it."""

from __future__ import annotations

import torch
from diffusers.models.attention import BasicTransformerBlock

from catome.models import unet as unets
from catome.models.registry import family_of, find_models


def part_name(pipe) -> str:
    """Under which name a pipeline holds the model that denoises: ``unet`` or ``transformer``."""
    return "unet" if getattr(pipe, "unet", None) is not None else "transformer"


def check_has_unet(params, pipe) -> None:
    """Refuse a transformer where a study has methods that only a U-Net can have.

    Args:
        params: the study's, whose ``model`` named the pipeline.
        pipe: a pipeline.

    Raises:
        ValueError: if the pipeline's model is no U-Net.
    """
    if part_name(pipe) != "unet":
        raise ValueError(
            f"model={params.model!r} must have a U-Net: some of what is to be shown is made for U-Nets alone"
        )


def denoiser(pipe) -> torch.nn.Module:
    """The model of a pipeline that denoises, or the model itself, without wrappers."""
    return find_models(pipe)[0]


def transformer_blocks(model: torch.nn.Module) -> dict[str, BasicTransformerBlock]:
    """The transformer blocks of a U-Net or a transformer by module name, in the order in which they run."""
    if hasattr(model, "down_blocks"):
        return unets.transformer_blocks(model)
    return {
        name: module for name, module in model.named_modules() if isinstance(module, BasicTransformerBlock)
    }


def topmost_downsample(model: torch.nn.Module) -> int:
    """The number of latent pixels each way that a token of the topmost blocks stands for.

    Raises:
        TypeError: if a U-Net has no transformer block.
    """
    return unets.topmost_downsample(model) if hasattr(model, "down_blocks") else model.config.patch_size


def topmost_blocks(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The transformer blocks around the topmost self-attentions by name, in the order in which they run."""
    names = [attention.name.rpartition(".")[0] for attention in family_of(model).attentions(model, 1)]
    return {name: model.get_submodule(name) for name in names}
