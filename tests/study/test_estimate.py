"""Tests of what a study costs, before it is run."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from catome.study.bench.kernel_table import least_times
from catome.study.costs import estimate
from catome.study.measure.comparison import QUALITY
from catome.study.measure.drift import DRIFT
from catome.study.run.store import Store
from catome.study.studies import STUDIES, jobs
from helpers.paths import ROOT

SMOKE = ROOT / "data/presets"


def smoke(study: str, **values) -> dict:
    return estimate.preset_of("smoke", STUDIES[study].NOTEBOOK) | values


@pytest.mark.book
@pytest.mark.parametrize("study", ["sweep", "drift"])
def test_a_study_generates_what_was_counted(study, tmp_path):
    values = smoke(study, output=str(tmp_path / "out"), images=3)
    counted = estimate.count(study, values)
    file = tmp_path / "parameters.yaml"
    file.write_text(json.dumps(values))
    command = [sys.executable, "-m", "catome.study", study, "-f", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    if study == "sweep":
        made = Store(QUALITY, tmp_path / "out", None).find().groupby("method")["image"].nunique()
        wanted = counted.drop_duplicates("method").set_index("method")["images"]
        # the shares of the fixed twins are known only afterwards
        assert len(made) == len(wanted)
        assert made.sum() == wanted.sum()
        thresholds = [name for name in wanted.index if name.startswith("CA-ToMe")]
        assert made[thresholds].to_dict() == wanted[thresholds].to_dict()
    else:
        made = Store(DRIFT, tmp_path / "out", None).find()
        generations = made.drop_duplicates(["image", "guidance", "steps"])
        # the base ones are watched for two sets of amounts
        assert len(generations) <= counted["images"].sum() <= 2 * len(generations)
        assert set(generations["steps"] + 1) == set(counted["calls"])


def test_the_paper_study_is_counted_with_its_images():
    table = estimate.count_all("paper")
    sweep = table[table["study"] == "sweep"]
    control = sweep["phase"] > 2  # who decides how much is merged, over a few images
    assert set(sweep["images"][~control]) == {2000}
    assert set(sweep["images"][control]) == {120, 24}
    assert set(sweep["calls"]) == {51}
    assert {f"CA-ToMe(threshold={t:g}, schedule=every step)" for t in (0.4, 0.7, 1.0)} <= set(sweep["method"])
    schedules = table[(table["study"] == "schedules") & (table["what"] == "images")]
    assert sum("CON" in method for method in schedules["method"]) == 6
    assert jobs.unet_calls(sweep) == 51 * (2000 * (~control).sum() + 24 + 120 * (control.sum() - 1))


def test_the_curves_and_the_unet_of_chapter_10_are_counted():
    table = estimate.count_all("paper")
    curves = table[table["study"] == "curves"]
    assert set(curves["images"]) == {24}
    images = curves.groupby("calls")["images"].sum().to_dict()
    assert set(images) == {8, 20, 51}
    assert images[8] == images[20]
    assert curves["phase"].nunique() == 3  # each has all methods of its kind of generation
    page = " ".join((ROOT / "book/gpu.md").read_text().split())
    assert f"that is `curves`, {images[51]:,} images more" in page
    assert f"`--steps 20 --sampler DPM++`: {images[8]:,} images each" in page
    own = estimate.preset_of("paper", STUDIES["transformer"].NOTEBOOK)
    both = estimate.count("transformer", own)
    unet = table[table["study"] == "transformer"]
    assert set(unet["phase"]) == {5, 6, 7, 8}  # those before are the transformer's
    assert estimate.left_out("paper") == both.loc[both["phase"] < 5, "images"].sum()
    assert estimate.left_out("paper") + unet["images"].sum() == both["images"].sum()


def test_pieces_of_curves_have_the_size_that_was_asked_for():
    table = estimate.count_all("smoke", batch_size=1)
    assert {"curves", "transformer"} <= set(table["study"])
    assert set(table.loc[table["what"] == "images", "piece"]) == {1}


def test_merged_keys_save_a_part_of_the_topmost_attention():
    device, layers = "A100 80 GB SXM", 5
    whole = estimate.generation_seconds(512, device)
    times = least_times(device, 0.5).set_index(["model", "work"])["us"]["SD 1.5, 512 px"]
    added = times["merge keys and values"] + times["find pairs"] * 13 / 51
    saved = 1e-6 * 51 * layers * (times["attention, unmerged"] - times["attention, keys merged"] - added)
    merged = estimate.merged_keys_seconds(512, device, 0.5)
    assert merged == pytest.approx(whole - saved)
    # as many merged tokens leave fewer scores
    assert estimate.generation_seconds(512, device, share=0.5) < merged < whole
    assert estimate.merged_keys_seconds(512, device, 0.5, efficiency=0.25) == pytest.approx(4 * merged)
    larger = estimate.generation_seconds(1024, device)
    assert 1 - estimate.merged_keys_seconds(1024, device, 0.5) / larger > saved / whole
    with pytest.raises(ValueError, match="size=640 must be 512 or 1024"):
        estimate.merged_keys_seconds(640, device, 0.5)


def test_counting_refuses_what_the_study_refuses():
    with pytest.raises(ValueError, match="threshold=3"):
        estimate.count("headline", smoke("headline", threshold=3))
    with pytest.raises(ValueError, match="study='headlines' is no study"):
        estimate.count("headlines", {})


def test_the_command_counts_and_writes_nothing(tmp_path):
    command = [sys.executable, "-m", "catome.study", "headline", "-f", str(SMOKE / "smoke.yaml"), "--count"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out")], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "tomesd(ratio=0.5)" in done.stdout
    assert "U-Net calls" in done.stdout.splitlines()[-1]
    assert not (tmp_path / "out").exists()
    done = subprocess.run([*command, "--interval", "0"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "interval=0" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match="preset='papier' must be one of paper, sdxl, smoke, tiny"):
        estimate.count_all("papier")


def test_a_preset_that_is_not_for_all_notebooks_is_not_counted():
    with pytest.raises(ValueError, match="preset='pixart' must be one of paper, sdxl, smoke, tiny"):
        estimate.count_all("pixart")


def test_seconds_grow_as_the_work_does():
    one = estimate.generation_seconds(512, "A100 80 GB SXM")
    assert estimate.generation_seconds(512, "A100 80 GB SXM", efficiency=0.25) == pytest.approx(4 * one)
    assert (
        estimate.generation_seconds(512, "A100 80 GB SXM", share=0.5)
        < one
        < estimate.generation_seconds(1024, "A100 80 GB SXM") / 4
    )
    # the decoding is done once
    assert estimate.generation_seconds(512, "A100 80 GB SXM", calls=102) < 2 * one
    assert estimate.generation_seconds(512, "A100 80 GB SXM", "float32") > one
    for efficiency in (0, 1.5):
        with pytest.raises(ValueError, match=f"efficiency={efficiency}"):
            estimate.generation_seconds(512, "A100 80 GB SXM", efficiency=efficiency)
    assert (estimate.PRINTED["seconds"] > 0).all()
    bib = (ROOT / "book/references.bib").read_text()
    assert all(f"{{{source}," in bib for source in estimate.PRINTED["source"])


def test_the_makespan_of_small_cases_by_hand():
    # one takes the long piece, one the three short ones
    assert estimate.makespan([[3.0, 1.0, 1.0, 1.0]], 2) == 3.0
    assert estimate.makespan([[1.0, 1.0], [1.0]], 2) == 2.0  # the second phase waits for the first
    assert estimate.makespan([[1.0] * 4], 100) == 1.0  # more processes than pieces are of no use
    assert estimate.makespan([[1.0] * 4], 1, start_s=5.0, overhead_s=0.5) == 11.0
    slowed = estimate.makespan([[1.0] * 64], 8, spread=0.2)
    assert 8.0 < slowed < 12.0  # slow processes take fewer pieces
    with pytest.raises(ValueError, match="processes=0"):
        estimate.makespan([[1.0]], 0)


def test_pieces_are_what_processes_claim():
    table = estimate.count("sweep", smoke("sweep", images=5, batch_size=2))
    phases = estimate.phases_of(table, 1.0)
    calls = table.groupby("phase")["calls"].sum()
    assert [len(pieces) for pieces in phases] == [
        3,
        3,
        3,
        3,
    ]  # 2 + 2 + 1 images, for the sweep, the fixed shares, and the control, which first measures
    assert phases[0] == [2 * calls.iloc[0], 2 * calls.iloc[0], calls.iloc[0]]


def test_books_are_kept_without_leaving_anything(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    ticks = estimate.bookkeeping_seconds(5, methods=2, images=2, features=8)
    assert len(ticks) == 5
    assert min(ticks) > 0
    assert list(tmp_path.iterdir()) == []


def test_recorded_hours_are_near_the_reckoned():
    """Two processes shared two cores: their hours are about twice the machine's."""
    found = estimate.recorded_against_reckoned()
    rows = pd.read_parquet(ROOT / "data/results/quality.parquet", columns=["method"])
    assert found["images"] == len(rows)
    assert found["methods"] == rows["method"].nunique()
    assert 0.6 < found["process_hours"] / 2 / found["reckoned_hours"] < 1.6
