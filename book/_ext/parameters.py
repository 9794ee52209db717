"""Fold the cell of the parameters that papermill has put into a notebook, as that of their defaults is."""

import json


def fold(app, docname, source):
    """Give the cell its tag, and words for its button."""
    if not app.env.doc2path(docname).endswith(".ipynb"):
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags", [])
        if "injected-parameters" in tags:
            cell["metadata"]["tags"] = [*tags, "hide-input"]
            cell["metadata"]["mystnb"] = {
                "code_prompt_show": "The parameters of this run",
                "code_prompt_hide": "Hide this",
            }
    source[0] = json.dumps(notebook)


def setup(app):
    app.connect("source-read", fold)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
