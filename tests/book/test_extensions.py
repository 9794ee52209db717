"""Tests of what the book's own Sphinx extensions mend."""

import sys

import pytest
from myst_nb.ext.glue import crossref, roles

from helpers.paths import ROOT


@pytest.fixture
def mended(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    for module in (roles, crossref):
        monkeypatch.setattr(module, "format_plain_text", module.format_plain_text)  # put back afterwards
    import mended

    yield mended
    sys.modules.pop("mended", None)


class App:
    """Takes what an extension connects."""

    def connect(self, *given):
        pass


@pytest.mark.parametrize("text", ["1,200", "1.250", "+0.20", "0, 1, 5", "None", "'quoted'"])
def test_glued_words_are_no_python(mended, text):
    mended.setup(App())
    assert roles.format_plain_text(text, "s") == text
    assert crossref.format_plain_text(text, "s") == text
