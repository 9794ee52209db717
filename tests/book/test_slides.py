"""The slides: what the converter puts on them, the slides in the notebooks, and every slide of the built book
in a real browser."""

import ast
import base64
import re

import nbformat
import pytest
from bs4 import BeautifulSoup

import slides
from helpers.paths import ROOT
from helpers.rendered import CHROMIUM, FLAGS, accessibility_faults, watch

TEACH = (ROOT / "book/teach.md").read_text()
LECTURES = slides.lectures(TEACH)
CHAPTERS = [chapter for lecture in LECTURES for chapter in lecture.chapters]
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="400pt" height="%dpt" viewBox="0 0 400 200"><rect width="9" height="9"/></svg>'
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TINY_TEACH = """
# Teach

## 1. One thing

| | |
|---|---|
| reading | [Chapter 1](../notebooks/one.ipynb); {cite:t}`bolya2023tome` |
| goals | see it; say $x$ |
| exercises | {ref}`ex-one`; by hand |
| common mistakes | taking it for another |
| programming | [Programming](exercises.md) |

## Projects
"""


def markdown(source, *tags):
    return nbformat.v4.new_markdown_cell(source, metadata={"tags": list(tags)})


def code(source, *tags, outputs=(), alt="A square.", name=None, caption="First of all. Then more."):
    about = {"image": {"alt": alt}, "figure": {"caption": caption} | ({"name": name} if name else {})}
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": list(tags), "mystnb": about})
    cell.outputs = [
        nbformat.v4.new_output("stream", text=value)
        if mime == "stdout"
        else nbformat.v4.new_output("display_data", {mime: value, "text/plain": "PLAIN"})
        for mime, value in outputs
    ]
    return cell


def notebook(*cells):
    return nbformat.v4.new_notebook(
        cells=[markdown("# 1. The chapter\n\nOPENING prose, by {cite:p}`bolya2023tome`."), *cells]
    )


def tiny():
    return notebook(
        code("SECRET = 1\nprint(SECRET)", "parameters", outputs=[("stdout", "PRINTED BEFORE")]),
        markdown("### A figure tells\n\n- one $x^2$", "slide", "remove-cell"),
        markdown(
            "PROSE of the chapter, see {func}`catome.match`, {term}`slots <Slot>` and [the "
            "map](../book/field.md)."
        ),
        code(
            "SECRET_DRAWING()",
            outputs=[("image/svg+xml", SVG % 100), ("text/html", "<b>TABLE NOT ASKED FOR</b>")],
            name="wide",
        ),
        code("say()", outputs=[("text/markdown", "COMPUTED, by {cite:t}`bolya2023tomesd`.")]),
        code(
            "skip()",
            "slide-skip",
            outputs=[("image/svg+xml", SVG % 100), ("text/markdown", "SKIPPED")],
            name="skipped",
        ),
        markdown("### A table and some code\n\n- two", "slide", "remove-cell", "slide-live"),
        code(
            "shown = match(tokens)\nprint(\n    shown\n)\nfigures.draw(shown)",
            "slide-code",
            "slide-output",
            outputs=[
                ("stdout", "PRINTED LINE"),
                ("text/html", "<style>x</style><table><tr><td>CELL</td></tr></table>"),
            ],
        ),
        markdown("### Two figures", "slide", "remove-cell"),
        code("a()", outputs=[("image/svg+xml", SVG % 400)], name="tall"),
        code("b()", outputs=[("image/png", PNG)]),
        markdown("### Nothing was drawn", "slide", "remove-cell"),
        markdown("NOTE of what was not drawn"),
        markdown("### The end\n\n- all", "slide", "remove-cell", "slide-summary"),
        markdown(
            "```{exercise}\n:label: ex-one\nWHAT is it, by {eq}`cosine`?\n```\n\n```{solution} "
            "ex-one\n:class: dropdown\nTHAT.\n```"
        ),
        markdown("### After the summary\n\n- still to come", "slide", "remove-cell"),
    )


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    (folder / "executed").mkdir()
    nbformat.write(tiny(), folder / "executed/one.ipynb")
    pages = slides.build(folder / "executed", folder / "out", TINY_TEACH)
    assert pages == [folder / "out/lecture_1.html"]
    return pages[0]


@pytest.fixture(scope="module")
def sections(converted):
    """Heading -> (what is shown, its notes), in the deck's order."""
    found = {}
    for section in BeautifulSoup(converted.read_text(), "html.parser").select("section"):
        notes = section.select_one("aside.notes")
        sheet = section.select_one(".sheet")
        found[sheet.select_one("h1, h2").text] = (sheet, notes.text if notes else "")
    return found


def test_a_lecture_in_its_order(sections):
    # an empty slide is left out, the summary goes to the end, and what teach.md says frames the rest
    assert list(sections) == [
        "One thing",
        "A figure tells",
        "A table and some code",
        "Two figures",
        "After the summary",
        "The end",
        "Common mistakes",
        "Exercises",
    ]
    assert "see it" in sections["One thing"][0].text
    assert "OPENING prose, by (Bolya et al., 2023)." in sections["One thing"][1]
    assert "taking it for another" in sections["Common mistakes"][0].text


def test_only_slides_figures_and_what_is_asked_for_are_shown(sections):
    shown = "\n".join(str(sheet) for sheet, _ in sections.values())
    for hidden in (
        "SECRET",
        "PROSE",
        "OPENING",
        "COMPUTED",
        "NOT ASKED FOR",
        "PRINTED BEFORE",
        "PLAIN",
        "SKIPPED",
        "THAT.",
        "NOTE of",
    ):
        assert hidden not in shown, hidden
    figure, notes = sections["A figure tells"]
    assert [(image["src"], image["alt"]) for image in figure.select("img")] == [
        ("assets/figures/wide.svg", "A square.")
    ]
    assert figure.select_one("figcaption").text == "First of all."
    assert "$x^2$" in figure.text
    assert "PROSE of the chapter, see catome.match, slots and the map." in " ".join(notes.split())
    assert "COMPUTED, by Bolya and Hoffman (2023)." in notes
    assert "First of all. Then more." in notes
    assert "SKIPPED" not in notes
    assert "NOTE of what was not drawn" in sections["Two figures"][1]


def test_code_and_tables_where_a_tag_asks(sections):
    sheet, _ = sections["A table and some code"]
    assert "shown = match(tokens)" in sheet.text
    assert "print" not in sheet.text
    assert "figures.draw" not in sheet.text
    assert "PRINTED LINE" in sheet.text
    assert sheet.select_one("td").text == "CELL"
    assert sheet.select_one("style") is None
    assert "live" in sheet["class"]


def test_a_tall_figure_stands_beside_the_words():
    def layout(text, *heights):
        figures = [slides.Figure("f", "a", "c", 400 / height) for height in heights]
        return slides.Slide("h", text, figures=figures).layout

    assert layout("- one", 400) == "side"
    assert layout("- one", 100) == layout("", 400) == layout("- one", 400, 400) == "wide"
    assert layout("- one") == "words"


def test_exercises_are_shown_and_their_solutions_are_notes(sections):
    sheet, notes = sections["Exercises"]
    assert [" ".join(item.text.split()) for item in sheet.select("li")] == [
        "WHAT is it, by equation (cosine)?",
        "By hand",
    ]
    assert "In code: Programming" in sheet.text
    assert "THAT." in notes


def test_figures_are_files_of_the_right_kind(converted):
    figures = converted.parent / "assets/figures"
    assert {file.name for file in figures.iterdir()} >= {"wide.svg", "tall.svg"}
    assert "skipped.svg" not in {file.name for file in figures.iterdir()}
    assert [file.read_bytes() for file in figures.glob("*.png")] == [base64.b64decode(PNG)]


def test_a_page_loads_nothing_but_its_assets(converted):
    soup = BeautifulSoup(converted.read_text(), "html.parser")
    loaded = [tag[name] for name in ("src", "href") for tag in soup.select(f"[{name}]")]
    assert len(loaded) >= 8
    assert [name for name in loaded if not (converted.parent / name).is_file()] == []
    style = (converted.parent / "assets/slides.css").read_text()
    assert all(
        (converted.parent / "assets" / name).is_file() for name in re.findall(r'url\("(.+?)"\)', style)
    )


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ([markdown("no heading", "slide")], "does not begin with a heading: 'no heading'"),
        (
            [markdown("# x", "slide"), code("f()", outputs=[("image/svg+xml", SVG % 9)], alt="")],
            "without a text for those who do not",
        ),
    ],
)
def test_what_a_slide_must_have(cells, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        slides.slides_of(notebook(*cells), "one", {})


@pytest.mark.parametrize(
    ("myst", "plain"),
    [
        ("```{math}\n:label: x\na = b\n```\nmore", "$$\na = b\n$$\nmore"),
        ("$$\na\n$$ (label)\nmore", "$$\na\n$$\nmore"),
        ("(target)=\n## Head", "\n## Head"),
        ("````{solution} x\n:class: dropdown\n```python\n1\n```\n````\nrest", "\nrest"),
        ("```{note}\nsaid\n```", "said\n"),
        (
            "{term}`src and dst`, {numref}`fig`, {class}`~catome.MergePlan`",
            "src and dst, fig, `catome.MergePlan`",
        ),
        ("+1.10 dB [+0.63, +1.57] (so)", "+1.10 dB [+0.63, +1.57] (so)"),
        ("[](../book/rerun.md)", "rerun"),
        ("```python\nx = 1\n```", "```python\nx = 1\n```"),
    ],
)
def test_prose_for_a_reader_without_sphinx(myst, plain):
    assert slides.prose(myst) == plain


def test_every_lecture_of_the_page_for_teachers():
    assert [lecture.number for lecture in LECTURES] == [1, 2, 3, 4, 5]
    assert sorted(CHAPTERS) == sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
    for lecture in LECTURES:
        assert {
            "slides",
            "reading",
            "plan",
            "goals",
            "demonstration",
            "exercises",
            "programming",
            "common mistakes",
        } <= set(lecture.rows)
        assert f'<a href="../slides/lecture_{lecture.number}.html">' in lecture.rows["slides"]
        assert sum(map(int, re.findall(r"(\d+) min ", lecture.rows["plan"]))) == 90
        assert (
            ROOT / "notebooks/exercises" / re.search(r"`(.+?)`", lecture.rows["programming"])[1]
        ).is_file()


def cells_of(chapter):
    return nbformat.read(ROOT / f"notebooks/{chapter}.ipynb", 4).cells


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_slides_in_the_notebooks(chapter):
    """A slide is for the room: the book leaves it out, it says one thing, and what it tells to change can be
    changed."""
    cells = cells_of(chapter)
    written = [cell for cell in cells if "slide" in cell.metadata.get("tags", [])]
    assert len(written) >= 5
    assert [cell for cell in written if "slide-summary" in cell.metadata.tags]
    program = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    names = {node.id for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Name)}
    for cell in written:
        assert cell.cell_type == "markdown"
        assert "remove-cell" in cell.metadata.tags, cell.id
        assert cell.metadata.slideshow.slide_type == "slide", cell.id
        assert re.match(r"### \S", cell.source), cell.id
        assert len(re.findall(r"^- ", cell.source, re.MULTILINE)) <= 3, cell.id
        for block in re.findall(r"```python\n(.+?)```", cell.source, re.DOTALL):
            used = ast.parse(block)
            set_here = {
                node.id
                for node in ast.walk(used)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            }
            read = {node.id for node in ast.walk(used) if isinstance(node, ast.Name)} - set_here
            assert read <= names | {"print"}, (cell.id, read - names)
            if not read:  # nothing but parameters
                assert set_here <= names, (cell.id, set_here - names)
    for cell in cells:  # tags for slides are where they mean something
        meant = {"slide-code", "slide-output", "slide-skip"} & set(cell.metadata.get("tags", []))
        assert not meant or cell.cell_type == "code", cell.id


def test_the_map_on_a_slide_is_the_book_s():
    def table(text):
        return re.search(r"^(\|.*\n?)+", text, re.MULTILINE)[0].strip()

    shown = next(
        cell.source
        for cell in cells_of("07_where_the_time_goes")
        if "slide-map" in cell.metadata.get("tags", [])
    )
    assert table(shown) == table((ROOT / "book/field.md").read_text())


# what does not fit: boxes that leave the sheet, lie upon its heading or footer, or hold more than they show;
# words too small for a room
FIT = """() => {
  const faults = [], sheet = Reveal.getCurrentSlide().querySelector(".sheet"), body = sheet.querySelector(".body");
  const inside = (box, frame) => box.left >= frame.left - 1 && box.right <= frame.right + 1 && box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1;
  for (const e of sheet.querySelectorAll("*")) {
    if (e.matches("script") || e.parentElement.closest("mjx-container, svg")) continue;
    const box = e.getBoundingClientRect(), says = `${e.tagName.toLowerCase()}.${e.classList}: ${e.textContent.trim().slice(0, 40)}`;
    if (!box.width || !box.height) continue;
    if (!inside(box, sheet.getBoundingClientRect())) faults.push("leaves the sheet, " + says);
    if (body && body.contains(e) && !inside(box, body.getBoundingClientRect())) faults.push("upon the heading or the footer, " + says);
    if (e.scrollWidth > e.clientWidth + 1 && e.clientWidth && getComputedStyle(e).display !== "inline") faults.push("too wide, " + says);
  }
  for (const e of sheet.querySelectorAll("h1, h2, .text li, .text p, .block li, .block p, pre, td, figcaption"))
    if (parseFloat(getComputedStyle(e).fontSize) < 19) faults.push("too small, " + e.textContent.slice(0, 40));
  return faults;
}"""


@pytest.mark.book
@pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the path: install it to test the slides in a browser"
)
@pytest.mark.parametrize("lecture", LECTURES, ids=lambda lecture: str(lecture.number))
def test_every_slide_in_a_browser(book, lecture):
    from playwright.sync_api import sync_playwright

    faults, headings, drawn = [], [], 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        watch(page, faults)
        page.goto((book / f"slides/lecture_{lecture.number}.html").as_uri(), wait_until="load")
        page.wait_for_function(
            "Reveal.isReady() && MathJax.startup && document.querySelector('.sheet mjx-container')"
        )
        page.evaluate("MathJax.startup.promise")
        page.evaluate("document.fonts.ready")
        count = page.evaluate("Reveal.getTotalSlides()")
        for number in range(1, count + 1):
            current = page.evaluate_handle("Reveal.getCurrentSlide()").as_element()
            faults += [f"{number}: {fault}" for fault in page.evaluate(FIT) + accessibility_faults(page)]
            headings.append(current.query_selector("h1, h2").inner_text().strip())
            for image in current.query_selector_all("img"):
                width, height, alt = image.evaluate(
                    "e => [e.naturalWidth && e.clientWidth, e.clientHeight, e.alt]"
                )
                drawn += 1
                if width < 300 or height < 150 or len(alt) < 20:
                    faults.append(f"{number}: figure of {width} by {height}: {alt}")
            page.keyboard.press("Space")
        assert page.evaluate("Reveal.isLastSlide()")
        notes = page.eval_on_selector_all("aside.notes", "xs => xs.map(x => x.textContent.trim().length)")
        assert page.evaluate("document.fonts.check('600 42px \"Source Sans Pro\"')")
        browser.close()
    assert not faults, "\n".join(faults)
    assert all(headings)
    assert headings[0] == lecture.title
    assert {"Common mistakes", "Exercises"} <= set(headings)
    assert any(heading.startswith("Try it live") for heading in headings)
    assert 12 <= count <= 30
    assert drawn >= 5
    assert len(notes) >= count // 2
    assert min(notes) > 0


@pytest.mark.book
def test_every_slide_and_its_figure_is_in_a_lecture(book):
    """The figures and the slides of the notebooks reach the decks, and the slides do not reach the book's
    pages."""
    decks = {
        lecture.number: (book / f"slides/lecture_{lecture.number}.html").read_text() for lecture in LECTURES
    }
    for lecture in LECTURES:
        shown = {tag.text for tag in BeautifulSoup(decks[lecture.number], "html.parser").select("h2")}
        for chapter in lecture.chapters:
            written = [
                cell.source for cell in cells_of(chapter) if "slide-live" in cell.metadata.get("tags", [])
            ]
            written += [
                cell.source for cell in cells_of(chapter) if "slide-summary" in cell.metadata.get("tags", [])
            ]
            page = (book / f"notebooks/{chapter}.html").read_text()
            for heading in (re.sub(r"[*_]", "", re.match(r"### (.+)", source)[1]) for source in written):
                assert heading in shown
                assert heading not in BeautifulSoup(page, "html.parser").text
    for name in (
        "merged",
        "similarity-by-step",
        "threshold-sweep",
        "staleness-maps",
        "headline",
        "least-time",
    ):
        assert any(f"assets/figures/{name}.svg" in deck for deck in decks.values()), name


@pytest.mark.book
@pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the path: install it to test the slides in a browser"
)
def test_notes_and_print(book, tmp_path):
    """S opens the speaker's window on the right slide, offline; print-pdf gives one page for each slide."""
    import pypdfium2
    from playwright.sync_api import sync_playwright

    faults, path = [], book / "slides/lecture_1.html"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = browser.new_context(viewport={"width": 1280, "height": 720})
        context.on(
            "request",
            lambda r: None if r.url.startswith(("file:", "data:", "about:")) else faults.append(r.url),
        )
        page = context.new_page()
        page.goto(path.as_uri())
        page.wait_for_function("Reveal.isReady() && document.querySelector('.notes mjx-container')")
        page.evaluate(
            "Reveal.slide(Reveal.getSlides().findIndex((slide) => slide.querySelector('.notes "
            "mjx-container')))"
        )
        with context.expect_page() as opened:
            page.keyboard.press("s")
        said = page.eval_on_selector("section.present aside.notes", "e => e.textContent")
        opened.value.wait_for_function(
            "document.querySelector('.speaker-controls-notes .value')?.textContent.trim().length > 40"
        )
        shown = opened.value.eval_on_selector(".speaker-controls-notes .value", "e => e.textContent")
        assert shown.split()[:5] == said.split()[:5]
        count = page.evaluate("Reveal.getTotalSlides()")
        page.goto(path.as_uri() + "?print-pdf")
        page.wait_for_function(f"document.querySelectorAll('.pdf-page').length == {count}")
        page.pdf(path=tmp_path / "slides.pdf", prefer_css_page_size=True, print_background=True)
        browser.close()
    assert faults == []
    printed = pypdfium2.PdfDocument(tmp_path / "slides.pdf")
    assert len(printed) == count
    width, height = printed[0].get_size()
    assert width / height == pytest.approx(16 / 9, rel=0.01)


def test_glued_words_come_into_the_notes():
    gluing = code("figures.glue(share='a tenth')", "remove-cell", "slide-skip")
    record = {"application/papermill.record/text/plain": "a tenth"}
    gluing.outputs = [
        nbformat.v4.new_output("display_data", record, metadata={"scrapbook": {"name": "share"}})
    ]
    text = markdown("It merges {glue:text}`share`, and {glue:text}`unknown` of it.")
    (opener,) = slides.slides_of(notebook(text, gluing), "one", {})
    assert "It merges a tenth, and … of it." in " ".join(opener.notes)
