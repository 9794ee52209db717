"""The benchmark: who takes a turn when, what is reckoned from it, what is kept, and what the command
refuses."""

import json
import math
from contextlib import contextmanager, nullcontext

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import catome
from catome import patch
from catome.bench import main
from catome.policy import rates
from catome.runtime import state
from catome.study import methods
from catome.study.bench import contenders as taking_part
from catome.study.bench import layers as bench_layers
from catome.study.bench import suites as bench
from catome.study.bench.points import Options, Point
from catome.study.bench.rounds import Call, Contender, take_turns
from catome.study.bench.table import BENCH, CACHED, COPY, FRESH, ratio, report, summary
from catome.study.bench.targets import targets
from catome.study.run.store import Store
from helpers.sentences import assert_says

SMALL = dict(
    sample_size=8,
    block_out_channels=(16, 32),
    layers_per_block=1,
    norm_num_groups=8,
    cross_attention_dim=16,
    attention_head_dim=2,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)
XL = dict(
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=88,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
)
UNET = Point("unet", "small", "float32", 1, 64, 64, 16, 0.5, 3)
TOKENS = Point("operations", "", "float32", 1, 12, 12, 8, 0.5, 2)
QUICK = [
    "--suite",
    "operations",
    "unet",
    "--architecture",
    "small",
    "--size",
    "64",
    "--tokens",
    "8",
    "--channels",
    "8",
    "--rounds",
    "2",
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(taking_part.ARCHITECTURES, "small", SMALL)
    monkeypatch.setitem(taking_part.ARCHITECTURES, "small xl", SMALL | XL)
    taking_part.random_unet.cache_clear()
    yield
    taking_part.random_unet.cache_clear()


@pytest.fixture
def merging_pays(monkeypatch, estimates):
    """Also for so few tokens: reading, writing and starting are free."""
    monkeypatch.setitem(rates.ESTIMATES, ("cpu", 4), rates.Rates(1.0, math.inf, 0.0))
    rates._rates.cache_clear()
    yield
    rates._rates.cache_clear()


def logging(log, *names, **more):
    """Contenders that note their turns."""
    return [Contender(name, (Call(lambda name=name: log.append(name)),), **more) for name in names]


def second(run, times):
    for _ in range(times):
        run()
    return 1.0


def test_contenders_take_turns_and_the_first_of_a_round_is_another_each_time():
    log = []
    samples, notes = take_turns(logging(log, "a", "b", "c"), 4, second)
    assert "".join(log) == "abc" + "abc" + "bca" + "cab" + "abc"  # the first is the warm-up
    assert samples == {name: [(1.0,)] * 4 for name in "abc"}
    assert notes == {}


def test_the_warm_up_is_not_in_the_samples():
    slow_at_first = iter([100.0] + [1.0] * 5)
    state = {}

    def clock(run, times):
        run()
        return state["took"]

    def work():
        state["took"] = next(slow_at_first)

    samples, _ = take_turns([Contender("a", (Call(work),))], 5, clock)
    assert samples["a"] == [(1.0,)] * 5


def test_a_turn_is_in_its_context_and_the_context_is_not_timed():
    log = []

    @contextmanager
    def applied():
        log.append("on")
        yield
        log.append("off")

    def clock(run, times):
        log.append("start")
        run()
        log.append("stop")
        return 1.0

    take_turns(logging(log, "a", applied=applied), 1, clock)
    assert log == ["on", "a", "off", "on", "start", "a", "stop", "off"]


def test_short_operations_are_repeated_until_a_sample_is_long_enough():
    asked = []

    def clock(run, times):
        asked.append(times)
        return 0.0003  # of one run

    samples, _ = take_turns([Contender("a", (Call(lambda: None, inside=10),), least_s=0.01)], 2, clock)
    assert asked == [1, 34, 34]
    assert samples["a"] == [(pytest.approx(0.00003),)] * 2


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "out of memory"),
        (MemoryError(), "out of memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
            "out of memory",
        ),
        (RuntimeError("invalid configuration\nand more"), "RuntimeError: invalid configuration"),
    ],
)
@pytest.mark.parametrize("at", [0, 2])
def test_who_fails_is_left_out_and_the_others_go_on(error, says, at):
    log, count = [], iter(range(100))

    def fails():
        if next(count) == at:
            raise error

    contenders = [*logging(log, "a"), Contender("b", (Call(fails),)), *logging(log, "c")]
    samples, notes = take_turns(contenders, 4, second)
    assert notes == {"b": says}
    assert [len(samples[name]) for name in "abc"] == [4, max(at - 1, 0), 4]
    assert log.count("a") == log.count("c") == 5


def test_a_bug_is_no_note():
    def wrong():
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        take_turns([Contender("a", (Call(wrong),))], 1, second)


def test_after_the_deadline_only_the_first_round_is_finished(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr("catome.study.bench.rounds.time.monotonic", lambda: next(now))
    samples, _ = take_turns(logging([], "a", "b"), 10, second, deadline=2)
    assert [len(own) for own in samples.values()] == [4, 4]
    samples, _ = take_turns(logging([], "a", "b"), 10, second, deadline=-1)
    assert [len(own) for own in samples.values()] == [1, 1]


def test_operations_do_the_same_work_and_the_copy_moves_as_many_bytes(monkeypatch):
    moved = []
    real = torch.Tensor.copy_
    contenders = {c.method: c for c in taking_part.operations(TOKENS, "cpu")}
    assert all(c.least_s == 0.01 for c in contenders.values())
    given = {name: c.calls[0].run() for name, c in contenders.items()}
    for work in (CACHED, FRESH):
        ours, theirs = given[f"catome {work}"], given[f"tomesd {work}"]
        assert ours.shape == (2, 144, 8)
        assert torch.allclose(ours, theirs, atol=1e-5)
        assert len({tuple(token) for token in ours[0].tolist()}) == 72  # merged they were
    monkeypatch.setattr(
        torch.Tensor, "copy_", lambda self, other: moved.extend([self, other]) or real(self, other)
    )
    contenders[COPY].calls[0].run()
    merging = (2 * 144 + 2 * 72) * 8 * 4  # what merge reads and writes, in bytes; unmerge does the reverse
    assert sum(tensor.numel() * tensor.element_size() for tensor in moved) == 2 * merging


def test_only_a_checkpoint_step_matches(monkeypatch):
    contenders = {c.method: c.calls[0].run for c in taking_part.operations(TOKENS, "cpu")}
    matched = []
    real = taking_part.match
    monkeypatch.setattr(
        "catome.study.bench.contenders.match", lambda *a, **k: matched.append(1) or real(*a, **k)
    )
    monkeypatch.setattr("tomesd.merge.bipartite_soft_matching_random2d", lambda *a, **k: matched.append(2))
    contenders[f"catome {CACHED}"]()
    contenders[f"tomesd {CACHED}"]()
    assert matched == []
    contenders[f"catome {FRESH}"]()
    assert matched == [1]


@pytest.fixture
def matching_takes_a_second(monkeypatch):
    """A clock by which a call takes 1 s if it finds pairs, else 0.1 s."""
    found = []
    real = state.best_matches
    monkeypatch.setattr(state, "best_matches", lambda *a, **k: found.append(1) or real(*a, **k))

    def clock(run, times):
        found.clear()
        run()
        return 1.0 if found else 0.1

    return clock


def test_cached_methods_are_averaged_over_13_checkpoints_and_38_cached_calls(
    matching_takes_a_second, merging_pays
):
    rows = pd.DataFrame(bench.measure(UNET, "cpu", matching_takes_a_second))
    seconds = rows.groupby("method")["seconds"].agg(["min", "max", "size"])
    assert (seconds["size"] == 3).all()
    assert (seconds["min"] == seconds["max"]).all()
    mean = (13 * 1.0 + 38 * 0.1) / 51
    expected = {"unmerged": 0.1, "tomesd": 0.1, "ToDo": 0.1, "free merging": 0.1}
    for name in ("catome", "merged keys", "recommended", "batch maximum"):
        expected |= {name: mean, f"{name} checkpoint call": 1.0, f"{name} cached call": 0.1}
    assert seconds["min"].to_dict() == {name: pytest.approx(value) for name, value in expected.items()}
    assert (rows["note"] == "").all()


def test_catome_steps_aside_where_merging_cannot_pay_and_is_timed_all_the_same(estimates):
    rows = pd.DataFrame(bench.measure(UNET, "cpu", second))
    own = rows[rows["method"].str.startswith("catome")]
    assert len(own) == 9
    assert (own["note"] == "steps aside here").all()
    assert (own["seconds"] == 1.0).all()
    assert (rows[~rows["method"].str.startswith("catome")]["note"] == "").all()


def test_every_method_does_something_at_the_given_share_and_leaves_nothing(merging_pays):
    contenders = taking_part.unet_calls(UNET, "cpu")
    unet = taking_part.random_unet("small", "float32", "cpu")
    state = {name: set(vars(module)) - {"_tome_info"} for name, module in unet.named_modules()}
    outputs = {}
    with torch.no_grad():
        for contender in contenders:
            with contender.applied():
                outputs[contender.method] = [call.run() for call in contender.calls]
                applied = patch.applied_patch(unet)
                if applied is not None:
                    share = 40 / 64 if contender.method == "recommended" else 0.5  # int(0.64 * 64)
                    assert all(plan.merged_share.tolist() == [share, share] for plan in applied.cached())
                    assert len(applied.cached()) == 3
        again = contenders[0].calls[0].run()
    plain = outputs.pop("unmerged")[0]
    assert torch.equal(plain, again)
    assert plain.isfinite().all()
    assert set(outputs) == {
        "catome",
        "merged keys",
        "recommended",
        "tomesd",
        "batch maximum",
        "ToDo",
        "free merging",
    }
    for given in outputs.values():
        assert given[-1].isfinite().all()
        assert not torch.equal(given[-1], plain)
    assert torch.allclose(outputs["catome"][1], outputs["batch maximum"][1])
    assert state == {name: set(vars(module)) - {"_tome_info"} for name, module in unet.named_modules()}


def test_who_reduces_nothing_is_left_out(monkeypatch):
    idle = methods.Method("idle", "idle", lambda pipe: nullcontext(pipe))
    monkeypatch.setattr("catome.study.bench.contenders.methods.todo", lambda: idle)
    rows = pd.DataFrame(bench.measure(UNET, "cpu", second)).set_index("method")
    assert rows.loc["ToDo", "note"] == "reduces no tokens here"
    assert math.isnan(rows.loc["ToDo", "seconds"])
    assert rows.loc["tomesd", "seconds"].notna().all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["small", "small xl"])
def test_random_weights_give_finite_outputs(name, dtype):
    _, call = taking_part._caller(Point("unet", name, dtype, 1, 64, 64, 16, 0.5, 1), "cpu")
    with torch.no_grad():
        output = call(1).float()
    assert output.shape == (2, 4, 8, 8)
    assert output.isfinite().all()
    assert 1e-3 < output.std() < 1e3


def test_peak_memory_is_of_a_checkpoint_and_a_cached_call_with_fused_and_unfused_attention(monkeypatch):
    seen = []
    real = taking_part._caller

    def caller(point, device):
        unet, call = real(point, device)

        def noted(step):
            processor = type(unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.processor).__name__
            seen.append((patch.applied_patch(unet) is not None, processor, step))
            return call(step)

        return unet, noted

    monkeypatch.setattr(taking_part, "_caller", caller)
    monkeypatch.setattr("catome.study.bench.contenders.memory_since", lambda device: lambda: len(seen))
    rows = bench.measure(Point("memory", "small", "float32", 1, 64, 64, 16, 0.5, 1), "cpu", second)
    fused = "AttnProcessor2_0"
    order = [(False, fused), (True, fused), (False, "AttnProcessor"), (True, "AttnProcessor")]
    assert seen == [(*who, step) for who in order for step in (0, 1)]
    assert {row["method"]: row["peak_bytes"] for row in rows} == {
        "unmerged": 2,
        "catome": 4,
        "unmerged, unfused attention": 6,
        "catome, unfused attention": 8,
    }
    assert (
        taking_part.random_unet("small", "float32", "cpu").attn_processors.popitem()[1].__class__.__name__
        == fused
    )


def test_a_ratio_is_paired_and_its_interval_is_of_order_statistics():
    drift = np.array([1.0, 5.0, 2.0, 9.0, 3.0, 4.0])
    assert ratio(2 * drift, drift) == (2, 2, 2)
    found = ratio([1, 2, 3, 4, 5, 6], np.ones(6))
    assert found == (3.5, 1, 6)
    assert ratio(range(1, 21), np.ones(20)) == (10.5, 6, 15)  # 5 of 20 on each side: 95.9 %
    assert ratio([3, 1], [1, 1]) == (2, 1, 3)
    assert all(math.isnan(value) for value in ratio([], []))
    assert ratio([1, math.nan, 3], [1, 1, 1]) == (2, 1, 3)


def test_intervals_cover():
    rng = np.random.default_rng(0)
    for rounds in (6, 10, 20):
        spans = [ratio(rng.lognormal(0.5, 1, rounds), np.ones(rounds)) for _ in range(500)]
        assert np.mean([low <= math.exp(0.5) <= high for _, low, high in spans]) > 0.93


HERE = {"kind": "cpu", "device": "an abacus", "threads": 2}
SD15 = Point("unet", "sd15", "float32", 1, 512, 512, 320, 0.5, 6)
STATED = Point("operations", "", "float32", 1, 64, 64, 320, 0.5, 6)


def made_up(point, noise=0.0, notes=None, where=HERE, **milliseconds):
    """Rows of 6 rounds; a time of None is one that could not be had."""
    keys = where | {name: value for name, value in vars(point).items() if name != "rounds"}
    rows = []
    for method, value in milliseconds.items():
        method = method.replace("_", " ")
        if value is None:
            note = (notes or {}).get(method, "out of memory")
            rows.append(
                keys | {"method": method, "round": 0, "seconds": math.nan, "peak_bytes": None, "note": note}
            )
            continue
        for turn in range(6):
            seconds = value / 1000 * (1 + noise * (-1) ** turn * (method == "catome"))
            rows.append(
                keys | {"method": method, "round": turn, "seconds": seconds, "peak_bytes": None, "note": ""}
            )
    return rows


def fast(catome=10.0, tomesd=100.0, fresh=50.0, fresh_tomesd=100.0):
    names = {"catome merge + unmerge": catome, "tomesd merge + unmerge": tomesd, "copy": 5.0}
    return made_up(
        STATED, **names, **{"catome checkpoint step": fresh, "tomesd checkpoint step": fresh_tomesd}
    )


def verdicts(rows, kind="cpu"):
    """Of all targets of a GPU; of the first five of a CPU, which are those of merged tokens."""
    found = targets(summary(pd.DataFrame(rows)), kind)["verdict"].tolist()
    return found[:5] if kind == "cpu" else found


def test_targets_of_layers_and_of_merged_keys():
    layer = Point("attention", "sd15", "float32", 1, 512, 512, 320, 0.75, 6)
    rows = made_up(layer, unmerged=100.0, merged_keys=33.0, ToDo=32.0)
    for name, channels in (("flux", 3072), ("pixart", 1152)):
        rows += made_up(
            Point("block", name, "float32", 1, 1024, 1024, channels, 0.7, 6), unmerged=100.0, merged_keys=80.0
        )
    rows += made_up(SD15, unmerged=100.0, recommended=79.0, tomesd=88.0)
    table = targets(summary(pd.DataFrame(rows)), "cpu").set_index(["work", "against"])["verdict"]
    found = table[table != "not measured"]
    assert (found == "reached").all()
    assert len(found) == 2 + 2 + 2 + 1
    slower = [
        row | {"seconds": 0.101} if row["method"] == "merged keys" and row["suite"] == "block" else row
        for row in rows
    ]
    again = targets(summary(pd.DataFrame(slower)), "cpu").set_index(["work", "against"])["verdict"]
    assert again["a block, keys merged, every share"].tolist() == ["not reached"]


def test_targets_are_reached_or_not():
    rows = fast() + made_up(SD15, unmerged=8.0, catome=7.0, free_merging=6.7, tomesd=8.0)
    assert verdicts(rows) == ["reached"] * 5
    assert verdicts(rows[:-6]) == ["reached", "reached", "not measured", "reached", "reached"]
    assert verdicts(fast(catome=10.1)) == ["not reached", "reached", *["not measured"] * 3]
    assert verdicts(fast(fresh=56.0)) == ["reached", "not reached", *["not measured"] * 3]
    rows = made_up(SD15, unmerged=7.0, catome=7.2, free_merging=6.8, tomesd=7.5)
    assert verdicts(rows)[2:] == ["not reached"] * 3
    noisy = made_up(SD15, noise=0.05, unmerged=7.0, catome=7.01, free_merging=7.0, tomesd=7.5)
    # slower than unmerged by less than can be told
    assert verdicts(noisy)[2:] == ["not reached", "reached", "reached"]
    table = targets(summary(pd.DataFrame(fast(catome=20.0))), "cpu")
    assert table["figure"][0] == pytest.approx(5)
    assert math.isnan(table["figure"][2])


def test_what_could_not_run_counts_against_catome_only():
    assert (
        verdicts(made_up(SD15, unmerged=8.0, catome=None, tomesd=8.0, free_merging=6.7))[2:]
        == ["not reached"] * 3
    )
    assert verdicts(made_up(SD15, unmerged=8.0, catome=7.0, tomesd=None))[2:] == [
        "not measured",
        "reached",
        "not measured",
    ]
    assert verdicts(made_up(SD15, unmerged=None, catome=None, tomesd=None))[2:] == ["not measured"] * 3


def test_targets_are_not_judged_by_other_points():
    other = [row | {"height": 32, "width": 32} for row in fast(catome=1000.0)]
    assert verdicts(other) == ["not measured"] * 5
    assert verdicts(fast(catome=1000.0), "cuda") == ["not measured"] * len(verdicts([*fast()], "cuda"))


def test_on_cuda_every_point_counts_but_peers_only_where_reducing_pays():
    gpu = {"kind": "cuda", "device": "a GPU", "threads": 2}

    def at(batch, **times):
        return made_up(Point("unet", "sd15", "float16", batch, 1024, 1024, 320, 0.5, 6), where=gpu, **times)

    pays = at(1, unmerged=10.0, catome=8.0, tomesd=9.0, batch_maximum=9.0, ToDo=8.5)
    useless = at(4, unmerged=10.0, catome=10.0, tomesd=12.0, batch_maximum=12.0, ToDo=9.999)
    never = at(16, unmerged=10.0, catome=10.0, tomesd=12.0, batch_maximum=12.0, ToDo=10.0)
    table = targets(summary(pd.DataFrame(pays + never)), "cuda").set_index(["work", "against"])
    unet = table[table["points"] != "0 of 0"]
    assert unet["verdict"].tolist() == ["reached"] * 4
    assert unet["points"].tolist() == ["2 of 2", "1 of 1", "1 of 1", "1 of 1"]
    table = targets(summary(pd.DataFrame(pays + useless)), "cuda")
    assert table["verdict"].tolist()[:4] == ["reached", "reached", "reached", "not reached"]
    assert table["points"][3] == "1 of 2"
    memory = [
        gpu
        | {
            name: value
            for name, value in vars(Point("memory", "sd15", "float16", 1, size, size, 320, 0.5, 1)).items()
        }
        | {"method": method, "round": 0, "seconds": math.nan, "peak_bytes": peak, "note": ""}
        for size in (512, 1024)
        for method, peak in {
            "unmerged": 100,
            "catome": 101,
            "unmerged, unfused attention": 1000,
            "catome, unfused attention": 800 if size == 1024 else 900,
        }.items()
    ]
    assert verdicts(memory, "cuda")[-3:] == ["not reached", "reached", "reached"]
    memory[-1]["peak_bytes"] = 801
    assert verdicts(memory, "cuda")[-3:] == ["not reached", "reached", "not reached"]


def test_the_report_names_what_was_left_out_and_what_could_not_run(tmp_path, capsys):
    assert main([*QUICK, "--output", str(tmp_path), "--budget-s", "0"]) == 0
    out = capsys.readouterr().out
    assert_says(out, "Left out", "budget of 0 s", ":\n  operations on [2, 8 x 8, 8]")
    assert "  unet small float32, batch 1, 64x64 px, share 0.5" in out
    assert out.count("not measured") == 13
    assert list(tmp_path.iterdir()) == []
    lines = report(summary(pd.DataFrame(made_up(SD15, unmerged=8.0, catome=7.0, tomesd=None))))
    (tomesd,) = [line for line in lines if line.startswith("  tomesd")]
    assert tomesd.split() == ["tomesd", "-", "out", "of", "memory"]
    (catome,) = [line for line in lines if line.startswith("  catome")]
    assert catome.split() == ["catome", "7.00", "1.143", "[1.143,", "1.143]"]


def test_rows_are_kept_with_their_provenance(tmp_path, capsys, merging_pays):
    assert main([*QUICK, "--output", str(tmp_path), "--share", "0.5", "0.25"]) == 0
    shown = capsys.readouterr()
    for words in ("catome merge + unmerge", "catome cached call", "share 0.25", "vs tomesd", "not measured"):
        assert words in shown.out
    assert "4 of 4: unet small" in shown.err
    store = Store(BENCH, tmp_path, None)
    rows = store.find()
    assert rows.groupby(["suite", "share", "method"]).size().unique().tolist() == [2]
    assert len(rows) == 2 * 2 * (7 + 16)
    assert (rows["seconds"] > 0).all()
    assert (rows["note"] == "").all()
    assert set(rows["kind"]) == {"cpu"}
    assert set(rows["threads"]) == {torch.get_num_threads()}
    (entry,) = store.runs.values()
    assert set(rows["run"]) == {entry["id"]}
    assert entry["rows"] == len(rows)
    assert entry["wall_seconds"] > 0
    assert {"device", "python", "torch", "diffusers", "catome", "commit", "date"} <= set(entry)
    assert entry["parameters"]["shares"] == [0.5, 0.25]
    assert json.loads((tmp_path / "bench.json").read_text())["runs"] == [entry]
    mean = rows[(rows["method"] == "catome") & (rows["share"] == 0.5)].set_index("round")["seconds"]
    fresh, cached = (
        rows[(rows["method"] == f"catome {kind} call") & (rows["share"] == 0.5)].set_index("round")["seconds"]
        for kind in ("checkpoint", "cached")
    )
    assert np.allclose(mean, (13 * fresh + 38 * cached) / 51)


def test_each_point_is_kept_when_it_is_done(tmp_path, monkeypatch):
    real = bench.measure

    def killed(point, *rest):
        if point.suite == "unet":
            raise KeyboardInterrupt
        return real(point, *rest)

    monkeypatch.setattr(bench, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        main([*QUICK, "--output", str(tmp_path)])
    assert set(Store(BENCH, tmp_path, None).find()["suite"]) == {"operations"}


def test_record_writes_where_the_repository_keeps_its_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("catome.study.run.store.RECORDED", tmp_path / "shipped")
    assert main([*QUICK, "--suite", "operations", "--record"]) == 0
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["bench.json", "bench.parquet", "shipped"]
    assert pq.read_table(tmp_path / "shipped/bench.parquet").num_rows == 14


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--suite", "speed"], "argument --suite: invalid choice: 'speed' (choose from"),
        (["--architecture", "sd3"], "argument --architecture: invalid choice: 'sd3'"),
        (["--dtype", "float8"], "argument --dtype: invalid choice: 'float8'"),
        (["--batch", "0"], "argument --batch: batch=0 must be at least 1"),
        (["--batch", "1", "two"], "argument --batch: batch='two' must be an integer"),
        (["--size", "500"], "argument --size: size=500 must be a multiple of 64"),
        (["--size", "-64"], "argument --size: size=-64 must be at least 64"),
        (["--share", "0.8"], "argument --share: share=0.8 must be between 0.01 and 0.75"),
        (["--share", "nan"], "argument --share: share=nan must be between"),
        (["--share", "half"], "argument --share: share='half' must be a number"),
        (["--tokens", "1"], "argument --tokens: tokens=1 must be at least 2"),
        (["--channels", "0"], "argument --channels: channels=0 must be at least 1"),
        (["--rounds", "0"], "argument --rounds: rounds=0 must be at least 1"),
        (["--budget-s", "-1"], "argument --budget-s: budget-s=-1.0 must be between 0"),
        (["--device", "mps"], "argument --device: device='mps' must be 'cpu' or 'cuda'"),
        (["--device", "cpu:1"], "argument --device: device='cpu:1'"),
        (["--suite", "memory"], "suite='memory' needs a CUDA device"),
        (["--output", ""], "output='' must be a text that is not empty"),
        (["--sizes", "512"], "unrecognized arguments"),
    ],
)
def test_wrong_arguments_are_refused_and_nothing_is_written(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_a_gpu_cuda_is_one_clear_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        main(["--device", "cuda"])
    assert stopped.value.code == 2
    assert (
        "device='cuda': this machine's torch sees no CUDA device" in capsys.readouterr().err.splitlines()[-1]
    )
    assert list(tmp_path.iterdir()) == []


def test_a_broken_file_of_rows_is_named_and_set_aside(tmp_path, capsys):
    (tmp_path / "bench.parquet").write_bytes(b"PAR1")
    with pytest.warns(UserWarning, match=r"bench\.parquet is not a whole Parquet file"):
        assert main([*QUICK, "--suite", "operations", "--output", str(tmp_path)]) == 0
    assert len(Store(BENCH, tmp_path, None).find()) == 14
    assert len(list(tmp_path.glob("bench.parquet.*.damaged"))) == 1


def test_defaults_fit_the_device():
    cpu, cuda = bench.points(Options()), bench.points(Options(device="cuda"))
    assert [str(point) for point in cpu] == [
        "operations on [2, 64 x 64, 320] float32, share 0.5",
        "attention sd15 float32, batch 1, 512x512 px, share 0.75",
        "block flux float32, batch 1, 1024x1024 px, share 0.7",
        "block pixart float32, batch 1, 1024x1024 px, share 0.7",
        "unet sd15 float32, batch 1, 512x512 px, share 0.5",
    ]
    grid = [point for point in cuda if point.suite == "unet"]
    assert len(grid) == len(set(grid)) == 2 * 3 * 3 * 3
    work = [point.batch * point.height * point.width for point in grid]
    assert work == sorted(work)
    assert {point.dtype for point in grid} == {"float16", "bfloat16"}
    suites = [suite for suite in dict.fromkeys(point.suite for point in cuda)]
    assert suites == ["operations", "attention", "memory", "block", "unet"]
    (asked,) = bench.points(
        Options(
            device="cuda", suites=("unet",), dtypes=("float32",), batches=(2,), sizes=(64,), shares=(0.5,)
        )
    )
    assert (asked.dtype, asked.batch, asked.height, asked.rounds) == ("float32", 2, 64, 10)


def test_free_merging_computes_the_attention_of_the_tokens_left_and_nothing_more():
    """The same products as with half of the tokens merged, without matching; the other parts as unmerged."""
    from torch.utils.flop_counter import FlopCounterMode

    counted = {}
    contenders = {contender.method: contender for contender in taking_part.unet_calls(UNET, "cpu")}
    with torch.no_grad():
        unet = taking_part.random_unet("small", "float32", "cpu")
        applied = {name: contenders[name].applied for name in ("unmerged", "free merging")}
        applied["quarter"] = lambda: taking_part.free_merging(0.25).applied(unet)
        for name, context in applied.items():
            with context(), FlopCounterMode(display=False) as counter:
                contenders["unmerged"].calls[0].run()
            counted[name] = counter.get_total_flops()
    # three topmost blocks of 64 tokens and 16 channels, two rows of guidance
    tokens, channels, blocks, rows = 64, 16, 3, 2
    for name, left in (("free merging", 0.5), ("quarter", 0.75)):
        saved = 4 * tokens**2 * channels * (1 - left**2) + 8 * tokens * channels**2 * (1 - left)
        assert counted["unmerged"] - counted[name] == blocks * rows * saved


def test_attention_is_timed_in_turns_as_it_is_and_merged(estimates):
    log = []

    def clock(run, times):
        log.append(run().shape)
        return 3.0 if len(log) % 2 else 2.0

    table = taking_part.attention_turns(
        edges=(4, 8), shares=(0.25, 0.5), channels=16, heads=2, rounds=6, clock=clock
    )
    assert table["tokens"].tolist() == [16, 16, 64, 64]
    assert table["share"].tolist() == [0.25, 0.5] * 2
    assert set(log) == {(1, 16, 16), (1, 64, 16)}
    assert len(log) == 4 * (2 + 2 * 6)
    assert set(table["speedup"]) <= {1.0, 1.5, 2 / 3, (1.5 + 2 / 3) / 2}
    assert (table["expected"] < 0).all()
    table = taking_part.attention_turns(edges=(32,), shares=(0.75,), channels=320, rounds=1)
    assert (table["expected"] > 0).all()
    assert (table["speedup"] > 1).all()


# Layers

LAYER = Point("attention", "sd15", "float32", 1, 64, 64, 16, 0.75, 3)
SMALL_MODELS = {
    "flux": dict(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        axes_dims_rope=(4, 6, 6),
    ),
    "pixart": dict(
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        cross_attention_dim=16,
        caption_channels=4096,
        sample_size=16,
        use_additional_conditions=False,
    ),
}


@pytest.fixture
def small_models(monkeypatch):
    for name, config in SMALL_MODELS.items():
        kind, given = bench_layers.MODELS[name]
        kept = {key: given[key] for key in ("guidance_embeds",) if key in given}
        monkeypatch.setitem(bench_layers.MODELS, name, (kind, config | kept))
    bench_layers.model_of.cache_clear()
    yield
    bench_layers.model_of.cache_clear()


@torch.no_grad()
def test_merged_keys_of_a_layer_are_those_of_the_library():
    """The suite "attention" times what a patched U-Net's attention computes."""
    works = bench_layers.attention_work(LAYER, "cpu")
    outputs = {name: work() for name, work in works.items()}
    assert all(output.shape == (2, 64, 16) and output.isfinite().all() for output in outputs.values())
    assert not torch.equal(outputs["merged keys"], outputs["unmerged"])
    from torch.utils.flop_counter import FlopCounterMode

    counted = {}
    for name, work in works.items():
        with FlopCounterMode(display=False) as counter:
            work()
        counted[name] = counter.get_total_flops()
    projections = 2 * 2 * 64 * 16**2  # of two rows, one projection of all tokens
    products = 2 * 4 * 64 * 64 * 16
    assert counted["unmerged"] == 4 * projections + products
    assert counted["merged keys"] == 2.5 * projections + products // 4
    assert counted["ToDo"] == counted["averaged keys"] == counted["merged keys"]
    assert counted["merged keys, pairs found"] > counted["merged keys"]


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_a_block_merges_the_given_share_and_leaves_nothing(name, small_models):
    point = Point("block", name, "float32", 1, 256, 256, 16, 0.7, 2)
    plain, merged = taking_part.block_calls(point, "cpu")
    with torch.no_grad():
        before = plain.calls[0].run()
        with merged.applied() as model:
            outputs = [call.run() for call in merged.calls]
            found = catome.summary(model)
            assert [attention.found_at for attention in found.attentions] == [(0,)] * len(found.attentions)
            assert found.merged_share == pytest.approx(0.7, abs=0.01)
        assert before.isfinite().all()
        assert not torch.equal(outputs[1], before)
        assert torch.equal(plain.calls[0].run(), before)


def test_layers_are_measured_and_compared(small_models, tmp_path, capsys):
    assert (
        main(
            [
                "--suite",
                "attention",
                "block",
                "--size",
                "256",
                "--share",
                "0.7",
                "--rounds",
                "2",
                "--output",
                str(tmp_path),
            ]
        )
        == 0
    )
    rows = Store(BENCH, tmp_path, None).find()
    assert set(rows["architecture"]) == {"sd15", "flux", "pixart"}
    assert rows["seconds"].notna().all()
    table = summary(rows)
    own = table[(table["method"] == "merged keys") & (table["suite"] == "attention")]
    assert own["unmerged"].notna().all()
    assert own["ToDo"].notna().all()
    printed = capsys.readouterr().out
    assert "flux block at 1024 px, keys merged" in printed
