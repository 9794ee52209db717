"""Every kernel compiles for the GPUs that people have, with none at hand: no register is spilled, and what it needs is there."""

import os
import subprocess
import sys
from io import StringIO

import pandas as pd
import pytest

from catome.study.kernel_table import GPUS, KERNELS, SHARED_KIB, kernel_table

pytest.importorskip("triton")

TENSOR_CORES = {80: "mma", 89: "mma", 90: "wgmma", 100: "tcgen05.mma"}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """In a process of its own: in this one the kernels may have been imported to be interpreted."""
    program = "from catome.study.kernel_table import kernel_table; print(kernel_table().to_csv(index=False))"
    surroundings = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=surroundings)
    assert run.returncode == 0, run.stderr
    return pd.read_csv(StringIO(run.stdout), keep_default_na=False)


def test_every_kernel_is_there_for_every_gpu_in_every_dtype(table):
    assert set(table["kernel"]) == {name.lstrip("_") for name in KERNELS}
    counts = table.groupby(["kernel", "capability", "dtype"]).size()
    assert len(counts) == len(KERNELS) * len(GPUS) * 3
    assert (counts["merge_keys"] == 3).all(), "with and without a channel for weights, and of Flux's size"


def test_no_register_is_spilled(table):
    spilling = table[table["spilled"] > 0]
    assert spilling.empty, spilling.to_string()
    assert table["registers"].between(8, 255).all()


def test_shared_memory_fits(table):
    assert (table["shared"] <= table["capability"].map(SHARED_KIB)).all()
    assert (table[table["kernel"] == "best"]["shared"] > 0).all()


def test_products_are_taken_by_tensor_cores(table):
    best = table[table["kernel"] == "best"]
    for _, row in best.iterrows():
        assert TENSOR_CORES[row["capability"]] in row["instructions"].split(), row.to_dict()
    assert (table[table["kernel"] != "best"]["instructions"] == "").all()


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="the kernels are compiled here")
def test_where_kernels_are_interpreted_it_says_so():
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1 interprets kernels"):
        kernel_table()
