"""Cached adaptive token merging for diffusers: `apply_patch`, `remove_patch`, `patched`, `probe`, and `match` on its own."""

from catome.matching import Matches, best_matches
from catome.patch import apply_patch, patched, remove_patch
from catome.plan import MergePlan, make_plan, match
from catome.probe import Observation, Record, probe
from catome.schedule import SCHEDULES, Auto, parse_schedule
from catome.version import __version__

__all__ = [
    "SCHEDULES",
    "Auto",
    "Matches",
    "MergePlan",
    "Observation",
    "Record",
    "__version__",
    "apply_patch",
    "best_matches",
    "make_plan",
    "match",
    "parse_schedule",
    "patched",
    "probe",
    "remove_patch",
]
