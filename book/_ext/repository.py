"""The settings that only the place of publication knows, taken from the environment. Whatever is not set
stays off.

``BASE_URL`` is the site's address, for the canonical links. ``GITHUB_REPOSITORY`` (``owner/name``, set by
Actions) gives every page links to its source and to the issues. With it, ``BINDERHUB_URL`` or
``JUPYTERHUB_URL`` add buttons that open a notebook there: both kinds of hub copy the whole repository, which
the notebooks need.
"""

import os
import re

from sphinx.errors import ConfigError

HUBS = {"binderhub_url": "BINDERHUB_URL", "jupyterhub_url": "JUPYTERHUB_URL"}


def given(name, pattern, example):
    value = os.environ.get(name, "").strip()
    if value and not re.fullmatch(pattern, value):
        raise ConfigError(f"{name}={value!r} in the environment must be like {example}")
    return value


def address(name):
    return given(name, r"https?://[^\s/]+\S*", "https://host/path")


def fill(app, config):
    base, repository = address("BASE_URL"), given("GITHUB_REPOSITORY", r"[\w.-]+/[\w.-]+", "owner/name")
    if base:
        config.html_baseurl = base.rstrip("/") + "/"
    if not repository:
        return
    server = address("GITHUB_SERVER_URL") or "https://github.com"
    environment = os.environ
    options = {
        "repository_url": f"{server}/{repository}",
        "repository_provider": "github",
        "repository_branch": environment.get("GITHUB_BASE_REF")
        or environment.get("GITHUB_REF_NAME")
        or "main",
        "use_repository_button": True,
        "use_source_button": True,
        "use_issues_button": True,
    }
    hubs = {option: url for option, name in HUBS.items() if (url := address(name))}
    if hubs:
        before = config.html_theme_options.get("launch_buttons", {})
        options["launch_buttons"] = {**before, "notebook_interface": "jupyterlab", **hubs}
    config.html_theme_options = {**config.html_theme_options, **options}


def setup(app):
    app.connect("config-inited", fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
