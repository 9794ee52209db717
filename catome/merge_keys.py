"""Merged keys for any torch code that calls `F.scaled_dot_product_attention`: a context manager, no
declaration, no cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from catome import checks
from catome.models._torch import SdpaMode, in_eager
from catome.runtime.config import RECOMMENDED, MergeConfig, configured
from catome.tensors.attention import attend, joined
from catome.tensors.matching import best_matches
from catome.tensors.plan import make_plan


@dataclass
class MergedKeys:
    """The counts that `merge_keys` keeps.

    Attributes:
        calls: how many calls of the attention there were.
        merged_calls: in how many of them keys were merged.
        keys: image tokens among the keys, of all calls and images.
        keys_left: how many were left of them.
    """

    calls: int = 0
    merged_calls: int = 0
    keys: int = 0
    keys_left: int = 0


@contextmanager
def merge_keys(
    grid: tuple[int, int], first: int = 0, config: MergeConfig = RECOMMENDED, **changes
) -> Iterator[MergedKeys]:
    """Merge the keys and values of image tokens in every self-attention that runs within a ``with`` block, in
    this thread.

    Pairs are found in the keys and values of each call; nothing is kept from one call to the next. A call
    counts as a self-attention over the image where it has as many queries as keys, or as image tokens, and
    its keys include the grid. Others are left as they are, and so are calls that are causal or have a mask.

    >>> with merge_keys(grid=(14, 14), first=1, threshold=0.9) as seen:
    ...     logits = model(pixels)  # of a vision transformer with a class token
    >>> seen.keys_left < seen.keys
    True

    Args:
        grid: ``(height, width)`` of the image in tokens.
        first: where in the sequence the image tokens begin.
        config, changes: as in `catome.apply_patch`; ``threshold`` or ``ratio``, ``measure``, ``stride``,
            ``dst``, ``seed``, ``keep_queries`` and ``weighted`` count.

    Returns:
        (yields) a `MergedKeys`, which counts.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is allowed.
    """
    config = configured("merge_keys", config, changes)
    (height, width), _ = checks.check_windows(grid, config.stride)
    first = checks.check_integer("first", first, 0)
    tokens = height * width
    generator = torch.Generator("cpu").manual_seed(config.seed)
    seen = MergedKeys()

    @in_eager
    def merging(function, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **rest):
        seen.calls += 1
        count = key.shape[-2]
        fits = query.ndim == key.ndim == 4 and len(query) == len(key) == len(value)
        fits = fits and first + tokens <= count and query.shape[2] in (count, tokens)
        if not fits or is_causal or attn_mask is not None:
            return function(
                query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, **rest
            )
        keys, values = (x[:, :, first : first + tokens].transpose(1, 2).flatten(2) for x in (key, value))
        duplicates = config.threshold == 1.0
        matches = best_matches(
            joined(keys, values),
            (height, width),
            config.stride,
            config.dst,
            generator,
            duplicates,
            measure=config.measure,
        )
        plan = make_plan(matches, config.threshold, config.ratio)
        seen.keys += plan.slot.numel()
        seen.keys_left += sum(plan.lengths)
        if not plan.merges:
            return function(query, key, value, dropout_p=dropout_p, **rest)
        seen.merged_calls += 1
        own = dict(weighted=config.weighted, merge_queries=not config.keep_queries)
        return attend(query, key, value, plan, first, **own, dropout_p=dropout_p, **rest)

    with SdpaMode(merging):
        yield seen
