"""The parameters of the studies: one class for each, checked before anything runs.

A notebook's parameters cell, the command line, the presets and the tests all go through these classes.
papermill injects whatever it is given and only warns about a name that a notebook does not declare, so each
notebook begins with `Setting.of`, which refuses unknown names and values out of range.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Annotated, Self

import torch
from pydantic import ConfigDict, PlainValidator, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from catome.checks import check_flag, check_integer, check_number, near
from catome.policy.schedule import parse_schedule
from catome.tiny import GUIDANCE_SCALE
from catome.tiny.scenes import CLASSES, PROMPT

NOTEBOOKS = Path(__file__).resolve().parents[3] / "notebooks"
"""The notebooks of a checkout."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SHELL = {"In", "Out", "get_ipython", "exit", "quit", "open"}  # what an IPython namespace holds by itself


def imagenet_classes() -> list[str]:
    """The 1000 class names of ImageNet in order, with the two cranes told apart (bird and machine)."""
    from torchvision.models import ResNet18_Weights

    names = list(ResNet18_Weights.DEFAULT.meta["categories"])
    names[134], names[517] = "crane bird", "crane machine"
    return names


def names_or_none(name: str, value) -> list[str] | None:
    """Check a list of names, or one text with commas between them; None for all that there are."""
    if value is None:
        return None
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if (
        not isinstance(value, (list, tuple))
        or not value
        or not all(isinstance(v, str) and v.strip() for v in value)
    ):
        raise ValueError(
            f"{name}={value!r} must be a list of names, or names with commas between them, none of them empty"
        )
    return list(value)


def names_among(known: Callable[[], Iterable[str]]) -> Callable:
    """A check of `names_or_none` that also refuses a name that is not among ``known()``."""

    def check(name: str, value) -> list[str] | None:
        asked, there = names_or_none(name, value), list(known())
        unknown = [one for one in asked or () if one not in there]
        if unknown:
            raise ValueError(
                f"{name}={value!r}: there is no {unknown[0]!r}{near(unknown[0], there)}; there are "
                f"{', '.join(there)}"
            )
        return asked

    return check


def _one_of(*allowed: str) -> Callable:
    def check(name: str, value) -> str:
        if value not in allowed:
            raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}")
        return value

    return check


def usable_device(name: str, value) -> str:
    """Check that this machine's torch has a device, and return its name."""
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        raise ValueError(f"{name}={value!r} must be a torch device, such as 'cpu' or 'cuda'") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{name}={value!r}: this machine's torch sees no CUDA device; use 'cpu'")
    try:
        usable = device.type != "meta" and (device.type != "cpu" or not device.index)
        torch.zeros(1, device=device).sum()
    except (RuntimeError, NotImplementedError, AssertionError):
        usable = False
    if not usable:
        raise ValueError(
            f"{name}={value!r}: this machine's torch has no such device; use 'cpu' or, where there is one, "
            "'cuda'"
        )
    return str(device)


def _text(name: str, value) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}={value!r} must be a text that is not empty")
    return value


def _template(name: str, value) -> str:
    braces = re.findall(r"{+[^{}]*}+|[{}]", _text(name, value))
    if braces != ["{}"]:
        raise ValueError(
            f"{name}={value!r} must hold {{}} once, where the class name goes, and no other brace"
        )
    return value


def writable_folder(name: str, value) -> str:
    """Check that a folder can be written to, or made, without making it."""
    path = Path(_text(name, value))
    try:
        made = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    except OSError as error:  # such as a name that is too long
        raise ValueError(
            f"{name}={value!r} must be a folder that can be written to, or made: {error.strerror}"
        ) from None
    if not made.is_dir() or not os.access(made, os.W_OK):
        raise ValueError(
            f"{name}={value!r} must be a folder that can be written to, or made; {str(made)!r} is none"
        )
    return value


def _output(name: str, value) -> str:
    """Return a folder that can be written to.

    A relative one is in the working folder. Where that is a checkout's ``notebooks``, as in JupyterLab, it is
    in the checkout: so notebooks find there what `make notebooks` has kept, and the other way round."""
    if Path.cwd() == NOTEBOOKS and not Path(_text(name, value)).is_absolute():
        value = str(NOTEBOOKS.parent / value)
    return writable_folder(name, value)


def _integer(low: int, high: int | None = None) -> Callable:
    return lambda name, value: check_integer(name, value, low, high)


def _size(name: str, value) -> int | None:
    if value is not None and (check_integer(name, value, 8) % 8):
        raise ValueError(f"{name}={value!r} must be a multiple of 8 pixels, or None for the model's own size")
    return value


def _number(low: float, high: float) -> Callable:
    return lambda name, value: check_number(name, value, low, high)


def _numbers(low: float, high: float, empty: bool = False) -> Callable:
    def check(name: str, value) -> tuple[float, ...]:
        if not isinstance(value, (list, tuple)) or not (value or empty):
            raise TypeError(f"{name}={value!r} must be a list of numbers{'' if empty else ', at least one'}")
        return tuple(check_number(f"{name}[{i}]", v, low, high) for i, v in enumerate(value))

    return check


def _counts(name: str, value) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name}={value!r} must be a list of integers")
    return tuple(check_integer(f"{name}[{i}]", v, 1) for i, v in enumerate(value))


def _edge(name: str, value) -> int:
    if check_integer(name, value, 64) % 8:
        raise ValueError(f"{name}={value!r} must be a multiple of 8 pixels")
    return value


def _edges(name: str, value) -> tuple[int, ...]:
    return tuple(_edge(f"{name}[{i}]", v) for i, v in enumerate(_counts(name, value)))


def _step_counts(empty: bool) -> Callable:
    def check(name: str, value) -> tuple[int, ...]:
        if not isinstance(value, (list, tuple)) or not (value or empty):
            raise TypeError(f"{name}={value!r} must be a list of integers{'' if empty else ', at least one'}")
        return tuple(check_integer(f"{name}[{i}]", v, 2, 999) for i, v in enumerate(value))

    return check


def _schedule(name: str, value):
    parse_schedule(value)
    return value


def checked_by(check: Callable) -> PlainValidator:
    """``check(name, value)`` of a field of its own name; it returns the value to keep."""
    return PlainValidator(lambda value, info: check(info.field_name, value))


Text = Annotated[str, checked_by(_text)]
Folder = Annotated[str | None, checked_by(lambda name, value: None if value is None else _text(name, value))]
Flag = Annotated[bool, checked_by(check_flag)]
Count = Annotated[int, checked_by(_integer(1))]
FewSteps = Annotated[int, checked_by(_integer(2, 50))]
"""Of a distilled model: of the 50 steps of its teacher, its sampler picks as many."""

Number = Annotated[float, checked_by(_number(0, 100))]
AllOr = Annotated[
    int | None, checked_by(lambda name, value: None if value is None else check_integer(name, value, 1))
]
Position = Annotated[int, checked_by(_integer(0))]
Seed = Annotated[int, checked_by(_integer(0, 10**12))]
Step = Annotated[
    int | None, checked_by(lambda name, value: None if value is None else check_integer(name, value, 0))
]
Cosine = Annotated[float, checked_by(_number(-1, 1))]
Share = Annotated[float, checked_by(_number(0, 0.75))]
Cosines = Annotated[tuple, checked_by(_numbers(-1, 1))]
Shares = Annotated[tuple, checked_by(_numbers(0, 0.75))]
Factor = Annotated[int, checked_by(_integer(2, 4))]
Counts = Annotated[tuple, checked_by(_counts)]
Edge = Annotated[int, checked_by(_edge)]
"""Of a square image that is counted, not generated, in pixels."""

Edges = Annotated[tuple, checked_by(_edges)]
StepCounts = Annotated[tuple, checked_by(_step_counts(empty=False))]
OtherStepCounts = Annotated[tuple, checked_by(_step_counts(empty=True))]
Part = Annotated[float, checked_by(_number(0, 1))]
Distances = Annotated[tuple, checked_by(_numbers(0, 1))]
SAMPLERS = ("DPM++", "Euler")
"""For short generations, by their names in the field."""

Sampler = Annotated[str, checked_by(_one_of(*SAMPLERS))]
OwnSampler = Annotated[str | None, checked_by(_one_of(*SAMPLERS, None))]
LCM = "LCM"
"""The sampler of models that were distilled to few steps, and of no other."""

AnySampler = Annotated[str | None, checked_by(_one_of(*SAMPLERS, LCM, None))]
Guidances = Annotated[tuple, checked_by(_numbers(0, 100, empty=True))]
ScheduleName = Annotated[object, checked_by(_schedule)]


EMBEDDED = ("tiny", "tiny-pixart", "tiny-lcm")
"""The models that come with the repository."""

parameters = dataclass(
    frozen=True, kw_only=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True)
)
"""Makes a class of parameters of a subclass of `Setting`."""


@parameters
class Setting:
    """The parameters of every study: which model, which images, and where.

    Attributes:
        model: "tiny" (the embedded model), "tiny-pixart" (the embedded transformer), "tiny-lcm" (the embedded
            model distilled to few steps), a diffusers folder, or a name on the Hugging Face Hub.
        classes: names to put into the prompt, in turn; None for all classes of the model.
        prompt: with ``{}`` once, for the class.
        images: how many.
        steps: of PLMS, which calls the U-Net once more than this.
        guidance, guidance_rescale: as in diffusers.
        height, width: in pixels; None for the model's own.
        seed: of the noise, with each image's number.
        device, dtype: of torch, by name.
        batch_size: images that are generated together.
        output: folder of what is kept.

    Raises:
        ValueError, TypeError: naming the parameter, its value and what is allowed.
    """

    model: Text = "tiny"
    classes: Annotated[list[str] | None, checked_by(names_or_none)] = None
    prompt: Annotated[str, checked_by(_template)] = PROMPT
    images: Annotated[int, checked_by(_integer(1, 10**6))] = 24  # the next seed's noise begins behind them
    steps: Annotated[int, checked_by(_integer(1, 999))] = 50
    guidance: Number = GUIDANCE_SCALE
    guidance_rescale: Annotated[float, checked_by(_number(0, 1))] = 0.0
    height: Annotated[int | None, checked_by(_size)] = None
    width: Annotated[int | None, checked_by(_size)] = None
    seed: Seed = 0
    device: Annotated[str, checked_by(usable_device)] = "cpu"
    dtype: Annotated[str, checked_by(_one_of(*DTYPES))] = "float32"
    batch_size: Count = 12
    output: Annotated[str, checked_by(_output)] = "_build/output"

    @model_validator(mode="after")
    def _fits_the_model(self) -> Self:
        if self.embedded and self.classes:
            unknown = [name for name in self.classes if name not in CLASSES]
            if unknown:
                hint = near(unknown[0], CLASSES)
                raise ValueError(
                    f"classes={self.classes!r}: the embedded model has no {unknown[0]!r}{hint}; it has "
                    f"{', '.join(CLASSES)}"
                )
        if self.embedded and self.prompt != PROMPT:
            raise ValueError(
                f"prompt={self.prompt!r}: the embedded model knows no other sentence than {PROMPT!r}"
            )
        return self

    @classmethod
    def names_of_parameters(cls) -> list[str]:
        """The names of all parameters."""
        return [one.name for one in fields(cls)]

    @classmethod
    def checked(cls, given: Mapping) -> Self:
        """The parameters by these names, the others by default.

        Raises:
            ValueError, TypeError: naming the parameter, its value and what is allowed.
        """
        cls._refuse_unknown(given)
        try:
            return cls(**given)
        except ValidationError as error:
            cause = error.errors()[0].get("ctx", {}).get("error")
            raise cause if isinstance(cause, Exception) else error from None

    @classmethod
    def _refuse_unknown(cls, given: Mapping) -> None:
        known = cls.names_of_parameters()
        for name, value in given.items():
            if name not in known:
                hint = near(name, known)
                raise ValueError(
                    f"{name}={value!r} is no parameter of this study{hint}; it has {', '.join(sorted(known))}"
                )

    @classmethod
    def of(cls, namespace: Mapping) -> Self:
        """Check a notebook's parameters: called first, as ``setting = Setting.of(globals())``.

        Args:
            namespace: the notebook's globals, holding nothing but parameters yet.

        Raises:
            ValueError, TypeError: as `checked`, and for a parameter that the notebook does not declare.
        """
        known = cls.names_of_parameters()
        given = {
            name: value
            for name, value in namespace.items()
            if name in known
            or not (
                name.startswith("_") or name in _SHELL or isinstance(value, ModuleType) or callable(value)
            )
        }
        cls._refuse_unknown(given)
        missing = sorted(set(known) - set(given))
        if missing:
            raise ValueError(f"{missing[0]} is missing: the parameters are {', '.join(sorted(known))}")
        return cls.checked(given)

    def common(self, **changes) -> Setting:
        """The parameters that every study has, without those of this one."""
        return Setting.checked({one.name: getattr(self, one.name) for one in fields(Setting)} | changes)

    @property
    def embedded(self) -> bool:
        """True if this runs on a model that comes with the repository."""
        return self.model in EMBEDDED

    @property
    def classes_in_turn(self) -> list[str]:
        """The classes that were named, or all of the model."""
        return self.classes or (list(CLASSES) if self.embedded else imagenet_classes())

    @cached_property
    def names(self) -> list[str]:
        """The class of each image: the classes in turn, until there are ``images`` of them."""
        classes = self.classes_in_turn
        return [classes[i % len(classes)] for i in range(self.images)]

    @cached_property
    def prompts(self) -> list[str]:
        """The prompt of each image."""
        return [self.prompt.format(name) for name in self.names]

    def at_least(self, images: int | None) -> Self:
        """The same with so many images, if it has fewer; None changes nothing."""
        return replace(self, images=max(self.images, images or 0))

    @property
    def calls(self) -> int:
        """U-Net calls of one generation with PLMS: one more than its steps."""
        return self.steps + 1 if self.steps > 1 else 1

    def folder(self) -> Path:
        """The output folder, made if need be."""
        path = Path(self.output)
        path.mkdir(parents=True, exist_ok=True)
        return path
