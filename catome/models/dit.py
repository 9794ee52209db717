"""Diffusion transformers whose self-attention has image tokens only.

The prompt, or the class, enters through cross-attention or through the modulation of the blocks. Here, too,
is why some models are refused.
"""

from __future__ import annotations

import torch

from catome.models.base import Family, Layout, ModelCall, SelfAttention
from catome.models.layouts import Stack, attentions_of, image_alone, latent_image

_IMAGE = image_alone(latent_image())


def _unmasked(call: ModelCall, queries: int, keys: int) -> Layout | None:
    """The image alone. With a mask of its tokens, which no pipeline passes, nothing is told."""
    if call.arguments.get("attention_mask") is not None:
        return None
    return _IMAGE(call, queries, keys)


def _basic_blocks(model: torch.nn.Module, max_downsample: int) -> list[SelfAttention]:
    """The self-attentions of ``BasicTransformerBlock``, in which each attention may be a cross-attention."""
    attentions = attentions_of(Stack("transformer_blocks", ("attn1", "attn2"), _unmasked))(
        model, max_downsample
    )
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
    "its self-attention is linear: its cost grows with the number of tokens and not with its square, and "
    "there are no scores that merging could save"
)
_PACKED = (
    "it packs the tokens of several modalities into one sequence, and only tensors of indices tell which of "
    "them are of the image"
)
_SOUND = "it generates sound: there is no grid of image tokens whose neighbours could be merged"

REFUSED: dict[str, str] = {
    "SanaTransformer2DModel": _LINEAR,
    "SanaVideoTransformer3DModel": _LINEAR,
    "SanaWMTransformer3DModel": _LINEAR,
    "SanaWMLTX2RefinerTransformer3DModel": (
        "it is told neither the frames of its tokens nor their height and width, so no token's neighbours "
        "are known"
    ),
    "PriorTransformer": "it generates one embedding of an image, not an image: it has no image tokens",
    "TransformerTemporalModel": (
        "its attention runs along time, for each pixel on its own: it has no more keys than there are frames"
    ),
    "Kandinsky6SRTransformer3DModel": (
        "its attention is sparse, over blocks of 8 by 8 tokens that are chosen for every query: keys merged "
        "across blocks would fall out of that choice"
    ),
    "AnyFlowFARTransformer3DModel": (
        "its attention is causal from frame to frame: a key merged across frames would be seen too early"
    ),
    "HunyuanVideoFramepackTransformer3DModel": (
        "past frames at several scales, padded each in its own way, are in front of the frames that it "
        "generates, and catome does not follow how many tokens they are"
    ),
    "WanAnimate2Transformer3DModel": (
        "its attention packs the frames into a padded buffer for a block-sparse kernel, which takes no bias "
        "for merged keys"
    ),
    "Cosmos3OmniTransformer": _PACKED,
    "MiniMaxH3Transformer3DModel": _PACKED,
    "DreamLiteTransformer2DModel": "it is a part of DreamLite's U-Net and not a model that a pipeline calls",
    "AceStepTransformer1DModel": _SOUND,
    "LongCatAudioDiTTransformer": _SOUND,
    "MiniMaxMusic3Transformer1DModel": _SOUND,
    "StableAudioDiTModel": _SOUND,
    "StableAudio3DiTModel": _SOUND,
    "RFD4ProteinaTransformer": (
        "it generates proteins: there is no grid of image tokens whose neighbours could be merged"
    ),
}
"""Models that cannot be sped up by merging, by the name of their class, and why."""
