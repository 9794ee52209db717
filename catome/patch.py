"""Apply cached adaptive token merging to a diffusers model: hooks that count steps and keep one plan per block.

Everything goes through ``diffusers.hooks``: no class is swapped, nothing is copied. The paper merges before self-attention
in the topmost transformer blocks (Section IV); CA-ToMe's cache reuses the pairs between checkpoints (Section III-B).
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers.hooks import HookRegistry, ModelHook

from catome.checks import Dst, check_amount, check_dst, check_integer, check_stride
from catome.matching import best_matches
from catome.plan import MergePlan, make_plan
from catome.schedule import parse_schedule
from catome.unet import StepCounter, find_unet, token_grid, transformer_blocks

HOOK = "catome"
_DEFAULT = float("0.7")  # an object of its own: `is` tells it from a 0.7 that somebody wrote


@dataclass(frozen=True)
class MergeConfig:
    """What `apply_patch` was asked to do; see there for the meaning of each field."""

    threshold: float | None
    ratio: float | None
    checkpoints: frozenset[int] | None
    stride: tuple[int, int] = (2, 2)
    dst: Dst = "top_left"
    seed: int = 0
    max_downsample: int = 1
    merge_attn: bool = True
    merge_crossattn: bool = False
    merge_mlp: bool = False


class _UNetHook(ModelHook):
    """Counts steps and makes the blocks forget the plans of the last generation."""

    _is_stateful = True

    def __init__(self, config: MergeConfig, pipe) -> None:
        super().__init__()
        self.config, self.pipe, self.counter = config, weakref.ref(pipe), StepCounter(pipe)
        self.blocks: list[_BlockHook] = []
        self.forget()

    def initialize_hook(self, module):
        self._signature = inspect.signature(module.forward)
        return module

    def forget(self) -> None:
        self.size, self.generator = None, torch.Generator().manual_seed(self.config.seed)
        for block in self.blocks:
            block.forget()

    def reset_state(self, module):
        self.counter.reset()
        self.forget()
        return module

    def new_forward(self, module, *args, **kwargs):
        try:
            call = self._signature.bind(*args, **kwargs).arguments
            if self.counter.advance(call["timestep"]):
                self.forget()
            self.size = tuple(call["sample"].shape[-2:])
            return self.fn_ref.original_forward(*args, **kwargs)
        except BaseException:  # KeyboardInterrupt too
            self.reset_state(module)
            raise


class _BlockHook(ModelHook):
    """Looks at the input of a transformer block and has a plan ready for its parts."""

    def __init__(self, unet: _UNetHook) -> None:
        super().__init__()
        self.unet, self.active = unet, None
        self.forget()

    def forget(self) -> None:
        self.cached, self.key, self.active = None, None, None

    def pre_forward(self, module, *args, **kwargs):
        self.active = self._plan(args[0] if args else kwargs["hidden_states"])
        return args, kwargs

    def _plan(self, x: torch.Tensor) -> MergePlan | None:
        config = self.unet.config
        grid = token_grid(x, self.unet.size, config.max_downsample, config.stride)
        if grid is None:
            return None
        key = (x.shape, x.dtype, x.device, grid)
        checkpoint = config.checkpoints is None or self.unet.counter.step in config.checkpoints
        if checkpoint or self.key != key:
            matches = best_matches(x, grid, config.stride, config.dst, self.unet.generator, config.threshold == 1.0)
            self.cached, self.key = make_plan(matches, config.threshold, config.ratio), key
        return self.cached

    def post_forward(self, module, output):
        self.active = None
        return output


class _PartHook(ModelHook):
    """Runs one part of a block (attention or MLP) on the merged tokens."""

    def __init__(self, block: _BlockHook) -> None:
        super().__init__()
        self.block = block

    def new_forward(self, module, hidden_states, *args, **kwargs):
        forward, plan = self.fn_ref.original_forward, self.block.active
        context = kwargs.get("encoder_hidden_states")
        masked = kwargs.get("attention_mask") is not None or not isinstance(context, (torch.Tensor, type(None)))
        if plan is None or masked or hidden_states.shape[:2] != plan.slot.shape:
            return forward(hidden_states, *args, **kwargs)
        packed = plan.merge(hidden_states)
        if len(set(plan.lengths)) == 1:
            merged = forward(packed.unflatten(0, (len(plan.lengths), -1)), *args, **kwargs).flatten(0, 1)
        else:
            images = []
            for i, tokens in enumerate(plan.split(packed)):
                if context is not None:
                    kwargs["encoder_hidden_states"] = context[i : i + 1]
                images.append(forward(tokens[None], *args, **kwargs)[0])
            merged = torch.cat(images)
        return plan.unmerge(merged)


def apply_patch(
    pipe,
    *,
    threshold: float | None = _DEFAULT,
    ratio: float | None = None,
    schedule: str | Iterable[int] | None = "CONFIG_3",
    stride: tuple[int, int] = (2, 2),
    dst: Dst = "top_left",
    seed: int = 0,
    max_downsample: int = 1,
    merge_attn: bool = True,
    merge_crossattn: bool = False,
    merge_mlp: bool = False,
):
    """Make a diffusers pipeline merge similar tokens, and reuse the pairs it found for several steps.

    ``apply_patch(pipe)`` is CA-ToMe as in the paper's headline (threshold 0.7, CONFIG_3);
    ``apply_patch(pipe, ratio=0.5, schedule=None)`` is ToMe. Applying again replaces what was applied before.

    Args:
        pipe: any diffusers pipeline with a ``unet``, or a ``UNet2DConditionModel``.
        threshold: merge every src token whose best cosine similarity is at least this, in [-1, 1]; 1.0 merges exact
            duplicates only. 0.7 unless ``ratio`` is given.
        ratio: merge this share of all tokens instead, in [0, 1 - 1/(sy*sx)]; exactly one of the two.
        schedule: the steps at which pairs are found afresh: a name of the paper's Table II, a collection of steps counted
            from 0, or None for every step. A step is one U-Net call.
        stride: ``(vertical, horizontal)`` size in tokens of the window that has one dst token.
        dst: "top_left" (the paper) or "random" token of each window, drawn from a generator of its own.
        seed: of that generator; each generation begins with it.
        max_downsample: merge in blocks downsampled at most this much (1: the topmost blocks only).
        merge_attn, merge_crossattn, merge_mlp: which parts of a block run on the merged tokens.

    Returns:
        ``pipe``.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is allowed, before anything is changed.
    """
    find_unet(pipe)
    if threshold is _DEFAULT and ratio is not None:
        threshold = None
    stride = check_stride(stride)
    threshold, ratio = check_amount(threshold, ratio, stride)
    seed, max_downsample = check_integer("seed", seed, 0), check_integer("max_downsample", max_downsample, 1)
    flags = dict(merge_attn=merge_attn, merge_crossattn=merge_crossattn, merge_mlp=merge_mlp)
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name}={flag!r} must be True or False")
    checkpoints = parse_schedule(schedule)
    _install(pipe, MergeConfig(threshold, ratio, checkpoints, stride, check_dst(dst), seed, max_downsample, **flags))
    return pipe


def _install(pipe, config: MergeConfig) -> None:
    unet = find_unet(pipe)
    remove_patch(unet)
    state = _UNetHook(config, pipe)
    for block in transformer_blocks(unet).values():
        hook = _BlockHook(state)
        state.blocks.append(hook)
        HookRegistry.check_if_exists_or_initialize(block).register_hook(hook, HOOK)
        parts = ((block.attn1, config.merge_attn), (block.attn2, config.merge_crossattn), (block.ff, config.merge_mlp))
        for part, wanted in parts:
            if wanted and part is not None:
                HookRegistry.check_if_exists_or_initialize(part).register_hook(_PartHook(hook), HOOK)
    registry = HookRegistry.check_if_exists_or_initialize(unet)
    registry.register_hook(state, HOOK)
    if not hasattr(type(unet), "_reset_stateful_cache"):
        # what a pipeline calls on each of its models when a generation has ended
        unet._reset_stateful_cache = registry.reset_stateful_hooks


def applied_patch(pipe) -> _UNetHook | None:
    """The hook of the patch that is on ``pipe``, or None."""
    registry = getattr(find_unet(pipe), "_diffusers_hook", None)
    return registry.get_hook(HOOK) if registry is not None else None


def remove_patch(pipe):
    """Take the patch off ``pipe``, if there is one; outputs are then bit-identical to the never-patched model's.

    Returns ``pipe``; raises a TypeError if it has no ``UNet2DConditionModel``."""
    unet = find_unet(pipe)
    if applied_patch(unet) is None:
        return pipe
    unet._diffusers_hook.remove_hook(HOOK, recurse=True)
    unet.__dict__.pop("_reset_stateful_cache", None)
    for module in unet.modules():  # leave no empty registry and no forward on the instance behind
        registry = module.__dict__.get("_diffusers_hook")
        if registry is not None and not registry.hooks:
            del module._diffusers_hook
            if getattr(module.__dict__.get("forward"), "__func__", None) is type(module).forward:
                del module.forward
    return pipe


@contextmanager
def patched(pipe, **arguments) -> Iterator:
    """`apply_patch` with these arguments for the length of a ``with`` block; then what was there before is back."""
    before = applied_patch(pipe)
    apply_patch(pipe, **arguments)
    try:
        yield pipe
    finally:
        remove_patch(pipe)
        if before is not None:
            _install(before.pipe() or find_unet(pipe), before.config)
