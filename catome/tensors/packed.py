"""Attention over the packed tokens of images that keep different numbers of them, in one call.

`torch.nn.attention.varlen` runs FlashAttention on CUDA over sequences that lie behind each other: no padding, and nothing is
computed that one image alone would not compute. Elsewhere `catome.runtime.hooks` runs the images one by one.
"""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from catome.tensors.plan import MergePlan

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before torch 2.10
    varlen_attn = None


def packable(attention, packed: torch.Tensor) -> bool:
    """Whether `attend` gives what the module itself would: half precision on CUDA, and nothing but projections and attention.

    Args:
        attention: a diffusers ``Attention`` module.
        packed: its packed input ``[S, C]``.
    """
    return (
        varlen_attn is not None
        and packed.is_cuda
        and packed.dtype in (torch.float16, torch.bfloat16)
        and type(getattr(attention, "processor", None)) in (AttnProcessor, AttnProcessor2_0)
        and not (attention.residual_connection or attention.rescale_output_factor != 1)
        and not any(getattr(attention, name, None) for name in ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k"))
        and attention.to_k is not None
        and attention.inner_dim == attention.inner_kv_dim
        and (attention.inner_dim // attention.heads) % 8 == 0
    )


def attend(attention, packed: torch.Tensor, plan: MergePlan, context: torch.Tensor | None = None) -> torch.Tensor:
    """``attention`` over packed tokens ``[S, C]``, each image's with each other or with its own ``context`` ``[B, T, D]``."""
    query = attention.to_q(packed).unflatten(-1, (attention.heads, -1))
    bounds, longest = plan.bounds, max(plan.lengths)
    if context is None:
        other, of_other, most = packed, bounds, longest
    else:
        images, most = context.shape[:2]
        other = context.flatten(0, 1)
        of_other = torch.arange(0, (images + 1) * most, most, dtype=torch.int32, device=packed.device)
    key, value = (project(other).unflatten(-1, (attention.heads, -1)) for project in (attention.to_k, attention.to_v))
    mixed = varlen_attn(query, key, value, bounds, of_other, longest, most)
    for layer in attention.to_out:
        mixed = layer(mixed.flatten(1) if mixed.ndim == 3 else mixed)
    return mixed
