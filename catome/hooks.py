"""What runs inside a patched U-Net: it counts steps, keeps one plan per block, and lets parts run on merged tokens.

The paper merges before self-attention in the topmost transformer blocks (Section IV); CA-ToMe's cache reuses the pairs between
checkpoints (Section III-B).
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from weakref import WeakSet

import torch
import torch.nn.functional as F
from diffusers.hooks import HookRegistry, ModelHook

from catome import kernels
from catome.checks import Dst
from catome.matching import Matches, best_matches
from catome.online import broken_share, weakest_pair
from catome.packed import attend, packable
from catome.plan import MergePlan, make_plan, pack
from catome.schedule import Auto
from catome.unet import StepCounter, token_grid, topmost_downsample, transformer_blocks
from catome.worth import least_share, rates_of, without_small

HOOK = "catome"
_ROW_BY_ROW = ("AttnProcessor", "SlicedAttnProcessor", "FusedAttnProcessor", "XFormersAttnProcessor", "IPAdapterAttnProcessor")

_in_eager = torch.compiler.disable  # torch.compile leaves it out; what it calls, too
_frame_in_eager = partial(torch.compiler.disable, recursive=False)  # what it calls is compiled by itself

_PACKED_TAKES = {"encoder_hidden_states", "attention_mask"}


@dataclass(frozen=True)
class MergeConfig:
    """What `apply_patch` was asked to do; see there for the meaning of each field."""

    threshold: float | None
    ratio: float | None
    checkpoints: frozenset[int] | Auto | None
    stride: tuple[int, int] = (2, 2)
    dst: Dst = "top_left"
    seed: int = 0
    max_downsample: int = 1
    merge_attn: bool = True
    merge_crossattn: bool = False
    merge_mlp: bool = False
    only_where_faster: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.checkpoints, Auto) and self.dst == "random":
            raise ValueError(
                "dst='random' draws other dst tokens at each checkpoint, and schedule='auto' compares old with new"
            )
        if isinstance(self.checkpoints, Auto) and self.only_where_faster:
            raise ValueError(
                "only_where_faster=True needs to know how often pairs are looked for; schedule='auto' does not say"
            )

    def least_share(self, x: torch.Tensor, matched: bool) -> float:
        """The least share of the tokens ``x`` ``[B, N, C]`` that is worth merging, with or without the search for pairs."""
        if not self.only_where_faster:
            return 0.0
        steps, interval = sorted(self.checkpoints or ()), 1.0
        if matched or len(steps) == 1:
            interval = math.inf
        elif steps:
            interval = steps[-1] / (len(steps) - 1)
        sources, parts = 1 - 1 / math.prod(self.stride), (self.merge_attn, self.merge_crossattn, self.merge_mlp)
        rates, size = rates_of(x), x.element_size()
        return least_share(*x.shape[1:], rates, size, sources=sources, interval=interval, parts=parts)


def decide(matches: Matches, config: MergeConfig) -> MergePlan:
    return make_plan(matches, config.threshold, config.ratio)


class Generation:
    """All that must be forgotten when a generation ends; each thread that runs the U-Net has its own."""

    def __init__(self, config: MergeConfig) -> None:
        self.counter, self.due = StepCounter(), 0
        self.begin(config)

    def begin(self, config: MergeConfig) -> None:
        self.size, self.generator = None, torch.Generator().manual_seed(config.seed)
        self.cached: dict[int, tuple] = {}  # by block: plan, what it fits, when it was made, its floor (see `Auto`)
        self.active: MergePlan | None = None
        self.raw: torch.Tensor | None = None  # the block's input, where the norm has left its work to the merge
        self.used: MergePlan | None = None


class Patch:
    """What is on a patched U-Net: counts its calls and makes its blocks forget the plans of the last generation.

    The U-Net itself has torch's hooks, which offloading leaves alone and copying copies; what replaces the forward of its
    parts are diffusers' hooks, put on again where a copy would still run the original's."""

    def __init__(self, config: MergeConfig, choose: Callable[[Matches, MergeConfig], MergePlan] = decide) -> None:
        self.config, self.choose = config, choose
        self.local, self.generations = threading.local(), WeakSet()  # gone when their thread is
        self.downsample, self.settled = 1, False

    def __deepcopy__(self, memo) -> Patch:
        copy = memo[id(self)] = Patch(self.config, self.choose)
        return copy

    @property
    def now(self) -> Generation:
        """The generation that this thread is in."""
        found = getattr(self.local, "generation", None)
        if found is None:
            found = self.local.generation = Generation(self.config)
            self.generations.add(found)
        return found

    def cached(self) -> list[MergePlan]:
        """The plans this thread's generation holds, by block."""
        return [plan for _, (plan, *_) in sorted(self.now.cached.items())]

    def settle(self, unet) -> None:
        config, self.settled = self.config, True
        self.downsample = topmost_downsample(unet) * config.max_downsample
        for index, block in enumerate(transformer_blocks(unet).values()):
            put_on(block, BlockHook(self, index))
            for part, wanted in (
                (block.attn1, config.merge_attn),
                (block.attn2, config.merge_crossattn),
                (block.ff, config.merge_mlp),
            ):
                if wanted and part is not None:
                    put_on(part, PartHook(self, block.norm1 if part is block.attn1 else None))
            if config.merge_attn and type(block.norm1) is torch.nn.LayerNorm and block.pos_embed is None:
                put_on(block.norm1, NormHook(self, block))

    @_in_eager
    def before(self, unet, args, kwargs) -> None:
        if not self.settled:
            self.settle(unet)
        if torch.is_grad_enabled() and getattr(unet, "is_gradient_checkpointing", False):
            raise RuntimeError(
                "catome cannot go with gradient checkpointing, which runs a block a second time, with whatever pairs are cached "
                "then: disable_gradient_checkpointing(), or catome.remove_patch"
            )
        now, checkpoints = self.now, self.config.checkpoints
        if now.counter.advance(kwargs["timestep"] if "timestep" in kwargs else args[1]):
            now.begin(self.config)
        step = now.counter.step
        if isinstance(checkpoints, Auto):
            now.due = 0
        else:
            now.due = step if checkpoints is None else max(c for c in checkpoints if c <= step)
        now.size = tuple((kwargs["sample"] if "sample" in kwargs else args[0]).shape[-2:])

    @_in_eager
    def after(self, unet, args, output) -> None:
        if output is None:  # an exception
            self.reset()

    def reset(self, *_) -> None:
        """Forget everything; a pipeline calls it at the end of a generation."""
        self.local.__dict__.clear()


class BlockHook(ModelHook):
    """Looks at the input of a transformer block and has a plan ready for its parts."""

    def __init__(self, patch: Patch, index: int) -> None:
        super().__init__()
        self.patch, self.index = patch, index

    @_in_eager
    def pre_forward(self, module, *args, **kwargs):
        now = self.patch.now
        with torch.inference_mode(False):  # a later call may want gradients through the same plan
            now.active, now.used = self._plan(now, args[0] if args else kwargs["hidden_states"]), None
            if now.active is not None:
                _ = now.active.groups
        return args, kwargs

    def _plan(self, now: Generation, x: torch.Tensor) -> MergePlan | None:
        config = self.patch.config
        grid = token_grid(x, now.size, self.patch.downsample, config.stride)
        if grid is None or self._too_little(x):
            return None
        fits = (x.shape, x.dtype, x.device, grid)
        plan, fitted, made, floor = now.cached.get(self.index, (None, None, -1, None))
        online = config.checkpoints if isinstance(config.checkpoints, Auto) else None
        if made < now.due or fitted != fits:
            plan = self._find(now, x, grid)
        elif online is not None:
            images = (broken_share(plan, x, floor) > online.tolerance).nonzero()[:, 0]
            if not len(images):
                return plan
            target = plan.target.index_copy(0, images, self._find(now, x[images], grid).target)
            plan = pack(target, plan.lengths if config.threshold is None else None)
        else:
            return plan
        if online is not None:
            if config.threshold is not None:
                floor = config.threshold
            elif floor is None or fitted != fits:
                floor = weakest_pair(plan, x)
            else:
                floor = floor.index_copy(0, images, weakest_pair(plan, x)[images])
        now.cached[self.index] = (plan, fits, now.counter.step, floor)
        return plan

    def _find(self, now: Generation, x: torch.Tensor, grid: tuple[int, int]) -> MergePlan:
        config = self.patch.config
        matches = best_matches(x, grid, config.stride, config.dst, now.generator, config.threshold == 1.0)
        plan, least = self.patch.choose(matches, config), config.least_share(x, matched=True)
        return plan if config.ratio is not None else without_small(plan, least)

    def _too_little(self, x: torch.Tensor) -> bool:
        """Whether no share that may come out is worth looking for."""
        config = self.patch.config
        most = 1 - 1 / math.prod(config.stride) if config.ratio is None else config.ratio
        return config.only_where_faster and most < config.least_share(x, matched=False)

    @_in_eager
    def post_forward(self, module, output):
        now = self.patch.now
        now.active = now.raw = None
        return output


class NormHook(ModelHook):
    """Leaves the LayerNorm before self-attention to the merge, where a kernel does both in one pass over the tokens."""

    def __init__(self, patch: Patch, block) -> None:
        super().__init__()
        self.patch, self.attention = patch, block.attn1

    @_frame_in_eager
    def new_forward(self, module, hidden_states):
        now, forward = self.patch.now, self.fn_ref.original_forward
        now.raw = hidden_states if self._may_wait(now, module, hidden_states) else None
        return forward(hidden_states) if now.raw is None else hidden_states

    def _may_wait(self, now: Generation, module, x: torch.Tensor) -> bool:
        """Whether nobody sees the difference: the attention has no other hook, and the plan fits."""
        alone = all(
            watched._diffusers_hook._hook_order == [HOOK] and not (watched._forward_pre_hooks or watched._forward_hooks)
            for watched in (module, self.attention)
        )
        return (
            alone
            and now.active is not None
            and x.shape[:2] == now.active.slot.shape
            and kernels.usable(x)
            and not torch.is_autocast_enabled(x.device.type)
            and (module.weight is None or module.weight.dtype == x.dtype)
        )


class PartHook(ModelHook):
    """Runs one part of a block (attention or MLP) on the merged tokens."""

    def __init__(self, patch: Patch, norm: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.patch, self.norm = patch, norm

    @_frame_in_eager
    def new_forward(self, module, hidden_states, *args, **kwargs):
        forward, now = self.fn_ref.original_forward, self.patch.now
        norm = self.norm if hidden_states is now.raw else None
        plan, context = now.active, kwargs.get("encoder_hidden_states")
        masked = kwargs.get("attention_mask") is not None or not isinstance(context, (torch.Tensor, type(None)))
        fits = plan is not None and not masked and hidden_states.shape[:2] == plan.slot.shape
        if fits and sum(plan.lengths) == plan.slot.numel():  # nothing to merge
            now.used, fits = plan, False
        ragged = fits and len(set(plan.lengths)) > 1
        if not fits or (ragged and not row_by_row(module)) or remembers(module):
            if norm is not None:
                hidden_states = F.layer_norm(hidden_states, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
            return forward(hidden_states, *args, **kwargs)
        now.used, packed = plan, merge(plan, hidden_states, norm)
        if ragged and not args and set(kwargs) <= _PACKED_TAKES and packable(module, packed):
            merged = attend(module, packed, plan, context)
        elif not ragged:
            merged = forward(packed.unflatten(0, (len(plan.lengths), -1)), *args, **kwargs).flatten(0, 1)
        else:
            images = []
            for i, tokens in enumerate(plan.split(packed)):
                if context is not None:
                    kwargs["encoder_hidden_states"] = context[i : i + 1]
                images.append(forward(tokens[None], *args, **kwargs)[0])
            merged = torch.cat(images)
        return unmerge(plan, merged)


merge, unmerge = _in_eager(MergePlan.merge), _in_eager(MergePlan.unmerge)


def row_by_row(part) -> bool:
    """Whether a part treats each image of a batch by itself; warns, once for each processor, where nobody knows."""
    name = type(getattr(part, "processor", None)).__name__
    if name == "NoneType" or name.startswith(_ROW_BY_ROW):
        return True
    warnings.warn(
        f"catome merges nothing where {name} is the attention processor and images keep different numbers of tokens: it may "
        "look across the batch. Give a ratio instead of a threshold, or the default processor (set_default_attn_processor).",
        stacklevel=2,
    )
    return False


def remembers(part) -> bool:
    """Whether a hook inside catome's keeps outputs for later steps, whose tokens may be merged differently; warns if so."""
    registry = part._diffusers_hook
    inside = registry._hook_order[: registry._hook_order.index(HOOK)]
    names = [name for name in inside if registry.hooks[name]._is_stateful]
    if names:
        warnings.warn(
            f"catome merges nothing where the hook {names[0]!r} was put on first: it keeps outputs. Apply catome before it.",
            stacklevel=2,
        )
    return bool(names)


def put_on(module, hook: ModelHook) -> None:
    take_off(module)
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, HOOK)


def take_off(module) -> None:
    """Take catome's hook off a module, and leave every other hook as it is."""
    registry = module.__dict__.get("_diffusers_hook")
    if registry is None or registry.get_hook(HOOK) is None:
        return
    later = registry._fn_refs[registry._hook_order.index(HOOK) + 1 :][:1]
    own = [reference.forward if reference.original_forward is not None else None for reference in later]
    registry.remove_hook(HOOK, recurse=False)
    for reference, forward in zip(later, own, strict=True):
        if forward is not None:  # the next hook has a forward of its own, which remove_hook has overwritten
            reference.original_forward, reference.forward = reference.forward, forward
    if not registry.hooks:  # leave no empty registry and no forward on the instance behind
        del module._diffusers_hook
        if getattr(module.__dict__.get("forward"), "__func__", None) is type(module).forward:
            del module.forward
