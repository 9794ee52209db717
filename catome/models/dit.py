"""Diffusion transformers whose self-attention has image tokens only.

The prompt, or the class, enters through cross-attention or through the modulation of the blocks. Here, too, is why some
models are refused.
"""

from __future__ import annotations

import torch

from catome.models.base import Family, ModelCall, SelfAttention
from catome.models.layouts import Stack, attentions_of, image_alone, latent_image

_IMAGE = image_alone(latent_image())


def _basic_blocks(model: torch.nn.Module, max_downsample: int) -> list[SelfAttention]:
    """The self-attentions of diffusers' ``BasicTransformerBlock``, either of whose attentions may be a cross-attention."""
    attentions = attentions_of(Stack("transformer_blocks", ("attn1", "attn2"), _IMAGE))(model, max_downsample)
    return [
        attention for attention in attentions if not getattr(attention.module, "is_cross_attention", False)
    ]


FAMILIES: tuple[Family, ...] = (
    Family("DiT", ("DiTTransformer2DModel",), _basic_blocks, condition="class_labels"),
    Family("PixArt", ("PixArtTransformer2DModel",), _basic_blocks),
    Family("Transformer2D", ("Transformer2DModel",), _basic_blocks),
    Family("HunyuanDiT", ("HunyuanDiT2DModel",), attentions_of(Stack("blocks", ("attn1",), _IMAGE))),
    Family("Lumina-Next", ("LuminaNextDiT2DModel",), attentions_of(Stack("layers", ("attn1",), _IMAGE))),
)

_LINEAR = (
    "its self-attention is linear: its cost grows with the number of tokens and not with its square, and there are no scores "
    "that merging could save"
)
_PACKED = "it packs the tokens of several modalities into one sequence, and only tensors of indices tell which of them are of the image"
_AUDIO = "it generates sound: there is no grid of image tokens whose neighbours could be merged"

REFUSED: dict[str, str] = {
    "SanaTransformer2DModel": _LINEAR,
    "SanaVideoTransformer3DModel": _LINEAR,
    "SanaWMTransformer3DModel": _LINEAR,
    "SanaWMLTX2RefinerTransformer3DModel": (
        "it refines a video in chunks against a cache of earlier keys, so the tokens of a step are not the grid of its latents"
    ),
    "PriorTransformer": "it generates one embedding of an image, not an image: it has no image tokens",
    "TransformerTemporalModel": "its attention runs along time for each pixel on its own: it has as many keys as there are frames",
    "Kandinsky6SRTransformer3DModel": (
        "its attention is sparse, over blocks of 8 × 8 tokens that are chosen for every query: keys merged across blocks would "
        "fall out of that choice"
    ),
    "AnyFlowFARTransformer3DModel": (
        "its attention is causal from frame to frame, by a mask in blocks: keys merged across frames would break it"
    ),
    "HunyuanVideoFramepackTransformer3DModel": (
        "it keeps the past frames at several scales in front of the new ones, and their number of tokens cannot be told from "
        "its arguments"
    ),
    "WanAnimate2Transformer3DModel": (
        "its attention packs the frames into a padded buffer for a block-sparse kernel, which takes no bias for merged keys"
    ),
    "Cosmos3OmniTransformer": _PACKED,
    "MiniMaxH3Transformer3DModel": _PACKED,
    "DreamLiteTransformer2DModel": "it is a part of DreamLite's U-Net and not a model that a pipeline calls",
    "AceStepTransformer1DModel": _AUDIO,
    "LongCatAudioDiTTransformer": _AUDIO,
    "MiniMaxMusic3Transformer1DModel": _AUDIO,
    "StableAudioDiTModel": _AUDIO,
    "StableAudio3DiTModel": _AUDIO,
    "RFD4ProteinaTransformer": "it generates proteins: there is no grid of image tokens whose neighbours could be merged",
}
"""Models that cannot be sped up by merging, by the name of their class, and why."""
