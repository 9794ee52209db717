"""What the notebooks call: parameters, generation, the studies and their figures."""

from catome.policy.schedule import Auto, derive
from catome.study import accounting, accounting_figures, figures, methods, paper, quality, studies
from catome.study.bench import bench_rows
from catome.study.comparison import compare, cost, timed_on
from catome.study.drift import (
    SHARD,
    amount_name,
    checkpoints_made,
    drift_study,
    held_out,
    jaccard_distances,
    lag_curves,
    mean_staleness,
)
from catome.study.generate import generate, generate_batch, load, tokens_of
from catome.study.parameters import Setting
from catome.study.reference import real_images
from catome.study.similarity import shares_above, similarity_study, weakest_merged
from catome.study.store import computed_on, image_size

__all__ = [
    "SHARD",
    "Auto",
    "Setting",
    "accounting",
    "accounting_figures",
    "amount_name",
    "bench_rows",
    "checkpoints_made",
    "compare",
    "computed_on",
    "cost",
    "derive",
    "drift_study",
    "figures",
    "generate",
    "generate_batch",
    "held_out",
    "image_size",
    "jaccard_distances",
    "lag_curves",
    "load",
    "mean_staleness",
    "methods",
    "paper",
    "quality",
    "real_images",
    "shares_above",
    "similarity_study",
    "studies",
    "timed_on",
    "tokens_of",
    "weakest_merged",
]
