"""Methods that are written from their papers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from catome.study import from_papers, methods
from catome.tensors.matching import best_matches
from catome.tensors.plan import make_plan, pack

GRID = (4, 6)


@pytest.fixture
def tokens():
    return torch.randn(2, 24, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def entered(pipe):
    """The inputs of the topmost self-attentions, and what their blocks get back: in running order."""
    from catome.models.unet import transformer_blocks

    seen = []
    handles = []

    def note(module, args, kwargs, output):
        hidden = args[0] if args else kwargs["hidden_states"]
        seen.append((hidden, kwargs.get("encoder_hidden_states"), output))

    for block in transformer_blocks(pipe.unet).values():
        handles.append(block.attn1.register_forward_hook(note, with_kwargs=True))
    yield seen
    for handle in handles:
        handle.remove()


def once(pipe, method):
    with method.applied(pipe):
        return pipe(
            "A high quality photograph of a beach.",
            num_inference_steps=1,
            output_type="np",
            generator=torch.Generator().manual_seed(0),
        ).images[0]


def test_pooling_makes_keys_of_the_means_of_windows(pipe, entered):
    once(pipe, methods.unmerged())
    hidden = entered[0][0]
    entered.clear()
    once(pipe, from_papers.average_pooling(2))
    queries, context, output = entered[0]
    torch.testing.assert_close(queries, hidden)
    assert output.shape == hidden.shape
    windows = hidden.view(len(hidden), 16, 2, 16, 2, -1).mean((2, 4)).flatten(1, 2)
    torch.testing.assert_close(context, windows)


@pytest.mark.parametrize("way", [from_papers.tofu, from_papers.sito])
def test_attention_runs_on_the_rest_and_every_token_gets_a_result(pipe, entered, way):
    once(pipe, way(0.5))
    assert len(entered) == 6
    below = entered.pop(2)  # the block in the middle has fewer tokens, and is left alone
    for hidden, context, output in [below, *entered]:
        assert hidden.shape[1] == (64 if hidden is below[0] else 512)
        assert context is None
        assert output.shape[1] == hidden.shape[1]


def test_a_pruned_token_copies_its_partner(pipe):
    seen = {}

    def look(depth, hidden, grid):
        plan = from_papers.similarity_plan(hidden, grid, 0.5, 0.1, torch.Generator().manual_seed(0))
        seen.setdefault("plan", plan)
        return from_papers.kept(hidden, plan), plan

    got = []
    from catome.models.unet import transformer_blocks

    first = next(iter(transformer_blocks(pipe.unet).values())).attn1
    with from_papers._with_fewer_tokens(look)(pipe):
        handle = first.register_forward_hook(lambda module, args, output: got.append(output))
        once(pipe, methods.unmerged())
        handle.remove()
    full = got[0]
    assert full.shape[1] == 1024
    target = seen["plan"].target
    copied = torch.gather(full, 1, target[..., None].expand_as(full))
    torch.testing.assert_close(full, copied)
    assert (target != torch.arange(1024)).sum(1).tolist() == [512] * len(target)


def test_tofu_prunes_first_and_merges_then(pipe, monkeypatch):
    called = []
    for name in ("kept", "mlerp"):
        own = getattr(from_papers, name)
        monkeypatch.setattr(
            from_papers,
            name,
            lambda hidden, plan, own=own, name=name: called.append(name) or own(hidden, plan),
        )
    once(pipe, from_papers.tofu(0.25))
    assert called[:5] == ["kept", "kept", "mlerp", "mlerp", "mlerp"]


def test_what_is_kept_is_kept_as_it_is(tokens):
    plan = make_plan(best_matches(tokens, GRID), ratio=0.5)
    rest = from_papers.kept(tokens, plan)
    for image in range(2):
        own = plan.target[image] == torch.arange(24)
        torch.testing.assert_close(rest[image], tokens[image][own])


def test_mlerp_keeps_the_direction_of_the_mean_and_the_longest_norm(tokens):
    plan = make_plan(best_matches(tokens, GRID), ratio=0.5)
    fused = from_papers.mlerp(tokens, plan)
    for image in range(2):
        for row, at in enumerate((plan.target[image] == torch.arange(24)).nonzero()[:, 0].tolist()):
            group = tokens[image][plan.target[image] == at]
            expected = F.normalize(group.mean(0), dim=0) * group.norm(dim=1).max()
            torch.testing.assert_close(fused[image, row], expected)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_sito_against_a_plain_loop(tokens, ratio):
    noise = 0.3
    plan = from_papers.similarity_plan(tokens, GRID, ratio, noise, torch.Generator().manual_seed(7))
    drawn = torch.randn(2, 24, generator=torch.Generator().manual_seed(7))
    for image in range(2):
        unit = tokens[image] / tokens[image].norm(dim=1, keepdim=True)
        cosines = unit @ unit.T
        score = cosines.sum(1)
        score = score + noise * score.std() * drawn[image]
        bases = []
        for top in range(0, GRID[0], 2):
            for left in range(0, GRID[1], 2):
                window = [(top + i) * GRID[1] + left + j for i in (0, 1) for j in (0, 1)]
                bases.append(max(window, key=lambda token: float(score[token])))
        partner = {
            token: max(bases, key=lambda base: float(cosines[token, base]))
            for token in range(24)
            if token not in bases
        }
        order = sorted(partner, key=lambda token: -float(cosines[token, partner[token]]))
        target = np.arange(24)
        for token in order[: int(ratio * 24)]:
            target[token] = partner[token]
        assert plan.target[image].tolist() == target.tolist()
    same = pack(plan.target)
    assert same.lengths == plan.lengths
    assert torch.equal(same.slot, plan.slot)


def test_nothing_stays_on_the_pipeline(pipe):
    before = once(pipe, methods.unmerged())
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in pipe.unet.modules()]
    ways = [from_papers.tofu(0.5), from_papers.sito(0.5), from_papers.average_pooling(2), methods.todo(2)]
    changed = [once(pipe, way) for way in ways]
    assert [
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in pipe.unet.modules()
    ] == hooks
    np.testing.assert_array_equal(once(pipe, methods.unmerged()), before)
    for image in changed:
        assert np.abs(image - before).max() > 1e-3
    # its noise begins with the method
    np.testing.assert_array_equal(once(pipe, from_papers.sito(0.5)), changed[1])


def test_grids_without_whole_windows_are_refused():
    with pytest.raises(ValueError, match=r"grid=\(3, 4\).*2x2"):
        from_papers.similarity_plan(torch.randn(1, 12, 4), (3, 4), 0.5, 0.1, torch.Generator())
