"""Where a call of the model is: in which generation, at which step, and for which of its conditions.

A *generation* is one walk along a timetable of timesteps. A *step* is a place on that timetable, however many calls of the
model it takes. The calls at one place are its *conditions*: the two halves of guidance, the views of a panorama, several
images in a row. Each condition has pairs of its own, which is all that keeps one from being merged by another's.

What is known of a call is little: its timestep, its latents, its prompt. The rules, from the surest to the least:

1. `cache_context` of diffusers, where a pipeline gives it, names the condition and may number the step.
2. A timestep that is a view of a longer tensor, whose numbers fall or rise throughout, lies at a place of that tensor, the
   timetable. Another timetable, or an earlier place, begins a generation. If it is the one of the pipeline's own scheduler, no
   value is read from the device.
3. Other timesteps are compared by value. They fall in most models and rise in some; a turn begins a generation.

Where a call does not continue the last one without a doubt (by rule 3, on a short timetable that is not the scheduler's, or
after a jump on a timetable) the latents decide:
those of one generation resemble each other from step to step, and those of different images do not. Rows of latents that do
not continue the last ones get new pairs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

_MOST_CONDITIONS = 128
"""Calls at one place whose pairs are kept; those beyond find theirs afresh."""

_MOST_GENERATIONS = 4
"""Timetables on which generations may run by turns in one thread."""

_CONTINUES = 0.8
"""The cosine similarity of latents from which on they continue those of the step before. Unrelated ones are near 0 as long as
there is noise, and those of one generation above 0.9 unless its steps are very large or add much new noise. Where they are, the
check costs a search for pairs and no image."""

_LONG = 9
"""Numbers that fall or rise throughout are a timetable if there are so many of them: as many random ones do so once in 181,440."""


@dataclass(frozen=True)
class CallFacts:
    """What a call of the model tells about itself.

    Attributes:
        timestep: a number or a tensor, as the model got it.
        sample: the noisy latents, ``[B, ...]`` or a list of ``B`` tensors, or None.
        prompt: the prompt's embedding, or None.
        context: name of the condition that `cache_context` gave, or None.
        step_index: the step that `cache_context` gave, or None.
        length: number of steps that `cache_context` or the pipeline's scheduler gave, or None.
        planned: the timesteps of the pipeline's scheduler, or None.
    """

    timestep: Any
    sample: Any = None
    prompt: Any = None
    context: str | None = None
    step_index: int | None = None
    length: int | None = None
    planned: torch.Tensor | None = None


@dataclass
class Condition:
    """One of the calls that each place on the timetable takes, and the pairs that serve it.

    Attributes:
        name: given by `cache_context`, or None.
        shape: shape of its latents.
        prompt: its prompt's embedding, held so that its place in memory stays its own.
        sample: its latents at the last step.
        place: the last place at which it was called.
        plans: its merge plans, by attention; see `catome.runtime.state`.
        changed: ``[B]`` bool on the CPU: the rows whose latents do not continue those of the last step; None if all do.
    """

    name: str | None
    shape: tuple
    prompt: torch.Tensor | None = None
    sample: torch.Tensor | list | None = None
    place: float | None = None
    plans: dict = field(default_factory=dict)
    changed: torch.Tensor | None = None


class Generation:
    """One walk along a timetable.

    Attributes:
        step: the current step, from 0.
        length: how many steps there are; None where nothing tells.
        conditions: in the order in which they were first called.
        payload: what the caller keeps with a generation: the rule it merges by, its random generator, its report.
    """

    def __init__(self, payload: Any = None, direction: int = 1) -> None:
        """``direction``: 1 where places rise, -1 where they fall, 0 where that is yet to be seen."""
        self.step = -1
        self.length: int | None = None
        self.first = 0
        self.place: float | None = None
        self.direction = direction
        self.conditions: list[Condition] = []
        self.payload = payload

    def turns_at(self, place: float) -> bool:
        """Whether a place lies in the direction from which the generation comes."""
        return (place - self.place) * self.direction < 0

    def go_to(self, place: float) -> None:
        """Move on to a place."""
        if self.place is not None and self.direction == 0:
            self.direction = 1 if place > self.place else -1
        self.place = place


class Timeline:
    """The generations that run in one thread."""

    def __init__(self, begin: Callable[[], Any] = lambda: None) -> None:
        """``begin()`` makes the payload of each new generation."""
        self.begin = begin
        self._generations: OrderedDict[Any, Generation] = OrderedDict()
        self._held: dict[Any, Any] = {}  # what keeps a timetable's address its own

    @property
    def generations(self) -> list[Generation]:
        """Those that are under way, the one called last at the end."""
        return list(self._generations.values())

    def clear(self) -> None:
        """Forget everything: the next call begins a generation."""
        self._generations.clear()
        self._held.clear()

    def locate(self, facts: CallFacts) -> tuple[Generation, Condition]:
        """The generation and the condition of a call, which counts as made now."""
        key, place, length, held = self._clock(facts)
        generation = self._generations.get(key)
        if generation is None or generation.turns_at(place):
            generation = self._new(key, place, length, held)
        condition = _condition(generation, facts, place)
        if condition is not None:
            sure = self._is_sure(key, facts) and place == condition.place + 1
            continues = None if sure else _continues(condition.sample, facts.sample)
            if continues is None or continues.all():
                condition.changed = None
            elif continues.any():
                condition.changed = ~continues
            elif generation.place != place:
                # Another image altogether: a generation that was given up, or a loop over images.
                generation = self._new(key, place, length, held)
                condition = None
            else:
                generation.conditions.remove(condition)
                condition = None
        if generation.place != place:
            generation.step = _step(generation, key, place)
            generation.go_to(place)
        if condition is None:
            condition = _new_condition(generation, facts)
        condition.place = place
        condition.sample = _copy(facts.sample)
        self._generations.move_to_end(key)
        return generation, condition

    def _clock(self, facts: CallFacts) -> tuple[Any, float, int | None, Any]:
        """Which clock a call goes by, its place there, the length of a generation that begins here, and what to hold on to."""
        if facts.step_index is not None:
            return "context", facts.step_index, facts.length, None
        timetable = timetable_of(facts.timestep)
        known = timetable is not None and timetable.data_ptr() in self._generations
        if timetable is None or not (known or _is_planned(timetable, facts) or _one_way(timetable, facts.timestep)):
            return "values", _value(facts.timestep), facts.length, None
        place = facts.timestep.storage_offset()
        length = timetable.nbytes() // facts.timestep.element_size() - place
        return timetable.data_ptr(), place, facts.length or length, timetable

    def _is_sure(self, key, facts: CallFacts) -> bool:
        """Whether the next place is the next step of the same generation, by the clock alone."""
        if key in ("values", "context"):
            return key == "context"
        timetable = self._held[key]
        return timetable.nbytes() >= _LONG * facts.timestep.element_size() or _is_planned(timetable, facts)

    def _new(self, key, place, length: int | None, held) -> Generation:
        # Places on a timetable and numbers of steps rise; timesteps by value go where the first two of them go.
        generation = Generation(self.begin(), 0 if key == "values" else 1)
        generation.first = place
        generation.length = length
        self._generations[key] = generation
        self._held[key] = held
        while len(self._generations) > _MOST_GENERATIONS:
            old, _ = self._generations.popitem(last=False)
            self._held.pop(old, None)
        return generation


def timetable_of(timestep) -> torch.UntypedStorage | None:
    """The memory of the longer tensor that ``timestep`` is one number of, or None."""
    if not isinstance(timestep, torch.Tensor) or any(timestep.stride()):
        return None
    storage = timestep.untyped_storage()
    return storage if storage.nbytes() > timestep.element_size() else None


def _is_planned(timetable: torch.UntypedStorage, facts: CallFacts) -> bool:
    """Whether a timetable is that of the pipeline's scheduler, and not one that happens to look like it."""
    if not isinstance(facts.planned, torch.Tensor):
        return False
    return facts.planned.untyped_storage().data_ptr() == timetable.data_ptr()


def _one_way(timetable: torch.UntypedStorage, timestep: torch.Tensor) -> bool:
    """Whether the numbers of a timetable fall or rise throughout; those that a training loop draws do not."""
    numbers = torch.empty(0, dtype=timestep.dtype, device=timestep.device).set_(timetable)
    steps = numbers.diff()
    return bool((steps <= 0).all() | (steps >= 0).all())


def _value(timestep) -> float:
    """The highest of the timesteps; image-to-video models give clean frames lower ones."""
    return float(timestep.max()) if isinstance(timestep, torch.Tensor) else float(timestep)


def _step(generation: Generation, key, place) -> int:
    """The step at a new place."""
    if key == "context":
        return place
    if key == "values":
        return generation.step + 1
    return place - generation.first


def _condition(generation: Generation, facts: CallFacts, place) -> Condition | None:
    """The condition that a call continues, or None for a new one."""
    shape = _shape(facts.sample)
    named = [c for c in generation.conditions if c.name == facts.context and c.shape == shape]
    waiting = [condition for condition in named if condition.place != place]
    if not waiting:
        return None
    same = [condition for condition in waiting if _same_memory(condition.prompt, facts.prompt)]
    if same:
        return same[0]
    if len(named) == 1 or not isinstance(facts.prompt, torch.Tensor):
        return waiting[0]
    # Several conditions, whose prompts are made anew for each call: only a look at them tells which one this is.
    equal = [condition for condition in waiting if _equal(condition.prompt, facts.prompt)]
    if equal:
        return equal[0]
    # A new prompt in the place of an old one: the first that waits makes room.
    generation.conditions.remove(waiting[0])
    return None


def _new_condition(generation: Generation, facts: CallFacts) -> Condition:
    prompt = facts.prompt.detach() if isinstance(facts.prompt, torch.Tensor) else None
    condition = Condition(facts.context, _shape(facts.sample), prompt)
    if len(generation.conditions) < _MOST_CONDITIONS:
        generation.conditions.append(condition)
    return condition


def _shape(sample) -> tuple:
    if isinstance(sample, (list, tuple)):
        return tuple(_shape(part) for part in sample)
    return tuple(sample.shape) if isinstance(sample, torch.Tensor) else ()


def _same_memory(a, b) -> bool:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return False
    return (a.data_ptr(), a.shape, a.dtype) == (b.data_ptr(), b.shape, b.dtype) and a.device == b.device


def _equal(a, b) -> bool:
    if not isinstance(a, torch.Tensor) or a.shape != b.shape or a.device != b.device:
        return False
    return bool(torch.equal(a, b))


def _copy(sample):
    if isinstance(sample, (list, tuple)):
        return [_copy(part) for part in sample]
    return sample.detach().clone() if isinstance(sample, torch.Tensor) else None


@torch.no_grad()
def _continues(before, now) -> torch.Tensor:
    """Which rows of the latents continue those of the step before: ``[B]`` bool on the CPU.

    A row that is not finite tells nothing, and counts as continued."""
    if isinstance(now, (list, tuple)):
        return torch.cat([_continues(a[None], b[None]) for a, b in zip(before, now, strict=True)])
    if not isinstance(now, torch.Tensor) or not isinstance(before, torch.Tensor):
        return torch.ones(1, dtype=torch.bool)
    before = before.to(now.device).flatten(1).float()
    now = now.flatten(1).float()
    alike = torch.nn.functional.cosine_similarity(before, now, dim=1)
    return (~(alike < _CONTINUES) | (before == now).all(1)).cpu()
