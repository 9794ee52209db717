"""The functions that the notebooks call: parameters, generation, the studies and their figures."""

from catome.policy.schedule import derive
from catome.study import methods, paper, studies
from catome.study.bench.suites import bench_rows
from catome.study.costs import accounting, estimate
from catome.study.measure import quality
from catome.study.measure.comparison import compare, cost, timed_on
from catome.study.measure.drift import amount_name, drift_study, jaccard_distances, mean_staleness
from catome.study.measure.pictures import pictures
from catome.study.measure.real_images import real_images
from catome.study.measure.similarity import shares_above, similarity_study, variance_of_share, weakest_merged
from catome.study.plots import accounting_figures, figures, interactive
from catome.study.run.denoiser import check_has_unet, topmost_downsample
from catome.study.run.generate import first_call, generate, generate_batch, load, tokens_of
from catome.study.run.parameters import Setting
from catome.study.run.store import computed_on

__all__ = [
    "Setting",
    "accounting",
    "accounting_figures",
    "amount_name",
    "bench_rows",
    "check_has_unet",
    "compare",
    "computed_on",
    "cost",
    "derive",
    "drift_study",
    "estimate",
    "figures",
    "first_call",
    "generate",
    "generate_batch",
    "interactive",
    "jaccard_distances",
    "load",
    "mean_staleness",
    "methods",
    "paper",
    "pictures",
    "quality",
    "real_images",
    "shares_above",
    "similarity_study",
    "studies",
    "timed_on",
    "tokens_of",
    "topmost_downsample",
    "variance_of_share",
    "weakest_merged",
]
