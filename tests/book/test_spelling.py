"""Spelling, British, of all prose: the pages and notebooks, the docstrings, and what the cells of the
rendered book write.

A word is known to the dictionary, to codespell's list of British spellings, or to `words.txt`, the project's
own list. A word that is written with a capital there is a name and wants it everywhere.
"""

import ast
import re
import subprocess
import sys
from functools import cache
from importlib.resources import files
from pathlib import Path

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from markdown_it.renderer import RendererHTML
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser
from spellchecker import SpellChecker

from helpers.paths import ROOT

OWN = ROOT / "tests/book/words.txt"
PAGES = sorted([*ROOT.glob("book/**/*.md"), *ROOT.glob("*.md"), *ROOT.glob("data/tiny-*/README.md")])
NOTEBOOKS = sorted(ROOT.glob("notebooks/**/*.ipynb"))
MODULES = sorted(ROOT.glob("catome/**/*.py"))
PREFIXES = ("anti", "multi", "non", "pre", "re", "semi", "sub", "un")

# directives whose lines are no prose
NO_PROSE = {
    "bibliography",
    "code",
    "code-block",
    "code-cell",
    "eval-rst",
    "image",
    "include",
    "literalinclude",
    "math",
    "raw",
    "toctree",
}
ADDRESS = re.compile(r"https?://\S+|\b[\w.-]+/[\w./-]+|\S+\.(?:py|md|ipynb|yaml|json|svg|png|html|com)\b")
# in a docstring: an example, a section's name, code, an argument that is described
CODE = re.compile(
    r"^\s*>>>.*?(?=\n\s*\n|\Z)|^\s*Args:$|(`+)[^`]+\1|^\s+[\w*, ]+(?=(?: \([^)]*\))?: )", re.M | re.S
)
WORD = re.compile(r"(?<![\w\\.@-])[^\W\d_]+(?:['\u2019][^\W\d_]+)*(?!\w)")
EXTENSIONS = ["amsmath", "colon_fence", "deflist", "dollarmath", "html_image"]
PARSER = create_md_parser(MdParserConfig(enable_extensions=EXTENSIONS), RendererHTML)


def markdown_prose(text: str, first: int = 1):
    """``(line, words)`` of Markdown without its code, mathematics, roles, citations and addresses."""
    for token in PARSER.parse(text):
        line = first + token.map[0] if token.map else first
        if token.type == "front_matter":
            yield line, str(yaml.safe_load(token.content).get("description", ""))
        elif token.type in ("fence", "colon_fence"):
            directive = re.match(r"\{([\w:-]+)\}(.*)", token.info)
            if directive and directive[1] not in NO_PROSE:
                alts = re.findall(r"^:alt:(.*)", token.content, re.M)
                yield line, " ".join([*alts, "" if directive[1] in ("figure", "solution") else directive[2]])
                yield from markdown_prose(re.sub(r"^:[\w-]+:.*", "", token.content, flags=re.M), line + 1)
        elif token.type == "inline":
            for child in token.children:
                line += child.type in ("softbreak", "hardbreak")
                if child.type in ("text", "image"):
                    yield line, child.content


def docstring_prose(text: str):
    text = CODE.sub(lambda found: "\n" * found[0].count("\n") or " ", text)
    yield from enumerate(text.splitlines(), 1)


@cache
def dictionary() -> tuple[frozenset[str], frozenset[str]]:
    """Known words in small letters, and names."""
    british = (
        line.split("->")[0]
        for line in (files("codespell_lib") / "data/dictionary_en-GB_to_en-US.txt").read_text().splitlines()
    )
    own = OWN.read_text().split()
    words = {*SpellChecker("en").word_frequency.keys(), *british, *(word for word in own if word.islower())}
    return frozenset(words), frozenset(word for word in own if not word.islower())


def known(word: str) -> bool:
    words, names = dictionary()
    word = re.sub(r"'s?$", "", word.replace("\u2019", "'"))
    # symbols, names, ABBREVIATIONS, CamelCase
    if len(word) < 3 or word in names or word[1:] != word[1:].lower():
        return True
    small = word.lower()
    return small in words or any(
        small.startswith(prefix) and small[len(prefix) :] in words for prefix in PREFIXES
    )


def misspelt(lines) -> list[str]:
    """``line: word`` of every word that nobody knows."""
    words = (
        (number, word)
        for number, line in lines
        for word in WORD.findall(ADDRESS.sub(" ", line).replace("-", " "))
    )
    return [f"{number}: {word}" for number, word in words if not known(word)]


def notebook_texts(path: Path):
    notebook = nbformat.read(path, 4)
    yield "description", notebook.metadata.get("description", "")
    for number, cell in enumerate(notebook.cells):
        shown = cell.metadata.get("mystnb", {})
        parts = [cell.source if cell.cell_type == "markdown" else "", shown.get("image", {}).get("alt", "")]
        yield f"cell {number}", "\n\n".join([*parts, shown.get("figure", {}).get("caption", "")])


def docstrings(path: Path):
    tree = ast.parse(path.read_text())
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and ast.get_docstring(node):
            yield getattr(node, "name", "module"), ast.get_docstring(node)


def texts():
    """Every piece of prose that is stored: where it is, and its lines."""
    for path in PAGES:
        yield str(path.relative_to(ROOT)), list(markdown_prose(path.read_text()))
    for path in NOTEBOOKS:
        yield from (
            (f"{path.relative_to(ROOT)}, {where}", list(markdown_prose(text)))
            for where, text in notebook_texts(path)
        )
    for path in MODULES:
        yield from (
            (f"{path.relative_to(ROOT)}, {where}", list(docstring_prose(text)))
            for where, text in docstrings(path)
        )
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    yield "CITATION.cff", [(1, str(citation.get(key, ""))) for key in ("title", "abstract", "message")]


def test_every_word_is_known():
    found = list(texts())
    assert len(found) > 100
    unknown = [f"{where}, line {fault}" for where, lines in found for fault in misspelt(lines)]
    assert unknown == [], "misspelt, or words for tests/book/words.txt:\n" + "\n".join(unknown)


def rendered_prose(path: Path) -> list[tuple[int, str]]:
    article = BeautifulSoup(path.read_text(), "html.parser").select_one("article")
    no_prose = (
        "pre, code, script, style, .math, .headerlink, .sig, .classifier, .viewcode-link, .citation, "
        ".download"
    )
    for tag in article.select(f"{no_prose}, a[href*='bibliography.html'], a[href^='#id'], a.external"):
        tag.decompose()
    return [(1, article.get_text(" ")), *((1, image.get("alt", "")) for image in article.select("img"))]


@pytest.mark.book
def test_every_word_that_the_cells_write_is_known(book):
    pages = sorted(path for part in ("book", "notebooks") for path in (book / part).rglob("*.html"))
    unknown = {
        f"{path.stem}: {fault.split(': ')[1]}" for path in pages for fault in misspelt(rendered_prose(path))
    }
    assert unknown == set(), "misspelt, or words for tests/book/words.txt:\n" + "\n".join(sorted(unknown))


def codespell(*paths: Path) -> str:
    command = [
        sys.executable,
        "-m",
        "codespell_lib",
        "--ignore-words",
        str(OWN),
        "--ignore-regex",
        r"\[\w+\]\w+|crossReference",  # the latter is a name of MyST's
        *map(str, paths),
    ]
    return subprocess.run(command, capture_output=True, text=True).stdout


def test_no_common_misspelling(tmp_path):
    """codespell knows misspellings that are words of another kind, and looks into code and comments as
    well."""
    for number, (where, lines) in enumerate(texts()):
        (tmp_path / f"{number}.md").write_text(f"{where}\n" + "\n".join(line for _, line in lines))
    code = (
        path
        for part in ("catome", "book")
        for path in sorted((ROOT / part).rglob("*"))
        if path.suffix in (".py", ".css", ".js")
    )
    assert codespell(tmp_path, *code, ROOT / "Makefile", ROOT / "pyproject.toml") == ""


def test_the_list_of_own_words_is_tidy():
    words = OWN.read_text().split("\n")
    assert words.pop() == ""
    assert words == sorted(set(words), key=lambda word: (word.lower(), word))
    listed = SpellChecker("en").word_frequency
    assert [word for word in words if word.islower() and word in listed] == []


PAGE = """---
description: What tokens aer similar.
---

# The similarty of tokens

Its behaviour, colour and *neighbours* are denoised; [a linq](https://exampel.org/pgae), {cite:p}`bolya2023tome`
and `cdoe`, $\\alhpa$, {func}`catome.mtach`. DeepCache, IoU and JaccardX are names; tokens' own. book/pgae.md

```python
tresholds = 1
```

```{figure} cvoer.svg
:name: cvoer
:alt: A pitcure.

A caption that is worng.
```

jaccard's index is no name in small letters, Jaccard's is.

$$ a = b $$ (eqation)

:::{exercise}
:label: ex-eqation
Is it rihgt?
:::
"""


def test_the_checker_finds_a_typo_and_leaves_what_is_no_prose():
    found = ["1: aer", "5: similarty", "7: linq", "14: pitcure", "18: worng", "21: jaccard's", "27: rihgt"]
    assert misspelt(markdown_prose(PAGE)) == found
    docstring = "Merges toknes.\n\nArgs:\n    dtpye: their kidn.\n    `grdi` (int): hieght.\n\n>>> mtach(x)\n"
    assert misspelt(docstring_prose(docstring)) == ["1: toknes", "4: kidn", "5: hieght"]
    assert not known("checkpionts")
    assert known("checkpoints")


def test_codespell_is_asked(tmp_path):
    (tmp_path / "page.md").write_text("The schedule is wich it was.\n")
    assert "wich ==> which" in codespell(tmp_path)
