"""Every chapter finds all that it shows of the embedded models in ``data/results``: nothing of it is
generated again."""

import re
import sys

import pytest
import yaml

from catome.study.measure import quality
from catome.study.measure.comparison import speed_ups, time_ratio
from catome.study.measure.similarity import similarity_study
from catome.study.run.generate import load
from catome.study.studies import OF_CHAPTERS, curves, distilled
from catome.study.studies.drift import common_share
from catome.study.studies.weights import MERGED, WEIGHTED
from helpers.paths import ROOT
from helpers.sentences import assert_says


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
    if name == "short":
        few_steps = params.of_distilled
        lcm = load(few_steps)
        distilled.timed(distilled.run(few_steps, lcm), lcm)
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
    page = (ROOT / "book/claims.md").read_text()
    assert said + f"[{low:.2f}, {high:.2f}] farther than t = 0.7" in page
    _, low, high = quality.over_classes(found.dip(MERGED), found.more.classes)
    assert f"For other prompts than these twelve, this is not decided ([{low:+.2f}, {high:+.2f}])" in page
    windows = {window: values for (way, window), values in found.other_windows().items() if way == MERGED}
    smaller, larger = (
        quality.spoken(quality.mean_interval(values), 2).replace(" [", " dB [") for values in windows.values()
    )
    assert f"windows of 1 × 2 bring images closer by {smaller}, but they merge 48 % of the tokens" in page
    assert f"Windows of 4 × 4 merge 75 %. Their difference, {larger}, may be chance" in page


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
    ends = {t: quality.over_classes(found.differences()[t], found.both[t].classes)[1:] for t in (0.8, 0.9)}
    (low, high), (low_later, high_later) = ends.values()
    assert low > 0 > low_later
    others = f"For other prompts this holds at 0.8 ([{low:+.2f}, {high:+.2f}] dB), and is not decided at 0.9 "
    assert f"{others}([{low_later:+.2f}, {high_later:+.2f}] dB)" in page
    gain = found.control.gain(0.9, "image", "step and block")
    said = quality.spoken(gain, 2).replace(" [", " dB [")
    assert f"{said} at 0.9, over {found.control.params.images} images" in page
    assert f"adapting the share to the image brings at most {gain[2]:.2f} dB there" in page
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
    at = records[records["threshold"] == 0.7].set_index("schedule")

    def of(name: str, column: str) -> str:
        return quality.bracketed(tuple(at.loc[name, [column, f"{column} low", f"{column} high"]]))

    assert f"takes {of('every step', 'time')} of the unmerged time" in page
    assert f"and {of('CONFIG_3', 'time')} with CONFIG_3" in page
    beside_every = of("CONFIG_3", "time over every step")
    assert f"which looks for pairs at 13 steps, takes {beside_every} of the time" in page
    assert f"Turn by turn, CONFIG_3 takes {beside_every} of the time with pairs found at every step" in page
    assert at.loc["CONFIG_3", "time over every step high"] < 1
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
    detected = beside[beside["after Holm"] != quality.UNTOLD]
    sizes = sorted(abs(float(said.split()[0])) for said in detected["difference (dB)"])
    library = " ".join((ROOT / "book/library.md").read_text().split())
    assert (
        f"in three of the four cases they were farther, by {sizes[0]:.1f} to {sizes[-1]:.1f} dB." in library
    )
    assert quality.held_words(3, 2) in words["online_equal"]
    for text in (page, library):
        assert "For other prompts like these, two of the three hold" in text
    assert f"of the third, -0.76 dB, is {beside.loc[(0.9, 'auto 0.1'), quality.OVER_CLASSES]} then" in page
    assert "more than 1.93 dB" in words["online_equal"]
    table = found.comparisons()
    for row in (
        ("t = 0.7", "every step - CONFIG_3"),
        ("t = 0.9", "every step - CONFIG_3"),
        ("t = 0.7", "CONFIG_FIVE - CONFIG_3"),
        ("t = 0.9", "CONFIG_FIVE - CONFIG_3"),
        ("t = 0.7", "least stale 8 - CONFIG_FIVE"),
        ("t = 0.9", "least stale 8 - EVEN_8"),
    ):
        assert table.loc[row, "difference (dB)"].replace(" [", " dB [") in page
        assert table.loc[row, "after Holm"] == quality.UNTOLD
    assert_says(words["derived"], "are closer", "do not differ detectably", "more than 1.40 dB")
    for t, chance in found.relation_chances().items():
        assert f"{found.relation()[t]:+.2f} at " in page
        assert f"({quality.chance_words(chance)})" in page


@pytest.mark.slow
def test_the_page_of_claims_says_which_times_the_turns_of_chapter_3_decide(tmp_path, nothing_generated):
    study = OF_CHAPTERS["sweep"]
    params = of_preset(study, tmp_path)
    pipe = load(params)
    found = study.run(params, pipe)
    clock = study.timed(found, pipe)
    page = " ".join((ROOT / "book/claims.md").read_text().split())
    time = found.beside_the_paper(found.records(clock))["time / unmerged", "here"]
    assert f"That takes {time['t = 1']} of the unmerged time" in page
    assert f"the time goes from {time['t = 0.9']} to {time['t = 0.4']} of the unmerged one" in page
    ratio, low, high = time_ratio(clock, found.sweep[0.4], found.sweep[0.9])
    assert low < 1 < high
    said = quality.bracketed((ratio, low, high))
    assert f"Turn by turn, t = 0.4 takes {said} of the time of t = 0.9, with 0.85 of the work" in page
    assert " 0.85 of the work" in found.lowest_time(clock)
    assert "| The lower the threshold, the faster. | **not decided** |" in page


@pytest.mark.slow
def test_the_page_of_claims_says_how_much_faster_ca_tome_is(tmp_path, nothing_generated):
    study = OF_CHAPTERS["headline"]
    params = of_preset(study, tmp_path)
    pipe = load(params)
    found = study.run(params, pipe)
    clock = study.timed(found, pipe)
    page = " ".join((ROOT / "book/claims.md").read_text().split())
    names = "CA-ToMe, t = 0.7", "ToMe, r = 0.5"
    speeds = speed_ups(clock)
    said = []
    for name in names:
        faster, low, high = speeds.loc[found.peers[name].label]
        said.append(f"{faster:.2f} times [{low:.2f}, {high:.2f}]")
    assert f"It is {said[0]} as fast as unmerged, ToMe {said[1]} (paper" in page
    ratio = time_ratio(clock, *(found.peers[name] for name in names))
    assert ratio[2] < 1
    assert f"it takes {quality.bracketed(ratio)} (†) of the time of ToMe" in page


@pytest.mark.slow
def test_the_page_of_claims_says_what_chapter_6_compares(tmp_path, nothing_generated):
    study = OF_CHAPTERS["headline"]
    params = of_preset(study, tmp_path)
    found = study.run(params, load(params))
    page = " ".join((ROOT / "book/claims.md").read_text().split())
    said = {
        "ToMe, r = 0.5": "farther from unmerged than ToMe, by {} dB {}, and for other prompts {}",
        "ToDo": "is {} dB {} farther from unmerged than ToDo, and for other prompts {}",
    }
    for name, sentence in said.items():
        farther = -found.differences()[f"CA-ToMe, t = 0.7 - {name}"]
        mean, low, high = quality.mean_interval(farther)
        _, least, most = quality.over_classes(farther, found.made.classes)
        assert low > 0 < least
        intervals = f"[{low:.2f}, {high:.2f}]", f"[{least:.2f}, {most:.2f}]"
        assert sentence.format(f"{mean:.2f}", *intervals) in page
    _, least, most = quality.over_classes(found.differences()["CA-ToMe, t = 0.9 - ToDo"], found.made.classes)
    assert f"For other prompts like these its interval is [{least:+.2f}, {most:+.2f}]." in page


@pytest.mark.slow
def test_the_page_of_claims_says_how_similar_source_tokens_are(tmp_path, nothing_generated):
    params = of_preset(OF_CHAPTERS["sweep"], tmp_path)
    pipe = load(params)
    page = " ".join((ROOT / "book/claims.md").read_text().split())
    best = similarity_study(pipe, params.common(images=24)).best
    most, many, some = (f"{(best >= t).mean():.0%}".replace("%", " %") for t in (0.6, 0.7, 0.8))
    partner = "of the source tokens have a partner with a similarity of at least 0.6"
    assert f"{most} {partner}, {many} one of at least 0.7, and {some} one of at least 0.8" in page
    found = OF_CHAPTERS["sweep"].run(params, pipe)
    for before, t in ((0.4, 0.5), (0.5, 0.6)):
        mean, low, high = found.made.paired("psnr", found.sweep[t], found.sweep[before])
        assert low < 0 < high
        assert f"from {before} to {t} ({mean:+.2f} dB [{low:+.2f}, {high:+.2f}])" in page
    mean, low, high = found.made.paired("psnr", found.sweep[0.6], found.sweep[0.7])
    assert f"From 0.6 to 0.7 it falls by {mean:.2f} dB [{low:.2f}, {high:.2f}] (†)" in page
    mean, low, high = found.made.paired("psnr", found.sweep[0.8], found.sweep[0.7])
    assert f"from 0.7 to 0.8 it rises by {mean:.2f} dB [{low:.2f}, {high:.2f}] (†)" in page


@pytest.mark.slow
def test_the_readme_says_what_is_unbeaten_in_few_steps(tmp_path, nothing_generated):
    readme = " ".join((ROOT / "README.md").read_text().split())
    said = re.search(
        r"In 8 and in 20 steps [^,]*, forecasts are unbeaten in measured time\. "
        r"CA-ToMe is not, at any setting\. Merged keys are not in 8 steps\. "
        r"In 20 steps one of their settings is unbeaten, in (\d+) % of the draws, "
        r"but it hardly saves time: generations are ([\d.]+) times as fast \(([\d.]+) to ([\d.]+)\)\. "
        r"In counted work, the two gentlest settings of merged keys are unbeaten in 8 and in 20 steps\.",
        readme,
    )
    assert said
    params = of_preset(OF_CHAPTERS["short"], tmp_path)
    lengths = curves.of_lengths(params.knobs, load(params))
    assert sorted(lengths.records) == [8, 20, 50]
    unbeaten = {}
    for steps in (8, 20):
        records = lengths.records[steps]
        unbeaten[steps] = found = records[records["best in time"]]
        assert not set(curves.OF_THE_PAPER) & set(found["kind"])
        assert ((found["kind"] == "forecast") & (found["stays"] >= quality.SURE)).sum() >= 2
        keys = records[records["kind"] == "merged keys"].set_index("setting")
        assert keys.loc[["t = 0.8", "t = 0.7"], "best in work"].all()
    kinds = ["merged keys", "merged keys (few searches)"]
    assert not set(kinds) & set(unbeaten[8]["kind"])
    (own,) = unbeaten[20][unbeaten[20]["kind"].isin(kinds)].to_dict("records")
    spoken = [f"{own[name]:.2f}" for name in ("speed-up", "speed-up low", "speed-up high")]
    assert said.groups() == (f"{100 * own['stays']:.0f}", *spoken)
    page = " ".join((ROOT / "book/claims.md").read_text().split())
    assert own["setting"] == "t = 0.7"
    assert f"There t = 0.7 is unbeaten again, but in {100 * own['stays']:.0f} % of the resamples only" in page


@pytest.mark.slow
def test_the_readme_says_what_is_unbeaten_in_fifty_steps(tmp_path, nothing_generated):
    readme = " ".join((ROOT / "README.md").read_text().split())
    said = re.search(
        r"13 methods at 44 settings\), three forecasts and two settings of gentle merged keys are unbeaten "
        r"in measured time\. [^.]* more than 99 % of these draws, "
        r"and the merged keys in (\d+) % and (\d+) %\. "
        r"CA-ToMe is not unbeaten at any setting, with the paper's schedule or with another one\. "
        r"In counted work, two combinations of forecasts and merged keys are unbeaten, too\.",
        readme,
    )
    assert said
    params = of_preset(OF_CHAPTERS["headline"], tmp_path)
    pipe = load(params)
    found = curves.run(params.knobs, pipe)
    records = found.records(curves.timed(found, pipe))
    words = found.words(records)
    assert (words["curve_kinds"], words["curve_settings"]) == ("13", "44")
    records = records.set_index(["kind", "setting"])
    stays = records.loc[records["best in time"], "stays"]
    by_kind = {kind: list(shares) for kind, shares in stays.groupby(level=0)}
    assert set(by_kind) == {"forecast", "merged keys"}
    assert len(by_kind["forecast"]) == 3
    assert min(by_kind["forecast"]) > 0.99
    assert said.groups() == tuple(f"{100 * share:.0f}" for share in by_kind["merged keys"])
    in_work = records[records["best in work"]].index.get_level_values(0)
    assert list(in_work).count("merged keys + forecast") == 2
    assert not set(curves.OF_THE_PAPER) & set(in_work)


@pytest.mark.slow
def test_the_page_of_claims_says_how_slow_merged_keys_are_in_few_steps(tmp_path, nothing_generated):
    page = " ".join((ROOT / "book/claims.md").read_text().split())
    params = of_preset(OF_CHAPTERS["short"], tmp_path)
    lengths = curves.of_lengths(params.knobs, load(params))
    said = {8: [], 20: []}
    for steps, own in said.items():
        records = lengths.records[steps]
        keys = records[records["kind"] == "merged keys"].set_index("setting")
        for setting in ("t = 0.8", "t = 0.7"):
            row = keys.loc[setting]
            low, high = row["speed-up low"], row["speed-up high"]
            own.append(f"{row['speed-up']:.2f} times [{low:.2f}, {high:.2f}]")
    (gentle, less), (gentle_later, less_later) = said.values()
    assert f"merged keys are {gentle} as fast as unmerged at t = 0.8, and {less} at t = 0.7" in page
    assert f"In 20 steps they are {gentle_later} and {less_later} as fast" in page


@pytest.mark.slow
def test_the_readme_says_what_a_distilled_model_does(tmp_path, nothing_generated):
    page = " ".join((ROOT / "README.md").read_text().split())
    params = of_preset(OF_CHAPTERS["short"], tmp_path).of_distilled
    lcm = load(params)
    found = distilled.run(params, lcm)
    records = found.curves.records(distilled.timed(found, lcm))
    of_kind = records.set_index("kind")
    assert f"(chapter 9, {len(records)} settings)" in page
    best = of_kind.loc["forecast (equal gaps)", "PSNR"].max()
    assert f"forecasts come to at most {best:.1f} dB" in page
    deep = records[(records["kind"] == "DeepCache") & records["best in time"]]
    assert list(deep["setting"]) == ["every 5"]
    assert f"runs the deep part of the U-Net once, at {deep['PSNR'].iloc[0]:.1f} dB" in page
    shared = common_share(found.neighbours().mean())
    assert f"neighbouring calls share {100 * shared:.0f} % of their pairs" in page
    library = " ".join((ROOT / "book/library.md").read_text().split())
    assert f"forecasts come to at most {best:.1f} dB" in library
    assert set(of_kind[of_kind["best in time"]].index) == {"ToDo", "DeepCache", "fewer steps"}
    keys = of_kind.loc["merged keys"]
    assert len(keys) == 4
    assert keys["best in work"].all()
    assert not (records[records["kind"].str.startswith("merged keys (")]["speed-up low"] > 1).any()
    assert not (keys["speed-up low"] > 1).any()
    assert not set(curves.OF_THE_PAPER) & set(
        of_kind[of_kind["best in time"] | of_kind["best in work"]].index
    )


@pytest.mark.slow
def test_what_is_not_recorded_is_seen(tmp_path, nothing_generated):
    study = OF_CHAPTERS["headline"]
    given = of_preset(study, tmp_path).common(images=1, seed=123456)
    with pytest.raises(AssertionError, match="something is not recorded"):
        study.run(study.Parameters.checked(given.__dict__), load(given))
