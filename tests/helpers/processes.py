"""Commands in processes of their own, which must not reach for a network."""

import os
import subprocess
import sys
from pathlib import Path

from helpers.paths import ROOT


def offline() -> dict:
    """The environment of a process that finds everything it needs here."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def papermill(notebook: str, out: Path, *arguments: str, preset: str = "smoke"):
    preset_file = str(ROOT / f"data/presets/{preset}.yaml")
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(ROOT / f"notebooks/{notebook}.ipynb"),
        str(out),
        "-k",
        "python3",
    ]
    command += [
        "-f",
        preset_file,
        "-p",
        "output",
        str(out.parent / "output"),
        "--no-progress-bar",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, env=offline(), cwd=ROOT)
