"""What the notebooks call: parameters, generation, the studies and their figures."""

from catome.schedule import derive
from catome.study import figures
from catome.study.drift import amount_name, drift_study, jaccard_distances, lag_curves
from catome.study.generate import generate, load
from catome.study.parameters import Setting, settle
from catome.study.similarity import shares_above, similarity_study, weakest_merged
from catome.study.store import computed_on

__all__ = [
    "Setting",
    "amount_name",
    "computed_on",
    "derive",
    "drift_study",
    "figures",
    "generate",
    "jaccard_distances",
    "lag_curves",
    "load",
    "settle",
    "shares_above",
    "similarity_study",
    "weakest_merged",
]
