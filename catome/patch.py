"""Apply cached adaptive token merging to a diffusers pipeline or model, and take it off again.

No class is swapped and nothing of diffusers is copied: hooks of torch do it (`catome.runtime.hooks`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from catome.models.registry import find_models
from catome.runtime.config import RECOMMENDED, MergeConfig, configured
from catome.runtime.hooks import Patch, refuse_other_merging
from catome.runtime.install import active_patch, install, uninstall
from catome.runtime.state import Rule


def apply_patch(pipe, config: MergeConfig = RECOMMENDED, **changes):
    """Make a diffusers pipeline merge similar tokens in self-attention, and reuse the pairs it found for
    several steps.

    ``apply_patch(pipe)`` is the recommended configuration, ``apply_patch(pipe, catome.PAPER)`` CA-ToMe as in
    the paper's headline, ``apply_patch(pipe, catome.TOME)`` ToMe. Applying again replaces what was applied
    before.

    Args:
        pipe: any diffusers pipeline whose U-Net or transformer is of a family that catome knows, or such a
            model (a ControlNet must be given itself).
        config: a `catome.MergeConfig`; its documentation explains every field.
        changes: fields of the configuration to change, such as ``threshold=0.9`` or ``schedule="CONFIG_1"``;
            a ``threshold`` takes the place of the configuration's ratio, and the other way round.

    Returns:
        ``pipe``.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is allowed, before anything is changed.
        RuntimeError: if another package merges tokens in the same model.
    """
    models = find_models(pipe)
    config = configured("apply_patch", config, changes)
    for model in models:
        refuse_other_merging(model)
    for model in models:
        install(model, config, pipe=None if model is pipe else pipe)
    return pipe


def applied_patch(pipe) -> Patch | None:
    """The patch that is on ``pipe`` (on its first model, where it has several), or None."""
    found = [active_patch(model) for model in find_models(pipe)]
    return next((patch for patch in found if patch is not None), None)


def is_patched(pipe) -> bool:
    """Tell whether a pipeline or model is patched.

    Raises:
        TypeError: if it has no model that could be.
    """
    return applied_patch(pipe) is not None


def remove_patch(pipe):
    """Take the patch off ``pipe``, if there is one; outputs are then bit-identical to the never-patched
    model's.

    A generation that another thread is in the middle of goes on as it began, and none after it is merged.

    Returns ``pipe``; raises a TypeError if it has no model that could be patched."""
    for model in find_models(pipe):
        uninstall(model)
    return pipe


def new_generation(pipe):
    """Forget what is kept of this thread's generation: the next call of the model begins one.

    Pipelines need it never. It is for loops of your own that no rule can guess, such as one that shows a
    different image to the model at each place of a timetable (`catome.runtime.steps` has the rules).

    Returns ``pipe``; raises a TypeError if it has no model that could be patched."""
    for model in find_models(pipe):
        patch = active_patch(model)
        if patch is not None:
            patch.reset()
    return pipe


@contextmanager
def patched(pipe, config: MergeConfig = RECOMMENDED, **changes) -> Iterator:
    """`apply_patch` with these arguments for the length of a ``with`` block; then what was there before is
    back.

    A generation that another thread is in the middle of, by another patch, keeps that."""
    config = configured("apply_patch", config, changes)
    before = [
        (model, patch.rule if (patch := active_patch(model)) is not None else None)
        for model in find_models(pipe)
    ]
    apply_patch(pipe, config)
    try:
        yield pipe
    finally:
        for model, rule in before:
            put_back(model, rule, None if model is pipe else pipe)


def put_back(model, rule: Rule | None, pipe=None) -> None:
    """Give a model the rule that it had."""
    if rule is None:
        uninstall(model)
    else:
        install(model, rule.config, rule.choose, pipe, rule.outdated)
