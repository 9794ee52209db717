"""The class of each notebook's parameters."""

from catome.study.studies import OF_CHAPTERS
from catome.study.studies.chapters import CHAPTERS

PARAMETERS = CHAPTERS | {study.NOTEBOOK: study.Parameters for study in OF_CHAPTERS.values()}
