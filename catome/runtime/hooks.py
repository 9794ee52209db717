"""The hooks on a patched model. The life of a call, from the outside in:

1. `Patch.before` runs before the model. It asks the `Timeline` which generation, step and condition the call
   belongs to, and keeps the answer for this thread (`Running`).
2. `BlockHook.before` notes what enters a transformer block of a U-Net, if that is compared: the paper's way.
3. `AttentionHook.before` runs before a self-attention and takes one of three ways:

   a. *at the call*: it watches for `F.scaled_dot_product_attention` inside (`AttentionMode`), and merges keys
      and values there;
   b. *context*: it hands over merged tokens as the context that the attention makes keys and values of, which
      saves projections, and every token stays a query;
   c. *tokens*: as the paper does it, the attention gets merged tokens, and `AttentionHook.after` copies its
      results back.

4. `PartHook` does (c) for cross-attention and the MLP, if asked.
5. `Patch.after` ends the call; the pipeline's `_reset_stateful_cache`, or an exception, ends the generation.

All are torch's own module hooks, which run around whatever `forward` a module has. So offloading, adapters,
compilation and other people's hooks may come and go in any order, a copy of the model has a copy of the
patch, and taking the hooks off leaves nothing behind.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet, ref

import torch

from catome.models import _diffusers
from catome.models._torch import (
    AttentionMode,
    hooks_of,
    in_eager,
    leave_behind,
    remove_hooks,
    renew_shown,
    show_to_compiler,
)
from catome.models.base import Layout, ModelCall, SelfAttention, bound
from catome.models.registry import family_of
from catome.runtime.config import MergeConfig
from catome.runtime.report import Report
from catome.runtime.state import Kept, Ran, Rule, Running
from catome.runtime.steps import CallFacts, Timeline
from catome.tensors.attention import (
    attend,
    avoids_masks,
    joined,
    key_bias,
    padded,
    unexpanded,
    unpadded,
    weighted_attention,
)
from catome.tensors.plan import MergePlan


class Hook:
    """A hook that catome puts on a module; `catome.models._torch.remove_hooks` knows it by this class."""


class Patch(Hook):
    """The patch on a model: it knows where each thread is, and holds the rule for generations that begin."""

    def __init__(self, rule: Rule, pipe: Any = None) -> None:
        self.rule: Rule | None = rule
        self._pipe = ref(pipe) if pipe is not None else None
        self._begin_afresh()

    def _begin_afresh(self) -> None:
        self._local = threading.local()
        self._lock = threading.RLock()
        self._kept = WeakSet()  # of the generations of all threads; gone when their thread is
        self.attentions: dict[str, SelfAttention] | None = None
        self.covered: dict[int, frozenset[str]] = {}  # names of the attentions, by max_downsample
        self._warned: set[str] = set()
        self.last: Report | None = None
        self.leave_when_idle: Callable[[], None] | None = None

    def __getstate__(self) -> dict:
        return {"rule": self.rule}

    def __setstate__(self, state: dict) -> None:
        """Make a copy, which has the rule and nothing of what the original is in the middle of."""
        self.rule = state["rule"]
        self._pipe = None
        self._begin_afresh()

    def __deepcopy__(self, memo: dict) -> Patch:
        """Make a copy; within the copy of a pipeline it looks at that pipeline's scheduler."""
        pipe = self._pipe() if self._pipe is not None else None
        copied = Patch(self.rule, memo.get(id(pipe)))
        memo[id(self)] = copied
        return copied

    def change(self, rule: Rule | None, pipe: Any = None) -> None:
        """Have generations that begin go by another rule, and this thread at once."""
        # or the end of this thread's generation would take off what is being put on
        self.leave_when_idle = None
        self.reset()
        self.last = None  # it was merged by the old rule
        with self._lock:
            self.rule = rule
        if pipe is not None:
            self._pipe = ref(pipe)
        self._warned.clear()

    # The state of this thread

    @property
    def timeline(self) -> Timeline:
        """The generations of this thread."""
        found = getattr(self._local, "timeline", None)
        if found is None:
            found = self._local.timeline = Timeline(self._begin, Kept.end)
        return found

    def _begin(self) -> Kept:
        with self._lock:  # either this generation has no rule, or who takes the patch off knows of it
            kept = Kept(self.rule)
            self._kept.add(kept)
        return kept

    @property
    def running(self) -> Running | None:
        """The call that this thread is in, or was in last; None before the first of a generation."""
        return getattr(self._local, "running", None)

    @property
    def config(self) -> MergeConfig | None:
        """The configuration by which generations that begin will merge."""
        return self.rule.config if self.rule is not None else None

    @property
    def generations(self) -> list[Kept]:
        """The `Kept` of each generation that is under way, in all threads."""
        with self._lock:
            return [kept for kept in self._kept if not kept.over]

    @property
    def in_use(self) -> bool:
        """True if a generation of any thread goes by this patch."""
        return any(kept.rule is not None for kept in self.generations)

    def cached(self) -> list[MergePlan]:
        """The plans that this thread's present condition holds, in the order in which they were made."""
        running = self.running
        return [] if running is None else [cached.plan for cached in running.condition.plans.values()]

    def report(self) -> Report | None:
        """Of the generation that runs in this thread, else of the last one that ended in any."""
        running = self.running
        return running.report if running is not None else self.last

    def reset(self) -> None:
        """End this thread's generations; a pipeline does so when it is done."""
        running = self.running
        if running is not None and running.report.calls:
            self.last = running.report
        self.timeline.clear()
        self._local.__dict__.clear()
        self._leave_if_idle()

    def _leave_if_idle(self) -> bool:
        """Take a patch off that was removed while it was in use, and tell whether that was done."""
        leave = self.leave_when_idle
        if leave is None or self.in_use:
            return False
        self.leave_when_idle = None
        leave()
        return True

    def warn(self, reason: str) -> None:
        """Say once for each patch why something is not merged."""
        if reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(f"catome leaves an attention as it is: {reason}", stacklevel=3)

    # The hooks of the model

    def settle(self, model: torch.nn.Module) -> None:
        """Put hooks on the attentions of the model, and take off what no rule asks for any more.

        Those that are wanted stay where they are: another thread may be inside their module."""
        with self._lock:
            # those of other threads stay as they are
            rules = [self.rule, *(kept.rule for kept in self.generations)]
            configs = [rule.config for rule in rules if rule is not None]
            deepest = max((config.max_downsample for config in configs), default=1)
            declared = family_of(model).attentions(model, deepest)
            self.attentions = {attention.name: attention for attention in declared}
            wanted = []
            for config in configs:
                attentions = family_of(model).attentions(model, config.max_downsample)
                self.covered[config.max_downsample] = frozenset(attention.name for attention in attentions)
                for attention in attentions:
                    wanted += [self._hook(*where) for where in _places(attention, config)]
            for module in model.modules():
                remove_hooks(module, ModuleHook, tuple(wanted))

    def _hook(
        self, kind: type[ModuleHook], module: torch.nn.Module, name: str, part: str | None
    ) -> ModuleHook:
        """The hook of a kind that is on a module, put there now if it is not."""
        for hook in hooks_of(module, kind):
            if (hook.patch, hook.name, hook.part) == (self, name, part):
                return hook
        hook = kind(self, name, part)
        hook.put_on(module)
        return hook

    @in_eager
    def before(self, model: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        """Find out where the call is."""
        leave_behind()
        if self._leave_if_idle():
            return
        _refuse_what_cannot_work(model)
        if self.attentions is None:
            self.settle(model)
        for module in self._shown(model):
            renew_shown(module)
        call = ModelCall(model, bound(model, args, kwargs))
        facts = self._facts(call)
        generation, condition = self.timeline.locate(facts)
        running = Running(call, generation, condition)
        running.report.calls += 1
        running.report.steps = generation.step + 1
        running.report.length = generation.length
        self._local.running = running

    def _shown(self, model: torch.nn.Module) -> Iterator[torch.nn.Module]:
        """The modules that may have hooks of catome, or in a replica (`torch.nn.DataParallel`) all
        modules."""
        if getattr(model, "_is_replica", False):
            yield from model.modules()
            return
        for attention in self.attentions.values():
            yield attention.module
            block = attention.block
            if block is not None:
                parts = (getattr(block, part, None) for part in ("attn2", "ff"))
                yield from (block, *(part for part in parts if part is not None))

    def _facts(self, call: ModelCall) -> CallFacts:
        family = family_of(call.model)
        context = getattr(self._local, "context", None) or {}
        return CallFacts(
            timestep=call.arguments.get(family.timestep),
            sample=call.arguments.get(family.sample),
            prompt=call.arguments.get(family.condition),
            context=context.get("name"),
            step_index=context.get("step_index"),
            length=context.get("num_inference_steps") or _length_by(self._scheduler),
            planned=getattr(self._scheduler, "timesteps", None),
        )

    @property
    def _scheduler(self):
        """The scheduler of the pipeline that was patched; None without a pipeline, or where that is gone."""
        return getattr(self._pipe() if self._pipe is not None else None, "scheduler", None)

    @in_eager
    def after(self, model: torch.nn.Module, args: tuple, output) -> None:
        """End the call; one that failed ends its generation."""
        if output is None:
            self.reset()
        elif self.running is not None:
            self.running.inputs.clear()
            if self.running.ran:  # else the call was left out, and the one before it still tells
                self.running.condition.ran = tuple(self.running.ran)

    @contextmanager
    def context(self, name: str, **where):
        """Note what `cache_context` of diffusers says about the calls within."""
        before = getattr(self._local, "context", None)
        self._local.context = {"name": name, **where}
        try:
            yield
        finally:
            self._local.context = before


def _places(attention: SelfAttention, config: MergeConfig) -> list[tuple]:
    """The hooks that an attention needs: for each its kind, the module, the attention's name and the field
    that asks for it."""
    places = []
    block = attention.block
    compared = config.compare == "input" or config.merge_crossattn or config.merge_mlp
    if block is not None and compared:
        places.append((BlockHook, block, attention.name, None))
    if config.merge_attn:
        places.append((AttentionHook, attention.module, attention.name, "merge_attn"))
    for field, part in (("merge_crossattn", "attn2"), ("merge_mlp", "ff")):
        module = getattr(block, part, None)
        if getattr(config, field) and module is not None:
            places.append((PartHook, module, attention.name, field))
    return places


def _length_by(scheduler) -> int | None:
    """The number of calls that a scheduler has planned; None before it has planned."""
    if getattr(scheduler, "num_inference_steps", None) is None:
        return None
    planned = len(scheduler.timesteps) - (getattr(scheduler, "begin_index", None) or 0)
    return planned if planned > 0 else None


def _refuse_what_cannot_work(model: torch.nn.Module) -> None:
    if torch.is_grad_enabled() and getattr(model, "is_gradient_checkpointing", False):
        raise RuntimeError(
            "catome cannot go with gradient checkpointing, which runs a block a second time, with "
            "whatever pairs are cached then: disable_gradient_checkpointing(), or catome.remove_patch"
        )
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        raise RuntimeError(
            "catome cannot be exported or traced: which tokens are merged is decided "
            "by the image while the model runs; call catome.remove_patch first"
        )
    refuse_other_merging(model)


def refuse_other_merging(model: torch.nn.Module) -> None:
    """Raise a RuntimeError where another package merges tokens in the same model."""
    if getattr(model, "_tome_info", {}).get("hooks"):  # empty where that package has been taken off again
        raise RuntimeError(
            f"{type(model).__name__} is patched by another token merging package (tomesd, or one made "
            "from it), and merging merged tokens would be neither's method: take that patch off first"
        )


class ModuleHook(Hook):
    """A pair of hooks around one module of a patched model."""

    def __init__(self, patch: Patch, name: str, part: str | None = None) -> None:
        """``name`` is that of the attention, which also names the block it is in; ``part`` the field that
        asks for the hook."""
        self.patch = patch
        self.name = name
        self.part = part

    def put_on(self, module: torch.nn.Module) -> None:
        module.register_forward_pre_hook(self.before, with_kwargs=True)
        module.register_forward_hook(self.after, with_kwargs=True, always_call=True)
        show_to_compiler(module)

    def before(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        raise TypeError("a ModuleHook says what it does before its module")

    def after(self, module: torch.nn.Module, args: tuple, kwargs: dict, output):
        raise TypeError("a ModuleHook says what it does after its module")

    @property
    def running(self) -> Running | None:
        """The call that this thread is in, if its generation merges here; the hooks of several rules may be
        on a model."""
        running = self.patch.running
        if running is None or not running.active:
            return None
        config = running.config
        asked = self.part is None or getattr(config, self.part)
        return running if asked and self.name in self.patch.covered[config.max_downsample] else None

    @property
    def attention(self) -> SelfAttention:
        return self.patch.attentions[self.name]

    def left_alone(self, running: Running, reason: str, aloud: bool = True, **size: int) -> None:
        """Write down why the attention runs as it is, and warn about what a user may want to change."""
        running.note(Ran(self.name, reason=reason, size=size))
        if aloud:
            self.patch.warn(reason)

    def block_plan(self, running: Running, x: torch.Tensor) -> MergePlan | None:
        """The plan for the tokens that entered the block; None where ``x`` ``[B, N, C]`` are not these
        tokens."""
        tokens = running.inputs.get(self.name)
        if tokens is None or x.ndim != 3 or tokens.shape[:2] != x.shape[:2]:
            return None
        layout = self.layout(running, x.shape[1], x.shape[1])
        if layout is None or layout.tokens != x.shape[1] or running.too_few(tokens):
            return None
        return running.plan(self.name, "block", lambda: tokens, tokens, len(tokens), layout)

    def layout(self, running: Running, queries: int, keys: int) -> Layout | None:
        """The place of the image tokens; None also where the grid has no whole window."""
        layout = self.attention.layout(running.call, queries, keys)
        if layout is None:
            return None
        height, width = running.config.stride
        return layout if layout.height >= height and layout.width >= width else None


class BlockHook(ModuleHook):
    """Notes what enters a transformer block."""

    @in_eager
    def before(self, module, args, kwargs):
        running = self.running
        if running is not None:
            running.inputs[self.name] = args[0] if args else kwargs["hidden_states"]
            running.used.pop(self.name, None)
            running.times[self.name, "block"] += 1

    @in_eager
    def after(self, module, args, kwargs, output):
        running = self.running
        if running is not None:
            running.inputs.pop(self.name, None)


_NOT_IMAGE = "its queries and keys are not the image tokens that were expected there"
_MASKED = "it has a mask that treats image tokens differently"
_MASKED_QUERIES = (
    "queries cannot be merged in this call, whose mask has a row for each; keep_queries=True can merge its "
    "keys"
)
_CAUSAL = "it is causal"
_UNSEEN = (
    "it does not call torch.nn.functional.scaled_dot_product_attention "
    "(another attention backend, or a processor with attention of its own); "
    "set_attention_backend('native') or set_default_attn_processor() would let it merge"
)
_SLOWER = "merging would take longer than it saves here"
_KEPT = "a hook inside gave the output of an earlier step"
_SEVERAL = (
    "queries cannot be merged in this call, in which keys lie elsewhere; keep_queries=True can merge its keys"
)


class AttentionHook(ModuleHook):
    """Merges in one self-attention."""

    @in_eager
    def before(self, module, args, kwargs):
        running = self.running
        if running is None:
            return None
        way = self._by_tokens(running, module, args, kwargs)
        if way is None:
            way = AtTheCall(self, running, _diffusers.keeps_outputs(module))
        self._ways().append(way)
        return way.enter(args, kwargs)

    def _too_few(self, running: Running, x: torch.Tensor) -> bool:
        """Return True if so few tokens ``x`` ``[B, N, C]`` enter the attention that no merging pays, which is
        written down."""
        tokens = x.shape[1]
        layout = self.layout(running, tokens, tokens) if x.ndim == 3 else None
        if layout is None or layout.tokens != tokens or not running.too_few(x):
            return False
        self.left_alone(
            running, _SLOWER, aloud=False, images=len(x), queries=tokens, keys=tokens, tokens=tokens
        )
        return True

    def _plan_by_keys(self, running: Running, module, x: torch.Tensor) -> MergePlan | None:
        """The plan for the tokens ``x`` ``[B, N, C]`` that enter the attention, by the keys and values that
        it will make of them.

        These are linear in tokens: the mean of keys is the key of the mean, and tokens can be merged before
        they are projected. Where pairs are looked for, this takes two projections more."""
        layout = self.layout(running, x.shape[1], x.shape[1]) if x.ndim == 3 else None
        if layout is None or layout.tokens != x.shape[1]:
            return None
        running.times[self.name, "keys"] += 1
        return running.plan(
            self.name, "keys", lambda: joined(*_diffusers.keys_and_values(module, x)), x, len(x), layout
        )

    @in_eager
    def after(self, module, args, kwargs, output):
        ways = self._ways()
        if not ways:
            return None
        return ways.pop().leave(output)

    def _ways(self) -> list:
        """The list of what `before` has begun in this thread and `after` has to end."""
        return self.patch._local.__dict__.setdefault(f"ways {self.name}", [])

    def _by_tokens(self, running: Running, module, args: tuple, kwargs: dict):
        """The ways that merge what enters the attention, where the module and its call are plain enough for
        them."""
        config = running.config
        x = args[0] if args else kwargs.get("hidden_states")
        plain = len(args) <= 1 and _diffusers.is_plain(module, kwargs)
        if not plain or not isinstance(x, torch.Tensor):
            return None
        if not config.keep_queries and _diffusers.keeps_outputs(module):
            return None  # a hook inside keeps what comes out for later steps, which merge other tokens
        if self._too_few(running, x):
            return AsItIs()
        by_input = config.compare == "input"
        plan = self.block_plan(running, x) if by_input else self._plan_by_keys(running, module, x)
        if plan is None:
            return None
        layout = self.layout(running, x.shape[1], x.shape[1])
        running.note(Ran(self.name, plan, "block" if by_input else "keys", layout))
        if not plan.merges:
            return AsItIs()
        if config.keep_queries:
            return ByContext(
                plan, x, config.weighted, at_the_call=avoids_masks(x) and _diffusers.calls_sdpa(module)
            )
        return ByTokens(plan, x, config.weighted, packed=_diffusers.calls_sdpa(module))


class AsItIs:
    """Nothing is to be merged."""

    def enter(self, args: tuple, kwargs: dict) -> None:
        return None

    def leave(self, output):
        return output


class ByContext:
    """The attention gets merged tokens as its context, which it makes keys and values of; its queries are all
    tokens."""

    def __init__(self, plan: MergePlan, x: torch.Tensor, weighted: bool, at_the_call: bool) -> None:
        """``at_the_call``: weigh the keys there in the way that is fastest, and not by a mask."""
        self.context = padded(plan, plan.merge(x))
        self.bias = key_bias(plan, weighted, x.dtype)
        self.mode = AttentionMode(self._weighted) if at_the_call and self.bias is not None else None

    def enter(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        mask = None
        if self.mode is not None:
            self.mode.enter()
        elif self.bias is not None:
            mask = self.bias[:, None]
        return args, {**kwargs, "encoder_hidden_states": self.context, "attention_mask": mask}

    def _weighted(self, function, query, key, value, attn_mask=None, **rest):
        return weighted_attention(query, key, value, self.bias, attn_mask, **rest)

    def leave(self, output):
        if self.mode is not None:
            self.mode.leave()
        return output


class ByTokens:
    """The attention gets merged tokens, and every token gets the result of its group."""

    def __init__(self, plan: MergePlan, x: torch.Tensor, weighted: bool, packed: bool) -> None:
        """``packed``: the images of a ragged batch lie behind each other, as if they were one, up to the
        attention itself."""
        self.plan = plan
        self.weighted = weighted
        self.packed = packed and plan.ragged
        tokens = plan.merge(x)
        self.tokens = tokens[None] if self.packed else padded(plan, tokens)
        self.bias = key_bias(plan, weighted, x.dtype)
        self.mode = AttentionMode(self._image_by_image) if self.packed else None

    def enter(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if self.mode is not None:
            self.mode.enter()
        elif self.bias is not None:
            kwargs = {**kwargs, "attention_mask": self.bias[:, None]}
        return replaced(args, kwargs, self.tokens)

    def leave(self, output):
        if self.mode is not None:
            self.mode.leave()
        if output is None:  # an exception
            return None
        return self.plan.unmerge(output[0] if self.packed else unpadded(self.plan, output))

    def _image_by_image(self, function, query, key, value, attn_mask=None, **rest):
        """Attention ``[1, H, S, D]`` of each image's tokens with each other alone."""
        images = []
        parts = zip(*(x.split(self.plan.lengths, 2) for x in (query, key, value)), strict=True)
        for i, (image, length) in enumerate(zip(parts, self.plan.lengths, strict=True)):
            bias = (
                self.bias[i, :length][None, None, None] if self.bias is not None and self.weighted else None
            )
            images.append(function(*image, attn_mask=bias, **rest))
        return torch.cat(images, 2)


def replaced(args: tuple, kwargs: dict, tokens: torch.Tensor) -> tuple[tuple, dict]:
    """The arguments of a call with its hidden states replaced."""
    if args:
        return (tokens, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": tokens}


class AtTheCall:
    """Keys and values are merged where the module calls `F.scaled_dot_product_attention`."""

    def __init__(self, hook: AttentionHook, running: Running, keeps_outputs: bool) -> None:
        """``keeps_outputs``: a hook of diffusers inside may give what it kept, and not call the attention at
        all."""
        self.hook = hook
        self.running = running
        self.keeps_outputs = keeps_outputs
        self.mode = AttentionMode(self._attend)
        self.calls = 0

    def enter(self, args: tuple, kwargs: dict) -> None:
        self.mode.enter()

    def leave(self, output):
        self.mode.leave()
        if output is not None and not self.calls:
            kept = self.keeps_outputs
            self.hook.left_alone(self.running, _KEPT if kept else _UNSEEN, aloud=not kept)
        return output

    @in_eager
    def _attend(self, function, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **rest):
        self.calls += 1
        plan, layout = self._plan(query, key, value, attn_mask, is_causal)
        if plan is None or not plan.merges:
            return function(
                query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, **rest
            )
        config = self.running.config
        return attend(
            query,
            key,
            value,
            plan,
            layout.first,
            weighted=config.weighted,
            merge_queries=not config.keep_queries,
            attn_mask=attn_mask,
            dropout_p=dropout_p,
            **rest,
        )

    def _plan(self, query, key, value, mask, is_causal: bool) -> tuple[MergePlan | None, Layout | None]:
        """The plan for a call of the attention, and where its image tokens are; without one, the reason is
        written down."""
        hook = self.hook
        running = self.running
        images, _, queries, _ = query.shape
        keys = key.shape[2]
        layout = hook.layout(running, queries, keys)
        size = {"images": images, "queries": queries, "keys": keys}
        if layout is None or layout.first + layout.tokens > keys or len(key) != images:
            hook.left_alone(running, _NOT_IMAGE, aloud=False, **size)
            return None, None
        size["tokens"] = layout.tokens
        keep_queries = running.config.keep_queries
        if is_causal:
            hook.left_alone(running, _CAUSAL, **size)
        elif mask is not None and not _uniform(mask, layout, running):
            hook.left_alone(running, _MASKED, **size)
        elif mask is not None and not keep_queries and unexpanded(mask).shape[-2] > 1:
            hook.left_alone(running, _MASKED_QUERIES, **size)
        elif not keep_queries and queries not in (keys, layout.tokens):
            hook.left_alone(running, _SEVERAL, **size)
        else:
            return self._found(query, key, value, layout)
        return None, None

    def _found(self, query, key, value, layout: Layout) -> tuple[MergePlan | None, Layout]:
        hook = self.hook
        running = self.running
        image, values = (
            x[:, :, layout.first : layout.first + layout.tokens].transpose(1, 2) for x in (key, value)
        )
        if running.too_few(key.new_empty(0, layout.tokens, key.shape[1] * key.shape[3]), at_the_call=True):
            size = {
                "images": len(key),
                "queries": query.shape[2],
                "keys": key.shape[2],
                "tokens": layout.tokens,
            }
            hook.left_alone(running, _SLOWER, aloud=False, **size)
            return None, layout
        running.times[hook.name, "call"] += 1
        plan = running.plan(
            hook.name, "call", lambda: joined(image.flatten(2), values.flatten(2)), key, len(key), layout
        )
        around_keys = key.shape[2] - layout.tokens
        around_queries = max(query.shape[2] - layout.tokens, 0)
        running.note(Ran(hook.name, plan, "call", layout, around_queries, around_keys))
        return plan, layout


def _uniform(mask: torch.Tensor, layout: Layout, running: Running) -> bool:
    """Return True if a mask treats all image tokens alike. The device is asked once for each mask of a call
    of the model."""
    key = ("uniform", mask.data_ptr(), mask.shape, mask.stride(), layout)
    memo = running.call.memo
    if key not in memo:
        image = unexpanded(mask)[..., layout.first : layout.first + layout.tokens]
        # held, so that its place in memory stays its own
        memo[key] = (bool((image == image[..., :1]).all()), mask)
    return memo[key][0]


class PartHook(ModuleHook):
    """Runs cross-attention or the MLP of a U-Net's block on merged tokens."""

    @in_eager
    def before(self, module, args, kwargs):
        running = self.running
        if running is None:
            return None
        x = args[0] if args else kwargs.get("hidden_states")
        plan = self.block_plan(running, x) if isinstance(x, torch.Tensor) else None
        self.patch._local.__dict__[("part", id(module))] = plan if plan is not None and plan.merges else None
        if plan is None:
            entered = running.inputs.get(self.name)
            if entered is not None and isinstance(x, torch.Tensor) and x.shape[1] != entered.shape[1]:
                self.left_alone(running, f"its {type(module).__name__} gets the tokens in chunks")
            return None
        running.used[self.name] = plan
        if not plan.merges:
            return None
        return replaced(args, kwargs, padded(plan, plan.merge(x)))

    @in_eager
    def after(self, module, args, kwargs, output):
        plan = self.patch._local.__dict__.pop(("part", id(module)), None)
        if plan is None or output is None:
            return output
        return plan.unmerge(unpadded(plan, output))


def patch_of(model: torch.nn.Module) -> Patch | None:
    """The patch that is on a model, or None."""
    found = hooks_of(model, Patch)
    return found[0] if found else None
