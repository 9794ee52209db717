"""GitHub's workflows, as three linters see them; what they restore; how the book is published, with them and
without."""

import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical
from sphinx.errors import ConfigError

from helpers.paths import ROOT

BIN = Path(sys.executable).parent
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PLACE = ("BASE_URL", "BINDERHUB_URL", "JUPYTERHUB_URL")
HERE = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("GIT_", "GITHUB_")) and name not in PLACE
}


def lint(*command):
    done = subprocess.run(
        [str(BIN / command[0]), *map(str, command[1:])], capture_output=True, text=True, cwd=ROOT
    )
    return done.returncode, done.stdout + done.stderr


LINTERS = {
    "schema": ("check-jsonschema", "--builtin-schema", "vendor.github-workflows"),
    # the same everywhere, whatever else is installed
    "actionlint": ("actionlint", "-shellcheck=", "-pyflakes="),
    "zizmor": ("zizmor", "--offline", "--persona=regular", "--no-progress", "--quiet"),
}


@pytest.mark.parametrize("linter", LINTERS)
def test_the_workflows_are_clean(linter):
    assert {path.stem for path in WORKFLOWS} == {"audit", "book", "test"}
    code, said = lint(*LINTERS[linter], *WORKFLOWS)
    assert code == 0, said


@pytest.mark.parametrize(
    ("linter", "before", "after"),
    [
        ("schema", "runs-on:", "runs-at:"),
        ("actionlint", "steps.executed.outputs", "steps.exekuted.outputs"),
        ("zizmor", "de0fac2e4500dabe0009e67214ff5f5447ce83dd", "v6"),
    ],
)
def test_the_linters_see_a_mistake(linter, before, after, tmp_path):
    text = (ROOT / ".github/workflows/book.yml").read_text()
    broken = tmp_path / ".github/workflows/book.yml"
    broken.parent.mkdir(parents=True)
    broken.write_text(text.replace(before, after))
    assert broken.read_text() != text
    code, said = lint(*LINTERS[linter], broken)
    assert code != 0, said


def test_dependabot_is_told_in_its_own_words():
    assert (
        lint("check-jsonschema", "--builtin-schema", "vendor.dependabot", ROOT / ".github/dependabot.yml")[0]
        == 0
    )
    assert lint("zizmor", "--offline", "--quiet", ROOT / ".github/dependabot.yml")[0] == 0


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_and_permissions_are_few(workflow):
    parsed = yaml.safe_load(workflow.read_text())
    assert parsed["permissions"] == {}
    assert "concurrency" in parsed
    for job in parsed["jobs"].values():
        assert job["timeout-minutes"] <= 90
        assert job["permissions"].get("contents", "read") == "read"
    uses = re.findall(r"uses: (.*)", workflow.read_text())
    assert uses
    assert all(re.fullmatch(r"actions/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use) for use in uses)


def steps_of_book():
    return yaml.safe_load((ROOT / ".github/workflows/book.yml").read_text())["jobs"]["build"]["steps"]


def prerequisites(target):
    """The files that make looks at to decide whether ``target`` must be made, as it sees the Makefile
    itself."""
    database = subprocess.run(
        ["make", "-npq", "nothing"], cwd=ROOT, capture_output=True, text=True, env=HERE
    ).stdout
    pattern = next(
        line for line in database.splitlines() if line.startswith(target.replace(Path(target).stem, "%"))
    )
    stem = Path(target).stem
    return [name.replace("%", stem) for name in pattern.split(": ", 1)[1].split("|")[0].split()]


def test_the_key_of_the_restored_notebooks_knows_all_that_they_depend_on():
    restore = next(step for step in steps_of_book() if step.get("id") == "executed")
    assert "restore-keys" not in restore["with"]
    patterns = re.findall(r"'([^']+)'", restore["with"]["key"])
    known = {
        path.relative_to(ROOT).as_posix()
        for pattern in patterns
        for path in ROOT.glob(pattern)
        if path.is_file()
    }
    known |= {
        path.relative_to(ROOT).as_posix()
        for pattern in patterns
        if pattern.endswith("/**")
        for path in ROOT.glob(pattern + "/*")
        if path.is_file()
    }
    needed = prerequisites("_build/source/notebooks/03_threshold_sweep.ipynb")
    assert len(needed) > 50
    assert {
        "notebooks/03_threshold_sweep.ipynb",
        "catome/study/measure/comparison.py",
        "data/presets/tiny.yaml",
    } <= set(needed)
    assert set(needed) <= known
    assert {"Makefile", "constraints.txt", "pyproject.toml"} <= known
    assert re.search(r"\$\{\{\s+hashFiles\(", restore["with"]["key"])
    assert "python-version" in restore["with"]["key"]


def test_restored_notebooks_are_not_run_again(tmp_path):
    """With the workflow's own command: after a checkout every source is newer than what was restored."""
    build = tmp_path / "_build"
    executed = [build / "source/notebooks" / path.name for path in (ROOT / "notebooks").glob("*.ipynb")]
    for path in executed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        os.utime(path, (0, 0))

    def to_run():
        done = subprocess.run(
            ["make", "-n", "notebooks", f"BUILD={build}"], cwd=ROOT, capture_output=True, text=True, env=HERE
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.count("papermill notebooks/")

    assert to_run() == len(executed)
    touch = next(
        step for step in steps_of_book() if step.get("if") == "steps.executed.outputs.cache-hit == 'true'"
    )
    subprocess.run(touch["run"], shell=True, check=True, cwd=tmp_path)
    assert to_run() == 0


def test_the_workflows_call_targets_that_exist():
    for workflow in WORKFLOWS:
        for job in yaml.safe_load(workflow.read_text())["jobs"].values():
            for step in job["steps"]:
                words = step.get("run", "").split()
                if words[:1] == ["make"]:
                    assert (
                        subprocess.run(
                            ["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, env=HERE
                        ).returncode
                        == 0
                    )


# what only the place of publication knows


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """``pages(**environment)``: a book of two pages, built with this book's configuration: {page: its
    HTML}."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(ROOT / "book/_ext", folder / "book/_ext")
    shutil.copytree(ROOT / "book/_static", folder / "_static")
    for name in ("_config.yml", "book/logo.svg", "book/references.bib"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "_toc.yml").write_text(
        "format: jb-book\nroot: book/intro\nchapters:\n  - file: notebooks/one\n"
    )
    (folder / "book/intro.md").write_text("---\ndescription: A page.\n---\n\n# A page\n")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cell = {"cell_type": "markdown", "id": "one", "metadata": {}, "source": "# A notebook"}
    (folder / "notebooks").mkdir()
    notebook = {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (folder / "notebooks/one.ipynb").write_text(json.dumps(notebook))

    def build(**environment):
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        command = [
            str(BIN / "jupyter-book"),
            "build",
            str(folder),
            "--path-output",
            str(out),
            "--warningiserror",
            "--quiet",
        ]
        done = subprocess.run(command, capture_output=True, text=True, env={**HERE, **environment})
        html = out / "_build/html"
        found = {name: (html / f"{name}.html") for name in ("book/intro", "notebooks/one")}
        return done, {name: path.read_text() for name, path in found.items() if path.exists()}

    return build


def test_the_book_knows_no_address_unless_it_is_given_one(pages):
    done, found = pages()
    assert done.returncode == 0, done.stderr[-2000:]
    for html in found.values():
        assert 'rel="canonical"' not in html
        assert not re.search(r'href="https?://', html)


def test_the_book_takes_its_addresses_from_the_environment(pages):
    done, found = pages(
        BASE_URL="https://book.example/here",
        GITHUB_REPOSITORY="someone/a.book",
        GITHUB_REF_NAME="12/merge",
        GITHUB_BASE_REF="main",
        JUPYTERHUB_URL="https://hub.example",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    repository = "https://github.com/someone/a.book"
    for name, suffix in (("book/intro", "md"), ("notebooks/one", "ipynb")):
        assert f'<link rel="canonical" href="https://book.example/here/{name}.html"' in found[name]
        assert f'href="{repository}/blob/main/{name}.{suffix}?plain=1"' in found[name]
        assert f'href="{repository}/issues/new?' in found[name]
    assert "https://hub.example/hub/user-redirect/git-pull?" in found["notebooks/one"]
    assert "hub.example" not in found["book/intro"]  # nothing to run there


@pytest.mark.parametrize(
    ("name", "value"),
    [("BASE_URL", "book.example"), ("GITHUB_REPOSITORY", "catome"), ("JUPYTERHUB_URL", "hub")],
)
def test_an_address_that_is_none_is_an_error(name, value, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book/_ext")
    from repository import fill

    for variable, found in {"GITHUB_REPOSITORY": "someone/book", name: value}.items():
        monkeypatch.setenv(variable, found)
    with pytest.raises(ConfigError, match=f"{name}={value!r} in the environment must be like"):
        fill(None, SimpleNamespace(html_theme_options={}))


# publishing without Actions


class Checkout:
    """A repository with this one's Makefile, a remote beside it, and a book that looks built."""

    def __init__(self, folder: Path):
        self.folder, self.remote, self.html = (
            folder / "checkout",
            folder / "remote.git",
            folder / "checkout/_build/html",
        )
        (self.folder / ".ci").mkdir(parents=True)
        for name in ("Makefile", ".ci/publish", ".gitignore"):
            shutil.copy(ROOT / name, self.folder / name)
        (self.folder / "book.md").write_text("text\n")
        subprocess.run(["git", "init", "--quiet", "--bare", str(self.remote)], check=True, env=HERE)
        self.git("init", "--quiet", "--initial-branch=main")
        self.git("config", "user.name", "Somebody")
        self.git("config", "user.email", "somebody@example.org")
        self.git("remote", "add", "origin", str(self.remote))
        self.git("add", "--all")
        before = {"GIT_COMMITTER_DATE": "2026-01-02T03:04:05+0000"}
        subprocess.run(
            ["git", "commit", "--quiet", "--message", "A book"],
            cwd=self.folder,
            check=True,
            env=HERE | before,
        )

    def git(self, *arguments, at=None):
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=at or self.folder, capture_output=True, text=True, check=True, env=HERE
        ).stdout.strip()

    def build(self, **files):
        shutil.rmtree(self.html, ignore_errors=True)
        for name, text in {"index.html": "<p>\n", **files}.items():
            path = self.html / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())

    def publish(self, *arguments):
        """``make publish`` of the book as it is: what builds it is left out."""
        command = ["make", "--old-file=book", "publish", *arguments]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, env=HERE)

    def state(self):
        index = self.folder / ".git/index"
        return (
            self.git("status", "--porcelain"),
            self.git("rev-parse", "HEAD"),
            index.read_bytes(),
            self.git("branch"),
        )

    def published(self, to: Path) -> Path:
        self.git("clone", "--quiet", "--branch", "gh-pages", str(self.remote), str(to), at=to.parent)
        return to


@pytest.fixture
def checkout(tmp_path):
    made = Checkout(tmp_path)
    made.build(
        **{
            "notebooks/one.html": "one\r\n",
            "_static/x.css": "x",
            "_build/ignored.html": "y",
            ".buildinfo": "z",
        }
    )
    return made


def files_of(folder: Path) -> set[str]:
    return {
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file() and ".git" not in p.relative_to(folder).parts
    }


def test_publish_pushes_the_folder_and_nothing_else(checkout, tmp_path):
    checkout.git("config", "core.autocrlf", "true")
    (checkout.folder / ".git/info/exclude").write_text("*.css\n")
    before = checkout.state()
    done = checkout.publish()
    assert done.returncode == 0, done.stderr
    assert checkout.state() == before
    site = checkout.published(tmp_path / "site")
    expected = files_of(checkout.html)
    assert files_of(site) == expected | {".nojekyll"}
    checkout.git("-c", "core.autocrlf=false", "checkout", "--quiet", "--force", "gh-pages", at=site)
    for name in expected:
        blob = subprocess.run(
            ["git", "show", f"gh-pages:{name}"], cwd=site, capture_output=True, check=True, env=HERE
        ).stdout
        assert blob == (checkout.html / name).read_bytes(), name
    assert checkout.git("rev-list", "--count", "gh-pages", at=site) == "1"
    head = checkout.git("rev-parse", "HEAD")
    assert checkout.git("log", "-1", "--format=%s", "gh-pages", at=site) == f"The book of {head}"
    dates = checkout.git("log", "-1", "--format=%aI %cI", "gh-pages", at=site).split()
    # so that the same book is the same commit on any day
    assert dates == [checkout.git("log", "-1", "--format=%cI")] * 2


def test_publishing_again_replaces(checkout, tmp_path):
    assert checkout.publish().returncode == 0
    first = checkout.git("rev-parse", "gh-pages", at=checkout.remote)
    again = checkout.publish()
    assert "has this book already" in again.stdout
    assert checkout.git("rev-parse", "gh-pages", at=checkout.remote) == first
    checkout.build(**{"two.html": "two"})
    assert checkout.publish().returncode == 0
    site = checkout.published(tmp_path / "site")
    assert files_of(site) == {"index.html", "two.html", ".nojekyll"}
    assert filecmp.cmp(site / "two.html", checkout.html / "two.html", shallow=False)
    assert checkout.git("rev-list", "--count", "gh-pages", at=site) == "1"


def test_publish_takes_the_remote_that_it_is_told(checkout, tmp_path):
    other = tmp_path / "other.git"
    checkout.git("init", "--quiet", "--bare", str(other))
    checkout.git("remote", "add", "pages", str(other))
    assert checkout.publish("REMOTE=pages").returncode == 0
    assert checkout.git("branch", at=other).split() == ["gh-pages"]
    assert checkout.git("branch", at=checkout.remote) == ""


def change_a_file(checkout):
    (checkout.folder / "book.md").write_text("other text\n")


def add_a_file(checkout):
    (checkout.folder / "new.md").write_text("text\n")


def stage_a_file(checkout):
    add_a_file(checkout)
    checkout.git("add", "new.md")


def lose_the_remote(checkout):
    checkout.git("remote", "remove", "origin")


def lose_the_book(checkout):
    shutil.rmtree(checkout.html)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (change_a_file, "differs from the last commit"),
        (add_a_file, "?? new.md"),
        (stage_a_file, "A  new.md"),
        (lose_the_remote, "no remote 'origin'"),
        (lose_the_book, "make book"),
    ],
)
def test_publish_refuses(checkout, spoil, says):
    spoil(checkout)
    before = checkout.git("status", "--porcelain")
    done = checkout.publish()
    assert done.returncode != 0
    assert says in done.stderr
    assert checkout.git("status", "--porcelain") == before
    assert checkout.git("branch", at=checkout.remote) == ""


def test_publish_asks_before_it_builds():
    """Things that must be refused are refused at once, not after minutes."""
    said = subprocess.run(
        ["make", "-n", "publish"], cwd=ROOT, capture_output=True, text=True, env=HERE
    ).stdout
    assert (
        said.index(".ci/publish origin\n")
        < said.index("jupyter-book build")
        < said.index(".ci/publish origin _build/html")
    )


def test_publish_does_not_push_over_what_somebody_else_has_just_pushed(checkout, tmp_path):
    """The lease: what the remote has is read once, and must still be there when the push arrives."""
    assert checkout.publish().returncode == 0
    first = checkout.git("rev-parse", "gh-pages", at=checkout.remote)
    wrapper = tmp_path / "bin/git"
    wrapper.parent.mkdir()
    real = shutil.which("git")
    theirs = checkout.git("commit-tree", "HEAD^{tree}", "-m", "theirs")
    checkout.git("push", "--quiet", "origin", f"{theirs}:refs/heads/theirs")
    wrapper.write_text(
        f'#!/bin/sh\nif [ "$1" = push ]\n'
        f"then {real} -C {checkout.remote} update-ref refs/heads/gh-pages {theirs}; fi\n"
        f'exec {real} "$@"\n'
    )
    wrapper.chmod(0o755)
    checkout.build(**{"two.html": "two"})
    environment = {**HERE, "PATH": f"{wrapper.parent}{os.pathsep}{HERE['PATH']}"}
    command = ["make", "--old-file=book", "publish"]
    done = subprocess.run(command, cwd=checkout.folder, capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    assert checkout.git("rev-parse", "gh-pages", at=checkout.remote) == theirs != first


def test_conda_installs_what_make_does():
    """`environment.yml` names what pip cannot install, and leaves the rest to the same extra and the same
    pinned versions."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    by_pip = next(part["pip"] for part in environment if isinstance(part, dict))
    assert by_pip == ["-c constraints.txt", "-e .[dev]"]
    assert "-c constraints.txt -e .[dev]" in (ROOT / "Makefile").read_text()
    (python,) = (part.partition("=")[2] for part in environment if str(part).startswith("python="))
    assert project["requires-python"] == f">={python}"
    versions = {
        step["with"]["python-version"]
        for workflow in WORKFLOWS
        for job in yaml.safe_load(workflow.read_text())["jobs"].values()
        for step in job["steps"]
        if "setup-python" in step.get("uses", "")
    }
    assert versions == {python}


def test_every_tool_is_pinned_with_all_that_it_needs():
    """Whatever the extras of the project need, and need in turn, has one version."""
    pinned = {canonical(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().split()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    todo = [need for need in map(Requirement, wanted) if need.name != "catome"]
    seen = set()
    while todo:
        need = todo.pop()
        key = (canonical(need.name), frozenset(need.extras))
        if key in seen:
            continue
        seen.add(key)
        for further in map(Requirement, distribution(need.name).requires or []):
            extras = need.extras or {""}
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(further)
    missing = {name for name, _ in seen} - pinned - {"pip", "setuptools"}
    assert missing == set()
