"""Every chapter finds all that it shows of the embedded models in ``data/results``: nothing of it is
generated again."""

import re
import sys

import pytest
import yaml

from catome.study.measure import quality
from catome.study.run.generate import load
from catome.study.studies import OF_CHAPTERS, curves
from catome.study.studies.weights import WEIGHTED
from helpers.paths import ROOT


def of_preset(study, folder):
    """The parameters with which `make book` runs a study's chapter."""
    given = {}
    for file in ("tiny.yaml", f"tiny/{study.NOTEBOOK}.yaml"):
        given |= yaml.safe_load((ROOT / "data/presets" / file).read_text())
    return study.Parameters.checked(given | {"output": str(folder)})


@pytest.fixture
def nothing_generated(monkeypatch):
    def refused(*given, **named):
        raise AssertionError("something is not recorded")

    for name, module in list(sys.modules.items()):
        if name.startswith("catome.study") and hasattr(module, "generate_batch"):
            monkeypatch.setattr(module, "generate_batch", refused)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_CHAPTERS)
def test_what_a_chapter_shows_is_recorded(name, tmp_path, nothing_generated):
    study = OF_CHAPTERS[name]
    params = of_preset(study, tmp_path)
    pipe = load(params)
    result = study.run(params, pipe)
    if hasattr(study, "timed"):
        study.timed(result, pipe)
    if name in ("headline", "short"):
        knobs = params.knobs if name == "short" else {params.steps: params.knobs}
        curves.of_lengths(knobs, pipe)
    assert not list(tmp_path.glob("*.parquet"))


@pytest.mark.slow
def test_the_page_of_claims_says_what_weights_do_to_the_dip(tmp_path, nothing_generated):
    params = of_preset(OF_CHAPTERS["weights"], tmp_path)
    found = OF_CHAPTERS["weights"].run(params, load(params))
    assert found.filled().startswith("Weights remove the dip")
    mean, low, high = quality.mean_interval(-found.dip(WEIGHTED))
    said = (
        f"on the same {len(found.dip(WEIGHTED))} images, with each group weighted by its size, t = 0.4 is "
        f"{mean:.2f} dB "
    )
    assert said + f"[{low:.2f}, {high:.2f}] farther than t = 0.7" in (ROOT / "book/claims.md").read_text()


@pytest.mark.slow
def test_the_page_of_claims_says_what_chapter_3_tells_apart(tmp_path, nothing_generated):
    study = OF_CHAPTERS["sweep"]
    params = of_preset(study, tmp_path)
    found = study.run(params, load(params))
    told = [f"{t:g}" for t in found.made.told_by_fid(found.real.features, found.sweep)]
    page = " ".join((ROOT / "book/claims.md").read_text().split())
    assert f"Tested at once, t = {quality.listed(told)} differ from no merging in FID" in page
    for t, where in ((0.8, "t = 0.8"), (0.9, "0.9, over 480 images")):
        said = quality.spoken(found.both[t].paired("psnr", found.sweep[t], found.twins[t]), 2)
        assert f"{said.replace(' [', ' dB [')} at {where}" in page
    rising = {"0.85", "0.8", "0.7"}
    assert rising <= set(told)
    assert "those at 0.85, 0.8 and 0.7 are more than chance" in page


@pytest.mark.slow
def test_the_page_of_claims_says_what_chapter_5_times_and_counts(tmp_path, nothing_generated):
    study = OF_CHAPTERS["schedules"]
    params = of_preset(study, tmp_path)
    pipe = load(params)
    found = study.run(params, pipe)
    records = found.records(study.timed(found, pipe))
    page = (ROOT / "book/claims.md").read_text()
    at = records[records["threshold"] == 0.7].set_index("schedule")["time"]
    assert f"takes {at['every step']:.2f} of the unmerged time" in page
    assert f"and {at['CONFIG_3']:.2f} with CONFIG_3" in page
    words = found.words(records)
    six = found.of_paper(records)["time"]
    within = f"within {words['paper_slower']} in the paper and within {words['slower']} here"
    fastest = f"over three repetitions, with {six.idxmin()} the fastest"
    assert f"{within.replace('%', ' %')}, {fastest}" in page
    beside = found.at_equal_searches()
    for difference in beside["difference (dB)"]:
        assert difference.replace(" [", " dB [") in page
    assert beside["after Holm"].tolist().count("farther") == 3
    assert beside["after Holm"].tolist().count(quality.UNTOLD) == 1
    seldom = found.online(records)["searches for an image"].astype(float)
    assert f"with {seldom.min()} to {seldom.max()} searches for an image" in page


@pytest.mark.slow
def test_the_readme_says_what_is_unbeaten_in_few_steps(tmp_path, nothing_generated):
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert re.search(
        r"8 and 20 steps: [^.]*merged keys and forecasts are unbeaten[^.]* time[^.]* CA-ToMe at no threshold",
        readme,
    )
    params = of_preset(OF_CHAPTERS["short"], tmp_path)
    lengths = curves.of_lengths(params.knobs, load(params))
    assert sorted(lengths.records) == [8, 20, 50]
    for records in lengths.records.values():
        unbeaten = set(records.loc[records["best in time"], "kind"])
        assert {"merged keys", "forecast"} <= unbeaten
        assert "CA-ToMe" not in unbeaten


@pytest.mark.slow
def test_what_is_not_recorded_is_seen(tmp_path, nothing_generated):
    study = OF_CHAPTERS["headline"]
    given = of_preset(study, tmp_path).common(images=1, seed=123456)
    with pytest.raises(AssertionError, match="something is not recorded"):
        study.run(study.Parameters.checked(given.__dict__), load(given))
