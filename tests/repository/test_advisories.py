"""Has one of the pinned versions a known advisory? Asked where the database can be reached, skipped aloud
where not.

Alone, without the rest's needs: ``python -m pytest --noconftest -rs tests/repository/test_advisories.py``,
which is ``make audit``.
"""

import datetime
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import ROOT

ACCEPTED = ROOT / "tests/repository/advisories.txt"
CANARY = "urllib3==1.24.1"
"""A version with advisories of many years: a database that knows none of them cannot be trusted to know
others."""
SECONDS = 180


class Unreachable(Exception):
    """The database of advisories did not answer, or not as itself."""


def pip_audit_command(requirements: Path) -> list[str]:
    options = [
        "--no-deps",
        "--disable-pip",
        "--format",
        "json",
        "--desc",
        "off",
        "--progress-spinner",
        "off",
        "--timeout",
        "10",
    ]
    return [sys.executable, "-m", "pip_audit", *options, "-r", str(requirements)]


def pip_audit(requirements: Path, seconds: float) -> str:
    """The report of pip-audit on pinned requirements, as JSON; it looks each of them up at PyPI.

    Raises:
        Unreachable: if it says nothing, or takes longer.
    """
    try:
        done = subprocess.run(
            pip_audit_command(requirements), capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise Unreachable(f"no answer within {seconds:g} s") from None
    if not done.stdout.strip():
        why = (
            [line for line in done.stderr.splitlines() if "ERROR" in line]
            or done.stderr.splitlines()
            or ["no answer"]
        )
        raise Unreachable(why[-1][:200])
    return done.stdout


def advisories(said: str) -> tuple[dict[str, str], list[str]]:
    """Read pip-audit's JSON: advisories by id, each as a line to read, and the packages that could not be
    looked up.

    Raises:
        Unreachable: if no package could be looked up at all. pip-audit itself calls that "no known
            vulnerabilities".
    """
    packages = json.loads(said)["dependencies"]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if len(unknown) == len(packages):
        raise Unreachable("it knows none of the packages")
    found = {}
    for package in packages:
        for advisory in package.get("vulns", []):
            fixed = ", ".join(advisory["fix_versions"]) or "no version yet"
            names = ", ".join([advisory["id"], *advisory.get("aliases", [])])
            found[advisory["id"]] = f"{package['name']} {package['version']}: {names}; fixed in {fixed}"
    return found, unknown


def accepted(text: str) -> dict[str, str]:
    """Advisories that somebody has looked at: the reason by id.

    Raises:
        ValueError: for a line without id, date and reason.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    reasons = {}
    for line in lines:
        match = re.fullmatch(r"(\S+)\s+(\d{4}-\d\d-\d\d)\s+(\S.{14,})", line.strip())
        if not match:
            raise ValueError(f"advisories.txt: {line!r} must be an id, a date and a reason")
        datetime.date.fromisoformat(match[2])
        reasons[match[1]] = match[3]
    return reasons


def verdict(canary: str, said: str, reasons: dict[str, str]) -> tuple[list[str], list[str], list[str]]:
    """``(open, stale, unknown)``: advisories to act on, accepted ones that are gone, packages that could not
    be looked up.

    Raises:
        Unreachable: if the database does not know the canary's advisories, or none of the packages.
    """
    if not advisories(canary)[0]:
        raise Unreachable(f"it knows no advisory of {CANARY}, which has several")
    found, unknown = advisories(said)
    return (
        [line for name, line in found.items() if name not in reasons],
        sorted(set(reasons) - set(found)),
        unknown,
    )


def test_no_pinned_version_has_a_known_advisory(tmp_path):
    reasons = accepted(ACCEPTED.read_text())
    (tmp_path / "canary.txt").write_text(CANARY + "\n")
    try:
        canary = pip_audit(tmp_path / "canary.txt", 30)
        advisories(canary)  # before the long question
        found, stale, unknown = verdict(canary, pip_audit(ROOT / "constraints.txt", SECONDS), reasons)
    except Unreachable as error:
        pytest.skip(f"NOT CHECKED: the database of known advisories cannot be reached from here ({error})")
    print(f"not looked up: {', '.join(unknown) or 'none'}")
    assert not found, "\n".join(["pinned versions with known advisories:", *found])
    assert not stale, (
        f"tests/repository/advisories.txt names what constraints.txt no longer has: {', '.join(stale)}"
    )
    assert len(unknown) < 10, f"could not be looked up: {', '.join(unknown)}"


def package(name="torch", ids=(), skipped=False):
    if skipped:
        return {
            "name": name,
            "skip_reason": f"Dependency not found on PyPI and could not be audited: {name} (1.0)",
        }
    vulns = [
        {"id": one, "fix_versions": ["1.1"], "aliases": [f"CVE-{one}"], "description": ""} for one in ids
    ]
    return {"name": name, "version": "1.0", "vulns": vulns}


def report(*packages):
    return json.dumps({"dependencies": list(packages), "fixes": []})


SINGS = report(package("urllib3", ["PYSEC-1", "PYSEC-2"]))
REASON = "the function it is about is never called"


def test_a_clean_report_is_clean():
    assert verdict(SINGS, report(package(), package("numpy")), {}) == ([], [], [])


def test_an_advisory_is_found_unless_it_is_accepted():
    said = report(package("torch", ["PYSEC-3", "PYSEC-4"]), package("numpy"))
    found, stale, _ = verdict(SINGS, said, {"PYSEC-4": REASON})
    assert found == ["torch 1.0: PYSEC-3, CVE-PYSEC-3; fixed in 1.1"]
    assert stale == []


def test_an_accepted_advisory_that_is_gone_is_named():
    assert verdict(SINGS, report(package()), {"PYSEC-4": REASON})[1] == ["PYSEC-4"]


def test_packages_that_could_not_be_looked_up_are_named():
    assert verdict(SINGS, report(package(), package("nobody", skipped=True)), {})[2] == ["nobody"]


@pytest.mark.parametrize(
    ("canary", "said", "why"),
    [
        (report(package("urllib3")), report(package()), "knows no advisory of urllib3"),
        (report(package("urllib3", skipped=True)), report(package()), "knows none of the packages"),
        (SINGS, report(package(skipped=True), package("numpy", skipped=True)), "knows none of the packages"),
    ],
)
def test_a_database_that_knows_nothing_is_none(canary, said, why):
    """A mirror that answers with nothing at all must not pass for a clean bill."""
    with pytest.raises(Unreachable, match=why):
        verdict(canary, said, {})


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import time; time.sleep(60)", "no answer within 1 s"),
        (
            "import sys; print('ERROR:pip_audit._cli:no route to host', file=sys.stderr); sys.exit(1)",
            "no route to host",
        ),
        ("", "no answer"),
    ],
)
def test_no_answer_is_unreachable(program, why, tmp_path, monkeypatch):
    (tmp_path / "pip_audit.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(Unreachable, match=why):
        pip_audit(tmp_path / "none.txt", 1)


def test_what_is_accepted_has_a_date_and_a_reason():
    assert accepted("# a comment\n\nPYSEC-1  2026-11-21  " + REASON) == {"PYSEC-1": REASON}
    for line in ("PYSEC-1", "PYSEC-1 2026-11-21", "PYSEC-1 2026-13-01 " + REASON, "PYSEC-1 " + REASON):
        with pytest.raises(ValueError, match=r"must be|month"):
            accepted(line)


def test_the_real_program_can_read_the_pinned_versions():
    """All but the asking, so that a wrong option or line is not taken for a database out of reach."""
    command = pip_audit_command(ROOT / "constraints.txt")
    done = subprocess.run([*command, "--dry-run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count = sum(bool(line.strip()) for line in (ROOT / "constraints.txt").read_text().splitlines())
    assert f"would have audited {count} packages" in done.stderr
