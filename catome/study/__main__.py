"""Run a study without its notebook: ``python -m catome.study sweep --images 1000``.

Any number of processes may do so at once, on one machine or on many that share the output folder: under
``accelerate launch``, ``torchrun``, ``srun``, or started by hand. They send each other nothing; each claims
pieces of the work (`catome.study.run.claims`). The study's notebook, run with the same parameters, then finds
all rows.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import yaml

from catome.study.measure.real_images import check_reference
from catome.study.run.claims import place
from catome.study.run.generate import load
from catome.study.run.store import Damaged
from catome.study.studies import STUDIES, find, jobs

INTERRUPTED = 130


def parameters(files: Sequence[str], given: Mapping[str, str] | None = None) -> dict:
    """The parameters of YAML files, the later ones over the earlier, and of texts by name over them.

    Raises:
        ValueError: for a file that cannot be read or holds no names and values.
    """
    found = {}
    for file in files:
        try:
            held = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(
                f"f={file!r} must be a YAML file of parameters: {str(error).splitlines()[0]}"
            ) from None
        if not isinstance(held, dict) or not all(isinstance(name, str) for name in held):
            raise ValueError(f"f={file!r} must hold names and values, one `name: value` a line")
        found |= held
    for name, text in (given or {}).items():
        try:
            found[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f"{name}={text!r} must be a value as in YAML") from None
    return found


def parser() -> argparse.ArgumentParser:
    """The parser of what the command takes, beside the parameters of the study: see `split`."""
    found = argparse.ArgumentParser(
        "python -m catome.study",
        description="Run a study; alone, or with any number of processes that share the output folder.",
        epilog="Every parameter of the study is an option: --images 1000, --thresholds '[0.7, 0.9]'. "
        "Started again, the command goes on where it was.",
        allow_abbrev=False,
    )
    found.add_argument("study", help=f"one of {', '.join(STUDIES)}")
    found.add_argument(
        "-f", dest="files", action="append", default=[], metavar="FILE", help="a YAML file of parameters"
    )
    found.add_argument(
        "--count", action="store_true", help="say how much there is to generate, and compute nothing"
    )
    found.add_argument("--timed", action="store_true", help="time the methods, too, when everything is there")
    return found


def split(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, dict[str, str]]:
    """The command's own options, and the parameters that were given as texts, by name.

    Raises:
        ValueError: for what is neither.
    """
    own, rest = parser().parse_known_args(arguments)
    given = {}
    while rest:
        option = rest.pop(0)
        if not option.startswith("--"):
            raise ValueError(f"{option!r} is no option: parameters are given as --name value")
        name, equals, value = option.removeprefix("--").partition("=")
        if not equals and not rest:
            raise ValueError(f"--{name} needs a value")
        given[name.replace("-", "_")] = value if equals else rest.pop(0)
    return own, given


def _count(study: ModuleType, params) -> str:
    """The list of what there is to generate, as lines."""
    table = jobs.table(study.jobs(params))
    lines = [
        f"{row.images:8d} images, {row.calls} U-Net calls each: {row.method}" for row in table.itertuples()
    ]
    images = f"{table['images'].sum()} images in {len(table)} ways, {jobs.unet_calls(table)} U-Net calls"
    note = (
        "if none of them is kept already; shares and schedules that depend on results stand for what will "
        "be found"
    )
    return "\n".join([*lines, f"{images}, {note}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (by default the process's).

    Returns:
        0 when nothing is missing any more; 2 where the parameters are wrong, before anything is computed; 1
        where results could not be written or read; 130 after an interrupt. All but the last are said in one
        message, by the first process alone.
    """
    rank, processes = place()

    def fail(message: object) -> int:
        if rank == 0:
            print(f"python -m catome.study: error: {message}", file=sys.stderr)
        return 2

    try:
        own, given = split(arguments)
        study = find(own.study)
        values = parameters(own.files, given)
        if own.count:
            values["device"] = "cpu"  # nothing runs
        elif values.get("device") == "cuda" and "LOCAL_RANK" in os.environ:
            values["device"] = f"cuda:{os.environ['LOCAL_RANK']}"
        params = study.Parameters.checked(values)
        if own.count:
            print(_count(study, params))
            return 0
        if params.recompute and processes > 1:
            raise ValueError(
                f"recompute=True with {processes} processes: each would compute everything; give another "
                "output folder"
            )
        if processes > 1 and getattr(study, "ALONE", False):
            raise ValueError(
                f"{processes} processes: the study {own.study} times while it searches, and needs the "
                "machine alone"
            )
        if own.timed and not hasattr(study, "timed"):
            raise ValueError(f"--timed: the study {own.study} times nothing")
        pipe = load(params)
        check_reference(params)
        if hasattr(study, "check"):
            study.check(params, pipe)
    except (ValueError, TypeError, OSError, ImportError) as error:
        return fail(error)
    try:
        result = study.run(params, pipe)
        if own.timed and rank == 0:
            study.timed(result, pipe)
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; what was done is in {params.output}, and the same command goes on from there",
            file=sys.stderr,
        )
        return INTERRUPTED
    except (OSError, Damaged) as error:
        print(f"python -m catome.study: error: {error}", file=sys.stderr)
        return 1
    if rank == 0 and study.NOTEBOOK is None:
        print(result.report())
    elif rank == 0:
        print(f"all rows are in {params.output}; {study.NOTEBOOK}.ipynb with the same parameters shows them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
