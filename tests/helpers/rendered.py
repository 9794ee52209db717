"""Checks of what must hold for every page of a rendered book.

Each function takes the book's folder, or a page in a browser, and returns faults."""

from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from playwright.sync_api import TimeoutError

from pdf import CHROMIUM, FLAGS, TYPESET

__all__ = ["CHROMIUM", "FLAGS", "SIZES", "TYPESET"]
SIZES = {"phone": (390, 844), "laptop": (1366, 768), "wide": (1920, 1080)}

# faults of layout: a page that scrolls sideways, words that are cut off, boxes that scroll but cannot be
# reached with the keyboard
LAYOUT = """() => {
  const faults = [], says = (e) => `${e.tagName.toLowerCase()}.${[...e.classList].join(".")}: ${(e.textContent || "").trim().slice(0, 60)}`;
  const style = document.head.appendChild(document.createElement("style"));
  style.textContent = "mjx-assistive-mml { display: none !important }";  // for screen readers: it takes no room on the screen
  const boxes = [...document.body.querySelectorAll("*")].filter((e) => e.checkVisibility({visibilityProperty: true}) && e.clientWidth > 1);
  const clipped = (e) => { for (let p = e.parentElement; p; p = p.parentElement) if (getComputedStyle(p).overflowX !== "visible") return true; };
  const page = document.scrollingElement;
  if (page.scrollWidth > innerWidth) {
    const wide = boxes.filter((e) => e.getBoundingClientRect().left + e.scrollWidth > innerWidth + 0.5 && !clipped(e));
    faults.push(`the page is ${page.scrollWidth - innerWidth} px too wide, ${says(wide.at(-1) || document.body)}`);
  }
  for (const e of boxes) {
    if (e.scrollWidth <= e.clientWidth + 1 || e.closest("mjx-container mjx-math")) continue;
    const overflow = getComputedStyle(e).overflowX;
    if (overflow === "hidden" || overflow === "clip") faults.push(`cut off after ${e.clientWidth} of ${e.scrollWidth} px, ${says(e)}`);
    if ((overflow === "auto" || overflow === "scroll") && e.tabIndex < 0 && !e.querySelector("a[href], button, input, [tabindex='0']"))
      faults.push(`scrolls, but not with the keyboard, ${says(e)}`);
  }
  style.remove();
  return faults;
}"""
# on a screen that is not a phone's, no code and no table is wider than the column that it stands in
SIDEWAYS = """() => [...document.querySelectorAll(".bd-article :is(pre, table)")].flatMap((e) => {
  if (!e.checkVisibility({visibilityProperty: true})) return [];
  let box = e;
  while (!box.matches(".bd-article") && !["auto", "scroll"].includes(getComputedStyle(box).overflowX)) box = box.parentElement;
  const over = box.scrollWidth - box.clientWidth;
  return over > 1 ? [`scrolls sideways by ${over} px, ${e.tagName.toLowerCase()}: ${e.textContent.trim().slice(0, 60)}`] : [];
})"""
NARROW = 900
"""Pixels: the width of a screen below which wide tables may scroll."""
COLOURS = ["color-contrast", "link-in-text-block"]
OPEN = """async () => {
  document.querySelectorAll("details").forEach((e) => { e.open = true; });
  document.querySelectorAll(".toggle-hidden button.toggle-button").forEach((e) => e.click());
  for (let i = 0; i < 3; i++) await new Promise(requestAnimationFrame);
}"""

# code has thousands of words in few colours, and axe takes long over every element: the colours have a test
# of their own
WITHOUT_COLOURED_WORDS = """() => document.querySelectorAll(".highlight pre span:not(:has(a))").forEach((e) => e.replaceWith(...e.childNodes))"""


def pages(book: Path) -> list[Path]:
    """Every page; not the redirect that leads to the first one, nor the slides, which have tests of their
    own."""
    found = (path.relative_to(book) for path in book.rglob("*.html"))
    return sorted(book / path for path in found if path.parts[0] not in ("_static", "slides", "index.html"))


@cache
def parsed(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(), "html.parser")


@cache
def anchors(path: Path) -> frozenset[str]:
    return frozenset(tag.get("id") or tag.get("name") for tag in parsed(path).select("[id], a[name]"))


def references(path: Path) -> list[str]:
    """The addresses that a page links to or loads."""
    soup = parsed(path)
    return [tag[name] for name in ("href", "src") for tag in soup.select(f"[{name}]") if tag.name != "base"]


def broken_links(book: Path) -> tuple[list[str], int]:
    """Links that lead nowhere within the book; and how many lead out of it (those are not tried)."""
    broken, external = [], 0
    for path in [book / "index.html", *pages(book)]:
        for reference in references(path):
            parts = urlsplit(reference)
            if parts.scheme or parts.netloc:
                external += parts.scheme in ("http", "https")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
            if not target.is_file():
                broken.append(f"{path.relative_to(book)}: no file {reference}")
            elif (
                parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in anchors(target)
            ):
                broken.append(f"{path.relative_to(book)}: no anchor {reference}")
    return broken, external


def repeated_ids(book: Path) -> list[str]:
    faults = []
    for path in pages(book):
        ids = [tag["id"] for tag in parsed(path).select("[id]")]
        faults += [
            f"{path.relative_to(book)}: {name}"
            for name in sorted({name for name in ids if ids.count(name) > 1})
        ]
    return faults


def without_alt(book: Path) -> list[str]:
    images = [(path, image) for path in pages(book) for image in parsed(path).select("img")]
    return [
        f"{path.relative_to(book)}: {image.get('src', '')[-60:]}"
        for path, image in images
        if not image.get("alt", "").strip()
    ]


def bad_descriptions(book: Path) -> list[str]:
    """Pages without one description of one sentence, short enough for a search engine to show, that no other
    page has."""
    faults, seen = [], {}
    for path in pages(book):
        name = path.relative_to(book).as_posix()
        found = [tag.get("content", "").strip() for tag in parsed(path).select('meta[name="description"]')]
        if len(found) != 1:
            faults.append(f"{name}: {len(found)} descriptions")
        elif not 20 <= len(found[0]) <= 160 or not found[0].endswith(".") or ". " in found[0]:
            faults.append(f"{name}: no short sentence: {found[0]!r}")
        elif seen.setdefault(found[0], name) != name:
            faults.append(f"{name}: the description of {seen[found[0]]}")
    return faults


def weight(path: Path) -> int:
    """Bytes of a page and of its images. (Scripts and style sheets are the same for all pages: a browser
    loads them once.)"""
    loaded = [urlsplit(image["src"]) for image in parsed(path).select("img[src]")]
    files = {
        (path.parent / unquote(reference.path)).resolve() for reference in loaded if not reference.scheme
    }
    return path.stat().st_size + sum(file.stat().st_size for file in files if file.is_file())


def watch(page, faults: list[str]) -> None:
    """Note every error in the console, every file that does not load, and every request that leaves the
    folder.

    A file that is there, and that the browser gives up because its page is left (``net::ERR_ABORTED``), is no
    fault.
    """

    def failed(request):
        there = Path(unquote(urlsplit(request.url).path)).is_file()
        if not (there and request.failure == "net::ERR_ABORTED"):
            faults.append(f"not loaded: {request.url}")

    page.on("console", lambda said: faults.append(f"console: {said.text}") if said.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    page.on("requestfailed", failed)
    page.on(
        "request",
        lambda r: (
            None if r.url.startswith(("file:", "data:", "blob:")) else faults.append(f"remote: {r.url}")
        ),
    )


def content_faults(page) -> list[str]:
    images = page.eval_on_selector_all("img", "xs => xs.map(x => [x.src, x.naturalWidth, x.naturalHeight])")
    faults = [f"image without size: {src[-60:]}" for src, width, height in images if not (width and height)]
    if page.query_selector(".math") and not page.query_selector("mjx-container"):
        faults.append("mathematics was not typeset")
    return faults


def accessibility_faults(page, rules: list[str] | None = None) -> list[str]:
    """Serious and critical violations that axe-core finds with all its rules, or with some: the rule, the
    element, and why."""
    # without preload: axe would fetch the style sheets again, which a browser refuses to a page from a folder
    options = {"resultTypes": ["violations"], "preload": False}
    if rules:
        options["runOnly"] = {"type": "rule", "values": rules}
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {' '.join(map(str, node['target']))}: "
        f"{node['failureSummary'].splitlines()[-1].strip()}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def context(browser, size: str, theme: str = "light"):
    """A browser's context with a screen of this size, in light or dark, in which nothing moves."""
    width, height = SIZES[size]
    return browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce"
    )


def page_faults(context, path: Path, *themes: str) -> list[str]:
    """Everything that is wrong with a page at the size of this browser context, first in the one theme, then
    in the other; with all that folds opened. What colours do not change is not looked at twice."""
    faults = []
    page = context.new_page()
    watch(page, faults)
    page.emulate_media(color_scheme=themes[0])
    page.goto(path.as_uri(), wait_until="load")
    page.evaluate(TYPESET)
    page.evaluate(OPEN)
    faults += content_faults(page) + page.evaluate(LAYOUT)
    if page.viewport_size["width"] >= NARROW:
        faults += page.evaluate(SIDEWAYS)
    page.evaluate(WITHOUT_COLOURED_WORDS)
    for theme in themes:
        page.emulate_media(color_scheme=theme)
        try:
            page.wait_for_function(
                "(theme) => document.documentElement.dataset.theme === theme", arg=theme, timeout=5000
            )
        except TimeoutError:
            faults.append(f"{theme}: shown in the {page.evaluate('document.documentElement.dataset.theme')}")
        page.evaluate("Promise.allSettled(document.getAnimations().map((fading) => fading.finished))")
        faults += [
            f"{theme}: {fault}"
            for fault in accessibility_faults(page, None if theme == themes[0] else COLOURS)
        ]
    page.close()
    return faults
