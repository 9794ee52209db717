"""The place of a call of the model: in which generation, at which step, and for which of its conditions.

A *generation* is one walk along a timetable of timesteps. A *step* is a place on that timetable, however many
calls of the model it takes. The calls at one place are its *conditions*: the two halves of guidance, the
views of a panorama, several images in a row. Each condition has pairs of its own, which is all that keeps
one from being merged by another's.

What is known of a call is little: its timestep, its latents, its prompt. The rules, from the surest to the
least:

1. `cache_context` of diffusers, where a pipeline gives it, names the condition and may number the step.
2. A timestep that is a view of a longer tensor, whose numbers fall or rise throughout, lies at a place of
   that tensor, the timetable. Another timetable, or an earlier place, begins a generation. If it is the one
   of the pipeline's own scheduler, no value is read from the device.
3. Other timesteps are compared by value. They fall in most models and rise in some; a turn begins a
   generation.

Where a call does not continue the last one without a doubt (by rule 3, on a timetable that is not the
scheduler's, after a jump, or where several conditions have the same prompt) the latents decide: those of one
generation resemble each other from step to step, and those of different images do not. The next place of a
timetable makes it likely that they do, so that less will do. Rows of latents that do not continue the last
ones get new pairs.
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
"""The cosine similarity of latents from which on they continue those of the step before. Unrelated ones are
near 0 as long as there is noise, and those of one generation above 0.9 unless its steps are very large or add
much new noise. Where they are, the check costs a search for pairs and no image."""

_LIKELY = 0.25
"""The same at the next place of a long timetable. The steps of samplers that add noise, or are few, come down
to about 0.3."""

_LONG = 9
"""Numbers that fall or rise throughout are a long timetable from here on: as many random ones do so once in
181,440."""


@dataclass(frozen=True)
class CallFacts:
    """The facts that a call of the model tells about itself.

    Attributes:
        timestep: a number or a tensor, as the model got it.
        sample: the noisy latents, ``[B, ...]`` or a list of ``B`` tensors, or None.
        prompt: the prompt's embedding, or None.
        context: name of the condition that `cache_context` gave, or None.
        step_index: the step that `cache_context` gave, or None.
        length: number of steps that `cache_context` or the pipeline's scheduler gave, or None; a timetable
            has its own.
        planned: the timesteps of the pipeline's scheduler, or None.
    """

    timestep: Any
    sample: Any = None
    prompt: Any = None
    context: str | None = None
    step_index: int | None = None
    length: int | None = None
    planned: torch.Tensor | None = None


@dataclass(eq=False)
class Condition:
    """One of the calls that each place on the timetable takes, and the pairs that serve it.

    Attributes:
        name: given by `cache_context`, or None.
        shape: shape of its latents.
        prompt: its prompt's embedding, held so that its place in memory stays its own.
        sample: its latents at the last step.
        place: the last place at which it was called.
        plans: its merge plans, by attention; see `catome.runtime.state`.
        since: ``[B]`` int64 on the CPU: the step at which each row's image began; None where all began with
            the condition.
        ran: what its attentions came to in its last call; see `catome.runtime.state`.
        outputs: what the model gave, by timestep, the last one at the end; see `catome.runtime.forecast`.
    """

    name: str | None
    shape: tuple
    prompt: torch.Tensor | list | None = None
    sample: torch.Tensor | list | None = None
    place: float | None = None
    plans: dict = field(default_factory=dict)
    since: torch.Tensor | None = None
    ran: tuple = ()
    outputs: dict[float, Any] = field(default_factory=dict)


class Generation:
    """One walk along a timetable.

    Attributes:
        step: the current step, from 0.
        length: how many steps there are; None where nothing tells.
        conditions: in the order in which they were first called.
        payload: what the caller keeps with a generation: the rule it merges by, its random generator, its
            report.
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
        """Return True if a place lies in the direction from which the generation comes."""
        return (place - self.place) * self.direction < 0

    def go_to(self, place: float) -> None:
        """Move on to a place."""
        if self.place is not None and self.direction == 0:
            self.direction = 1 if place > self.place else -1
        self.place = place


class Timeline:
    """The generations that run in one thread."""

    def __init__(
        self, begin: Callable[[], Any] = lambda: None, end: Callable[[Any], None] = lambda payload: None
    ) -> None:
        """``begin()`` makes the payload of each new generation, and ``end(payload)`` is told when it is
        over."""
        self.begin = begin
        self.end = end
        self._generations: OrderedDict[Any, Generation] = OrderedDict()
        self._held: dict[Any, Any] = {}  # what keeps a timetable's address its own

    @property
    def generations(self) -> list[Generation]:
        """Those that are under way, the one called last at the end."""
        return list(self._generations.values())

    def clear(self) -> None:
        """Forget everything: the next call begins a generation."""
        for key in list(self._generations):
            self._over(key)

    def locate(self, facts: CallFacts) -> tuple[Generation, Condition]:
        """The generation and the condition of a call, which counts as made now."""
        key, place, length, held = self._clock(facts)
        generation = self._generations.get(key)
        if generation is None or generation.turns_at(place):
            generation = self._new(key, place, length, held)
        sure = key != "values" and (key == "context" or _is_planned(self._held[key], facts))
        candidates, several = _candidates(generation, facts, place)
        condition = None
        changed = None
        next_place = bool(candidates) and not several and place == candidates[0].place + 1
        if next_place and sure:
            condition = candidates[0]
        elif candidates:
            likely = (
                next_place
                and key != "values"
                and self._held[key].nbytes() >= _LONG * facts.timestep.element_size()
            )
            condition, changed = _continued(candidates, facts.sample, _LIKELY if likely else _CONTINUES)
        if candidates and condition is None:
            if generation.place == place or (key != "values" and place == generation.place + 1):
                # another image in its place, in the same generation
                generation.conditions.remove(candidates[0])
            else:
                # Another image altogether: a generation that was given up, or a loop over images.
                generation = self._new(key, place, length, held)
        if generation.place != place:
            generation.step = _step(generation, key, place)
            generation.go_to(place)
        if condition is None:
            condition = _new_condition(generation, facts)
        if changed is not None:
            before = (
                torch.zeros_like(changed, dtype=torch.int64) if condition.since is None else condition.since
            )
            condition.since = torch.where(changed, generation.step, before)
        condition.place = place
        condition.sample = _copy(facts.sample)
        self._generations.move_to_end(key)
        return generation, condition

    def _clock(self, facts: CallFacts) -> tuple[Any, float, int | None, Any]:
        """The clock of a call, its place there, the length of a generation that begins here, and what to hold
        on to."""
        if facts.step_index is not None:
            return "context", facts.step_index, facts.length, None
        timetable = timetable_of(facts.timestep)
        known = timetable is not None and timetable.data_ptr() in self._generations
        if timetable is None or not (
            known or _is_planned(timetable, facts) or _one_way(timetable, facts.timestep)
        ):
            return "values", _value(facts.timestep), facts.length, None
        place = facts.timestep.storage_offset()
        end = timetable.nbytes() // facts.timestep.element_size()
        if _is_planned(timetable, facts):
            end = facts.planned.storage_offset() + facts.planned.numel()
        return timetable.data_ptr(), place, end - place, timetable

    def _new(self, key, place, length: int | None, held) -> Generation:
        # Places on a timetable and numbers of steps rise; timesteps by value go where the first two of them
        # go.
        if key in self._generations:
            self._over(key)
        generation = Generation(self.begin(), 0 if key == "values" else 1)
        generation.first = place
        generation.length = length
        self._generations[key] = generation
        self._held[key] = held
        while len(self._generations) > _MOST_GENERATIONS:
            self._over(next(iter(self._generations)))
        return generation

    def _over(self, key) -> None:
        self._held.pop(key, None)
        self.end(self._generations.pop(key).payload)


def timetable_of(timestep) -> torch.UntypedStorage | None:
    """The memory of the longer tensor that ``timestep`` is one number of, or None."""
    if not isinstance(timestep, torch.Tensor) or (timestep.numel() != 1 and any(timestep.stride())):
        return None
    storage = timestep.untyped_storage()
    return storage if storage.nbytes() > timestep.element_size() else None


def _is_planned(timetable: torch.UntypedStorage, facts: CallFacts) -> bool:
    """Return True if a timetable is that of the pipeline's scheduler, and not one that happens to look like
    it."""
    if not isinstance(facts.planned, torch.Tensor):
        return False
    return facts.planned.untyped_storage().data_ptr() == timetable.data_ptr()


def _one_way(timetable: torch.UntypedStorage, timestep: torch.Tensor) -> bool:
    """Return True if the numbers of a timetable fall or rise throughout.

    Those that a training loop draws do not, nor do those of one step for each image of a batch."""
    numbers = torch.empty(0, dtype=timestep.dtype, device=timestep.device).set_(timetable)
    steps = numbers.diff()
    return bool(((steps <= 0).all() | (steps >= 0).all()) & (steps != 0).any())


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


def _candidates(generation: Generation, facts: CallFacts, place) -> tuple[list[Condition], bool]:
    """The conditions that a call may continue, none for a new one; and whether the prompt serves several
    conditions, as it does for the views of a panorama, so that it does not tell which one this is."""
    shape = _shape(facts.sample)
    named = [
        condition
        for condition in generation.conditions
        if (condition.name, condition.shape) == (facts.context, shape)
    ]
    waiting = [condition for condition in named if condition.place != place]
    if not waiting or not _tensors(facts.prompt):
        return waiting, len(named) > 1
    # where prompts are made anew for each call, only a look at them tells
    for same in (_same_memory, torch.equal):
        fitting = [condition for condition in named if _alike(condition.prompt, facts.prompt, same)]
        if fitting:
            return [condition for condition in fitting if condition.place != place], len(fitting) > 1
    # A new prompt in the place of an old one: the first that waits makes room.
    generation.conditions.remove(waiting[0])
    return [], False


def _continued(
    candidates: list[Condition], sample, least: float
) -> tuple[Condition | None, torch.Tensor | None]:
    """The first condition whose latents a call continues, and which rows do not, if that is only true of
    some."""
    partly = None
    for condition in candidates:
        continues = _continues(condition.sample, sample, least)
        if continues.all():
            return condition, None
        if partly is None and continues.any():
            partly = condition, ~continues
    return partly or (None, None)


def _new_condition(generation: Generation, facts: CallFacts) -> Condition:
    condition = Condition(
        facts.context, _shape(facts.sample), [part.detach() for part in _tensors(facts.prompt)]
    )
    if len(generation.conditions) < _MOST_CONDITIONS:
        generation.conditions.append(condition)
    return condition


def _shape(sample) -> tuple:
    if isinstance(sample, (list, tuple)):
        return tuple(_shape(part) for part in sample)
    return tuple(sample.shape) if isinstance(sample, torch.Tensor) else ()


def _tensors(prompt) -> list[torch.Tensor]:
    """The tensors of a prompt, which is one or a list of them."""
    if isinstance(prompt, (list, tuple)):
        return [tensor for part in prompt for tensor in _tensors(part)]
    return [prompt] if isinstance(prompt, torch.Tensor) else []


def _alike(a, b, same: Callable[[torch.Tensor, torch.Tensor], bool]) -> bool:
    a = _tensors(a)
    b = _tensors(b)
    if len(a) != len(b):
        return False
    fit = all((x.shape, x.dtype, x.device) == (y.shape, y.dtype, y.device) for x, y in zip(a, b, strict=True))
    return fit and all(same(x, y) for x, y in zip(a, b, strict=True))


def _same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.stride() == b.stride()


def _copy(sample):
    if isinstance(sample, (list, tuple)):
        return [_copy(part) for part in sample]
    return sample.detach().clone() if isinstance(sample, torch.Tensor) else None


@torch.no_grad()
def _continues(before, now, least: float) -> torch.Tensor:
    """Tell which rows of the latents continue those of the step before, by a cosine of ``least``: ``[B]``
    bool on the CPU.

    What is not finite tells nothing, and is left out."""
    if isinstance(now, (list, tuple)):
        pairs = zip(before, now, strict=True)
        return torch.stack([_continues(*_as_batches(a, b), least).all() for a, b in pairs])
    if not isinstance(now, torch.Tensor) or not isinstance(before, torch.Tensor):
        return torch.ones(1, dtype=torch.bool, device="cpu")
    before = before.to(now.device).flatten(1).float().nan_to_num(0.0, 0.0, 0.0)
    now = now.flatten(1).float().nan_to_num(0.0, 0.0, 0.0)
    alike = torch.nn.functional.cosine_similarity(before, now, dim=1)
    return ((alike >= least) | (before == now).all(1)).cpu()


def _as_batches(before, now) -> tuple:
    return (before[None], now[None]) if isinstance(now, torch.Tensor) else (before, now)
