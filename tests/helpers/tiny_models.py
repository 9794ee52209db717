"""Tiny models of every family of diffusion transformers, with random weights, and inputs for them.

What image ``i`` of a batch is given depends on ``seed + i`` alone, so that a model's answers for images on
their own and in a batch can be compared. Images are 8 by 12 tokens, not square, so that height and width
cannot be mistaken for each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import nn

FRAMES = 2
HEIGHT = 8
WIDTH = 12
IMAGE = (1, HEIGHT, WIDTH)
VIDEO = (FRAMES, HEIGHT, WIDTH)
TEXT = 5
"""Tokens of a prompt."""


@dataclass(frozen=True)
class TinyModel:
    """A tiny model.

    Attributes:
        name: what it is called.
        build: makes the model, always with the same weights.
        inputs: ``inputs(batch, timestep, seed)`` makes the arguments of a call.
        attentions: how many self-attentions the family declares on it.
        grid: the true frames, height and width in tokens of what is generated.
        mark: ``mark(inputs, frame, row, column)`` returns the inputs with that one token's latents changed.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, float, int], dict]
    attentions: int
    grid: tuple[int, int, int]
    mark: Callable[[dict, int, int, int], dict]


# Weights.


def _built(name: str, **config: Any) -> Callable[[], nn.Module]:
    """A builder of the diffusers class ``name``.

    All parameters are drawn anew: what diffusers sets to zero, gates above all, hides what attention does.
    """

    def build() -> nn.Module:
        torch.manual_seed(0)
        model = getattr(diffusers, name)(**config).eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / math.sqrt(parameter[0].numel()))
            elif path.endswith("weight"):  # of a norm
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(0.3 * noise)
        return model

    return build


# Inputs.


def _noise(batch: int, seed: int, salt: int, *shape: int) -> torch.Tensor:
    """Random numbers ``[batch, *shape]``, those of image ``i`` from ``seed + i``.

    ``salt`` tells arguments apart.
    """
    return torch.stack(
        [
            torch.randn(shape, generator=torch.Generator().manual_seed(1000 * (seed + index) + salt))
            for index in range(batch)
        ]
    )


def _arguments(
    sample: tuple[int, ...], text: tuple[int, ...], steps: tuple[int, ...] = (), **others: Any
) -> Callable[[int, float, int], dict]:
    """The inputs of most models: latents of that shape, a prompt's embedding of that shape, timesteps.

    ``steps`` is the shape of one image's timestep. Another argument is a value, or a function of batch and
    seed; with the value None it is not passed.
    """

    def inputs(batch: int, timestep: float, seed: int) -> dict:
        arguments = {
            "hidden_states": _noise(batch, seed, 0, *sample),
            "encoder_hidden_states": _noise(batch, seed, 1, *text),
            "timestep": torch.full((batch, *steps), timestep),
            "return_dict": False,
        }
        for name, value in others.items():
            arguments[name] = value(batch, seed) if callable(value) else value
        return {name: value for name, value in arguments.items() if value is not None}

    return inputs


def _renamed_timestep(name: str, *sizes: tuple[int, ...], **others: Any) -> Callable[[int, float, int], dict]:
    """The same for a model whose timestep is called ``name``."""
    inputs = _arguments(*sizes, **others)

    def renamed(batch: int, timestep: float, seed: int) -> dict:
        arguments = inputs(batch, timestep, seed)
        return {name: arguments.pop("timestep"), **arguments}

    return renamed


def _each(salt: int, *shape: int) -> Callable[[int, int], torch.Tensor]:
    return lambda batch, seed: _noise(batch, seed, salt, *shape)


def _repeated(value: Any) -> Callable[[int, int], torch.Tensor]:
    return lambda batch, seed: torch.tensor(value).expand(batch, *torch.tensor(value).shape).clone()


def _padded(dtype: torch.dtype = torch.long) -> Callable[[int, int], torch.Tensor]:
    """A mask of prompts whose last token is padding."""

    def mask(batch: int, seed: int) -> torch.Tensor:
        ones = torch.ones(batch, TEXT, dtype=dtype)
        ones[:, -1] = 0
        return ones

    return mask


def _positions(image: float, height: int, width: int, axes: int = 3) -> torch.Tensor:
    """Positions of an image's tokens as the pipelines make them: the image, the row, the column."""
    positions = torch.zeros(height, width, axes)
    positions[..., 0] = image
    positions[..., 1] += torch.arange(height)[:, None]
    positions[..., 2] += torch.arange(width)[None, :]
    return positions.reshape(height * width, axes)


def _rope(positions: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines ``[tokens, dim]`` of rotary embeddings."""
    frequencies = 0.3 ** torch.arange(dim // 4)
    angles = torch.cat([positions[:, 1:2] * frequencies, positions[:, 2:3] * frequencies], dim=1)
    angles = angles.repeat_interleave(2, dim=1)
    return angles.cos(), angles.sin()


# How a token's latents are changed.


def _mark_latents(
    patch: tuple[int, int, int] = (1, 1, 1),
    axes: tuple[int | None, int, int] = (None, -2, -1),
    name: str = "hidden_states",
) -> Callable[[dict, int, int, int], dict]:
    """Marks latents whose frames, rows and columns are on ``axes``."""

    def mark(inputs: dict, frame: int, row: int, column: int) -> dict:
        sample = inputs[name].clone()
        place = [slice(None)] * sample.ndim
        for axis, index, size in zip(axes, (frame, row, column), patch, strict=True):
            if axis is not None:
                place[axis] = slice(index * size, (index + 1) * size)
        token = sample[tuple(place)]
        token += torch.linspace(1, 2, token.numel()).reshape(token.shape)
        return {**inputs, name: sample}

    return mark


def _mark_tokens(first: int = 0) -> Callable[[dict, int, int, int], dict]:
    """Marks latents that are tokens already, frame by frame and row by row from ``first`` on."""

    def mark(inputs: dict, frame: int, row: int, column: int) -> dict:
        sample = inputs["hidden_states"].clone()
        token = sample[:, first + (frame * HEIGHT + row) * WIDTH + column]
        token += torch.linspace(1, 2, token.numel()).reshape(token.shape)
        return {**inputs, "hidden_states": sample}

    return mark


_PATCH = (1, 2, 2)
_MARK_IMAGE = _mark_latents(_PATCH)
_MARK_VIDEO = _mark_latents(_PATCH, (2, 3, 4))
_MARK_FRAMES_FIRST = _mark_latents(_PATCH, (1, 3, 4))
_LATENT_IMAGE = (4, 2 * HEIGHT, 2 * WIDTH)
_LATENT_VIDEO = (4, FRAMES, 2 * HEIGHT, 2 * WIDTH)

_HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
_TOKENS = HEIGHT * WIDTH
_VIDEO_TOKENS = FRAMES * HEIGHT * WIDTH
_ROPE = (4, 6, 6)
"""The division of the 16 channels of a head among frames, rows and columns."""

# Models with image tokens only.

_DIT = (
    TinyModel(
        "dit",
        _built(
            "DiTTransformer2DModel",
            **_HEADS,
            in_channels=4,
            num_layers=2,
            sample_size=16,
            patch_size=2,
            num_embeds_ada_norm=10,
        ),
        # its forward puts squares together, nothing else
        _arguments(
            (4, 16, 16),
            (TEXT, 32),
            encoder_hidden_states=None,
            class_labels=lambda batch, seed: (seed + torch.arange(batch)) % 10,
        ),
        2,
        (1, 8, 8),
        _MARK_IMAGE,
    ),
    TinyModel(
        "pixart",
        _built(
            "PixArtTransformer2DModel",
            **_HEADS,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            cross_attention_dim=32,
            sample_size=16,
            patch_size=2,
            caption_channels=24,
            use_additional_conditions=False,
        ),
        _arguments(
            _LATENT_IMAGE,
            (TEXT, 24),
            encoder_attention_mask=_padded(),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ),
        2,
        IMAGE,
        _MARK_IMAGE,
    ),
    TinyModel(
        "transformer-2d",
        _built(
            "Transformer2DModel",
            **_HEADS,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            cross_attention_dim=32,
            sample_size=16,
            patch_size=2,
            norm_type="ada_norm_single",
            num_embeds_ada_norm=10,
            caption_channels=24,
        ),
        _arguments(
            _LATENT_IMAGE,
            (TEXT, 24),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ),
        2,
        IMAGE,
        _MARK_IMAGE,
    ),
    TinyModel(
        "hunyuan-dit",
        _built(
            "HunyuanDiT2DModel",
            **_HEADS,
            in_channels=4,
            patch_size=2,
            sample_size=16,
            hidden_size=32,
            num_layers=4,
            cross_attention_dim=24,
            cross_attention_dim_t5=24,
            pooled_projection_dim=16,
            text_len=TEXT,
            text_len_t5=TEXT,
            learn_sigma=False,
            use_style_cond_and_image_meta_size=False,
        ),
        _arguments(
            _LATENT_IMAGE,
            (TEXT, 24),
            text_embedding_mask=_padded(),
            encoder_hidden_states_t5=_each(2, TEXT, 24),
            text_embedding_mask_t5=_padded(),
            image_rotary_emb=_rope(_positions(0, HEIGHT, WIDTH), 16),
        ),
        4,
        IMAGE,
        _MARK_IMAGE,
    ),
    TinyModel(
        "lumina-next",
        _built(
            "LuminaNextDiT2DModel",
            sample_size=16,
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            cross_attention_dim=24,
            learn_sigma=False,
        ),
        _arguments(
            _LATENT_IMAGE,
            (TEXT, 24),
            encoder_mask=_padded(),
            image_rotary_emb=torch.complex(*_rope(_positions(0, 16, 16), 16))[:, ::2].view(16, 16, 8),
            cross_attention_kwargs={},
        ),
        2,
        IMAGE,
        _MARK_IMAGE,
    ),
)

# Models in which text and image are attended to together.

_FLUX_IDS = {"img_ids": _positions(0, HEIGHT, WIDTH), "txt_ids": torch.zeros(TEXT, 3)}
_FLUX_LAYERS = {"num_layers": 1, "num_single_layers": 1, "in_channels": 16, "joint_attention_dim": 24}
_FLUX = _built(
    "FluxTransformer2DModel",
    **_HEADS,
    **_FLUX_LAYERS,
    pooled_projection_dim=8,
    axes_dims_rope=_ROPE,
)
_FLUX2 = _built(
    "Flux2Transformer2DModel",
    **_HEADS,
    **_FLUX_LAYERS,
    timestep_guidance_channels=16,
    axes_dims_rope=(4, 4, 4, 4),
    guidance_embeds=False,
)
_REFERENCE = 4 * 6
"""Tokens of a reference image of 4 × 6."""


def _flux2_with_cache() -> nn.Module:
    """Flux 2 with the attention that keeps reference images' keys."""
    from diffusers.models.transformers import transformer_flux2

    model = _FLUX2()
    for block in model.transformer_blocks:
        block.attn.set_processor(transformer_flux2.Flux2KVAttnProcessor())
    for block in model.single_transformer_blocks:
        block.attn.set_processor(transformer_flux2.Flux2KVParallelSelfAttnProcessor())
    return model


def _flux2_cache(batch: int, seed: int) -> Any:
    """The cache that Flux 2 keeps of a reference image."""
    from diffusers.models.transformers.transformer_flux2 import Flux2KVCache

    cache = Flux2KVCache(num_double_layers=1, num_single_layers=1)
    cache.num_ref_tokens = _REFERENCE
    for salt, layer in enumerate((cache.get_double(0), cache.get_single(0))):
        layer.store(
            _noise(batch, seed, 10 + salt, _REFERENCE, 2, 16),
            _noise(batch, seed, 20 + salt, _REFERENCE, 2, 16),
        )
    return cache


def _glm_cache(batch: int, seed: int) -> Any:
    """The cache that GLM-Image keeps of each image's reference image."""
    from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

    cache = GlmImageKVCache(num_layers=2)
    for image in range(batch):
        for salt in range(2):
            keys = _noise(1, seed + image, 10 + salt, _REFERENCE, 2, 16)
            values = _noise(1, seed + image, 20 + salt, _REFERENCE, 2, 16)
            cache[salt].store(keys, values)
        cache.next_sample()
    cache.set_mode("read")
    return cache


def _qwen_cache(batch: int, seed: int) -> Any:
    """The cache that Qwen-Image 2.1 keeps of a prompt with a reference image in it."""
    from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

    cache = QwenImage21KVCache(num_layers=2)
    for salt in range(2):
        keys = _noise(batch, seed, 10 + salt, TEXT + _REFERENCE, 2, 16)
        cache.get_layer(salt).store(keys, _noise(batch, seed, 20 + salt, TEXT + _REFERENCE, 2, 16))
    return cache


def _z_image(batch: int, timestep: float, seed: int) -> dict:
    """The inputs of Z-Image: lists. Its 8 × 13 tokens are padded to 128, its prompt to 32."""
    return {
        "x": list(_noise(batch, seed, 0, 4, 1, 16, 26)),
        "t": torch.full((batch,), timestep),
        "cap_feats": list(_noise(batch, seed, 1, TEXT, 24)),
        "return_dict": False,
    }


def _mark_z_image(inputs: dict, frame: int, row: int, column: int) -> dict:
    marked = _mark_latents(_PATCH, (1, 2, 3), "image")
    return {**inputs, "x": [marked({"image": image}, frame, row, column)["image"] for image in inputs["x"]]}


def _mark_joy(inputs: dict, frame: int, row: int, column: int) -> dict:
    """Marks the last of two images, which is the one that is generated."""
    sample = inputs["hidden_states"]
    last = _MARK_VIDEO({"hidden_states": sample[:, -1]}, frame, row, column)["hidden_states"]
    return {**inputs, "hidden_states": torch.cat([sample[:, :-1], last[:, None]], dim=1)}


def _omnigen(batch: int, timestep: float, seed: int) -> dict:
    """The inputs of OmniGen: words, each of which attends to those before it, and an image."""
    tokens = TEXT + 1 + _TOKENS
    mask = torch.ones(tokens, tokens).tril()
    mask[TEXT + 1 :] = 1
    return {
        "hidden_states": _noise(batch, seed, 0, *_LATENT_IMAGE),
        "timestep": torch.full((batch,), timestep),
        "input_ids": (7 * (seed + torch.arange(batch))[:, None] + torch.arange(TEXT)) % 50 + 1,
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": mask.expand(batch, -1, -1).clone(),
        "position_ids": torch.arange(tokens).expand(batch, -1).clone(),
        "return_dict": False,
    }


_GLM = _built(
    "GlmImageTransformer2DModel",
    **_HEADS,
    in_channels=4,
    out_channels=4,
    num_layers=2,
    text_embed_dim=24,
    time_embed_dim=32,
    condition_dim=8,
    prior_vq_quantizer_codebook_size=16,
)
_GLM_ARGUMENTS: dict[str, Any] = {
    "prior_token_id": lambda batch, seed: (seed + torch.arange(batch))[:, None].expand(-1, _TOKENS) % 16,
    "prior_token_drop": lambda batch, seed: torch.zeros(batch, _TOKENS, dtype=torch.bool),
    "target_size": _repeated([64.0, 96.0]),
    "crop_coords": _repeated([0.0, 0.0]),
}
_QWEN21 = _built(
    "QwenImage21Transformer2DModel",
    **_HEADS,
    in_channels=16,
    out_channels=16,
    num_layers=2,
    context_in_dim=24,
    axes_dims_rope=_ROPE,
)
# a reference image within the prompt: one place there stands for four of its tokens
_QWEN21_SIZES = ((_REFERENCE + _TOKENS, 16), (TEXT + _REFERENCE // 4, 24))
_QWEN21_ARGUMENTS: dict[str, Any] = {
    "img_shapes": lambda batch, seed: [[(1, 4, 6), (1, HEIGHT, WIDTH)]] * batch,
    "img_mask": _repeated([False] * 3 + [True] * (_REFERENCE // 4) + [False] * 2 + [True] * (_TOKENS // 4)),
}


_MMDIT = (
    TinyModel(
        "flux",
        _FLUX,
        _arguments((_TOKENS, 16), (TEXT, 24), pooled_projections=_each(2, 8), **_FLUX_IDS),
        2,
        IMAGE,
        _mark_tokens(),
    ),
    TinyModel(
        "flux-kontext",
        _FLUX,
        _arguments(
            (_TOKENS + _REFERENCE, 16),
            (TEXT, 24),
            pooled_projections=_each(2, 8),
            img_ids=torch.cat([_positions(0, HEIGHT, WIDTH), _positions(1, 4, 6)]),
            txt_ids=torch.zeros(TEXT, 3),
        ),
        2,
        IMAGE,
        _mark_tokens(),
    ),
    TinyModel(
        "chroma",
        _built(
            "ChromaTransformer2DModel",
            **_HEADS,
            **_FLUX_LAYERS,
            axes_dims_rope=_ROPE,
            approximator_hidden_dim=16,
            approximator_layers=1,
        ),
        _arguments(
            (_TOKENS, 16),
            (TEXT, 24),
            attention_mask=lambda batch, seed: torch.cat(
                [_padded(torch.float32)(batch, seed), torch.ones(batch, _TOKENS)], dim=1
            ),
            **_FLUX_IDS,
        ),
        2,
        IMAGE,
        _mark_tokens(),
    ),
    TinyModel(
        "ovis-image",
        _built(
            "OvisImageTransformer2DModel", **_HEADS, **_FLUX_LAYERS, out_channels=16, axes_dims_rope=_ROPE
        ),
        _arguments((_TOKENS, 16), (TEXT, 24), **_FLUX_IDS),
        2,
        IMAGE,
        _mark_tokens(),
    ),
    TinyModel(
        "longcat-image-edit",
        _built("LongCatImageTransformer2DModel", **_HEADS, **_FLUX_LAYERS, axes_dims_rope=_ROPE),
        _arguments(
            (_TOKENS + _REFERENCE, 16),
            (TEXT, 24),
            # its pipeline counts on from the prompt's positions
            img_ids=torch.cat([_positions(1, HEIGHT, WIDTH), _positions(2, 4, 6)])
            + torch.tensor([0, TEXT, TEXT]),
            txt_ids=torch.zeros(TEXT, 3),
        ),
        2,
        IMAGE,
        _mark_tokens(),
    ),
    TinyModel(
        "bria",
        _built("BriaTransformer2DModel", **_HEADS, **_FLUX_LAYERS, axes_dims_rope=_ROPE),
        _arguments(
            (_TOKENS, 16),
            (TEXT, 24),
            img_ids=lambda batch, seed: _positions(0, HEIGHT, WIDTH).expand(batch, -1, -1),
            txt_ids=torch.zeros(TEXT, 3),
        ),
        2,
        IMAGE,
        _mark_tokens(),
    ),
    TinyModel(
        "bria-fibo",
        _built(
            "BriaFiboTransformer2DModel",
            **_HEADS,
            **_FLUX_LAYERS,
            axes_dims_rope=_ROPE,
            text_encoder_dim=24,
        ),
        _arguments(
            (_TOKENS, 16),
            (TEXT, 24),
            text_encoder_layers=lambda batch, seed: [_noise(batch, seed, salt, TEXT, 24) for salt in (2, 3)],
            **_FLUX_IDS,
        ),
        2,
        IMAGE,
        _mark_tokens(),
    ),
    TinyModel(
        "flux2",
        _FLUX2,
        _arguments(
            (_TOKENS + _REFERENCE, 16),
            (TEXT, 24),
            img_ids=lambda batch, seed: torch.cat(
                [_positions(0, HEIGHT, WIDTH, axes=4), _positions(10, 4, 6, axes=4)]
            ).expand(batch, -1, -1),
            txt_ids=lambda batch, seed: torch.zeros(batch, TEXT, 4),
        ),
        2,
        IMAGE,
        _mark_tokens(),
    ),
    TinyModel(
        "flux2-kv",
        _flux2_with_cache,
        _arguments(
            (_REFERENCE + _TOKENS, 16),
            (TEXT, 24),
            img_ids=lambda batch, seed: torch.cat(
                [_positions(10, 4, 6, axes=4), _positions(0, HEIGHT, WIDTH, axes=4)]
            ).expand(batch, -1, -1),
            txt_ids=lambda batch, seed: torch.zeros(batch, TEXT, 4),
            kv_cache_mode="extract",
            num_ref_tokens=_REFERENCE,
        ),
        2,
        IMAGE,
        _mark_tokens(_REFERENCE),
    ),
    TinyModel(
        "flux2-kv-cached",
        _flux2_with_cache,
        _arguments(
            (_TOKENS, 16),
            (TEXT, 24),
            img_ids=lambda batch, seed: _positions(0, HEIGHT, WIDTH, axes=4).expand(batch, -1, -1),
            txt_ids=lambda batch, seed: torch.zeros(batch, TEXT, 4),
            kv_cache_mode="cached",
            kv_cache=_flux2_cache,
        ),
        2,
        IMAGE,
        _mark_tokens(),
    ),
    TinyModel(
        "flux3",
        _built(
            "Flux3Transformer2DModel",
            **_HEADS,
            **_FLUX_LAYERS,
            cond_in_channels=16,
            timestep_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
        ),
        _arguments(
            (_TOKENS, 16),
            (TEXT, 24),
            img_ids=_positions(0, HEIGHT, WIDTH, axes=4),
            txt_ids=torch.zeros(TEXT, 4),
            image_cond_hidden_states=_each(2, _REFERENCE, 16),
            image_cond_ids=_positions(10, 4, 6, axes=4),
        ),
        2,
        IMAGE,
        _mark_tokens(),
    ),
    TinyModel(
        "sd3",
        _built(
            "SD3Transformer2DModel",
            **_HEADS,
            sample_size=16,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            joint_attention_dim=24,
            caption_projection_dim=32,
            pooled_projection_dim=8,
            pos_embed_max_size=16,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        _arguments(_LATENT_IMAGE, (TEXT, 24), pooled_projections=_each(2, 8)),
        3,
        IMAGE,
        _MARK_IMAGE,
    ),
    TinyModel(
        "auraflow",
        _built(
            "AuraFlowTransformer2DModel",
            **_HEADS,
            sample_size=32,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            joint_attention_dim=24,
            caption_projection_dim=32,
            pos_embed_max_size=256,
        ),
        _arguments(_LATENT_IMAGE, (TEXT, 24)),
        2,
        IMAGE,
        _MARK_IMAGE,
    ),
    TinyModel(
        "cogview3-plus",
        _built(
            "CogView3PlusTransformer2DModel",
            **_HEADS,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            text_embed_dim=24,
            time_embed_dim=32,
            condition_dim=8,
            pos_embed_max_size=16,
        ),
        _arguments(
            _LATENT_IMAGE,
            (TEXT, 24),
            original_size=_repeated([64.0, 96.0]),
            target_size=_repeated([64.0, 96.0]),
            crop_coords=_repeated([0.0, 0.0]),
        ),
        2,
        IMAGE,
        _MARK_IMAGE,
    ),
    TinyModel(
        "cogview4",
        _built(
            "CogView4Transformer2DModel",
            **_HEADS,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            text_embed_dim=24,
            time_embed_dim=32,
            condition_dim=8,
            rope_axes_dim=(16, 16),
        ),
        _arguments(
            _LATENT_IMAGE,
            (TEXT, 24),
            original_size=_repeated([64.0, 96.0]),
            target_size=_repeated([64.0, 96.0]),
            crop_coords=_repeated([0.0, 0.0]),
        ),
        2,
        IMAGE,
        _MARK_IMAGE,
    ),
    TinyModel(
        "glm-image", _GLM, _arguments(_LATENT_IMAGE, (TEXT, 24), **_GLM_ARGUMENTS), 2, IMAGE, _MARK_IMAGE
    ),
    TinyModel(
        "glm-image-edit",
        _GLM,
        _arguments(_LATENT_IMAGE, (TEXT, 24), **_GLM_ARGUMENTS, kv_caches=_glm_cache),
        2,
        IMAGE,
        _MARK_IMAGE,
    ),
    TinyModel(
        "lumina2",
        _built(
            "Lumina2Transformer2DModel",
            sample_size=16,
            in_channels=4,
            hidden_size=32,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=_ROPE,
            axes_lens=(32, 32, 32),
            cap_feat_dim=24,
        ),
        _arguments(_LATENT_IMAGE, (TEXT, 24), encoder_attention_mask=_padded(torch.bool)),
        2,
        IMAGE,
        _MARK_IMAGE,
    ),
    TinyModel(
        "z-image",
        _built(
            "ZImageTransformer2DModel",
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=24,
            axes_dims=list(_ROPE),
            axes_lens=[128, 32, 32],
        ),
        _z_image,
        2,
        (1, 8, 13),
        _mark_z_image,
    ),
    TinyModel(
        "bria-fibo2",
        _built(
            "BriaFibo2Transformer2DModel",
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            cap_feat_dim=24,
            injection_layer_ids=(1,),
            perceiver_num_layers=1,
            min_num_gist_tokens=4,
            max_num_gist_tokens=8,
            gist_step=4,
            axes_dims=_ROPE,
            axes_lens=(32, 32, 32),
        ),
        _arguments(
            _LATENT_IMAGE,
            (2, TEXT, 24),
            encoder_attention_mask=_padded(torch.bool),
            context_latents=lambda batch, seed: [_noise(batch, seed, 2, 4, 8, 12)],
        ),
        3,
        IMAGE,
        _MARK_IMAGE,
    ),
    TinyModel(
        "qwen-image",
        _built(
            "QwenImageTransformer2DModel",
            **_HEADS,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            joint_attention_dim=24,
            axes_dims_rope=_ROPE,
        ),
        _arguments(
            (_TOKENS, 16),
            (TEXT, 24),
            encoder_hidden_states_mask=_padded(torch.bool),
            img_shapes=lambda batch, seed: [[(1, HEIGHT, WIDTH)]] * batch,
        ),
        2,
        IMAGE,
        _mark_tokens(),
    ),
    TinyModel(
        "qwen-image-edit",
        _built(
            "QwenImageTransformer2DModel",
            **_HEADS,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            joint_attention_dim=24,
            axes_dims_rope=_ROPE,
            zero_cond_t=True,
        ),
        _arguments(
            (_TOKENS + _REFERENCE, 16),
            (TEXT, 24),
            img_shapes=lambda batch, seed: [[(1, HEIGHT, WIDTH), (1, 4, 6)]] * batch,
        ),
        2,
        IMAGE,
        _mark_tokens(),
    ),
    TinyModel(
        "qwen-image-2.1",
        _QWEN21,
        _arguments(*_QWEN21_SIZES, **_QWEN21_ARGUMENTS),
        2,
        IMAGE,
        _mark_tokens(_REFERENCE),
    ),
    TinyModel(
        "qwen-image-2.1-cached",
        _QWEN21,
        _arguments(*_QWEN21_SIZES, **_QWEN21_ARGUMENTS, kv_cache=_qwen_cache, kv_cache_mode="cached"),
        2,
        IMAGE,
        _mark_tokens(_REFERENCE),
    ),
    TinyModel(
        "nucleus-image",
        _built(
            "NucleusMoEImageTransformer2DModel",
            **_HEADS,
            in_channels=16,
            num_key_value_heads=1,
            num_layers=2,
            joint_attention_dim=24,
            axes_dims_rope=_ROPE,
            mlp_ratio=6.0,
            moe_enabled=False,
        ),
        _arguments(
            (_TOKENS, 16),
            (TEXT, 24),
            encoder_hidden_states_mask=_padded(torch.bool),
            img_shapes=lambda batch, seed: [(1, HEIGHT, WIDTH)] * batch,
        ),
        2,
        IMAGE,
        _mark_tokens(),
    ),
    TinyModel(
        "hunyuan-image",
        _built(
            "HunyuanImageTransformer2DModel",
            **_HEADS,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=(1, 1),
            text_embed_dim=24,
            rope_axes_dim=(8, 8),
        ),
        _arguments((4, HEIGHT, WIDTH), (TEXT, 24), encoder_attention_mask=_padded()),
        2,
        IMAGE,
        _mark_latents(),
    ),
    TinyModel(
        "hidream",
        _built(
            "HiDreamImageTransformer2DModel",
            **_HEADS,
            patch_size=2,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            caption_channels=[24, 24],
            text_emb_dim=8,
            num_routed_experts=0,
            axes_dims_rope=_ROPE,
            max_resolution=(16, 32),
            llama_layers=[0, 1],
        ),
        _renamed_timestep(
            "timesteps",
            _LATENT_IMAGE,
            (TEXT, 24),
            encoder_hidden_states=None,
            encoder_hidden_states_t5=_each(1, TEXT, 24),
            encoder_hidden_states_llama3=lambda batch, seed: torch.stack(
                [_noise(batch, seed, salt, TEXT, 24) for salt in (2, 3)]
            ),
            pooled_embeds=_each(4, 8),
        ),
        2,
        IMAGE,
        _MARK_IMAGE,
    ),
    TinyModel(
        "omnigen",
        _built(
            "OmniGenTransformer2DModel",
            hidden_size=32,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=64,
            num_layers=2,
            pad_token_id=0,
            vocab_size=64,
            max_position_embeddings=256,
            original_max_position_embeddings=256,
            rope_scaling={"short_factor": [1.0] * 8, "long_factor": [1.0] * 8},
            pos_embed_max_size=16,
            time_step_dim=16,
        ),
        _omnigen,
        2,
        IMAGE,
        _MARK_IMAGE,
    ),
    TinyModel(
        "ernie-image",
        _built(
            "ErnieImageTransformer2DModel",
            hidden_size=32,
            num_attention_heads=2,
            num_layers=2,
            ffn_hidden_size=64,
            in_channels=4,
            out_channels=4,
            text_in_dim=24,
            rope_axes_dim=_ROPE,
        ),
        _arguments(
            (4, HEIGHT, WIDTH),
            (TEXT, 24),
            encoder_hidden_states=None,
            text_bth=_each(1, TEXT, 24),
            text_lens=_repeated(TEXT - 1),
        ),
        2,
        IMAGE,
        _mark_latents(),
    ),
    TinyModel(
        "prx",
        _built(
            "PRXTransformer2DModel",
            in_channels=4,
            context_in_dim=24,
            hidden_size=32,
            num_heads=2,
            depth=2,
            axes_dim=[8, 8],
        ),
        _arguments(_LATENT_IMAGE, (TEXT, 24), attention_mask=_padded(torch.bool)),
        2,
        IMAGE,
        _MARK_IMAGE,
    ),
    TinyModel(
        "krea2",
        _built(
            "Krea2Transformer2DModel",
            **_HEADS,
            in_channels=16,
            num_layers=2,
            num_key_value_heads=1,
            intermediate_size=64,
            timestep_embed_dim=16,
            text_hidden_dim=32,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=32,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=_ROPE,
        ),
        _arguments(
            (_TOKENS, 16),
            (TEXT, 2, 32),
            position_ids=torch.cat([torch.zeros(TEXT, 3), _positions(0, HEIGHT, WIDTH)]),
            encoder_attention_mask=_padded(torch.bool),
        ),
        2,
        IMAGE,
        _mark_tokens(),
    ),
    TinyModel(
        "ideogram4",
        _built(
            "Ideogram4Transformer2DModel",
            **_HEADS,
            in_channels=16,
            num_layers=2,
            intermediate_size=64,
            adaln_dim=16,
            llm_features_dim=24,
            mrope_section=(4, 2, 2),
        ),
        # padding, four tokens of text, the image
        _arguments(
            (TEXT + _TOKENS, 16),
            (TEXT + _TOKENS, 24),
            position_ids=lambda batch, seed: torch.cat(
                [
                    torch.arange(-1, 4).clamp(min=0)[:, None].expand(-1, 3),
                    _positions(0, HEIGHT, WIDTH).long() + 1000,
                ]
            ).expand(batch, -1, -1),
            segment_ids=_repeated([-1] + [1] * (TEXT - 1 + _TOKENS)),
            indicator=_repeated([0] + [3] * (TEXT - 1) + [2] * _TOKENS),
        ),
        2,
        IMAGE,
        _mark_tokens(TEXT),
    ),
    TinyModel(
        "joyimage-edit",
        _built(
            "JoyImageEditTransformer3DModel",
            patch_size=[1, 2, 2],
            in_channels=4,
            hidden_size=32,
            num_attention_heads=2,
            text_dim=24,
            num_layers=2,
            rope_dim_list=list(_ROPE),
        ),
        _arguments((2, 4, 1, 2 * HEIGHT, 2 * WIDTH), (TEXT, 24)),
        2,
        IMAGE,
        _mark_joy,
    ),
    TinyModel(
        "joyimage-edit-plus",
        _built(
            "JoyImageEditPlusTransformer3DModel",
            patch_size=[1, 2, 2],
            in_channels=4,
            hidden_size=32,
            num_attention_heads=2,
            text_dim=24,
            num_layers=2,
            rope_dim_list=list(_ROPE),
        ),
        _arguments(
            (_TOKENS + _REFERENCE, 4, 1, 2, 2),
            (TEXT, 24),
            encoder_hidden_states_mask=_padded(torch.float32),
            shape_list=lambda batch, seed: [[(1, HEIGHT, WIDTH), (1, 4, 6)]] * batch,
        ),
        2,
        IMAGE,
        _mark_tokens(),
    ),
)

# Models of video.

_WAN = {
    **_HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 24,
    "freq_dim": 16,
    "ffn_dim": 64,
    "num_layers": 2,
}
_COGVIDEO = {
    **_HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 32,
    "text_embed_dim": 24,
    "num_layers": 2,
    "sample_width": 2 * WIDTH,
    "sample_height": 2 * HEIGHT,
    "sample_frames": 4 * FRAMES - 3,
    "max_text_seq_length": TEXT,
}
_HUNYUAN = {
    **_HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "guidance_embeds": False,
    "text_embed_dim": 24,
    "pooled_projection_dim": 8,
    "rope_axes_dim": _ROPE,
}
_KANDINSKY = {
    "in_visual_dim": 4,
    "in_text_dim": 24,
    "in_text_dim2": 8,
    "time_dim": 16,
    "out_visual_dim": 4,
    "model_dim": 32,
    "ff_dim": 64,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": _ROPE,
}
_FRAMES_FIRST = (FRAMES, 4, 2 * HEIGHT, 2 * WIDTH)
_CHANNELS_LAST = (FRAMES, 2 * HEIGHT, 2 * WIDTH, 4)
_SIZES = {"num_frames": FRAMES, "height": HEIGHT, "width": WIDTH}

_VIDEO = (
    TinyModel(
        "wan",
        _built("WanTransformer3DModel", **_WAN),
        _arguments(_LATENT_VIDEO, (TEXT, 24)),
        2,
        VIDEO,
        _MARK_VIDEO,
    ),
    TinyModel(
        "wan-vace",
        _built("WanVACETransformer3DModel", **_WAN, vace_layers=[0], vace_in_channels=6),
        _arguments(
            _LATENT_VIDEO, (TEXT, 24), control_hidden_states=_each(2, 6, FRAMES, 2 * HEIGHT, 2 * WIDTH)
        ),
        3,
        VIDEO,
        _MARK_VIDEO,
    ),
    TinyModel(
        "wan-animate",
        _built(
            "WanAnimateTransformer3DModel",
            **{**_WAN, "in_channels": 12, "latent_channels": 4, "image_dim": None},
            motion_encoder_channel_sizes={"4": 8, "8": 8},
            motion_encoder_size=8,
            motion_style_dim=8,
            motion_dim=4,
            motion_encoder_dim=8,
            face_encoder_hidden_dim=8,
            face_encoder_num_heads=2,
            inject_face_latents_blocks=1,
        ),
        _arguments(
            (12, FRAMES, 2 * HEIGHT, 2 * WIDTH),
            (TEXT, 24),
            pose_hidden_states=_each(2, 4, FRAMES - 1, 2 * HEIGHT, 2 * WIDTH),
            face_pixel_values=_each(3, 3, 4 * (FRAMES - 1), 8, 8),
        ),
        2,
        VIDEO,
        _MARK_VIDEO,
    ),
    TinyModel(
        "chronoedit",
        _built("ChronoEditTransformer3DModel", **_WAN),
        _arguments(_LATENT_VIDEO, (TEXT, 24)),
        2,
        VIDEO,
        _MARK_VIDEO,
    ),
    TinyModel(
        "skyreels-v2",
        _built("SkyReelsV2Transformer3DModel", **_WAN),
        _arguments(_LATENT_VIDEO, (TEXT, 24)),
        2,
        VIDEO,
        _MARK_VIDEO,
    ),
    TinyModel(
        "anyflow",
        _built("AnyFlowTransformer3DModel", **_WAN),
        _arguments(
            _FRAMES_FIRST,
            (TEXT, 24),
            steps=(FRAMES,),
            r_timestep=lambda batch, seed: torch.zeros(batch, FRAMES),
        ),
        2,
        VIDEO,
        _MARK_FRAMES_FIRST,
    ),
    TinyModel(
        "helios",
        _built("HeliosTransformer3DModel", **_WAN, rope_dim=_ROPE),
        # a frame of the past
        _arguments(
            _LATENT_VIDEO,
            (TEXT, 24),
            indices_hidden_states=_repeated(list(range(1, 1 + FRAMES))),
            indices_latents_history_short=_repeated([0]),
            latents_history_short=_each(2, 4, 1, 2 * HEIGHT, 2 * WIDTH),
        ),
        2,
        VIDEO,
        _MARK_VIDEO,
    ),
    TinyModel(
        "ltx-video",
        _built(
            "LTXVideoTransformer3DModel",
            **_HEADS,
            in_channels=4,
            out_channels=4,
            cross_attention_dim=32,
            num_layers=2,
            caption_channels=24,
        ),
        _arguments((_VIDEO_TOKENS, 4), (TEXT, 24), encoder_attention_mask=_padded(), **_SIZES),
        2,
        VIDEO,
        _mark_tokens(),
    ),
    TinyModel(
        "ltx-2",
        _built(
            "LTX2VideoTransformer3DModel",
            **_HEADS,
            in_channels=4,
            out_channels=4,
            cross_attention_dim=32,
            audio_in_channels=4,
            audio_out_channels=4,
            audio_num_attention_heads=2,
            audio_attention_head_dim=16,
            audio_cross_attention_dim=32,
            num_layers=2,
            caption_channels=24,
        ),
        _arguments(
            (_VIDEO_TOKENS, 4),
            (TEXT, 24),
            audio_hidden_states=_each(2, 3, 4),
            audio_encoder_hidden_states=_each(3, TEXT, 24),
            encoder_attention_mask=_padded(),
            audio_encoder_attention_mask=_padded(),
            audio_num_frames=3,
            **_SIZES,
        ),
        2,
        VIDEO,
        _mark_tokens(),
    ),
    TinyModel(
        "cogvideox",
        _built("CogVideoXTransformer3DModel", **_COGVIDEO),
        _arguments(_FRAMES_FIRST, (TEXT, 24)),
        2,
        VIDEO,
        _MARK_FRAMES_FIRST,
    ),
    TinyModel(
        "cogvideox-1.5",
        _built(
            "CogVideoXTransformer3DModel", **_COGVIDEO, patch_size_t=2, use_rotary_positional_embeddings=True
        ),
        _arguments((2 * FRAMES, 4, 2 * HEIGHT, 2 * WIDTH), (TEXT, 24)),
        2,
        VIDEO,
        _mark_latents((2, 2, 2), (1, 3, 4)),
    ),
    TinyModel(
        "consisid",
        _built("ConsisIDTransformer3DModel", **_COGVIDEO),
        _arguments(_FRAMES_FIRST, (TEXT, 24)),
        2,
        VIDEO,
        _MARK_FRAMES_FIRST,
    ),
    TinyModel(
        "easyanimate",
        _built(
            "EasyAnimateTransformer3DModel",
            **_HEADS,
            in_channels=4,
            out_channels=4,
            patch_size=2,
            num_layers=2,
            mmdit_layers=1,
            time_embed_dim=32,
            text_embed_dim=24,
        ),
        _arguments(_LATENT_VIDEO, (TEXT, 24)),
        2,
        VIDEO,
        _MARK_VIDEO,
    ),
    TinyModel(
        "hunyuan-video",
        _built("HunyuanVideoTransformer3DModel", **_HUNYUAN),
        _arguments(
            _LATENT_VIDEO, (TEXT, 24), encoder_attention_mask=_padded(), pooled_projections=_each(2, 8)
        ),
        2,
        VIDEO,
        _MARK_VIDEO,
    ),
    TinyModel(
        "hunyuan-video-i2v",
        _built("HunyuanVideoTransformer3DModel", **_HUNYUAN, image_condition_type="token_replace"),
        _arguments(
            _LATENT_VIDEO, (TEXT, 24), encoder_attention_mask=_padded(), pooled_projections=_each(2, 8)
        ),
        2,
        VIDEO,
        _MARK_VIDEO,
    ),
    TinyModel(
        "hunyuan-video-1.5",
        _built(
            "HunyuanVideo15Transformer3DModel",
            **_HEADS,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_refiner_layers=1,
            text_embed_dim=24,
            text_embed_2_dim=24,
            image_embed_dim=24,
            rope_axes_dim=_ROPE,
        ),
        _arguments(
            (4, FRAMES, HEIGHT, WIDTH),
            (TEXT, 24),
            encoder_attention_mask=_padded(),
            encoder_hidden_states_2=_each(2, TEXT, 24),
            encoder_attention_mask_2=_padded(),
            image_embeds=_each(3, 3, 24),
        ),
        2,
        VIDEO,
        _mark_latents((1, 1, 1), (2, 3, 4)),
    ),
    TinyModel(
        "motif-video",
        _built(
            "MotifVideoTransformer3DModel",
            **_HEADS,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=2,
            num_decoder_layers=1,
            text_embed_dim=24,
            rope_axes_dim=_ROPE,
        ),
        _arguments(_LATENT_VIDEO, (TEXT, 24), encoder_attention_mask=_padded()),
        3,
        VIDEO,
        _MARK_VIDEO,
    ),
    TinyModel(
        "mochi",
        _built(
            "MochiTransformer3DModel",
            **_HEADS,
            num_layers=2,
            pooled_projection_dim=32,
            in_channels=4,
            text_embed_dim=24,
            time_embed_dim=16,
        ),
        _arguments(_LATENT_VIDEO, (TEXT, 24), encoder_attention_mask=_padded(torch.bool)),
        2,
        VIDEO,
        _MARK_VIDEO,
    ),
    TinyModel(
        "allegro",
        _built(
            "AllegroTransformer3DModel",
            **_HEADS,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            cross_attention_dim=32,
            sample_height=2 * HEIGHT,
            sample_width=2 * WIDTH,
            sample_frames=FRAMES,
            caption_channels=24,
        ),
        _arguments(_LATENT_VIDEO, (TEXT, 24), encoder_attention_mask=_padded()),
        2,
        VIDEO,
        _MARK_VIDEO,
    ),
    TinyModel(
        "latte",
        _built(
            "LatteTransformer3DModel",
            **_HEADS,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            cross_attention_dim=32,
            sample_size=16,
            patch_size=2,
            num_embeds_ada_norm=10,
            norm_type="ada_norm_single",
            caption_channels=24,
            video_length=FRAMES,
        ),
        _arguments(_LATENT_VIDEO, (TEXT, 24)),
        2,
        IMAGE,
        _MARK_VIDEO,
    ),
    TinyModel(
        "cosmos",
        _built(
            "CosmosTransformer3DModel",
            **_HEADS,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            text_embed_dim=24,
            adaln_lora_dim=8,
            max_size=(8, 32, 32),
            concat_padding_mask=False,
            extra_pos_embed_type=None,
        ),
        _arguments(_LATENT_VIDEO, (TEXT, 24)),
        2,
        VIDEO,
        _MARK_VIDEO,
    ),
    TinyModel(
        "kandinsky5",
        _built("Kandinsky5Transformer3DModel", **_KANDINSKY),
        _arguments(
            _CHANNELS_LAST,
            (TEXT, 24),
            pooled_projections=_each(2, 8),
            visual_rope_pos=tuple(torch.arange(size) for size in VIDEO),
            text_rope_pos=torch.arange(TEXT),
        ),
        2,
        VIDEO,
        _mark_latents(_PATCH, (1, 2, 3)),
    ),
    TinyModel(
        "kandinsky6",
        _built("Kandinsky6Transformer3DModel", **_KANDINSKY, visual_cond=False),
        _arguments(_CHANNELS_LAST, (TEXT, 24), pooled_projections=_each(2, 8)),
        2,
        VIDEO,
        _mark_latents(_PATCH, (1, 2, 3)),
    ),
)

TINY_TRANSFORMERS: tuple[TinyModel, ...] = (*_DIT, *_MMDIT, *_VIDEO)
