"""Whatever is wrong with what is given: one sentence that names it and says what is allowed, and nothing is
changed or written.

What each function does with good input is tested elsewhere, and some of its bad input too, beside the good.
"""

import json
import os
import shutil
import struct
import types
import zlib
from contextlib import nullcontext
from dataclasses import replace
from inspect import signature
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import catome
from catome import bench, study, tiny
from catome.models.unet import transformer_blocks
from catome.patch import applied_patch
from catome.policy.schedule import derive
from catome.policy.staleness import total_staleness
from catome.study.measure import quality
from catome.study.online import broken_share, online
from catome.study.run.parameters import (
    Cosines,
    Count,
    Counts,
    Flag,
    Folder,
    Guidances,
    ScheduleName,
    Setting,
    Shares,
    parameters,
)
from catome.study.run.store import Damaged, Store, Table
from catome.study.studies.chapters import Review
from catome.tensors.matching import split_tokens
from helpers.paths import ROOT

NAN, INF = float("nan"), float("inf")
SMOKE = yaml.safe_load((ROOT / "data/presets/smoke.yaml").read_text())
MODEL = ROOT / "data" / "tiny-sd"


def refused(call, *says) -> None:
    """``call`` raises one error of Python's own, or a ``Damaged`` file's, in one line with all of ``says``,
    in any order; none is behind it. A hint at another name is only where ``says`` has one."""
    with pytest.raises((TypeError, ValueError, OSError, KeyError, IndexError)) as caught:
        call()
    error, message = caught.value, str(caught.value)
    assert all(part in message for part in says), message
    assert ("did you mean" in message) <= any("did you mean" in part for part in says), message
    assert type(error).__module__ == "builtins" or type(error) is Damaged
    assert "\n" not in message
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__


def cases(*rows):
    """``(what, says, ...)`` rows as parameters, each with an id of its own."""
    return pytest.mark.parametrize(
        ("what", "says"),
        [pytest.param(what, says, id=f"{i}-{says[0][:40]}") for i, (what, *says) in enumerate(rows)],
    )


# The library

PATCH = (
    (dict(threshold="0.7"), "threshold='0.7' must be a number, not str"),
    (dict(threshold=True), "threshold=True must be a number, not bool"),
    (dict(threshold=[0.7]), "threshold=[0.7] must be a number, not list"),
    (dict(threshold=torch.tensor(0.5)), "threshold=tensor(0.5000) must be a number, not Tensor"),
    (dict(threshold=1j), "threshold=1j must be a number, not complex"),
    (
        dict(threshold=torch.eye(3)),
        "threshold=tensor([[1., 0., 0.], [0., 1., 0.], [0., 0., 1.]]) must be a number, not Tensor",
    ),
    (dict(threshold=[0.7] * 999), "threshold=[0.7, 0.7, ", "0... must be a number, not list"),
    (dict(threshold=NAN), "threshold=nan must be between -1 and 1"),
    (dict(threshold=INF), "threshold=inf must be between -1 and 1"),
    (dict(threshold=-1.001), "threshold=-1.001 must be between -1 and 1"),
    (dict(threshold=70), "threshold=70 must be between -1 and 1"),
    (dict(threshold=None), "threshold=None, ratio=None", "exactly one", "neither"),
    (dict(threshold=0.7, ratio=0.5), "threshold=0.7, ratio=0.5", "exactly one", "both"),
    (dict(ratio="half"), "ratio='half' must be a number, not str"),
    (dict(ratio=True), "ratio=True must be a number, not bool"),
    (dict(ratio=NAN), "ratio=nan must be between 0 and 0.75"),
    (dict(ratio=-0.1), "ratio=-0.1 must be between 0 and 0.75"),
    (dict(ratio=50), "ratio=50 ", "between 0 and 0.75,", "share of src tokens"),
    (dict(ratio=0.6, stride=(1, 2)), "ratio=0.6 ", "between 0 and 0.5,", "share of src tokens"),
    (dict(ratio=0.9, stride=(2, 4)), "ratio=0.9 must be between 0 and 0.875"),
    (dict(schedule="CONFIG_6"), "schedule='CONFIG_6' ", "did you mean 'CONFIG_"),
    (
        dict(schedule="adaptive"),
        "schedule='adaptive' is not",
        "did you mean 'CONF_ADAPTIVE'",
        "the names are CONFIG_1,",
    ),
    (dict(schedule=""), "schedule='' ", "the names are CONFIG_1, CONFIG_2"),
    (dict(schedule=catome.Schedule), "must be a name, a collection of step indices or None, not type"),
    (dict(stride=2), "stride=2 must be two integers (vertical, horizontal)"),
    (dict(stride=None), "stride=None must be two integers (vertical, horizontal)"),
    (dict(stride=(2,)), "stride=(2,) must be two integers (vertical, horizontal)"),
    (dict(stride=(2, 2, 2)), "stride=(2, 2, 2) must be two integers (vertical, horizontal)"),
    (dict(stride={2, 3}), "stride={2, 3} must be two integers (vertical, horizontal)"),
    (dict(stride={2: 0, 3: 0}), "stride={2: 0, 3: 0} must be two integers (vertical, horizontal)"),
    (dict(stride="22"), "stride[0]='2' must be an integer, not str"),
    (dict(stride=(2, 2.0)), "stride[1]=2.0 must be an integer, not float"),
    (dict(stride=(True, 2)), "stride[0]=True must be an integer, not bool"),
    (dict(stride=(-2, 2)), "stride[0]=-2 must be at least 1"),
    (dict(stride=(1, 1)), "stride=(1, 1) makes every token a dst", "use at least (1, 2)"),
    (dict(dst="bottom_right"), "dst='bottom_right' must be 'top_left' or 'random'"),
    (dict(dst=None), "dst=None must be 'top_left' or 'random'"),
    (dict(dst=["random"]), "dst=['random'] must be 'top_left' or 'random'"),
    (
        dict(dst=np.array(["random", "top_left"])),
        "dst=array(['random', 'top_left'], dtype='<U8') must be 'top_left' or",
    ),
    (dict(seed=-1), "seed=-1 must be at least 0"),
    (dict(seed=None), "seed=None must be an integer, not NoneType"),
    (dict(seed=1.0), "seed=1.0 must be an integer, not float"),
    (dict(seed=2**63), f"seed={2**63} must be at most {2**63 - 1}"),
    (dict(max_downsample=0), "max_downsample=0 must be at least 1"),
    (dict(max_downsample=None), "max_downsample=None must be an integer, not NoneType"),
    (dict(max_downsample="2"), "max_downsample='2' must be an integer, not str"),
    (dict(merge_attn=1), "merge_attn=1 must be True or False"),
    (dict(merge_crossattn="yes"), "merge_crossattn='yes' must be True or False"),
    (dict(merge_mlp=None), "merge_mlp=None must be True or False"),
    (dict(only_where_faster="no"), "only_where_faster='no' must be True or False"),
    (
        dict(treshold=0.5),
        "treshold=0.5 ",
        "apply_patch",
        "did you mean 'threshold'?",
        "it has pipe, config, threshold, ratio",
    ),
    (dict(Ratio=0.5), "Ratio=0.5 ", "apply_patch", "did you mean 'ratio'?"),
    (dict(merge_self=True), "merge_self=True ", "apply_patch", "did you mean 'merge_"),
    (
        dict(sx=2),
        "sx=2 ",
        "apply_patch",
        "it has pipe, config, threshold, ratio, schedule, keep_queries, weight",
    ),
    (dict(keep_queries="no"), "keep_queries='no' must be True or False"),
    (dict(weighted=0), "weighted=0 must be True or False"),
    (dict(across_frames=None), "across_frames=None must be True or False"),
    (dict(compare="value"), "compare='value' must be 'input' or 'keys'"),
    (dict(compare=None), "compare=None must be 'input' or 'keys'"),
    (dict(measure="cosines"), "measure='cosines' must be 'cosine' or 'distance'"),
    (dict(measure=None), "measure=None must be 'cosine' or 'distance'"),
    (dict(start=-0.1), "start=-0.1 must be between 0 and 1"),
    (dict(end="1"), "end='1' must be a number, not str"),
    (dict(start=0.6, end=0.4), "start=0.6, end=0.4", "begin before it ends"),
    (dict(schedule=[0, 0.5, 7]), "schedule=7 must be between 0 and 1"),
    (dict(schedule="EVEN_0"), "schedule='EVEN_0' is not a named schedule", "did you mean 'EVEN_13'?"),
    (
        dict(merge_attn=False),
        "merge_attn=False, merge_crossattn=False, merge_mlp=False",
        "at least one",
        "True",
    ),
)


@cases(*PATCH)
def test_the_patch_refuses_and_what_was_there_stays(pipe, what, says):
    refused(lambda: catome.apply_patch(pipe, catome.PAPER, **what), *says)
    assert applied_patch(pipe) is None
    catome.apply_patch(pipe, catome.PAPER, threshold=0.9)
    try:
        before = applied_patch(pipe)
        for enter in (
            lambda: catome.apply_patch(pipe, catome.PAPER, **what),
            catome.patched(pipe, catome.PAPER, **what).__enter__,
        ):
            refused(enter, *says)
            assert applied_patch(pipe) is before
    finally:
        catome.remove_patch(pipe)


@cases(
    (lambda pipe: None, "pipe=NoneType ", "a diffusers pipeline", "denoising model"),
    (lambda pipe: "stable-diffusion-v1-5", "pipe=str must be a diffusers pipeline"),
    (lambda pipe: pipe.vae, "pipe=AutoencoderKL must be a diffusers pipeline"),
    (lambda pipe: type(pipe.unet), "pipe=type must be a diffusers pipeline"),
    (lambda pipe: {"unet": pipe.unet}, "pipe=dict must be a diffusers pipeline"),
    (lambda pipe: types.SimpleNamespace(unet=None), "pipe=SimpleNamespace must be a diffusers pipeline"),
)
def test_what_has_no_unet_is_refused(pipe, what, says):
    given = what(pipe)
    for call in (
        catome.apply_patch,
        catome.remove_patch,
        lambda it: catome.patched(it, catome.PAPER).__enter__(),
    ):
        refused(lambda call=call: call(given), *says)
    refused(lambda: catome.probe(given).__enter__(), *says)


@cases(
    (dict(steps=3), "steps=3 must be a collection of steps, or None for all"),
    (dict(steps="012"), "steps='012' must be a collection of steps, or None for all"),
    (dict(steps=b"012"), "steps=b'012' must be a collection of steps, or None for all"),
    (dict(steps=[0, -1]), "steps=-1 must be at least 0"),
    (dict(steps=[0.5]), "steps=0.5 must be an integer, not float"),
    (dict(steps=[True]), "steps=True must be an integer, not bool"),
    (dict(steps=[None]), "steps=None must be an integer, not NoneType"),
    (dict(stride=(2, 0)), "stride[1]=0 must be at least 1"),
    (dict(stride={}), "stride={} must be two integers"),
    (dict(dst="centre"), "dst='centre' must be 'top_left' or 'random'"),
    (dict(seed="0"), "seed='0' must be an integer, not str"),
    (dict(max_downsample=-1), "max_downsample=-1 must be at least 1"),
    (dict(max_downsample=1.5), "max_downsample=1.5 must be an integer, not float"),
    (dict(keep_tokens="no"), "keep_tokens='no' must be True or False"),
    (dict(keep_tokens=None), "keep_tokens=None must be True or False"),
    (
        dict(keep_token=True),
        "keep_token=True ",
        "probe",
        "did you mean 'keep_tokens'?",
        "it has pipe, stride, dst",
    ),
    (dict(threshold=0.7), "threshold=0.7 ", "probe", "it has pipe, stride"),
)
def test_the_probe_refuses_and_watches_nothing(pipe, what, says):
    refused(lambda: catome.probe(pipe, **what).__enter__(), *says)
    assert not pipe.unet._forward_pre_hooks
    assert not any(block._forward_hooks for block in transformer_blocks(pipe.unet).values())


@pytest.fixture(scope="module")
def records(loaded):
    """The records of the probe of one step, unpatched and patched."""
    seen = []
    for patch in (nullcontext(), catome.patched(loaded, catome.PAPER, ratio=0.5)):
        with patch, catome.probe(loaded) as record:
            loaded(tiny.prompt("volcano"), num_inference_steps=1, output_type="latent")
        seen.append(record)
    return seen


NAMED = "up_blocks.2.attentions.0.transformer_blocks."


@cases(
    (lambda record, patched: record.blocks(1), "generation=1:", "1 were watched", "between -1 and 0"),
    (lambda record, patched: record.steps(-2), "generation=-2:", "1 were watched", "between -1 and 0"),
    (lambda record, patched: record.blocks("0"), "generation='0' must be an integer, not str"),
    (lambda record, patched: record.similarity(None), "generation=None must be an integer, not NoneType"),
    (lambda record, patched: record.similarity(0.0), "generation=0.0 must be an integer, not float"),
    (
        lambda record, patched: record.merged_share(True, ratio=0.5),
        "generation=True must be an integer, not bool",
    ),
    (lambda record, patched: record.at(9, 0), "step=9, block=0 ", "steps are [0]", "blocks are ['down_"),
    (lambda record, patched: record.at(-1, 0), "step=-1, block=0 ", "steps are [0]"),
    (lambda record, patched: record.at("0", 0), "step='0' must be an integer, not str"),
    (lambda record, patched: record.at(0.0, 0), "step=0.0 must be an integer, not float"),
    (
        lambda record, patched: record.at(torch.tensor([0, 1]), 0),
        "step=tensor([0, 1]) must be an integer, not Tensor",
    ),
    (lambda record, patched: record.at(0, 5), "step=0, block=5 ", "steps are [0]", "blocks are ['down_"),
    (lambda record, patched: record.at(0, -6), "step=0, block=-6 was not observed"),
    (lambda record, patched: record.at(0, True), "block=True must be an integer, not bool"),
    (lambda record, patched: record.at(0, 1.0), "block=1.0 must be an integer, not float"),
    (lambda record, patched: record.at(0, None), "block=None must be an integer, not NoneType"),
    (lambda record, patched: record.at(0, "attn1"), "step=0, block='attn1' ", "steps are [0]"),
    (
        lambda record, patched: record.at(0, f"{NAMED}1"),
        f"block='{NAMED}1' ",
        f"did you mean '{NAMED}0'?",
        "steps are [0]",
    ),
    (lambda record, patched: record.pairs(9, 0, 0, ratio=0.5), "step=9, block=0 was not observed"),
    (lambda record, patched: record.pairs(0, 9, 0, ratio=0.5), "step=0, block=9 was not observed"),
    (lambda record, patched: record.pairs(0, 0, 2, ratio=0.5), "image=2:", "2 were merged", "between -2"),
    (lambda record, patched: record.pairs(0, 0, "0", ratio=0.5), "image='0' must be an integer, not str"),
    (
        lambda record, patched: record.pairs(0, 0, 0),
        "threshold=None, ratio=None",
        "give one of them",
        "pipeline was not",
    ),
    (
        lambda record, patched: record.merged_share(),
        "threshold=None, ratio=None",
        "give one of them",
        "pipeline was not",
    ),
    (
        lambda record, patched: record.merged_share(ratio=None),
        "threshold=None, ratio=None",
        "exactly one",
        "neither",
    ),
    (
        lambda record, patched: patched.merged_share(ratio=0.5, threshold=0.5),
        "threshold=0.5, ratio=0.5",
        "exactly one",
    ),
    (
        lambda record, patched: patched.pairs(0, 0, 0, ratio=2),
        "ratio=2 ",
        "between 0 and 0.75,",
        "share of src tokens",
    ),
    (
        lambda record, patched: patched.merged_share(treshold=0.5),
        "treshold=0.5 is no argument",
        "did you mean 'threshold'?",
    ),
    (lambda record, patched: patched.pairs(0, 0, 7), "image=7:", "2 were merged", "between -2 and 1"),
)
def test_records_refuse(what, says, records):
    refused(lambda: what(*records), *says)


class Elsewhere(torch.Generator):
    """A generator of another device, where there is no other device."""

    device = torch.device("cuda:0")


TOKENS = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0))


@cases(
    (dict(tokens=TOKENS.tolist()), "tokens must be a floating-point tensor, not list"),
    (dict(tokens=TOKENS.numpy()), "tokens must be a floating-point tensor, not ndarray"),
    (dict(tokens=TOKENS.long()), "tokens must be a floating-point tensor, not torch.int64"),
    (dict(tokens=TOKENS > 0), "tokens must be a floating-point tensor, not torch.bool"),
    (dict(tokens=TOKENS.to(torch.complex64)), "tokens must be a floating-point tensor, not torch.complex64"),
    (dict(tokens=None), "tokens must be a floating-point tensor, not NoneType"),
    (
        dict(tokens=TOKENS.to(torch.float8_e4m3fn)),
        "tokens must be a floating-point tensor",
        "not torch.float8_e4m3fn",
        "one of float16, bfloat16, float32, float64",
    ),
    (dict(tokens=TOKENS.to_sparse()), "tokens must be a dense tensor, not torch.sparse_coo"),
    (
        dict(tokens=torch.nested.nested_tensor([TOKENS[0]], layout=torch.jagged)),
        "tokens must be a dense tensor, not a nested one",
    ),
    (
        dict(tokens=TOKENS[..., :0]),
        "tokens of shape [2, 16, 0] must be [B, N, C] with N = 16",
        "and C at least 1",
    ),
    (dict(tokens=TOKENS[:, :0]), "tokens of shape [2, 0, 4] must be [B, N, C] with N = 16"),
    (dict(tokens=TOKENS[0]), "tokens of shape [16, 4] must be [B, N, C] with N = 16 for grid=(4, 4)"),
    (dict(tokens=TOKENS[None]), "tokens of shape [1, 2, 16, 4] must be [B, N, C]"),
    (dict(tokens=TOKENS[:, :15]), "tokens of shape [2, 15, 4] must be [B, N, C] with N = 16"),
    (dict(grid=(4, 5)), "tokens of shape [2, 16, 4] must be [B, N, C] with N = 20 for grid=(4, 5)"),
    (dict(grid=16), "grid=16 must be two integers"),
    (dict(grid=None), "grid=None must be two integers"),
    (dict(grid=(4, 2, 2)), "grid=(4, 2, 2) must be two integers"),
    (dict(grid=(0, 16)), "grid[0]=0 must be at least 1"),
    (dict(grid=(-4, -4)), "grid[0]=-4 must be at least 1"),
    (dict(grid=(4, 4.0)), "grid[1]=4.0 must be an integer, not float"),
    (dict(grid=(1, 16)), "grid=(1, 16) is smaller than one window of stride=(2, 2)"),
    (dict(stride=(8, 8)), "grid=(4, 4) is smaller than one window of stride=(8, 8)"),
    (dict(stride=(0, 2)), "stride[0]=0 must be at least 1"),
    (dict(dst=0), "dst=0 must be 'top_left' or 'random'"),
    (dict(generator=5), "generator=5 must be a torch.Generator, or None for torch's own, not int"),
    (
        dict(generator=0, dst="random"),
        "generator=0 must be a torch.Generator, or None for torch's own, not int",
    ),
    (dict(generator=Elsewhere(), dst="random"), "on cuda:0 must be one on the CPU"),
    (dict(token=TOKENS), "token=tensor([[[", "did you mean 'tokens'?", "it has tokens, grid,"),
)
def test_matching_refuses(what, says):
    arguments = dict(tokens=TOKENS, grid=(4, 4)) | what
    refused(lambda: catome.best_matches(**arguments), *says)
    refused(lambda: catome.match(**arguments, threshold=0.5), *says)


@cases(
    (lambda: split_tokens("44"), "grid[0]='4' must be an integer, not str"),
    (lambda: split_tokens((4, 4), None), "stride=None must be two integers"),
    (lambda: split_tokens((4, 4), dst=["random"]), "dst=['random'] must be 'top_left' or 'random'"),
    (
        lambda: split_tokens((4, 4), generator="0"),
        "generator='0' must be a torch.Generator, or None for torch's own, not str",
    ),
    (
        lambda: split_tokens((4, 4), device="gpu"),
        "device='gpu' must be a torch device, such as 'cpu' or 'cuda'",
    ),
    (lambda: split_tokens((4, 4), device=None), "device=None must be a torch device"),
    (lambda: split_tokens((4, 4), dst="random", device=None), "device=None must be a torch device"),
    (
        lambda: split_tokens((4, 4), device="cuda:99"),
        "device='cuda:99': this machine's torch has no such device",
    ),
    (
        lambda: split_tokens((4, 4), strides=(2, 2)),
        "strides=(2, 2) ",
        "split_tokens",
        "did you mean 'stride'?",
    ),
    (
        lambda: catome.best_matches(TOKENS, (4, 4), find_duplicates="no"),
        "find_duplicates='no' must be True or False",
    ),
    (
        lambda: catome.best_matches(TOKENS, (4, 4), find_duplicates=0),
        "find_duplicates=0 must be True or False",
    ),
    (
        lambda: catome.best_matches(TOKENS, (4, 4), treshold=1),
        "treshold=1 ",
        "best_matches",
        "it has tokens, grid",
    ),
)
def test_splitting_refuses(what, says):
    refused(what, *says)


@pytest.mark.parametrize("function", [catome.probe, catome.match, catome.make_plan, split_tokens])
def test_what_names_its_arguments_still_shows_them(function):
    own = function.__wrapped__
    assert signature(function) == signature(own)
    assert "kwargs" not in signature(function).parameters
    assert (function.__name__, function.__doc__, function.__module__) == (
        own.__name__,
        own.__doc__,
        own.__module__,
    )


def test_numbers_of_numpy_are_numbers():
    tokens = TOKENS.repeat(1, 1, 2)
    tokens[0, 1] = tokens[0, 0]
    for given in (np.float64(1), np.float32(1), np.int64(1)):
        assert catome.match(tokens, np.array([4, 4]), threshold=given).pairs(np.int64(0)).tolist() == [[1, 0]]


MATCHES = catome.best_matches(TOKENS, (4, 4), find_duplicates=False)
PLAN = catome.make_plan(MATCHES, ratio=0.5)
PACKED = PLAN.merge(TOKENS)


@cases(
    (lambda: catome.match(TOKENS, (4, 4)), "threshold=None, ratio=None", "exactly one", "neither"),
    (
        lambda: catome.match(TOKENS, (4, 4), threshold=0.1, ratio=0.2),
        "threshold=0.1, ratio=0.2",
        "exactly one",
    ),
    (lambda: catome.match(TOKENS, (4, 4), ratio=0.5, stride=(1, 1)), "stride=(1, 1) makes every token a dst"),
    (lambda: catome.match(TOKENS, (4, 4), ratio=0.7, stride=(2, 1)), "ratio=0.7 must be between 0 and 0.5"),
    (lambda: catome.make_plan(MATCHES), "neither was given"),
    (lambda: catome.make_plan(MATCHES, threshold=-2), "threshold=-2 must be between -1 and 1"),
    (lambda: catome.make_plan(MATCHES, threshold=1.0), "threshold=1.0 needs matches", "find_duplicates=True"),
    (
        lambda: catome.make_plan(MATCHES, ratio=0.8),
        "ratio=0.8 ",
        "between 0 and 0.75,",
        "share of src tokens",
    ),
    (lambda: catome.make_plan(MATCHES, ratio="0.5"), "ratio='0.5' must be a number, not str"),
    (
        lambda: catome.make_plan(None, ratio=0.5),
        "matches=None must be what catome.best_matches returned, not NoneType",
    ),
    (
        lambda: catome.make_plan(TOKENS, ratio=0.5),
        "matches=tensor([[[",
        "must be what catome.best_matches returned, not Tensor",
    ),
    (lambda: catome.make_plan([MATCHES], ratio=0.5), "must be what catome.best_matches returned, not list"),
    (
        lambda: catome.make_plan(MATCHES, rate=0.5),
        "rate=0.5 ",
        "make_plan",
        "did you mean 'ratio'?",
        "it has matches",
    ),
    (lambda: PLAN.merge(TOKENS.tolist()), "x must be a floating-point tensor, not list"),
    (lambda: PLAN.merge(TOKENS.numpy()), "x must be a floating-point tensor, not ndarray"),
    (lambda: PLAN.merge(None), "x must be a floating-point tensor, not NoneType"),
    (
        lambda: PLAN.merge(TOKENS.long()),
        "x must be a floating-point tensor",
        "not torch.int64",
        "one of float16, bfloat16, float32",
    ),
    (lambda: PLAN.merge(TOKENS > 0), "x must be a floating-point tensor, not torch.bool"),
    (
        lambda: PLAN.merge(TOKENS.to(torch.complex64)),
        "x must be a floating-point tensor, not torch.complex64",
    ),
    (lambda: PLAN.merge(TOKENS.to_sparse()), "x must be a dense tensor, not torch.sparse_coo"),
    (lambda: PLAN.merge(TOKENS.to("meta")), "x is on meta", "must be on cpu"),
    (lambda: PLAN.merge(TOKENS[:1]), "x of shape [1, 16, 4] ", "for [2, 16, 'C']"),
    (lambda: PLAN.merge(TOKENS[0]), "x of shape [16, 4] does not fit this plan"),
    (lambda: PLAN.merge(TOKENS[:, :9]), "x of shape [2, 9, 4] does not fit this plan"),
    (lambda: PLAN.unmerge(TOKENS), "y of shape [2, 16, 4] ", "for [16, C]"),
    (lambda: PLAN.unmerge(TOKENS[0, :15]), "y of shape [15, 4] ", "for [16, C]"),
    (lambda: PLAN.unmerge(torch.zeros(16)), "y of shape [16] ", "for [16, C]"),
    (lambda: PLAN.unmerge(None), "y must be a tensor, not NoneType"),
    (lambda: PLAN.unmerge(PACKED.tolist()), "y must be a tensor, not list"),
    (lambda: PLAN.unmerge(PACKED.to_sparse()), "y must be a dense tensor, not torch.sparse_coo"),
    (lambda: PLAN.unmerge(PACKED.to("meta")), "y is on meta", "must be on cpu"),
    (lambda: PLAN.split(None), "y must be a tensor, not NoneType"),
    (lambda: PLAN.split(PACKED[:15]), "y of shape [15, 4] ", "for [16, C]"),
    (lambda: PLAN.split(PACKED[None]), "y of shape [1, 16, 4] ", "for [16, C]"),
    (lambda: PLAN.pairs(2), "image=2:", "2 were merged", "between -2 and 1"),
    (lambda: PLAN.pairs(-3), "image=-3:", "2 were merged", "between -2 and 1"),
    (lambda: catome.match(TOKENS[:0], (4, 4), ratio=0.5).pairs(0), "image=0: 0 were merged by this plan"),
    (lambda: PLAN.pairs("0"), "image='0' must be an integer, not str"),
    (lambda: PLAN.pairs(None), "image=None must be an integer, not NoneType"),
    (lambda: PLAN.pairs(True), "image=True must be an integer, not bool"),
    (lambda: PLAN.pairs(slice(1)), "image=slice(None, 1, None) must be an integer, not slice"),
    (lambda: PLAN.to("gpu"), "device='gpu' must be a torch device, such as 'cpu' or 'cuda'"),
    (lambda: PLAN.to(None), "device=None must be a torch device"),
    (lambda: PLAN.to(torch.float16), "device=torch.float16 must be a torch device"),
    (lambda: PLAN.to("cuda:99"), "device='cuda:99': this machine's torch has no such device"),
    (lambda: broken_share(PLAN, TOKENS[:1], 0.5), "tokens of shape [1, 16, 4] ", "for [2, 16, 'C']"),
    (
        lambda: broken_share(PLAN, TOKENS.long(), 0.5),
        "tokens must be a floating-point tensor, not torch.int64",
    ),
)
def test_plans_refuse(what, says):
    refused(what, *says)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_plans_merge_whatever_floats(dtype):
    merged = PLAN.merge(TOKENS.to(dtype))
    assert merged.dtype == dtype
    torch.testing.assert_close(merged.double(), PLAN.merge(TOKENS.to(dtype).double()), atol=1e-2, rtol=1e-2)


def test_plans_unmerge_whatever_there_is():
    """Nothing is computed: numbers of groups, and flags, go back to their tokens."""
    labels = torch.arange(16)[:, None]
    assert torch.equal(PLAN.unmerge(labels)[..., 0], PLAN.slot)
    assert torch.equal(PLAN.unmerge(labels > 7)[..., 0], PLAN.slot > 7)


@cases(
    (5, "schedule=5 must be a name, a collection of step indices or None, not int"),
    (False, "schedule=False must be a name, a collection", "not bool"),
    (0.5, "schedule=0.5 must be a name", "not float"),
    (torch.tensor(3), "schedule=tensor(3) must be a name", "not Tensor"),
    ("config_3", "schedule='config_3' ", "did you mean 'CONFIG_3'?"),
    ("auto", "schedule='auto' ", "is not a named schedule", "the names are CONFIG_1"),
    (b"CONFIG_3", "schedule=b'CONFIG_3' ", "did you mean 'CONFIG_3'?", "the names are CONFIG_1"),
    ("0,8,11", "schedule='0,8,11' ", "the names are"),
    ([], "schedule=[] lacks step 0"),
    (range(1, 4), "schedule=[1, 2, 3] lacks step 0"),
    (np.array([1, 3]), "schedule=[1, 3] lacks step 0"),
    ([0, -3], "schedule=[0, -3] ", "negative step -3", "count from 0"),
    ([0, 5, 5], "schedule=[0, 5, 5] ", "repeats step 5", "once"),
    ([0, 1.5], "schedule=[0, 1.5] ", "step 1.5:", "must be integers"),
    ([0, NAN], "schedule=[0, nan] ", "step nan:", "must be integers"),
    ([0, True], "schedule=[0, True] ", "step True:", "must be integers"),
    ([0, "8"], "schedule=[0, '8'] ", "step '8':", "must be integers"),
    ([0, None], "schedule=[0, None] ", "step None:", "must be integers"),
    ([[0, 8]], "schedule=[[0, 8]] ", "step [0, 8]:", "must be integers"),
    (
        torch.eye(2)[None],
        "schedule=[tensor([[1., 0.], [0., 1.]])] ",
        "step tensor([[1., 0.], [0., 1.]]):",
        "must be integers",
    ),
    ([*range(999), -1], "schedule=[0, 1, 2, ", "... ", "negative step -1", "count from 0"),
    ({"0": 1}, "schedule=['0'] ", "step '0':", "must be integers"),
)
def test_schedules_are_refused(pipe, what, says):
    refused(lambda: catome.parse_schedule(what), *says)
    refused(lambda: catome.apply_patch(pipe, catome.PAPER, schedule=what), *says)
    assert applied_patch(pipe) is None


@cases(
    (lambda: online(0.8, NAN), "tolerance=nan must be between 0 and 1"),
    (lambda: online(0.8, -0.1), "tolerance=-0.1 must be between 0 and 1"),
    (lambda: online(0.8, 30), "tolerance=30 must be between 0 and 1"),
    (lambda: online(0.8, None), "tolerance=None must be a number, not NoneType"),
    (lambda: online(0.8, "low"), "tolerance='low' must be a number, not str"),
    (lambda: online(0.8, True), "tolerance=True must be a number, not bool"),
    (lambda: derive("abc", 2), "staleness='abc' must be a square matrix of numbers"),
    (lambda: derive(None, 1), "staleness=None must be a square matrix of numbers"),
    (lambda: derive([[0, 1], [2]], 1), "staleness=[[0, 1], [2]] must be a square matrix of numbers"),
    (
        lambda: derive([[0, None], [0, 0]], 1),
        "staleness=[[0, None], [0, 0]] must be a square matrix of numbers",
    ),
    (
        lambda: derive([["0", "1"], ["2", "3"]], 1),
        "staleness=[['0', '1'], ['2', '3']] must be a square matrix of numbers",
    ),
    (
        lambda: derive([[0, 10**999], [0, 0]], 1),
        "staleness=[[0, 1000",
        "... must be a square matrix of numbers",
    ),
    (
        lambda: derive(1j * torch.eye(2), 1),
        "staleness=tensor([[0.+1.j, 0.+0.j],",
        "must be a square matrix of numbers",
    ),
    (
        lambda: derive(1j * np.eye(2), 1),
        "staleness=array([[0.+1.j, 0.+0.j],",
        "must be a square matrix of numbers",
    ),
    (
        lambda: derive(torch.eye(2).to_sparse(), 1),
        "staleness=tensor(indices=",
        "must be a square matrix of numbers",
    ),
    (lambda: derive([], 1), "staleness of shape [0] must be a square matrix [T, T]"),
    (lambda: derive(torch.zeros(3), 1), "staleness of shape [3] must be a square matrix [T, T]"),
    (lambda: derive(torch.zeros(2, 3), 2), "staleness of shape [2, 3] must be a square matrix [T, T]"),
    (
        lambda: derive(torch.full((3, 3), NAN), 2),
        "staleness[0, 1]=nan must be a finite number that is not negative",
    ),
    (lambda: derive([[0, 1, 2], [0, 0, INF], [0, 0, 0]], 2), "staleness[1, 2]=inf must be a finite number"),
    (
        lambda: derive(-torch.ones(3, 3), 2),
        "staleness[0, 1]=-1.0 must be a finite number that is not negative",
    ),
    (lambda: derive(torch.zeros(3, 3), 0), "checkpoints=0 must be at least 1"),
    (lambda: derive(torch.zeros(3, 3), 4), "checkpoints=4 ", "at most 3,", "steps of this staleness"),
    (lambda: derive(torch.zeros(3, 3), 1.5), "checkpoints=1.5 must be an integer, not float"),
    (lambda: derive(torch.zeros(3, 3), True), "checkpoints=True must be an integer, not bool"),
    (
        lambda: derive(torch.zeros(3, 3), checkpoint=2),
        "checkpoint=2 ",
        "derive",
        "did you mean 'checkpoints'?",
    ),
    (lambda: total_staleness("abc", [0]), "staleness='abc' must be a square matrix of numbers"),
    (
        lambda: total_staleness(torch.zeros(2, 3), [0]),
        "staleness of shape [2, 3] must be a square matrix [T, T]",
    ),
    (
        lambda: total_staleness([[0, NAN], [0, 0]], [0]),
        "staleness[0, 1]=nan must be a finite number that is not negative",
    ),
    (lambda: total_staleness(torch.zeros(3, 3), 5), "schedule=5 must be a collection of steps, not int"),
    (
        lambda: total_staleness(torch.zeros(3, 3), None),
        "schedule=None must be a collection of steps, not NoneType",
    ),
    (
        lambda: total_staleness(torch.zeros(3, 3), "CONFIG_3"),
        "schedule='CONFIG_3' must be a collection of steps, not str",
    ),
    (lambda: total_staleness(torch.zeros(3, 3), [0, "x"]), "schedule[1]='x' must be an integer, not str"),
    (lambda: total_staleness(torch.zeros(3, 3), [0, -1]), "schedule[1]=-1 must be at least 0"),
    (lambda: total_staleness(torch.zeros(3, 3), (1, 2)), "schedule=(1, 2) must begin with step 0"),
    (lambda: total_staleness(torch.zeros(3, 3), ()), "schedule=() must begin with step 0"),
)
def test_derived_and_online_schedules_refuse(what, says):
    refused(what, *says)


# A notebook's parameters


@parameters
class Everything(Review):
    """A parameter of each kind, beside those of chapter 1: ``ratio``, ``threshold``, ``step`` and
    ``block``."""

    thresholds: Cosines
    ratios: Shares
    repetitions: Count
    step_counts: Counts
    guidances: Guidances
    strict: Flag
    reference: Folder
    schedule: ScheduleName


GOOD = dict(
    threshold=0.9,
    thresholds=[0.8, 0.9],
    ratio=0.5,
    ratios=[0.5],
    step=None,
    block=0,
    repetitions=1,
    step_counts=[],
    guidances=[],
    strict=True,
    reference=None,
    schedule="CONFIG_3",
)
CLASSES = "desert, snowy mountain, sea sunset"


@cases(
    (dict(model=None), "model=None must be a text that is not empty"),
    (dict(model=["tiny"]), "model=['tiny'] must be a text that is not empty"),
    (dict(model=" "), "model=' ' must be a text that is not empty"),
    (dict(classes=3), "classes=3 ", "a list of names", "commas", "none of them empty"),
    (dict(classes=[]), "classes=[] must be a list of names"),
    (dict(classes=""), "classes=[''] must be a list of names"),
    (dict(classes={"desert"}), "classes={'desert'} must be a list of names"),
    (dict(classes=["desert", 7]), "classes=['desert', 7] must be a list of names"),
    (
        dict(classes="desert,,volcano"),
        "classes=['desert', '', 'volcano'] must be a list of names",
        "none of them empty",
    ),
    (dict(classes="dessert"), "classes=['dessert']:", "no 'dessert'", "did you mean 'desert'?", CLASSES),
    (dict(classes=["desert", "Volcano"]), "no 'Volcano'", "did you mean 'volcano'?", CLASSES),
    (dict(classes="tench"), "classes=['tench']:", "no 'tench'", CLASSES),
    (dict(prompt=None), "prompt=None must be a text that is not empty"),
    (dict(prompt=""), "prompt='' must be a text that is not empty"),
    (dict(prompt="A photograph"), "prompt='A photograph' ", "{} once", "class name", "no other brace"),
    (dict(prompt="{} and {}"), "prompt='{} and {}' must hold {} once"),
    (dict(prompt="A {0}"), "prompt='A {0}' must hold {} once"),
    (dict(prompt="A {name}"), "prompt='A {name}' must hold {} once"),
    (dict(prompt="A {:>9}"), "prompt='A {:>9}' must hold {} once"),
    (dict(prompt="A {{}}"), "prompt='A {{}}' must hold {} once"),
    (dict(prompt="A {} {"), "prompt='A {} {' must hold {} once"),
    (dict(prompt="A sketch of a {}."), "prompt='A sketch of a {}.'", "no other sentence than 'A high"),
    (dict(images=0), "images=0 must be at least 1"),
    (dict(images=10**12), "images=1000000000000 must be at most 1000000"),
    (dict(images="3"), "images='3' must be an integer, not str"),
    (dict(images=2.0), "images=2.0 must be an integer, not float"),
    (dict(images=True), "images=True must be an integer, not bool"),
    (dict(images=None), "images=None must be an integer, not NoneType"),
    (dict(images=len), "images=<built-in function len> must be an integer"),
    (dict(steps=0), "steps=0 must be at least 1"),
    (dict(steps=1000), "steps=1000 must be at most 999"),
    (dict(steps=[50]), "steps=[50] must be an integer, not list"),
    (dict(guidance=-1), "guidance=-1 must be between 0 and 100"),
    (dict(guidance=INF), "guidance=inf must be between 0 and 100"),
    (dict(guidance=NAN), "guidance=nan must be between 0 and 100"),
    (dict(guidance="7.5"), "guidance='7.5' must be a number, not str"),
    (dict(guidance_rescale=-0.1), "guidance_rescale=-0.1 must be between 0 and 1"),
    (dict(guidance_rescale=None), "guidance_rescale=None must be a number, not NoneType"),
    (dict(height=0), "height=0 must be at least 8"),
    (dict(height=-512), "height=-512 must be at least 8"),
    (dict(height="512"), "height='512' must be an integer, not str"),
    (dict(width=513), "width=513 ", "a multiple of 8 pixels", "or None"),
    (dict(width=512.0), "width=512.0 must be an integer, not float"),
    (dict(seed=-1), "seed=-1 must be at least 0"),
    (dict(seed=10**13), "seed=10000000000000 must be at most 1000000000000"),
    (dict(seed=None), "seed=None must be an integer, not NoneType"),
    (dict(device=None), "device=None must be a torch device, such as 'cpu' or 'cuda'"),
    (dict(device=""), "device='' must be a torch device, such as 'cpu' or 'cuda'"),
    (dict(device="gpu"), "device='gpu' must be a torch device, such as 'cpu' or 'cuda'"),
    (dict(device="cuda:one"), "device='cuda:one' must be a torch device"),
    (dict(device="cuda"), "device='cuda':", "sees no CUDA device", "use 'cpu'"),
    (dict(device="cuda:99"), "device='cuda:99':", "sees no CUDA device", "use 'cpu'"),
    (dict(device="cpu:1"), "device='cpu:1':", "no such device", "use 'cpu'"),
    (dict(device="meta"), "device='meta':", "no such device", "use 'cpu'"),
    (dict(dtype="fp16"), "dtype='fp16' must be one of 'float32', 'float16', 'bfloat16'"),
    (dict(dtype="float64"), "dtype='float64' must be one of 'float32', 'float16', 'bfloat16'"),
    (dict(dtype=torch.float32), "dtype=torch.float32 must be one of 'float32'"),
    (dict(dtype=["float32"]), "dtype=['float32'] must be one of 'float32'"),
    (dict(dtype=None), "dtype=None must be one of 'float32'"),
    (dict(batch_size=0), "batch_size=0 must be at least 1"),
    (dict(batch_size=1.5), "batch_size=1.5 must be an integer, not float"),
    (dict(output=None), "output=None must be a text that is not empty"),
    (dict(output=3), "output=3 must be a text that is not empty"),
    (
        dict(output="/dev/null/out"),
        "output='/dev/null/out' ",
        "a folder that can be written to, or made",
        "'/dev/null' is none",
    ),
    (dict(output="a" * 300), "output='aaa", "a folder that can be written to, or made", "File name too long"),
    (dict(imges=3), "imges=3 ", "did you mean 'images'?", "it has batch_size, block, classes"),
    (dict(Steps=3), "Steps=3 ", "did you mean 'steps'?"),
    (dict(batchsize=3), "batchsize=3 ", "did you mean 'batch_size'?"),
    (dict(treshold=0.5), "treshold=0.5 ", "did you mean 'threshold'?"),
    (dict(zzz=None), "zzz=None ", "it has batch_size"),
    (dict(threshold=1.01), "threshold=1.01 must be between -1 and 1"),
    (dict(threshold=None), "threshold=None must be a number, not NoneType"),
    (dict(thresholds=[]), "thresholds=[] must be a list of numbers, at least one"),
    (dict(thresholds=0.9), "thresholds=0.9 must be a list of numbers"),
    (dict(thresholds="0.9"), "thresholds='0.9' must be a list of numbers"),
    (dict(thresholds=[0.9, NAN]), "thresholds[1]=nan must be between -1 and 1"),
    (dict(thresholds=[0.9, "1"]), "thresholds[1]='1' must be a number, not str"),
    (dict(ratio=0.76), "ratio=0.76 must be between 0 and 0.75"),
    (dict(ratio="half"), "ratio='half' must be a number, not str"),
    (dict(ratios=[]), "ratios=[] must be a list of numbers, at least one"),
    (dict(ratios=[0.5, 0.8]), "ratios[1]=0.8 must be between 0 and 0.75"),
    (dict(step=6), "step=6 ", "below 6,", "steps=5"),
    (dict(step=1, steps=1), "step=1 ", "below 1,", "steps=1"),
    (dict(step=-1), "step=-1 must be at least 0"),
    (dict(step="last"), "step='last' must be an integer, not str"),
    (dict(block=-1), "block=-1 must be at least 0"),
    (dict(block=None), "block=None must be an integer, not NoneType"),
    (dict(repetitions=0), "repetitions=0 must be at least 1"),
    (dict(step_counts=10), "step_counts=10 must be a list of integers"),
    (dict(step_counts=[10, 0]), "step_counts[1]=0 must be at least 1"),
    (dict(step_counts=[2.5]), "step_counts[0]=2.5 must be an integer, not float"),
    (dict(guidances=7.5), "guidances=7.5 must be a list of numbers"),
    (dict(guidances=[7.5, 101]), "guidances[1]=101 must be between 0 and 100"),
    (dict(strict=1), "strict=1 must be True or False"),
    (dict(strict="true"), "strict='true' must be True or False"),
    (dict(reference=""), "reference='' must be a text that is not empty"),
    (dict(reference=["a", "b"]), "reference=['a', 'b'] must be a text"),
    (dict(schedule="CONFIG3"), "schedule='CONFIG3' ", "did you mean 'CONFIG_3'?"),
    (dict(schedule=[4]), "schedule=[4] lacks step 0"),
)
def test_parameters_are_refused_before_anything_runs(what, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(lambda: Everything.of({**SMOKE, **GOOD, "output": "out", **what}), *says)
    assert os.listdir() == []


@pytest.mark.parametrize("name", [*SMOKE, *GOOD])
def test_a_parameter_that_is_not_declared_is_named(name):
    given = {**SMOKE, **GOOD}
    del given[name]
    refused(lambda: Everything.of(given), f"{name} is missing", "batch_size, block, classes")


def test_the_good_parameters_are_good():
    assert Everything.of({**SMOKE, **GOOD}).step_shown == 2


# The benchmark's command


@cases(
    ("--batch 0", "batch=0 must be at least 1"),
    ("--batch -2", "batch=-2 must be at least 1"),
    ("--batch 1.5", "batch='1.5' must be an integer"),
    ("--batch=--1", "batch='--1' must be an integer"),
    ("--batch ²", "batch='²' must be an integer"),
    ("--batch 1 two", "batch='two' must be an integer"),
    ("--batch", "argument --batch: expected at least one argument"),
    ("--size 500", "size=500 must be a multiple of 64"),
    ("--size 0", "size=0 must be at least 64"),
    ("--size inf", "size='inf' must be an integer"),
    ("--size 99999999999999999999", "size=99999999999999999999 must be at most 2147483647"),
    ("--share 0", "share=0.0 must be between 0.01 and 0.75"),
    ("--share 0.5 0.76", "share=0.76 must be between 0.01 and 0.75"),
    ("--share nan", "share=nan must be between 0.01 and 0.75"),
    ("--share 50%", "share='50%' must be a number"),
    ("--tokens 1", "tokens=1 must be at least 2"),
    ("--tokens 0x40", "tokens='0x40' must be an integer"),
    ("--channels -1", "channels=-1 must be at least 1"),
    ("--channels 1e3", "channels='1e3' must be an integer"),
    ("--rounds 0", "rounds=0 must be at least 1"),
    ("--rounds many", "rounds='many' must be an integer"),
    ("--budget-s -1", "budget-s=-1.0 must be between 0 and 1e+06"),
    ("--budget-s inf", "budget-s=inf must be between 0 and 1e+06"),
    ("--budget-s 8m", "budget-s='8m' must be a number"),
    ("--device mps", "device='mps' must be 'cpu' or 'cuda'"),
    ("--device=", "device='' must be 'cpu' or 'cuda'"),
    ("--device cpu:1", "device='cpu:1':", "no such device", "use 'cpu'"),
    ("--device cuda:x", "device='cuda:x' must be a torch device"),
    ("--device cuda", "device='cuda':", "sees no CUDA device", "use 'cpu'"),
    ("--dtype float8", "--dtype: invalid choice: 'float8' (choose from 'float32', 'float16', 'bfloat16')"),
    (
        "--suite speed",
        "--suite: invalid choice: 'speed' (choose from 'operations', 'attention', 'memory', 'block', "
        "'unet', 'compiled')",
    ),
    ("--suite memory", "suite='memory' needs a CUDA device"),
    ("--suite unet memory", "suite='memory' needs a CUDA device"),
    ("--architecture SD15", "--architecture: invalid choice: 'SD15' (choose from 'sd15', 'sd21', 'sdxl')"),
    ("--output=", "output='' must be a text that is not empty"),
    (
        "--output /dev/null/x",
        "output='/dev/null/x' ",
        "a folder that can be written to, or made",
        "'/dev/null' is none",
    ),
    (
        "--output " + "a" * 300,
        "output='aaa",
        "a folder that can be written to, or made",
        "File name too long",
    ),
    ("--sizes 512", "unrecognized arguments: --sizes 512"),
    ("--record=yes", "--record: ignored explicit argument 'yes'"),
    ("stray", "unrecognized arguments: stray"),
)
def test_the_command_refuses_and_measures_nothing(what, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    stopped(what.split(" "), says, monkeypatch, capsys)
    assert os.listdir() == []


def stopped(arguments, says, monkeypatch, capsys) -> None:
    monkeypatch.setattr("catome.study.bench.suites.run", lambda *_, **__: pytest.fail("it was accepted"))
    with pytest.raises(SystemExit) as caught:
        bench.main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    *usage, message = printed.err.splitlines()
    assert usage[0].startswith("usage: python -m catome.bench")
    assert all(line.startswith(" ") for line in usage[1:])
    assert message.startswith("python -m catome.bench: error: ")
    assert all(part in message for part in says), message


@cases(
    (lambda folder: folder.write_text("a file"), "must be a folder that can be written to, or made"),
    (
        lambda folder: parquet(folder / "bench.parquet", pa.table({"a": [1]})),
        "bench.parquet holds other columns than",
    ),
)
def test_the_command_refuses_an_output_that_is_something_else(what, says, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    what(folder)
    before = contents(tmp_path)
    stopped(["--output", str(folder)], says, monkeypatch, capsys)
    assert contents(tmp_path) == before


# Folders


def contents(folder) -> dict:
    """Every file and folder in a folder, with what changes when it is written to."""
    found = {path: path.stat() for path in folder.rglob("*")}
    return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


def setting(tmp_path, **change):
    return Setting.of({**SMOKE, "output": str(tmp_path / "out"), **change})


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, mark) -> None:
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def test_the_trap_works(tmp_path):
    torch.save(Trap(tmp_path / "mark"), tmp_path / "trap.bin")
    assert not (tmp_path / "mark").exists()
    torch.load(tmp_path / "trap.bin", weights_only=False).close()
    assert (tmp_path / "mark").exists()


UNET, VAE, TEXT = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)


class Copy:
    """A copy of the embedded model's folder that can be damaged; its files are links, which are only ever
    replaced."""

    def __init__(self, folder) -> None:
        self.folder = folder / "model"
        shutil.copytree(
            MODEL, self.folder, copy_function=os.symlink, ignore=shutil.ignore_patterns("judge", "*.md")
        )

    def remove(self, name):
        (self.folder / name).unlink()
        return self

    def put(self, name, data: bytes):
        (self.folder / name).unlink(missing_ok=True)
        (self.folder / name).write_bytes(data)
        return self

    def cut(self, name, share=0.5):
        data = (self.folder / name).read_bytes()
        return self.put(name, data[: int(share * len(data))])

    def trap(self, name):
        (self.folder / name).unlink(missing_ok=True)
        torch.save({"weight": Trap(self.folder.parent / "mark")}, self.folder / name)
        return self

    def edit(self, name, **change):
        config = json.loads((self.folder / name).read_text()) | change
        return self.put(name, json.dumps(config).encode())

    def drop_tensors(self, name, count):
        tensors = load_file(self.folder / name)
        kept = {key: tensors[key] for key in sorted(tensors)[count:]}
        self.remove(name)
        save_file(kept, self.folder / name, {"format": "pt"})
        return self


FROM_ELSEWHERE = b"class Net:\n    pass\n\n\nopen('mark', 'w').close()\n"


@cases(
    (lambda model: model.remove(UNET), "no file named diffusion_pytorch_model.safetensors", "/model/unet"),
    (lambda model: model.remove(VAE), "no file named diffusion_pytorch_model.safetensors", "/model/vae"),
    (lambda model: model.remove(TEXT), "no file named model.safetensors", "/model/text_encoder"),
    (lambda model: model.remove("unet/config.json"), "no file named config.json", "/model/unet"),
    (lambda model: model.cut(UNET), f"Unable to load weights from checkpoint file for '{{folder}}/{UNET}'"),
    (
        lambda model: model.cut(UNET, 0),
        f"Unable to load weights from checkpoint file for '{{folder}}/{UNET}'",
    ),
    (
        lambda model: model.cut(UNET, 1e-6),
        f"Unable to load weights from checkpoint file for '{{folder}}/{UNET}'",
    ),
    (
        lambda model: model.cut(VAE, 0.99),
        f"Unable to load weights from checkpoint file for '{{folder}}/{VAE}'",
    ),
    (lambda model: model.cut(TEXT), "incomplete metadata, file not fully covered"),
    (lambda model: model.put(UNET, b"version https://git-lfs.github.com/spec/v1\n"), "git-lfs"),
    (lambda model: model.drop_tensors(UNET, 3), "weights of its unet are missing"),
    (lambda model: model.drop_tensors(VAE, 1), "weights of its vae are missing"),
    (lambda model: model.put(UNET, (MODEL / VAE).read_bytes()), "weights of its unet are missing"),
    (
        lambda model: model.edit("unet/config.json", block_out_channels=[32, 64, 96]),
        "expected shape torch.Size([32",
    ),
    (
        lambda model: model.put("unet/config.json", b'{"sample_size": 32,'),
        "unet/config.json' is not a valid JSON file",
    ),
    (
        lambda model: model.put("scheduler/scheduler_config.json", b""),
        "scheduler_config.json' is not a valid JSON file",
    ),
    (lambda model: model.put("model_index.json", b"<html>"), "model_index.json' is not a valid JSON file"),
    (lambda model: model.put("model_index.json", b"[]"), "pop expected"),
    (lambda model: model.put("model_index.json", b"{}"), "'_class_name'"),
    (lambda model: model.cut("tokenizer/tokenizer.json"), "line "),
    (lambda model: model.put("tokenizer/tokenizer.json", b"{}"), "'added_tokens'"),
    (
        lambda model: model.edit("tokenizer/tokenizer.json", model={"type": "none"}),
        "data did not match any variant",
    ),
    (
        lambda model: model.edit("text_encoder/config.json", hidden_size="wide"),
        "'hidden_size' expected int, got str",
    ),
    (lambda model: model.edit("text_encoder/config.json", hidden_size=32), "`ignore_mismatched_sizes`"),
    (
        lambda model: model.edit("scheduler/scheduler_config.json", beta_schedule="new"),
        "new is not implemented for",
    ),
    (
        lambda model: model.edit("unet/config.json", down_block_types=["Nothing"] * 3),
        "Nothing does not exist",
    ),
    (
        lambda model: model.edit("model_index.json", unet=["diffusers", "AutoencoderKL"]),
        "cross_attention_dim must be specified",
    ),
    (lambda model: model.edit("model_index.json", unet=[None, None]), "expected ["),
    (lambda model: model.remove("tokenizer/tokenizer.json"), "the vocabulary of its tokenizer is missing"),
    (
        lambda model: model.remove(UNET).trap(UNET.replace("safetensors", "bin")),
        "model.safetensors found in directory",
    ),
    (
        lambda model: model.remove(TEXT).trap("text_encoder/pytorch_model.bin"),
        "model.safetensors found in directory",
    ),
    (lambda model: model.trap(UNET), f"Unable to load weights from checkpoint file for '{{folder}}/{UNET}'"),
    (lambda model: model.trap(TEXT), "deserializing header"),
    (
        lambda model: (
            model.remove(UNET)
            .trap("unet/part.bin")
            .put(f"{UNET}.index.json", b'{"metadata": {}, "weight_map": {"conv_in.bias": "part.bin"}}')
        ),
        "Unable to load weights from checkpoint file for '{folder}/unet/part.bin'",
    ),
    (lambda model: model.edit("model_index.json", unet=["os", "system"]), "cannot be loaded"),
    (
        lambda model: model.edit("model_index.json", unet=["net", "Net"]).put("unet/net.py", FROM_ELSEWHERE),
        "contains custom code in net.py",
    ),
)
def test_a_damaged_model_is_refused_and_nothing_unpickled_or_run(what, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = what(Copy(tmp_path)).folder
    before = contents(tmp_path)
    says = [part.replace("{folder}", str(folder)) for part in says]
    allowed = (
        "'tiny', 'tiny-pixart', 'tiny-lcm'",
        "a folder with a whole Stable Diffusion (1, 2 or XL) or PixArt-Sigma",
        "the Hub",
    )
    named = f"model={str(folder)!r} "
    refused(lambda: study.load(setting(tmp_path, model=str(folder))), named, *allowed, "safetensors", *says)
    refused(lambda: tiny.load_pipeline(folder), f"path={str(folder)!r} ", "the whole embedded model", *says)
    assert contents(tmp_path) == before  # above all no file named "mark"


def test_a_model_that_is_only_linked_is_good(tmp_path):
    folder = Copy(tmp_path).folder
    pipe = study.load(setting(tmp_path, model=str(folder)))
    assert all(
        torch.equal(a, b)
        for a, b in zip(pipe.unet.parameters(), tiny.load_pipeline().unet.parameters(), strict=True)
    )


@cases(
    ("missing", "is neither a valid local path nor a valid repo id"),
    ("empty", "no file named model_index.json found in directory"),
    ("file.safetensors", "is neither a valid local path nor a valid repo id"),
    ("~/models", "Repo id must use alphanumeric chars"),
    ("two words", "Repo id must use alphanumeric chars"),
    ("https://huggingface.co/a/b", "is neither a valid local path nor a valid repo id"),
    ("Tiny", "Cannot load model Tiny"),
    ("nobody/nothing", "Cannot load model nobody/nothing"),
)
def test_no_model_there_is_said_in_one_sentence(what, says, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.safetensors").write_bytes((MODEL / TEXT).read_bytes())
    before = contents(tmp_path)
    model = str(tmp_path / what) if what in ("missing", "empty", "file.safetensors") else what
    refused(
        lambda: study.load(setting(tmp_path, model=model)),
        f"model={model!r} must be 'tiny', 'tiny-pixart', 'tiny-lcm', a folder",
        *says,
    )
    refused(
        lambda: tiny.load_pipeline(model),
        "holds no embedded model (model_index.json is missing)",
        "CATOME_TINY_MODEL",
    )
    assert contents(tmp_path) == before


@cases(
    (lambda model: tiny.load_pipeline(""), "path='.' holds no embedded model (model_index.json is missing)"),
    (
        lambda model: tiny.load_pipeline(dtype="float16"),
        "dtype='float16' must be a floating-point torch.dtype",
    ),
    (
        lambda model: tiny.load_pipeline(dtype=torch.int8),
        "dtype=torch.int8 must be a floating-point torch.dtype",
    ),
    (lambda model: tiny.load_pipeline(dtype=None), "dtype=None must be a floating-point torch.dtype"),
    (
        lambda model: tiny.load_scene_net(model.folder / "vae"),
        "holds no embedded model (model_index.json is missing)",
    ),
    (
        lambda model: tiny.load_scene_net(model.remove("scene_net/model.safetensors").folder),
        "scene_net/model.safetensors' does not exist",
        "no feature extractor",
    ),
    (
        lambda model: tiny.load_scene_net(model.cut("scene_net/model.safetensors").folder),
        "scene_net/model.safetensors' must be a whole feature extractor: ",
    ),
    (
        lambda model: tiny.load_scene_net(
            model.put("scene_net/model.safetensors", (MODEL / VAE).read_bytes()).folder
        ),
        "scene_net/model.safetensors' must be a whole feature extractor: ",
    ),
    (
        lambda model: tiny.load_scene_net(model.trap("scene_net/model.safetensors").folder),
        "scene_net/model.safetensors' must be a whole feature extractor: ",
    ),
    (lambda model: tiny.render("dessert", 0), "name='dessert' is no scene class; the classes are", CLASSES),
)
def test_the_embedded_model_refuses(what, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(lambda: what(Copy(tmp_path)), *says)
    assert not (tmp_path / "mark").exists()


# Real images


@pytest.fixture(scope="module")
def net():
    return quality.extractor(embedded=True)


class Images:
    """A folder with real images, more or less."""

    def __init__(self, folder) -> None:
        self.folder = folder
        folder.mkdir()
        self.good = Image.fromarray(tiny.render("volcano", 0))

    def add(self, *names):
        for name in names:
            (self.folder / name).parent.mkdir(exist_ok=True)
            self.good.save(self.folder / name)
        return self

    def put(self, name, data: bytes):
        (self.folder / name).write_bytes(data)
        return self

    def cut(self, name, share=0.5):
        self.add(name)
        data = (self.folder / name).read_bytes()
        return self.put(name, data[: int(share * len(data))])

    def flip(self, name, at):
        self.add(name)
        data = bytearray((self.folder / name).read_bytes())
        data[at] ^= 255
        return self.put(name, bytes(data))


def huge() -> bytes:
    """A PNG of a few bytes that says it has 60000 x 60000 pixels."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    )
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


NO_FOLDER = "must be a folder of images, or of one folder for each class"
TOO_FEW = ("images: at least 2", "(.bmp, .jpeg, .jpg, .png")
DAMAGED = "; reference must be a folder of whole ones"


@cases(
    (lambda images: images.folder / "missing", "/real/missing' ", NO_FOLDER),
    (lambda images: images.add("a.jpg", "b.jpg").folder / "a.jpg", "/real/a.jpg' ", NO_FOLDER),
    (lambda images: images, "/real' holds 0 ", *TOO_FEW),
    (lambda images: images.add("a.png"), "/real' holds 1 ", *TOO_FEW),
    (lambda images: images.put("a.txt", b"a").put("b.npy", b"b").put("c", b"c"), "/real' holds 0 ", *TOO_FEW),
    (lambda images: images.add("a.png", "class/b.gif"), "/real' holds 1 ", *TOO_FEW),
    (
        lambda images: Images(images.folder / "class").add("deep/a.png", "deep/b.png") and images,
        "/real' holds 0 ",
        *TOO_FEW,
    ),
    (
        lambda images: images.add("a.jpg").cut("b.jpg"),
        "/real/b.jpg is not a whole image: ",
        "truncated",
        DAMAGED,
    ),
    (lambda images: images.add("a.jpg").cut("b.jpeg", 0.01), "/real/b.jpeg is not a whole image: ", DAMAGED),
    (
        lambda images: images.add("a.png").cut("b.png"),
        "/real/b.png is not a whole image: ",
        "truncated",
        DAMAGED,
    ),
    (
        lambda images: images.add("a.png").cut("b.png", 0),
        "/real/b.png is not a whole image: cannot identify",
        DAMAGED,
    ),
    (lambda images: images.add("a.png").flip("b.png", 60), "/real/b.png is not a whole image: ", DAMAGED),
    (lambda images: images.add("a.png").flip("b.png", 11), "/real/b.png is not a whole image: ", DAMAGED),
    (lambda images: images.add("a.webp").cut("b.webp"), "/real/b.webp is not a whole image: ", DAMAGED),
    (lambda images: images.add("a.bmp").cut("b.bmp"), "/real/b.bmp is not a whole image: ", DAMAGED),
    (lambda images: images.add("a.tif").cut("b.tif"), "/real/b.tif is not a whole image: ", DAMAGED),
    (
        lambda images: images.add("a.png").put("b.png", b"no image"),
        "/real/b.png is not a whole image: cannot",
        DAMAGED,
    ),
    (
        lambda images: images.add("a.png").put("b.png", huge()),
        "/real/b.png is not a whole image: ",
        "3600000000 pixels",
        DAMAGED,
    ),
)
def test_reference_folders_are_refused_and_nothing_is_kept(what, says, net, tmp_path):
    given = what(Images(tmp_path / "real"))
    folder = getattr(given, "folder", given)
    before = contents(tmp_path)
    parameter = "reference must be" if DAMAGED in says else f"reference={str(folder)!r} "
    refused(lambda: study.real_images(setting(tmp_path), net, (128, 128), folder), parameter, *says)
    assert contents(tmp_path) == before


@cases(
    (dict(per_class=0), "per_class=0 must be at least 1"),
    (dict(per_class=2.5), "per_class=2.5 must be an integer, not float"),
    (
        dict(per_class=1, size=(64, 96)),
        "[12, 3, 64, 96] must be uint8 [B, 3, 128, 128]",
        "height=128 and width=128",
    ),
    (dict(model="some/model"), "reference=None:", "the folder of real images"),
)
def test_real_images_refuse(what, says, net, tmp_path):
    arguments = {"size": (128, 128), "model": "tiny", **what}
    chosen = replace(setting(tmp_path), model=arguments.pop("model"))
    refused(lambda: study.real_images(chosen, net, **arguments), *says)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("damage", ["empty", "half", "text", "pickle", "other"])
def test_damaged_features_are_computed_again(damage, net, tmp_path):
    folder = Images(tmp_path / "real").add("a.png", "b.png").folder
    expected = study.real_images(setting(tmp_path), net, (128, 128), folder).features
    (kept,) = (tmp_path / "out").iterdir()
    whole = kept.read_bytes()
    if damage == "pickle":
        np.save(kept, np.array([Trap(tmp_path / "mark")] * 2, object), allow_pickle=True)
    elif damage == "other":
        np.save(kept, np.zeros((3, 128), np.float32))
    else:
        kept.write_bytes({"empty": b"", "half": whole[:600], "text": b"no features"}[damage])
    again = study.real_images(setting(tmp_path), net, (128, 128), folder).features
    assert np.array_equal(expected, again)
    assert kept.read_bytes() == whole
    assert not (tmp_path / "mark").exists()


# Recorded rows

TABLE = Table("numbers", 1, {"version": pa.int16(), "image": pa.int32()}, {"value": pa.float64()})
ROW, RUN = {"image": 0, "value": 0.5}, {"id": "r", "rows": 0, "wall_seconds": 0.0}
ROWS = pa.Table.from_pylist(
    [{"version": 1, "image": i, "value": i / 7, "run": "r"} for i in range(50)], TABLE.schema
)


def parquet(file, table) -> None:
    file.parent.mkdir(exist_ok=True)
    pq.write_table(table, file)


def stored(folder, change=lambda data: data, table=ROWS):
    parquet(folder / "numbers.parquet", table)
    (folder / "numbers.parquet").write_bytes(change((folder / "numbers.parquet").read_bytes()))


def folder_at(path):
    path.mkdir(parents=True)


def file_at(path):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(b"")


def trapped(folder):
    folder.mkdir()
    torch.save(Trap(folder.parent / "mark"), folder / "numbers.parquet")


NOT_WHOLE = "numbers.parquet is not a whole Parquet file ("
OTHER = "numbers.parquet holds other columns than ['version', 'image', 'value', 'run']"


@cases(
    (lambda folder: stored(folder, lambda data: b""), NOT_WHOLE),
    (lambda folder: stored(folder, lambda data: b"PAR1"), NOT_WHOLE),
    (lambda folder: stored(folder, lambda data: data[: len(data) // 2]), NOT_WHOLE),
    (lambda folder: stored(folder, lambda data: data[:-1]), NOT_WHOLE),
    (lambda folder: stored(folder, lambda data: data[100:]), NOT_WHOLE),
    (lambda folder: stored(folder, lambda data: b"PAR1" + bytes(200) + b"PAR1"), NOT_WHOLE),
    (lambda folder: stored(folder, lambda data: b"version,image,value,run\n1,0,0.5,r\n"), NOT_WHOLE),
    (lambda folder: stored(folder, lambda data: b"version https://git-lfs.github.com/spec/v1\n"), NOT_WHOLE),
    (trapped, NOT_WHOLE),
    (lambda folder: stored(folder, table=pa.table({"a": [1]})), OTHER),
    (lambda folder: stored(folder, table=pa.table({})), OTHER),
    (lambda folder: stored(folder, table=ROWS.select(["image", "version", "value", "run"])), OTHER),
    (lambda folder: stored(folder, table=ROWS.drop_columns(["version"])), OTHER),
)
def test_files_of_rows_are_refused(what, says, tmp_path):
    what(tmp_path / "shipped")
    before = contents(tmp_path)
    refused(lambda: Store(TABLE, tmp_path / "out", tmp_path / "shipped"), str(tmp_path / "shipped"), *says)
    if OTHER in says:
        refused(lambda: Store(TABLE, tmp_path / "shipped", None), str(tmp_path / "shipped"), *says)
    assert contents(tmp_path) == before


NO_RUNS = ("numbers.parquet ", "metadata 'runs' must be a JSON object of runs")
ELSE = "move it away"


@cases(
    (lambda at: folder_at(at / "numbers.parquet"), "numbers.parquet must be a file, ", ELSE),
    (lambda at: folder_at(at / "numbers.json"), "numbers.json must be a file, ", ELSE),
    (lambda at: folder_at(at / "numbers.parts" / "0-r-0.parquet"), "0-r-0.parquet must be a file, ", ELSE),
    (lambda at: file_at(at / "numbers.parts"), "numbers.parts must be a folder, ", ELSE),
    (lambda at: (at.rmdir(), file_at(at)), "/out must be a folder, ", ELSE),
    (
        lambda at: stored(
            at, table=ROWS.set_column(1, ROWS.schema.field(1), pa.array([*range(49), None], pa.int32()))
        ),
        "numbers.parquet: rows[49] has no image (None or NaN)",
        "a key of numbers",
    ),
    (lambda at: stored(at, table=ROWS.replace_schema_metadata({"runs": "{no JSON"})), *NO_RUNS),
    (lambda at: stored(at, table=ROWS.replace_schema_metadata({"runs": "[1]"})), *NO_RUNS),
    (lambda at: stored(at, table=ROWS.replace_schema_metadata({"runs": '{"r": {}}'})), *NO_RUNS),
)
def test_what_is_no_folder_of_rows_is_refused(what, says, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    what(folder)
    before = contents(tmp_path)
    refused(lambda: Store(TABLE, folder, None), str(folder), *says)
    if "numbers.parquet" in says[0] or "/out" in says[0]:
        refused(lambda: Store(TABLE, tmp_path / "own", folder), str(folder), *says)
        refused(lambda: Store(TABLE, tmp_path / "own", None).gather(folder), str(folder), *says)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("beside", ["[]", '{"sha256": 5}', '{"sha256": null}', "no JSON", "\udcff"])
def test_a_description_that_says_nothing_of_a_checksum_is_passed_over(beside, tmp_path):
    stored(tmp_path / "out")
    (tmp_path / "out/numbers.json").write_bytes(beside.encode(errors="surrogateescape"))
    assert len(Store(TABLE, tmp_path / "out", None).find()) == 50


@cases(
    (
        lambda folder: Store("numbers", folder),
        "table='numbers' must be a catome.study.run.store.Table, not str",
    ),
    (lambda folder: Store(TABLE, None), "folder=None must be a path, not NoneType"),
    (lambda folder: Store(TABLE, 5), "folder=5 must be a path, not int"),
    (lambda folder: Store(TABLE, folder, 5), "recorded=5 must be a path, or None for none, not int"),
    (lambda folder: Store(TABLE, folder, None).gather(None), "folder=None must be a path, not NoneType"),
    (
        lambda folder: Store(TABLE, folder, None).find(imge=1),
        "'imge' is no key of numbers",
        "did you mean 'image'?",
        "the keys are",
    ),
    (
        lambda folder: Store(TABLE, folder, None).find(value=1),
        "'value' is no key of numbers",
        "the keys are version, image",
    ),
    (
        lambda folder: Store(TABLE, folder, None).find(image=np.arange(2)),
        "image=array([0, 1]) must be a value or a list of val",
    ),
    (
        lambda folder: Store(TABLE, folder, None).find(image={"a": 1}),
        "image={'a': 1} must be a value or a list of values, not dict",
    ),
)
def test_stores_refuse(what, says, tmp_path):
    refused(lambda: what(tmp_path / "out"), *says)
    assert contents(tmp_path) == {}


def around():
    """A list that holds itself."""
    held = []
    held.append(held)
    return held


CANNOT = ("cannot be written as JSON", "text, finite numbers, True, False, None, or lists and dicts of them")


@cases(
    (dict(rows=5), "rows=5 must be a list of rows, not int"),
    (dict(rows=None), "rows=None must be a list of rows, not NoneType"),
    (dict(rows="row"), "rows='row' must be a list of rows, not str"),
    (dict(rows=ROW), "rows[0]='image' must be a mapping of columns to values, not str"),
    (dict(rows=[ROW, None]), "rows[1]=None must be a mapping of columns to values, not NoneType"),
    (dict(rows=[ROW | {"image": None}]), "rows[0] has no image (None or NaN)", "a key of numbers"),
    (dict(rows=[ROW, ROW | {"image": NAN}]), "rows[1] has no image (None or NaN)", "a key of numbers"),
    (dict(rows=[ROW | {"version": None}]), "rows[0] has no version (None or NaN)", "a key of numbers"),
    (dict(rows=[ROW, {"value": 1.0}]), "rows[1] lacks 'image', a column of numbers"),
    (dict(rows=[ROW, {"image": 1}]), "rows[1] lacks 'value', a column of numbers"),
    (
        dict(rows=[ROW | {"vlaue": 1}]),
        "rows[0]: 'vlaue' ",
        "no column of numbers",
        "did you mean 'value'?",
        "it has version, image",
    ),
    (dict(rows=[ROW | {5: 1}]), "rows[0]: 5 ", "no column of numbers", "it has version, image, value, run"),
    (dict(rows=[ROW | {"image": "x"}]), "rows do not fit the columns of numbers: ", "'x'", "column image"),
    (dict(rows=[ROW | {"image": 1.5}]), "rows do not fit the columns of numbers: ", "1.5", "column image"),
    (
        dict(rows=[ROW | {"image": 2**40}]),
        "rows do not fit the columns of numbers: ",
        f"{2**40}",
        "column image",
    ),
    (dict(rows=[ROW | {"image": 2**70}]), "rows do not fit the columns of numbers: "),
    (dict(rows=[ROW | {"value": [1]}]), "rows do not fit the columns of numbers: ", "column value"),
    (dict(run=None), "run=None must be a dict", "catome.study.run.store.provenance", "not NoneType"),
    (dict(run="r"), "run='r' must be a dict"),
    (dict(run={}), "run['id']=None must be a text of letters, digits, _ and -"),
    (dict(run={"id": ""}), "run['id']='' must be a text of letters"),
    (dict(run={"id": "../r"}), "run['id']='../r' must be a text of letters"),
    (dict(run=RUN | {"id": 7}), "run['id']=7 must be a text of letters"),
    (dict(run=RUN | {"at": Path("here")}), "run['at']=PosixPath('here') ", *CANNOT),
    (dict(run=RUN | {"of": torch.zeros(2, 2)}), "run['of']=tensor([[0., 0.], [0., 0.]]) ", *CANNOT),
    (dict(run=RUN | {"of": np.float32(1)}), "run['of']=np.float32(1.0) ", *CANNOT),
    (dict(run=RUN | {"of": [{1, 2}]}), "run['of']=[{1, 2}] ", *CANNOT),
    (dict(run=RUN | {"of": {(1, 2): 3}}), "run['of']={(1, 2): 3} ", *CANNOT, "under names that are text"),
    (dict(run=RUN | {"of": NAN}), "run['of']=nan ", *CANNOT),
    (dict(run=RUN | {"of": around()}), "run['of']=[[...]] ", *CANNOT),
    (dict(seconds=None), "seconds=None must be a number, not NoneType"),
    (dict(seconds="1"), "seconds='1' must be a number, not str"),
    (dict(seconds=-1), "seconds=-1 must be between 0 and 1e+09"),
    (dict(seconds=NAN), "seconds=nan must be between 0 and 1e+09"),
)
def test_rows_are_refused_and_nothing_is_written(what, says, tmp_path):
    store = Store(TABLE, tmp_path / "out", None)
    refused(lambda: store.add(**{"rows": [ROW], "run": RUN, "seconds": 1.0, **what}), *says)
    store.finish()
    assert contents(tmp_path) == {}
    assert store.runs == {}
    store.add([ROW], RUN, 1.0)
    assert Store(TABLE, tmp_path / "out", None).find()["image"].tolist() == [0]
