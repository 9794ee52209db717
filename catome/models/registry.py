"""Find the family that a model belongs to, and the models of a pipeline that are patched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches

import torch

from catome.models import dit, mmdit, unet, video
from catome.models._torch import original
from catome.models.base import Family

FAMILIES: tuple[Family, ...] = (*unet.FAMILIES, *dit.FAMILIES, *mmdit.FAMILIES, *video.FAMILIES)

REFUSED: dict[str, str] = {
    **unet.REFUSED,
    **dit.REFUSED,
    **getattr(mmdit, "REFUSED", {}),
    **getattr(video, "REFUSED", {}),
}
"""The reason why a class of diffusers cannot be patched, by its name."""

ON_REQUEST = ("ControlNet",)
"""Families that are patched where they are given themselves, and left alone in a pipeline."""

_BY_CLASS = {name: family for family in FAMILIES for name in family.classes}


def family_of(model: torch.nn.Module) -> Family | None:
    """The family that a model's class, or one that it is made from, belongs to; None for a model that nobody
    declared."""
    for kind in type(model).__mro__:
        if kind.__name__ in REFUSED:
            return None
        if kind.__name__ in _BY_CLASS:
            return _BY_CLASS[kind.__name__]
    return None


def find_models(pipe) -> list[torch.nn.Module]:
    """The denoising models of a diffusers pipeline, or the model itself, without the wrappers around them.

    Raises:
        TypeError: if there is none, saying what was looked for.
    """
    given = original(pipe)
    if isinstance(given, torch.nn.Module):
        _check_declared(given)
        return [given]
    parts = {name: original(part) for name, part in _components(pipe)}
    modules = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}
    found = [
        part for part in modules.values() if (family := family_of(part)) and family.name not in ON_REQUEST
    ]
    found = list({id(model): model for model in found}.values())
    if found:
        return [model for model in found if _attentions(model)] or [_check_declared(found[0])]
    for part in modules.values():
        _refuse(part)
    held = ", ".join(f"{name}: {type(part).__name__}" for name, part in modules.items()) or "no model"
    raise TypeError(
        f"pipe={type(pipe).__name__} must be a diffusers pipeline with a denoising model "
        f"that catome knows, or such a model; it has {held}. Known are the families "
        f"{', '.join(family.name for family in FAMILIES)}; for any other model there is catome.merge_keys"
    )


def _components(pipe) -> Iterator[tuple[str, object]]:
    """The parts of a pipeline by name, the denoising models first."""
    parts = getattr(pipe, "components", None)
    parts = dict(parts) if isinstance(parts, Mapping) else {}
    for name in ("unet", "transformer", "transformer_2"):
        part = getattr(pipe, name, None)
        if part is not None:
            yield name, part
    yield from parts.items()


def _attentions(model: torch.nn.Module) -> list:
    return family_of(model).attentions(model, 1)


def _check_declared(model: torch.nn.Module) -> torch.nn.Module:
    """Raise a TypeError unless the model is of a family and has an attention that can be merged."""
    _refuse(model)
    name = type(model).__name__
    if family_of(model) is None:
        near = get_close_matches(name, _BY_CLASS, 1)
        hint = f" (the nearest is {near[0]})" if near else ""
        raise TypeError(
            f"pipe={name} must be a diffusers pipeline with a denoising model "
            f"that catome knows, or such a model{hint}. Known are the families "
            f"{', '.join(family.name for family in FAMILIES)}; for any other model there is catome.merge_keys"
        )
    if not _attentions(model):
        raise TypeError(
            f"pipe={name} has no self-attention over image tokens, which is what catome merges in"
        )
    return model


def _refuse(model: torch.nn.Module) -> None:
    for kind in type(model).__mro__:
        if kind.__name__ in REFUSED:
            raise TypeError(f"pipe={type(model).__name__} cannot be patched: {REFUSED[kind.__name__]}")
