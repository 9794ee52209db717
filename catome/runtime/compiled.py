"""The cached steps of a patched model as one compiled program.

Between two checkpoints nothing is decided: the pairs are known, and a call of the model is the same
computation each time. Only the hooks keep `torch.compile` from taking it as a whole, and only the numbers of
keys keep its shapes from being the same. So there is a twin of the model, which shares its weights and has no
hooks of catome. Where the model merges, the twin has a `MergedAttention` with the pairs in tensors and with a
number of slots from a short list. Checkpoints run as ever, and so does everything that is not plain.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections import Counter
from collections.abc import Iterable

import torch

from catome import checks
from catome.models import _diffusers
from catome.models._torch import ReplacedForward, SdpaMode, alone_in_eager, has_own_forward, twin_of
from catome.models.registry import family_of, find_models
from catome.runtime.config import PARTS, MergeConfig
from catome.runtime.forecast import ForecastSteps
from catome.runtime.hooks import Hook, Patch, patch_of
from catome.runtime.state import Ran, Running
from catome.tensors.attention import weighted_attention
from catome.tensors.padded import PaddedGroups, attend_padded, merge_padded, padded_groups

BUCKETS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 1.0)
"""Shares of its tokens for which an attention has slots."""


def compile_cached_steps(pipe, buckets: Iterable[float] = BUCKETS, **options):
    """Run the cached steps of a patched pipeline as one compiled program each, without a graph break.

    Every attention gets slots for a share of its tokens. The share is the least of ``buckets`` that suffices,
    and it never shrinks: after the first generations nothing is compiled any more. Results do not depend on
    it, since slots that are not needed are never attended to. Steps run as before where the program cannot:
    at checkpoints, with gradients, where a hook of somebody else has taken a module's forward, and where an
    attention is called several times in a call of the model.

    Args:
        pipe: a patched pipeline or model (`catome.apply_patch`).
        buckets: shares in (0, 1]; 1 is added where it is missing.
        options: of `torch.compile`, such as ``mode="reduce-overhead"`` for CUDA graphs; ``fullgraph`` is
            True.

    Returns:
        ``pipe``. `catome.remove_patch` takes the programs off, too.

    Raises:
        TypeError, ValueError: if the pipeline is not patched, merges queries or parts, or decides its
            checkpoints while it runs; for buckets out of range.
    """
    shares = checks.check_collection("buckets", buckets, "a collection of shares")
    shares = [checks.check_number(f"buckets[{i}]", share, 0.0, 1.0) for i, share in enumerate(shares)]
    if 0.0 in shares:
        raise ValueError(f"buckets={buckets!r}: a share must be above 0")
    models = find_models(pipe)
    for model in models:
        patch = patch_of(model)
        if patch is None or patch.config is None:
            raise ValueError(
                f"pipe={type(pipe).__name__} is not patched: call catome.apply_patch(pipe) first"
            )
        _check(patch.config)
        if patch.rule.outdated is not None:
            raise ValueError(
                "pipe decides while it runs when pairs are found, so no step is known to be a cached one and "
                "nothing can be compiled as a whole"
            )
    for model in models:
        CompiledSteps.take_off(model)
        CompiledSteps(model, tuple(sorted({*shares, 1.0})), {"fullgraph": True, **options}).put_on()
        ForecastSteps.to_the_front(model)
    return pipe


def _check(config: MergeConfig) -> None:
    """Raise a ValueError for what has no cached steps that are one program."""
    if not config.keep_queries:
        raise ValueError(
            "keep_queries=False cannot be compiled as a whole: its merged tokens have as many rows as they "
            "need"
        )
    for part in PARTS[1:]:
        if getattr(config, part):
            raise ValueError(
                f"{part}=True cannot be compiled as a whole: only self-attention with keep_queries=True can"
            )


def compilable(config: MergeConfig) -> bool:
    """Return True if a configuration has cached steps that are one program."""
    try:
        _check(config)
    except ValueError:
        return False
    return True


class MergedAttention(torch.nn.Module):
    """Stands in for an attention module in the twin: its keys and values are merged by pairs that are given
    in tensors.

    Attributes:
        inner: the attention module's twin.
        slots: for each image; None while it merges nothing.
        order, begins, log_weights: see `PaddedGroups`.
    """

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.slots: int | None = None
        self.place = ""
        self.first = 0
        for name in PaddedGroups._fields:
            self.register_buffer(name, None, persistent=False)

    @torch.no_grad()
    def fill(self, ran: Ran, slots: int, weighted: bool) -> None:
        """Take over a plan; buffers of the right shape stay where they are in memory, as CUDA graphs want
        it."""
        groups = padded_groups(ran.plan, slots, weighted)
        self.slots = slots
        self.place = ran.place
        self.first = ran.layout.first
        for name, tensor in groups._asdict().items():
            held = getattr(self, name)
            if held is not None and (held.shape, held.device) == (tensor.shape, tensor.device):
                held.copy_(tensor)
            else:
                setattr(self, name, tensor.clone())

    @property
    def groups(self) -> PaddedGroups:
        return PaddedGroups(self.order, self.begins, self.log_weights)

    def forward(self, *args, **kwargs):
        if self.slots is None:
            return self.inner(*args, **kwargs)
        if self.place == "call":
            with SdpaMode(self._attend):
                return self.inner(*args, **kwargs)
        tokens = args[0] if args else kwargs["hidden_states"]
        kwargs["encoder_hidden_states"] = merge_padded(tokens, self.groups)
        if not _diffusers.calls_sdpa(self.inner):
            kwargs["attention_mask"] = self.log_weights[:, None].to(tokens.dtype)
            return self.inner(*args, **kwargs)
        with SdpaMode(self._weigh):
            return self.inner(*args, **kwargs)

    def _attend(self, function, query, key, value, attn_mask=None, **rest):
        rest.pop("is_causal", None)  # a causal call was left alone
        return attend_padded(query, key, value, self.groups, self.first, attn_mask, **rest)

    def _weigh(self, function, query, key, value, attn_mask=None, **rest):
        rest.pop("is_causal", None)
        return weighted_attention(query, key, value, self.log_weights, attn_mask, **rest)


class CompiledSteps(ReplacedForward):
    """The ``forward`` of a model whose cached steps are compiled."""

    def __init__(self, model: torch.nn.Module, shares: tuple[float, ...], options: dict) -> None:
        super().__init__(model)
        self.shares = shares
        self.options = options
        self._begin_afresh()

    def _begin_afresh(self) -> None:
        self._lock = threading.Lock()
        self._made_of: tuple = ()
        self._places: dict[str, MergedAttention] = {}
        self._program = None
        self._loaded: tuple | None = None
        self._warned = False
        self.steps = 0

    def __getstate__(self) -> dict:
        """Keep what a copy needs to make a program of its own."""
        return {name: getattr(self, name) for name in ("model", "before", "shares", "options")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._begin_afresh()

    @alone_in_eager
    def forward(self, *args, **kwargs):
        """Run a call of the model, by the program where that can."""
        patch = patch_of(self.model)
        running = patch.running if patch is not None else None
        if running is None or not self._can(patch, running, args, kwargs):
            return self.inner(*args, **kwargs)
        with self._lock:
            program = self._prepared(running)
            if program is None:
                return self.inner(*args, **kwargs)
            for ran in running.condition.ran:
                running.note(ran)
            self.steps += 1
            return program(*args, **kwargs)

    def _can(self, patch: Patch, running: Running, args: tuple, kwargs: dict) -> bool:
        """Return True if a call repeats the last one of its condition with the pairs that are cached."""
        if torch.is_grad_enabled() or not running.active or not running.condition.ran:
            return False
        if not compilable(running.config) or not running.cached:
            return False
        sample = family_of(self.model).sample
        given = args[0] if args else kwargs.get(sample)
        if given is not running.call.arguments.get(sample):
            return False  # this is another call than the patch has seen
        once = Counter(ran.name for ran in running.condition.ran)
        return max(once.values()) == 1

    def _prepared(self, running: Running):
        """The program with this condition's pairs; None where somebody's hooks are in the way."""
        modules = list(self.model.modules())
        made_of = tuple((id(module), id(getattr(module, "processor", None))) for module in modules)
        if made_of != self._made_of:
            foreign = [module for module in modules if module is not self.model and has_own_forward(module)]
            if foreign:
                self._warn(type(foreign[0]).__name__)
                return None
            self._build(made_of)
        loaded = running.condition.ran
        if self._loaded is not loaded and not _same_plans(self._loaded, loaded):
            self._load(running)
        self._loaded = loaded
        return self._program

    def _warn(self, name: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "catome compiles no cached steps: a hook of another package runs in "
                f"place of a {name}'s forward (offloading, or a cache of diffusers)",
                stacklevel=4,
            )

    def _build(self, made_of: tuple) -> None:
        twin = twin_of(self.model, Hook)
        self._places = {}
        for attention in family_of(self.model).attentions(self.model, 1 << 16):
            place = MergedAttention(twin.get_submodule(attention.name))
            parent, _, child = attention.name.rpartition(".")
            setattr(twin.get_submodule(parent), child, place)
            self._places[attention.name] = place
        self._made_of = made_of
        self._loaded = None
        self._program = torch.compile(twin, **self.options)

    def _load(self, running: Running) -> None:
        for ran in running.condition.ran:
            place = self._places[ran.name]
            if ran.plan is None or not (ran.plan.merges or place.slots):
                if place.slots is not None:
                    place.slots = None
                continue
            place.fill(ran, max(self._slots(ran), place.slots or 0), running.config.weighted)

    def _slots(self, ran: Ran) -> int:
        """The slots of the least bucket that suffices."""
        tokens = ran.plan.slot.shape[1]
        most = max(ran.plan.lengths)
        return next(
            slots
            for share in self.shares
            if (slots := min(tokens, 8 * math.ceil(share * tokens / 8))) >= most
        )


def _same_plans(one: tuple | None, other: tuple) -> bool:
    if one is None or len(one) != len(other):
        return False
    return all(a.name == b.name and a.plan is b.plan for a, b in zip(one, other, strict=True))
