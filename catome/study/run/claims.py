"""Divide work among processes that share a folder: on one machine or on many, started together or one after
the other.

A piece of work is *claimed* by making a file that only one process can make. Whoever has a claim touches it
while it lives; a claim of a process that is gone is anybody's. So nobody has to be told what the others do, a
process that is killed loses the piece it was at and nothing else, and the others do that piece in the end.
Two processes at the same piece, should a claim be taken from one that was only asleep, do no harm: they
compute the same rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

LEASE = 60.0
"""Seconds after which a claim that nobody has touched is anybody's, if its process cannot be asked."""

Piece, Need = TypeVar("Piece"), TypeVar("Need")


def here() -> str:
    """Tells machines, and containers on one machine, apart: where a process number means something."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{platform.node()} {space}".strip()


def born(pid: int) -> str | None:
    """The start of a process of this machine, in its own units; "" if that is not known, None if there is no
    such process."""
    try:
        with suppress(PermissionError):  # there it is, and somebody else's
            os.kill(pid, 0)
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else rest[18]  # a zombie holds nothing
    except ProcessLookupError:
        return None
    except OSError:
        return "" if not Path("/proc/self/stat").exists() else None


class Claims:
    """The claims in a folder.

    Args:
        folder: the study's output; claims are files in ``folder/claims``.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder, self._held, self._beat = Path(folder) / "claims", {}, None

    def take(self, name: str) -> bool:
        """Claim a piece of work; False if another process has it."""
        path = self._path(name)
        for _ in range(2):
            try:
                self._make(path, name)
                return True
            except FileExistsError:
                if not self._clear(path):
                    return False
        return False

    def release(self, name: str) -> None:
        """Give a claim back."""
        path = self._path(name)
        if self._held.pop(path, None) is not None:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # not empty: others are at work
                self.folder.rmdir()

    def _clear(self, path: Path) -> bool:
        """Remove a claim if its process is gone; False if it is held, or somebody else has just removed
        it."""
        seen = self._read(path)
        if not self._abandoned(path):
            return False
        gone = path.with_suffix(f".{uuid.uuid4().hex}")
        try:  # only one of several can rename it
            path.rename(gone)
        except FileNotFoundError:
            return False
        taken_meanwhile = self._read(gone) != seen
        # between the look and the rename another process removed the old claim and made its own
        if taken_meanwhile:
            with suppress(OSError):
                os.link(gone, path)
        gone.unlink()
        return not taken_meanwhile

    def others(self) -> list[str]:
        """The others at work here: a line for each claim that a living process holds."""
        lines = []
        for path in sorted(self.folder.glob("*.claim")):
            if path not in self._held and not self._abandoned(path):
                about = self._read(path)
                lines.append(
                    f"{about.get('name', '?')} by process {about.get('pid', '?')} on {about.get('host', '?')}"
                )
        return lines

    def _path(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.claim"

    def _make(self, path: Path, name: str) -> None:
        about = {"name": name, "host": here(), "pid": os.getpid(), "born": born(os.getpid())}
        whole = self.folder / f".{uuid.uuid4().hex}.new"  # so that no claim is ever there without its text
        for _ in range(20):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                whole.write_text(json.dumps(about))
                break
            except FileNotFoundError:  # whoever was last here has just removed the folder
                continue
        try:
            os.link(whole, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
            path.write_text(json.dumps(about))
        finally:
            whole.unlink()
        self._held[path] = about
        if self._beat is None:
            self._beat = threading.Thread(target=self._touch, daemon=True)
            self._beat.start()

    def _touch(self) -> None:
        while True:
            time.sleep(LEASE / 6)
            for path in list(self._held):
                try:
                    os.utime(path)
                except OSError:  # given back, or the folder is gone
                    continue

    def _read(self, path: Path) -> dict:
        try:
            return json.loads(path.read_text() or "{}")
        except (OSError, ValueError):
            return {}

    def _abandoned(self, path: Path) -> bool:
        about = self._read(path)
        if about.get("host") == here() and isinstance(about.get("pid"), int):
            return born(about["pid"]) != about.get("born")
        try:
            return time.time() - path.stat().st_mtime > LEASE
        except FileNotFoundError:  # given back just now
            return False


def deal(
    pieces: Iterable[Piece],
    need: Callable[[Piece], Need],
    name: Callable[[Piece], str],
    claims: Claims,
    refresh: Callable[[], object] = lambda: None,
    wait_s: float = 1.0,
    say: Callable[[str], None] = warnings.warn,
) -> Iterator[tuple[Piece, Need]]:
    """Yield the pieces of which something is missing, each while its claim is held, until nothing is missing.

    Pieces that another process is at are waited for. Processes of one launch (see `place`) begin at different
    pieces.

    Args:
        pieces: all there are.
        need: what is missing of a piece, by what is known since the last refresh; false if nothing is.
        name: of a piece, the same in every process.
        claims: of the folder that all share.
        refresh: learns what others have done.
        wait_s: seconds between looks while others are at all that is missing.
        say: told once whom it waits for.
    """
    pieces, (rank, processes) = list(pieces), place()
    begin = rank * len(pieces) // processes
    pending, told = pieces[begin:] + pieces[:begin], False
    while pending:
        taken, worked = [], False
        for piece in pending:
            if not need(piece):
                continue
            if not claims.take(name(piece)):
                taken.append(piece)
                continue
            try:
                refresh()
                wanted = need(piece)  # it may have been done before it was ours
                if wanted:
                    worked = True
                    yield piece, wanted
            finally:
                claims.release(name(piece))
        pending = taken
        if pending and not worked:
            others = claims.others()
            if others and not told:
                say("waiting for what others are at: " + "; ".join(others))
                told = True
            time.sleep(wait_s)
        refresh()


def place() -> tuple[int, int]:
    """The place of this process among all of them: ``(rank, processes)``.

    It is read from what torchrun, accelerate or SLURM put into the environment."""
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1
