"""A description in the head of every page: `description` of its front matter or of its notebook's metadata.

The search page shows them under what it found. (Sphinx would fetch every page to quote from it, which a
browser refuses to a book that is opened from a folder.)
"""

import json
from html import escape
from pathlib import Path

WITHOUT_FRONT_MATTER = {
    "book/model_card": (
        "Model card of the embedded Stable Diffusion: its parts, its recipe, its measured quality and its "
        "limits."
    ),
    "book/transformer_card": (
        "Model card of the embedded transformer: its layers, its recipe, its measured quality and its limits."
    ),
    "book/lcm_card": (
        "Model card of the embedded model distilled to few steps: its recipe, its measured quality and its "
        "limits."
    ),
    "search": "Search the book and its reference.",
    "genindex": "Index of every name in the reference.",
    "py-modindex": "Index of the modules in the reference.",
    "_modules/index": "The modules whose source code the book links to.",
}
REDIRECT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<meta name="description" content="{description}" />
<meta http-equiv="refresh" content="0; url={url}" />
<title>{title}</title>
</head>
<body><main><p><a href="{url}">{title}</a></p></main></body>
</html>
"""
SEARCH = """<script>
const described = %s;
document.addEventListener("DOMContentLoaded", () => {
  const describe = (item) => {
    const said = item.matches?.("ul.search > li") && described[item.querySelector("a").getAttribute("href").split("#")[0]];
    if (said) item.appendChild(document.createElement("p")).textContent = said;
  };
  new MutationObserver((changes) => changes.forEach((change) => change.addedNodes.forEach(describe))).observe(
    document.querySelector("#search-results"), {childList: true, subtree: true});
});
</script>
"""


def description(app, pagename: str) -> str:
    if pagename in WITHOUT_FRONT_MATTER:
        return WITHOUT_FRONT_MATTER[pagename]
    if pagename.startswith("_modules/"):
        return f"Source code of {pagename.removeprefix('_modules/').replace('/', '.')}."
    return " ".join(app.env.metadata.get(pagename, {}).get("description", "").split())


def describe(app, pagename, templatename, context, doctree):
    said = description(app, pagename)
    if said:
        context["metatags"] = (
            context.get("metatags", "") + f'\n<meta name="description" content="{escape(said)}" />\n'
        )
    if pagename == "search":
        described = {f"{name}.html": description(app, name) for name in sorted(app.env.found_docs)}
        context["metatags"] += SEARCH % json.dumps(described).replace("</", "<\\/")


def write_redirect(app, exception):
    """index.html leads to the first page, and says so where no browser follows it by itself."""
    if exception is None and app.builder.format == "html":
        root = app.config.root_doc
        page = REDIRECT.format(
            url=f"{root}.html",
            title=escape(app.config.html_title),
            description=escape(description(app, root)),
        )
        (Path(app.outdir) / "index.html").write_text(page)


def setup(app):
    app.connect("html-page-context", describe)
    app.connect("build-finished", write_redirect)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
