"""Fold the cell in which papermill has put a notebook's parameters, as the cell of their defaults is
folded."""


def fold(app, docname, source):
    if app.env.doc2path(docname).endswith(".ipynb"):
        source[0] = source[0].replace('"injected-parameters"', '"injected-parameters", "hide-input"')


def setup(app):
    app.connect("source-read", fold)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
