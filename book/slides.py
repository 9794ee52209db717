"""The slides of the lectures in ``book/teach.md``, made of the executed notebooks.

    python book/slides.py EXECUTED_NOTEBOOKS_DIR OUT_DIR

writes ``lecture_1.html`` ... and the assets they need, which load nothing from another host. What is on a
slide is decided by the tags of a notebook's cells:

``slide``
    A Markdown cell that is a slide: a heading, and a few words below it. The book leaves it out (tag
    ``remove-cell``). Up to the next slide, the figures that follow are shown on it, and the prose and the
    computed sentences become its notes.
``slide-output``
    A code cell whose tables, sentences and printed lines are shown as well.
``slide-code``
    A code cell whose code is shown.
``slide-skip``
    A code cell of which nothing is shown.

Other tags ``slide-*`` of a slide are classes for the style sheet. Title, goals, mistakes and exercises are
those of ``teach.md``.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import shutil
import struct
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import jinja2
import nbformat
from markupsafe import Markup
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pybtex.database import parse_file
from pygments.formatters import HtmlFormatter

HERE = Path(__file__).resolve().parent
TEMPLATE = HERE / "slides"
SIDE = 1.95
"""A figure that is less wide than this times its height stands beside the words, any other one below them."""

ROLE = r"\{%s\}`([^`]+)`"
DIRECTIVE = re.compile(
    r"^(`{3,})\{([\w:-]+)\} ?([^\n]*)\n((?::[\w-]+:[^\n]*\n)*)(.*?)^\1 *$", re.MULTILINE | re.DOTALL
)


@dataclass
class Figure:
    """An image file of a slide, its text for those who do not see it, its caption, and width / height."""

    file: str
    alt: str
    caption: str
    aspect: float

    @property
    def title(self) -> str:
        """The caption's first sentence; the notes have all of it."""
        return re.split(r"(?<=[.!?])\s", self.caption, maxsplit=1)[0]


@dataclass
class Slide:
    """The content of one slide, as Markdown and HTML, and the notes that its speaker reads."""

    heading: str
    text: str = ""
    kinds: list[str] = field(default_factory=list)
    footer: str = ""
    figures: list[Figure] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    """HTML of code, tables and computed sentences."""
    notes: list[str] = field(default_factory=list)

    @property
    def layout(self) -> str:
        """``side`` (words beside a tall figure or one to play with), ``wide`` (a figure or table below them),
        or ``words``."""
        if any('<figure class="catome-' in block for block in self.blocks):
            return "side"
        if len(self.figures) == 1 and not self.blocks and self.text and self.figures[0].aspect < SIDE:
            return "side"
        return "wide" if self.figures or self.blocks else "words"


@dataclass(frozen=True)
class Lecture:
    """A lecture as ``teach.md`` tells of it: the rows of its table by name."""

    number: int
    title: str
    rows: dict[str, str]

    @property
    def chapters(self) -> list[str]:
        """The names of its notebooks, in the order of the row "reading"."""
        return re.findall(r"notebooks/([\w-]+)\.ipynb", self.rows["reading"])


def lectures(teach: str) -> list[Lecture]:
    """The lectures of the page for teachers: sections ``## 1. Title`` with a table of two columns."""
    found = []
    for section in re.split(r"^## ", teach, flags=re.MULTILINE)[1:]:
        if title := re.match(r"(\d+)\. (.+)", section):
            rows = re.findall(r"^\| *([\w ]+?) *\| *(.+?) *\|$", section, re.MULTILINE)
            found.append(Lecture(int(title[1]), title[2].strip(), dict(rows)))
    return found


@cache
def bibliography():
    """The entries of the book's bibliography by key."""
    return parse_file(HERE / "references.bib").entries


def citation(keys: str, bracketed: bool) -> str:
    """``(Bolya and Hoffman, 2023)``, or without the brackets around the names, for keys with commas between
    them."""
    said = []
    for entry in (bibliography()[key.strip()] for key in keys.split(",")):
        names = [" ".join(map(str, person.rich_last_names)) for person in entry.persons["author"]]
        authors = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
        year = entry.fields["year"]
        said.append(f"{authors}, {year}" if bracketed else f"{authors} ({year})")
    words = "; ".join(said).replace("{", "").replace("}", "")
    return f"({words})" if bracketed else words


def prose(text: str) -> str:
    """Plain Markdown of the book's MyST: what only Sphinx can resolve becomes words, and exercises go (they
    have slides)."""

    def directive(match: re.Match) -> str:
        name, body = match[2], match[5]
        if name in ("exercise", "solution"):
            return ""
        return f"$$\n{body}$$" if name == "math" else body

    text = DIRECTIVE.sub(directive, text)
    text = re.sub(r"^\$\$ *\([\w-]+\) *$", "$$", text, flags=re.MULTILINE)  # labels of equations
    text = re.sub(r"^\([\w-]+\)= *$", "", text, flags=re.MULTILINE)  # targets
    text = re.sub(ROLE % "cite:p", lambda match: citation(match[1], True), text)
    text = re.sub(ROLE % "cite:t", lambda match: citation(match[1], False), text)
    text = re.sub(r"(?:[Ee]quation )?" + ROLE % "eq", r"equation (\1)", text)
    text = re.sub(r"\{(?:term|ref|numref|doc)\}`([^`<]+?)(?: <[^>`]*>)?`", r"\1", text)
    text = re.sub(r"\{[\w:]+\}`(?:[^`<]+ <)?[~!]?([^`>]+)>?`", r"`\1`", text)  # code
    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", lambda match: match[1] or Path(match[2]).stem, text)


def html(markdown: str) -> str:
    """HTML of Markdown with mathematics, highlighted code and tables."""
    rendered = MarkdownWithMath(renderer=IPythonRenderer(escape=False, exclude_anchor_links=True)).render(
        markdown
    )
    return re.sub(r'(<h\d) id="[^"]*"', r"\1", rendered)


def exercises(text: str) -> dict[str, tuple[str, str]]:
    """Exercise and solution by label, of the text of all Markdown cells of a notebook."""
    asked, solved = {}, {}
    for _, name, argument, options, body in DIRECTIVE.findall(text):
        if name == "exercise":
            asked[re.search(r":label: *([\w-]+)", options)[1]] = body.strip()
        elif name == "solution":
            solved[argument.strip()] = body.strip()
    return {label: (body, solved.get(label, "")) for label, body in asked.items()}


def excerpt(code: str) -> str:
    """Code without the statements that only print or draw what the slide shows below it."""
    lines = code.splitlines()
    for statement in reversed(ast.parse(code).body):
        called = (
            ast.unparse(statement.value.func)
            if isinstance(getattr(statement, "value", None), ast.Call)
            else ""
        )
        if isinstance(statement, ast.Expr) and re.fullmatch(r"print|display|(figures|plt)\.\w+", called):
            del lines[statement.lineno - 1 : statement.end_lineno]
    return "\n".join(lines).strip()


def _figures(cell, chapter: str) -> Iterator[tuple[Figure, bytes]]:
    """The images that a code cell has drawn, with their files' bytes; vector graphics rather than pixels."""
    about = cell.metadata.get("mystnb", {})
    caption, alt = prose(about.get("figure", {}).get("caption", "")), about.get("image", {}).get("alt", "")
    for number, output in enumerate(cell.outputs):
        data = output.get("data", {})
        if svg := data.get("image/svg+xml"):
            content, kind = svg.encode(), "svg"
            width, height = (
                float(re.search(rf'<svg[^>]*\b{side}="([\d.]+)', svg)[1]) for side in ("width", "height")
            )
        elif png := data.get("image/png"):
            content, kind = b64decode(png), "png"
            width, height = struct.unpack(">II", content[16:24])
        else:
            continue
        if not alt:
            raise ValueError(
                f"cell {cell.id} of {chapter} has a figure without a text for those who do not see it"
            )
        name = about.get("figure", {}).get("name", f"{chapter}-{cell.id}-{number}")
        yield Figure(f"figures/{name}.{kind}", alt, caption, width / height), content


def _words(output) -> str | None:
    """Markdown of a computed sentence or table, or of a printed line."""
    if output.output_type == "stream" and output.name == "stdout":
        return f"```text\n{output.text.strip()}\n```"
    return output.get("data", {}).get("text/markdown")


def _show(slide: Slide, cell, chapter: str, files: dict[str, bytes]) -> None:
    """Put on the slide what its tags allow of a code cell, and the computed sentences that are not shown into
    the notes."""
    tags = cell.metadata.get("tags", [])
    if "slide-code" in tags:
        slide.blocks.append(html(f"```python\n{excerpt(cell.source)}\n```"))
    for figure, content in _figures(cell, chapter):
        slide.figures.append(figure)
        slide.notes.append(f"*{figure.caption}*" if figure.caption else "")
        files[figure.file] = content
    for output in cell.outputs:
        table, words = output.get("data", {}).get("text/html"), _words(output)
        if "slide-output" in tags and table:
            slide.blocks.append(re.sub(r"<(style|caption).*?</\1>", "", table, flags=re.DOTALL))
        elif "slide-output" in tags and words:
            slide.blocks.append(html(prose(words)))
        elif words and output.output_type != "stream":
            slide.notes.append(prose(words))


def glued(notebook) -> dict[str, str]:
    """The words that an executed notebook gives to its text, by name: see `catome.study.figures.glue`."""
    found = {}
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        name = output.get("metadata", {}).get("scrapbook", {}).get("name")
        words = [text for kind, text in output.get("data", {}).items() if kind.endswith("text/plain")]
        if name and words:
            found[name] = words[0]
    return found


def fill(notebook) -> None:
    """Put what an executed notebook gives to its text in the place of the roles for it; an ellipsis where it
    gives nothing."""
    given = glued(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(ROLE % "glue:text", lambda match: given.get(match[1], "\u2026"), cell.source)


def slides_of(notebook, chapter: str, files: dict[str, bytes]) -> list[Slide]:
    """The slides of an executed notebook, after one that opens the chapter and has the notes of what comes
    before the first.

    A slide without words whose figure was not drawn, as where nothing is recorded yet, is left out.

    Args:
        notebook: of nbformat, with outputs.
        chapter: its name, for figures that have none.
        files: gets the content of every figure by its file's name.

    Raises:
        ValueError: a slide has no heading, or a figure has no text for those who do not see it.
    """
    title = next(
        re.match(r"# (.+)", cell.source)[1] for cell in notebook.cells if cell.source.startswith("# ")
    )
    found = [Slide(title, kinds=["opener"], footer=title)]
    fill(notebook)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "markdown" and "slide" in tags:
            heading = re.match(r"#+ (.+)\n*", cell.source)
            if not heading:
                raise ValueError(
                    f"the slide {cell.id} of {chapter} does not begin with a heading: {cell.source[:60]!r}"
                )
            kinds = [tag.removeprefix("slide-") for tag in tags if tag.startswith("slide-")]
            found.append(Slide(heading[1], cell.source[heading.end() :], kinds, title))
        elif cell.cell_type == "markdown":
            found[-1].notes.append(prose(cell.source))
        elif cell.cell_type == "code" and "slide-skip" not in tags and len(found) > 1:
            _show(found[-1], cell, chapter, files)
    kept = found[:1]
    for slide in found[1:]:
        if slide.text.strip() or slide.figures or slide.blocks:
            kept.append(slide)
        else:
            kept[-1].notes += slide.notes
    return kept


def _bullets(row: str) -> str:
    return "\n".join(f"- {prose(part.strip())}" for part in row.split(";"))


def exercise_slides(lecture: Lecture, known: dict[str, tuple[str, str]], most: int = 3) -> list[Slide]:
    """The exercises of a lecture's row, at most so many on a slide; their solutions are notes."""
    items = []
    for part in lecture.rows["exercises"].split(";"):
        labels = re.findall(ROLE % "ref", part)
        items += [known[label] for label in labels] or [(part.strip()[0].upper() + part.strip()[1:], "")]
    found = []
    for first in range(0, len(items), most):
        chosen = items[first : first + most]
        text = "\n".join(
            f"{first + i}. {' '.join(prose(asked).split())}" for i, (asked, _) in enumerate(chosen, 1)
        )
        notes = [
            f"**{first + i}.** {prose(solution)}" for i, (_, solution) in enumerate(chosen, 1) if solution
        ]
        found.append(Slide("Exercises" + " (continued)" * bool(first), text, ["exercises"], notes=notes))
    if "programming" in lecture.rows:
        found[-1].text += f"\n\nIn code: {prose(lecture.rows['programming'])}"
    return found


def lecture_slides(lecture: Lecture, executed: Path, files: dict[str, bytes]) -> list[Slide]:
    """All slides of a lecture, from its title to its exercises; ``files`` as in `slides_of`."""
    read = {path.stem: nbformat.read(path, 4) for path in sorted(executed.glob("*.ipynb"))}
    for notebook in read.values():
        fill(notebook)
    words = "\n\n".join(
        c.source for notebook in read.values() for c in notebook.cells if c.cell_type == "markdown"
    )
    title = Slide(lecture.title, f"Afterwards you can\n\n{_bullets(lecture.rows['goals'])}", ["title"])
    title.notes += [
        f"**{name}**: {prose(lecture.rows[name])}"
        for name in ("plan", "reading", "demonstration")
        if name in lecture.rows
    ]
    for cell in read["cover"].cells if "cover" in read else []:
        for figure, content in _figures(cell, "cover") if cell.cell_type == "code" else ():
            title.figures, files[figure.file] = [figure], content
    found, ends = [title], []
    for chapter in lecture.chapters:
        opener, *rest = slides_of(read[chapter], chapter, files)
        if len(lecture.chapters) > 1:
            found.append(opener)
        else:
            title.notes += opener.notes
        found += [slide for slide in rest if "summary" not in slide.kinds]
        ends += [slide for slide in rest if "summary" in slide.kinds]
    mistakes = Slide(
        "Common mistakes",
        f"It is easy to go wrong by\n\n{_bullets(lecture.rows['common mistakes'])}",
        ["mistakes"],
    )
    found += [*ends, mistakes, *exercise_slides(lecture, exercises(words))]
    for slide in found:
        slide.footer = slide.footer or f"Lecture {lecture.number}. {lecture.title}"
    return found


def copy_assets(folder: Path) -> None:
    """reveal.js and its notes, its font, MathJax and the style sheet: everything that a slide loads."""
    reveal, mathjax = (
        Path(importlib.util.find_spec(name).submodule_search_locations[0]) / inside
        for name, inside in (
            ("sphinx_revealjs", "_static/revealjs"),
            ("sphinx-mathjax-offline", "static/mathjax"),
        )
    )
    font = reveal / "dist/theme/fonts/source-sans-pro"
    folder.mkdir(parents=True, exist_ok=True)
    for file in (
        reveal / "dist/reveal.js",
        reveal / "dist/reveal.css",
        *(reveal / f"plugin/{name}/{name}.js" for name in ("notes", "zoom")),
        mathjax / "tex-svg.js",
    ):
        shutil.copy(file, folder)
    shutil.copy(reveal / "LICENSE", folder / "LICENSE-reveal.txt")
    shutil.copy(font / "LICENSE", folder / "LICENSE-source-sans-pro.txt")
    for file in font.glob("*.woff"):
        shutil.copy(file, folder)
    colours = HtmlFormatter(style="a11y-high-contrast-light").get_style_defs(".highlight")
    (folder / "slides.css").write_text((TEMPLATE / "slides.css").read_text() + colours + "\n")


def render(lecture: Lecture, slides: list[Slide], count: int) -> str:
    """The page of a lecture."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["html"] = lambda markdown: Markup(html(markdown))
    environment.filters["inline"] = lambda markdown: Markup(
        re.sub(r"^<p>|</p>\s*$", "", html(markdown).strip())
    )
    return environment.get_template("lecture.html.j2").render(lecture=lecture, slides=slides, count=count)


def build(executed: Path, out: Path, teach: str | None = None) -> list[Path]:
    """Write every lecture and what it needs; returns the pages."""
    held = lectures((HERE / "teach.md").read_text() if teach is None else teach)
    copy_assets(out / "assets")
    pages = []
    for lecture in held:
        files: dict[str, bytes] = {}
        page = render(lecture, lecture_slides(lecture, executed, files), len(held))
        (out / "assets/figures").mkdir(exist_ok=True)
        for name, content in files.items():
            (out / "assets" / name).write_bytes(content)
        pages.append(out / f"lecture_{lecture.number}.html")
        pages[-1].write_text(page)
    return pages


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("executed", type=Path, help="the folder of the executed notebooks")
    parser.add_argument("out", type=Path, help="the folder to write to")
    given = parser.parse_args()
    for path in build(given.executed, given.out):
        print(f"slides: {path}")
