"""The studies behind the chapters: each a class of parameters, what there is to generate, and a function that
does it.

A study is a module with

- ``NOTEBOOK``, the name of the chapter's notebook, or None;
- ``Parameters``, a class of `catome.study.run.parameters.Setting`, whose defaults are those of the chapter's
  notebook;
- ``jobs(parameters)``, which lists the generations that it needs, and computes nothing;
- ``check(parameters, pipe)``, if there are models that it cannot take, which refuses them before anything is
  computed;
- ``run(parameters, pipe)``, which makes what is missing and returns a result;

and a result has its tables, its comparisons and its intervals as methods, and ``report()`` where no notebook
shows it. The notebook, the command line and the tests all call these.
"""

from __future__ import annotations

from types import ModuleType

from catome.checks import near
from catome.study.studies import (
    allocation,
    compose,
    curves,
    distilled,
    drift,
    frontier,
    headline,
    released,
    schedules,
    short,
    sweep,
    transformer,
    weights,
)

STUDIES: dict[str, ModuleType] = {
    "drift": drift,
    "sweep": sweep,
    "schedules": schedules,
    "headline": headline,
    "weights": weights,
    "short": short,
    "transformer": transformer,
    "allocation": allocation,
    "curves": curves,
    "distilled": distilled,
    "released": released,
    "frontier": frontier,
    "compose": compose,
}
"""The studies that generate images and keep what they found, by the name that the command line gives them."""

OF_CHAPTERS = {name: study for name, study in STUDIES.items() if study.NOTEBOOK}
"""Those that a notebook of the book shows; the others print a report."""


def find(study: str) -> ModuleType:
    """The module of a study.

    Raises:
        ValueError: if there is none of that name.
    """
    if study not in STUDIES:
        raise ValueError(f"study={study!r} is no study{near(study, STUDIES)}; there are {', '.join(STUDIES)}")
    return STUDIES[study]
