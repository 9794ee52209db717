"""Fold the cells that a reader of a notebook in JupyterLab need not see.

    python book/jupyterlab/fold.py [--check]

writes into the notebooks' metadata, or only says which ones need it. What the book leaves out or hides is
folded in JupyterLab, too: slides, and the code that only draws, prints or hands words to the text. The cell
of parameters stays open.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
FOLDED = {"slide", "remove-cell", "remove-input", "hide-input"}
"""The tags of the cells that are folded."""


def is_folded(cell: dict) -> bool:
    """Return True if the input of a cell is to be folded, by its tags."""
    tags = set(cell["metadata"].get("tags", []))
    return bool(tags & FOLDED) and "parameters" not in tags


def fold(notebook: dict) -> dict:
    """The notebook, as in its file, with all of its cells folded or open as they should be; changes it in
    place."""
    for cell in notebook["cells"]:
        about = {
            name: value
            for name, value in cell["metadata"].get("jupyter", {}).items()
            if name != "source_hidden"
        }
        if is_folded(cell):
            about["source_hidden"] = True
        cell["metadata"].pop("jupyter", None)
        if about:
            cell["metadata"] = {"jupyter": about, **cell["metadata"]}
    return notebook


def as_stored(notebook: dict) -> str:
    """The text of a notebook's file."""
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def main(check: bool = False) -> int:
    """Fold all notebooks, or with ``check`` only name those that are not; the number of these."""
    found = 0
    for path in sorted(NOTEBOOKS.rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        text = path.read_text()
        folded = as_stored(fold(json.loads(text)))
        if folded != text:
            found += 1
            print(path.relative_to(NOTEBOOKS.parent))
            if not check:
                path.write_text(folded)
    return found


if __name__ == "__main__":
    sys.exit(min(main(check=True), 1) if "--check" in sys.argv[1:] else main() * 0)
