import math
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

# the workers are the threads: more of them only get in each other's way
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
os.environ["CATOME_CACHE"] = tempfile.mkdtemp()  # so that nobody's measured rates are read, or written over
if not torch.cuda.is_available():
    # the kernels are tested on the interpreter; read when they are imported
    os.environ["TRITON_INTERPRET"] = "1"

from catome import tiny
from catome.models._torch import hooks_of
from catome.policy import rates
from catome.runtime.hooks import Hook
from helpers.estimates import ESTIMATES
from helpers.paths import ROOT
from helpers.processes import offline
from helpers.slow import listed_as_slow

for kind in ESTIMATES:  # the models of most tests are so small that no merging would pay by the real ones
    rates.ESTIMATES[kind] = rates.Rates(1e12, math.inf, 0.0)


@pytest.fixture
def estimates(monkeypatch):
    """The rates of devices as they are, for tests of where merging pays."""
    for kind, own in ESTIMATES.items():
        monkeypatch.setitem(rates.ESTIMATES, kind, own)
    rates._rates.cache_clear()
    yield
    rates._rates.cache_clear()


@pytest.fixture
def compiler():
    """The graphs that a compiler was handed, and the compiler, which runs them as they are."""
    torch._dynamo.reset()
    counters.clear()
    handed = []

    def backend(graph, inputs):
        handed.append(graph)
        return graph.forward

    yield handed, backend
    torch._dynamo.reset()


def pytest_configure(config):
    torch.set_num_threads(min(2, torch.get_num_threads()))


OF_THE_BOOK = ("test_book_pages", "test_slides", "test_spelling")
"""The files whose tests read the rendered book, which is built once, for one worker."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Workers share the tests by file, and all that read the book as if they were in one file.

    xdist's own way, the mark xdist_group, has no effect in xdist 3.8 with pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0]).stem
            if file in OF_THE_BOOK:
                # one that is there already can be read by all
                return nodeid if "BOOK" in os.environ else "book"
            return file

    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(items):
    """Begin with what takes longest, and mark as slow what is marked `book`, what reads the whole book, and
    what `slow.txt` lists."""
    listed = listed_as_slow()
    for item in items:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        if file in listed or f"{file}::{getattr(item, 'originalname', item.name)}" in listed:
            item.add_marker(pytest.mark.slow)
        if item.path.stem in OF_THE_BOOK or item.get_closest_marker("book"):
            item.add_marker(pytest.mark.slow)
        if "book" in item.fixturenames and item.path.stem not in OF_THE_BOOK:
            raise pytest.UsageError(
                f"{item.nodeid} reads the book: its file must be one of {', '.join(OF_THE_BOOK)}"
            )
    items.sort(key=lambda item: (item.path.stem not in OF_THE_BOOK, not item.get_closest_marker("book")))


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, for the tests of one file."""
    from playwright.sync_api import sync_playwright

    from helpers.rendered import CHROMIUM, FLAGS

    if CHROMIUM is None:
        missing = pytest.fail if "BOOK" in os.environ else pytest.skip
        missing("no chromium on the path: install it to test pages and figures in a browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def book(tmp_path_factory) -> Path:
    """The folder of the rendered book: the one that BOOK names, else the whole book, built by the Makefile
    from what is recorded."""
    if "BOOK" in os.environ:
        given = ROOT / os.environ["BOOK"]
        assert (given / "index.html").is_file(), f"{given} is no rendered book: run make book"
        return given.resolve()
    build = tmp_path_factory.mktemp("book") / "_build"
    command = ["make", "book", "PRESET=tiny", f"BUILD={build}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=offline())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return build / "html"


@pytest.fixture(scope="session")
def loaded():
    """The embedded pipeline, loaded once; tests take `pipe`, which checks that nothing was left on it."""
    return tiny.load_pipeline()


@pytest.fixture
def pipe(loaded):
    yield loaded
    assert not any(hooks_of(module, Hook) for module in loaded.unet.modules()), "a patch was left on"


@pytest.fixture
def generate(pipe):
    """``generate(names, steps=..., seed=...)`` -> images ``[B, H, W, 3]``; each image has noise of its
    own."""

    def run(names, steps=4, seed=0, guidance_scale=tiny.GUIDANCE_SCALE, **arguments):
        names = [names] if isinstance(names, str) else list(names)
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(names))]
        prompts = [tiny.prompt(name) for name in names]
        return pipe(
            prompts,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=generators,
            output_type="np",
            **arguments,
        ).images

    return run
