"""Time catome against its peers on this machine: ``python -m catome.bench``, with ``--help`` for what it
takes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from catome.checks import check_integer, check_number

_MOST = 2**31 - 1  # what the columns of the rows hold


def _whole(name: str, low: int, multiple: int = 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.removeprefix("-").isdecimal():
            raise argparse.ArgumentTypeError(f"{name}={text!r} must be an integer")
        value = _checked(check_integer, name, int(text), low, _MOST)
        if value % multiple:
            raise argparse.ArgumentTypeError(f"{name}={value} must be a multiple of {multiple}")
        return value

    return parse


def _number(name: str, low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{name}={text!r} must be a number") from None
        return _checked(check_number, name, value, low, high)

    return parse


def _checked(check: Callable, *arguments):
    try:
        return check(*arguments)
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser(points) -> argparse.ArgumentParser:
    from catome.study.run.parameters import DTYPES, usable_device

    def device(text: str) -> str:
        if text.split(":")[0] not in ("cpu", "cuda"):
            raise argparse.ArgumentTypeError(f"device={text!r} must be 'cpu' or 'cuda'")
        return _checked(usable_device, "device", text)

    parser = argparse.ArgumentParser(
        "python -m catome.bench",
        description=(
            "Time catome and its peers in turns, keep each round with its provenance, and say what is "
            "reached."
        ),
        epilog=(
            "Several values make a grid. What is not given is what the suite takes by default on the device."
        ),
    )
    several = dict(nargs="+", metavar="X")
    parser.add_argument("--device", type=device, default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--suite",
        nargs="+",
        choices=points.SUITES,
        help="default: all that the device has (memory: cuda only), but compiled",
    )
    parser.add_argument(
        "--architecture", nargs="+", choices=[*points.ARCHITECTURES], default=["sd15"], help="default: sd15"
    )
    parser.add_argument(
        "--dtype", nargs="+", choices=[*DTYPES], help="default: float32 on cpu; the half precisions on cuda"
    )
    parser.add_argument(
        "--batch",
        **several,
        type=_whole("batch", 1),
        help="images, each two rows by guidance; default: 1 on cpu",
    )
    parser.add_argument(
        "--size",
        **several,
        type=_whole("size", 64, 64),
        help="edge of an image in pixels; default: 512 on cpu",
    )
    parser.add_argument(
        "--share", **several, type=_number("share", 0.01, 0.75), help="merged share; default: 0.5 on cpu"
    )
    parser.add_argument(
        "--tokens",
        type=_whole("tokens", 2),
        default=64,
        help="edge of the token grid of operations; default: 64",
    )
    parser.add_argument(
        "--channels", type=_whole("channels", 1), default=320, help="of a token in operations; default: 320"
    )
    parser.add_argument(
        "--rounds", type=_whole("rounds", 1), help="turns of each contender; default: by suite, 6 to 20"
    )
    parser.add_argument(
        "--budget-s",
        type=_number("budget-s", 0, 10**6),
        default=480.0,
        help="begin nothing after; default: 480",
    )
    parser.add_argument(
        "--output", default="_build/output", help="folder of the rows; default: _build/output"
    )
    parser.add_argument(
        "--record", action="store_true", help="keep the rows in data/results, which the repository ships"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (by default the process's); exits with 2 where they are wrong or
    something is missing."""
    try:
        from catome.study.bench import points, suites
        from catome.study.bench.table import BENCH
        from catome.study.run.parameters import writable_folder
        from catome.study.run.store import RECORDED, Store
    except ModuleNotFoundError as error:
        print(f"{error.name} is missing: pip install 'catome[study,peers]'", file=sys.stderr)
        return 2
    parser = _parser(points)
    given = parser.parse_args(arguments)

    def each(values):
        return values and tuple(dict.fromkeys(values))

    options = points.Options(
        device=given.device,
        suites=each(given.suite),
        architectures=each(given.architecture),
        dtypes=each(given.dtype),
        batches=each(given.batch),
        sizes=each(given.size),
        shares=each(given.share),
        tokens=given.tokens,
        channels=given.channels,
        rounds=given.rounds,
        budget_s=given.budget_s,
        output=str(RECORDED) if given.record else given.output,
    )
    try:
        writable_folder("output", options.output)
        points.points(options)
        Store(BENCH, options.output, None)
        Path(options.output).mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    suites.run(options, progress=lambda line: print(line, file=sys.stderr, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
