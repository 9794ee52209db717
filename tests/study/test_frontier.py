"""The library's configurations beside their peers, and what the README says of them."""

import re
from dataclasses import replace

import pytest

import catome
from catome.patch import applied_patch
from catome.study import methods
from catome.study.measure.comparison import QUALITY
from catome.study.measure.quality import mean_interval
from catome.study.run.store import RECORDED, Store
from catome.study.studies import frontier as frontier_study
from catome.study.studies.frontier import SCORES, SEED, _ratio, frontier, scores_left
from helpers.paths import ROOT
from helpers.settings import setting


@pytest.fixture(scope="module")
def made(loaded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frontier")
    asked = setting(folder, images=2, steps=4, batch_size=2)
    return asked, frontier(loaded, asked, recorded=None)


def test_peers_compute_at_least_as_many_scores_as_what_they_are_compared_with(made):
    _, found = made
    for own, rival in found.rivals:
        assert found.names[own].startswith("catome.")
        if found.names[rival].startswith("ToMe"):
            assert found.scores[rival] >= found.scores[own]
    assert {found.names[own] for own, _ in found.rivals} == {"catome.RECOMMENDED", "catome.FAST"}


@pytest.mark.parametrize("config", [catome.RECOMMENDED, catome.FAST])
def test_what_is_measured_under_a_configurations_name_is_that_configuration(config, pipe):
    with methods.named_configuration(config, "EVEN_13").applied(pipe):
        assert applied_patch(pipe).config == config.changed(only_where_faster=False)
    with pytest.raises(ValueError, match="another schedule than 'CONFIG_3'"):
        methods.named_configuration(config, "CONFIG_3")
    with pytest.raises(ValueError, match="fields that merged_keys does not take"):
        methods.named_configuration(config.changed(keep_queries=False), "EVEN_13")


@pytest.mark.parametrize("scores", [0.05, 0.25, 0.4567, 0.9])
def test_tomes_ratio_leaves_at_least_these_scores(scores):
    assert (1 - _ratio(scores)) ** 2 >= scores - 1e-12
    assert (1 - _ratio(scores) - 0.01) ** 2 < scores


def test_the_table_says_what_the_rows_say(made):
    _, found = made
    lines = found.table().splitlines()
    assert len(lines) == 1 + 7
    for label, name in found.names.items():
        (line,) = (line for line in lines if line.startswith(name + " "))
        psnr = found.made.of(label)["psnr"].mean()
        assert f"{psnr:4.1f} dB" in line
        assert f"{found.scores[label]:.2f}" in line
        assert line.endswith(f"{(found.made.of(label)['psnr'] < 30).mean():.0%}")
    assert found.differences().count("closer in") == len(found.rivals)


def test_scores_are_those_of_all_rows_and_are_kept(made, loaded, monkeypatch):
    asked, found = made
    method = methods.named_configuration(catome.RECOMMENDED, "EVEN_13")
    monkeypatch.setattr(
        "catome.study.studies.frontier.generate_batch", lambda *_: pytest.fail("it was made again")
    )
    assert scores_left(loaded, asked, method, recorded=None) == found.scores[method.label]
    monkeypatch.undo()
    with method.applied(loaded):
        from catome.study.run.generate import generate_batch

        generate_batch(loaded, asked, range(2))
        said = catome.summary(loaded)
    assert said.scores_left == pytest.approx(found.scores[method.label], abs=1e-9)
    other = scores_left(loaded, replace(asked, seed=5), method, recorded=None)
    assert other != found.scores[method.label]


def test_scores_of_other_prompts_are_others(made, loaded, monkeypatch):
    asked, found = made
    method = methods.named_configuration(catome.RECOMMENDED, "EVEN_13")
    turned = replace(asked, classes=[*asked.names[1:], asked.names[0]])
    again = []
    own = frontier_study.generate_batch
    monkeypatch.setattr(
        frontier_study, "generate_batch", lambda *given: again.append(given[2]) or own(*given)
    )
    assert scores_left(loaded, turned, method, recorded=None) != found.scores[method.label]
    assert again


ROW = re.compile(r"^\| (?P<way>.*?) \| ([\d.]+) dB \(([\d.]+) to ([\d.]+)\) \| ([\d.]+) \|$", re.MULTILINE)


def _method(way: str):
    """The method of a row of the README's table, and the scores it leaves where these are known
    beforehand."""
    if way.startswith("ToMe, ratio "):
        ratio = float(way.removeprefix("ToMe, ratio "))
        return methods.tome(ratio), (1 - ratio) ** 2
    if way.startswith("ToDo"):
        return {
            "ToDo, every second column": (methods.todo(2, rows=1), 0.5),
            "ToDo, factor 2": (methods.todo(2), 0.25),
        }[way]
    if "FAST" in way:
        return methods.named_configuration(catome.FAST, "EVEN_13"), None
    if "PAPER" in way:
        return methods.ca_tome(catome.PAPER.threshold, "CONFIG_3"), None
    assert way == "`catome.apply_patch(pipe)`"
    return methods.named_configuration(catome.RECOMMENDED, "EVEN_13"), None


def test_the_readme_says_what_was_recorded():
    """Its table is of the rows in the repository."""
    table = ROW.findall((ROOT / "README.md").read_text())
    assert len(table) == 7
    for way, *said in table:
        method, left = _method(way)
        rows = Store(QUALITY, RECORDED, None).find(seed=SEED, steps=50, method=method.label)
        assert len(rows) == 24, way
        if left is None:
            left = (
                Store(SCORES, RECORDED, None)
                .find(seed=SEED, steps=50, method=method.label)["scores_left"]
                .iloc[0]
            )
        psnr = rows.sort_values("image")["psnr"].to_numpy(float)  # in this order the interval is drawn
        found = [*(f"{value:.1f}" for value in mean_interval(psnr)), f"{left:.2f}"]
        assert said == found, way
