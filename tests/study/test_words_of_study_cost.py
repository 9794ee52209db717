"""The tables and words of the page on what the study costs."""

import re

import nbformat
import pandas as pd
import pytest

from catome.study.costs import accounting, bill, estimate
from catome.study.run.store import CHECKOUT
from helpers.sentences import assert_says

COUNTED = pd.DataFrame(
    {
        "study": ["sweep", "sweep", "drift"],
        "method": ["a", "b", "a"],
        "phase": [0, 0, 0],
        "images": [10, 10, 4],
        "piece": [4, 4, 4],
        "calls": [51, 51, 6],
    }
)


@pytest.fixture
def seconds(monkeypatch):
    """A generation of 512 pixels takes 51 s on every device, of twice the edge twice as long, and merging
    saves all that is merged."""
    asked = []

    def generation_seconds(size, device, efficiency=1.0, share=0.0, **_):
        asked.append((size, device))
        return 51 * size / 512 * (1 - share) / efficiency

    monkeypatch.setattr(estimate, "generation_seconds", generation_seconds)
    return asked


def test_studies_are_added_up():
    table = bill.by_study(COUNTED)
    assert list(table.columns) == ["ways to generate", "images", "U-Net calls"]
    assert table.loc["sweep"].tolist() == [2, 20, 1020]
    assert table.loc["drift"].tolist() == [1, 4, 24]
    assert table.loc["all"].tolist() == [3, 24, 1044]


def test_what_others_timed_beside_its_roofline():
    rows = bill.timed_by_others()
    least = estimate.generation_seconds(512, "Tesla V100S", "float32", "naive")
    assert rows.loc[0, "least"] == least
    assert rows.loc[0, "efficiency"] == least / 7.61
    table = bill.timed_by_others_table()
    assert table.iloc[0].tolist() == ["Tesla V100S, float32", f"{least:.2f} s", "7.61 s", "79%"]
    assert table.iloc[1].tolist()[2:] == ["1.59 s", "23%"]


POINT = dict(
    device="NVIDIA H200",
    architecture="sd15",
    method="unmerged",
    width=512,
    dtype="float16",
    batch=1,
    ms=100.0,
)


@pytest.mark.parametrize(
    ("rows", "share", "source"),
    [
        ([], None, ()),
        ([POINT | dict(method="catome"), POINT | dict(width=768), POINT | dict(dtype="float32")], None, ()),
        (
            [
                POINT | dict(architecture="sdxl"),
                POINT | dict(device="another make"),
                POINT | dict(ms=float("nan")),
            ],
            None,
            (),
        ),
        ([POINT], 0.3, ("NVIDIA H200", "batches of 1.")),
        (
            [POINT, POINT | dict(device="NVIDIA A100", batch=16, ms=40.0), POINT | dict(batch=4)],
            0.75,
            ("NVIDIA A100", "batches of 16."),
        ),
    ],
)
def test_the_efficiency_is_the_one_measured_with_the_largest_batch(rows, share, source, monkeypatch):
    monkeypatch.setattr(
        accounting,
        "with_bounds",
        lambda table: table.assign(least_ms=[30.0 if "NVIDIA" in d else None for d in table["device"]]),
    )
    found = bill.efficiency_of(pd.DataFrame(rows, columns=list(POINT)))
    if share is None:
        assert_says(found.source, "estimate", "factor of two")
        assert found.words()["efficiency"] == "23%"
    else:
        assert found.share == share
        assert_says(found.source, "measured", *source)
        assert found.words() == {"efficiency": f"{share:.0%}", "efficiency_from": found.source}


def test_hours_by_size(seconds):
    table = bill.hours_by_size([512, 1024], 0.5, efficiency=0.5)
    assert list(dict.fromkeys(table["device"])) == list(bill.DEVICES)
    first = table[table["device"] == bill.DEVICES[0]].set_index(["size", "share"])["hours"]
    hours = 1000 * 51 / 0.5 / 3600
    assert first.to_dict() == pytest.approx(
        {(512, 0.0): hours, (512, 0.5): hours / 2, (1024, 0.0): 2 * hours, (1024, 0.5): hours}
    )
    nothing = bill.hours_by_size([512], 0.0, efficiency=0.5)
    assert len(nothing) == len(bill.DEVICES)


def test_hours_by_way(seconds, monkeypatch):
    def merged_keys_seconds(size, device, share, efficiency):
        return 51 * size / 512 * (1 - share / 2) / efficiency

    monkeypatch.setattr(estimate, "merged_keys_seconds", merged_keys_seconds)
    table = bill.hours_by_way(0.5, efficiency=0.5)
    assert list(table.columns) == list(bill.DEVICES)
    whole = 1000 * 51 / 0.5 / 3600
    said = {
        ("512 px", "nothing merged"): whole,
        ("512 px", "50% of the tokens merged"): whole / 2,
        ("512 px", "50% of the keys merged"): 0.75 * whole,
        ("1024 px", "nothing merged"): 2 * whole,
        ("1024 px", "50% of the tokens merged"): whole,
        ("1024 px", "50% of the keys merged"): 1.5 * whole,
    }
    assert table.iloc[:, 0].to_dict() == {way: f"{hours:.2f}" for way, hours in said.items()}
    assert len(bill.hours_by_way(0.0, efficiency=0.5)) == 2


def test_it_is_said_what_is_not_counted():
    assert_says(bill.left_out_words(3900)["left_out"], "U-Net", "3,900 images", "transformer", "left out")
    assert_says(bill.left_out_words(0)["left_out"], "No image")


def test_hours_of_one_gpu(seconds):
    hours = bill.gpu_hours(bill.by_study(COUNTED), efficiency=0.5)
    assert hours.loc["all"].tolist() == pytest.approx([1044 * 2 / 3600] * len(bill.DEVICES))


@pytest.fixture
def counted(monkeypatch):
    asked = []

    def count_all(preset, batch_size):
        asked.append((preset, batch_size))
        return COUNTED.assign(piece=batch_size)

    monkeypatch.setattr(estimate, "count_all", count_all)
    return asked


def test_a_study_on_many_gpus(seconds, counted):
    table, ideal = bill.scaled("tiny", [1, 3], [5, 1], efficiency=0.5, overhead_s=2.0)
    assert counted == [("tiny", 5), ("tiny", 1), ("tiny", 1)]
    assert ideal.to_dict() == pytest.approx({n: 2088 / 3600 / n for n in (1, 2, 3)})  # 1044 calls of 2 s
    rows = table.set_index(["case", "gpus"])
    for case, pieces, loading in (
        ("5 images a piece", 3, 0),  # ten images in two, and four in one
        ("one image a piece", 14, 0),
        ("one image a piece, weights from one folder", 14, 2_132_000_000 / 2e9),
    ):
        whole = 2088 + 10 + loading + 2 * pieces
        assert rows.loc[(case, 1), "hours"] == pytest.approx(whole / 3600)
        assert rows.loc[(case, 1), "used"] == pytest.approx(2088 / whole)
        assert rows.loc[(case, 3), "hours"] < rows.loc[(case, 1), "hours"]
    assert len(rows) == 9
    chosen = bill.scaled_table(table, [1, 3])
    assert list(chosen.index) == [1, 3]
    assert list(chosen.columns) == list(dict.fromkeys(table["case"]))
    assert chosen.loc[3, "one image a piece"] == rows.loc[("one image a piece", 3), "hours"]


def scaled(gpus: int, **hours) -> pd.DataFrame:
    rows = [dict(gpus=n, case=case, hours=h / n, used=0.5) for case, h in hours.items() for n in {1, gpus}]
    return pd.DataFrame(rows)


def test_what_is_said_of_many_gpus():
    cases = {
        "16 images a piece": 600.0,
        "one image a piece": 100.0,
        "one image a piece, weights from one folder": 900.0,
    }
    words = bill.scaling_words(scaled(1000, **cases))
    told = ("1,000 GPUs and 16 images a piece", " 36 minutes", " 50%")
    assert_says(words["most_gpus"], *told, "one image a piece", " 6 minutes", " 50%", "GPUs' time")
    assert "one folder" not in words["most_gpus"]
    assert words["disk"] == "2"
    assert words["loading"] == "18 minutes"  # 2.132 GB for each of a thousand


def test_of_one_gpu_and_one_batch_it_is_said_once():
    words = bill.scaling_words(
        scaled(1, **{"one image a piece": 5.0, "one image a piece, weights from one folder": 6.0})
    )
    assert_says(words["most_gpus"], "1 GPU and one image a piece", " 5 hours", " 50%", "GPU's time")
    assert words["most_gpus"].count("50%") == 1
    assert words["loading"] == "1 second"


@pytest.mark.parametrize(
    ("length", "said"),
    [
        (75.6 * 3600, "76 hours"),
        (4_000_000, "1,111 hours"),
        (7200, "2 hours"),
        (7000, "117 minutes"),
        (120, "2 minutes"),
        (64.4, "64 seconds"),
        (1.07, "1 second"),
        (0.2, "0 seconds"),
    ],
)
def test_a_time_is_told_in_the_longest_fitting_unit(length, said):
    assert bill.spoken_time(length) == said


def test_the_whole_study_of_one_gpu():
    # as many calls as a thousand images of 51 have: some of these are shorter
    table = pd.DataFrame({"images": [10, 3000], "U-Net calls": [510, 51_000]}, ["sweep", "all"])
    hours = pd.DataFrame(
        {"A100 80 GB SXM": [1.0, 30.4], "H100 SXM": [1.0, 1.5], "H200 SXM": [1.0, 1.0]}, ["sweep", "all"]
    )
    words = bill.total_words(table, hours)
    assert words == {"hours_a100": "30 hours", "hours_h100": "90 minutes", "hours_v100s": "2 hours"}  # 7610 s


def test_two_processes_shared_the_machine():
    check = {"images": 5364, "methods": 127, "reckoned_hours": 4.62, "process_hours": 8.9}
    assert bill.recorded_words(check) == {
        "recorded_images": "5,364",
        "recorded_methods": "127",
        "reckoned_hours": "4.6",
        "process_hours": "8.9",
        "machine_hours": f"{8.9 / 2:.1f}",
    }


def test_bookkeeping_at_the_beginning_and_at_the_end(seconds):
    ticks = [0.010, 0.020, 9.0] + 6 * [5.0] + [0.030, 0.040, 0.050]
    assert bill.bookkeeping_ends(ticks) == (0.020, 0.040)
    assert bill.bookkeeping_ends([0.5]) == (0.5, 0.5)
    words = bill.bookkeeping_words(ticks, efficiency=0.5)
    # 40 generations of 102 s
    assert words == {"ms_early": "20", "ms_late": "40", "pieces": "12", "piece_time": "68 minutes"}


def test_every_word_that_the_pages_text_takes_up_is_given_to_it(seconds):
    notebook = nbformat.read(CHECKOUT / f"notebooks/{bill.NOTEBOOK}.ipynb", 4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    taken = set(re.findall(r"\{glue:text\}`([\w-]+)`", text))
    table = bill.by_study(COUNTED)
    given = bill.Efficiency(0.5, "measured").words() | bill.total_words(table, bill.gpu_hours(table, 0.5))
    given |= bill.recorded_words({"images": 1, "methods": 1, "reckoned_hours": 1.0, "process_hours": 1.0})
    given |= bill.bookkeeping_words([0.1] * 8, 0.5) | bill.left_out_words(1)
    given |= bill.scaling_words(
        scaled(8, **{"one image a piece": 5.0, "one image a piece, weights from one folder": 6.0})
    )
    assert taken == {name.replace("_", "-") for name in given} | {"preset"}


def test_whoever_printed_a_time_is_cited():
    notebook = nbformat.read(CHECKOUT / f"notebooks/{bill.NOTEBOOK}.ipynb", 4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert set(estimate.PRINTED["source"]) <= set(re.findall(r"\{cite:p\}`(\w+)`", text))
