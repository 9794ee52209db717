"""The parts of torch that catome uses and torch does not promise to keep.
`tests/models/test_private_names.py` names each."""

from __future__ import annotations

import sys
from functools import partial
from types import MethodType
from weakref import WeakKeyDictionary

import torch
from torch.overrides import TorchFunctionMode

__all__ = [
    "HOOK_TABLES",
    "AttentionMode",
    "ReplacedForward",
    "SdpaMode",
    "alone_in_eager",
    "has_own_forward",
    "hide_from_compiler",
    "hooks_of",
    "in_eager",
    "leave_behind",
    "original",
    "remove_hooks",
    "renew_shown",
    "show_to_compiler",
    "twin_of",
]

HOOK_TABLES = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
"""The tables in which a module keeps its hooks: the first two have them, the others say how they are
called."""


def original(model):
    """The module inside `torch.compile`'s wrapper, `torch.nn.DataParallel` or a PEFT model; else ``model``
    itself."""
    while True:
        if hasattr(model, "_orig_mod"):  # torch.compile(model)
            model = model._orig_mod
        elif isinstance(model, torch.nn.parallel.DataParallel | torch.nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(model, torch.nn.Module) and callable(getattr(model, "get_base_model", None)):  # PEFT
            model = model.get_base_model()
        else:
            return model


def hooks_of(module: torch.nn.Module, kind: type) -> list:
    """The objects of class ``kind`` whose methods are hooks of the module, each once."""
    found = []
    for table in HOOK_TABLES[:2]:
        for hook in getattr(module, table).values():
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, kind) and owner not in found:
                found.append(owner)
    return found


def show_to_compiler(module: torch.nn.Module) -> None:
    """Make `torch.compile` look again at a module whose hooks have changed; it does not watch hooks, but does
    ``forward``.

    The module gets its class's own forward as an attribute, which changes nothing else."""
    if "forward" not in vars(module):
        _show(module)


_SHOWN = WeakKeyDictionary()  # the forward that `_show` has given each module


def _show(module: torch.nn.Module) -> None:
    _SHOWN[module] = type(module).forward
    module.forward = MethodType(type(module).forward, module)


def _is_shown(module: torch.nn.Module) -> bool:
    """Return True if a module has the attribute of `show_to_compiler`; copies of a module have it, too."""
    own = vars(module).get("forward")
    if not isinstance(own, MethodType):
        return False
    known = [vars(kind).get("forward") for kind in type(module).__mro__]
    return own.__func__ in known or own.__func__ is _SHOWN.get(module)


def renew_shown(module: torch.nn.Module) -> None:
    """Give a module the right attribute of `show_to_compiler` again, if it has one.

    It is of another class where a package has given the module a class of its own since, and of another
    module in the replicas of `torch.nn.DataParallel`, which have copies of all attributes."""
    own = vars(module).get("forward")
    if _is_shown(module) and (own.__self__ is not module or own.__func__ is not type(module).forward):
        _show(module)


def hide_from_compiler(module: torch.nn.Module) -> None:
    """Undo `show_to_compiler`; a forward that somebody has put there since stays."""
    if _is_shown(module) and vars(module)["forward"].__self__ is module:
        del module.forward


def remove_hooks(module: torch.nn.Module, kind: type, but: tuple = ()) -> None:
    """Take off the hooks that are methods of objects of class ``kind``, and no others; nor those of the
    objects ``but``."""
    for table in HOOK_TABLES[:2]:
        hooks = getattr(module, table)
        owners = {key: getattr(hook, "__self__", None) for key, hook in hooks.items()}
        keys = [key for key, owner in owners.items() if isinstance(owner, kind) and owner not in but]
        for key in keys:
            for name in HOOK_TABLES:
                getattr(module, name).pop(key, None)
            hide_from_compiler(module)


class ReplacedForward:
    """A ``forward`` that stands on a model in front of the one that was there; several may stand in a row."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.before = None

    def forward(self, *args, **kwargs):
        """Stand in for the model's forward."""
        return self.inner(*args, **kwargs)

    def inner(self, *args, **kwargs):
        """Call the forward that stood there before."""
        if self.before is not None:
            return self.before(*args, **kwargs)
        return type(self.model).forward(self.model, *args, **kwargs)

    def put_on(self) -> None:
        """Stand in front."""
        self.before = vars(self.model).get("forward")
        self.model.forward = self.forward

    @classmethod
    def on(cls, model: torch.nn.Module):
        """The one of this class that is on a model, or None."""
        return next((owner for owner in _row(model) if isinstance(owner, cls)), None)

    @classmethod
    def take_off(cls, model: torch.nn.Module) -> None:
        """Take those of this class off a model, and leave the others in their order."""
        row = [owner for owner in _row(model) if not isinstance(owner, cls)]
        last = _last(model)
        if len(row) == len(_row(model)):
            return
        for owner in reversed(row):
            owner.before = last
            last = owner.forward
        if last is None:
            del model.forward
        else:
            model.forward = last


def _row(model: torch.nn.Module) -> list[ReplacedForward]:
    """Those that stand on a model, the front one first."""
    row = []
    owner = getattr(vars(model).get("forward"), "__self__", None)
    while isinstance(owner, ReplacedForward):
        row.append(owner)
        owner = getattr(owner.before, "__self__", None)
    return row


def _last(model: torch.nn.Module):
    """The forward behind all of them: None, or one that somebody else put there."""
    row = _row(model)
    return row[-1].before if row else vars(model).get("forward")


def has_own_forward(module: torch.nn.Module) -> bool:
    """Return True if somebody put a ``forward`` on a module in place of its class's, as accelerate and
    diffusers' hooks do."""
    return "forward" in vars(module) and not _is_shown(module)


def twin_of(
    module: torch.nn.Module, kind: type, known: dict[int, torch.nn.Module] | None = None
) -> torch.nn.Module:
    """A copy of a module and of all in it, without the hooks that are methods of objects of class ``kind``.

    Parameters, buffers and everything else are the module's own. What is changed in them is changed in both;
    a module or a parameter that takes another's place is not seen by the twin."""
    known = {} if known is None else known
    if id(module) in known:
        return known[id(module)]
    twin = object.__new__(type(module))
    known[id(module)] = twin
    twin.__dict__.update(vars(module))
    for name in HOOK_TABLES:
        twin.__dict__[name] = vars(module)[name].copy()
    twin.__dict__["_parameters"] = dict(module._parameters)
    twin.__dict__["_buffers"] = dict(module._buffers)
    twin.__dict__["_modules"] = {
        name: None if child is None else twin_of(child, kind, known)
        for name, child in module._modules.items()
    }
    twin.__dict__.pop("forward", None)
    remove_hooks(twin, kind)
    return twin


in_eager = partial(
    torch.compiler.disable,
    reason=(
        "catome decides in Python what to merge; compile with fullgraph=False, or call catome.remove_patch "
        "first"
    ),
)
"""Keeps a function out of what `torch.compile` makes; the reason is shown where a whole graph was asked
for."""

alone_in_eager = partial(torch.compiler.disable, recursive=False)
"""Keeps a function out of what `torch.compile` makes, and not what it calls."""


class SdpaMode(TorchFunctionMode):
    """Hands every `F.scaled_dot_product_attention` inside a ``with`` block, in this thread, to ``attend``."""

    def __init__(self, attend) -> None:
        """``attend(function, *args, **kwargs)`` stands in for the call of ``function``, torch's own."""
        super().__init__()
        self.attend = attend

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            return self.attend(func, *args, **kwargs)
        return func(*args, **kwargs)


class AttentionMode(SdpaMode):
    """The same within one call of a module, begun by a hook before it and ended by a hook after it.

    Torch runs the latter after any exception but KeyboardInterrupt and its like, which would leave the mode
    behind. So the mode remembers the call of the module that it was entered in, and does nothing once that is
    over; `leave_behind` takes such modes off."""

    def __init__(self, attend) -> None:
        super().__init__(attend)
        self._call = None

    def enter(self) -> None:
        """Begin to watch; must be called by a hook before a module."""
        self._call = _call_of_module()
        self.__enter__()

    def leave(self) -> None:
        """Stop watching, if that has not been done."""
        self._call = None
        self.attend = None  # which often knows the mode: tensors would wait for the garbage collector
        if self in torch.overrides._get_current_function_mode_stack()[-1:]:
            self.__exit__(None, None, None)

    @in_eager
    def _under_way(self) -> bool:
        """Return True while the call of the module in which the mode was entered goes on."""
        frame = sys._getframe(1)
        while frame is not None and frame is not self._call:
            frame = frame.f_back
        return frame is not None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.scaled_dot_product_attention and self._under_way():
            return super().__torch_function__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


def _call_of_module():
    """The frame in which torch calls the hooks of a module, and then its forward."""
    file = torch.nn.Module._call_impl.__code__.co_filename
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != file:
        frame = frame.f_back
    return frame


def leave_behind() -> None:
    """Take modes off that an interrupted call has left in this thread."""
    for mode in reversed(torch.overrides._get_current_function_mode_stack()):
        if not isinstance(mode, AttentionMode) or mode._under_way():
            break
        mode.leave()
