"""Print the pages of the rendered book to PDF, through headless Chromium:
``python book/pdf.py _build/html _build/pdf``.

What is closed on a page is not printed: neither code that is folded away nor solutions. ``--solutions`` opens
the solutions.
"""

import argparse
import shutil
import sys
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
]
TYPESET = "window.MathJax?.startup?.promise?.then(() => document.fonts.ready).then(() => true)"
OPEN = (
    "document.querySelectorAll('.solution.toggle-hidden').forEach((x) => "
    "x.querySelector('button.toggle-button').click())"
)


def print_pages(
    browser, book: Path, out: Path, names: list[str] | None = None, solutions: bool = False
) -> list[Path]:
    """Print `names`, or all pages of prose and notebooks under the folder `book`, into the folder `out`;
    returns the files."""
    pages = [path for part in ("book", "notebooks") for path in sorted((book / part).rglob("*.html"))]
    pages = [path for path in pages if names is None or path.stem in names]
    if not pages:
        raise FileNotFoundError(f"{book} has no such page of a rendered book: run make book")
    out.mkdir(parents=True, exist_ok=True)
    files = []
    page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
    for path in pages:
        page.goto(path.resolve().as_uri(), wait_until="load")
        page.evaluate(TYPESET)
        if solutions:
            page.evaluate(OPEN)
        files.append(out / f"{path.stem}.pdf")
        page.pdf(path=files[-1], prefer_css_page_size=True, print_background=True, tagged=True, outline=True)
    page.close()
    return files


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("book", type=Path, help="the folder of the rendered book")
    parser.add_argument("out", type=Path, help="the folder for the PDF files")
    parser.add_argument(
        "names", nargs="*", help="pages by their file's name, such as 01_tome_review (default: all)"
    )
    parser.add_argument("--solutions", action="store_true", help="print the solutions of the exercises, too")
    given = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("printing needs chromium on the path")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for file in print_pages(chromium, given.book, given.out, given.names or None, given.solutions):
            print(file)
