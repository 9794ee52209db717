"""Long runs: killed, shared, interrupted, short of memory; the results are the same to the bit."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

import catome.study.__main__ as command
from catome.patch import applied_patch
from catome.study import compare, drift_study, methods
from catome.study.measure.comparison import QUALITY
from catome.study.measure.drift import DRIFT, STALENESS
from catome.study.run.generate import by_halves, generate_batch
from catome.study.run.store import Damaged, Store
from catome.study.studies import STUDIES
from helpers import crew
from helpers.paths import ROOT
from helpers.sentences import assert_says
from helpers.settings import setting

KILLS = int(os.environ.get("KILLS", "20"))


def results(folder) -> dict[str, bytes]:
    """All rows without their provenance, which says who computed them when."""
    found = {}
    for table in (QUALITY, DRIFT, STALENESS):
        rows = Store(table, folder, None).find()
        assert not rows.duplicated(list(table.keys)).any()
        rows = pa.Table.from_pandas(rows, table.schema, preserve_index=False).drop_columns(["run"])
        rows = rows.replace_schema_metadata(None).sort_by([(name, "ascending") for name in table.keys])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as stream:
            stream.write_table(rows.combine_chunks())
        found[table.name] = sink.getvalue().to_pybytes()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results of a run that nothing interrupts, and the seconds that it takes."""
    folder = tmp_path_factory.mktemp("whole")
    assert crew.exit_codes([crew.started(time.sleep, 0)]) == [0]  # the first one waits for the server
    begun = time.monotonic()
    assert crew.exit_codes([crew.started(crew.small_study, folder)]) == [0]
    seconds = time.monotonic() - begun
    found = results(folder)
    assert all(found.values())
    return found, seconds


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(whole, tmp_path):
    expected, seconds = whole
    moments, kills, rounds = random.Random(0), 0, 0
    while kills < KILLS:
        folder, alive = tmp_path / str(rounds), True
        while alive:
            process = crew.started(crew.small_study, folder)
            process.join(moments.uniform(0.05, 0.4) * seconds if kills < KILLS else crew.LONGEST)
            alive = process.is_alive()
            if alive:
                assert kills < KILLS, "a run that nobody kills does not end"
                process.kill()
                process.join()
                kills += 1
            else:
                assert process.exitcode == 0
        assert results(folder) == expected
        assert not list(folder.glob("*.parts"))
        rounds += 1


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_work_and_end_with_the_same_bytes(whole, tmp_path, processes):
    running = [crew.started(crew.small_study, tmp_path, rank, processes) for rank in range(processes)]
    assert crew.exit_codes(running) == [0] * processes
    assert results(tmp_path) == whole[0]
    shares = Store(QUALITY, tmp_path, None).find().groupby("run").size()
    assert len(shares) > 1


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_the_others_finish_when_one_is_killed(whole, tmp_path, processes):
    running = [crew.started(crew.small_study, tmp_path, rank, processes) for rank in range(processes)]
    time.sleep(0.15 * whole[1])
    running[0].kill()
    assert crew.exit_codes(running) == [-signal.SIGKILL] + [0] * (processes - 1)
    assert results(tmp_path) == whole[0]


def arguments(folder, *more):
    given = ["headline", "-f", str(ROOT / "data/presets/smoke.yaml"), "--output", str(folder), "--steps", "2"]
    return [*given, "--batch-size", "1", *more]


def test_the_command_ends_when_interrupted_and_goes_on_afterwards(loaded, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "load", lambda params: loaded)
    calls = []

    def interrupted(pipe, some, images, progress=None):
        calls.append(images)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return generate_batch(pipe, some, images, progress)

    monkeypatch.setattr("catome.study.measure.comparison.generate_batch", interrupted)
    assert command.main(arguments(tmp_path)) == 130
    assert_says(capsys.readouterr().err, f"is in {tmp_path}", "the same command goes on")
    assert len(Store(QUALITY, tmp_path, None).find()) == 9  # the first image by all methods
    assert command.main(arguments(tmp_path)) == 0
    assert len(calls) == 12 + 9
    assert f"all rows are in {tmp_path}" in capsys.readouterr().out
    assert len(Store(QUALITY, tmp_path, None).find()) == 18


def test_processes_of_torchrun_share_a_folder(tmp_path):
    """Two processes of torchrun, as ``accelerate launch`` starts them where there are several GPUs."""
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "catome.study",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *arguments(tmp_path)], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("all rows are in") == 1
    rows = Store(QUALITY, tmp_path, None).find()
    assert len(rows) == 18
    assert rows["run"].nunique() == 2
    assert (tmp_path / "quality.parquet").exists()


def test_accelerate_launches_it(tmp_path):
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "catome.study"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    given = arguments(tmp_path, "--images", "0")
    done = subprocess.run([*launch, *given], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode != 0
    assert "images=0 must be at least 1" in done.stderr


def test_what_times_itself_needs_the_machine_alone(monkeypatch, capsys):
    monkeypatch.setattr(command, "place", lambda: (0, 2))
    assert command.main(["compose"]) == 2
    assert_says(capsys.readouterr().err, "2 processes", "compose times", "machine alone")


def test_a_damaged_file_is_said_in_one_line_and_a_fault_of_the_code_is_not(tmp_path, monkeypatch, capsys):
    given = ["frontier", "--images", "1", "--steps", "1", "--output", str(tmp_path)]
    study = STUDIES["frontier"]

    def fails(error):
        def run(params, pipe):
            raise error

        return run

    monkeypatch.setattr(study, "run", fails(Damaged("scores.parquet is not a whole Parquet file")))
    assert command.main(given) == 1
    assert capsys.readouterr().err.endswith("error: scores.parquet is not a whole Parquet file\n")
    monkeypatch.setattr(study, "run", fails(ValueError("operands could not be broadcast together")))
    with pytest.raises(ValueError, match="broadcast"):
        command.main(given)


def test_a_batch_that_does_not_fit_is_halved(loaded, tmp_path, monkeypatch):
    some = setting(tmp_path, images=5, steps=2, batch_size=5)
    ways = [methods.unmerged(), methods.tome(0.5)]
    expected = compare(loaded, replace(some, batch_size=2), ways, folder=tmp_path / "a", recorded=None).rows

    def small(pipe, given, images, progress=None):
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate_batch(pipe, given, images, progress)

    monkeypatch.setattr("catome.study.measure.comparison.generate_batch", small)
    monkeypatch.setattr("catome.study.measure.drift.generate_batch", small)
    with pytest.warns(UserWarning, match=r"out of memory .* 5\b.* going on with 3"):
        found = compare(loaded, some, ways, folder=tmp_path / "b", recorded=None).rows
    assert found["image"].tolist() == expected["image"].tolist()
    assert np.allclose(found["psnr"].astype(float), expected["psnr"].astype(float), atol=0.5)
    assert all(
        np.allclose(a, b, atol=0.02)
        for a, b in zip(found["merged_share"], expected["merged_share"], strict=True)
    )
    with pytest.warns(UserWarning, match="out of memory with batches of 5"):
        drift = drift_study(loaded, some, ratios=[0.5], folder=tmp_path / "b", recorded=None)
    assert sorted(set(drift.rows["image"])) == [0, 1, 2, 3, 4]


def test_a_batch_that_must_be_whole_is_not_halved(loaded, tmp_path, monkeypatch):
    """By the rule of the fullest row, half a batch is another result, and would be kept under the name of the
    whole one."""
    some = setting(tmp_path, images=4, steps=2, batch_size=4)

    def small(pipe, given, images, progress=None):
        if len(images) > 2 and applied_patch(pipe) is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate_batch(pipe, given, images, progress)

    monkeypatch.setattr("catome.study.measure.comparison.generate_batch", small)
    with pytest.raises(torch.OutOfMemoryError):
        compare(loaded, some, [methods.batch_maximum(0.9, None, 4)], recorded=None)
    assert applied_patch(loaded) is None


def test_a_single_image_that_does_not_fit_is_an_error():
    def never(images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.warns(UserWarning, match="going on with 1"), pytest.raises(torch.OutOfMemoryError):
        by_halves(never, range(2))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["schedule"], ("study='schedule'", "did you mean 'schedules'?", "there are " + ", ".join(STUDIES))),
        (["01_tome_review"], "study='01_tome_review' is no study"),
        (["headline", "--imges", "3"], "imges=3 is no parameter of this study (did you mean 'images'?)"),
        (["headline", "--images", "0"], "images=0 must be at least 1"),
        (["headline", "--images", "{"], "images='{' must be a value as in YAML"),
        (["headline", "images", "3"], "'images' is no option: parameters are given as --name value"),
        (["headline", "-f", "nowhere.yaml"], "f='nowhere.yaml' must be a YAML file of parameters"),
        (["headline", "-f", "Makefile"], "f='Makefile' must "),
        (["headline", "--model", "nowhere/at-all"], "nowhere/at-all"),
        (["headline", "--reference=nowhere"], "reference='nowhere'"),
        (["headline", "--device", "cuda:99"], "device='cuda:99'"),
        (["drift", "--timed"], "--timed: the study drift times nothing"),
    ],
)
def test_what_is_wrong_is_said_in_one_message_before_anything_is_computed(
    given, says, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert command.main([*given, "--output", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert_says(err, *([says] if isinstance(says, str) else says))
    assert out == ""
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_several_processes_do_not_compute_everything_again_each(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command.main(["headline", "--recompute", "true", "--output", str(tmp_path / "out")]) == 2
    assert "recompute=True with 2 processes" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert command.main(["headline", "--images", "0"]) == 2
    assert capsys.readouterr().err == ""  # the first process says it
