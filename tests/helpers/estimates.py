"""The rates of devices as the library estimates them, copied by `conftest.py` before it changes them for all
tests."""

from catome.policy import rates

ESTIMATES = dict(rates.ESTIMATES)
