"""The places of things in the repository. Nothing but the standard library is imported: `make audit` has
nothing else."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
