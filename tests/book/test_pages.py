"""Tests of what the pages tell people to type: this repository understands every command, and the examples
run."""

import ast
import fnmatch
import functools
import importlib
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
import types
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from click import ClickException
from PIL import Image

import catome.study.__main__ as command
from catome import study, tiny
from catome.study import methods, paper
from catome.study.costs import estimate
from catome.study.measure import real_images as reference
from catome.study.measure.comparison import QUALITY
from catome.study.run.store import Store
from catome.study.studies import OF_CHAPTERS, STUDIES, find
from catome.study.studies.compose import HELD_OUT
from helpers.notebooks import PARAMETERS
from helpers.paths import ROOT
from helpers.processes import offline

BIN = Path(sys.executable).parent
PAGES = ("gpu", "rerun", "services", "extend", "long_runs")
TEXT = {page: (ROOT / f"book/{page}.md").read_text() for page in PAGES}
OFFLINE = {**offline(), "OMP_NUM_THREADS": "1"}
WRONG = (AssertionError, SystemExit, ClickException, ValueError, ImportError, AttributeError, TypeError)
PLAIN = {"cd", "cp", "echo", "git", "grep", "mkdir", "mv", "nvidia-smi", "sed", "ssh"}  # say what they mean


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT[page], re.M | re.S)


def commands(block: str) -> list[list[str]]:
    """The simple commands of a block, loops unrolled, comments and redirections left out."""
    block = re.sub(
        r"^for (\w+) in (.*); do\n(.*\n)done$",
        lambda loop: "".join(loop[3].replace(f"${loop[1]}", value) for value in loop[2].split()),
        re.sub(r"(^|\s)#.*", "", block.replace("\\\n", " "), flags=re.M),
        flags=re.M,
    )
    lexer = shlex.shlex(block, posix=True, punctuation_chars="|;&<>\n")
    lexer.whitespace, lexer.whitespace_split = " \t", True
    words = [[]]
    for word in lexer:
        if set(word) <= set("|;&\n"):
            words.append([])
        else:
            words[-1].append(word)
    for simple in words:
        while any(word.startswith(">") for word in simple):
            at = next(i for i, word in enumerate(simple) if word.startswith(">"))
            del simple[at : at + 2]
    return [simple for simple in words if simple]


TYPED = [(page, line) for page in PAGES for block in blocks(page, "sh") for line in commands(block)]


@functools.cache
def helps(*words: str) -> str:
    return subprocess.run([*words, "--help"], capture_output=True, text=True, cwd=ROOT, env=OFFLINE).stdout


def check_options(words: list[str], given: list[str]) -> None:
    known = helps(*words)
    assert known, words
    for option in (word for word in given if word.startswith("-") and word != "--help"):
        assert re.search(rf"(?<![\w-]){re.escape(option.split('=')[0])}(?![\w-])", known), (
            f"{' '.join(words)} has no {option}"
        )


def check_make(words: list[str], page: str) -> None:
    makefile = (ROOT / "Makefile").read_text() + (ROOT / "book/_ext/repository.py").read_text()
    given = []
    for word in words:
        name, equals, value = word.partition("=")
        assert not equals or name in makefile, f"nobody reads {name}"
        if name == "PRESET" and f"data/presets/{value}.yaml" in TEXT.get(page, ""):
            word = "PRESET=paper"  # the page has just told how to write that one
        given.append(word)
    done = subprocess.run(["make", "-n", *given], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check_parameters(kind: type[study.Setting], values: dict) -> None:
    """As the notebook and the command check them, but that nothing needs to be there yet."""
    kind.checked({**values, "device": "cpu", "output": "_build/output"})


def check_papermill(words: list[str]) -> None:
    from papermill.__main__ import papermill

    given = papermill.make_context("papermill", list(words)).params
    notebook = ROOT / given["notebook_path"]
    assert notebook.is_file(), notebook
    assert given["kernel"] == "python3"
    values = command.parameters(
        [str(ROOT / file) for file in given["parameters_file"]], dict(given["parameters"])
    )
    for text in given["parameters_yaml"]:
        values |= yaml.safe_load(text)
    check_parameters(PARAMETERS[notebook.stem], values)


def check_study(words: list[str]) -> None:
    if words == ["--help"]:
        return
    own, given = command.split(words)
    values = command.parameters([str(ROOT / file) for file in own.files], given)
    check_parameters(find(own.study).Parameters, values)


def check_pip(words: list[str], page: str) -> None:
    assert words[0] in ("install", "list")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for before, word in pairwise(words):
        if before == "-c":
            assert (ROOT / word).is_file() or f"> {word}" in TEXT[page]
        for extra in re.findall(r"^\.\[(.*)\]$", word):
            assert set(extra.split(",")) <= set(extras), extra
    check_options([sys.executable, "-m", "pip", words[0]], words[1:])


def check_code(source: str) -> None:
    """Whatever is imported is there, and takes the arguments that it is given."""
    tree, names = ast.parse(source), {}
    for node in (n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))):
        exec(compile(ast.Module([node], []), "page", "exec"), names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, (ast.Name, ast.Attribute)):
            eval(ast.unparse(node), names)
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Attribute | ast.Name):
            raise AssertionError(ast.unparse(node))
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) not in dir(__builtins__)
            and ast.unparse(node.func) != "print"
        ):
            called = eval(ast.unparse(node.func), names)
            inspect.signature(called).bind(
                *node.args, **{keyword.arg: keyword.value for keyword in node.keywords}
            )


def check_python(words: list[str], page: str) -> None:
    if words[0] == "-c":
        check_code(words[1])
        return
    assert words[0] == "-m"
    module, rest = words[1], words[2:]
    assert importlib.util.find_spec(module), module
    if module == "catome.study":
        check_study(rest)
    elif module == "papermill":
        check_papermill(rest)
    elif module == "pip":
        check_pip(rest, page)
    else:
        verbs = [word for word in rest[:1] if not word.startswith("-")]
        check_options([sys.executable, "-m", module, *verbs], rest)


def check(words: list[str], page: str = "") -> None:
    program, rest = words[0].removeprefix(".venv/bin/"), words[1:]
    if words[0].startswith(".venv/bin/"):
        assert (BIN / program).exists(), program
    if program == "make":
        check_make(rest, page)
    elif program == "papermill":
        check_papermill(rest)
    elif program == "python":
        check_python(rest, page)
    elif program in ("jupyter", "hf"):
        check_options([str(BIN / program), rest[0]], rest[1:])
        for word in rest[1:]:
            assert not word.startswith("notebooks/") or (ROOT / word).is_file(), word
    elif program == "srun":
        check(rest, page)
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        given = get_args_parser().parse_args(rest)
        assert given.module
        check_python(["-m", given.training_script, *given.training_script_args], page)
    elif program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        assert rest[0] == "launch"
        given = launch_command_parser().parse_args(rest[1:])
        assert given.module
        check_python(["-m", given.training_script, *given.training_script_args], page)
    else:
        assert program in PLAIN, f"{program} is no command that this test knows"
        for word in rest:
            assert (
                not re.match(r"(data|notebooks|catome)/", word)
                or (ROOT / word).exists()
                or f"{word}" in TEXT[page]
            )


@pytest.mark.parametrize("page", PAGES)
def test_the_shell_reads_every_block(page):
    assert blocks(page, "sh")
    for block in blocks(page, "sh"):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        # what a page shows without scrolling
        assert page == "long_runs" or max(map(len, block.splitlines())) <= 88


@pytest.mark.parametrize(
    ("page", "words"), TYPED, ids=[f"{page}-{' '.join(words)[:60]}" for page, words in TYPED]
)
def test_what_a_page_tells_to_type_is_understood(page, words):
    check(words, page)


@pytest.mark.parametrize(
    "line",
    [
        "make boook",
        "make book PRESET=papre",
        "make book PRSET=paper",
        ".venv/bin/papermil notebooks/06_headline.ipynb out.ipynb",
        ".venv/bin/papermill notebooks/06_headlines.ipynb out.ipynb -k python3",
        ".venv/bin/papermill notebooks/06_headline.ipynb out.ipynb -k python3 -f data/presets/papre.yaml",
        ".venv/bin/papermill notebooks/06_headline.ipynb out.ipynb -k python3 -p imges 3",
        ".venv/bin/papermill notebooks/06_headline.ipynb out.ipynb -k python3 -p ratio 0.9",
        ".venv/bin/papermill notebooks/06_headline.ipynb out.ipynb -k python3 --no-progress",
        ".venv/bin/python -m catome.study headlines",
        ".venv/bin/python -m catome.study headline --threshold 2",
        ".venv/bin/python -m catome.studies 06_headline",
        ".venv/bin/python -m catome.bench --devices cuda",
        ".venv/bin/python -c 'from catome.study import qualty'",
        ".venv/bin/python -c 'from catome.study import quality; quality.extractors()'",
        ".venv/bin/python -c 'from catome.study import quality; quality.extractor(embeded=False)'",
        "torchrun --standalone -m catome.study headline --imges 3",
        "accelerate launch --multi_gpus -m catome.study headline",
        ".venv/bin/hf download somebody/model --incude x",
        ".venv/bin/jupyter lab notebooks/06_headlines.ipynb",
        "python -m pip install -c constraints.txt -e .[studdy]",
        "conda install catome",
    ],
)
def test_a_command_that_is_wrong_is_seen(line):
    with pytest.raises(WRONG):
        check(shlex.split(line), "services")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere_and_search_engines_are_told(page):
    front = yaml.safe_load(TEXT[page].split("---")[1])
    assert 40 < len(front["description"]) < 160
    for target in re.findall(r"\]\(([^)]+)\)", TEXT[page]):
        if target.startswith("#"):
            assert f"({target[1:]})=" in TEXT[page]
        elif not target.startswith("https://papermill.readthedocs.io"):
            assert (ROOT / "book" / target).resolve().is_file(), target


# the page about GPUs


def test_the_numbers_of_the_gpu_page(capsys):
    text = re.sub(r"\s+", " ", TEXT["gpu"])
    images = {}
    for name, module in OF_CHAPTERS.items():
        files = [
            str(ROOT / "data/presets/paper.yaml"),
            str(ROOT / f"data/presets/paper/{module.NOTEBOOK}.yaml"),
        ]
        assert command.main([name, "--count", *(word for file in files for word in ("-f", file))]) == 0
        images[name] = int(re.search(r"(\d+) images in \d+ ways", capsys.readouterr().out)[1])
        assert f"| `{name}`, in `{module.NOTEBOOK}` | {images[name]:,} |" in text
    seconds = paper.METHODS["seconds"].iloc[0]
    assert (
        f"At the {seconds:.2f} s of the paper's V100S, Table IV would be "
        f"{images['headline'] * seconds / 3600:.0f} hours" in text
    )
    assert f"so {images['headline'] * 2048 * 2 / 1e6:.0f} MB for Table IV" in text
    numbers = estimate.WEIGHTS_BYTES / 2
    assert (
        f"the weights ({numbers / 1e6:.0f} million numbers) take {2 * numbers / 1e9:.1f} GB in float16"
        in text
    )
    assert f"the weights ({4 * numbers / 1e9:.1f} GB, since the files hold float32)" in text
    assert reference.PER_CLASS * 1000 == 5000
    assert "must print 5000" in text


def test_the_size_of_pixart_sigma():
    """Of its published configuration, counted without weights; the VAE's 84 million are those of Stable
    Diffusion."""
    from diffusers import PixArtTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    sizes = dict(vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
    with torch.device("meta"):
        text_encoder = T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu"))
        transformer = PixArtTransformer2DModel(
            sample_size=64, cross_attention_dim=1152, caption_channels=4096
        )
    numbers = 84e6 + sum(
        weight.numel() for model in (text_encoder, transformer) for weight in model.parameters()
    )
    said = f"about {numbers / 1e9:.1f} billion numbers, which take {2 * numbers / 1e9:.0f} GB in float16"
    assert said in re.sub(r"\s+", " ", TEXT["gpu"])


def test_the_files_that_are_downloaded_are_those_that_are_read(tmp_path):
    words = next(words for page, words in TYPED if page == "gpu" and words[0].endswith("hf"))
    patterns = [word for before, word in pairwise(words) if before == "--include"]

    def wanted(name):
        return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

    whole = ROOT / "data/tiny-sd"
    for file in whole.rglob("*"):
        name = file.relative_to(whole).as_posix()
        if file.is_file() and wanted(name):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(file.read_bytes())
    setting = study.Setting(
        **{**yaml.safe_load((ROOT / "data/presets/smoke.yaml").read_text()), "model": str(tmp_path)}
    )
    assert study.load(setting).unet.config.in_channels == 4
    for name in ("v1-5-pruned.ckpt", "unet/diffusion_pytorch_model.bin", "safety_checker/model.safetensors"):
        assert not wanted(name)
    for name in ("unet/diffusion_pytorch_model.fp16.safetensors", "v1-5-pruned-emaonly.safetensors"):
        assert not wanted(name)


def test_messages_that_the_pages_quote_are_said_somewhere():
    said = "".join(path.read_text() for path in (ROOT / "catome").rglob("*.py"))
    said = re.sub(r'"\s*\n\s*f?"', "", said)  # texts over several lines
    quoted = re.findall(r"^\| `([^`]+)` \|", TEXT["gpu"], re.M)
    assert len(quoted) >= 6
    for message in [*quoted, "is no parameter of this study"]:
        assert message in said, message


def test_the_refusals_of_the_walk_are_those_of_the_notebook():
    shown = blocks("rerun", "{code-block} text")[0].splitlines()
    smoke = yaml.safe_load((ROOT / "data/presets/smoke.yaml").read_text())
    for line in shown:
        name, value = re.match(r"(\w+)=(\S+)", line).groups()
        with pytest.raises(ValueError, match=re.escape(line)):
            check_parameters(PARAMETERS["01_tome_review"], smoke | {name: float(value)})


def test_the_pinned_torch_knows_the_gpus_that_the_page_names():
    built_for = torch._C._cuda_getArchFlags() if torch.version.cuda else ""
    if not built_for:
        pytest.skip("this torch is built without CUDA")
    assert "sm_75" in built_for.split()
    assert "sm_70" not in built_for.split()


@pytest.mark.book
def test_the_way_to_table_iv_on_the_embedded_model(tmp_path):
    """The commands of the page as they stand, with another preset, without its model, and in other
    folders."""
    real = tmp_path / "imagenet/val"
    for position, name in enumerate(("desert", "lighthouse")):
        (real / f"n{position:08}").mkdir(parents=True)
        for i in range(6):
            Image.fromarray(tiny.render(name, 10**7 + i)).save(real / f"n{position:08}" / f"{i}.png")
    text = TEXT["gpu"][TEXT["gpu"].index("## Run it") : TEXT["gpu"].index("## A transformer on your GPU")]
    lines = [
        line for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S) for line in commands(block)
    ]
    assert [Path(line[0]).name for line in lines] == ["python", "papermill", "jupyter"]
    output = tmp_path / "sd15/_build/output"

    def run(words):
        words = [
            word.replace("presets/paper", "presets/smoke").replace("runs/", f"{tmp_path}/") for word in words
        ]
        words = [word.replace(f"{tmp_path}/sd15/imagenet", str(real.parent)) for word in words]
        at = words.index(f"{tmp_path}/sd15/model") if f"{tmp_path}/sd15/model" in words else None
        if at is not None and words[at - 1] == "--model":
            words = [*words[: at - 1], *words[at + 1 :], "--steps", "2"]
        elif at is not None:
            words = [*words[: at - 2], *words[at + 1 :], "-p", "steps", "2"]
        words[0] = str(BIN / Path(words[0]).name)
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=OFFLINE)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    assert f"all rows are in {output}" in run(lines[0])
    kept = Store(QUALITY, output, None).find()
    assert len(kept) == 9 * 2
    assert np.isfinite(kept["psnr_real"]).all()
    run(lines[1])
    after = Store(QUALITY, output, None).find()
    new = after[~after["run"].isin(kept["run"])]
    pd.testing.assert_frame_equal(after.drop(new.index).reset_index(drop=True), kept)
    # the notebook found every row of its own, and made those of the curves
    assert set(new["seed"]) == {HELD_OUT}
    run(lines[2])
    page = (tmp_path / "sd15/06_headline.html").read_text()
    for name in ("03_threshold_sweep", "05_checkpoint_schedules"):
        assert "## Beside the paper" in (ROOT / f"notebooks/{name}.ipynb").read_text()
    for words in ("against 10 real images", "tomesd, r = 0.5", *paper.METHODS.index):
        assert words in page


def test_a_preset_of_ones_own_finds_its_real_images(tmp_path):
    """The lines about the whole book, run in a folder with nothing but the presets."""
    (tmp_path / "data").mkdir()
    subprocess.run(["cp", "-r", str(ROOT / "data/presets"), str(tmp_path / "data/presets")], check=True)
    block = next(block for block in blocks("gpu", "sh") if "data/presets/mine.yaml" in block)
    real = "runs/sd15/imagenet/val"
    assert block.splitlines()[-1].startswith(f"make book PRESET=mine REFERENCE={real} ")
    subprocess.run(
        ["bash", "-e"], input=block.replace("make book", ": make book"), text=True, check=True, cwd=tmp_path
    )
    for name in ("03_threshold_sweep", "05_checkpoint_schedules", "06_headline"):
        files = [str(tmp_path / "data/presets/mine.yaml"), str(tmp_path / f"data/presets/mine/{name}.yaml")]
        values = command.parameters(files)
        assert values["model"] == "runs/sd15/model"
        assert values["images"] == 2000
        check_parameters(PARAMETERS[name], values | {"reference": real})
        target = f"{tmp_path}/made/source/notebooks/{name}.ipynb"
        words = ["make", "-n", target, f"BUILD={tmp_path}/made", f"REFERENCE={real}"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        assert f'-r reference "{real}"' in done.stdout
    files = [
        str(tmp_path / "data/presets/mine.yaml"),
        str(tmp_path / "data/presets/mine/10_a_transformer.yaml"),
    ]
    values = command.parameters(files)
    assert "PixArt-Sigma" in values["model"]
    assert values["beside"] == "runs/sd15/model"
    check_parameters(PARAMETERS["10_a_transformer"], values)


# the page about adding things


def test_the_preset_of_a_model_of_ones_own():
    (text,) = blocks("extend", "yaml")
    values = yaml.safe_load(text)
    assert set(values) == set(study.Setting.names_of_parameters())
    setting = study.Setting.of({**values, "device": "cpu"})
    assert setting.prompts[0] == "An oil painting of a harbour at night."


def test_the_examples_of_what_can_be_added_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    examples = [block for block in blocks("extend", "python") if not block.startswith(("# cell:", "# file:"))]
    assert len(examples) == 7
    names = {"__name__": "page"}
    for block in examples:
        exec(compile(block, "book/extend.md", "exec"), names)
    assert (tmp_path / "runs/mymodel/model_index.json").exists()
    setting, capped = names["setting"], names["capped"]
    assert study.load(replace(setting, model="runs/mymodel")).unet.config.in_channels == 4
    assert len(names["best"]) == 3
    # pairs were found again
    found = names["found_at"].values()
    assert any(len(steps) > 1 for steps in found)

    rows = Store(QUALITY, tmp_path / "runs/extend", None)
    free, held = (
        rows.find(method=way.label)["merged_share"]
        for way in (methods.ca_tome(0.7, "CONFIG_3"), capped(0.7, 0.3))
    )
    assert len(free) == len(held) == 2
    assert max(share.max() for share in free) > 0.3  # there was something to cap
    assert all(abs(share.max() - 0.3) < 1e-2 for share in held)

    # the study, by the command and in its notebook
    (source,) = (block for block in blocks("extend", "python") if block.startswith("# file:"))
    module = types.ModuleType("catome.study.studies.windows")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, "windows.py", "exec"), vars(module))
    monkeypatch.setitem(STUDIES, "windows", module)
    monkeypatch.setattr(study.studies, "windows", module, raising=False)
    arguments = ["windows", "-f", "data/presets/smoke.yaml", "--output", str(tmp_path / "out")]
    assert command.main([*arguments, "--count"]) == 0
    assert "6 images in 3 ways" in capsys.readouterr().out
    assert command.main(arguments) == 0
    assert len(Store(QUALITY, tmp_path / "out", None).find()) == 3 * 2
    monkeypatch.setattr(
        "catome.study.measure.comparison.generate_batch", lambda *_: pytest.fail("it was made again")
    )
    cells = [block for block in blocks("extend", "python") if block.startswith("# cell:")]
    namespace = {}
    for cell in cells:
        exec(cell, namespace)
        if cell.startswith("# cell: parameters"):
            declared = {name: value for name, value in namespace.items() if name != "__builtins__"}
            assert vars(module.Parameters.of(declared)) == vars(module.Parameters())
            namespace |= command.parameters(["data/presets/smoke.yaml"]) | {"output": str(tmp_path / "out")}
    table = namespace["found"].table()
    assert list(table.index) == [2, 4]
    assert (table["PSNR low"] <= table["PSNR"]).all()
    lines = sum(len(block.splitlines()) for block in [source, *cells])
    assert lines <= 80

    # as in every notebook
    def common(source):
        return [
            line.split("  #")[0]
            for line in source.splitlines()
            if line.split(" = ")[0] in study.Setting.names_of_parameters()
        ]

    theirs = nbformat.read(ROOT / "notebooks/06_headline.ipynb", 4).cells
    assert common(cells[0]) == common(next(c.source for c in theirs if c.cell_type == "code"))


def test_code_for_a_service_is_python():
    for block in blocks("services", "python"):
        ast.parse(block)
