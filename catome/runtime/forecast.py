"""The ``forward`` of a model that runs at some steps only, and gives a forecast of its output at the
others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from catome.models._torch import ReplacedForward, alone_in_eager
from catome.models.registry import family_of
from catome.policy.forecast import weights
from catome.runtime.hooks import patch_of
from catome.runtime.state import Running


class ForecastSteps(ReplacedForward):
    """Stands in front of a patched model's forward while a generation's configuration has a `Forecast`."""

    @alone_in_eager
    def forward(self, *args, **kwargs):
        """Run the model, or give a forecast of what it would give."""
        running = self._running(args, kwargs)
        if running is None:
            return self.inner(*args, **kwargs)
        known = running.condition.outputs
        if _begins_anew(running):
            known.clear()
        forecast = running.config.forecast
        now = _time(running.call.arguments[family_of(self.model).timestep])
        if forecast.runs(running.generation.step) or len(known) <= forecast.order or now in known:
            output = self.inner(*args, **kwargs)
            known.pop(now, None)  # a sampler may call the model twice at a timestep
            known[now] = output
            while len(known) > forecast.order + 1:
                del known[next(iter(known))]
            return output
        running.report.forecasts += 1
        return combined(list(known.values()), weights(list(known), now))

    @classmethod
    def to_the_front(cls, model: torch.nn.Module) -> None:
        """Stand in front of everything else on a model, if at all: a step that is left out needs nothing
        behind."""
        if cls.on(model) is not None:
            cls.take_off(model)
            cls(model).put_on()

    def _running(self, args: tuple, kwargs: dict) -> Running | None:
        """The call that this thread is in, where it may be left out; None where the model must run."""
        patch = patch_of(self.model)
        running = patch.running if patch is not None else None
        if (
            running is None
            or not running.active
            or running.config.forecast is None
            or torch.is_grad_enabled()
        ):
            return None
        family = family_of(self.model)
        given = args[0] if args else kwargs.get(family.sample)
        if given is not running.call.arguments.get(family.sample):
            return None  # this is another call than the patch has seen
        return running


def _begins_anew(running: Running) -> bool:
    """Return True if some row of the latents is of another image from this step on."""
    since = running.condition.since
    return since is not None and bool((since == running.generation.step).any())


def _time(timestep) -> float:
    """A timestep as a number; the highest one where tokens have timesteps of their own."""
    return float(timestep.max()) if isinstance(timestep, torch.Tensor) else float(timestep)


def combined(outputs: Sequence[Any], shares: Sequence[float]):
    """The weighted sum of outputs of a model: of tensors, and of what holds tensors; what is no tensor is the
    last one's."""
    last = outputs[-1]
    if isinstance(last, torch.Tensor):
        if not last.is_floating_point():
            return last
        total = 0
        for output, share in zip(outputs, shares, strict=True):
            total = total + share * output
        return total
    if isinstance(last, Mapping):  # diffusers' outputs are such
        parts = {name: combined([output[name] for output in outputs], shares) for name in last}
        return type(last)(**parts) if type(last) is not dict else parts
    if isinstance(last, (list, tuple)):
        return type(last)(combined(part, shares) for part in zip(*outputs, strict=True))
    return last
