"""A leaderboard for a project week: ``python -m catome.study.leaderboard FOLDER``, with ``--help`` for what
it takes.

Every Python file in the folder is an *entry*: it defines ``TITLE``, a short text, and ``method()``, which
returns a `catome.study.methods.Method`. All entries generate the same images, of a seed that nobody has seen
before. Who comes closest to the unmerged images wins, of those that leave no more of the topmost
self-attentions' scores than the limit allows.

What was generated is kept under a digest of the entry's file: the same seed again computes nothing, and a
file that was changed is judged anew. What failed is tried again. The entries are programs, and they run with
the rights of whoever calls this.
"""

from __future__ import annotations

import argparse
import hashlib
import secrets
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import yaml

from catome.checks import check_kind, check_number, shown
from catome.models._torch import HOOK_TABLES
from catome.study.measure import quality
from catome.study.measure.comparison import Comparison, compare
from catome.study.measure.scores import counted, without_merging
from catome.study.methods import Method
from catome.study.run.generate import load
from catome.study.run.parameters import Setting
from catome.study.run.store import (
    Damaged,
    Stopwatch,
    Store,
    computed_on,
    fingerprint,
    prompts_of,
    provenance,
    shared_keys,
)
from catome.study.studies.frontier import SCORES

BASELINE = "baseline.py"
"""The file of the entry that all others are compared with."""

LIMIT = 0.25
IMAGES = 12
OUTPUT = "_build/leaderboard"
SEEDS = 10**6
"""A seed is drawn below this."""

INTERRUPTED = 130

_LONGEST_TITLE = 60
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_ATTENTION = "scaled_dot_product_attention"


@dataclass(frozen=True)
class Entry:
    """An entry, as a file makes it.

    Attributes:
        file: its path.
        title: what it is called.
        method: its method, whose label is the digest of the file and the label that the file gave.
    """

    file: Path
    title: str
    method: Method


@dataclass(frozen=True)
class Entries:
    """The content of a folder: entries by file name, and, by file name too, why the others could not be
    read."""

    read: list[Entry]
    failed: dict[str, str]


def read(folder: str | Path) -> Entries:
    """Read the entries of a folder; one whose file or ``method()`` raises an error has failed, and the others
    go on.

    Raises:
        ValueError: if there is no such folder, or no entry in it, or a file lacks ``TITLE`` or ``method()``,
            or two titles are equal; it names what is wrong, and what is allowed.
        TypeError: for a ``TITLE`` that is no text.
    """
    check_kind("folder", folder, (str, Path), "the path of a folder")
    if not Path(folder).is_dir():
        raise ValueError(
            f"folder={str(folder)!r} must be a folder of entries, Python files with TITLE and method()"
        )
    files = sorted(Path(folder).glob("*.py"))
    if not files:
        raise ValueError(
            f"folder={str(folder)!r} holds no entry: it must hold Python files (*.py) with TITLE and method()"
        )
    found, failed = [], {}
    for file in files:
        try:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
            module = _run(file, digest)
        except (Exception, SystemExit) as error:
            failed[file.name] = _why(error, file)
            continue
        title = _title(file, module)
        if not callable(getattr(module, "method", None)):
            raise ValueError(
                f"entry={file.name!r} has no method(): it must define this function, which returns a Method"
            )
        try:
            method = module.method()
            check_kind("method()", method, Method, "a catome.study.methods.Method")
        except (Exception, SystemExit) as error:
            failed[file.name] = _why(error, file)
            continue
        found.append(
            Entry(
                file, title, Method(f"entry {digest}: {method.label}", "entry", method.applied, method.batch)
            )
        )
    _check_titles(found)
    return Entries(found, failed)


def _run(file: Path, digest: str) -> ModuleType:
    """The module of a file. It is not imported: nothing is written beside the file, and it is read anew each
    time."""
    module = ModuleType(f"catome_entry_{digest}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # where dataclasses look for the names of their fields' types
    exec(compile(file.read_bytes(), str(file), "exec"), vars(module))
    return module


def _title(file: Path, module: ModuleType) -> str:
    allowed = f"must be a text of one line, at most {_LONGEST_TITLE} characters"
    if not hasattr(module, "TITLE"):
        raise ValueError(f"entry={file.name!r} has no TITLE: it {allowed}")
    title = module.TITLE
    check_kind(f"TITLE of {file.name}", title, str, "a text of one line")
    if not title.strip() or len(title) > _LONGEST_TITLE or not title.isprintable():
        raise ValueError(f"TITLE={shown(title)} of {file.name} {allowed}")
    return title.strip()


def _check_titles(entries: list[Entry]) -> None:
    files: dict[str, str] = {}
    for entry in entries:
        if entry.title in files:
            both = f"{files[entry.title]} and {entry.file.name}"
            raise ValueError(f"TITLE={entry.title!r} is that of {both}: each title may be given once")
        files[entry.title] = entry.file.name


def _why(error: BaseException, file: Path) -> str:
    """An error on one line, with the place in the entry's file that it comes from."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)
    ]
    said = " ".join(str(error).split()) or "it says no more"
    place = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {said[:200]}{place}"


class Guard:
    """Knows a pipeline as it is, sees what an entry has left on it, and makes it again what it was.

    Weights are compared, and all that can stand in the way of a method or be called beside it: hooks,
    classes, attention processors, parts that take another's place, methods of the classes and attention
    itself."""

    def __init__(self, pipe) -> None:
        self._copy = deepcopy(pipe)
        self._weights = fingerprint(pipe)
        self._attention = getattr(torch.nn.functional, _ATTENTION)
        self._classes = {kind: dict(vars(kind)) for kind in {type(thing) for _, thing in _things(pipe)}}
        self._places = _places(pipe)

    def changed(self, pipe) -> str | None:
        """The first place where the pipeline is not as it was; None if it is."""
        if getattr(torch.nn.functional, _ATTENTION) is not self._attention:
            return f"torch.nn.functional.{_ATTENTION}"
        for kind, before in self._classes.items():
            for name in _unlike(kind, before):
                return f"{kind.__name__}.{name}"
        now = _places(pipe)
        for name in [*self._places, *now]:
            if self._places.get(name) != now.get(name):
                return name
        return None if fingerprint(pipe) == self._weights else "its weights or its configuration"

    def put_back(self, pipe) -> None:
        """Make the pipeline what it was: its parts are fresh copies then."""
        setattr(torch.nn.functional, _ATTENTION, self._attention)
        for kind, before in self._classes.items():
            for name in _unlike(kind, before):
                if name in before:
                    setattr(kind, name, before[name])
                else:
                    delattr(kind, name)
        vars(pipe).clear()
        vars(pipe).update(vars(deepcopy(self._copy)))
        self._places = _places(pipe)


def _things(pipe) -> Iterator[tuple[str, object]]:
    """The pipeline, its parts, the modules in them and their attention processors, by name."""
    yield "pipe", pipe
    for part in _PARTS:
        thing = vars(pipe).get(part)
        yield part, thing
        if isinstance(thing, torch.nn.Module):
            for name, module in thing.named_modules(prefix=part):
                yield name, module
                if hasattr(module, "processor"):
                    yield f"{name}.processor", module.processor


def _places(pipe) -> dict[str, tuple]:
    """The state of each place: the thing itself, its class, its hooks, and what hides a method of its
    class."""
    found = {}
    for name, thing in _things(pipe):
        own = getattr(thing, "__dict__", {})
        hooks = [hook for table in HOOK_TABLES[:2] for hook in own.get(table, {}).values()]
        hidden = {
            attribute: value
            for attribute, value in own.items()
            if callable(getattr(type(thing), attribute, None))
        }
        found[name] = (thing, type(thing), hooks, hidden)
    return found


def _unlike(kind: type, before: dict) -> list[str]:
    """The functions of a class that are others than before."""
    now = vars(kind)
    names = dict.fromkeys([*before, *now])
    different = [name for name in names if before.get(name) is not now.get(name)]
    return [name for name in different if callable(before.get(name)) or callable(now.get(name))]


def _guarded(method: Method, guard: Guard, counts: dict[str, int]) -> Method:
    """A method whose scores are added to ``counts``, and that must leave the pipeline as it found it.

    The context raises a RuntimeError where it does not; the pipeline is put back in any case."""

    @contextmanager
    def applied(pipe) -> Iterator:
        try:
            with counted(pipe, method.applied) as count:
                yield pipe
        finally:
            left = guard.changed(pipe)
            if left is not None:
                guard.put_back(pipe)
        if left is not None:
            raise RuntimeError(
                f"it left something on the pipeline, which was taken off: {left} is not as it was before"
            )
        counts[method.label] = counts.get(method.label, 0) + count.found

    return Method(method.label, method.family, applied, method.batch)


@dataclass(frozen=True)
class Leaderboard:
    """The results of the leaderboard.

    Attributes:
        setting: which images.
        limit: the largest share of the scores that may be left.
        entries: those that were judged.
        scores: the share of the topmost self-attentions' scores that each left over all images, by its label.
        made: their rows; None where there are none.
        failed: why the others were not judged, by file name.
    """

    setting: Setting
    limit: float
    entries: list[Entry]
    scores: dict[str, float]
    made: Comparison | None
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def baseline(self) -> Entry | None:
        """The entry that all others are compared with, where it was judged."""
        return next((entry for entry in self.entries if entry.file.name == BASELINE), None)

    def psnr(self, entry: Entry) -> tuple[float, float, float]:
        """Mean PSNR against the unmerged images of the same seeds, in dB, with its 95 % interval; infinite if
        all are equal."""
        return quality.mean_interval(self.made.of(entry.method)["psnr"].to_numpy(float))

    def within(self) -> list[Entry]:
        """The entries that leave no more than the limit, the closest first."""
        return [entry for entry in self._in_order() if self._allowed(entry)]

    def over(self) -> list[Entry]:
        """The entries that leave more, the closest first."""
        return [entry for entry in self._in_order() if not self._allowed(entry)]

    def _allowed(self, entry: Entry) -> bool:
        return self.scores[entry.method.label] <= self.limit + 1e-9

    def _in_order(self) -> list[Entry]:
        return sorted(self.entries, key=lambda entry: (-self.psnr(entry)[0], entry.title))

    def table(self) -> list[list[str]]:
        """The rows as texts, the first their heads; ranks for those within the limit alone."""
        against = self._against()
        rows = [
            [
                "rank",
                "title",
                "PSNR (95 % interval)",
                "scores left",
                "minus the baseline (dB)",
                "verdict",
                "after Holm",
            ]
        ]
        within = self.within()
        for entry in [*within, *self.over()]:
            rank = str(within.index(entry) + 1) if entry in within else "over"
            mean, low, high = self.psnr(entry)
            left = f"{self.scores[entry.method.label]:.3f}"
            said = against.get(entry.title, ["-", "-", "-"])
            rows.append([rank, entry.title, f"{mean:.1f} dB [{low:.1f}, {high:.1f}]", left, *said])
        return rows

    def _against(self) -> dict[str, list[str]]:
        """The paired difference to the baseline in dB with its interval, the verdict, and the one after Holm,
        by title."""
        baseline = self.baseline
        others = [entry for entry in self.entries if entry is not baseline]
        if baseline is None or not others:
            return {}
        found = {
            entry.title: self.made.differences("psnr", entry.method, baseline.method) for entry in others
        }
        return {
            title: [str(cell) for cell in row] for title, row in quality.difference_table(found).T.items()
        }

    def report(self) -> str:
        """The table, those that failed, and what a reader must know of them."""
        lines = _aligned(self.table()) if self.entries else ["No entry could be judged."]
        if self.over():
            lines.append(f"over: more than {self.limit:g} of the scores are left.")
        if self.entries and self.baseline is None:
            lines.append(f"No entry was compared with the baseline: there is no {BASELINE}, or it failed.")
        if self.entries and self.setting.images < IMAGES:
            lines.append(
                f"Intervals from {self.setting.images} images are narrower than they should be: judge by "
                f"{IMAGES} or more."
            )
        if self.failed:
            lines += ["", "failed:", *(f"  {file}: {why}" for file, why in sorted(self.failed.items()))]
        if self.made is not None:
            lines += ["", computed_on(self.made.runs)]
        return "\n".join(lines)


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (" ".join(f"{cell:{width}} " for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [line.rstrip() for line in padded]


def judge(pipe, setting: Setting, entries: Entries, limit: float = LIMIT) -> Leaderboard:
    """Generate by all entries, count the scores that each leaves, and keep both in ``setting.output``.

    The scores are those of the whole generation of all images, as a share of what the unmerged pipeline
    computes for them: a step that is left out computes none of its scores.

    Args:
        pipe: an unpatched pipeline with a U-Net; after an entry that left something on it, its parts are
            fresh copies.
        setting: what to generate.
        entries: of `read`.
        limit: the largest share of the scores that may be left, above 0 and at most 1.

    Raises:
        ValueError, TypeError: for a limit out of range, or a pipeline that is patched.
    """
    limit = _checked_limit(limit)
    guard, counts, failed = Guard(pipe), {}, {}
    ways = {entry.method.label: _guarded(entry.method, guard, counts) for entry in entries.read}
    store = Store(SCORES, setting.output, None)
    keys = shared_keys(pipe, setting) | prompts_of(setting, setting.images)
    held = store.find(**keys, method=list(ways))
    scores = dict(zip(held["method"], held["scores_left"].astype(float), strict=True))
    todo = [way for label, way in ways.items() if label not in scores]
    if todo:
        run, watch = provenance(setting, keys["model"]), Stopwatch()
        whole = without_merging(pipe, setting)
        # all images, for all are counted
        compare(pipe, setting, todo, recompute=True, recorded=None, failed=failed)
        new = {label: found / whole for label, found in counts.items() if label not in failed}
        rows = [
            keys | {"method": label, "scores_left": left, "merged_share": np.nan}
            for label, left in new.items()
        ]
        store.add(rows, run, watch.lap())
        store.finish()
        scores |= new
    kept = [way for label, way in ways.items() if label not in failed]
    made = compare(pipe, setting, kept, recorded=None, failed=failed) if kept else None
    judged = [entry for entry in entries.read if entry.method.label not in failed]
    whys = {
        e.file.name: _why(failed[e.method.label], e.file) for e in entries.read if e.method.label in failed
    }
    return Leaderboard(setting, limit, judged, scores, made if judged else None, entries.failed | whys)


def _checked_limit(limit) -> float:
    allowed = "above 0 and at most 1, a share of the scores"
    try:
        if check_number("limit", limit, 0.0, 1.0) > 0:
            return float(limit)
    except ValueError:
        pass
    raise ValueError(f"limit={limit!r} must be {allowed}")


def _parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        "python -m catome.study.leaderboard",
        description="Judge the entries in a folder: who comes closest to the unmerged images, of those "
        "within the limit?",
        epilog="An entry is a Python file with TITLE, a short text, and method(), which returns a Method. "
        "Entries are programs: read those of others before you run them.",
        allow_abbrev=False,
    )
    found.add_argument("folder", help="of the entries; all are compared with its baseline.py")
    found.add_argument("--seed", metavar="N", help="of the images; by default one is drawn, and printed")
    found.add_argument(
        "--images", metavar="N", default=str(IMAGES), help=f"the classes in turn; default: {IMAGES}"
    )
    found.add_argument("--steps", metavar="N", default="50", help="of each generation; default: 50")
    found.add_argument(
        "--limit", metavar="SHARE", default=str(LIMIT), help=f"of the scores; default: {LIMIT:g}"
    )
    found.add_argument(
        "--output", metavar="FOLDER", default=OUTPUT, help=f"of what is kept; default: {OUTPUT}"
    )
    return found


def _value(name: str, text: str):
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"{name}={text!r} must be a number") from None


def _again(folder: str, given: argparse.Namespace, setting: Setting) -> str:
    """The command that gives this table again."""
    usual = _parser().parse_args([folder])
    options = [f"--seed {setting.seed}"]
    for name in ("images", "steps", "limit", "output"):
        if getattr(given, name) != getattr(usual, name):
            options.append(f"--{name} {shlex.quote(getattr(given, name))}")
    return f"python -m catome.study.leaderboard {shlex.quote(folder)} {' '.join(options)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (by default the process's), and print the leaderboard.

    Returns:
        0 when the entries were judged, also where some of them failed; 2 where something that was given is
        wrong, before anything is generated; 1 where results could not be read or written; 130 after an
        interrupt.
    """
    given = _parser().parse_args(arguments)

    def fail(error: object, status: int) -> int:
        print(f"python -m catome.study.leaderboard: error: {error}", file=sys.stderr)
        return status

    try:
        limit = _checked_limit(_value("limit", given.limit))
        seed = secrets.randbelow(SEEDS) if given.seed is None else _value("seed", given.seed)
        numbers = {name: _value(name, getattr(given, name)) for name in ("images", "steps")}
        setting = Setting.checked(numbers | {"seed": seed, "output": given.output})
        entries = read(given.folder)
    except (ValueError, TypeError, OSError) as error:
        return fail(error, 2)
    try:
        found = judge(load(setting), setting, entries, limit)
    except KeyboardInterrupt:
        print("\ninterrupted; what was not judged to the end is judged anew", file=sys.stderr)
        return INTERRUPTED
    except (OSError, Damaged) as error:
        return fail(error, 1)
    print(found.report())
    print(f"Seed {setting.seed}. The same again: {_again(given.folder, given, setting)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
