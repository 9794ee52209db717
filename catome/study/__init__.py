"""What the notebooks call: parameters, generation, the studies and their figures."""

from catome.study import figures
from catome.study.generate import generate, load
from catome.study.parameters import Setting, settle
from catome.study.similarity import shares_above, similarity_study, weakest_merged

__all__ = [
    "Setting",
    "figures",
    "generate",
    "load",
    "settle",
    "shares_above",
    "similarity_study",
    "weakest_merged",
]
