"""Processes that tests start and kill, forked from a server that does nothing else.

A fork of pytest's own process may hang for ever: it copies the locks that other threads (of torch, of Arrow,
of a browser) hold at that moment, and nobody gives them back. The server has only imported this module and
loaded the embedded model. Its few threads are idle and hold no lock, and its children begin at once.
"""

import functools
import itertools
import multiprocessing
import os
import sys
import time
import warnings
from dataclasses import replace

import pyarrow as pa
import pytest

from catome import tiny
from catome.study import compare, drift_study, methods
from catome.study.measure import drift
from catome.study.run.claims import Claims, deal
from catome.study.run.store import Store, Table
from helpers.settings import setting

LONGEST = 300
"""Seconds after which a process that should have ended is taken to hang."""

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["helpers.crew_server"])

TABLE = Table(
    "numbers", 1, {"version": pa.int16(), "image": pa.int32(), "t": pa.float64()}, {"value": pa.float64()}
)


@functools.cache
def model():
    """Load the embedded model, once for a server and all its children."""
    return tiny.load_pipeline()


def started(target, *args):
    """Start a process that calls a function which it can import."""
    process = CONTEXT.Process(target=target, args=args)
    with pytest.MonkeyPatch.context() as patch:
        # Python 3.11's server ignores the sys.path that it is given, and would find no helpers
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        process.start()
    return process


def exit_codes(processes) -> list[int]:
    """Wait for processes, and return their exit codes; one that hangs is killed, and fails the test."""
    end = time.monotonic() + LONGEST
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    hanging = [process.pid for process in processes if process.is_alive()]
    for process in processes:
        process.kill()
    assert not hanging, f"processes {hanging} did not end within {LONGEST} s"
    return [process.exitcode for process in processes]


def small_study(folder, rank=0, processes=1):
    """A small study of each kind, as one of several processes: quality by three methods, and drift."""
    assert model.cache_info().currsize == 1, "the server has not loaded the model"
    warnings.simplefilter("ignore")
    drift.SHARD = 2
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(processes)}
    some = setting(folder, images=6, steps=2)
    ways = [methods.unmerged(), methods.tome(0.5), methods.ca_tome(0.8, "CONFIG_3")]
    compare(model(), replace(some, batch_size=1), ways, recorded=None)
    drift_study(model(), some, [0.8], [0.5], recorded=None)


def hold_a_claim(folder, ready):
    """Claim a piece and keep it."""
    assert Claims(folder).take("piece")
    ready.set()
    time.sleep(60)


def do_pieces(folder, rank, processes, seconds):
    """Do what is left of 40 pieces of work, each in so many seconds, and write down which."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(processes)}

    def need(piece):
        return not (folder / f"{piece}.done").exists()

    for piece, _ in deal(range(40), need, str, Claims(folder), wait_s=0.02, say=lambda line: None):
        with (folder / "log").open("a") as file:
            file.write(f"{rank} {piece}\n")
        time.sleep(seconds)
        (folder / f"{piece}.done").touch()


def rows(images, t=0.5, value=1.0) -> list[dict]:
    """Rows of `TABLE`."""
    return [{"image": i, "t": t, "value": value + i} for i in images]


def add_for_ever(folder):
    """Add rows one by one, and put them into the file after every third."""
    store = Store(TABLE, folder, None)
    for i in itertools.count():
        store.add(rows([i]), {"id": "a", "rows": 0, "wall_seconds": 0.0}, 0.0)
        if i % 3 == 2:
            store.finish()
