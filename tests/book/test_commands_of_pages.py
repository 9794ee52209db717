"""Every command that a page tells to type is run, as it is written, in a fresh clone; or it stands in a list
that says why not.

A page is worked through from its first command to its last, in one clone of the working tree, in which

- ``.venv`` is that of the tests, so that nothing is installed;
- the presets ``paper``, ``sdxl`` and ``tiny`` have the values of ``smoke``: few images, few steps, no GPU;
- ``runs/sd15`` has the embedded model and drawn images, where the page has had weights and photographs
  downloaded.

A command that is new on a page is run without anybody's saying so. One that cannot be run needs a reason in
`EXCUSED`; whether such a command is one that this repository understands is asked by ``test_pages.py``, of
all.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from catome import tiny
from helpers.paths import ROOT
from helpers.processes import offline

pytestmark = [pytest.mark.slow, pytest.mark.typed]

PAGES = {"README": "README.md"} | {
    name: f"book/{name}.md" for name in ("rerun", "gpu", "services", "long_runs", "extend", "exercises")
}
LANGUAGES = {"README": ("sh", "")}
"""The languages that blocks of commands are marked with; ``sh`` where nothing is said."""

IN_PLACE_OF = [
    ("ADDRESS", "{origin}", "the address of the repository"),
    ("/shared/", "{folder}/shared/", "a folder that all machines of a cluster see"),
    ("/content/drive/MyDrive", "{folder}/drive", "a drive of Colab's"),
    ("--images 200", "--images 2", "minutes"),
    ("-p images 6", "-p images 2", "half a minute"),
    ("--images 8", "--images 2", "half a minute"),
    ("-p images 8", "-p images 2", "half a minute"),
    ("--multi_gpu --num_processes 8", "--cpu --num_processes 1", "needs eight GPUs"),
    ("--nproc-per-node 8", "--nproc-per-node 2", "eight processes at once would take minutes"),
    ("srun ", "", "needs SLURM, which starts the rest of the line"),
]
"""The changes of a command before it is run: what stands there, what is put in its place, and why."""

NETWORK = "needs a network"
GPU = "needs a GPU"
IMAGENET = "needs ImageNet's archives"
BOOK = "minutes; the tests of the pages run it"
BY_TRANSFORMER = "minutes; test_book.py runs these notebooks on the embedded transformer"
EXCUSED = {
    "pip install .": NETWORK,
    "make book": BOOK,
    "make book PRESET=paper REFERENCE=runs/sd15/imagenet/val BUILD=runs/sd15/_build": BOOK,
    "make book PRESET=mine REFERENCE=runs/sd15/imagenet/val BUILD=runs/sd15/_build": BOOK,
    "make book PRESET=sdxl REFERENCE=runs/sd15/imagenet/val BUILD=runs/sdxl/_build": BOOK,
    "make notebooks PRESET=pixart REFERENCE=runs/sd15/imagenet/val BUILD=runs/pixart/_build": BY_TRANSFORMER,
    "jupyter nbconvert --to html runs/pixart/_build/source/notebooks/*.ipynb": BY_TRANSFORMER,
    "make test": "these are the tests",
    "make check": "these are the tests",
    "make record": "hours",
    "make record DEVICE=cuda BATCH=96": GPU,
    "make bench": "minutes; test_bench.py times a few",
    "make gpu-test": GPU,
    "make gpu-test gpu-bench": GPU,
    "make publish": "pushes; test_workflows.py does, to a remote of its own",
    "make publish REMOTE=pages BASE_URL=https://example.org/catome": "pushes; test_workflows.py does, to a remote of its own",
    "nvidia-smi": GPU,
    'python -c "import torch; print(torch.cuda.get_device_name())"': GPU,
    'python -c "import torch; print(torch.cuda.get_device_capability())"': GPU,
    "hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --local-dir runs/sd15/model "
    '--include model_index.json --include "*/*.json" --include "tokenizer/*" '
    '--include "*/diffusion_pytorch_model.safetensors" --include "text_encoder/model.safetensors"': NETWORK,
    "mv ILSVRC2012_img_val.tar ILSVRC2012_devkit_t12.tar.gz runs/sd15/imagenet/": IMAGENET,
    "python -c \"from torchvision.datasets import ImageNet ImageNet('runs/sd15/imagenet', split='val')\"": IMAGENET,
    "ssh -N -L 8888:localhost:8888 MACHINE": "needs another machine",
    'python -m pip install -c host.txt -e ".[study,peers]"': NETWORK,
    'python -m pip install -c constraints.txt -e ".[study,peers]"': NETWORK,
}
"""Commands that are not run, by `plain`, and why."""


def plain(command: str) -> str:
    """A command in one line, without the folder of its program and without a remark at its end."""
    return re.sub(r" # .*$", "", " ".join(command.replace("\\\n", " ").split())).removeprefix(".venv/bin/")


def commands(text: str, languages=("sh",)) -> list[str]:
    """The commands of a page's blocks, one after the other: what a shell takes as a whole, over however many
    lines."""
    found, fence, block = [], None, []
    for line in text.splitlines():
        mark = re.match(r"(`{3,})\s*([^`]*)$", line)
        if fence is None and mark:
            fence, language, block = mark[1], mark[2].strip(), []
        elif fence is not None and line.strip() == fence:
            fence = None
            if language in languages:
                found += whole(block)
        else:
            block.append(line)
    return found


def whole(lines: list[str]) -> list[str]:
    found, begun = [], []
    for line in lines:
        begun.append(line)
        text = "\n".join(begun)
        if (
            line.endswith("\\")
            or subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True).stderr
        ):
            continue
        if shlex.split(text, comments=True):
            found.append(text)
        begun = []
    assert not begun, f"no shell takes this as a whole: {begun}"
    return found


TYPED = [
    (page, at, command)
    for page, file in PAGES.items()
    for at, command in enumerate(commands((ROOT / file).read_text(), LANGUAGES.get(page, ("sh",))))
]


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> Path:
    """A repository with the working tree as its only commit."""
    folder = tmp_path_factory.mktemp("origin") / "catome"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\0"
    ):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    smoke = folder / "data/presets/smoke"
    for preset in ("paper", "sdxl", "tiny"):
        shutil.copy(f"{smoke}.yaml", folder / f"data/presets/{preset}.yaml")
        shutil.rmtree(folder / f"data/presets/{preset}")
        shutil.copytree(smoke, folder / f"data/presets/{preset}")
    somebody = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
    for words in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "--all"],
        [*somebody, "commit", "--quiet", "-m", "All"],
    ):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


@dataclass
class Reader:
    """Somebody who types what a page says: where they are by now, and what has failed."""

    origin: Path
    folder: Path
    failed: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.here = self.folder
        self.home = self.folder / "home"
        self.home.mkdir()

    def settle(self) -> None:
        """Put what was installed and downloaded into a clone."""
        clone = self.here
        (clone / ".venv").symlink_to(Path(sys.prefix))
        for name in (
            "pyproject.toml",
            "constraints.txt",
            "book/references.bib",
            "book/jupyterlab",
            "book/jupyterlab/*",
        ):
            for file in clone.glob(name):
                os.utime(file, (0, 0))  # older than what was installed: make has nothing to install
        model = clone / "runs/sd15/model"
        model.parent.mkdir(parents=True)
        shutil.copytree(ROOT / "data/tiny-sd", model)
        tiny.load_lcm().save_pretrained(clone / "runs/sd15/lcm", safe_serialization=True)
        shutil.copytree(model, clone / "runs/mymodel")  # as the page "Extend it" saves it
        for real in (
            clone / "runs/sd15/imagenet/val",
            self.folder / "drive/real",
            self.folder / "shared/imagenet/val",
        ):
            for position, name in enumerate(("desert", "lighthouse")):
                (real / f"n{position:08}").mkdir(parents=True, exist_ok=True)
                for i in range(5):
                    Image.fromarray(tiny.render(name, 10**7 + i)).save(real / f"n{position:08}" / f"{i}.png")

    def environment(self) -> dict:
        # `python` is the one with everything installed
        path = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}"
        own = {
            "HOME": self.home,
            "TORCH_HOME": self.home / "torch",
            "HF_HOME": self.home / "hf",
            "PYTHONPATH": self.here,
        }
        own |= {"JUPYTER_PREFER_ENV_PATH": "1", "PATH": path, "OMP_NUM_THREADS": "2", "BROWSER": "true"}
        # what reaches out is refused at once
        own |= {"https_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1,localhost"}
        return offline() | {name: str(value) for name, value in own.items()}

    def change(self, command: str) -> str:
        for words, instead, _ in IN_PLACE_OF:
            command = command.replace(words, instead.format(origin=self.origin, folder=self.folder))
        return command

    def type(self, command: str) -> str:
        """Run a command and return what it says; an AssertionError if it fails."""
        if plain(command).startswith("cd "):
            self.here = (self.here / shlex.split(command)[1]).resolve()
            assert self.here.is_dir()
            return ""
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", self.change(command)],
            cwd=self.here,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, (
            f"{command}\nends with {done.returncode}\n{done.stdout[-1500:]}{done.stderr[-3000:]}"
        )
        return done.stdout + done.stderr

    def serve(self, command: str) -> None:
        """A command that starts JupyterLab: it answers at the address that it prints, and Ctrl-C ends it."""
        log = self.folder / "lab.log"
        given = f"exec {command} --allow-root{'' if '--no-browser' in command else ' --no-browser'}"
        with log.open("w") as out:
            lab = subprocess.Popen(
                ["bash", "-c", given], cwd=self.here, env=self.environment(), stdout=out, stderr=out
            )
        try:
            for _ in range(240):
                assert lab.poll() is None, log.read_text()
                if address := re.search(r"http://(?:localhost|127\.0\.0\.1):\d+/lab\S*", log.read_text()):
                    break
                time.sleep(0.25)
            with urllib.request.urlopen(address[0], timeout=30) as answer:
                assert answer.status == 200
                assert "JupyterLab" in answer.read().decode()
        finally:
            lab.send_signal(signal.SIGINT)
            lab.send_signal(signal.SIGINT)
            lab.wait(30)


READERS: dict[str, Reader] = {}


@pytest.fixture
def reader(request, origin, tmp_path_factory) -> Reader:
    page = request.node.callspec.params["page"]
    if page not in READERS:
        READERS[page] = found = Reader(origin, tmp_path_factory.mktemp(page))
        first = next(command for name, _, command in TYPED if name == page)
        if not first.startswith("git clone"):
            found.type("git clone --quiet ADDRESS catome")
            found.type("cd catome")
            found.settle()
    return READERS[page]


@pytest.mark.parametrize(
    ("page", "at", "command"),
    TYPED,
    ids=[f"{page}-{at}-{plain(command)[:60]}" for page, at, command in TYPED],
)
def test_a_command_runs_as_it_is_written(reader, page, at, command):
    if reader.failed:
        pytest.fail(f"not tried, since a command before it on the page fails: {reader.failed[0]}")
    reader.failed.append(command)
    if plain(command) in EXCUSED:
        if plain(command).startswith("make "):
            reader.type(f"make -n {plain(command).removeprefix('make ')}")
    elif plain(command).startswith("jupyter lab"):
        reader.serve(command)
    elif command.startswith("git clone "):
        shutil.rmtree(reader.folder / "catome", ignore_errors=True)  # a page that says twice how to begin
        reader.here = reader.folder
        reader.type(command)
    else:
        reader.type(command)
        if plain(command) == "cd catome":
            reader.settle()
    reader.failed.clear()


def test_the_lists_have_nothing_that_no_page_says():
    typed = {plain(command) for *_, command in TYPED}
    assert set(EXCUSED) <= typed
    for words, *_ in IN_PLACE_OF:
        assert any(words in command for *_, command in TYPED), words


def test_commands_are_found_whole():
    page = '# A\n```sh\ncd x  # there\na \\\n    b\nfor i in 1 2; do\n    echo $i\ndone\npython -c "from a import b\nb()"\n# no\n```\n```python\nno\n```\n'
    assert commands(page) == [
        "cd x  # there",
        "a \\\n    b",
        "for i in 1 2; do\n    echo $i\ndone",
        'python -c "from a import b\nb()"',
    ]
    assert plain(".venv/bin/python -m \\\n    x  # so") == "python -m x"
