"""The parameters of the notebooks that keep no rows: what they show is computed while they run."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from catome.study.run.parameters import (
    Cosine,
    Cosines,
    Count,
    Counts,
    Edge,
    Edges,
    Flag,
    Position,
    ScheduleName,
    Setting,
    Share,
    Shares,
    Step,
    Text,
    parameters,
)


@parameters
class Review(Setting):
    """Chapter 1, token merging step by step.

    Attributes:
        ratio: the share of all tokens that ToMe merges.
        threshold: CA-ToMe's.
        step: to look at, counted from 0; None for two fifths of the way.
        block: the topmost transformer block to look at; 0 is the first to run.
    """

    ratio: Share = 0.5
    threshold: Cosine = 0.9
    step: Step = None
    block: Position = 2

    @model_validator(mode="after")
    def _has_the_step(self) -> Self:
        if self.step is not None and self.step >= self.calls:
            raise ValueError(
                f"step={self.step!r} must be below {self.calls}, the U-Net calls of steps={self.steps}"
            )
        return self

    @property
    def step_shown(self) -> int:
        """The step to look at."""
        return int(0.4 * self.calls) if self.step is None else self.step


@parameters
class Similarity(Setting):
    """Chapter 2, similarity step by step.

    Attributes:
        thresholds: cosines to compare.
        ratio: the fixed share to compare with.
        recompute: compute again what was recorded or kept.
    """

    thresholds: Cosines = (0.7, 0.8, 0.9, 0.95)
    ratio: Share = 0.5
    recompute: Flag = False


@parameters
class Accounting(Setting):
    """Chapter 7, where the time goes. It counts, and needs no device.

    Attributes:
        sizes: of the square image, in pixels.
        size: of the image whose parts are shown, in pixels; Stable Diffusion v1.5 was trained on 512.
        shares: of the topmost tokens that are merged.
        schedule: how often pairs are found.
        rows: of the U-Net's batch; 2 are one image with guidance.
    """

    device: Text = "cpu"
    sizes: Edges = (256, 512, 768, 1024, 1536, 2048)
    size: Edge = 512
    shares: Shares = (0.5, 0.75)
    schedule: ScheduleName = "CONFIG_3"
    rows: Count = 2


@parameters
class Cover(Setting):
    """The picture on the front page.

    Attributes:
        threshold: merge every pair at least this similar.
        schedule: the steps at which pairs are found afresh.
        faster: a second threshold to time.
    """

    threshold: Cosine = 0.9
    schedule: ScheduleName = "CONFIG_3"
    faster: Cosine = 0.7


@parameters
class EmbeddedModel(Setting):
    """The page about the embedded model; ``renders`` are the drawn scenes of each class to show."""

    renders: Count = 6


@parameters
class StudyCost(Setting):
    """The page about what the study costs. It counts, and needs no device.

    Attributes:
        preset: a file in ``data/presets``: its study is counted, and priced as one of Stable Diffusion v1.5.
        sizes: of the square image, in pixels.
        share: merged, to compare with nothing merged.
        gpus: how many share the work.
        batches: images of a piece of work.
    """

    device: Text = "cpu"
    preset: Text = "paper"
    sizes: Edges = (512, 768, 1024, 1536, 2048)
    share: Share = 0.5
    gpus: Counts = (1, 8, 64, 1000)
    batches: Counts = (16, 4, 1)


CHAPTERS: dict[str, type[Setting]] = {
    "01_tome_review": Review,
    "02_similarity_per_step": Similarity,
    "07_where_the_time_goes": Accounting,
    "cover": Cover,
    "embedded_model": EmbeddedModel,
    "study_cost": StudyCost,
}
"""By the name of the notebook."""
