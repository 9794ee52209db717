"""The record of a model's run: what each attention merged, when pairs were found, and why something was not
merged."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from catome.tensors.plan import MergePlan


@dataclass
class Entry:
    """One attention in one generation.

    Attributes:
        calls: how often it was called.
        tokens, merged: image tokens it had, and how many of them were merged away, summed over calls and
            images.
        scores, scores_left: scores of queries and keys without merging and with it, for one head, summed
            likewise.
        found: the steps at which pairs were looked for, ascending.
        reasons: why it was left alone, and in how many calls.
    """

    calls: int = 0
    tokens: int = 0
    merged: int = 0
    scores: int = 0
    scores_left: int = 0
    found: list[int] = field(default_factory=list)
    reasons: Counter = field(default_factory=Counter)


class Report:
    """All attentions of one generation; of its ``calls`` of the model, ``forecasts`` were left out."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.length: int | None = None
        self.steps = 0
        self.calls = 0
        self.forecasts = 0

    def entry(self, name: str) -> Entry:
        """The entry of an attention."""
        return self.entries.setdefault(name, Entry())

    def found(self, name: str, step: int) -> None:
        """Write down that pairs were looked for."""
        found = self.entry(name).found
        if not found or found[-1] != step:
            found.append(step)

    def merged(
        self, name: str, plan: MergePlan, around_queries: int, around_keys: int, queries_merged: bool
    ) -> None:
        """Write down that an attention ran by a plan.

        Args:
            name: of the attention.
            plan: by which it ran.
            around_queries, around_keys: tokens of each image that are no image tokens, such as text.
            queries_merged: whether the queries were merged, too.
        """
        entry = self.entry(name)
        tokens = plan.slot.shape[1]
        entry.calls += 1
        for kept in plan.lengths:
            queries = around_queries + (kept if queries_merged else tokens)
            entry.tokens += tokens
            entry.merged += tokens - kept
            entry.scores += (around_queries + tokens) * (around_keys + tokens)
            entry.scores_left += queries * (around_keys + kept)

    def left_alone(
        self, name: str, reason: str, images: int = 0, queries: int = 0, keys: int = 0, tokens: int = 0
    ) -> None:
        """Write down that an attention ran as it is; its size, where that is known."""
        entry = self.entry(name)
        entry.calls += 1
        entry.reasons[reason] += 1
        entry.tokens += images * tokens
        entry.scores += images * queries * keys
        entry.scores_left += images * queries * keys
