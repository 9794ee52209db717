"""Every page of the book, as files and in a real browser.

On the book that `make book` makes, a phone in the dark and a laptop in the light, and three pages printed;
`make check-book` takes the book in _build/html (`BOOK` names another folder), three sizes in both themes, and
prints every page.
"""

import html
import os
import re

import nbformat
import pypdfium2
import pytest
from pygments.token import STANDARD_TYPES

from helpers import rendered
from helpers.paths import NOTEBOOKS, ROOT
from helpers.rendered import SIZES
from pdf import print_pages
from slides import glued

pytestmark = pytest.mark.book
GIVEN = "BOOK" in os.environ
COMBINATIONS = (
    [(size, ("light", "dark")) for size in SIZES] if GIVEN else [("phone", ("dark",)), ("laptop", ("light",))]
)
PRINTED = None if GIVEN else ["01_tome_review", "06_headline", "intro"]
MM = 72 / 25.4


def test_every_link_and_anchor_leads_somewhere(book):
    broken, external = rendered.broken_links(book)
    assert broken == []
    assert external > 0


def test_no_id_occurs_twice(book):
    assert rendered.repeated_ids(book) == []


def test_glued_words_are_written_as_they_were_given(book):
    """1,200 and not (1, 200), +0.20 and not 0.2."""
    seen = 0
    for file in sorted((book / "_sources" / "notebooks").glob("*.ipynb")):
        page = book / "notebooks" / f"{file.stem}.html"
        if not page.exists():
            continue
        notebook = nbformat.read(file, 4)
        given = set(map(plain, glued(notebook).values()))
        shown = re.findall(r'<span class="pasted-text">(.*?)</span>', page.read_text(), re.DOTALL)
        assert [words for words in map(plain, map(html.unescape, shown)) if words not in given] == [], (
            file.stem
        )
        seen += len(shown)
    assert seen > 100


def plain(words: str) -> str:
    """Without what typesetting makes of spaces and quotation marks."""
    return " ".join(words.split()).translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'})


def test_no_notebook_keeps_progress_bars_or_warnings(book):
    for file in sorted((book / "_sources" / "notebooks").glob("*.ipynb")):
        outputs = [output for cell in nbformat.read(file, 4).cells for output in cell.get("outputs", [])]
        assert [output.text for output in outputs if output.get("name") == "stderr"] == [], file.stem


def test_every_image_has_a_text(book):
    assert rendered.without_alt(book) == []


def test_every_page_has_a_description(book):
    assert rendered.bad_descriptions(book) == []


def test_the_book_and_its_pages_are_small(book):
    assert sum(path.stat().st_size for path in book.rglob("*") if path.is_file()) < 60e6
    assert [
        f"{path.relative_to(book)}: {rendered.weight(path)} bytes"
        for path in rendered.pages(book)
        if rendered.weight(path) >= 5e6
    ] == []


@pytest.mark.parametrize(
    ("size", "themes"), COMBINATIONS, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_every_page_in_a_browser(book, browser, size, themes):
    every = rendered.pages(book)
    assert len(every) >= 10
    with rendered.context(browser, size) as opened:
        faults = [
            f"{path.relative_to(book)}, {fault}"
            for path in every
            for fault in rendered.page_faults(opened, path, *themes)
        ]
    assert not faults, f"{size}:\n" + "\n".join(faults)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_colour_of_code_can_be_read(book, browser, theme):
    kinds = sorted(kind for kind in STANDARD_TYPES.values() if kind)
    sample = (
        "(kinds) => { document.querySelector('.highlight pre').innerHTML = kinds.map((k) => `<span "
        "class='${k}'>word</span>`).join(' ') }"
    )
    with rendered.context(browser, "laptop", theme) as opened:
        page = opened.new_page()
        page.goto((book / "book/library.html").as_uri())
        page.evaluate(sample, kinds)
        assert (
            len(
                set(
                    page.eval_on_selector_all(
                        ".highlight pre span", "xs => xs.map(x => getComputedStyle(x).color)"
                    )
                )
            )
            > 4
        )
        assert rendered.accessibility_faults(page, rendered.COLOURS) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_search_finds_pages_and_shows_what_they_are_about(book, browser, theme):
    faults = []
    with rendered.context(browser, "laptop", theme) as opened:
        page = opened.new_page()
        rendered.watch(page, faults)
        page.goto((book / "index.html").as_uri())
        page.wait_for_url("**/book/intro.html")  # index.html leads there
        # what is still on its way when a page leads to another one would be given up
        page.wait_for_load_state("load")
        page.keyboard.press("Control+k")
        page.keyboard.type("checkpoint")
        page.keyboard.press("Enter")
        page.wait_for_selector("ul.search li p")
        page.wait_for_function(
            "document.querySelector('#search-results').innerText.includes('Search finished')"
        )
        found = page.eval_on_selector_all(
            "ul.search li", "xs => xs.map(x => [x.querySelector('a').innerText, x.innerText])"
        )
        assert any(title.startswith("5. ") and len(text) > len(title) + 20 for title, text in found), found
        faults += rendered.accessibility_faults(page)
        page.wait_for_load_state("load")
        page.click("ul.search li a:has-text('5. ')")
        page.wait_for_url("**/notebooks/05_checkpoint_schedules.html")
    assert faults == []


def test_a_figure_can_be_enlarged_on_a_phone(book, browser):
    chapter = (book / "notebooks/06_headline.html").as_uri()
    phone = rendered.context(browser, "phone", "dark")
    page = phone.new_page()
    page.goto(chapter, wait_until="load")
    figure = page.locator("figure:has(button.catome-enlarge)").first
    drawn = figure.locator("img").bounding_box()["width"]
    figure.locator("button.catome-enlarge").click()
    dialog = page.locator("dialog.catome-enlarged")
    assert dialog.locator("img").bounding_box()["width"] >= 2 * drawn
    assert dialog.locator("div").evaluate("box => box.scrollWidth > box.clientWidth")
    assert rendered.accessibility_faults(page) == []
    page.keyboard.press("Escape")
    assert dialog.count() == 0
    figure.locator("img").click()  # a tap on the figure does the same
    dialog.get_by_role("button", name="close").click()
    assert dialog.count() == 0
    phone.close()
    laptop = rendered.context(browser, "laptop")
    page = laptop.new_page()
    page.goto(chapter, wait_until="load")
    assert page.locator("button.catome-enlarge").count() > 0
    assert not any(button.is_visible() for button in page.locator("button.catome-enlarge").all())
    laptop.close()


def test_the_figures_to_touch_work_in_the_book(book, browser):
    """Each in its page, from the folder, beside everything else that runs there; what they compute,
    test_interactive holds."""
    laptop = rendered.context(browser, "laptop")
    keys = {"animation": ("moment", "Home"), "merge": ("threshold", "Home"), "time": ("share", "Home")}
    keys |= {"schedule": ("timeline", "Space"), "blind": ("b", "Enter")}
    for place, kind in (
        ("book/intro", "animation"),
        ("notebooks/01_tome_review", "animation"),
        ("notebooks/01_tome_review", "merge"),
        ("notebooks/05_checkpoint_schedules", "schedule"),
        ("notebooks/06_headline", "blind"),
        ("notebooks/07_where_the_time_goes", "time"),
    ):
        faults = []
        page = laptop.new_page()
        rendered.watch(page, faults)
        page.goto((book / f"{place}.html").as_uri(), wait_until="load")
        ready = f"document.querySelector('.catome-{kind}')?.dataset.ready"
        page.wait_for_function(ready)
        before = page.evaluate(ready)
        control, key = keys[kind]
        page.locator(f".catome-{kind} :is([data-part={control}], [data-answer={control}]):not(img)").focus()
        page.keyboard.press(key)
        page.wait_for_function(f"![undefined, '', {before!r}].includes({ready})")
        assert faults == [], place
        page.close()
    laptop.close()


def test_the_reader_s_theme_is_kept(book, browser):
    with rendered.context(browser, "laptop", "light") as opened:
        page = opened.new_page()
        page.goto((book / "book/intro.html").as_uri())
        shown = []
        for _ in range(3):
            page.click(".bd-header-article .theme-switch-button")
            shown.append(page.evaluate("document.documentElement.dataset.theme"))
        assert sorted(shown) == ["dark", "light", "light"]  # light and dark, and as the system has it
        while page.evaluate("document.documentElement.dataset.mode") != "dark":
            page.click(".bd-header-article .theme-switch-button")
        page.goto((book / "book/library.html").as_uri())
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def text_of(document) -> list[str]:
    return [" ".join(page.get_textpage().get_text_range().split()) for page in document]


def test_the_printed_book(book, browser, tmp_path):
    expected = {path.stem: path for part in ("book", "notebooks") for path in (book / part).rglob("*.html")}
    files = print_pages(browser, book, tmp_path, PRINTED)
    assert {file.stem for file in files} == set(PRINTED or expected)
    for file in files:
        article, document = (
            rendered.parsed(expected[file.stem]).select_one("article"),
            pypdfium2.PdfDocument(file),
        )
        texts = text_of(document)
        assert 1 <= len(texts) <= 30, file.stem
        whole = " ".join(texts).replace(" ", "")
        for heading in article.select("h1, h2, h3"):
            words = heading.get_text().strip().removesuffix("#")
            assert heading.select(".math") or words.replace(" ", "") in whole, (file.stem, words)
        assert "Showcodecell" not in whole, file.stem
        assert "Solutionto" not in whole, file.stem
        for number, (page, text) in enumerate(zip(document, texts, strict=True), 1):
            assert f"{number} / {len(texts)}" in text, (file.stem, number)
            images = list(
                page.get_objects(filter=[pypdfium2.raw.FPDF_PAGEOBJ_IMAGE, pypdfium2.raw.FPDF_PAGEOBJ_FORM])
            )
            assert len(text) > 100 or images, f"{file.stem}: page {number} is empty"
            boxes = page.get_textpage()
            lines = [boxes.get_rect(i) for i in range(boxes.count_rects())]
            # MathJax draws braces with bars from left of the page, clipped
            right = max(line[2] for line in lines if line[0] > 0)
            assert right <= page.get_width() - 15 * MM, f"{file.stem}: page {number} is cut off"


def test_solutions_are_printed_on_demand_and_paper_is_white(book, browser, tmp_path):
    (closed,) = print_pages(browser, book, tmp_path / "closed", ["01_tome_review"])
    (opened,) = print_pages(browser, book, tmp_path / "open", ["01_tome_review"], solutions=True)
    assert "Solution to" not in " ".join(text_of(pypdfium2.PdfDocument(closed)))
    assert " ".join(text_of(pypdfium2.PdfDocument(opened))).count("Solution to") == 2
    with rendered.context(browser, "laptop", "dark") as night:
        page = night.new_page()
        page.goto((book / "book/intro.html").as_uri())
        printed = pypdfium2.PdfDocument(page.pdf(prefer_css_page_size=True, print_background=True))
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert printed[0].render(grayscale=True).to_numpy().mean() > 200


FAULTY = """<!DOCTYPE html><html lang="en" data-theme="light"><head><title>t</title></head><body><main><h1>t</h1>
<p id="twice">a</p><p id="twice">b</p><p class="pale" style="color:#bbb">pale</p><a href="gone.html">gone</a> <a href="#nowhere">nowhere</a>
<img src="gone.png"><div style="width:600px">too wide</div>
<div style="width:50px;overflow:hidden;white-space:nowrap">words that are cut off</div>
<div style="width:50px;overflow:auto;white-space:nowrap">words that scroll</div>
<article class="bd-article"><pre style="width:50px;overflow:auto">code that is wide</pre></article>
<script>console.error("a complaint"); fetch("http://127.0.0.1:9/")</script></main></body></html>"""


def test_the_checks_see_what_is_wrong(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(FAULTY)
    (tmp_path / "index.html").write_text('<a href="page.html">page</a>')
    broken, _ = rendered.broken_links(tmp_path)
    assert [fault.split(": ")[1] for fault in broken] == [
        "no file gone.html",
        "no anchor #nowhere",
        "no file gone.png",
    ]
    assert rendered.repeated_ids(tmp_path) == ["page.html: twice"]
    assert rendered.without_alt(tmp_path) == ["page.html: gone.png"]
    assert rendered.bad_descriptions(tmp_path) == ["page.html: 0 descriptions"]
    assert rendered.weight(page) == page.stat().st_size
    with rendered.context(browser, "phone", "light") as opened:
        found = "\n".join(rendered.page_faults(opened, page, "dark"))
    assert "scrolls sideways" not in found  # on a phone it may
    with rendered.context(browser, "laptop", "light") as opened:
        found += "\n".join(rendered.page_faults(opened, page, "light"))
    for fault in (
        "scrolls sideways by",
        "console: a complaint",
        "remote: http://127.0.0.1:9/",
        "not loaded: file",
        "dark: shown in the light",
        "image without size",
        "too wide, div.: too wide",
        "cut off after 50",
        "scrolls, but not with the keyboard, div.: words that scroll",
        "color-contrast (serious): .pale",
        "image-alt (critical)",
    ):
        assert fault in found, (fault, found)


def test_the_book_has_every_page(book):
    pages = {path.relative_to(book).as_posix() for path in book.rglob("*.html")}
    assert "index.html" in pages
    assert {f"notebooks/{path.stem}.html" for path in NOTEBOOKS} <= pages
    assert {f"book/{path.stem}.html" for path in (ROOT / "book").glob("*.md")} <= pages
    for page in pages - {"index.html", "genindex.html", "search.html", "py-modindex.html"}:
        text = (book / page).read_text()
        assert 'class="output traceback' not in text, page


def test_parameters_are_folded(book):
    page = (book / "notebooks/01_tome_review.html").read_text()
    assert re.search(r'class="[^"]*tag_injected-parameters[^"]*"', page)
    assert all(
        "tag_hide-input" in found for found in re.findall(r'class="[^"]*tag_injected-parameters[^"]*"', page)
    )


def test_the_exercises_and_the_slides_are_there(book):
    assert len(list((book / "notebooks/exercises").glob("*.html"))) == 5
    assert len(list((book / "slides").glob("lecture_*.html"))) == 5
