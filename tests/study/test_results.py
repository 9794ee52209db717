"""The results store and the drift study."""

import itertools
import json
import os
import resource
import signal
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from catome import tiny
from catome.patch import applied_patch
from catome.policy import schedule
from catome.policy.staleness import total_staleness
from catome.probe import probe
from catome.study import methods
from catome.study.measure import quality
from catome.study.measure.comparison import COST, QUALITY, compare, cost
from catome.study.measure.drift import DRIFT, NONE, Drift, drift_study, jaccard_distances, partners
from catome.study.measure.similarity import short_name
from catome.study.run import gather
from catome.study.run.claims import Claims
from catome.study.run.generate import generate_batch, with_sampler
from catome.study.run.parameters import SAMPLERS
from catome.study.run.store import (
    RECORDED,
    Store,
    Table,
    _machine,
    fingerprint,
    provenance,
    shared_keys,
    sources,
)
from catome.study.studies import curves
from catome.study.studies.frontier import SCORES
from catome.tiny.evaluate import HELD_OUT
from catome.tiny.scenes import CLASSES
from helpers import crew
from helpers.crew import TABLE, rows
from helpers.labels import from_label
from helpers.paths import ROOT
from helpers.settings import setting


def keep(folder, some, run, seconds=1.0):
    """Add rows and put them into the file."""
    store = Store(TABLE, folder, None)
    store.add(some, run, seconds)
    store.finish()


@pytest.fixture
def run(tmp_path):
    return provenance(setting(tmp_path), "model")


def test_rows_are_found_by_exactly_their_keys(tmp_path, run):
    store = Store(TABLE, tmp_path, None)
    store.add(rows([0, 1]), run, 1.0)
    store.add(rows([0], t=0.25), run, 1.0)
    again = Store(TABLE, tmp_path, None)
    assert again.find(t=0.5)["value"].tolist() == [1.0, 2.0]
    assert again.find(t=[0.5, 0.25], image=0)["t"].tolist() == [0.5, 0.25]
    assert len(again.find(t=0.5000001)) == 0
    with pytest.raises(KeyError, match="'threshold' is no key of numbers"):
        again.find(threshold=0.5)


def test_a_row_computed_again_replaces_the_old_one(tmp_path, run):
    store = Store(TABLE, tmp_path, None)
    store.add(rows([0, 1]), run, 1.0)
    store.add(rows([1], value=10.0), provenance(setting(tmp_path), "model"), 1.0)
    assert Store(TABLE, tmp_path, None).find()["value"].tolist() == [1.0, 11.0]


def test_own_rows_come_before_recorded_ones_which_are_never_written(tmp_path, run):
    keep(tmp_path / "shipped", rows([0, 1]), run)
    before = (tmp_path / "shipped/numbers.parquet").read_bytes()
    store = Store(TABLE, tmp_path / "own", tmp_path / "shipped")
    store.add(rows([1, 2], value=10.0), run, 1.0)
    assert sorted(store.find()["value"]) == [1.0, 11.0, 12.0]
    assert (tmp_path / "shipped/numbers.parquet").read_bytes() == before


def test_another_version_of_the_computation_finds_nothing(tmp_path, run):
    Store(TABLE, tmp_path, None).add(rows([0]), run, 1.0)
    assert len(Store(replace(TABLE, version=2), tmp_path, None).find()) == 0
    wider = replace(TABLE, version=2, values={**TABLE.values, "error": pa.float64()})
    assert len(Store(wider, tmp_path, None).find()) == 0


def test_provenance_is_in_the_file_and_beside_it(tmp_path, run):
    keep(tmp_path, rows([0, 1]), run, 2.5)
    beside = json.loads((tmp_path / "numbers.json").read_text())
    inside = json.loads(pq.read_schema(tmp_path / "numbers.parquet").metadata[b"runs"])
    assert beside["runs"] == list(inside.values())
    (entry,) = beside["runs"]
    assert (entry["rows"], entry["wall_seconds"]) == (2, 2.5)
    assert {"device", "torch", "diffusers", "catome", "commit", "date", "model", "parameters"} <= set(entry)
    assert entry["parameters"]["steps"] == 4


def test_provenance_names_the_sources_and_rows_without_it_are_found(tmp_path, run):
    package = ROOT / "catome"
    assert run["sources"] == sources() == sources(package)
    for place, (name, content) in enumerate([("a.py", "1"), ("b.py", "1"), ("a.py", "2"), ("d/a.py", "1")]):
        file = tmp_path / str(place) / name
        file.parent.mkdir(parents=True)
        file.write_text(content)
    assert len({sources(tmp_path / str(place)) for place in range(4)}) == 4
    plain = sources(tmp_path / "0")
    (tmp_path / "0/notes.txt").write_text("no source")
    assert sources(tmp_path / "0") == plain
    before = {name: value for name, value in run.items() if name != "sources"}
    keep(tmp_path / "shipped", rows([0]), before)
    found = Store(TABLE, tmp_path / "own", tmp_path / "shipped")
    assert found.find(image=0)["value"].tolist() == [1.0]
    assert "sources" not in found.runs[run["id"]]


DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "head alone": lambda data: b"PAR1" + data[:40],
    **{
        f"bit {at}": lambda data, at=at: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        for at in (60, 200, -30, -200)
    },
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_file_is_named_set_aside_and_computed_again(tmp_path, run, damage, finished):
    store = Store(TABLE, tmp_path, None)
    store.add(rows([0]), run, 1.0)
    if finished:
        store.finish()
    store.add(rows([1]), run, 1.0)
    file = tmp_path / "numbers.parquet" if finished else sorted(tmp_path.glob("numbers.parts/*"))[0]
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match=rf"{file.name} is not a whole Parquet file .* computed again"):
        found = Store(TABLE, tmp_path, None)
    assert found.find()["image"].tolist() == [1]
    assert len(list(file.parent.glob("*.damaged"))) == 1
    found.add(rows([0]), run, 1.0)
    found.finish()
    assert Store(TABLE, tmp_path, None).find()["image"].tolist() == [0, 1]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_recorded_file_is_an_error(tmp_path, run, damage):
    keep(tmp_path / "shipped", rows([0]), run)
    file = tmp_path / "shipped/numbers.parquet"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"numbers\.parquet is not a whole Parquet file"):
        Store(TABLE, tmp_path / "own", tmp_path / "shipped")
    assert file.exists()


def test_what_cannot_be_written_is_named_and_leaves_what_there_was(tmp_path, run, monkeypatch):
    store = Store(TABLE, tmp_path, None)
    store.add(rows([0]), run, 1.0)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for act in (lambda: store.add(rows(range(5000), value=0.5), run, 1.0), store.finish):
        # as on a full disk: what is longer cannot be written
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
        try:
            with pytest.raises(OSError, match=r"numbers.* could not be written \(File too large\)"):
                act()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert Store(TABLE, tmp_path, None).find()["image"].tolist() == [0]


def test_processes_see_what_the_others_add_also_when_it_is_put_into_one_file(tmp_path, run):
    a, b = Store(TABLE, tmp_path, None), Store(TABLE, tmp_path, None)
    a.add(rows([0]), run, 1.0)
    assert len(b.find()) == 0
    b.refresh()
    assert b.find()["image"].tolist() == [0]
    b.add(rows([1]), run, 1.0)
    a.finish()
    assert not (tmp_path / "numbers.parts").exists()
    b.refresh()
    b.add(rows([2]), run, 1.0)
    assert sorted(b.find()["image"]) == [0, 1, 2]
    a.refresh()
    assert sorted(a.find()["image"]) == [0, 1, 2]
    assert a.runs[run["id"]]["rows"] == 3
    b.finish()
    assert Store(TABLE, tmp_path, None).runs[run["id"]]["rows"] == 3


def test_a_kill_between_the_file_and_its_parts_counts_no_run_twice(tmp_path, run, monkeypatch):
    """Whoever wrote the file of all rows was killed before it removed the parts that went into it."""
    store = Store(TABLE, tmp_path, None)
    store.add(rows([0, 1]), run, 5.0)
    parts = {path: path.read_bytes() for path in store.parts.glob("*.parquet")}
    store.finish()
    store.parts.mkdir(exist_ok=True)
    for path, data in parts.items():
        path.write_bytes(data)
    late = Store(TABLE, tmp_path, None)
    assert late.runs[run["id"]]["rows"] == 2
    assert late.runs[run["id"]]["wall_seconds"] == 5.0
    late.add(rows([2]), run, 1.0)
    late.finish()
    assert Store(TABLE, tmp_path, None).runs[run["id"]]["wall_seconds"] == 6.0
    assert not late.parts.exists()


def test_a_kill_between_the_file_and_its_parts_leaves_what_was_computed_again(tmp_path, run):
    """A row was computed again by another run; both parts are still there, and the file holds the later one
    alone."""
    store = Store(TABLE, tmp_path, None)
    store.add(rows([0]), run, 5.0)
    again = provenance(setting(tmp_path), "model")
    store.add(rows([0], value=10.0), again, 3.0)
    parts = {path: path.read_bytes() for path in store.parts.glob("*.parquet")}
    assert len(parts) == 2
    store.finish()
    store.parts.mkdir(exist_ok=True)
    for path, data in parts.items():
        path.write_bytes(data)
    late = Store(TABLE, tmp_path, None)
    assert late.find()["value"].tolist() == [10.0]
    late.finish()
    found = Store(TABLE, tmp_path, None)
    assert found.find()["value"].tolist() == [10.0]
    assert {name: entry["wall_seconds"] for name, entry in found.runs.items()} == {again["id"]: 3.0}


def test_rows_of_a_version_with_fewer_keys_are_computed_again(tmp_path, run):
    """As `find` says nothing of rows of another version, so a file of them is no fault."""
    keep(tmp_path, rows([0]), run)
    wider = replace(TABLE, version=2, keys={**TABLE.keys, "prompt": pa.string()})
    store = Store(wider, tmp_path, None)
    assert len(store.find()) == 0
    store.add([{"image": 0, "t": 0.5, "prompt": "a", "value": 2.0}], run, 1.0)
    store.finish()
    assert Store(wider, tmp_path, None).find()["value"].tolist() == [2.0]


def test_what_another_machine_is_writing_is_left_alone(tmp_path, run):
    keep(tmp_path, rows([0]), run)
    theirs = tmp_path / ".numbers.parquet.0a1b2c3d.deadbeef.999999.partial"
    foreign = tmp_path / ".download.partial"
    for path in (theirs, foreign):
        path.write_bytes(b"half")
    own = tmp_path / f".numbers.parquet.0a1b2c3d.{_machine()}.999999999.partial"
    own.write_bytes(b"half")
    keep(tmp_path, rows([1]), run)
    assert theirs.exists()
    assert foreign.exists()
    assert not own.exists()


def test_a_file_of_another_study_is_refused(tmp_path, run):
    keep(tmp_path, rows([0]), run)
    with pytest.raises(ValueError, match="belongs to another study"):
        Store(Table("numbers", 1, {"version": pa.int16(), "name": pa.string()}, {}), tmp_path, None)


def test_rows_of_other_processes_are_gathered_with_their_provenance(tmp_path):
    runs = [provenance(setting(tmp_path), "model") for _ in range(3)]
    parts = [Store(TABLE, tmp_path / name, None) for name in "abc"]
    for part, run, images in zip(parts, runs, ([0, 1], [2], [1, 3]), strict=True):
        part.add(rows(images, value=10.0 * images[0]), run, 1.5)
    for _ in range(2):  # a second time changes nothing
        whole = Store(TABLE, tmp_path, None)
        assert [whole.gather(tmp_path / name) for name in "abc"] == [2, 1, 2]
        found = Store(TABLE, tmp_path, None)
        assert found.find().sort_values("image")[["image", "value"]].values.tolist() == [
            [0, 0],
            [1, 11],
            [2, 22],
            [3, 13],
        ]
        assert found.runs == {
            run["id"]: run | {"rows": n, "wall_seconds": 1.5} for run, n in zip(runs, (2, 1, 2), strict=True)
        }
    assert whole.gather(tmp_path / "nothing here") == 0


def test_recorded_rows_are_taken_over_by_the_command(tmp_path, capsys):
    run = provenance(setting(tmp_path), "model")
    kept = Store(SCORES, tmp_path / "clone", None)
    keys = {name: None for name in SCORES.keys} | {
        "model": "m",
        "method": "ToMe(ratio=0.5)",
        "seed": 1,
        "images": 2,
        "steps": 3,
    }
    keys |= {
        "version": 1,
        "guidance": 7.5,
        "guidance_rescale": 0.0,
        "height": 128,
        "width": 128,
        "dtype": "float32",
    }
    keys |= {"prompt": "one\ntwo"}
    kept.add([keys | {"scores_left": 0.25, "merged_share": 0.5}], run, 1.0)
    kept.finish()
    for _ in range(2):
        assert gather.main([str(tmp_path / "clone"), "--into", str(tmp_path / "into")]) == 0
        assert capsys.readouterr().out == "1 rows of scores\n"
        assert Store(SCORES, tmp_path / "into", None).find()["scores_left"].tolist() == [0.25]
    with pytest.raises(SystemExit):
        gather.main([str(tmp_path / "nowhere")])
    assert "must be a folder of rows" in capsys.readouterr().err


def test_a_kill_leaves_whole_files(tmp_path):
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        process = crew.started(crew.add_for_ever, folder)
        while not (folder / "numbers.parquet").exists():
            assert process.is_alive()
            time.sleep(0.01)
        time.sleep(0.2 + 0.037 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        store = Store(TABLE, folder, None)
        images = store.find()["image"].tolist()
        assert len(images) >= 3
        assert sorted(images) == list(range(len(images)))
        store.finish()
        assert Store(TABLE, folder, None).find()["image"].tolist() == list(range(len(images)))
        assert not (folder / "numbers.parts").exists()
        assert Claims(folder).others() == []


def test_fingerprint_tells_every_weight_and_the_configuration(pipe):
    first = fingerprint(pipe)
    assert fingerprint(pipe) == first
    weight = next(pipe.unet.parameters())
    kept = weight.flatten()[0].item()
    with torch.no_grad():
        weight.view(-1)[0] += 1e-3
        assert fingerprint(pipe) != first
        weight.view(-1)[0] = kept
    assert fingerprint(pipe) == first
    scheduler = pipe.scheduler
    pipe.scheduler = type(scheduler).from_config(scheduler.config, beta_end=0.013)
    assert fingerprint(pipe) != first
    pipe.scheduler = scheduler


def test_jaccard_distances_are_those_of_python_sets():
    generator = torch.Generator().manual_seed(0)
    partner = torch.randint(-1, 3, (6, 2, 40), generator=generator)
    partner[2] = partner[1]
    partner[3, 0] = -1
    partner[4, 0] = -1
    found = jaccard_distances(partner)
    for i, j, image in itertools.product(range(6), range(6), range(2)):
        a, b = ({(s, d) for s, d in enumerate(partner[k, image].tolist()) if d >= 0} for k in (i, j))
        expected = 1 - len(a & b) / len(a | b) if a | b else 0.0
        assert found[i, j, image].item() == pytest.approx(expected, abs=1e-6)
    assert found[1, 2].tolist() == [0, 0]
    assert found[3, 4, 0] == 0


def test_partners_are_the_plans_pairs(pipe, tmp_path):
    chosen = setting(tmp_path)
    with probe(pipe) as record:
        generate_batch(pipe, chosen, range(2))
    for amount in ({"ratio": 0.5}, {"threshold": 0.8}):
        found = partners(record, 1, slice(-2, None), **amount)
        src = record.at(0, 1).matches.src
        for step, image in itertools.product(record.steps(), range(2)):
            pairs = record.pairs(step, 1, 2 + image, **amount)
            merged = found[step, image] >= 0
            assert torch.equal(torch.stack([src[merged], found[step, image][merged].long()], 1), pairs)


def test_drift_study(pipe, tmp_path):
    chosen = setting(tmp_path)
    drift = drift_study(pipe, chosen, thresholds=[0.8], ratios=[0.5], recorded=None)
    assert drift.steps == 5
    assert len(drift.blocks) == 5
    assert len(drift.rows) == 3 * 2 * 5
    row = drift.rows[(drift.rows["image"] == 1) & (drift.rows["amount"] == "r = 0.5")].iloc[0]
    assert len(row["neighbour"]) == 4
    with probe(pipe) as record:
        generate_batch(pipe, chosen, range(1, 2))
    block = drift.blocks.index(row["block"])
    sets = [set(map(tuple, record.pairs(step, block, 1, ratio=0.5).tolist())) for step in record.steps()]
    expected = [1 - len(a & b) / len(a | b) for a, b in itertools.pairwise(sets)]
    # float16, and a batch of one is not added up in the order of a batch of two
    assert np.allclose(row["neighbour"].astype(float), expected, atol=0.02)
    matrix = drift.staleness("r = 0.5")
    assert matrix.shape == (5, 5)
    assert np.allclose(matrix, matrix.T)
    of_rows = (
        np.stack(drift.rows[drift.rows["amount"] == "r = 0.5"]["neighbour"].to_numpy()).astype(float).mean(0)
    )
    assert np.allclose(np.diagonal(matrix, 1), of_rows, atol=1e-3)
    with pytest.raises(ValueError, match="nothing was computed"):
        drift.staleness("r = 0.4")


def test_drift_is_that_of_the_rows_with_a_prompt(pipe, tmp_path):
    chosen = setting(tmp_path, images=2)
    drift = drift_study(pipe, chosen, ratios=[0.5], recorded=None)
    with probe(pipe) as record:
        generate_batch(pipe, chosen, range(2))

    def neighbours(row: int, block: int) -> np.ndarray:
        sets = [
            set(map(tuple, record.pairs(step, block, row, ratio=0.5).tolist())) for step in record.steps()
        ]
        return np.array([1 - len(a & b) / len(a | b) for a, b in itertools.pairwise(sets)], np.float16)

    differs = []
    for image in range(2):
        for number, block in enumerate(drift.blocks):
            rows = drift.rows[(drift.rows["image"] == image) & (drift.rows["block"] == block)]
            assert np.array_equal(rows["neighbour"].iloc[0], neighbours(2 + image, number))
            differs.append(not np.array_equal(rows["neighbour"].iloc[0], neighbours(image, number)))
    assert sum(differs) > len(differs) // 2


def test_staleness_weighs_shards_by_their_images():
    distances = [np.array([0.1]), np.array([0.4])]
    rows = {
        "amount": "r = 0.5",
        "block": "down 0",
        "image": [0, 24],
        "images": [24, 8],
        "distance": distances,
    }
    found = Drift(pd.DataFrame(), pd.DataFrame(rows), 2, {})
    assert found.staleness("r = 0.5")[0, 1] == pytest.approx((24 * 0.1 + 8 * 0.4) / 32)
    assert found.staleness("r = 0.5", shards=[1])[0, 1] == pytest.approx(0.4)


def test_drift_is_computed_once_and_only_where_something_is_missing(pipe, tmp_path, monkeypatch):
    generated = []
    real = generate_batch

    def counted(pipe, chosen, images, *rest):
        generated.extend(images)
        return real(pipe, chosen, images, *rest)

    monkeypatch.setattr("catome.study.measure.drift.generate_batch", counted)
    monkeypatch.setattr("catome.study.measure.drift.SHARD", 2)
    chosen = setting(tmp_path)
    first = drift_study(pipe, chosen, ratios=[0.5], recorded=None)
    assert generated == [0, 1, 2]
    again = drift_study(pipe, replace(chosen, batch_size=1), ratios=[0.5], recorded=None)
    assert generated == [0, 1, 2]
    assert np.array_equal(first.staleness("r = 0.5"), again.staleness("r = 0.5"))
    fewer = drift_study(pipe, replace(chosen, images=2), ratios=[0.5], recorded=None)
    assert generated == [0, 1, 2]
    assert set(fewer.rows["image"]) == {0, 1}
    for change, expected in (
        ({"images": 4}, [2, 3]),
        ({"guidance": 3.0}, [0, 1, 2]),
        ({"seed": 1}, [0, 1, 2]),
    ):
        generated.clear()
        drift_study(pipe, replace(chosen, **change), ratios=[0.5], recorded=None)
        assert generated == expected
    generated.clear()
    drift_study(pipe, chosen, ratios=[0.5], recorded=None, recompute=True)
    assert generated == [0, 1, 2]
    generated.clear()
    drift_study(pipe, replace(chosen, classes=["desert"]), ratios=[0.5], recorded=None)
    assert 1 in generated


def test_the_staleness_of_a_schedule_is_that_since_its_last_checkpoint():
    cost = [[0, 1, 2, 3], [0, 0, 20, 30], [0, 0, 0, 400], [0, 0, 0, 0]]
    assert total_staleness(cost, (0, 2)) == 1 + 400
    assert total_staleness(cost, (0,)) == 1 + 2 + 3


def test_a_derived_schedule_has_a_step_for_each_checkpoint_where_nothing_is_stale():
    found = schedule.derive(torch.zeros(6, 6), 4)
    assert len(set(schedule.parse_schedule(found).steps)) == 4


@pytest.mark.parametrize("seed", range(3))
def test_derived_schedules_are_optimal(seed):
    generator = torch.Generator().manual_seed(seed)
    for steps in (1, 2, 7):
        cost = torch.rand(steps, steps, generator=generator)
        for budget in range(1, steps + 1):
            found = schedule.derive(cost, budget)
            assert len(found) == budget
            assert schedule.parse_schedule(found).steps == found
            best = min(
                total_staleness(cost, (0, *rest))
                for rest in itertools.combinations(range(1, steps), budget - 1)
            )
            assert total_staleness(cost, found) == pytest.approx(best)


@pytest.mark.parametrize(
    ("staleness", "checkpoints", "says"),
    [
        ([[0, 1]], 1, "square"),
        ("abc", 1, "square matrix"),
        ([[0, float("nan")], [0, 0]], 1, "finite"),
        ([[0, -1], [0, 0]], 1, "not negative"),
        ([[0, 1], [1, 0]], 3, "checkpoints=3 must be at most 2"),
        ([[0, 1], [1, 0]], 0, "checkpoints=0 must be at least 1"),
    ],
)
def test_derive_refuses(staleness, checkpoints, says):
    with pytest.raises(ValueError, match=says):
        schedule.derive(staleness, checkpoints)


RECORDS = sorted(RECORDED.glob("*.parquet"))


def test_there_are_recorded_rows():
    assert {"quality", "cost", "drift", "staleness", "scores"} <= {file.stem for file in RECORDS}
    assert RECORDED == ROOT / "data" / "results"


@pytest.mark.parametrize("file", RECORDS, ids=lambda file: file.stem)
def test_recorded_files_carry_their_provenance(file, pipe):
    runs = json.loads(pq.read_schema(file).metadata[b"runs"])
    assert json.loads(file.with_suffix(".json").read_text())["runs"] == list(runs.values())
    table = pq.read_table(file)
    assert set(table["run"].to_pylist()) == set(runs)
    if "model" in table.column_names:
        own = fingerprint(pipe)
        known = {own, fingerprint(tiny.load_transformer()), fingerprint(tiny.load_lcm())}
        known |= {_sampled(pipe, name) for name in SAMPLERS}
        assert {own} <= set(table["model"].to_pylist()) <= known, "recorded with another model: record anew"
    assert all(run["commit"] and run["date"] and run["device"] for run in runs.values())


OF_METHODS = [file for file in RECORDS if "method" in pq.read_schema(file).names]


@pytest.mark.parametrize("file", OF_METHODS, ids=lambda file: file.stem)
def test_every_recorded_method_is_made_from_its_label(file):
    labels = pq.read_table(file, columns=["method"])["method"].unique().to_pylist()
    assert labels
    for label in labels:
        assert from_label(label).label == label


def _sampled(pipe, name: str) -> str:
    """The same model with a sampler of short generations."""
    with with_sampler(pipe, name):
        return fingerprint(pipe)


@pytest.mark.skipif(not (RECORDED / "drift.parquet").exists(), reason="nothing recorded yet")
@pytest.mark.slow
@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_recorded_drift_agrees_with_a_recomputed_sample(pipe, tmp_path, place):
    """Images of the record, generated again: the same pairs but for rounding."""
    recorded = Store(DRIFT, tmp_path, RECORDED).find(model=fingerprint(pipe))
    recorded = recorded[recorded["steps"] <= 50]
    row = recorded.iloc[int(place * len(recorded))]
    image = int(row["image"])
    chosen = setting(
        tmp_path, steps=int(row["steps"]), guidance=row["guidance"], seed=int(row["seed"]), images=image + 1
    )
    assert chosen.prompts[image] == row["prompt"]
    with probe(pipe) as record:
        generate_batch(pipe, chosen, range(image, image + 1))
    block = [short_name(name) for name in record.blocks()].index(row["block"])
    amount = {"ratio": row["ratio"]} if row["ratio"] != NONE else {"threshold": row["threshold"]}
    again = jaccard_distances(partners(record, block, slice(-1, None), **amount))[..., 0].diagonal(1)
    difference = np.abs(again.numpy() - row["neighbour"].astype(float))
    assert difference.mean() < 0.01, (row.to_dict(), difference)


FAMILIES = ("ToMe", "CA-ToMe", "tomesd", "merged keys", "ToDo", "DeepCache", "forecast", "fewer steps")
"""Of methods that have recorded rows; others are generated again below, in the batch that they need or in few
steps."""


def _row_of(family: str, rows) -> pd.Series:
    """The row of a family that is nearest to its median PSNR: whatever is wrong in the middle is wrong
    there."""
    own = rows[
        (rows["method"].str.split("(").str[0] == family) & ~rows["method"].str.contains(" + ", regex=False)
    ]
    return own.loc[(own["psnr"] - own["psnr"].median()).abs().idxmin()]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_quality_agrees_with_a_recomputed_image(pipe, tmp_path, family):
    row = _row_of(family, Store(QUALITY, tmp_path, RECORDED).find(model=fingerprint(pipe)))
    image = _generated_again(pipe, row, tmp_path)
    if not row["reference"]:  # it was not compared with real images
        return
    real = tiny.render(row["class"], HELD_OUT + int(row["image"]))
    assert quality.psnr(image, real[None])[0] == pytest.approx(row["psnr_real"], abs=0.2), row["method"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["CA-ToMe", "merged keys", "ToDo", "DeepCache"])
def test_recorded_quality_of_the_distilled_model_agrees_with_a_recomputed_image(tmp_path, family):
    lcm = tiny.load_lcm()
    row = _row_of(family, Store(QUALITY, tmp_path, RECORDED).find(model=fingerprint(lcm)))
    assert (row["steps"], row["guidance"]) == (4, 1.0)
    _generated_again(lcm, row, tmp_path)


def _generated_again(pipe, row: pd.Series, folder, **together) -> np.ndarray:
    """The image of a recorded row ``[1, H, W, 3]``; it must be as close to the unmerged one as was recorded.

    It is alone in its batch, unless ``together`` (of the setting) has images after it."""
    at = int(row["image"])
    given = dict(
        model="tiny" if hasattr(pipe, "unet") else "tiny-pixart",
        steps=int(row["steps"]),
        guidance=row["guidance"],
        images=at + 1,
        batch_size=1,
        seed=int(row["seed"]),
    )
    chosen = setting(folder, **(given | together))
    assert chosen.prompts[at] == row["prompt"]
    plain = quality.to_uint8(generate_batch(pipe, chosen, range(at, at + 1)))
    with from_label(row["method"], chosen).applied(pipe):
        image = quality.to_uint8(generate_batch(pipe, chosen, range(at, chosen.images))[:1])
    # alone instead of in a batch, and perhaps on another processor: rounding moves a few pairs across the
    # threshold
    assert quality.psnr(image, plain)[0] == pytest.approx(row["psnr"], abs=NEAR), row["method"]
    assert quality.ssim(image, plain)[0] == pytest.approx(row["ssim"], abs=0.02), row["method"]
    return image


NEAR = 0.5
"""Decibels between a recorded image and the same one generated alone."""


AS_RELEASED = "CA-ToMe as released(threshold=0.7, schedule=CONFIG_3, "

# images that would be farther off than `NEAR` without what the label says last
ALONE = {
    "fixed shares(by=step and block, ": (9, {}),
    f"{AS_RELEASED}random dst)": (0, {}),
    # the pairs of the first row of the batch before, whose image is of the last of the twelve classes
    f"{AS_RELEASED}steps from 1, pairs kept)": (
        0,
        {"images": 2, "batch_size": 2, "classes": [CLASSES[0], CLASSES[11]]},
    ),
}
"""Images recorded in 50 steps, by the beginning of their method's label: the image, and what must be in its
batch for it to be the same."""


@pytest.mark.slow
@pytest.mark.parametrize("label", ALONE)
def test_recorded_quality_of_fixed_shares_and_the_released_code_agrees_with_a_recomputed_image(
    pipe, tmp_path, label
):
    image, together = ALONE[label]
    rows = Store(QUALITY, tmp_path, RECORDED).find(model=fingerprint(pipe), image=image, steps=50)
    row = rows[rows["method"].str.startswith(label)].iloc[0]
    _generated_again(pipe, row, tmp_path, **together)


class Enough(Exception):
    """Ends a generation when all that is looked at is there."""


@pytest.mark.slow
def test_a_recorded_batch_made_again_merges_by_its_fullest_row(pipe, tmp_path):
    """Up to the second checkpoint; whole images of the twelve together would take a minute."""
    chosen = setting(tmp_path, steps=50, images=12, batch_size=12)
    label = methods.batch_maximum(0.9, "CONFIG_3", batch=12).label
    calls = schedule.parse_schedule("CONFIG_3").steps[1] + 1
    recorded = Store(QUALITY, tmp_path, RECORDED).find(**shared_keys(pipe, chosen), method=label)
    recorded = recorded[recorded["image"] < 12]
    assert set(recorded["image"]) == set(range(12))
    shares = []

    def note() -> None:
        plans = applied_patch(pipe).cached()
        shares.append(torch.stack([plan.merged_share[-12:] for plan in plans]).mean(0))
        if len(shares) == calls:
            raise Enough

    with from_label(label).applied(pipe), pytest.raises(Enough):
        generate_batch(pipe, chosen, range(12), note)
    found = torch.stack(shares, 1).numpy()
    assert abs(found[0, 0] - found[0, -1]) > 0.01  # other pairs since the second checkpoint
    for _, row in recorded.iterrows():
        expected = row["merged_share"][:calls].astype(float)
        # rounding moves a few pairs across the threshold
        assert np.abs(found[row["image"]] - expected).max() < 0.004


BATCH = (
    "ToMe(ratio=0.5, schedule=every step)",
    "CA-ToMe(threshold=0.8, schedule=CONFIG_3)",
    "merged keys(threshold=0.7, stride=2x2, schedule=EVEN_13, compare=keys)",
    "forecast(interval=1, order=1, first=2, growth=1.3)",
    "DeepCache(interval=3)",
    "ToFu(ratio=0.5)",
    "average pooling(factor=2)",
    # its noise is drawn for the whole batch
    "SiTo(ratio=0.5, noise=0.1)",
)
"""Recorded in eight steps, all with the same twelve images in one batch."""


@pytest.mark.slow
def test_a_recorded_batch_made_again_agrees_to_two_hundredths_of_a_decibel(pipe, tmp_path):
    """In the batch in which they were recorded, images differ by nothing but the processor's rounding.

    That moves pairs across the threshold on another kind of processor, where the mean over the images must
    agree to a tenth of a decibel."""
    chosen = curves.Parameters(steps=8, sampler="DPM++", images=12, output=str(tmp_path))
    with with_sampler(pipe, chosen.sampler):
        store = Store(QUALITY, tmp_path, RECORDED)
        recorded = store.find(**shared_keys(pipe, chosen), method=list(BATCH))
        ways = [methods.unmerged(), *map(from_label, BATCH)]
        again = compare(pipe, chosen, ways, folder=tmp_path / "again", recorded=None)
    device = provenance(chosen, "any")["device"]
    for label in BATCH:
        old = recorded[recorded["method"] == label].sort_values("image", ignore_index=True)
        assert old["image"].tolist() == list(range(12))
        difference = again.of(label)["psnr"] - old["psnr"]
        assert abs(difference.mean()) < 0.1, label
        if {store.runs[run]["device"] for run in old["run"]} == {device}:
            assert difference.abs().max() < 0.02, label


@pytest.mark.slow
@pytest.mark.parametrize("family", ["CA-ToMe", "merged keys", "forecast"])
def test_recorded_quality_of_the_transformer_agrees_with_a_recomputed_image(tmp_path, family):
    transformer = tiny.load_transformer()
    rows = Store(QUALITY, tmp_path, RECORDED).find(model=fingerprint(transformer))
    _generated_again(transformer, _row_of(family, rows), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["CA-ToMe", "ToMe", "DeepCache", "ToDo", "unmerged"])
def test_recorded_flops_are_counted_again(pipe, tmp_path, family):
    recorded = Store(COST, tmp_path, RECORDED).find(kind="cpu", batch=1, model=fingerprint(pipe))
    own = recorded[recorded["method"].str.split("(").str[0] == family]
    row = own.iloc[len(own) // 2]
    chosen = setting(tmp_path, steps=int(row["steps"]), guidance=row["guidance"], images=1, batch_size=1)
    again = cost(pipe, chosen, [from_label(row["method"])], repetitions=1, recorded=None)
    assert again["flops"].iloc[0] == pytest.approx(row["flops"], rel=0.01), row["method"]
