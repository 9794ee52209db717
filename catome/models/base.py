"""The declaration of a model family: where its self-attention over image tokens is, and where in the sequence
these lie.

A family is all that catome knows of a model. Everything that runs (`catome.runtime`) works from it, so that
another model needs one more declaration and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from inspect import signature
from typing import Any

import torch


@dataclass(frozen=True)
class Layout:
    """The place of the image tokens among the keys of a self-attention.

    They are the ``frames * height * width`` keys from ``first`` on, frame by frame and row by row; what lies
    before and behind them (text, registers, reference images) is never merged.
    """

    first: int
    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """The number of image tokens."""
        return self.frames * self.height * self.width


@dataclass
class ModelCall:
    """One call of the model: what it was given, by the names in its signature.

    Attributes:
        model: the model.
        arguments: the arguments that were passed, by name; what was left to its default is absent.
        memo: scratch space of a family for this call (a grid that was read from a tensor, say).
    """

    model: torch.nn.Module
    arguments: dict[str, Any]
    memo: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SelfAttention:
    """One attention module whose keys and values may be merged.

    Attributes:
        name: the module's path in the model.
        module: the module; within its call `torch.nn.functional.scaled_dot_product_attention` is called, once
            in most models. If several of these calls have image tokens, each has pairs of its own, and they
            come in the same order at every step.
        layout: ``layout(call, queries, keys)`` says where the image tokens are in a call with that many
            queries and keys, or None where they cannot be told or the call is no self-attention over them.
        block: the module whose input are the tokens that the paper compares (a U-Net's transformer block);
            None where keys are compared.
    """

    name: str
    module: torch.nn.Module
    layout: Callable[[ModelCall, int, int], Layout | None]
    block: torch.nn.Module | None = None


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        name: how it is called in messages.
        classes: names of the diffusers classes that belong to it.
        attentions: ``attentions(model, max_downsample)`` lists the self-attentions over image tokens, in the
            order in which they run; ``max_downsample`` concerns U-Nets alone.
        timestep: name of the model's argument that has the timestep.
        sample: name of the argument that has the noisy latents: a tensor ``[B, ...]`` or a list of ``B``
            tensors.
        condition: name of the argument that has the prompt's embedding, or None.
    """

    name: str
    classes: tuple[str, ...]
    attentions: Callable[[torch.nn.Module, int], list[SelfAttention]]
    timestep: str = "timestep"
    sample: str = "hidden_states"
    condition: str | None = "encoder_hidden_states"


@lru_cache(maxsize=256)
def _signature(kind: type):
    return signature(kind.forward)


def bound(model: torch.nn.Module, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments of a call of ``model`` by name; an argument that its forward does not know is kept under
    its own."""
    known = _signature(type(model)).parameters
    names = [name for name in known if name != "self"]
    return {**dict(zip(names, args, strict=False)), **kwargs}
