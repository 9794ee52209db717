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
from catome.study.measure import quality
from catome.study.measure.comparison import Comparison
from catome.study.run.store import CHECKOUT
from catome.study.studies import jobs as counting
from catome.study.studies import weights
from catome.study.studies.weights import AGAIN, BOTH, KEPT, LIBRARYS, MERGED, WEIGHTED, Parameters, Result
from helpers.labels import from_label
from helpers.sentences import assert_says


def result(psnr: dict, share: float = 0.5, images: int = 12, **params) -> Result:
    """A result whose images have the PSNR ``psnr[way, threshold]``, a little scattered; all others have 30
    dB."""
    asked = Parameters(thresholds=sorted({t for _, t in psnr}), **params)
    scatter = np.linspace(-0.1, 0.1, images)
    at = {weights.sweep_of(asked)[key].label: value for key, value in psnr.items()}
    rows = []
    for method in weights._all_of(asked):
        # differences between methods vary over the images, too: every method has an order of its own
        order = np.random.default_rng(crc32(method.label.encode())).permutation(scatter)
        merged = [] if method.family == "ToDo" else [share, share / 2]
        for image in range(images):
            values = {
                "method": method.label,
                "image": image,
                "class": f"class {image % 3}",
                "psnr": at.get(method.label, 30.0) + order[image],
            }
            rows.append(values | {"merged_share": np.array(merged)})
    made = Comparison(pd.DataFrame(rows), [method.label for method in weights._all_of(asked)], "scene", {})
    return Result(
        asked, weights.sweep_of(asked), weights.changes_of(asked), weights.peers_of(asked), made, made
    )


FLAT = {(way, t): 30.0 for way in (MERGED, WEIGHTED, KEPT, BOTH) for t in (0.4, 0.7, 0.9)}


@pytest.mark.parametrize(
    ("dip", "weighted", "said"),
    [
        (2.0, -1.0, ("Weights remove the dip", "3.0 dB [2.9, 3.1] more")),
        (2.0, 1.0, ("Weights do not remove the dip",)),
        (0.08, 0.03, ("With weights no dip is detectable", "whether weights change it is not detectable")),
        (-1.0, -2.0, ("sweep has no detectable dip",)),
    ],
)
def test_what_is_said_of_the_dip_follows_from_the_intervals(dip, weighted, said):
    """``dip``: how much closer the lowest threshold is than the one above it."""
    psnr = FLAT | {
        (MERGED, 0.7): 30 - dip,
        (MERGED, 0.9): 40,
        (WEIGHTED, 0.7): 30 - weighted,
        (WEIGHTED, 0.9): 40,
    }
    found = result(psnr)
    assert weights.dip_at(found.made, found.sweep) == (0.4, 0.7)
    assert found.dip(MERGED).mean() == pytest.approx(dip, abs=1e-6)
    assert found.dip(WEIGHTED).mean() == pytest.approx(weighted, abs=1e-6)
    assert found.filling().mean() == pytest.approx(dip - weighted, abs=1e-6)
    assert_says(found.filled(), *said)


def test_the_dip_may_be_judged_over_more_images_than_the_rest():
    psnr = FLAT | {(MERGED, 0.7): 28.0, (MERGED, 0.9): 40, (WEIGHTED, 0.9): 40}
    few, many = result(psnr, images=6), result(psnr, images=12)
    found = Result(**{**vars(few), "more": many.made})
    assert found.dips()["images"].tolist() == [12, 12, 6, 6]
    assert found.words()["dip_images"] == "12"
    assert found.dips().index[0] == f"{MERGED}: t = 0.4 - t = 0.7"
    assert found.dips()["verdict"].iloc[0] == "merging more is closer"
    assert "Weights remove the dip" in found.filled()


@pytest.mark.parametrize(("images", "given", "over"), [(12, None, 12), (12, 120, 120), (500, 120, 500)])
def test_the_dip_has_at_least_as_many_images_as_the_rest(images, given, over):
    params = Parameters(images=images, dip_images=given)
    assert params.of_dip.images == over
    counted = counting.table(weights.jobs(params))
    more = counted[counted["phase"] == 2]
    assert len(more) == (5 if over > images else 0)  # two thresholds in two ways, and unmerged
    assert set(more["images"]) <= {over}


def test_queries_are_compared_where_equally_many_scores_are_left():
    """Kept queries are 2 dB closer at each threshold, where they leave more scores; PSNR is 40 dB times the
    scores left."""
    thresholds = (0.4, 0.7, 0.9)
    shares = dict(zip(thresholds, (0.75, 0.5, 0.25), strict=True))
    psnr = {}
    for t, share in shares.items():
        for way in (MERGED, WEIGHTED, KEPT, BOTH):
            left = 1 - share if way in (KEPT, BOTH) else (1 - share) ** 2
            psnr[way, t] = 40 * left + 2 * (way in (KEPT, BOTH))
    found = result(psnr, images=12)
    rows = found.made.rows
    for (_, t), method in found.sweep.items():
        at = rows["method"] == method.label
        rows.loc[at, "merged_share"] = rows.loc[at, "merged_share"].map(lambda _, t=t: np.array([shares[t]]))
    assert found.scores_of_all() == pytest.approx(np.linspace(0.25, 0.5625, 5))
    for values in found.at_equal_scores().values():
        assert values.mean() == pytest.approx(2, abs=0.05)
    table = found.at_equal_scores_table()
    assert len(table) == 10
    assert set(table["verdict"]) == {"closer"}
    assert quality.OVER_CLASSES in table
    said = found.queries_told()
    counts = "closer at 5 of 5", "farther at none"
    assert_says(said, "Without weights", *counts, "With weights", *counts, "All 10 points", "at once", "Holm")
    kept = [found.sweep[KEPT, t].label for t in thresholds]
    rows.loc[rows["method"].isin(kept), "psnr"] -= 4
    assert_says(found.queries_told(), "Without weights", "closer at none of 5", "farther at 5", *counts)
    unlike = result({key: value for key, value in FLAT.items() if key[1] == 0.7})
    assert unlike.at_equal_scores() == {}
    assert "no share of scores in common" in unlike.queries_told()


def test_one_threshold_has_no_dip():
    found = result({key: value for key, value in FLAT.items() if key[1] == 0.7})
    assert (found.dip(MERGED) == 0).all()
    assert "no detectable dip" in found.filled()
    assert_says(found.over_prompts(), "single threshold", "nothing to be compared with")
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
    # they leave a third of the scores or more, and the peers leave less
    assert not table.index.str.startswith(BOTH).any()
    rows.loc[rows["method"] == found.sweep[BOTH, 0.7].label, "merged_share"] = rows["merged_share"].map(
        lambda s: 0 * s + 0.8
    )
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
    assert table.loc["CA-ToMe", ["verdict", "after Holm", quality.OVER_CLASSES]].tolist() == ["", "", ""]
    assert set(table["after Holm"].iloc[1:]) == {"closer"}
    assert found.words()["gain_library"] == "+25.0 [+25.0, +25.0]"  # five changes, before the last one


def test_reused_pairs_are_held_against_pairs_found_at_every_step():
    found = result(FLAT)
    rows, pairs = found.made.rows, weights.caches_of(found.params)
    theirs = [(way, "CONFIG_3") for way in (MERGED, WEIGHTED, BOTH, LIBRARYS)]
    assert list(pairs) == [*theirs, (LIBRARYS, "EVEN_13")]
    for (_, schedule), (reused, afresh) in pairs.items():
        assert reused.label.replace(f"schedule={schedule}", "schedule=every step") == afresh.label
        assert {reused.label, afresh.label} <= set(found.made.methods)
    rows.loc[rows["method"] == pairs[LIBRARYS, "CONFIG_3"][0].label, "psnr"] -= 2
    table = found.cache_costs_table()
    assert table.loc[(LIBRARYS, "CONFIG_3"), "reused - every step (dB)"].startswith("-2.00 [")
    assert table["after Holm"].tolist() == [quality.UNTOLD] * 3 + ["farther", quality.UNTOLD]
    said = found.cache_told()
    assert_says(said, "Of these 5", "closer", "in none", f"farther in 1 ({LIBRARYS}, CONFIG_3)", "allow one")
    for reused, _ in pairs.values():
        rows.loc[rows["method"] == reused.label, "psnr"] -= 2
    assert "farther in 5 (" in found.cache_told()
    assert "allow" not in found.cache_told()


def test_no_method_stands_beside_itself_and_equal_schedules_have_one_row():
    theirs = [(way, "EVEN_13") for way in (MERGED, WEIGHTED, BOTH, LIBRARYS)]
    assert list(weights.caches_of(Parameters(schedule="EVEN_13"))) == theirs
    found = result(FLAT, schedule=None)
    assert list(weights.caches_of(found.params)) == [(LIBRARYS, "EVEN_13")]
    assert_says(found.cache_told(), "In the one comparison here", "closer", "in none and farther in none")
    assert_says(found.windows_told(), "Of these 4 comparisons")
    never = result(FLAT, schedule=None, even=None)
    assert weights.caches_of(never.params) == {}
    assert never.cache_told() == "Nothing was compared here."
    assert "In 18 comparisons" in never.helped()  # 9 gains, 5 changes and 4 windows


def test_windows_of_other_sizes_stand_beside_those_of_two_by_two(pipe):
    found = result(FLAT)
    rows, pairs = found.made.rows, weights.windows_of(found.params)
    small, large = "windows of 1 \u00d7 2", "windows of 4 \u00d7 4"
    assert list(pairs) == [(way, window) for way in (MERGED, BOTH) for window in (small, large)]
    for (way, _), (other, plain) in pairs.items():
        assert plain.label == found.sweep[way, 0.7].label
        assert {other.label, plain.label} <= set(found.made.methods)
    at = rows["method"] == pairs[BOTH, large][0].label
    rows.loc[at, "psnr"] += 3
    rows.loc[at, "merged_share"] = rows["merged_share"].map(lambda share: 0 * share + 0.8)
    table = found.other_windows_table()
    assert table.loc[(BOTH, large), "minus 2 \u00d7 2 (dB)"].startswith("+3.00 [")
    assert table.loc[(BOTH, large), "scores left"].startswith("0.20 - 0.6")
    assert table["after Holm"].tolist() == [quality.UNTOLD] * 3 + ["closer"]
    assert_says(found.windows_told(), "Of these 4", "closer", f"1 ({BOTH}, {large})", "farther in none")
    with pairs[MERGED, small][0].applied(pipe):
        assert applied_patch(pipe).config == catome.PAPER.changed(schedule=None, stride=(1, 2))


def test_what_did_not_help_is_told():
    """Queries kept at 0.9 and pairs that are reused or found in other windows are worse than the rest, and
    groups weighted at 0.4 change nothing."""
    better = {(way, t): 35.0 for way, t in FLAT if way != MERGED}
    found = result(FLAT | better | {(KEPT, 0.9): 28.0, (WEIGHTED, 0.4): 30.0})
    rows = found.made.rows
    # in one class the gain is much larger, so that other classes may have none
    in_one = (rows["method"] == found.sweep[BOTH, 0.4].label) & (rows["class"] == "class 2")
    rows.loc[in_one, "psnr"] += 8
    tried = found.tried()
    assert AGAIN in found.changes
    assert AGAIN not in {name for name, _ in tried}
    table = found.unhelpful()
    assert (BOTH, "t = 0.7") in tried
    assert (BOTH, "t = 0.7") not in table.index
    assert table.loc[(KEPT, "t = 0.9"), "after Holm"] == "farther"
    assert table.loc[(WEIGHTED, "t = 0.4"), "after Holm"] == quality.UNTOLD
    assert table.loc[("pairs reused by CONFIG_3", BOTH), "after Holm"] == "farther"
    assert table.loc[("windows of 4 \u00d7 4", BOTH), "after Holm"] == "farther"
    assert ("similar by distance", "after queries kept") in table.index
    # 7 of 9 gains are closer; farther are one of them, two with pairs reused, and two in other windows
    said = found.helped()
    assert_says(said, "In 23 comparisons", "in 7,", "in 5,", "in 11.", quality.held_words(12, 11))
    rows["class"] = [f"class {image}" for image in rows["image"]]
    assert_says(found.helped(), "in 11.", quality.ONE_OF_EACH)
    assert quality.held_words(12, 11) not in found.helped()
    rows["class"] = "the only one"
    assert "prompts" not in found.helped()


def test_whether_the_dip_is_one_of_these_prompts_only():
    found = result(FLAT | {(MERGED, 0.7): 28.0, (MERGED, 0.9): 40, (WEIGHTED, 0.9): 40})
    _, low, high = quality.over_classes(found.dip(MERGED), found.more.classes)
    interval = f"[{low:+.2f}, {high:+.2f}]"
    assert_says(
        found.over_prompts(),
        "That there is a dip holds",
        interval,
        "That weights bring more",
        "holds for other prompts",
    )
    assert found.dips()[quality.OVER_CLASSES].iloc[0] == interval
    rows = found.more.rows
    in_one = (rows["method"] == found.sweep[MERGED, 0.7].label) & (rows["class"] == "class 0")
    rows.loc[in_one, "psnr"] -= 8
    assert_says(found.over_prompts(), "Whether there is a dip is not", "Whether weights bring more", "not")
    rows["class"] = "the only one"
    assert "so few prompts" in found.over_prompts()
    rows["class"] = [f"class {image}" for image in rows["image"]]
    assert found.over_prompts() == quality.ONE_OF_EACH


def test_where_there_is_no_dip_that_holds_for_other_prompts_too():
    psnr = {(MERGED, 0.7): 33.0, (MERGED, 0.9): 40, (WEIGHTED, 0.7): 31.0, (WEIGHTED, 0.9): 40}
    found = result(FLAT | psnr)
    assert found.dip(MERGED).mean() == pytest.approx(-3, abs=0.1)
    assert found.filling().mean() == pytest.approx(-2, abs=0.1)
    assert_says(found.over_prompts(), "no dip holds for other prompts", "bring less at", "holds for other")


def test_it_is_said_that_the_worst_threshold_was_chosen_on_these_images():
    """Before the table of the dip."""
    notebook = nbformat.read(CHECKOUT / f"notebooks/{weights.NOTEBOOK}.ipynb", 4)
    sources = [cell.source for cell in notebook.cells]
    table = next(place for place, source in enumerate(sources) if "found.dips()" in source)
    before = "\n".join(sources[:table])
    assert_says(before, "where ToMe's way is worst", "worst threshold was chosen on images", "deeper than it")


def test_the_rows_that_were_computed_are_those_of_both_comparisons():
    found = result(FLAT)
    few, many = (
        Comparison(found.made.rows, found.made.methods, "scene", {name: {"device": name}})
        for name in ("few", "many")
    )
    both = Result(**{**vars(found), "made": few, "more": many})
    assert list(both.runs) == ["few", "many"]


@pytest.mark.parametrize("kind", ["windows", "caches", "changes", "peers"])
def test_every_comparison_counts_for_the_number_of_images_needed(kind):
    found = result(FLAT)
    rows = found.made.rows
    method = {
        "windows": weights.windows_of(found.params)[BOTH, "windows of 4 \u00d7 4"][0],
        "caches": weights.caches_of(found.params)[LIBRARYS, "EVEN_13"][1],
        "changes": found.changes[AGAIN],
        "peers": found.peers["ToMe, r = 0.5"],
    }[kind]
    before = found.words()["needed"]
    at = rows["method"] == method.label
    rows.loc[at, "psnr"] += np.where(rows.loc[at, "image"] % 2, 10.0, -10.0)
    assert found.words()["needed"] != before


def test_tables_of_differences_have_an_interval_for_other_prompts():
    found = result(FLAT)
    tables = [found.gains_table(), found.dips(), found.against_peers(), found.steps()]
    tables += [found.cache_costs_table(), found.other_windows_table(), found.unhelpful()]
    for table in tables:
        assert len(table)
        assert quality.OVER_CLASSES in table
    gains = found.gains_table()
    assert len(gains) == 9
    _, low, high = quality.over_classes(found.gains()[BOTH, "t = 0.7"], found.made.classes)
    assert gains.loc[(BOTH, "t = 0.7"), quality.OVER_CLASSES] == f"[{low:+.2f}, {high:+.2f}]"


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
    monkeypatch.setattr(
        "myst_nb.glue",
        lambda name, words, display: pasted.setdefault(name, SimpleNamespace(text=repr(words))),
    )
    figures.glue(dip_merged="+1.3 [+0.2, +2.4]")
    assert pasted["dip-merged"].text == "+1.3 [+0.2, +2.4]"


def test_an_image_that_nothing_changes_at_the_worst_threshold_is_no_gain():
    psnr = FLAT | {(MERGED, 0.7): 28.0, (WEIGHTED, 0.7): 31.0, (MERGED, 0.9): 40, (WEIGHTED, 0.9): 40}
    found = result(psnr)
    rows = found.more.rows
    for way in (MERGED, WEIGHTED):
        rows.loc[(rows["method"] == found.sweep[way, 0.7].label) & (rows["image"] == 0), "psnr"] = np.inf
    assert np.isfinite(found.filling()).all()
    assert found.filling()[1:].mean() == pytest.approx(3, abs=0.1)
    assert "nan" not in found.filled()


def test_images_that_nothing_changes_are_no_difference():
    unchanged = result(FLAT | {(MERGED, 0.9): float("inf"), (WEIGHTED, 0.9): float("inf")})
    assert (
        unchanged.made.differences("psnr", *(unchanged.sweep[way, 0.9] for way in (MERGED, WEIGHTED))) == 0
    ).all()
    assert "nan" not in unchanged.filled()
