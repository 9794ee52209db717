"""One chapter from end to end: papermill runs it, Jupyter Book renders it, and a browser opens its page.

All chapters are tested by ``test_book.py`` and ``test_book_pages.py``, which take longer.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from helpers import rendered
from helpers.paths import ROOT
from helpers.processes import offline, papermill
from slides import glued

CHAPTER = "02_similarity_per_step"


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> Path:
    """The chapter as `make book` runs it, in the folder of a book's sources."""
    notebook = tmp_path_factory.mktemp("book") / "notebooks" / f"{CHAPTER}.ipynb"
    notebook.parent.mkdir()
    done = papermill(CHAPTER, notebook, preset="tiny")
    assert done.returncode == 0, done.stderr[-3000:]
    return notebook


@pytest.fixture(scope="module")
def page(executed) -> Path:
    """The page of the chapter, in a book of one page."""
    source = executed.parent.parent
    shutil.copy(ROOT / "_config.yml", source)
    shutil.copytree(ROOT / "book", source / "book", ignore=shutil.ignore_patterns("*.md"))
    shutil.copytree(ROOT / "book" / "_static", source / "_static")
    (source / "_toc.yml").write_text(f"format: jb-book\nroot: notebooks/{CHAPTER}\n")
    command = [
        Path(sys.executable).with_name("jupyter-book"),
        "build",
        source,
        "--path-output",
        source / "out",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=offline())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return source / "out" / "_build" / "html" / "notebooks" / f"{CHAPTER}.html"


def test_every_cell_ran_and_nothing_was_computed_anew(executed):
    notebook = nbformat.read(executed, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert not list((executed.parent / "output").rglob("*.parquet"))


def test_the_page_shows_the_figures_and_the_numbers(executed, page):
    soup = rendered.parsed(page)
    figures = soup.select("figure")
    assert len(figures) >= 4
    assert all(figure.select_one("figcaption").get_text(strip=True) for figure in figures)
    given = {" ".join(words.split()) for words in glued(nbformat.read(executed, 4)).values()}
    shown = [" ".join(tag.get_text().split()) for tag in soup.select(".pasted-text")]
    assert len(shown) >= 5
    assert set(shown) <= given
    assert rendered.without_alt(page.parent.parent) == []


@pytest.mark.parametrize("size", ["phone", "laptop"])
def test_a_browser_finds_nothing_wrong_with_the_page(page, browser, size):
    with rendered.context(browser, size) as opened:
        assert rendered.page_faults(opened, page, "light") == []
