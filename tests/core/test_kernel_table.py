"""Every kernel compiles for the GPUs that people have, with none at hand: no register is spilled, and what it
needs is there."""

import os
import subprocess
import sys
from io import StringIO

import pandas as pd
import pytest

from catome.study.bench.kernel_table import GPUS, KERNELS, SHARED_KIB, SIZES, kernel_table, least_times
from catome.study.costs.accounting import DEVICES

pytest.importorskip("triton")

TENSOR_CORES = {80: "mma", 89: "mma", 90: "wgmma", 100: "tcgen05.mma"}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """In a process of its own: in this one the kernels may have been imported to be interpreted."""
    program = (
        "from catome.study.bench.kernel_table import kernel_table; print(kernel_table().to_csv(index=False))"
    )
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


def test_least_times_are_of_the_products_and_bytes():
    table = least_times("A100 80 GB SXM", share=0.75).set_index(["model", "work"])
    plain = table.loc["SD 1.5, 512 px", "attention, unmerged"]
    assert plain["GFLOP"] == pytest.approx(2 * 4 * 4096**2 * 320 / 1e9)
    assert plain["us"] == pytest.approx(1e6 * 2 * 4 * 4096**2 * 320 / 312e12)
    merged = table.loc["SD 1.5, 512 px", "attention, keys merged"]
    assert merged["GFLOP"] == pytest.approx(plain["GFLOP"] / 4)
    moving = table.loc["SD 1.5, 512 px", "merge keys and values"]
    assert moving["bound"] == "memory"
    assert moving["MB"] == pytest.approx(2 * (2 * 5120 * 320 * 2 + 8 * 5120) / 1e6)
    assert moving["us"] == pytest.approx(moving["MB"] / 2.039)
    flux = table.loc["Flux, 1024 px", "attention, keys merged"]
    assert flux["GFLOP"] == pytest.approx(4 * 4608 * (1024 + 512) * 3072 / 1e9), "text is not merged"


@pytest.mark.parametrize("device", ["A100 80 GB SXM", "H100 SXM", "RTX 4090"])
def test_merging_takes_less_than_it_saves_at_its_roofline(device):
    """Merged at every step and pairs found at 13 of 51: at every size that people use."""
    assert device in DEVICES.index
    times = least_times(device).pivot_table(index="model", columns="work", values="us")
    saved = times["attention, unmerged"] - times["attention, keys merged"]
    paid = times["merge keys and values"] + 13 / 51 * times["find pairs"]
    assert set(times.index) == set(SIZES)
    assert (paid < saved).all(), pd.DataFrame({"saved": saved, "paid": paid}).to_string()
