"""Checkpoint schedules derived from measured staleness, exactly optimal for a budget (beyond the paper's
Table II)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from catome.checks import check_collection, check_integer, shown, suggests_arguments


class Steps(tuple):
    """Steps that belong to a generation of ``length`` calls of the model, as a tuple.

    ``apply_patch(schedule=...)`` fits them to the generation it meets."""

    length: int

    def __new__(cls, steps: Iterable[int], length: int) -> Steps:
        made = super().__new__(cls, steps)
        made.length = length
        return made

    def __getnewargs__(self) -> tuple[tuple[int, ...], int]:
        return tuple(self), self.length


@suggests_arguments
def derive(staleness: torch.Tensor | Sequence[Sequence[float]], checkpoints: int) -> Steps:
    """The schedule of ``checkpoints`` steps that pays the least total staleness, found by dynamic
    programming.

    A step j that reuses the pairs of the last checkpoint i <= j pays ``staleness[i, j]``; a schedule pays the
    sum over all steps. Of several optimal schedules, the one whose last checkpoints are earliest is returned.

    >>> derive([[0, 1, 9], [1, 0, 9], [9, 9, 0]], checkpoints=2)
    (0, 2)

    Args:
        staleness: ``[T, T]``, the distance between the pairs of steps i and j (such as the mean Jaccard
            distance over images and blocks that `catome.study.drift_study` measures); only i < j is read.
        checkpoints: the budget, from 1 (step 0 alone) to T (every step).

    Returns:
        The checkpoint steps, ascending, beginning with 0, of a generation of T calls; ready for
        ``apply_patch(schedule=...)``, which fits them to generations of another length.

    Raises:
        ValueError: if ``staleness`` is not a square matrix of finite numbers that are not negative, or the
            budget is out of range.
        TypeError: if ``checkpoints`` is no integer.
    """
    cost = _costs(staleness)
    steps = len(cost)
    if check_integer("checkpoints", checkpoints, 1) > steps:
        raise ValueError(
            f"checkpoints={checkpoints!r} must be at most {steps}, the steps of this staleness matrix"
        )
    # paid[i, j]: steps i ... j - 1 all reuse the pairs of checkpoint i
    paid = torch.zeros(steps, steps + 1, dtype=torch.float64)
    paid[:, 1:] = cost.cumsum(1)
    before_next = paid[0].clone()  # least cost of the steps before j, with the checkpoints placed so far
    before_next[0] = float("inf")
    choices = []
    for _ in range(checkpoints - 1):
        total = before_next[:steps, None] + paid  # [last checkpoint i, end j]
        # a checkpoint serves at least its own step
        total[torch.ones_like(total, dtype=torch.bool).tril()] = float("inf")
        before_next, choice = total.min(0)
        choices.append(choice)
    end = steps
    schedule = []
    for choice in reversed(choices):
        end = int(choice[end])
        schedule.append(end)
    return Steps((0, *reversed(schedule)), steps)


@suggests_arguments
def total_staleness(staleness: torch.Tensor | Sequence[Sequence[float]], schedule: Sequence[int]) -> float:
    """The total that a schedule pays: the sum over all steps j of ``staleness[i, j]``, i the last checkpoint
    at or before j.

    Raises:
        ValueError: if the schedule lacks step 0 or has a negative one, or for a staleness that `derive`
            refuses.
        TypeError: if the schedule is no collection of integers.
    """
    cost = _costs(staleness)
    steps = check_collection("schedule", schedule, "a collection of steps")
    checkpoints = {check_integer(f"schedule[{i}]", step, 0) for i, step in enumerate(steps)}
    if 0 not in checkpoints:
        raise ValueError(f"schedule={shown(tuple(steps))} must begin with step 0")
    last = 0
    total = 0.0
    for step in range(len(cost)):
        last = step if step in checkpoints else last
        total += float(cost[last, step]) if step > last else 0.0
    return total


def _costs(staleness) -> torch.Tensor:
    """A staleness matrix, checked: what lies above its diagonal, ``[T, T]`` float64, and 0 elsewhere."""
    try:
        # a tensor or array keeps its dtype, for turning complex numbers into float64 is only a warning
        cost = torch.as_tensor(staleness, dtype=None if hasattr(staleness, "dtype") else torch.float64)
        if cost.is_complex() or cost.layout != torch.strided:
            raise TypeError
        cost = cost.detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"staleness={shown(staleness)} must be a square matrix of numbers") from None
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1] or not len(cost):
        raise ValueError(f"staleness of shape {list(cost.shape)} must be a square matrix [T, T]")
    cost = cost.triu(1)
    wrong = (~cost.isfinite() | (cost < 0)).nonzero().tolist()
    if wrong:
        i, j = wrong[0]
        raise ValueError(
            f"staleness[{i}, {j}]={cost[i, j].item()!r} must be a finite number that is not negative"
        )
    return cost
