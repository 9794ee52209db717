"""The parameters of the notebooks: one table of what each may be, checked before anything runs.

papermill injects whatever it is given and only warns about a name that a notebook does not declare, so each notebook begins
with `settle`, which refuses unknown names and values out of range.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch

from catome.checks import check_flag, check_integer, check_number, near
from catome.policy.schedule import parse_schedule
from catome.tiny.scenes import CLASSES, PROMPT

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SHELL = {"In", "Out", "get_ipython", "exit", "quit", "open"}  # what an IPython namespace holds by itself


def imagenet_classes() -> list[str]:
    """The 1000 class names of ImageNet in order, with the two cranes told apart (bird and machine)."""
    from torchvision.models import ResNet18_Weights

    names = list(ResNet18_Weights.DEFAULT.meta["categories"])
    names[134], names[517] = "crane bird", "crane machine"
    return names


def _names(name: str, value) -> list[str] | None:
    if value is None:
        return None
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise ValueError(f"{name}={value!r} must be a list of names, or names with commas between them, none of them empty")
    return list(value)


def _one_of(*allowed: str) -> Callable:
    def check(name: str, value) -> str:
        if value not in allowed:
            raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}")
        return value

    return check


def _device(name: str, value) -> str:
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
        raise ValueError(f"{name}={value!r}: this machine's torch has no such device; use 'cpu' or, where there is one, 'cuda'")
    return str(device)


def _text(name: str, value) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}={value!r} must be a text that is not empty")
    return value


def _template(name: str, value) -> str:
    braces = re.findall(r"{+[^{}]*}+|[{}]", _text(name, value))
    if braces != ["{}"]:
        raise ValueError(f"{name}={value!r} must hold {{}} once, where the class name goes, and no other brace")
    return value


def _folder(name: str, value) -> str:
    path = Path(_text(name, value))
    try:
        made = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    except OSError as error:  # such as a name that is too long
        raise ValueError(f"{name}={value!r} must be a folder that can be written to, or made: {error.strerror}") from None
    if not made.is_dir() or not os.access(made, os.W_OK):
        raise ValueError(f"{name}={value!r} must be a folder that can be written to, or made; {str(made)!r} is none")
    return value


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


def _schedule(name: str, value):
    parse_schedule(value)
    return value


COMMON: dict[str, Callable] = {
    "model": _text,
    "classes": _names,
    "prompt": _template,
    "images": _integer(1, 10**6),  # the next seed's noise begins behind them
    "steps": _integer(1, 999),
    "guidance": _number(0, 100),
    "guidance_rescale": _number(0, 1),
    "height": _size,
    "width": _size,
    "seed": _integer(0, 10**12),
    "device": _device,
    "dtype": _one_of(*DTYPES),
    "batch_size": _integer(1),
    "output": _folder,
}
"""The parameters that every notebook declares, by name, with their checks."""

KINDS: dict[str, Callable] = {
    "cosine": _number(-1, 1),
    "cosines": _numbers(-1, 1),
    "share": _number(0, 0.75),
    "shares": _numbers(0, 0.75),
    "step": lambda name, value: None if value is None else check_integer(name, value, 0),
    "position": _integer(0),
    "count": _integer(1),
    "counts": _counts,
    "guidances": _numbers(0, 100, empty=True),
    "flag": check_flag,
    "text": _text,
    "folder": lambda name, value: None if value is None else _text(name, value),
    "schedule": _schedule,
}
"""Kinds of a notebook's own parameters. A step may be None: two fifths of the way."""


@dataclass(frozen=True)
class Setting:
    """One notebook's parameters, checked. ``own`` holds those that only this notebook has."""

    model: str
    classes: list[str] | None
    prompt: str
    images: int
    steps: int
    guidance: float
    guidance_rescale: float
    height: int | None
    width: int | None
    seed: int
    device: str
    dtype: str
    batch_size: int
    output: str
    own: dict = field(default_factory=dict)

    @property
    def embedded(self) -> bool:
        """Whether this runs on the embedded model."""
        return self.model == "tiny"

    @property
    def classes_in_turn(self) -> list[str]:
        """The classes that were named, or all of the model."""
        return self.classes or (list(CLASSES) if self.embedded else imagenet_classes())

    @property
    def names(self) -> list[str]:
        """The class of each image: the classes in turn, until there are ``images`` of them."""
        classes = self.classes_in_turn
        return [classes[i % len(classes)] for i in range(self.images)]

    @property
    def prompts(self) -> list[str]:
        return [self.prompt.format(name) for name in self.names]

    @property
    def calls(self) -> int:
        """U-Net calls of one generation with PLMS: one more than its steps."""
        return self.steps + 1 if self.steps > 1 else 1

    def folder(self) -> Path:
        """The output folder, made if need be."""
        path = Path(self.output)
        path.mkdir(parents=True, exist_ok=True)
        return path


def settle(namespace: Mapping, **own: str) -> Setting:
    """Check a notebook's parameters: call it first, as ``setting = settle(globals(), threshold="cosine")``.

    Args:
        namespace: the notebook's globals, holding nothing but parameters yet.
        own: the notebook's own parameters and their kinds (`KINDS`), beside those of `COMMON`.

    Returns:
        The checked `Setting`.

    Raises:
        ValueError, TypeError: naming the parameter, its value and what is allowed: for a name that the notebook does not
            declare, a missing one, or a value out of range.
    """
    checks = COMMON | {name: KINDS[kind] for name, kind in own.items()}
    given = {
        name: value
        for name, value in namespace.items()
        if name in checks or not (name.startswith("_") or name in _SHELL or isinstance(value, ModuleType) or callable(value))
    }
    for name, value in given.items():
        if name not in checks:
            hint = near(name, checks)
            raise ValueError(f"{name}={value!r} is no parameter of this notebook{hint}; it has {', '.join(sorted(checks))}")
    missing = sorted(set(checks) - set(given))
    if missing:
        raise ValueError(f"{missing[0]} is missing: this notebook's parameters are {', '.join(sorted(checks))}")
    checked = {name: check(name, given[name]) for name, check in checks.items()}
    setting = Setting(**{name: checked[name] for name in COMMON}, own={name: checked[name] for name in own})
    if setting.embedded and setting.classes:
        unknown = [name for name in setting.classes if name not in CLASSES]
        if unknown:
            hint = near(unknown[0], CLASSES)
            raise ValueError(
                f"classes={setting.classes!r}: the embedded model has no {unknown[0]!r}{hint}; it has {', '.join(CLASSES)}"
            )
    if setting.embedded and setting.prompt != PROMPT:
        raise ValueError(f"prompt={setting.prompt!r}: the embedded model knows no other sentence than {PROMPT!r}")
    for name in (name for name, kind in own.items() if kind == "step"):
        if checked[name] is None:
            setting.own[name] = int(0.4 * setting.calls)
        elif checked[name] >= setting.calls:
            raise ValueError(
                f"{name}={checked[name]!r} must be below {setting.calls}, the U-Net calls of steps={setting.steps}"
            )
    return setting
