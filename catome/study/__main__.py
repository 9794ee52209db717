"""Compute what a notebook shows, without the notebook: ``python -m catome.study 04_threshold_sweep -f preset.yaml``.

Runs the notebook's cells that are tagged "study": its parameters, their check, the model, the studies; no figures, no timings. Any
number of processes may do so at once, on one machine or on many that share the output folder: under ``accelerate launch``,
``torchrun``, ``srun``, or started by hand. They send each other nothing; each claims pieces of the work (`catome.study.work`).
The notebook itself, run with the same parameters, then finds all rows.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
import yaml

from catome.checks import near
from catome.study.store import CHECKOUT
from catome.study.work import place

NOTEBOOKS = CHECKOUT / "notebooks"
INTERRUPTED = 130


@dataclass(frozen=True)
class Cells:
    """The sources of a notebook's cells that set its parameters, and of those that check them, load the model and compute."""

    parameters: list[str]
    study: list[str]


def cells_of(notebook: Path) -> Cells:
    """Read a notebook's tagged cells."""
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    tagged = {tag: [c.source for c in cells if tag in c.metadata.get("tags", [])] for tag in ("parameters", "study")}
    return Cells(**tagged)


def studies() -> list[str]:
    """The notebooks that have something to compute."""
    return [path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb")) if cells_of(path).study]


def find(study: str | Path) -> Path:
    """The notebook of a study.

    Args:
        study: one of `studies`, or the path of a notebook.

    Raises:
        ValueError: if there is no such notebook, or it computes nothing that is kept.
    """
    notebook = Path(study) if str(study).endswith(".ipynb") else NOTEBOOKS / f"{study}.ipynb"
    if not notebook.is_file():
        raise ValueError(f"study={str(study)!r} is no notebook{near(str(study), studies())}; there are {', '.join(studies())}")
    if not cells_of(notebook).study:
        raise ValueError(f"study={str(study)!r} has no cell tagged 'study': it computes nothing that is kept")
    return notebook


def parameters(files: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict:
    """The parameters of YAML files, the later ones over the earlier, and of ``(name, value)`` texts over them.

    Raises:
        ValueError: for a file that cannot be read or holds no names and values.
    """
    given = {}
    for file in files:
        try:
            found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"f={file!r} must be a YAML file of parameters: {str(error).splitlines()[0]}") from None
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
            raise ValueError(f"f={file!r} must hold names and values, one `name: value` a line")
        given |= found
    for name, text in pairs:
        try:
            given[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f"{name}={text!r} must be a value as in YAML") from None
    return given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m catome.study",
        description="Compute what a notebook shows; alone, or with any number of processes that share the output folder.",
        epilog="Started again, it goes on where it was.",
    )
    parser.add_argument("study", help=f"one of {', '.join(studies())}, or the path of a notebook")
    parser.add_argument("-f", dest="files", action="append", default=[], metavar="FILE", help="a YAML file of parameters")
    parser.add_argument(
        "-p", dest="pairs", action="append", nargs=2, default=[], metavar=("NAME", "VALUE"), help="one parameter, as in YAML"
    )
    parser.add_argument("--count", action="store_true", help="say how much there is to generate, and compute nothing")
    return parser


def _count(study: str, values: dict) -> str:
    """What there is to generate, as lines."""
    from catome.study import price

    table = price.count(study, values)
    lines = [f"{row.images:8d} images, {row.calls} U-Net calls each: {row.method}" for row in table.itertuples()]
    images = f"{table['images'].sum()} images in {len(table)} ways, {price.unet_calls(table)} U-Net calls"
    note = "if none of them is kept already; shares and schedules that depend on results stand for what will be found"
    return "\n".join([*lines, f"{images}, {note}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (by default the process's).

    Returns:
        0 when nothing is missing any more; 2 where the parameters are wrong, before anything is computed; 1 where results could
        not be written or read; 130 after an interrupt. All but the last are said in one message, by the first process alone.
    """
    parser, (rank, processes) = _parser(), place()
    given = parser.parse_args(arguments)

    def fail(message: object) -> int:
        if rank == 0:
            print(f"{parser.prog}: error: {message}", file=sys.stderr)
        return 2

    os.environ.setdefault("MPLBACKEND", "Agg")
    names: dict = {"__name__": "__main__"}
    try:
        notebook = find(given.study)
        work, values = cells_of(notebook), parameters(given.files, given.pairs)
        if given.count:
            print(_count(given.study, values))
            return 0
        for source in work.parameters:
            exec(source, names)
        if values.get("device") == "cuda" and "LOCAL_RANK" in os.environ:
            values["device"] = f"cuda:{os.environ['LOCAL_RANK']}"
        if values.get("recompute") and processes > 1:
            raise ValueError(
                f"recompute=True with {processes} processes: each would compute everything; give another output folder"
            )
        names |= values
        exec(compile(work.study[0], f"{notebook.name}, the check of its parameters", "exec"), names)
        exec(compile(work.study[1], f"{notebook.name}, the model", "exec"), names)
    except (ValueError, TypeError, OSError) as error:
        return fail(error)
    try:
        for number, source in enumerate(work.study[2:], 3):
            exec(compile(source, f"{notebook.name}, study cell {number}", "exec"), names)
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; what was done is in {names['setting'].output}, and the same command goes on from there",
            file=sys.stderr,
        )
        return INTERRUPTED
    except OSError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    if rank == 0:
        print(f"all rows are in {names['setting'].output}; {notebook.name} with the same parameters shows them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
