"""Leave out sphinx-thebe's scripts, which Jupyter Book always adds (one of them twice, an error in every
page's console)."""


def leave_out(app, pagename, templatename, context, doctree):
    def about(script):
        body = getattr(script, "attributes", {}).get("body", "")
        return f"{getattr(script, 'filename', script)} {body}".lower()

    context["script_files"] = [
        script for script in context.get("script_files", []) if "thebe" not in about(script)
    ]


def setup(app):
    app.connect("html-page-context", leave_out, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
