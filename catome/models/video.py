"""Diffusion transformers of video: frames of tokens in one self-attention, alone or with the text.

Merging works within a frame and across frames alike. A model whose attention is causal in time is left alone,
since a merged key would be seen too early.
"""

from __future__ import annotations

import math
import operator

from catome.models.base import Family, Layout, ModelCall
from catome.models.layouts import (
    Stack,
    attentions_of,
    image_alone,
    image_first,
    image_last,
    latent_video,
    length,
    placed,
)

_VIDEO = latent_video()
_FRAMES_FIRST = latent_video(axes=(1, 3, 4))
_CHANNELS_LAST = latent_video(axes=(1, 2, 3))


def _given_grid(call: ModelCall, queries: int, keys: int) -> Layout | None:
    """Latents that the pipeline has cut into tokens; it says into how many.

    It may append tokens of conditioning frames, and then nothing is told.
    """
    sizes = [call.arguments.get(name) for name in ("num_frames", "height", "width")]
    if None in sizes:
        return None
    frames, height, width = (operator.index(size) for size in sizes)
    if not queries == keys == frames * height * width:
        return None
    return placed(0, (frames, height, width), keys)


def _frame(call: ModelCall) -> tuple[int, int, int] | None:
    """One frame: the others are in the batch."""
    grid = _VIDEO(call)
    return None if grid is None else (1, grid[1], grid[2])


def _allegro(call: ModelCall, queries: int, keys: int) -> Layout | None:
    """The video alone. A mask of its pixels makes keys differ that merging would treat alike."""
    if call.arguments.get("attention_mask") is not None:
        return None
    return image_alone(_VIDEO)(call, queries, keys)


def _skyreels(call: ModelCall, queries: int, keys: int) -> Layout | None:
    """The video alone, unless attention is causal from one block of frames to the next."""
    if getattr(call.model.config, "num_frame_per_block", 1) > 1:
        return None
    return image_alone(_VIDEO)(call, queries, keys)


def _kandinsky5(call: ModelCall, queries: int, keys: int) -> Layout | None:
    """The video alone; sparse attention has its tokens in another order, in blocks."""
    if call.arguments.get("sparse_params") is not None:
        return None
    return image_alone(_CHANNELS_LAST)(call, queries, keys)


def _kandinsky6(call: ModelCall, queries: int, keys: int) -> Layout | None:
    """The video alone; where frames have types, some of them are reference images."""
    if call.arguments.get("visual_token_type_ids") is not None:
        return None
    return image_alone(_CHANNELS_LAST)(call, queries, keys)


def _motif(call: ModelCall, queries: int, keys: int) -> Layout | None:
    """The video, then the text or, in the last blocks, what the blocks before them made of the video."""
    grid = _VIDEO(call)
    if grid is None or queries != keys:
        return None
    video = math.prod(grid)
    text = length(call, "encoder_hidden_states") + length(call, "image_embeds")
    return placed(0, grid, keys) if keys in (video + text, 2 * video) else None


def _wan(*names: str) -> tuple[Family, ...]:
    attentions = attentions_of(Stack("blocks", ("attn1",), image_alone(_VIDEO)))
    return tuple(Family(name.removesuffix("Transformer3DModel"), (name,), attentions) for name in names)


FAMILIES: tuple[Family, ...] = (
    *_wan("WanTransformer3DModel", "WanAnimateTransformer3DModel", "ChronoEditTransformer3DModel"),
    Family(
        "WanVACE",
        ("WanVACETransformer3DModel",),
        attentions_of(
            Stack("vace_blocks", ("attn1",), image_alone(_VIDEO)),
            Stack("blocks", ("attn1",), image_alone(_VIDEO)),
        ),
    ),
    Family(
        "SkyReels-V2",
        ("SkyReelsV2Transformer3DModel",),
        attentions_of(Stack("blocks", ("attn1",), _skyreels)),
    ),
    Family(
        "AnyFlow",
        ("AnyFlowTransformer3DModel",),
        attentions_of(Stack("blocks", ("attn1",), image_alone(_FRAMES_FIRST))),
    ),
    # frames of the past come first
    Family(
        "Helios",
        ("HeliosTransformer3DModel",),
        attentions_of(Stack("blocks", ("attn1",), image_last(_VIDEO))),
    ),
    Family(
        "LTX-Video",
        ("LTXVideoTransformer3DModel",),
        attentions_of(Stack("transformer_blocks", ("attn1",), _given_grid)),
    ),
    Family(
        "LTX-2",
        ("LTX2VideoTransformer3DModel",),
        attentions_of(Stack("transformer_blocks", ("attn1",), _given_grid)),
    ),
    Family(
        "CogVideoX",
        ("CogVideoXTransformer3DModel",),
        attentions_of(Stack("transformer_blocks", ("attn1",), image_last(_FRAMES_FIRST))),
    ),
    Family(
        "ConsisID",
        ("ConsisIDTransformer3DModel",),
        attentions_of(Stack("transformer_blocks", ("attn1",), image_last(_FRAMES_FIRST))),
    ),
    Family(
        "EasyAnimate",
        ("EasyAnimateTransformer3DModel",),
        attentions_of(Stack("transformer_blocks", ("attn1",), image_last(_VIDEO))),
    ),
    Family(
        "HunyuanVideo",
        ("HunyuanVideoTransformer3DModel",),
        attentions_of(
            Stack("transformer_blocks", ("attn",), image_first(_VIDEO)),
            Stack("single_transformer_blocks", ("attn",), image_first(_VIDEO)),
        ),
    ),
    Family(
        "HunyuanVideo 1.5",
        ("HunyuanVideo15Transformer3DModel",),
        attentions_of(Stack("transformer_blocks", ("attn",), image_first(_VIDEO))),
    ),
    Family(
        "Motif-Video",
        ("MotifVideoTransformer3DModel",),
        attentions_of(
            Stack("transformer_blocks", ("attn",), _motif),
            Stack("single_transformer_blocks", ("attn",), _motif),
        ),
    ),
    # each video's attention is a call of its own, with the tokens that its own prompt has
    Family(
        "Mochi",
        ("MochiTransformer3DModel",),
        attentions_of(Stack("transformer_blocks", ("attn1",), image_first(_VIDEO))),
    ),
    Family(
        "Allegro",
        ("AllegroTransformer3DModel",),
        attentions_of(Stack("transformer_blocks", ("attn1",), _allegro)),
    ),
    # its other blocks attend along time, for each pixel on its own
    Family(
        "Latte",
        ("LatteTransformer3DModel",),
        attentions_of(Stack("transformer_blocks", ("attn1",), image_alone(_frame))),
    ),
    Family(
        "Cosmos",
        ("CosmosTransformer3DModel",),
        attentions_of(Stack("transformer_blocks", ("attn1",), image_alone(_VIDEO))),
    ),
    Family(
        "Kandinsky5",
        ("Kandinsky5Transformer3DModel",),
        attentions_of(Stack("visual_transformer_blocks", ("self_attention",), _kandinsky5)),
    ),
    Family(
        "Kandinsky6",
        ("Kandinsky6Transformer3DModel",),
        attentions_of(Stack("visual_transformer_blocks", ("video_dec_block.self_attention",), _kandinsky6)),
    ),
)
