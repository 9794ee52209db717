"""Cached adaptive token merging for diffusers.

`apply_patch`, `patched`, `remove_patch` and `summary` are for pipelines, `probe` watches one, `merge_keys` is
for any other model, and `match` works on plain tensors.
"""

from catome.merge_keys import merge_keys
from catome.patch import apply_patch, is_patched, new_generation, patched, remove_patch
from catome.policy.forecast import Forecast
from catome.policy.rates import calibrate
from catome.policy.schedule import SCHEDULES, Schedule, derive, evenly, parse_schedule
from catome.probe import Observation, Record, probe
from catome.runtime.compiled import compile_cached_steps
from catome.runtime.config import FAST, PAPER, RECOMMENDED, TOME, MergeConfig
from catome.summary import Summary, summary
from catome.tensors.matching import Matches, best_matches
from catome.tensors.plan import MergePlan, make_plan, match
from catome.version import __version__

__all__ = [
    "FAST",
    "PAPER",
    "RECOMMENDED",
    "SCHEDULES",
    "TOME",
    "Forecast",
    "Matches",
    "MergeConfig",
    "MergePlan",
    "Observation",
    "Record",
    "Schedule",
    "Summary",
    "__version__",
    "apply_patch",
    "best_matches",
    "calibrate",
    "compile_cached_steps",
    "derive",
    "evenly",
    "is_patched",
    "make_plan",
    "match",
    "merge_keys",
    "new_generation",
    "parse_schedule",
    "patched",
    "probe",
    "remove_patch",
    "summary",
]
