"""Take over rows that were computed elsewhere: ``python -m catome.study.run.gather FOLDER``.

A recording runs in a clean checkout of its own, so that its rows name the commit that computed them. This
command puts them, with their provenance, beside the recorded ones. Rows with the same keys are replaced, so
gathering twice changes nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from catome.study.bench.table import BENCH
from catome.study.measure.comparison import COST, QUALITY
from catome.study.measure.drift import DRIFT, STALENESS
from catome.study.measure.pictures import PICTURES
from catome.study.measure.searches import SEARCHES
from catome.study.measure.similarity import SIMILARITY
from catome.study.measure.turns import TURNS
from catome.study.run.store import RECORDED, Store, Table
from catome.study.studies.allocation import LEFT
from catome.study.studies.compose import COMPOSED
from catome.study.studies.frontier import SCORES

TABLES: tuple[Table, ...] = (
    QUALITY,
    COST,
    TURNS,
    DRIFT,
    STALENESS,
    SCORES,
    LEFT,
    COMPOSED,
    BENCH,
    PICTURES,
    SIMILARITY,
    SEARCHES,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (by default the process's); 2 for a folder that is none, or holds
    something else."""
    parser = argparse.ArgumentParser("python -m catome.study.run.gather", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="in which parquet files of rows lie")
    parser.add_argument(
        "--into", type=Path, default=RECORDED, help="the folder that gets them (default: data/results)"
    )
    names = [table.name for table in TABLES]
    parser.add_argument(
        "--table", nargs="+", choices=names, default=names, help="kinds of rows (default: all)"
    )
    given = parser.parse_args(arguments)
    if not given.folder.is_dir():
        parser.error(f"folder={str(given.folder)!r} must be a folder of rows")
    try:
        for table in TABLES:
            if table.name not in given.table:
                continue
            found = Store(table, given.into, None).gather(given.folder)
            if found:
                print(f"{found} rows of {table.name}")
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
