"""Several processes at one folder: nothing is lost, nothing is done twice, nobody waits for the dead."""

import json
import os
import signal
import time

import pytest

from catome.study.run import claims as work
from catome.study.run.claims import Claims, deal, place
from helpers import crew


def nobody(line):
    raise AssertionError(line)


def test_a_claim_is_one_processs_until_it_is_given_back(tmp_path):
    a, b = Claims(tmp_path), Claims(tmp_path)
    assert a.take("first")
    assert not b.take("first")
    assert b.take("second")
    assert a.others() == [f"second by process {os.getpid()} on {work.here()}"]
    a.release("first")
    a.release("first")  # twice does no harm
    assert b.take("first")
    assert a.others() != []
    a.release("second")  # not its own
    assert not a.take("second")


def test_a_claim_of_a_dead_process_is_anybodys_at_once(tmp_path):
    ready = crew.CONTEXT.Event()
    process = crew.started(crew.hold_a_claim, tmp_path, ready)
    assert ready.wait(60)
    claims = Claims(tmp_path)
    assert not claims.take("piece")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert claims.others() == []
    assert claims.take("piece")
    assert len(list((tmp_path / "claims").iterdir())) == 1


def test_a_claim_of_somebody_elses_process_is_held(tmp_path, monkeypatch):
    """Such a process may not be signalled, and lives all the same."""
    claims = Claims(tmp_path)
    assert claims.take("piece")

    def forbidden(pid, signal):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "kill", forbidden)
    assert work.born(os.getpid())
    assert not Claims(tmp_path).take("piece")


@pytest.mark.parametrize(
    "content", ['{"host": "another", "pid": 1, "born": "5"}', "", "{", '{"host": "another"}']
)
def test_a_claim_from_elsewhere_lasts_while_it_is_touched(tmp_path, content):
    claims = Claims(tmp_path)
    assert claims.take("piece")
    (path,) = (tmp_path / "claims").iterdir()
    path.write_text(content)
    other = Claims(tmp_path)
    assert not other.take("piece")
    assert len(other.others()) == 1
    os.utime(path, (time.time() - work.LEASE - 1,) * 2)
    assert other.others() == []
    assert other.take("piece")


def test_a_process_number_that_was_given_to_another_process_does_not_hold_a_claim(tmp_path):
    claims = Claims(tmp_path)
    assert claims.take("piece")
    (path,) = (tmp_path / "claims").iterdir()
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"born": "1"}))
    assert Claims(tmp_path).take("piece")


def test_a_claim_that_was_made_since_one_looked_is_left_alone(tmp_path):
    claims = Claims(tmp_path)
    assert claims.take("piece")
    (path,) = (tmp_path / "claims").iterdir()
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"born": "1"}))  # of a process that is gone
    slow, quick = Claims(tmp_path), Claims(tmp_path)
    look = slow._abandoned

    def look_slowly(path):
        found = look(path)
        assert quick.take("piece")
        return found

    slow._abandoned = look_slowly
    assert not slow.take("piece")
    assert list((tmp_path / "claims").iterdir()) == [path]
    assert json.loads(path.read_text()) == about
    quick.release("piece")
    assert not path.exists()


def test_claims_are_touched_while_they_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr(work, "LEASE", 0.3)
    claims = Claims(tmp_path)
    assert claims.take("piece")
    (path,) = (tmp_path / "claims").iterdir()
    os.utime(path, (0, 0))
    time.sleep(0.5)
    assert time.time() - path.stat().st_mtime < 0.3


def test_alone_every_piece_is_dealt_once_in_order(tmp_path):
    done = {"c"}
    dealt = []
    for piece, need in deal("abcd", lambda p: p not in done and p.upper(), str, Claims(tmp_path), say=nobody):
        assert len(list((tmp_path / "claims").glob("*.claim"))) == 1
        dealt.append((piece, need))
        done.add(piece)
    assert dealt == [("a", "A"), ("b", "B"), ("d", "D")]
    assert not (tmp_path / "claims").exists()


def test_an_error_gives_the_claim_back(tmp_path):
    pieces = deal("ab", lambda p: True, str, Claims(tmp_path), say=nobody)
    assert next(pieces) == ("a", True)
    assert not Claims(tmp_path).take("a")
    with pytest.raises(KeyboardInterrupt):
        pieces.throw(KeyboardInterrupt)
    assert Claims(tmp_path).take("a")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, (3, 8)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, (1, 2)),
        ({"RANK": "3"}, (0, 1)),
    ],
)
def test_the_place_is_what_the_launcher_says(environment, expected, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert place() == expected


def test_a_process_that_hangs_is_killed_and_fails_the_test(monkeypatch):
    monkeypatch.setattr(crew, "LONGEST", 0.2)
    process = crew.started(time.sleep, 60)
    with pytest.raises(AssertionError, match="did not end"):
        crew.exit_codes([process])
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("killed", [False, True])
def test_many_do_all_the_work_and_each_piece_once(tmp_path, processes, killed):
    """Also if one of them is killed: then the piece that it was at is done again, by another."""
    pace = 0.1 if killed else 0.03  # the one that is killed must still be at work
    running = [crew.started(crew.do_pieces, tmp_path, rank, processes, pace) for rank in range(processes)]
    if killed:
        time.sleep(0.25)
        running[-1].kill()
    assert crew.exit_codes(running) == [0] * (processes - killed) + [-signal.SIGKILL] * killed
    assert len(list(tmp_path.glob("*.done"))) == 40
    lines = (tmp_path / "log").read_text().split("\n")[:-1]
    pieces = [line.split()[1] for line in lines]
    assert len(pieces) <= 40 + killed
    assert set(pieces) == {str(piece) for piece in range(40)}
    assert len({line.split()[0] for line in lines}) == processes
    assert not list((tmp_path / "claims").glob("*.claim"))
