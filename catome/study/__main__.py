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
from difflib import get_close_matches
from pathlib import Path

import nbformat
import yaml

from catome.study.store import CHECKOUT
from catome.study.work import place

NOTEBOOKS = CHECKOUT / "notebooks"
INTERRUPTED = 130


def studies() -> list[str]:
    """The notebooks that have something to compute."""
    return [path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb")) if any("study" in tags for tags, _ in _cells(path))]


def _cells(notebook: Path) -> list[tuple[list[str], str]]:
    cells = nbformat.read(notebook, as_version=4).cells
    return [(cell.metadata.get("tags", []), cell.source) for cell in cells if cell.cell_type == "code"]


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
    return parser


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

    notebook = Path(given.study) if given.study.endswith(".ipynb") else NOTEBOOKS / f"{given.study}.ipynb"
    if not notebook.is_file():
        near = get_close_matches(given.study, studies(), 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return fail(f"study={given.study!r} is no notebook{hint}; there are {', '.join(studies())}")
    cells = _cells(notebook)
    work = [source for tags, source in cells if "study" in tags]
    if not work:
        return fail(f"study={given.study!r} has no cell tagged 'study': it computes nothing that is kept")
    os.environ.setdefault("MPLBACKEND", "Agg")
    names: dict = {"__name__": "__main__"}
    try:
        values = parameters(given.files, given.pairs)
        for tags, source in cells:
            if "parameters" in tags:
                exec(source, names)
        if values.get("device") == "cuda" and "LOCAL_RANK" in os.environ:
            values["device"] = f"cuda:{os.environ['LOCAL_RANK']}"
        if values.get("recompute") and processes > 1:
            raise ValueError(
                f"recompute=True with {processes} processes: each would compute everything; give another output folder"
            )
        names |= values
        exec(compile(work[0], f"{notebook.name}, the check of its parameters", "exec"), names)
        exec(compile(work[1], f"{notebook.name}, the model", "exec"), names)
    except (ValueError, TypeError, OSError) as error:
        return fail(error)
    try:
        for number, source in enumerate(work[2:], 3):
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
