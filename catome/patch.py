"""Apply cached adaptive token merging to a diffusers model, and take it off again.

No class is swapped and nothing of diffusers is copied: hooks do it (`catome.hooks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from catome import checks
from catome.hooks import MergeConfig, Patch, decide, take_off
from catome.matching import Matches
from catome.plan import MergePlan
from catome.schedule import Auto, parse_schedule
from catome.unet import find_unet, topmost_downsample

_DEFAULT = float("0.7")  # an object of its own: `is` tells it from a 0.7 that somebody wrote


@checks.suggests_arguments
def apply_patch(
    pipe,
    *,
    threshold: float | None = _DEFAULT,
    ratio: float | None = None,
    schedule: str | Auto | Iterable[int] | None = "CONFIG_3",
    stride: tuple[int, int] = (2, 2),
    dst: checks.Dst = "top_left",
    seed: int = 0,
    max_downsample: int = 1,
    merge_attn: bool = True,
    merge_crossattn: bool = False,
    merge_mlp: bool = False,
    only_where_faster: bool = False,
):
    """Make a diffusers pipeline merge similar tokens, and reuse the pairs it found for several steps.

    ``apply_patch(pipe)`` is CA-ToMe as in the paper's headline (threshold 0.7, CONFIG_3);
    ``apply_patch(pipe, ratio=0.5, schedule=None)`` is ToMe. Applying again replaces what was applied before.

    Args:
        pipe: any diffusers pipeline whose ``unet`` is a ``UNet2DConditionModel`` with transformer blocks, or such a U-Net.
        threshold: merge every src token whose best cosine similarity is at least this, in [-1, 1]; 1.0 merges exact
            duplicates only. 0.7 unless ``ratio`` is given.
        ratio: merge this share of all tokens instead, in [0, 1 - 1/(sy*sx)]; exactly one of the two.
        schedule: the steps at which pairs are found afresh: a name of the paper's Table II, a collection of steps counted
            from 0, or None for every step. A step is one U-Net call. "auto" or a `catome.Auto` decides while it runs.
        stride: ``(vertical, horizontal)`` size in tokens of the window that has one dst token.
        dst: "top_left" (the paper) or "random" token of each window, drawn from a generator of its own.
        seed: of that generator; each generation begins with it.
        max_downsample: merge in blocks downsampled at most this much against the topmost blocks that have attention (1: in
            those only, which in SDXL are themselves downsampled by 2).
        merge_attn, merge_crossattn, merge_mlp: which parts of a block run on the merged tokens.
        only_where_faster: leave blocks and images as they are where so few tokens, or so small a share of them, would be
            merged that it costs more time than it saves, by the model of `catome.worth`; not with ``schedule="auto"``.

    Returns:
        ``pipe``.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is allowed, before anything is changed.
    """
    topmost_downsample(find_unet(pipe))
    if threshold is _DEFAULT and ratio is not None:
        threshold = None
    stride = checks.check_stride(stride)
    threshold, ratio = checks.check_amount(threshold, ratio, stride)
    seed, max_downsample = checks.check_seed(seed), checks.check_integer("max_downsample", max_downsample, 1)
    parts = dict(merge_attn=merge_attn, merge_crossattn=merge_crossattn, merge_mlp=merge_mlp)
    flags = parts | dict(only_where_faster=only_where_faster)
    for name, flag in flags.items():
        checks.check_flag(name, flag)
    if not any(parts.values()):
        raise ValueError(f"{', '.join(f'{name}=False' for name in parts)}: at least one of them must be True")
    checkpoints = parse_schedule(schedule)
    install(pipe, MergeConfig(threshold, ratio, checkpoints, stride, checks.check_dst(dst), seed, max_downsample, **flags))
    return pipe


def install(pipe, config: MergeConfig, choose: Callable[[Matches, MergeConfig], MergePlan] = decide) -> None:
    """Put a patch on the U-Net of ``pipe``, in the place of the one that may be there."""
    unet, patch = find_unet(pipe), Patch(config, choose)
    remove_patch(unet)
    patch.settle(unet)
    unet.register_forward_pre_hook(patch.before, with_kwargs=True)
    unet.register_forward_hook(patch.after, always_call=True)
    # what a pipeline calls on each of its models when a generation has ended
    unet._reset_stateful_cache = patch.reset


def applied_patch(pipe) -> Patch | None:
    """The patch that is on ``pipe``, or None."""
    owners = [getattr(hook, "__self__", None) for hook in find_unet(pipe)._forward_pre_hooks.values()]
    return next((owner for owner in owners if isinstance(owner, Patch)), None)


def remove_patch(pipe):
    """Take the patch off ``pipe``, if there is one; outputs are then bit-identical to the never-patched model's.

    Returns ``pipe``; raises a TypeError if it has no ``UNet2DConditionModel``."""
    unet = find_unet(pipe)
    patch = applied_patch(unet)
    if patch is None:
        return pipe
    for hooks in (unet._forward_pre_hooks, unet._forward_hooks):
        for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is patch]:
            for table in (hooks, unet._forward_pre_hooks_with_kwargs, unet._forward_hooks_always_called):
                table.pop(key, None)
    unet.__dict__.pop("_reset_stateful_cache", None)
    for module in unet.modules():
        take_off(module)
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
            install(pipe, before.config, before.choose)
