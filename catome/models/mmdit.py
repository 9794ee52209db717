"""Diffusion transformers that attend to text and image together, in one sequence.

The image's place differs from model to model, and even from block to block. Text, registers and padding are
never merged, nor are reference images: where several images are in the sequence, the one that is being
generated is.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch

from catome.models.base import Family, Layout, ModelCall
from catome.models.layouts import (
    GridFunction,
    LayoutFunction,
    Stack,
    attentions_of,
    grid_of_positions,
    image_alone,
    image_first,
    image_last,
    latent_image,
    length,
    patch_size,
    placed,
    told_by,
)

_LATENTS = latent_image()


# Flux and its kin: text, the image, reference images. What is where in the image is told by `img_ids`.


def _text_then_positions(call: ModelCall, queries: int, keys: int) -> Layout | None:
    text = length(call, "encoder_hidden_states")
    if not queries == keys == text + length(call, "hidden_states"):
        return None
    return placed(text, grid_of_positions(call.arguments.get("img_ids"), 0), keys)


def _flux(*classes: str) -> tuple[Family, ...]:
    attentions = attentions_of(
        Stack("transformer_blocks", ("attn",), _text_then_positions),
        Stack("single_transformer_blocks", ("attn",), _text_then_positions),
    )
    return tuple(Family(name.removesuffix("Transformer2DModel"), (name,), attentions) for name in classes)


def _flux2(call: ModelCall, queries: int, keys: int) -> Layout | None:
    """As Flux, but for its cache of reference images, which lie between the text and the image.

    The call that fills the cache attends twice: from text and image to everything, and from the reference
    images to themselves.
    """
    if call.arguments.get("kv_cache_mode") is None:
        return _text_then_positions(call, queries, keys)
    text = length(call, "encoder_hidden_states")
    image = length(call, "hidden_states")
    references = call.arguments.get("num_ref_tokens") or 0
    if call.arguments["kv_cache_mode"] == "cached":
        positions = grid_of_positions(call.arguments.get("img_ids"), 0)
        references = getattr(call.arguments.get("kv_cache"), "num_ref_tokens", 0)
    else:
        positions = grid_of_positions(call.arguments.get("img_ids"), references)
        image -= references
    if queries != text + image or keys != text + references + image:
        return None
    return placed(text + references, positions, keys)


def _image_positions(call: ModelCall, queries: int, keys: int) -> Layout | None:
    """The layout of Flux 3's early blocks, which have the image alone."""
    if not queries == keys == length(call, "hidden_states"):
        return None
    return placed(0, grid_of_positions(call.arguments.get("img_ids"), 0), keys)


def _flux3(call: ModelCall, queries: int, keys: int) -> Layout | None:
    text = length(call, "encoder_hidden_states")
    if not queries == keys == text + length(call, "hidden_states") + length(call, "image_cond_hidden_states"):
        return None
    return placed(text, grid_of_positions(call.arguments.get("img_ids"), 0), keys)


def _krea2(call: ModelCall, queries: int, keys: int) -> Layout | None:
    """Text, then the image; the positions are those of both."""
    text = length(call, "encoder_hidden_states")
    if not queries == keys == text + length(call, "hidden_states"):
        return None
    return placed(text, grid_of_positions(call.arguments.get("position_ids"), text), keys)


def _ideogram4(call: ModelCall, queries: int, keys: int) -> Layout | None:
    """One sequence of padding, text and image, told apart by ``indicator``; the image is at its end."""
    indicator = call.arguments.get("indicator")
    if not isinstance(indicator, torch.Tensor) or not queries == keys == indicator.shape[1]:
        return None
    first = told_by(indicator, "image", _last_run)
    if first is None:
        return None
    return placed(first, grid_of_positions(call.arguments.get("position_ids"), first), keys)


def _last_run(rows: torch.Tensor) -> int | None:
    """The place where the last run of equal values begins, the same in all rows; None if it is not."""
    same = rows == rows[0, -1]
    run = same.flip(1).long().cumprod(1).sum(1)
    return rows.shape[1] - int(run[0]) if bool((run == run[0]).all()) else None


# Models that are told the shapes of their images as Python's numbers.


def _shape(shapes: Any) -> tuple[int, int, int] | None:
    """The first shape in nested lists of them."""
    while isinstance(shapes, (list, tuple)) and shapes and isinstance(shapes[0], (list, tuple)):
        shapes = shapes[0]
    if not isinstance(shapes, (list, tuple)) or len(shapes) != 3:
        return None
    frames, height, width = (operator.index(size) for size in shapes)
    return frames, height, width


def _qwen(call: ModelCall, queries: int, keys: int) -> Layout | None:
    text = length(call, "encoder_hidden_states")
    if not queries == keys == text + length(call, "hidden_states"):
        return None
    return placed(text, _shape(call.arguments.get("img_shapes")), keys)


def _nucleus(call: ModelCall, queries: int, keys: int) -> Layout | None:
    """Only the image has queries, and its keys come first."""
    image = length(call, "hidden_states")
    if queries != image or keys < image:
        return None
    return placed(0, _shape(call.arguments.get("img_shapes")), keys)


_TOKENS_OF_A_SLOT = 4
"""Tokens of an image for which the text of Qwen-Image 2.1 holds one place."""


def _qwen21(call: ModelCall, queries: int, keys: int) -> Layout | None:
    """Text with reference images in it, then the image.

    The text and each reference image attend on their own to what lies before them; only the image's call is
    merged.
    """
    shapes = call.arguments.get("img_shapes")
    grid = _shape(shapes[0][-1]) if shapes and shapes[0] else None
    if grid is None:
        return None
    image = math.prod(grid)
    images = length(call, "hidden_states")
    references = images - image
    text = length(call, "encoder_hidden_states") - references // _TOKENS_OF_A_SLOT
    if queries != image or keys != text + images:
        return None
    return placed(keys - image, grid, keys)


def _joy_plus(call: ModelCall, queries: int, keys: int) -> Layout | None:
    """Of each sample's images, padded to the same number of tokens, the first is generated; then the text."""
    shapes = call.arguments.get("shape_list")
    if not shapes or queries != keys or len({tuple(images[0]) for images in shapes}) != 1:
        return None
    return placed(0, _shape(shapes[0][0]), keys)


def _joy(call: ModelCall) -> tuple[int, int, int] | None:
    """Latents ``[B, C, T, H, W]``, or ``[B, N, C, T, H, W]`` of N images, the last of which is generated.

    The model puts it first.
    """
    sample = call.arguments.get("hidden_states")
    if not isinstance(sample, torch.Tensor) or sample.ndim not in (5, 6):
        return None
    sizes = [size // patch for size, patch in zip(sample.shape[-3:], patch_size(call.model), strict=True)]
    return sizes[0], sizes[1], sizes[2]


# Models that get latents and cut them into tokens themselves.


def _hunyuan(call: ModelCall) -> tuple[int, int, int] | None:
    """Latents of an image, or of a video."""
    sample = call.arguments.get("hidden_states")
    if not isinstance(sample, torch.Tensor) or sample.ndim not in (4, 5):
        return None
    sizes = (1, *sample.shape[2:])[-3:]
    frames, height, width = (size // patch for size, patch in zip(sizes, patch_size(call.model), strict=True))
    return frames, height, width


def _lengths(mask: torch.Tensor) -> set[int]:
    """The lengths of the prompts whose mask this is."""
    return {int(count) for count in mask.sum(dim=1)}


def _lumina2(call: ModelCall, queries: int, keys: int) -> Layout | None:
    """Each prompt's own tokens, then the image's, which must begin at the same place in the whole batch."""
    mask = call.arguments.get("encoder_attention_mask")
    grid = _LATENTS(call)
    if grid is None or queries != keys or not isinstance(mask, torch.Tensor):
        return None
    text = told_by(mask, "lengths", _lengths)
    if len(text) != 1 or keys != min(text) + math.prod(grid):
        return None
    return placed(min(text), grid, keys)


def _z_image(call: ModelCall) -> tuple[int, int, int] | None:
    """A list of latents ``[C, F, H, W]``, all of the same size.

    Nothing is told of lists of lists, which have reference images.
    """
    images = call.arguments.get("x")
    if images is None or not all(isinstance(image, torch.Tensor) and image.ndim == 4 for image in images):
        return None
    sizes = {tuple(image.shape[1:]) for image in images}
    if len(sizes) != 1:
        return None
    frames, height, width = sizes.pop()
    patch = call.arguments.get("patch_size", 2)
    return frames // call.arguments.get("f_patch_size", 1), height // patch, width // patch


def _fibo2_refiner(call: ModelCall, queries: int, keys: int) -> Layout | None:
    """The image, then reference images."""
    grid = _LATENTS(call)
    if grid is None or not queries == keys == math.prod(grid) + _fibo2_references(call):
        return None
    return placed(0, grid, keys)


def _fibo2(call: ModelCall, queries: int, keys: int) -> Layout | None:
    """A summary of the prompt, the image, reference images.

    Prompts of different lengths may have summaries of different lengths, which are padded and come last.
    """
    mask = call.arguments.get("encoder_attention_mask")
    alone = not isinstance(mask, torch.Tensor) or len(mask) == 1
    grid = _LATENTS(call)
    if grid is None or queries != keys or not (alone or len(told_by(mask, "lengths", _lengths)) == 1):
        return None
    return placed(keys - math.prod(grid) - _fibo2_references(call), grid, keys)


def _fibo2_references(call: ModelCall) -> int:
    _, height, width = patch_size(call.model)
    references = call.arguments.get("context_latents") or ()
    return sum((latents.shape[2] // height) * (latents.shape[3] // width) for latents in references)


def _glm(call: ModelCall, queries: int, keys: int) -> Layout | None:
    """Reference images and text, as far as the cache holds them, then the image.

    The calls that fill the cache have a reference image in the image's place.
    """
    caches = call.arguments.get("kv_caches")
    grid = _LATENTS(call)
    if grid is None or queries != length(call, "encoder_hidden_states") + math.prod(grid) or keys < queries:
        return None
    if caches is not None and caches[0].mode == "write":
        return None
    return placed(keys - math.prod(grid), grid, keys)


def _text_in_front(grid: GridFunction) -> LayoutFunction:
    """The layout function of an attention in which only the image has queries, and its keys come last."""

    def layout(call: ModelCall, queries: int, keys: int) -> Layout | None:
        size = grid(call)
        if (
            size is None
            or queries != math.prod(size)
            or keys != queries + length(call, "encoder_hidden_states")
        ):
            return None
        return placed(keys - queries, size, keys)

    return layout


FAMILIES: tuple[Family, ...] = (
    *_flux(
        "FluxTransformer2DModel",
        "ChromaTransformer2DModel",
        "OvisImageTransformer2DModel",
        "LongCatImageTransformer2DModel",
        "BriaTransformer2DModel",
        "BriaFiboTransformer2DModel",
    ),
    Family(
        "Flux2",
        ("Flux2Transformer2DModel",),
        attentions_of(
            Stack("transformer_blocks", ("attn",), _flux2),
            Stack("single_transformer_blocks", ("attn",), _flux2),
        ),
    ),
    Family(
        "Flux3",
        ("Flux3Transformer2DModel",),
        attentions_of(
            Stack("mode_blocks.image", ("attn",), _image_positions),
            Stack("single_transformer_blocks", ("attn",), _flux3),
        ),
    ),
    # the second attention of Stable Diffusion 3.5 has the image alone; either way its tokens come first
    Family(
        "SD3",
        ("SD3Transformer2DModel",),
        attentions_of(Stack("transformer_blocks", ("attn", "attn2"), image_first(_LATENTS))),
    ),
    Family(
        "AuraFlow",
        ("AuraFlowTransformer2DModel",),
        attentions_of(
            Stack("joint_transformer_blocks", ("attn",), image_last(_LATENTS)),
            Stack("single_transformer_blocks", ("attn",), image_last(_LATENTS)),
        ),
    ),
    Family(
        "CogView3Plus",
        ("CogView3PlusTransformer2DModel",),
        attentions_of(Stack("transformer_blocks", ("attn1",), image_last(_LATENTS))),
    ),
    Family(
        "CogView4",
        ("CogView4Transformer2DModel",),
        attentions_of(Stack("transformer_blocks", ("attn1",), image_last(_LATENTS))),
    ),
    Family(
        "GLM-Image",
        ("GlmImageTransformer2DModel",),
        attentions_of(Stack("transformer_blocks", ("attn1",), _glm)),
    ),
    Family(
        "Lumina2",
        ("Lumina2Transformer2DModel",),
        attentions_of(
            Stack("noise_refiner", ("attn",), image_alone(_LATENTS)),
            Stack("layers", ("attn",), _lumina2),
        ),
    ),
    Family(
        "Z-Image",
        ("ZImageTransformer2DModel",),
        attentions_of(
            Stack("noise_refiner", ("attention",), image_first(_z_image)),
            Stack("layers", ("attention",), image_first(_z_image)),
        ),
        timestep="t",
        sample="x",
        condition="cap_feats",
    ),
    Family(
        "FIBO2",
        ("BriaFibo2Transformer2DModel",),
        attentions_of(
            Stack("noise_refiner", ("attention",), _fibo2_refiner),
            Stack("layers", ("attention",), _fibo2),
        ),
    ),
    Family(
        "Qwen-Image",
        ("QwenImageTransformer2DModel",),
        attentions_of(Stack("transformer_blocks", ("attn",), _qwen)),
    ),
    Family(
        "Qwen-Image 2.1",
        ("QwenImage21Transformer2DModel",),
        attentions_of(Stack("transformer_blocks", ("attn",), _qwen21)),
    ),
    Family(
        "Nucleus-Image",
        ("NucleusMoEImageTransformer2DModel",),
        attentions_of(Stack("transformer_blocks", ("attn",), _nucleus)),
    ),
    Family(
        "HunyuanImage",
        ("HunyuanImageTransformer2DModel",),
        attentions_of(
            Stack("transformer_blocks", ("attn",), image_first(_hunyuan)),
            Stack("single_transformer_blocks", ("attn",), image_first(_hunyuan)),
        ),
    ),
    Family(
        "HiDream",
        ("HiDreamImageTransformer2DModel",),
        attentions_of(
            Stack("double_stream_blocks", ("block.attn1",), image_first(_LATENTS)),
            Stack("single_stream_blocks", ("block.attn1",), image_first(_LATENTS)),
        ),
        timestep="timesteps",
        condition="encoder_hidden_states_t5",
    ),
    Family(
        "OmniGen",
        ("OmniGenTransformer2DModel",),
        attentions_of(Stack("layers", ("self_attn",), image_last(_LATENTS))),
        condition="input_ids",
    ),
    Family(
        "ERNIE-Image",
        ("ErnieImageTransformer2DModel",),
        attentions_of(Stack("layers", ("self_attention",), image_first(_LATENTS))),
        condition="text_bth",
    ),
    Family(
        "PRX",
        ("PRXTransformer2DModel",),
        attentions_of(Stack("blocks", ("attention",), _text_in_front(_LATENTS))),
    ),
    Family(
        "Krea2", ("Krea2Transformer2DModel",), attentions_of(Stack("transformer_blocks", ("attn",), _krea2))
    ),
    Family(
        "Ideogram4",
        ("Ideogram4Transformer2DModel",),
        attentions_of(Stack("layers", ("attention",), _ideogram4)),
    ),
    Family(
        "JoyImage-Edit",
        ("JoyImageEditTransformer3DModel",),
        attentions_of(Stack("double_blocks", ("attn",), image_first(_joy))),
    ),
    Family(
        "JoyImage-Edit-Plus",
        ("JoyImageEditPlusTransformer3DModel",),
        attentions_of(Stack("double_blocks", ("attn",), _joy_plus)),
    ),
)
