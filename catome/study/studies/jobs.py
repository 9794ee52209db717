"""List what a study would generate, before anything is generated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pandas as pd

from catome.study.measure.drift import SHARD
from catome.study.run.parameters import Setting


@dataclass(frozen=True)
class Job:
    """One way of generating a study's images.

    Attributes:
        phase: one begins when the one before has ended.
        what: "images", or "drift", "similarity" and "searches" where every block is watched.
        method: the label of the method; "unmerged" also for the images that others are compared with.
        setting: which images.
        piece: images that one process takes at a time.
        calls: of the U-Net by one generation.
    """

    phase: int
    what: str
    method: str
    setting: Setting
    piece: int
    calls: int


def of_images(phase: int, setting: Setting, labels: Iterable[str], calls: int | None = None) -> Iterator[Job]:
    """Images by several methods, and the unmerged ones that they are compared with; ``calls`` where the
    sampler is not PLMS."""
    for label in ["unmerged", *(label for label in labels if label != "unmerged")]:
        yield Job(phase, "images", label, setting, setting.batch_size, calls or setting.calls)


def of_drift(phase: int, setting: Setting, calls: int | None = None) -> Job:
    """Unmerged images whose pairs are watched; ``calls`` where the sampler is not PLMS."""
    return Job(phase, "drift", "unmerged, watched", setting, SHARD, calls or setting.calls)


def of_searches(phase: int, setting: Setting, label: str) -> Job:
    """Images by an online schedule, whose searches are counted."""
    return Job(phase, "searches", f"{label}, watched", setting, setting.batch_size, setting.calls)


COLUMNS = ["phase", "what", "method", "images", "piece", "calls", "rows", "height", "width"]


def table(jobs: Iterable[Job]) -> pd.DataFrame:
    """A row for each job.

    Returns:
        ``phase``, ``what``, ``method`` and ``piece`` as in `Job`, ``images``, ``calls`` of the U-Net by one
        generation, ``rows`` of its batch for one image (2 with guidance), ``height`` and ``width`` (pixels;
        None for the model's own).
    """
    rows = [
        {
            "phase": job.phase,
            "what": job.what,
            "method": job.method,
            "images": job.setting.images,
            "piece": job.piece,
            "calls": job.calls,
            "rows": 2 if job.setting.guidance > 1 else 1,
            "height": job.setting.height,
            "width": job.setting.width,
        }
        for job in jobs
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def unet_calls(counted: pd.DataFrame) -> int:
    """All U-Net calls of a `table`, for one image each (two rows of a batch with guidance)."""
    return int((counted["images"] * counted["calls"]).sum())
