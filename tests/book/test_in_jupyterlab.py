"""The notebooks in JupyterLab: what the book hides is folded there, and what it renders is rendered there,
too."""

import copy
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from playwright.sync_api import sync_playwright

import slides
from helpers import rendered
from helpers.paths import ROOT

FOLDER = ROOT / "book/jupyterlab"
NOTEBOOKS = sorted(
    path for path in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
)
of_every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
FOLD = runpy.run_path(str(FOLDER / "fold.py"))
INSTALL = runpy.run_path(str(FOLDER / "install.py"))
# how jupyterlab-myst shows what it cannot find
BROKEN = "[title='Citation Not Found'], .text-yellow-600, .text-red-700, .katex-error"
# of JupyterLab: ask nothing, and render a notebook to its end without waiting for it to be scrolled there
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}


def markdown(source, *tags):
    return nbformat.v4.new_markdown_cell(source, metadata={"tags": list(tags)} if tags else {})


def code(source, *tags):
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)} if tags else {})


# what is folded


@of_every_notebook
def test_what_the_book_leaves_out_is_folded_in_jupyterlab(notebook):
    text = notebook.read_text()
    folded = FOLD["as_stored"](FOLD["fold"](json.loads(text)))
    assert folded == text, f"run python book/jupyterlab/fold.py, which folds {notebook.name}"
    cells = json.loads(text)["cells"]
    for cell in cells:
        hidden = cell["metadata"].get("jupyter", {}).get("source_hidden", False)
        tags = set(cell["metadata"].get("tags", []))
        assert hidden == (
            bool(tags & {"slide", "remove-cell", "remove-input", "hide-input"}) and "parameters" not in tags
        )
    nbformat.validate(nbformat.reads(text, 4))


def test_folding_changes_nothing_else_and_only_once():
    cells = [
        markdown("# Title"),
        markdown("### A slide", "slide", "remove-cell"),
        code("images = 3", "parameters", "hide-input"),
        code("draw()", "remove-input"),
        code("open()"),
        code("hand_over()", "remove-cell", "slide-skip"),
        code("setting()", "hide-cell"),
    ]
    cells[4].metadata["jupyter"] = {"source_hidden": True, "outputs_hidden": False}
    before = json.loads(nbformat.writes(nbformat.v4.new_notebook(cells=cells)))
    after = FOLD["fold"](copy.deepcopy(before))
    about = [cell["metadata"].pop("jupyter", {}) for cell in after["cells"]]
    assert [given.get("source_hidden", False) for given in about] == [
        False,
        True,
        False,
        True,
        False,
        True,
        False,
    ]
    assert about[4] == {"outputs_hidden": False}
    del before["cells"][4]["metadata"]["jupyter"]
    assert after == before
    once = FOLD["fold"](copy.deepcopy(before))
    assert FOLD["fold"](copy.deepcopy(once)) == once


@of_every_notebook
def test_slides_and_papermill_do_not_notice(notebook):
    read = nbformat.read(notebook, 4)
    plain = copy.deepcopy(read)
    for cell in plain.cells:
        cell.metadata.pop("jupyter", None)
    assert slides.slides_of(read, notebook.stem, {}) == slides.slides_of(plain, notebook.stem, {})
    if any("parameters" in cell.metadata.get("tags", []) for cell in read.cells):
        given = parameterize_notebook(load_notebook_node(str(notebook)), {"seed": 3}).cells
        injected = next(cell for cell in given if "injected-parameters" in cell.metadata.tags)
        assert "seed = 3" in injected.source
        assert "jupyter" not in injected.metadata


# what a reader sees


def test_setup_installs_what_jupyterlab_needs(tmp_path):
    assert (Path(sys.prefix) / "share/jupyter/labextensions/jupyterlab-myst/package.json").is_file()
    made = subprocess.run(
        ["make", "-n", "-W", "book/references.bib", "setup"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert ".venv/bin/python book/jupyterlab/install.py" in made
    for _ in range(2):
        folder = INSTALL["install"](tmp_path)
    about = json.loads((folder / "package.json").read_text())
    assert about["name"] == folder.name
    assert (folder / about["jupyterlab"]["_build"]["load"]).read_text() == (
        FOLDER / "extension.js"
    ).read_text()
    assert (folder / "static/references.bib").read_text() == (ROOT / "book/references.bib").read_text()


TOY = [
    markdown(
        "# A toy\n\nSo {cite:p}`bolya2023tome,rombach2022ldm`, {cite:t}`ma2024deepcache` and "
        "{cite:p}`nobody1900`."
    ),
    markdown("### A slide\n\n$$ 1 $$", "slide", "remove-cell"),
    markdown(
        "It is {glue:text}`toy-share` of {term}`token`; see {eq}`sum`, {numref}`drawn`, "
        "{func}`catome.summary`, [there](elsewhere)."
    ),
    markdown(
        "$$ a + b $$ (sum)\n\n$$ a + c $$\n\n```{exercise}\n:label: ex-toy\nAsked.\n```\n\n```{solution} "
        "ex-toy\n:class: dropdown\nSolved.\n```"
    ),
    code(
        "from myst_nb import glue\n\nclass Plain(str):\n    __repr__ = str.__str__\n\nglue('toy-share', "
        "Plain('40 %'), display=False)",
        "remove-cell",
        "slide-skip",
    ),
]

KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab over a copy of the notebooks, and of one notebook more,
    ``notebooks/toy.ipynb``."""
    if rendered.CHROMIUM is None:
        pytest.skip("no chromium on the path: install it to test the notebooks in JupyterLab")
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "root/notebooks", ignore=shutil.ignore_patterns(".*"))
    toy = FOLD["fold"](json.loads(nbformat.writes(nbformat.v4.new_notebook(metadata=KERNEL, cells=TOY))))
    (folder / "root/notebooks/toy.ipynb").write_text(json.dumps(toy))
    for name, values in SETTINGS.items():
        file = folder / f"settings/{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    INSTALL["install"](folder / "data/labextensions")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "IPYTHONDIR": "ipython"}
    own |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    given = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"]
    given += ["--IdentityProvider.token=", "--expose-app-in-browser"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyter", "lab", *given],
            cwd=folder / "root",
            env={**os.environ, **{name: str(folder / value) for name, value in own.items()}},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        address = f"http://127.0.0.1:{port}/lab"
        try:
            wait_for(address, server, folder / "log")
            yield address
        finally:
            server.terminate()
            server.wait(30)


def wait_for(address: str, server, log: Path) -> None:
    for _ in range(120):
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    raise AssertionError(f"JupyterLab does not answer: {log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def browser(lab):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=rendered.CHROMIUM, args=rendered.FLAGS)
        yield browser
        browser.close()


RENDERED = """(kernel) => {
  const panel = jupyterapp.shell.currentWidget;
  const cells = panel?.content?.widgets?.filter((cell) => cell.model.type === "markdown") ?? [];
  const done = (cell) => !cell.node.checkVisibility() || cell.node.querySelector(".myst :not(:empty)");
  return cells.length && cells.every(done) && (!kernel || panel.sessionContext.session?.kernel?.status === "idle");
}"""


@pytest.fixture(scope="module")
def page(lab, browser):
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    page.goto(lab)
    page.wait_for_function("window.jupyterapp?.restored.then(() => true)", timeout=60_000)
    return page


@pytest.fixture
def opened(page):
    """``opened("03_threshold_sweep.ipynb")`` -> the part of JupyterLab with the notebook, all of its Markdown
    rendered."""

    def show(name, kernel=False):
        given = {"path": f"notebooks/{name}", **({} if kernel else {"kernel": None})}
        page.evaluate(
            "(given) => jupyterapp.commands.execute('docmanager:open', given).then(() => null)", given
        )
        page.wait_for_function(RENDERED, arg=kernel, timeout=60_000)
        page.wait_for_timeout(500)  # what is rendered once more
        return page.locator(".jp-NotebookPanel")

    yield show
    page.evaluate("jupyterapp.shell.currentWidget.dispose()")  # and nobody asks whether to save it


@pytest.mark.slow
@of_every_notebook
def test_a_notebook_reads_like_its_page(opened, notebook):
    panel = opened(notebook.relative_to(ROOT / "notebooks").as_posix())
    cells = json.loads(notebook.read_text())["cells"]
    said = "\n".join(panel.locator(".jp-MarkdownCell .myst").all_inner_texts())
    assert re.findall(r"\{[\w:]+\}`|```|\$\$|^\([\w-]{2,}\)=$", said, re.M) == []
    assert panel.locator(f":is({BROKEN})").all_inner_texts() == []
    assert panel.locator(".jp-MarkdownCell details[open]").count() == 0
    prose = [
        cell
        for cell in cells
        if cell["cell_type"] == "markdown" and "slide" not in cell["metadata"].get("tags", [])
    ]
    assert panel.locator(".jp-MarkdownCell:visible").count() == len(prose)
    open_code = [
        cell for cell in cells if cell["cell_type"] == "code" and not cell["metadata"].get("jupyter")
    ]
    assert panel.locator(".jp-CodeCell .jp-InputArea-editor:visible").count() == len(open_code)
    sources = "".join("".join(cell["source"]) for cell in prose)
    for keys in re.findall(r"\{cite:p\}`([^`]+)`", sources):
        names = slides.citation(keys, bracketed=True)[1:-1]
        assert f"[{names}]" in said, names
    for keys in re.findall(r"\{cite:t\}`([^`]+)`", sources):
        assert slides.citation(keys, bracketed=False).replace("(", "[").replace(")", "]") in said


@pytest.mark.slow
def test_a_solution_from_a_file_is_folded_and_is_the_one_function(opened):
    panel = opened("exercises/1_merging.ipynb")
    first = panel.locator(".jp-MarkdownCell details").first
    assert not first.locator("pre").is_visible()
    first.locator("summary").click()
    shown = first.locator("pre").inner_text()
    assert shown.startswith("def split_grid(grid):")
    assert "return tokens[~is_dst.flatten()]" in shown
    assert "def best_partners" not in shown


@pytest.mark.slow
def test_words_slides_and_numbers_of_a_toy(page, opened):
    panel = opened("toy.ipynb", kernel=True)
    prose = panel.locator(".jp-MarkdownCell:visible .myst")
    assert prose.nth(0).inner_text().split("\n")[-1] == (
        "So [Bolya et al., 2023; Rombach et al., 2022], Ma et al. [2024] and [nobody1900]."
    )
    words = "It is {} of token; see (1), the figure, catome.summary, there."
    assert prose.nth(1).inner_text() == words.format("…")
    assert prose.nth(2).inner_text().count("(1)") == 1  # of two equations, the one that has a label
    assert prose.nth(2).locator("details:not([open])").inner_text().split() == [
        "Solution",
        "to",
        "Exercise",
        "1",
    ]
    assert prose.count() == 3
    page.evaluate("jupyterapp.commands.execute('catome-book:slides')")
    assert panel.locator(".jp-MarkdownCell:visible").count() == 4
    page.evaluate("jupyterapp.commands.execute('catome-book:slides')")
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(
        """(said) => [...document.querySelectorAll(".jp-MarkdownCell .myst")].some((e) => e.innerText === said)""",
        arg=words.format("40 %"),
        timeout=60_000,
    )
    assert panel.locator(".jp-MarkdownCell:visible").count() == 3
