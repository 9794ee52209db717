"""The examples of the reference run, and show what they say; every public name has one."""

import doctest
import re

import pytest

import catome
from catome.policy import rates
from helpers.paths import ROOT

API = (ROOT / "book/api.md").read_text()


def examples(page: str, pages: str = "pycon") -> list[str]:
    return re.findall(rf"^```{pages}\n(.*?)^```", page, re.M | re.S)


def failures(blocks: list[str]) -> str:
    """The complaints of a doctest of the blocks, in one namespace; empty if all is as it says."""
    names, said = {}, []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    for number, block in enumerate(blocks):
        test = doctest.DocTestParser().get_doctest(block, names, f"example {number}", None, 0)
        runner.run(test, out=said.append, clear_globs=False)
        names |= test.globs
    return "".join(said)


def test_every_example_of_the_reference_shows_what_it_does():
    blocks = examples(API)
    assert sum(block.count(">>>") for block in blocks) > 60
    assert failures(blocks) == ""


def test_a_wrong_example_is_found():
    assert "Expected:" in failures([">>> 1 + 1\n3\n"])
    assert failures([">>> a = 2\n", ">>> a\n2\n"]) == ""


def names_and_members() -> list[tuple[str, list[str]]]:
    """Each documented name of the reference with its listed members."""
    found = re.findall(r"^\.\. auto(?:function|class|data):: ([\w.]+)((?:\n   :.*)*)", API, re.M)
    return [
        (name, re.findall(r"\w+", (re.search(r":members: (.*)", options) or [""] * 2)[1]))
        for name, options in found
    ]


def test_the_reference_has_every_public_name():
    documented = {name.rsplit(".", 1)[1] for name, _ in names_and_members()}
    assert set(catome.__all__) - {"__version__"} <= documented
    assert set(catome.tiny.__all__) - {"CLASSES", "GUIDANCE_SCALE"} <= documented


@pytest.mark.parametrize(
    ("name", "members"), names_and_members(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_public_name_has_an_example(name, members):
    """It is used in an example, below its entry or further down. Classes that are only handed out show up by
    their members."""
    below = API[API.index(f":: {name}\n") :]
    code = "\n".join(examples(below))
    handed_out = {
        "Record": "record.",
        "Observation": "seen.",
        "Matches": "matches.",
        "MergePlan": "plan.",
        "register": "load_scene_net",
    }
    short = name.rsplit(".", 1)[1]
    assert re.search(rf"\b{short}\b", code) or handed_out.get(short, "-") in code, f"{name} has no example"
    for member in members:
        assert f".{member}" in code, f"{name}.{member} has no example"


def test_the_library_page_runs(monkeypatch, tmp_path, request):
    """Every block of the page, on the embedded model in place of the one that it loads."""
    import torch
    from diffusers import StableDiffusionPipeline

    from catome import tiny

    monkeypatch.setenv("CATOME_CACHE", str(tmp_path))  # it calibrates
    request.addfinalizer(rates._rates.cache_clear)
    page = (ROOT / "book/library.md").read_text()
    blocks, embedded = examples(page, "python"), tiny.load_pipeline()
    assert len(blocks) >= 3
    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", lambda *_, **__: embedded)
    monkeypatch.setattr(StableDiffusionPipeline, "to", lambda pipe, *_: pipe)
    call = StableDiffusionPipeline.__call__
    monkeypatch.setattr(
        StableDiffusionPipeline,
        "__call__",
        lambda pipe, prompt: call(pipe, prompt, num_inference_steps=12, generator=torch.Generator()),
    )
    x = torch.randn(2, 4096, 8)

    def attention(packed, lengths):
        assert len(packed) == sum(lengths)
        return packed

    names = {"tokens": x, "x": x, "attention": attention}
    for block in blocks:
        exec(block, names)
    assert names["y"].shape == x.shape
    assert names["image"].size == (128, 128)
    for line in re.findall(r"^\| .* \| `(catome\.apply_patch\(.*?\))`", page, re.M):
        exec(line, names | {"staleness": torch.rand(51, 51)})
