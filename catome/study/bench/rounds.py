"""Contenders that take turns: each has one in every round, so that drift of the machine hits all alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch

LEAST_SAMPLE = 0.01  # seconds: operations are repeated until a sample is as long


@dataclass(frozen=True)
class Call:
    """One thing that is timed.

    Attributes:
        run: does it.
        inside: how many times at once.
        name: tells the calls of a contender apart.
        weight: of its seconds in the contender's.
    """

    run: Callable[[], object]
    inside: int = 1
    name: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class Contender:
    """A contender, which takes a turn in each round.

    Attributes:
        method: the name in the rows.
        calls: timed one after the other; the contender's time is their weighted sum.
        applied: context of a turn, entered and left outside the timing.
        least_s: repeat each call until a sample takes as many seconds; 0 for calls that must not be repeated.
        reduces: leave it out if it gives exactly what the first contender gives, for then it reduced no
            tokens.
        steps_aside: say so if it gives exactly that.
        note: kept with its rows.
    """

    method: str
    calls: tuple[Call, ...]
    applied: Callable[[], AbstractContextManager] = nullcontext
    least_s: float = 0.0
    reduces: bool = False
    steps_aside: bool = False
    note: str = ""


Clock = Callable[[Callable[[], object], int], float]
"""``clock(run, times)`` runs something several times and returns the seconds of one run."""


def cpu_clock(run: Callable[[], object], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - started) / times


def cuda_clock(run: Callable[[], object], times: int) -> float:
    """Seconds between two events in the current device's queue, which is empty before the first and after the
    second."""
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(times):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / times


def take_turns(
    contenders: Sequence[Contender], rounds: int, clock: Clock, deadline: float = math.inf
) -> tuple[dict[str, list[tuple[float, ...]]], dict[str, str]]:
    """Time the contenders: after a warm-up each has one turn in every round, and each round begins with
    another one.

    Args:
        contenders: methods must differ; who fails is left out from then on.
        rounds: how many there are at most.
        clock: what to time with.
        deadline: by `time.monotonic`; after it no other round begins but the first.

    Returns:
        ``(samples, notes)``: by method, for each round it took part in, the seconds of each of its calls; and
        by method what is to be said about it.
    """
    samples, notes, ready, first = {c.method: [] for c in contenders}, {}, [], None
    for contender in contenders:
        (output, times), note = or_why_not(partial(_warm_up, contender, clock), (None, ()))
        said = contender.note
        if contender is contenders[0]:
            first = output
        elif (
            not note
            and isinstance(first, torch.Tensor)
            and isinstance(output, torch.Tensor)
            and torch.equal(first, output)
        ):
            note = "reduces no tokens here" if contender.reduces else ""
            said = "steps aside here" if contender.steps_aside else said
        if note or said:
            notes[contender.method] = note or said
        if not note:
            ready.append((contender, times))
    for turn in range(rounds):
        if turn and time.monotonic() > deadline:
            break
        begin = turn % max(len(ready), 1)
        for contender, times in ready[begin:] + ready[:begin]:
            seconds, note = or_why_not(partial(_turn, contender, times, clock), None)
            if note:
                notes[contender.method] = note
                ready = [other for other in ready if other[0] is not contender]
            else:
                samples[contender.method].append(seconds)
    return samples, notes


def _warm_up(contender: Contender, clock: Clock) -> tuple[object, tuple[int, ...]]:
    """Warm a contender up, and return its output and how often to repeat each of its calls."""
    with contender.applied():
        output = [call.run() for call in contender.calls][-1]
        if not contender.least_s:
            return output, (1,) * len(contender.calls)
        once = [max(clock(call.run, 1), 1e-9) for call in contender.calls]
        return output, tuple(max(1, math.ceil(contender.least_s / seconds)) for seconds in once)


def _turn(contender: Contender, times: Sequence[int], clock: Clock) -> tuple[float, ...]:
    with contender.applied():
        return tuple(clock(call.run, n) / call.inside for call, n in zip(contender.calls, times, strict=True))


def or_why_not(work: Callable, otherwise) -> tuple:
    """``(what work returns, "")``, or ``(otherwise, why)`` where the device or a method's package cannot do
    it."""
    try:
        return work(), ""
    except (RuntimeError, MemoryError) as error:
        exhausted = isinstance(
            error, (torch.OutOfMemoryError, MemoryError)
        ) or "can't allocate memory" in str(error)
        why = "out of memory" if exhausted else f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    if torch.cuda.is_available():  # only now: the error held what was on the device
        torch.cuda.empty_cache()
    return otherwise, why
