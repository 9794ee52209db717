"""Install what helps JupyterLab to show the book's notebooks, for the Python that runs this: see extension.js
beside it.

    python book/jupyterlab/install.py

``make setup`` does so, too.
"""

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES = {
    "static/extension.js": HERE / "extension.js",
    "static/references.bib": HERE.parent / "references.bib",
    "package.json": HERE / "package.json",
}


def install(folder: Path) -> Path:
    """Copy the extension's files into a folder of extensions, which serves no links; the extension's own
    folder there."""
    for name, file in FILES.items():
        copy = folder / "catome-book" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return folder / "catome-book"


if __name__ == "__main__":
    install(Path(sys.prefix) / "share/jupyter/labextensions")
