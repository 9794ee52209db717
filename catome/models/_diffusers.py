"""The parts of diffusers that catome uses although diffusers does not export them, or some versions lack
them.

Every name here is a tuple of classes. A class that the installed version lacks is left out, and a tuple may
be empty; a test asks for all of them (`tests/models/test_unet_layouts.py`). Modules are looked for with
`isinstance`; of processors the exact class counts, as a subclass may do something else.
"""

from __future__ import annotations

from importlib import import_module

import torch

__all__ = [
    "ATTENTIONS",
    "CASCADE_BLOCKS",
    "END_OF_GENERATION",
    "IMAGE_BLOCKS",
    "KANDINSKY_3_BLOCKS",
    "K_BLOCKS",
    "PLAIN_PROCESSORS",
    "SDPA_PROCESSORS",
    "TEMPORAL_MODULES",
    "TEXT_AND_IMAGE_BLOCKS",
    "TRANSFORMER_BLOCKS",
    "TWIN_BLOCKS",
    "calls_sdpa",
    "classes",
    "is_plain",
    "keeps_outputs",
    "keys_and_values",
]


def classes(module: str, *names: str) -> tuple[type, ...]:
    """The classes by these names in ``diffusers.models.<module>``, without those that this version lacks."""
    try:
        found = import_module(f"diffusers.models.{module}")
    except ImportError:
        return ()
    return tuple(getattr(found, name) for name in names if hasattr(found, name))


ATTENTIONS = classes("attention_processor", "Attention")
"""The attention module of all U-Nets; what it does is in its ``processor``."""

TRANSFORMER_BLOCKS = (
    *classes("attention", "BasicTransformerBlock"),
    *classes("transformers.transformer_2d_dreamlite", "BasicTransformerBlockDreamLite"),
)
"""Transformer blocks on ``[B, N, C]``: ``attn1`` is self-attention unless ``only_cross_attention``, and
``attn2`` is cross-attention unless ``double_self_attention``."""

TEMPORAL_MODULES = (
    *classes("transformers.transformer_temporal", "TransformerTemporalModel"),
    *classes("unets.unet_motion_model", "AnimateDiffTransformer3D"),
)
"""Modules that attend along time, each pixel by itself, with `TRANSFORMER_BLOCKS` of their own inside."""

K_BLOCKS = classes("unets.unet_2d_blocks", "KAttentionBlock")
"""Blocks of the latent upscaler, on ``[B, C, H, W]``: with ``add_self_attention``, ``attn1`` is that."""

IMAGE_BLOCKS = classes(
    "unets.unet_2d_blocks",
    "AttnDownBlock2D",
    "AttnSkipDownBlock2D",
    "AttnSkipUpBlock2D",
    "AttnUpBlock2D",
    "UNetMidBlock2D",
)
"""Parts of a U-Net whose ``attentions`` are `ATTENTIONS` on ``[B, C, H, W]``, or None."""

TEXT_AND_IMAGE_BLOCKS = classes(
    "unets.unet_2d_blocks",
    "SimpleCrossAttnDownBlock2D",
    "SimpleCrossAttnUpBlock2D",
    "UNetMidBlock2DSimpleCrossAttn",
)
"""Parts of a U-Net whose ``attentions`` are `ATTENTIONS` on ``[B, C, H, W]``. Their keys are the text's and
behind them the image's; with ``only_cross_attention``, the text's alone."""

TWIN_BLOCKS = classes("controlnets.controlnet_xs", "ControlNetXSCrossAttnDownBlock2D")
"""Parts of a U-Net that has a ControlNet inside: ``base_attentions`` and ``ctrl_attentions`` run by turns."""

KANDINSKY_3_BLOCKS = classes("unets.unet_kandinsky3", "Kandinsky3DownSampleBlock", "Kandinsky3UpSampleBlock")
"""Parts of a U-Net: with ``self_attention``, ``attentions[0]`` is that, and all others are
cross-attention."""

CASCADE_BLOCKS = classes("unets.unet_stable_cascade", "SDCascadeAttnBlock")
"""Blocks on ``[B, C, H, W]`` whose keys are the image's, with ``self_attn``, and behind them the text's."""

PLAIN_PROCESSORS = classes(
    "attention_processor",
    "AttnProcessor",
    "AttnProcessor2_0",
    "SlicedAttnProcessor",
    "XFormersAttnProcessor",
)
"""Processors that treat each row of a batch by itself, and that can give a self-attention other keys.

All of them take ``encoder_hidden_states`` ``[B, K, C]`` in place of the queries' tokens, and an
``attention_mask`` of ``[B, 1, K]`` or ``[B, Q, K]`` that is added to the scores. They do not normalise what
comes as ``encoder_hidden_states``: where the module has a ``group_norm`` or a ``spatial_norm``
(`IMAGE_BLOCKS`), that must be done before. The mask goes

- in AttnProcessor2_0 to `F.scaled_dot_product_attention`: it has the queries' dtype, or is boolean;
- in AttnProcessor and SlicedAttnProcessor to `torch.baddbmm`: it has the queries' dtype (float32 with
  ``upcast_attention``), and is never boolean;
- in XFormersAttnProcessor to `memory_efficient_attention`: it has the queries' dtype, and K may have to be a
  multiple of 8.

Left out are FusedAttnProcessor2_0, which has no ``to_kv`` for other keys in a self-attention, only
``to_qkv``; the PAG processors, which take no keys and split the batch; the custom-diffusion processors, which
fit the mask to the queries; the IP-Adapter's, which want a tuple of text and image; and AttnProcessorNPU and
XLAFlashAttnProcessor2_0, which make a boolean of the mask or add it to the keys."""

SDPA_PROCESSORS = (
    *classes(
        "attention_processor",
        "AttnAddedKVProcessor2_0",
        "AttnProcessor2_0",
        "CustomDiffusionAttnProcessor2_0",
        "FusedAttnProcessor2_0",
    ),
    *classes("unets.unet_dreamlite", "DreamLiteAttnProcessor2_0"),
)
"""Processors of U-Nets that call `F.scaled_dot_product_attention` once, with all rows of the batch.

DreamLiteAttnProcessor2_0 does so with the native attention backend, which is the default. Left out are
PAGIdentitySelfAttnProcessor2_0 and PAGCFGIdentitySelfAttnProcessor2_0, whose call has the first half, or the
first two thirds, of the rows."""


END_OF_GENERATION = "_reset_stateful_cache"
"""The method that a pipeline calls on each of its models when a generation has ended; models without caches
lack it."""


def is_plain(module, kwargs: dict) -> bool:
    """Return True if a call of an attention module may be given other keys, or other tokens, than it comes
    with.

    Args:
        module: any module.
        kwargs: of the call, without the hidden states.
    """
    if not isinstance(module, ATTENTIONS) or type(module.processor) not in PLAIN_PROCESSORS:
        return False
    unusual = ("group_norm", "spatial_norm", "norm_cross", "added_kv_proj_dim", "fused_projections")
    if any(getattr(module, name, None) for name in unusual):
        return False
    if module.residual_connection or module.to_k is None:
        return False
    return all(kwargs.get(name) is None for name in ("encoder_hidden_states", "attention_mask"))


@torch.no_grad()
def keys_and_values(module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys and values that a plain attention module makes of tokens ``[B, N, C]``: two ``[B, N, heads *
    head size]``."""
    return module.to_k(x), module.to_v(x)


def calls_sdpa(module) -> bool:
    """Return True if an attention module calls `F.scaled_dot_product_attention` once, with all rows of its
    batch."""
    return type(getattr(module, "processor", None)) in SDPA_PROCESSORS


def keeps_outputs(module) -> bool:
    """Return True if a hook of diffusers keeps what the module gives for later steps, as
    `PyramidAttentionBroadcast` does."""
    registry = module.__dict__.get("_diffusers_hook")
    return registry is not None and any(hook._is_stateful for hook in registry.hooks.values())
