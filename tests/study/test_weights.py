"""The four ways to merge, and what their rows are said to show."""

import re
from types import SimpleNamespace
from zlib import crc32

import nbformat
import numpy as np
import pandas as pd
import pytest

import catome
from catome.patch import applied_patch
from catome.study import methods
from catome.study.measure.comparison import Comparison
from catome.study.run.store import CHECKOUT
from catome.study.studies import weights
from catome.study.studies.weights import BOTH, KEPT, MERGED, WEIGHTED, Parameters, Result
from helpers.labels import from_label


def result(psnr: dict, share: float = 0.5, images: int = 12, **params) -> Result:
    """A result whose images have the PSNR ``psnr[way, threshold]``, a little scattered; all others have 30 dB."""
    asked = Parameters(thresholds=sorted({t for _, t in psnr}), **params)
    scatter = np.linspace(-0.1, 0.1, images)
    at = {weights.sweep_of(asked)[key].label: value for key, value in psnr.items()}
    rows = []
    for method in weights._all_of(asked):
        # differences between methods vary over the images, too: every method has an order of its own
        order = np.random.default_rng(crc32(method.label.encode())).permutation(scatter)
        merged = [] if method.family == "ToDo" else [share, share / 2]
        for image in range(images):
            values = {"method": method.label, "image": image, "psnr": at.get(method.label, 30.0) + order[image]}
            rows.append(values | {"merged_share": np.array(merged)})
    made = Comparison(pd.DataFrame(rows), [method.label for method in weights._all_of(asked)], "scene", {})
    return Result(asked, weights.sweep_of(asked), weights.changes_of(asked), weights.peers_of(asked), made)


FLAT = {(way, t): 30.0 for way in (MERGED, WEIGHTED, KEPT, BOTH) for t in (0.4, 0.7, 0.9)}


@pytest.mark.parametrize(
    ("dip", "weighted", "said"),
    [
        (
            2.0,
            -1.0,
            "Weights remove the dip: they bring 3.0 dB [2.9, 3.1] more at its lowest point than at the lowest threshold.",
        ),
        (2.0, 1.0, "Weights do not remove the dip."),
        (0.08, 0.03, "With weights no dip can be told from chance."),
        (-1.0, -2.0, "This sweep has no dip that can be told from chance."),
    ],
)
def test_what_is_said_of_the_dip_follows_from_the_intervals(dip, weighted, said):
    """``dip``: how much closer the lowest threshold is than the one above it."""
    psnr = FLAT | {(MERGED, 0.7): 30 - dip, (MERGED, 0.9): 40, (WEIGHTED, 0.7): 30 - weighted, (WEIGHTED, 0.9): 40}
    found = result(psnr)
    worst, (mean, low, high) = found.dip(MERGED)
    assert worst == 0.7
    assert low < mean < high
    assert mean == pytest.approx(dip, abs=1e-6)
    assert found.filled() == said


def test_one_threshold_has_no_dip():
    found = result({key: value for key, value in FLAT.items() if key[1] == 0.7})
    assert found.dip(MERGED) == (0.7, (0.0, 0.0, 0.0))
    assert found.filled() == "This sweep has no dip that can be told from chance."
    assert found.words()["middle"] == "0.7"


@pytest.mark.parametrize("factor", [1, 5, 2.5])
def test_a_factor_that_no_share_of_tokens_stands_beside(factor):
    with pytest.raises((ValueError, TypeError), match=f"factor={factor} must be"):
        Parameters.checked({"factor": factor})


def test_the_scores_left_count_queries_where_they_are_merged():
    found = result(FLAT, share=0.5)  # 0.5 and 0.25 at two steps
    assert found.scores_left(found.sweep[WEIGHTED, 0.7]) == pytest.approx((0.5**2 + 0.75**2) / 2)
    assert found.scores_left(found.sweep[BOTH, 0.7]) == pytest.approx((0.5 + 0.75) / 2)
    assert found.scores_left(found.peers["ToDo, factor 2"]) == 0.25


def test_peers_stand_beside_the_highest_threshold_that_leaves_no_more_scores():
    found = result(FLAT, share=0.9)
    rows = found.made.rows
    gentle = found.sweep[BOTH, 0.9].label
    rows.loc[rows["method"] == gentle, "merged_share"] = rows["merged_share"].map(lambda share: share / 10)
    table = found.against_peers()
    assert not table.index.str.startswith(BOTH).any()  # they leave a third of the scores or more, and the peers leave less
    rows.loc[rows["method"] == found.sweep[BOTH, 0.7].label, "merged_share"] = rows["merged_share"].map(lambda s: 0 * s + 0.8)
    table = found.against_peers().set_index("minus", append=True)
    assert table.loc[(f"{BOTH}, t = 0.7", "ToDo, factor 2"), "scores left"] == "0.20 - 0.25"


def test_each_change_is_measured_against_the_row_above_it():
    found = result(FLAT)
    rows = found.made.rows
    labels = [method.label for method in found.changes.values()]
    for number, label in enumerate(labels):
        rows.loc[rows["method"] == label, "psnr"] = 30.0 + number**2
    table = found.steps()
    first, *others = table["the change (dB)"]
    assert first == ""
    for number, said in enumerate(others, 1):
        assert float(said.split()[0]) == pytest.approx(2 * number - 1)
    assert table.loc["CA-ToMe", "PSNR (dB)"].startswith("30.0")


def test_the_way_leads_from_the_papers_configuration_to_the_librarys(pipe):
    changes = weights.changes_of(Parameters())
    ours = methods.named_configuration(catome.RECOMMENDED, "EVEN_13")
    assert changes["evenly spaced checkpoints"].label == ours.label
    with changes["CA-ToMe"].applied(pipe):
        assert applied_patch(pipe).config == catome.PAPER
    with changes["groups weighted"].applied(pipe):
        assert applied_patch(pipe).config == catome.PAPER.changed(weighted=True)
    with changes["queries kept"].applied(pipe):
        assert applied_patch(pipe).config == catome.PAPER.changed(weighted=True, keep_queries=True)


@pytest.mark.parametrize("method", weights._all_of(Parameters()), ids=str)
def test_labels_say_all_that_a_method_does(method):
    assert from_label(method.label).label == method.label


def test_every_number_that_the_chapters_text_takes_up_is_given_to_it():
    notebook = nbformat.read(CHECKOUT / f"notebooks/{weights.NOTEBOOK}.ipynb", 4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    taken = set(re.findall(r"\{glue:text\}`([\w-]+)`", text))
    given = {name.replace("_", "-") for name in result(FLAT).words()} | {"recorded"}
    assert taken == given


def test_words_are_glued_without_quotation_marks(monkeypatch):
    from catome.study import figures

    pasted = {}
    monkeypatch.setattr("myst_nb.glue", lambda name, words, display: pasted.setdefault(name, SimpleNamespace(text=repr(words))))
    figures.glue(dip_merged="+1.3 [+0.2, +2.4]")
    assert pasted["dip-merged"].text == "+1.3 [+0.2, +2.4]"


def test_images_that_nothing_changes_are_no_difference():
    unchanged = result(FLAT | {(MERGED, 0.9): float("inf"), (WEIGHTED, 0.9): float("inf")})
    assert (unchanged._gained(0.9) == 0).all()
    assert "nan" not in unchanged.filled()
