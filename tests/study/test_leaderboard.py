"""The leaderboard of a project week: entries good, bad and careless, and what is kept of them."""

import hashlib
import re
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import catome
from catome.patch import is_patched
from catome.study import leaderboard, methods
from catome.study.leaderboard import Guard, judge, main, read
from catome.study.measure.comparison import QUALITY
from catome.study.measure.scores import counted, without_merging
from catome.study.run.generate import generate_batch
from catome.study.run.store import Store
from catome.study.studies.frontier import SCORES, scores_left
from helpers.paths import ROOT
from helpers.sentences import assert_says
from helpers.settings import setting

SHIPPED = ROOT / "notebooks/exercises/leaderboard"

READY = """
from catome.study import methods

TITLE = "{title}"


def method():
    return methods.{method}
"""

OWN = """
from contextlib import contextmanager

from catome.study.methods import Method

TITLE = "{title}"


@contextmanager
def applied(pipe):
    {body}


def method():
    return Method("own", "own", applied)
"""

LEFT_ON = {
    "patch": "import catome; yield catome.apply_patch(pipe)",
    "hook": "pipe.unet.mid_block.register_forward_hook(lambda *_: None); yield pipe",
    "weights": "yield pipe; pipe.unet.conv_in.weight.data.mul_(2)",
    "processor": (
        "from diffusers.models.attention_processor import AttnProcessor; "
        "pipe.unet.set_attn_processor(AttnProcessor()); yield pipe"
    ),
    "scheduler": "pipe.scheduler.step = pipe.scheduler.step; yield pipe",
    "part": "import copy; pipe.vae = copy.deepcopy(pipe.vae); yield pipe",
    "class": "type(pipe.unet).enable_magic = lambda self: None; yield pipe",
    "torch": (
        "import torch; torch.nn.functional.scaled_dot_product_attention = lambda *_, **__: None; yield "
        "pipe; 1 / 0"
    ),
}


def write(folder, **entries):
    """Files of these names and texts."""
    folder.mkdir(exist_ok=True)
    for name, text in entries.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def ready(title, method):
    return READY.format(title=title, method=method)


def own(title, body):
    return OWN.format(title=title, body=body)


BASELINE = ready("Baseline", "todo(factor=2)")


@pytest.fixture
def no_generation(monkeypatch):
    def never(*_):
        pytest.fail("it was made again")

    for module in ("comparison", "scores"):
        monkeypatch.setattr(f"catome.study.measure.{module}.generate_batch", never)


@pytest.fixture(scope="module")
def judged(loaded, tmp_path_factory):
    """One leaderboard with entries of every kind; the careless one comes before the others of its batch."""
    base = tmp_path_factory.mktemp("leaderboard")
    entries = write(
        base / "entries",
        baseline=BASELINE,
        a_leaves_a_patch=own("Careless", LEFT_ON["patch"]),
        b_raises=own("Raises", "raise KeyError('late'); yield pipe"),
        c_cannot_be_read="TITLE = ",
        d_no_method=ready("Number", "todo").replace("methods.todo", "3"),
        fast=ready("Fast", "merged_keys(0.6, stride=(4, 4), compare='keys')"),
        too_much=ready("Too much", "todo(factor=2, rows=1)"),
    )
    asked = setting(base / "out", images=2, steps=2)
    return asked, entries, judge(loaded, asked, read(entries))


def titles(entries):
    return [entry.title for entry in entries]


def test_the_closest_within_the_limit_comes_first(judged):
    _, _, found = judged
    assert set(titles(found.within())) == {"Baseline", "Fast"}
    for entries in (found.within(), found.over()):
        closeness = [found.made.of(entry.method)["psnr"].mean() for entry in entries]
        assert closeness == sorted(closeness, reverse=True)
    assert titles(found.over()) == ["Too much"]
    left = {entry.title: found.scores[entry.method.label] for entry in found.entries}
    assert left["Baseline"] == 0.25
    assert left["Too much"] == 0.5
    assert 0 < left["Fast"] < 0.25


def test_the_table_says_what_the_rows_say(judged):
    _, _, found = judged
    head, *rows = found.table()
    assert head[:2] == ["rank", "title"]
    assert [row[0] for row in rows] == ["1", "2", "over"]
    assert [row[1] for row in rows] == titles([*found.within(), *found.over()])
    of = {entry.title: entry for entry in found.entries}
    for _, title, psnr, left, difference, verdict, _ in rows:
        mean = found.made.of(of[title].method)["psnr"].mean()
        assert psnr.startswith(f"{mean:.1f} dB [")
        assert left == f"{found.scores[of[title].method.label]:.3f}"
        if title == "Baseline":
            assert (difference, verdict) == ("-", "-")
        else:
            away = found.made.differences("psnr", of[title].method, of["Baseline"].method)
            assert difference.startswith(f"{away.mean():+.2f} [")
            assert verdict == "closer" if (away > 0).all() else verdict != "closer"
    report = found.report()
    assert_says(report, "over: more than 0.25 of the scores", "from 2 images", "narrower")


def test_one_that_fails_stops_no_other_and_is_told_why(judged, pipe):
    _, _, found = judged
    assert set(found.failed) == {
        "a_leaves_a_patch.py",
        "b_raises.py",
        "c_cannot_be_read.py",
        "d_no_method.py",
    }
    assert_says(found.failed["a_leaves_a_patch.py"], "RuntimeError", "left something", "taken off", "unet")
    assert found.failed["b_raises.py"] == "KeyError: 'late' (line 11)"
    assert found.failed["c_cannot_be_read.py"] == "SyntaxError: invalid syntax (c_cannot_be_read.py, line 1)"
    assert "must be a catome.study.methods.Method, not int" in found.failed["d_no_method.py"]
    assert not is_patched(pipe)
    assert all(f"  {file}: " in found.report() for file in found.failed)
    # what came after the careless ones was made on a clean pipeline
    alone = [generate_batch_of(pipe, method, judged[0]) for method in (methods.unmerged(), methods.todo(2))]
    expected = np.square((alone[0] * 255).round() - (alone[1] * 255).round()).mean(axis=(1, 2, 3))
    baseline = found.made.of(found.baseline.method)["psnr"].to_numpy(float)
    assert np.allclose(baseline, 10 * np.log10(255**2 / expected), atol=0.01)


def generate_batch_of(pipe, method, asked):
    with method.applied(pipe):
        return generate_batch(pipe, asked, range(asked.images))


def test_the_same_seed_computes_nothing_and_another_limit_neither(judged, pipe, no_generation):
    asked, entries, before = judged
    good = read(entries)
    good.read[:] = [entry for entry in good.read if entry.title not in ("Careless", "Raises")]
    found = judge(pipe, asked, good, limit=0.5)
    assert {row[1]: row[2:4] for row in found.table()} == {row[1]: row[2:4] for row in before.table()}
    assert set(titles(found.within())) == {"Baseline", "Fast", "Too much"}
    assert found.over() == []


def test_a_changed_file_is_judged_anew_and_no_other(judged, pipe, monkeypatch):
    asked, entries, before = judged
    changed = write(
        asked_folder(asked, "changed"),
        baseline=BASELINE,
        fast=(entries / "fast.py").read_text() + "# better\n",
    )
    made = []
    real = generate_batch

    def noted(pipe, chosen, images, *rest):
        made.append(list(images))
        return real(pipe, chosen, images, *rest)

    monkeypatch.setattr("catome.study.measure.comparison.generate_batch", noted)
    found = judge(pipe, asked, read(changed))
    assert made == [[0, 1]] * 2  # the unmerged images, and those of the file that was changed
    (fast,) = (entry for entry in found.entries if entry.title == "Fast")
    assert hashlib.sha256((changed / "fast.py").read_bytes()).hexdigest()[:16] in fast.method.label
    assert fast.method.label not in before.scores
    assert found.baseline.method.label in before.scores
    assert {fast.method.label, *before.scores} <= set(Store(QUALITY, asked.output, None).find()["method"])
    made.clear()
    judge(
        pipe,
        replace(asked, seed=8, images=1, steps=1),
        read(write(asked_folder(asked, "other"), baseline=BASELINE)),
    )
    assert made == [[0]] * 2  # another seed


def asked_folder(asked, name):
    return Path(asked.output).parent / name


def test_a_label_that_promises_nothing_is_generated_all_the_same(pipe, tmp_path):
    """Whoever calls a method of their own unmerged is not taken at their word."""
    liar = OWN.format(
        title="Unmerged", body=LEFT_ON["hook"].replace("unet.mid_block", "unet.nothing")
    ).replace('"own", "own"', '"unmerged", "unmerged"')
    found = judge(
        pipe, setting(tmp_path / "out", images=1, steps=1), read(write(tmp_path / "entries", liar=liar))
    )
    assert found.entries == []
    assert "AttributeError" in found.failed["liar.py"]
    assert found.report().startswith("No entry could be judged.")


@pytest.mark.parametrize(
    "method",
    [
        methods.merged_keys(0.6, stride=(4, 4), compare="keys"),
        methods.ca_tome(0.7, "CONFIG_3"),
    ],
    ids=lambda method: method.family,
)
def test_scores_are_those_that_the_library_tells_of_its_own(method, pipe, tmp_path):
    asked = setting(tmp_path, images=2, batch_size=2, steps=1)
    with counted(pipe, method.applied) as count:
        generate_batch(pipe, asked, range(2))
    told = scores_left(pipe, asked, method, recorded=None)
    assert count.found / without_merging(pipe, asked) == pytest.approx(told, abs=1e-9)


def by_hand(attn, hidden_states, encoder_hidden_states=None, **rest):
    """Attention as one writes it, with a softmax of one's own, and the second half of the keys ruled out by a
    mask."""
    context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    query, key, value = (
        attn.head_to_batch_dim(x) for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
    )
    scores = query @ key.transpose(1, 2) * attn.scale
    scores[..., scores.shape[-1] // 2 :] = -torch.inf
    return attn.to_out[0](attn.batch_to_head_dim(torch.softmax(input=scores, dim=-1) @ value))


def test_scores_of_attention_by_hand_by_mask_and_left_out(pipe, tmp_path):
    asked = setting(tmp_path, images=1, steps=1)
    whole = without_merging(pipe, asked)

    @contextmanager
    def in_place(make):
        before = pipe.unet.attn_processors
        pipe.unet.set_attn_processor({name: make if "attn1" in name else old for name, old in before.items()})
        try:
            yield pipe
        finally:
            pipe.unet.set_attn_processor(before)

    def masked(attn, hidden_states, encoder_hidden_states=None, **rest):
        query, key, value = (
            make(hidden_states).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for make in (attn.to_q, attn.to_k, attn.to_v)
        )
        mask = torch.arange(key.shape[2]) % 4 == 0
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask.expand(key.shape[2], -1)
        )
        return attn.to_out[0](out.transpose(1, 2).flatten(2))

    for make, share in (
        (by_hand, 0.5),
        (masked, 0.25),
        (lambda attn, hidden_states, **rest: hidden_states, 0.0),
    ):
        with counted(pipe, lambda pipe, make=make: in_place(make)) as count:
            generate_batch(pipe, asked, range(1))
        assert count.found / whole == share
    with counted(pipe, methods.fewer_steps(1).applied) as count:  # one call of the three
        generate_batch(pipe, replace(asked, steps=2), range(1))
    assert count.found / without_merging(pipe, replace(asked, steps=2)) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "method",
    [
        methods.merged_keys(0.7),
        methods.tome(0.5),
        methods.tomesd(0.5),
        methods.todo(2),
        methods.deep_cache(2),
        methods.fewer_steps(1),
        methods.forecast(2),
    ],
    ids=lambda method: method.family,
)
def test_the_ready_methods_leave_nothing_on(method, pipe, tmp_path):
    guard = Guard(pipe)
    with method.applied(pipe):
        assert guard.changed(pipe) is not None
        generate_batch(pipe, setting(tmp_path, images=1, steps=1), range(1))
    assert guard.changed(pipe) is None


@pytest.mark.parametrize("what", LEFT_ON)
def test_what_is_left_on_is_seen_and_taken_off(what, pipe, tmp_path):
    entries = read(write(tmp_path / "entries", careless=own("Careless", LEFT_ON[what])))
    attention = torch.nn.functional.scaled_dot_product_attention
    guard, counts = Guard(pipe), {}
    guarded = leaderboard._guarded(entries.read[0].method, guard, counts)
    with pytest.raises((RuntimeError, ZeroDivisionError)) as raised, guarded.applied(pipe):
        pass
    assert what == "torch" or "it left something on the pipeline" in str(raised.value)
    assert guard.changed(pipe) is None
    assert torch.nn.functional.scaled_dot_product_attention is attention
    assert not hasattr(type(pipe.unet), "enable_magic")
    assert not is_patched(pipe)
    assert counts == {}
    with methods.todo(2).applied(pipe):
        pass
    assert guard.changed(pipe) is None


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_the_command_draws_a_seed_and_tells_how_to_repeat_it(tmp_path, capsys, monkeypatch, no_generation):
    entries = write(tmp_path / "my entries", baseline="TITLE = 'Baseline'\nmethod = lambda: 1 / 0")
    drawn = []
    monkeypatch.setattr(leaderboard.secrets, "randbelow", lambda below: drawn.append(below) or 4711)
    status, out, _ = run(capsys, entries, "--images", 2, "--steps", 2, "--output", tmp_path / "out")
    assert (status, drawn) == (0, [leaderboard.SEEDS])
    assert "baseline.py: ZeroDivisionError: division by zero (line 2)" in out
    again = f"--seed 4711 --images 2 --steps 2 --output {tmp_path}/out"
    assert "Seed 4711" in out
    assert out.endswith(f" python -m catome.study.leaderboard '{entries}' {again}\n")
    assert run(capsys, entries, *again.split())[1] == out
    assert len(drawn) == 1


BAD = {
    "no folder": (
        "nowhere",
        (),
        "folder='nowhere' ",
        "a folder of entries, Python files with TITLE and method()",
    ),
    "empty": ({}, (), "holds no entry", "Python files (*.py) with TITLE and method()"),
    "no title": (
        {"a": "method = print"},
        (),
        "entry='a.py' has no TITLE",
        "a text of one line, at most 60 characters",
    ),
    "no method": ({"a": "TITLE = 'A'"}, (), "entry='a.py' has no method()", "define this function"),
    "a method that is none": ({"a": "TITLE = 'A'\nmethod = 3"}, (), "entry='a.py' has no method()"),
    "a number for a title": (
        {"a": "TITLE = 3\nmethod = print"},
        (),
        "TITLE of a.py=3 must be a text of one line, not int",
    ),
    "an empty title": (
        {"a": "TITLE = ' '\nmethod = print"},
        (),
        "TITLE=' ' of a.py must be a text of one line, at most 60",
    ),
    "a long title": (
        {"a": "TITLE = 'x' * 61\nmethod = print"},
        (),
        "of a.py must be a text of one line, at most 60",
    ),
    "two lines": (
        {"a": "TITLE = 'x\\ny'\nmethod = print"},
        (),
        "TITLE='x\\ny' of a.py must be a text of one line",
    ),
    "equal titles": (
        {"a": ready("A", "todo()"), "b": ready("A", "todo(3)")},
        (),
        "TITLE='A' ",
        "a.py and b.py",
        "once",
    ),
    "limit 0": (
        {"a": BASELINE},
        ("--limit", "0"),
        "limit=0 ",
        "above 0 and at most 1, a share of the scores",
    ),
    "limit above 1": ({"a": BASELINE}, ("--limit", "1.5"), "limit=1.5 must be above 0 and at most 1"),
    "limit nan": ({"a": BASELINE}, ("--limit", ".nan"), "limit=nan must be above 0 and at most 1"),
    "a word for a limit": ({"a": BASELINE}, ("--limit", "all"), "limit='all' must be a number, not str"),
    "no images": ({"a": BASELINE}, ("--images", "0"), "images=0 must be at least 1"),
    "half an image": ({"a": BASELINE}, ("--images", "1.5"), "images=1.5 must be an integer"),
    "no steps": ({"a": BASELINE}, ("--steps", "0"), "steps=0 must be at least 1"),
    "a negative seed": ({"a": BASELINE}, ("--seed", "-1"), "seed=-1 must be at least 0"),
    "no yaml": ({"a": BASELINE}, ("--seed", "["), "seed='[' must be a number"),
    "output": ({"a": BASELINE}, ("--output", __file__), "must be a folder that can be written to, or made"),
}


@pytest.mark.parametrize(
    ("entries", "options", "says"),
    [(entries, options, says) for entries, options, *says in BAD.values()],
    ids=BAD,
)
def test_bad_input_is_one_error_before_any_work(entries, options, says, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(leaderboard, "load", lambda *_: pytest.fail("it began to work"))
    folder = entries if isinstance(entries, str) else write(tmp_path / "entries", **entries)
    if "--output" not in options:
        options = (*options, "--output", tmp_path / "out")
    status, out, err = run(capsys, folder, *options)
    assert (status, out) == (2, "")
    assert err.startswith("python -m catome.study.leaderboard: error: ")
    assert_says(err, *says)
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_option_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as raised:
        main([str(tmp_path), "--sed", "3"])
    assert raised.value.code == 2
    assert "unrecognized arguments: --sed 3" in capsys.readouterr().err


def test_the_entries_of_the_repository(pipe, tmp_path):
    """They are read, the template is short, and each leaves what it says."""
    entries = read(SHIPPED)
    assert entries.failed == {}
    assert {entry.file.name for entry in entries.read} == {"baseline.py", "library.py", "own.py"}
    # no compiled files
    assert sorted(path.name for path in SHIPPED.iterdir()) == ["baseline.py", "library.py", "own.py"]
    asked = setting(tmp_path, images=1, steps=2)
    whole = without_merging(pipe, asked)
    left = {}
    for entry in entries.read:
        with counted(pipe, entry.method.applied) as count:
            generate_batch(pipe, asked, range(1))
        left[entry.file.stem] = count.found / whole
    assert left["baseline"] == left["own"] == 0.25
    assert left["library"] < 0.25
    lines = [line for line in (SHIPPED / "own.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= 36
    library = methods.named_configuration(catome.FAST, "EVEN_13")
    (recorded,) = Store(SCORES, tmp_path / "none").find(method=library.label, steps=50, images=12)[
        "scores_left"
    ]
    assert recorded < 0.25
    assert [entry.method.label.endswith(library.label) for entry in entries.read] == [False, True, False]


def test_make_hands_on_what_it_is_given(tmp_path):
    assert shutil.which("make")

    def told(*given):
        done = subprocess.run(["make", "-n", "leaderboard", *given], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return re.sub(r"[\s\\]+", " ", done.stdout)

    assert '-m catome.study.leaderboard "notebooks/exercises/leaderboard" --output' in told()
    assert 'leaderboard "theirs" --seed 3 --images 24 --output' in told(
        "ENTRIES=theirs", "SEED=3", "IMAGES=24"
    )
