"""Putting a patch on a model, and taking it off again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import torch

from catome.models._diffusers import END_OF_GENERATION
from catome.models._torch import leave_behind, remove_hooks
from catome.models.registry import family_of
from catome.runtime.compiled import CompiledSteps
from catome.runtime.config import MergeConfig
from catome.runtime.forecast import ForecastSteps
from catome.runtime.hooks import Hook, Patch, patch_of, refuse_other_merging
from catome.runtime.state import Rule, decide
from catome.tensors.matching import Matches
from catome.tensors.plan import MergePlan


class Borrowed:
    """Methods of the model that a patch listens to, put on the instance in front of the class's own.

    Both are how pipelines talk to the caches of diffusers' models: `cache_context` says which condition is
    computed, and the other is called where a generation has ended."""

    NAMES = ("cache_context", END_OF_GENERATION)

    def __init__(self, model: torch.nn.Module, patch: Patch) -> None:
        self.model = model
        self.patch = patch

    def put_on(self) -> None:
        setattr(self.model, END_OF_GENERATION, self.end_of_generation)
        if hasattr(type(self.model), "cache_context"):
            self.model.cache_context = self.cache_context

    @classmethod
    def take_off(cls, model: torch.nn.Module) -> None:
        for name in cls.NAMES:
            if isinstance(getattr(vars(model).get(name), "__self__", None), cls):
                del model.__dict__[name]

    @contextmanager
    def cache_context(self, name: str, **where):
        """Tell the patch, and whatever else the model tells."""
        with (
            self.patch.context(name, **where),
            type(self.model).cache_context(self.model, name, **where) as context,
        ):
            yield context

    def end_of_generation(self, *args, **kwargs):
        """End the generation, and whatever else ends with it."""
        self.patch.reset()
        own = getattr(type(self.model), END_OF_GENERATION, None)
        return None if own is None else own(self.model, *args, **kwargs)


def install(
    model: torch.nn.Module,
    config: MergeConfig,
    choose: Callable[[Matches, MergeConfig], MergePlan] = decide,
    pipe=None,
    outdated: Callable[[MergePlan, torch.Tensor, MergeConfig], torch.Tensor] | None = None,
) -> Patch:
    """Put a patch on a model, or give the one that is there another rule.

    This thread goes by the new rule from its next call on. A generation that another thread is in the middle
    of keeps the rule that it began with.

    Args:
        model: of a declared family.
        config: what to merge.
        choose: makes a plan of what was found similar; by default as the configuration says.
        pipe: the pipeline that the model is in, whose scheduler may tell how long a generation is.
        outdated: says at every step between checkpoints which images need new pairs
            (`catome.runtime.state.Rule`); none unless given.

    Raises:
        TypeError, ValueError: if the configuration asks for what the model does not have, before anything is
            changed.
        RuntimeError: if another package merges tokens in the model.
    """
    refuse_other_merging(model)
    _check_fits(model, config)
    rule = Rule(config, choose, outdated)
    patch = patch_of(model)
    if patch is None:
        patch = Patch(rule, pipe)
        model.register_forward_pre_hook(patch.before, with_kwargs=True)
        model.register_forward_hook(patch.after, always_call=True)
    else:
        patch.change(rule, pipe)
    Borrowed(model, patch).put_on()
    patch.settle(model)
    if config.forecast is not None and ForecastSteps.on(model) is None:
        ForecastSteps(model).put_on()
    return patch


def _check_fits(model: torch.nn.Module, config: MergeConfig) -> None:
    attentions = family_of(model).attentions(model, config.max_downsample)
    if all(attention.block is None for attention in attentions):
        for part in ("merge_crossattn", "merge_mlp"):
            if getattr(config, part):
                raise ValueError(
                    f"{part}=True needs the transformer blocks of a U-Net, and {type(model).__name__} has "
                    "none of them"
                )


def uninstall(model: torch.nn.Module) -> None:
    """Take a patch off.

    Where another thread is in the middle of a generation, the hooks stay until that has ended; no later one
    is merged."""
    leave_behind()
    patch = patch_of(model)
    if patch is None:
        return
    patch.change(None)
    if patch.in_use:
        patch.leave_when_idle = partial(take_off, model)
        return
    take_off(model)


def take_off(model: torch.nn.Module) -> None:
    """Take every hook of catome off a model, and leave all others as they are."""
    Borrowed.take_off(model)
    CompiledSteps.take_off(model)
    ForecastSteps.take_off(model)
    for module in model.modules():
        remove_hooks(module, Hook)


def active_patch(model: torch.nn.Module) -> Patch | None:
    """The patch on a model that new generations go by, or None."""
    patch = patch_of(model)
    return patch if patch is not None and patch.rule is not None else None
