"""Rules that hold for the repository as a whole."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from catome.study.run.parameters import Setting
from helpers.notebooks import PARAMETERS
from helpers.paths import NOTEBOOKS, ROOT
from helpers.slow import listed_as_slow

LIBRARY = [
    path for path in sorted((ROOT / "catome").rglob("*.py")) if not {"study", "tiny"} & set(path.parts)
]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs_and_have_parameters(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    assert tagged == code[:1]
    assert ".of(globals())" in "".join(code[1]["source"])
    declared = {}
    exec("".join(code[0]["source"]), declared)
    del declared["__builtins__"]
    kind = PARAMETERS[notebook.stem]
    assert vars(kind.of(declared)) == vars(kind()), "the defaults of the class are those of the cell"
    # prose is Markdown, and work is in the package
    for source in ("".join(cell["source"]) for cell in code[1:]):
        assert len(source.splitlines()) <= 15, source
        assert "Markdown(" not in source
    for cell in code:  # a figure has a caption and a text for those who do not see it
        if "plt.show()" in "".join(cell["source"]):
            assert len(cell["metadata"]["mystnb"]["image"]["alt"]) > 20
            assert len(cell["metadata"]["mystnb"]["figure"]["caption"]) > 20


@pytest.mark.parametrize("preset", sorted((ROOT / "data/presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_set_every_common_parameter(preset):
    assert set(yaml.safe_load(preset.read_text())) == set(Setting.names_of_parameters())


def test_a_preset_may_be_for_some_notebooks_only(tmp_path):
    """That of a transformer is: `make notebooks` runs those, and there is no book of them."""

    def asked(target: str) -> subprocess.CompletedProcess:
        words = ["make", "-n", target, "PRESET=pixart", f"BUILD={tmp_path}"]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)

    named = (ROOT / "data/presets/pixart/notebooks.txt").read_text().split()
    commands = asked("notebooks").stdout
    assert set(re.findall(r"papermill notebooks/(\S+)", commands)) == set(named)
    own = {path.stem for path in (ROOT / "data/presets/pixart").glob("*.yaml")}
    assert own < {Path(name).stem for name in named}
    assert all((ROOT / "notebooks" / name).is_file() for name in named)
    refused = asked("book")
    assert refused.returncode != 0
    assert "make notebooks PRESET=pixart" in refused.stderr


def test_the_library_imports_neither_models_nor_studies():
    code = (
        "import sys, catome; print([m for m in sys.modules if m.startswith(('catome.tiny', 'catome.study', "
        "'matplotlib', 'pandas'))])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
    for path in LIBRARY:
        if path.name == "bench.py":  # the command of a study
            continue
        imported = re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.M)
        assert set(imported) - {"catome", "torch", "diffusers", "triton"} <= sys.stdlib_module_names, path


def test_imports_point_down():
    """The contracts of pyproject.toml: rooms import those below them, and tensors know no model."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_nothing_is_unpickled():
    for path in [*(ROOT / "catome").rglob("*.py"), *NOTEBOOKS]:
        assert not re.search(
            r"torch\.load\(|pickle\.load|np\.load\([^)]*allow_pickle=True", path.read_text()
        ), path
    weights = [p for p in (ROOT / "data").rglob("*") if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}]
    assert weights == []


def test_versions_are_pinned():
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[\w.\-]+==\S+", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    wanted = re.findall(r'^\s*"([\w\-]+)"?', (ROOT / "pyproject.toml").read_text(), re.M)
    assert {"torch", "torchvision", "diffusers", "jupyter-book", "papermill", "torch-fidelity"} <= pinned
    assert wanted


def test_style_is_clean():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, str(ROOT)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


def test_tests_that_are_listed_as_slow_are_there():
    for name in listed_as_slow():
        file, _, function = name.partition("::")
        text = (ROOT / "tests" / file).read_text()
        assert not function or f"def {function}(" in text, name


def test_docstrings_say_what_a_thing_is_or_does():
    """A docstring, or a text under a constant, begins with a verb or a noun, and not with a question word."""
    question = re.compile(r"\s*(What|Who|Whom|Whose|Whether|How|Where|Which|Why|When)\b")
    found = []
    for path in sorted(
        path for folder in ("catome", "book", "tests") for path in (ROOT / folder).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            text = (
                node.value.value
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
                else None
            )
            if isinstance(text, str) and question.match(text):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {text.strip().splitlines()[0]}")
    assert not found, "\n".join(found)


def test_no_test_file_imports_another():
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        found = re.findall(r"^ *(?:from|import) (?:[\w.]+\.)?test_\w+", path.read_text(), re.MULTILINE)
        assert not found, f"{path.relative_to(ROOT)}: what is shared goes into tests/helpers"
