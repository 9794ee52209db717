"""Leave out of the book what no page loads: MathJax in its other bundles, and maps to the sources of scripts
and style sheets."""

from pathlib import Path


def leave_out(app, exception):
    if exception is not None or app.builder.format != "html":
        return
    static, loaded = Path(app.outdir) / "_static", Path(app.config.mathjax_path).name
    for path in [
        *static.rglob("*.map"),
        *(path for path in static.glob("mathjax/*.js") if path.name != loaded),
    ]:
        path.unlink()


def setup(app):
    app.connect("build-finished", leave_out)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
