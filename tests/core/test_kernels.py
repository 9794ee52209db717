"""The Triton kernels against the torch versions: on the interpreter where there is no GPU, else on the
GPU."""

import pytest
import torch

import catome
from catome.tensors import kernels, plan
from catome.tensors.matching import best_matches_of, split_tokens

pytest.importorskip("triton")
GPU = torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
DEVICE = "cuda" if GPU else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def tokens(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


@pytest.fixture
def plain(monkeypatch):
    """Take the kernels away, so that the torch versions run wherever the tensors are."""
    monkeypatch.setattr(kernels, "usable", lambda x: False)


@pytest.fixture
def everywhere(monkeypatch):
    """Let the library call the kernels on the CPU as well."""
    monkeypatch.setattr(kernels, "usable", lambda x: x.dtype in kernels.DTYPES)


@pytest.mark.parametrize("measure", ["cosine", "distance"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("images", "grid", "channels", "stride"),
    [(1, (8, 8), 16, (2, 2)), (3, (9, 7), 40, (2, 2)), (2, (16, 24), 72, (4, 3)), (1, (2, 2), 320, (2, 2))],
)
def test_matching(plain, dtype, images, grid, channels, stride, measure):
    x = tokens(images, grid[0] * grid[1], channels, dtype=dtype)
    src, dst = split_tokens(grid, stride, device=x.device)
    similarity, best = kernels.best_matches_of(x, src, dst, measure)
    expected, partner = best_matches_of(x, src, dst, measure)
    assert torch.allclose(similarity, expected, atol=4e-6)
    same = best == partner
    exact = x.double()
    a, b = exact[:, src], exact.gather(1, best[..., None].expand(-1, -1, channels))
    found = torch.cosine_similarity(a, b, dim=-1)
    if measure == "distance":
        found = 1 - (a - b).square().sum(-1) / (2 * exact.var(1, correction=0).sum(-1, keepdim=True))
    # where they differ, two dst tokens are equally similar
    assert torch.allclose(found, expected.double(), atol=4e-6)
    assert same.float().mean() > 0.99


def test_matching_of_strided_tokens(plain):
    x = tokens(2, 24, 64).transpose(1, 2)  # [B, N, C] of channels-first memory
    src, dst = split_tokens((8, 8), device=x.device)
    assert not x.is_contiguous()
    for found, expected in zip(
        kernels.best_matches_of(x, src, dst), best_matches_of(x, src, dst), strict=True
    ):
        assert torch.allclose(found.double(), expected.double(), atol=2e-6)


@pytest.mark.parametrize("measure", ["cosine", "distance"])
def test_matching_of_tokens_that_are_not_finite_or_zero(plain, measure):
    x = tokens(2, 64, 24)
    src, dst = split_tokens((8, 8), device=x.device)
    x[0, dst[3]] = float("nan")
    x[0, dst[4], 5] = float("inf")
    x[0, src[7], 0] = -float("inf")
    x[1, src[2]] = 0
    x[1, dst[1]] = 0
    similarity, best = kernels.best_matches_of(x, src, dst, measure)
    expected, partner = best_matches_of(x, src, dst, measure)
    assert torch.allclose(similarity, expected, atol=4e-6, equal_nan=True)
    assert similarity[0, 7].isnan()
    assert similarity[1, 2] == 0 or measure == "distance"
    finite = ~expected.isnan() & (expected != 0)
    assert torch.equal(best[finite], partner[finite])
    assert not {int(dst[3]), int(dst[4])} & set(best[0].tolist())
    x[0, dst] = float("nan")
    similarity, best = kernels.best_matches_of(x, src, dst, measure)
    assert (similarity[0].isnan() | (similarity[0] == -float("inf"))).all()
    assert set(best[0].tolist()) <= set(dst.tolist())


def test_of_equal_dst_tokens_the_first_is_taken(plain):
    x = tokens(1, 64, 16)
    src, dst = split_tokens((8, 8), device=x.device)
    x[:, dst[2:9]] = x[:, src[:1]]
    assert kernels.best_matches_of(x, src, dst)[1][0, 0] == dst[2]


def plans():
    """Plans with ragged lengths, nothing merged, everything merged, one group that holds nearly all
    tokens."""
    x = tokens(3, 64, 16)
    yield "ragged", catome.match(x, (8, 8), threshold=0.35)
    yield "nothing", catome.match(x, (8, 8), threshold=0.999)
    yield "everything", catome.match(x, (8, 8), threshold=-1.0)
    yield "a share", catome.match(x, (8, 8), ratio=0.5)
    sky = plan.pack(torch.tensor([[0] * 60 + [60, 61, 62, 63], list(range(64)), [63] * 64], device=DEVICE))
    yield "a sky", sky


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [16, 40, 320])
def test_merge_and_unmerge(plain, dtype, channels):
    for name, made in plans():
        x = tokens(3, 64, channels, dtype=dtype, seed=1)
        packed_tokens = kernels.merge(x, *made.groups)
        expected = made.merge(x)
        rounding = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
        assert packed_tokens.dtype == dtype
        assert torch.allclose(packed_tokens.double(), expected.double(), rtol=rounding, atol=rounding), name
        assert torch.equal(kernels.unmerge(packed_tokens, made.slot), made.unmerge(packed_tokens)), name
        assert torch.equal(kernels.merge(x, *made.groups), packed_tokens), "two runs differ"


def test_merge_of_strided_tokens(plain):
    _, made = next(plans())
    x = tokens(3, 40, 64).transpose(1, 2)
    assert torch.allclose(kernels.merge(x, *made.groups), made.merge(x), atol=1e-6)


def test_a_token_that_is_not_finite_spoils_its_group_only(plain):
    _, made = next(plans())
    x = tokens(3, 64, 24)
    x[1, 10] = float("nan")
    found = kernels.merge(x, *made.groups)
    assert set(found.isnan().any(1).nonzero().flatten().tolist()) == {int(made.slot[1, 10])}


def test_groups_are_the_slots(plain):
    for _, made in plans():
        order, bounds = made.groups
        assert sorted(order.tolist()) == list(range(made.slot.numel()))
        for slot in range(sum(made.lengths)):
            members = order[bounds[slot] : bounds[slot + 1]]
            assert torch.equal(members, (made.slot.flatten() == slot).nonzero().flatten())
        assert made.bounds.tolist() == [0, *torch.tensor(made.lengths).cumsum(0).tolist()]


def test_what_the_kernels_do_not_take():
    assert not kernels.usable(torch.zeros(1))
    assert kernels.usable(torch.zeros(1, device="cuda")) if GPU else True
    if GPU:
        assert not kernels.usable(torch.zeros(1, device="cuda", dtype=torch.float64))
        assert not kernels.usable(torch.zeros(1, device="cuda", requires_grad=True))
        with torch.no_grad():
            assert kernels.usable(torch.zeros(1, device="cuda", requires_grad=True))


def test_of_equal_dst_tokens_in_different_blocks_the_first_is_taken():
    """The search goes over dst tokens block by block; a tie between two blocks goes to the earlier one."""
    tokens = (
        torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0)).to(DEVICE).repeat(1, 32 * 32, 1)
    )
    src, dst = split_tokens((32, 32), (2, 2), device=DEVICE)
    assert len(dst) == 256
    _, best = kernels.best_matches_of(tokens, src, dst)
    assert (best == dst[0]).all()
    tokens[0, dst[:128]] *= -1  # nothing in the first blocks comes near
    _, best = kernels.best_matches_of(tokens, src, dst)
    assert (best == dst[128]).all()


@pytest.mark.skipif(GPU, reason="the embedded model is compared on the CPU")
@pytest.mark.slow
@pytest.mark.parametrize("amount", [{"ratio": 0.5}, {"threshold": 0.9}])
def test_a_generation_by_kernels_is_that_by_torch(generate, pipe, monkeypatch, amount):
    names, steps = ["lighthouse"], 2
    with catome.patched(pipe, catome.PAPER, schedule=(0,), **amount):
        expected = generate(names, steps=steps, height=64, width=64)
    calls = []
    for name in ("best_matches_of", "merge", "unmerge"):
        real = getattr(kernels, name)
        monkeypatch.setattr(
            kernels, name, lambda *a, real=real, name=name: calls.append((name, len(a))) or real(*a)
        )
    monkeypatch.setattr(kernels, "usable", lambda x: x.dtype in kernels.DTYPES)
    with catome.patched(pipe, catome.PAPER, schedule=(0,), **amount), catome.probe(pipe):
        found = generate(names, steps=steps, height=64, width=64)
    assert {name for name, _ in calls} == {"best_matches_of", "merge", "unmerge"}
    assert abs(found - expected).max() < 2e-3


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("config", [catome.PAPER, catome.RECOMMENDED], ids=["PAPER", "RECOMMENDED"])
@pytest.mark.parametrize("amount", [{"ratio": 0.5}, {"threshold": 0.2}])
def test_a_unet_in_half_precision_on_the_gpu(amount, config):
    """A small U-Net: the kernels against the torch versions in float64."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=16,
    ).eval()
    sample, context = torch.randn(3, 4, 32, 32), torch.randn(3, 7, 32)
    timetable = torch.arange(1000, 900, -10)
    outputs = {}
    for name, device, dtype in (("reference", "cpu", torch.float64), ("gpu", "cuda", torch.float16)):
        unet.to(device, dtype)
        with torch.no_grad(), catome.patched(unet, config, schedule=(0,), **amount):
            x, c, t = sample.to(device, dtype), context.to(device, dtype), timetable.to(device)
            outputs[name] = [unet(x, t[step], c).sample.cpu().double() for step in range(2)]
    for found, expected in zip(outputs["gpu"], outputs["reference"], strict=True):
        assert (found - expected).norm() / expected.norm() < 2e-2


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_a_cached_step_does_not_wait_for_the_gpu():
    x = tokens(2, 4096, 320, dtype=torch.float16)
    made = catome.match(x, (64, 64), ratio=0.5)
    made.unmerge(made.merge(x))
    torch.cuda.set_sync_debug_mode("error")
    try:
        made.unmerge(made.merge(x))
        catome.match(x, (64, 64), ratio=0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
