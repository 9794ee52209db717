"""The tests that take so long that `make test` leaves them to `make slow`."""

from helpers.paths import ROOT


def listed_as_slow() -> set[str]:
    """The files and functions of `tests/slow.txt`, as pytest names them from the folder of the tests."""
    lines = (ROOT / "tests/slow.txt").read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}
