"""The methods that are compared, each a name and a way to put it on a pipeline for a while.

catome itself and, as their own packages, `tomesd` and `DeepCache`; what no registry has is written plainly
from its paper and says so.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from catome.merge_keys import merge_keys
from catome.patch import applied_patch, patched, put_back
from catome.policy.forecast import Forecast
from catome.policy.schedule import Schedule, parse_schedule
from catome.runtime.config import PAPER, RECOMMENDED, TOME, Compare, MergeConfig
from catome.runtime.install import install, uninstall
from catome.runtime.state import Rule
from catome.study.run.denoiser import denoiser, topmost_blocks, topmost_downsample, transformer_blocks
from catome.tensors.matching import Matches, Measure
from catome.tensors.plan import MergePlan, make_plan


@dataclass(frozen=True)
class Method:
    """A way to generate.

    Attributes:
        label: names the method and everything it was given; results are kept under it.
        family: names the method alone, for colours and legends.
        applied: ``applied(pipe)`` is a context in which the pipeline generates this way.
        batch: images that must be generated together, where it changes what the method does; else None.
    """

    label: str
    family: str
    applied: Callable[[object], AbstractContextManager]
    batch: int | None = None

    def __str__(self) -> str:
        return self.label


@contextmanager
def _as_it_is(pipe) -> Iterator:
    yield pipe


def unmerged() -> Method:
    """The pipeline as it is."""
    return Method("unmerged", "unmerged", _as_it_is)


def schedule_name(schedule: str | Schedule | Iterable[int] | None) -> str:
    """The name of a schedule in labels."""
    if schedule is None or isinstance(schedule, str):
        return schedule or "every step"
    parsed = parse_schedule(schedule)
    return " ".join(str(step) for step in parsed.at(parsed.length))


def tome(
    ratio: float, schedule: str | Iterable[int] | None = None, only_where_faster: bool = False
) -> Method:
    """ToMe for Stable Diffusion by catome: a fixed share, found afresh at each step unless a schedule is
    given."""
    given = dict(ratio=ratio, schedule=schedule, only_where_faster=only_where_faster)
    aside = ", only where faster" if only_where_faster else ""
    label = f"ToMe(ratio={ratio:g}, schedule={schedule_name(schedule)}{aside})"
    return Method(label, "ToMe", lambda pipe: patched(pipe, TOME, **given))


def ca_tome(
    threshold: float,
    schedule: str | Iterable[int] | None,
    weighted: bool = False,
    stride: tuple[int, int] = (2, 2),
) -> Method:
    """CA-ToMe by catome, in windows of ``stride`` tokens, vertical and horizontal; the paper's are two by
    two. With ``weighted``, which the paper does not have, a merged token counts as often as it has
    members."""
    aside = f", stride={stride[0]}x{stride[1]}" if stride != (2, 2) else ""
    aside += ", weighted" if weighted else ""
    label = f"CA-ToMe(threshold={threshold:g}, schedule={schedule_name(schedule)}{aside})"
    given = dict(threshold=threshold, schedule=schedule, weighted=weighted, stride=stride)
    return Method(label, "CA-ToMe", lambda pipe: patched(pipe, PAPER, **given))


def merged_keys(
    threshold: float | None = None,
    ratio: float | None = None,
    stride: tuple[int, int] = (2, 2),
    schedule: str | Schedule | Iterable[int] | None = "EVEN_13",
    weighted: bool = True,
    measure: Measure = "distance",
    compare: Compare = "input",
) -> Method:
    """The library's own method: keys and values merged, every query kept, and each group counted by its size.

    Args:
        threshold, ratio, stride, schedule, measure, compare: as in `catome.MergeConfig`; one of the first
            two.
        weighted: whether groups count; without it, this is the ablation.
    """
    amount = f"threshold={threshold:g}" if threshold is not None else f"ratio={ratio:g}"
    rest = f"stride={stride[0]}x{stride[1]}, schedule={schedule_name(schedule)}"
    said = {
        ", unweighted": not weighted,
        f", measure={measure}": measure != "distance",
        f", compare={compare}": compare != "input",
    }
    label = f"merged keys({amount}, {rest}{''.join(words for words, differs in said.items() if differs)})"
    given = dict(threshold=threshold, ratio=ratio, stride=stride, schedule=schedule, weighted=weighted)
    given |= dict(measure=measure, compare=compare, only_where_faster=False)
    return Method(label, "merged keys", lambda pipe: patched(pipe, RECOMMENDED, **given))


def named_configuration(config: MergeConfig, schedule: str) -> Method:
    """`merged_keys` as in one of the library's configurations, whose ``schedule`` has this name.

    Raises:
        ValueError: if the configuration is not what the method would merge by.
    """
    method = merged_keys(
        config.threshold,
        config.ratio,
        config.stride,
        schedule,
        config.weighted,
        config.measure,
        config.compare,
    )
    if RECOMMENDED.changed(**_given(config, schedule)) != config:
        raise ValueError(
            f"config={config!r} has fields that merged_keys does not take, or another schedule than "
            f"{schedule!r}"
        )
    return method


def _given(config: MergeConfig, schedule: str) -> dict:
    taken = ("threshold", "ratio", "stride", "weighted", "measure", "compare")
    return {name: getattr(config, name) for name in taken} | {"schedule": schedule}


def tomesd(ratio: float) -> Method:
    """ToMe by its authors' package, with the top-left token as dst (``use_rand=False``)."""

    @contextmanager
    def applied(pipe) -> Iterator:
        import tomesd as package

        package.apply_patch(
            pipe, ratio=ratio, use_rand=False, max_downsample=topmost_downsample(denoiser(pipe))
        )
        try:
            yield pipe
        finally:
            package.remove_patch(pipe)

    return Method(f"tomesd(ratio={ratio:g})", "tomesd", applied)


def fullest_row(matches: Matches, config: MergeConfig) -> MergePlan:
    """A plan that merges as many tokens of every image of a batch as the threshold merges of the one where it
    merges most."""
    return _merging(matches, int((matches.similarity >= config.threshold).sum(1).max()))


def _merging(matches: Matches, count: int) -> MergePlan:
    """The plan that merges so many tokens of each image, the most similar ones."""
    tokens = matches.grid[0] * matches.grid[1]
    # the half is safe from rounding
    return make_plan(matches, ratio=min(count + 0.5, matches.best.shape[1]) / tokens)


def batch_maximum(threshold: float, schedule: str | Iterable[int] | None, batch: int) -> Method:
    """CA-ToMe by the rule of the authors' code: every image of a batch merges as many tokens as the one that
    merges most.

    Written for this comparison; the authors' package needs libraries of 2023. Its images depend on what else
    is in their batch, so ``batch``, the number of images generated together, is part of the label."""

    @contextmanager
    def applied(pipe) -> Iterator:
        model = denoiser(pipe)
        install(model, PAPER.changed(threshold=float(threshold), schedule=schedule), fullest_row, pipe)
        try:
            yield pipe
        finally:
            uninstall(model)

    label = f"batch maximum(threshold={threshold:g}, schedule={schedule_name(schedule)}, batch={batch})"
    return Method(label, "batch maximum", applied, batch)


class PlaceInCall:
    """The place of a patched pipeline: the step, and how many plans were made in this call of the model
    before."""

    def __init__(self) -> None:
        self._call = None
        self._made = 0

    def next(self, patch) -> tuple[int, int]:
        """``(step, place)`` of the plan that is made now."""
        if patch.running is not self._call:  # each call of the model has an object of its own
            self._call = patch.running
            self._made = 0
        place = self._made
        self._made += 1
        return self._call.generation.step, place


def fixed_shares(shares: np.ndarray, name: str) -> Method:
    """ToMe with a fixed share for each step and block, pairs found afresh at every step: a control for
    thresholds.

    Args:
        shares: ``[calls, blocks]`` of all tokens; what the windows do not allow is cut off.
        name: what the shares are, for the label, which also tells apart shares of one name.
    """
    most = 1 - 1 / math.prod(TOME.stride)
    table = np.clip(np.asarray(shares, float), 0, most)
    digest = hashlib.sha256(table.astype(np.float32).tobytes()).hexdigest()[:8]

    @contextmanager
    def applied(pipe) -> Iterator:
        model, place = denoiser(pipe), PlaceInCall()

        def choose(matches: Matches, config: MergeConfig) -> MergePlan:
            share = table[place.next(patch)]
            return _merging(matches, round(share * matches.grid[0] * matches.grid[1]))

        patch = install(model, TOME, choose, pipe)
        try:
            yield pipe
        finally:
            uninstall(model)

    return Method(f"fixed shares(by={name}, {digest})", "ToMe", applied)


@contextmanager
def hooked(pipe, before: Callable, after: Callable | None = None) -> Iterator:
    """A pipeline with hooks around the self-attentions of the topmost blocks of its denoising model.

    Args:
        pipe: the pipeline.
        before: ``before(depth, hidden, grid)`` returns ``(hidden, context)`` to run the attention with: what
            queries are made of, and what keys and values are made of, None for the same. ``depth`` in [0, 1)
            is where the block stands among all blocks, ``hidden`` is ``[B, N, C]``, and ``grid`` is
            ``(height, width)`` in tokens.
        after: ``after(output)`` returns what the attention gives instead.
    """
    model = denoiser(pipe)
    size, downsample_by, entered = {}, topmost_downsample(model), set()

    def note(module, args, kwargs) -> None:
        sample = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        size["grid"] = tuple(math.ceil(edge / downsample_by) for edge in sample.shape[-2:])

    def enter(depth, module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        if kwargs.get("encoder_hidden_states") is not None or hidden.shape[1] != math.prod(size["grid"]):
            return args, kwargs  # cross-attention, or a block farther down
        entered.add(module)
        hidden, context = before(depth, hidden, size["grid"])
        rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        return (hidden, *args[1:]), rest | {"encoder_hidden_states": context}

    def leave(module, args, output):
        if module not in entered:
            return output
        entered.remove(module)
        return after(output)

    blocks = list(transformer_blocks(model).values())
    with ExitStack() as stack:
        handles = [model.register_forward_pre_hook(note, with_kwargs=True)]
        for place, block in enumerate(blocks):
            enters = partial(enter, place / len(blocks))
            handles.append(block.attn1.register_forward_pre_hook(enters, with_kwargs=True))
            if after is not None:
                handles.append(block.attn1.register_forward_hook(leave))
        for handle in handles:
            stack.callback(handle.remove)
        yield pipe


def fewer_keys(reduce: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[object], AbstractContextManager]:
    """The ``applied`` of a `Method` that makes the topmost keys and values of fewer tokens, and keeps all
    queries.

    Args:
        reduce: makes tokens ``[B, M, C]`` of a grid of them, ``[B, H, W, C]``.
    """
    return lambda pipe: hooked(pipe, lambda depth, hidden, grid: (hidden, reduce(hidden.unflatten(1, grid))))


def todo(factor: int = 2, rows: int | None = None) -> Method:
    """ToDo (arXiv 2402.13573): keys and values of the topmost self-attentions downsampled to every
    ``factor``-th token each way.

    Written from the paper for this comparison: nearest-neighbour downsampling of the attention's input. With
    ``rows``, every ``rows``-th row of tokens is kept instead, which the paper does not do: ``rows=1`` halves
    the keys where factor 2 would leave a quarter of them."""
    of_rows = factor if rows is None else rows
    applied = fewer_keys(lambda grid: grid[:, ::of_rows, ::factor].flatten(1, 2))
    return Method(f"ToDo(factor={factor}{'' if rows is None else f', rows={rows}'})", "ToDo", applied)


def deep_cache(interval: int = 3) -> Method:
    """DeepCache by its authors' package (arXiv 2312.00858): the deep part of the U-Net runs every
    ``interval`` steps only."""

    @contextmanager
    def applied(pipe) -> Iterator:
        from DeepCache import DeepCacheSDHelper

        unet = denoiser(pipe)
        before = {module: module.__dict__.get("forward") for module in unet.modules()}
        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=interval, cache_branch_id=0)
        helper.enable()
        try:
            yield pipe
        finally:
            helper.disable()
            # it leaves bound methods behind on every module it wrapped
            for module, forward in before.items():
                if forward is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.forward = forward

    return Method(f"DeepCache(interval={interval})", "DeepCache", applied)


def kept_steps(share: float, steps: int) -> int:
    """So many of the steps are this share of them: at least one; a half is rounded up."""
    return max(1, round(share * steps + 1e-9))


def fewer_steps(steps: int) -> Method:
    """The pipeline as it is, with fewer denoising steps than it is asked for: the simplest way to be
    faster."""

    @contextmanager
    def applied(pipe) -> Iterator:
        scheduler = pipe.scheduler
        set_timesteps = scheduler.set_timesteps
        scheduler.set_timesteps = lambda asked, **rest: set_timesteps(steps, **rest)
        try:
            yield pipe
        finally:
            del scheduler.set_timesteps

    return Method(f"fewer steps(steps={steps})", "fewer steps", applied)


def keys_in_layer(layer: int, ratio: float = 0.5) -> Method:
    """Keys merged in one layer alone, a fixed share, with pairs found at every call: how much the model needs
    that layer.

    Args:
        layer: the place of its block among those around the topmost self-attentions, from 0 in the order in
            which they run.
        ratio: the share of its tokens that is merged.
    """

    @contextmanager
    def applied(pipe) -> Iterator:
        model = denoiser(pipe)
        block = list(topmost_blocks(model).values())[layer]
        grid, merging = [], ExitStack()

        def see_grid(module, args, given):
            latents = args[0] if args else given.get("sample", given.get("hidden_states"))
            grid[:] = [size // topmost_downsample(model) for size in latents.shape[-2:]]

        def begin(module, args):
            merging.enter_context(merge_keys(tuple(grid), threshold=None, ratio=ratio))

        hooks = [
            model.register_forward_pre_hook(see_grid, with_kwargs=True),
            block.register_forward_pre_hook(begin),
            block.register_forward_hook(lambda *_: merging.close(), always_call=True),
        ]
        try:
            yield pipe
        finally:
            for hook in hooks:
                hook.remove()

    return Method(f"keys in one layer(layer={layer}, ratio={ratio:g})", "keys in one layer", applied)


def noise(share: float) -> Method:
    """A control that saves nothing: what the model gives gets noise of a share of its standard deviation, at
    every call.

    The noise of a call is the same for every row of a batch but for its scale, so an image does not depend on
    its batch. The timestep decides it, so it is the same in every generation.

    Args:
        share: 0.01 is noise of one hundredth of the standard deviation of the row.
    """

    @contextmanager
    def applied(pipe) -> Iterator:
        def disturb(module, args, given, output):
            timestep = torch.as_tensor(given.get("timestep", args[1] if len(args) > 1 else 0)).flatten()[0]
            is_tuple = isinstance(output, tuple)
            sample = output[0] if is_tuple else output.sample
            drawn = torch.randn(sample.shape[1:], generator=torch.Generator().manual_seed(int(timestep)))
            scale = share * sample.float().std(dim=tuple(range(1, sample.ndim)), keepdim=True)
            sample = sample + (scale * drawn.to(sample.device)).to(sample.dtype)
            return (sample, *output[1:]) if is_tuple else type(output)(sample=sample)

        handle = denoiser(pipe).register_forward_hook(disturb, with_kwargs=True)
        try:
            yield pipe
        finally:
            handle.remove()

    return Method(f"noise(share={share:g})", "noise", applied)


def forecast(interval: int = 3, order: int = 1, first: int = 4, growth: float = 1.0) -> Method:
    """Steps left out, by the library: the model's output is extrapolated from what it last computed
    (`catome.Forecast`).

    Args:
        interval: steps from one that is computed to the next.
        order: of the polynomial; 0 repeats the last output.
        first: steps that are computed at the beginning in any case.
        growth: by what each interval is longer than the one before; images are decided early.
    """

    @contextmanager
    def applied(pipe) -> Iterator:
        patch, model = applied_patch(pipe), denoiser(pipe)
        before = patch.rule if patch is not None else None
        # over another method it goes on by that method's rule
        rule = before or Rule(RECOMMENDED.changed(merge_attn=False, forecast=Forecast()))
        config = rule.config.changed(forecast=Forecast(first, interval, growth, order))
        install(model, config, rule.choose, pipe, rule.outdated)
        try:
            yield pipe
        finally:
            put_back(model, before, pipe)

    grows = f", growth={growth:g}" if growth != 1 else ""
    return Method(f"forecast(interval={interval}, order={order}, first={first}{grows})", "forecast", applied)


def together(*methods: Method) -> Method:
    """Several methods at once, applied in this order."""

    @contextmanager
    def applied(pipe) -> Iterator:
        with ExitStack() as stack:
            for method in methods:
                stack.enter_context(method.applied(pipe))
            yield pipe

    batch = next((method.batch for method in methods if method.batch), None)
    return Method(" + ".join(m.label for m in methods), " + ".join(m.family for m in methods), applied, batch)
