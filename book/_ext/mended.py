"""Mend what Sphinx and its extensions write into pages: roles that are out of use, ids that occur twice,
headers without words, links to another name, glued words that are taken for numbers."""

import re

from myst_nb.ext.glue import crossref, roles


def mend(app, pagename, templatename, context, doctree):
    if not context.get("body"):
        return
    body = context["body"]
    # Accessible Rich Internet Applications took `doc-biblioentry` back; a list has list items
    body = body.replace('role="doc-biblioentry"', 'role="listitem"')
    # sphinx-exercise gives every exercise of a page the same id, which nothing points at
    body = re.sub(r'<section id="(?:exercise|solution)-content">', "<section>", body)
    # a corner without words is no header, nor is a row of them
    body = re.sub(r'<thead>\s*<tr[^>]*>(?:\s*<th class="head"><p></p></th>)+\s*</tr>\s*</thead>', "", body)
    context["body"] = re.sub(r"<th[^>]*>(?:<p></p>)?</th>", "<td></td>", body)


def link_back(app, pagename, templatename, context, doctree):
    """Source code leads back to its documentation under the name that it is documented by: its module's, or
    the package's."""
    if not pagename.startswith("_modules/"):
        return
    documented = app.env.get_domain("py").objects
    module = pagename.removeprefix("_modules/").replace("/", ".")

    def under_its_name(found):
        parts = found[2].split(".")
        names = [found[2], *(".".join([module, *parts[i:]]) for i in range(1, len(parts)))]
        return next((f"{found[1]}#{name}" for name in names if name in documented), found[0])

    context["body"] = re.sub(
        r'(class="viewcode-back" href="[^"#]*)#([^"]*)', under_its_name, context.get("body", "")
    )


def as_it_is(text: str, fmt_spec: str) -> str:
    """Return a glued text as it is. MyST-NB evaluates it first, so that 1,200 became (1, 200), and 1.250
    became 1.25."""
    return text


def setup(app):
    roles.format_plain_text = crossref.format_plain_text = as_it_is
    app.connect("html-page-context", mend)
    app.connect("html-page-context", link_back)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
