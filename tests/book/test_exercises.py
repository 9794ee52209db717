"""The exercise notebooks: checks refuse the stubs and typical mistakes, and take the solutions."""

import ast
import copy
import inspect
import itertools
import json
import math
import os
import time

import nbformat
import numpy as np
import pytest
import torch
from IPython.core.magics.code import extract_symbols
from nbclient import NotebookClient

import catome
from catome.policy.staleness import derive, total_staleness
from helpers.paths import ROOT

FOLDER = ROOT / "notebooks" / "exercises"
EXERCISES = sorted(FOLDER.glob("*.ipynb"))


# Typical mistakes: `name__what_is_wrong` takes the place of the function `name`.


def split_grid__takes_cut_off_windows(grid):
    height, width = grid
    tokens = torch.arange(height * width)
    is_dst = (tokens // width % 2 == 0) & (tokens % width % 2 == 0)
    return tokens[~is_dst], tokens[is_dst]


def split_grid__lists(grid):
    height, width = grid
    dst = [y * width + x for y in range(0, height - 1, 2) for x in range(0, width - 1, 2)]
    return [token for token in range(height * width) if token not in dst], dst


def best_partners__swapped(tokens, src, dst):
    unit = torch.nn.functional.normalize(tokens, dim=1)
    similarity, place = (unit[src] @ unit[dst].T).max(dim=1)
    return similarity, dst[place]


def best_partners__by_dot_product(tokens, src, dst):
    similarity, place = (tokens[src] @ tokens[dst].T).max(dim=1)
    return dst[place], similarity


def best_partners__places_among_dst(tokens, src, dst):
    unit = torch.nn.functional.normalize(tokens, dim=1)
    similarity, place = (unit[src] @ unit[dst].T).max(dim=1)
    return place, similarity


def choose_pairs__share_of_src(src, best, similarity, tokens, ratio):
    target = torch.arange(tokens)
    merged = similarity.topk(int(ratio * len(src))).indices
    target[src[merged]] = best[merged]
    return target


def merge__weighs_the_dst_as_all_src(x, target):
    kept = (target == torch.arange(len(target))).nonzero()[:, 0]
    rows = []
    for token in kept.tolist():
        src = [i for i in (target == token).nonzero()[:, 0].tolist() if i != token]
        rows.append((x[token] + x[src].mean(0)) / 2 if src else x[token])
    return torch.stack(rows)


def merge__pair_by_pair(x, target):
    y = x.clone()
    for token, into in enumerate(target.tolist()):
        if token != into:
            y[into] = (y[into] + y[token]) / 2
    return y[target == torch.arange(len(target))]


def unmerge__to_dst_only(y, target):
    x = torch.zeros(len(target), y.shape[1])
    x[target == torch.arange(len(target))] = y
    return x


def unmerge__by_token(y, target):
    return y[target]


def above_threshold__batch_maximum(similarity, tokens, threshold):
    most = int((similarity >= threshold).sum(1).max())
    merged = torch.zeros_like(similarity, dtype=torch.bool).scatter(
        1, similarity.topk(most, dim=1).indices, True
    )
    return merged, merged.sum(1) / tokens


def above_threshold__share_of_src(similarity, tokens, threshold):
    merged = similarity >= threshold
    return merged, merged.float().mean(1)


def fixed_share_instead__as_many_as_the_most(similarity, threshold):
    counts = (similarity >= threshold).sum(1)
    pairs = int(counts.max())
    weakest = similarity.sort(dim=1, descending=True).values[:, pairs - 1]
    return pairs, weakest, (counts - pairs).clamp(min=0)


def batch_maximum__exact(similarity, threshold):
    return similarity >= threshold


def leaks__turns_the_batch_around(rule, similarity):
    return (rule(similarity) != rule(similarity.flip(0)).flip(0)).any(dim=1)


def paired_interval__draws_each_by_itself(a, b, resamples=2000, seed=0):
    rng, n = np.random.default_rng(seed), len(a)
    means = a[rng.integers(n, size=(resamples, n))].mean(1) - b[rng.integers(n, size=(resamples, n))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float((a - b).mean()), float(low), float(high)


def paired_interval__of_single_images(a, b, resamples=2000, seed=0):
    drawn = np.random.default_rng(seed).choice(a - b, resamples)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float((a - b).mean()), float(low), float(high)


def jaccard_distance__of_src_alone(p, q):
    p, q = set(p[:, 0].tolist()), set(q[:, 0].tolist())
    return 1 - len(p & q) / len(p | q) if p | q else 0.0


def jaccard_distance__of_nothing(p, q):
    p, q = (set(map(tuple, pairs.tolist())) for pairs in (p, q))
    return 1 - len(p & q) / len(p | q)


def staleness_matrix__lists(pairs, distance):
    return [[distance(p, q) for q in pairs] for p in pairs]


def staleness_matrix__adds_up_neighbours(pairs, distance):
    steps = [0.0, *(distance(p, q) for p, q in itertools.pairwise(pairs))]
    age = np.cumsum(steps)
    return np.abs(age[:, None] - age)


def paid__by_the_nearest_checkpoint(staleness, schedule):
    steps = range(len(staleness))
    return np.array(
        [staleness[min((c for c in schedule if c in steps), key=lambda c: abs(c - j)), j] for j in steps]
    )


def paid__for_neighbours(staleness, schedule):
    return np.array([0.0 if j in schedule else staleness[j - 1, j] for j in range(len(staleness))])


def best_schedule__greedy(staleness, checkpoints):
    schedule = [0]
    while len(schedule) < checkpoints:
        rest = [step for step in range(len(staleness)) if step not in schedule]
        schedule.append(min(rest, key=lambda step: total_staleness(staleness, [*schedule, step])))
    return tuple(sorted(schedule))


def honest_price__of_a_schedule_that_saw_all(matrices, checkpoints):
    schedule = derive(matrices.mean(axis=0), checkpoints)
    price = float(np.mean([total_staleness(matrix, schedule) for matrix in matrices])) / matrices.shape[1]
    return price, price


def attention_work__counts_multiply_adds(queries, keys, channels, heads, itemsize, fused):
    moved = (2 * queries + 2 * keys) * channels * itemsize
    return 2 * queries * keys * channels, moved + (0 if fused else 4 * heads * queries * keys * itemsize)


def least_seconds__adds_up_flops(flops, moved, flops_per_s, bytes_per_s):
    return float(flops.sum() / flops_per_s), moved / bytes_per_s > flops / flops_per_s


def speedup__mean_of_the_parts(seconds, left):
    return sum(1 / left.get(part, 1.0) if left.get(part, 1.0) else math.inf for part in seconds) / len(
        seconds
    )


def time_in_turns__one_after_the_other(first, second, rounds, clock=time.perf_counter):
    medians = []
    for run in (first, second):
        run()
        samples = []
        for _ in range(rounds):
            began = clock()
            run()
            samples.append(clock() - began)
        medians.append(float(np.median(samples)))
    return medians[0], medians[1], medians[0] / medians[1]


def time_in_turns__by_means(first, second, rounds, clock=time.perf_counter):
    first()
    second()
    seconds = np.zeros((rounds, 2))
    for row in seconds:
        for place, run in enumerate((first, second)):
            began = clock()
            run()
            row[place] = clock() - began
    return (
        float(seconds[:, 0].mean()),
        float(seconds[:, 1].mean()),
        float((seconds[:, 0] / seconds[:, 1]).mean()),
    )


def downsampled_keys__every_fourth_token(
    attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None
):
    query, fewer = attn.to_q(hidden_states), hidden_states[:, ::4]
    query, key, value = (
        x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (query, attn.to_k(fewer), attn.to_v(fewer))
    )
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    return attn.to_out[1](attn.to_out[0](out))


def downsampled_keys__adds_its_input(
    attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None
):
    edge = math.isqrt(hidden_states.shape[1])
    fewer = hidden_states.unflatten(1, (edge, edge))[:, ::2, ::2].flatten(1, 2)
    return hidden_states + attn(hidden_states, encoder_hidden_states=fewer)


def group_sizes__of_src_alone(target):
    own = torch.arange(len(target))
    return torch.stack([((target == token) & (own != token)).sum() for token in own[target == own]])


def group_sizes__of_every_token(target):
    return torch.bincount(target)[target]


def group_sizes__keeps_zeros(target):
    return torch.bincount(target, minlength=len(target))


def weighted_attention__multiplied_after_the_softmax(query, key, value, size):
    return ((query @ key.T / math.sqrt(query.shape[1])).softmax(1) * size) @ value


def weighted_attention__size_instead_of_its_logarithm(query, key, value, size):
    return (query @ key.T / math.sqrt(query.shape[1]) + size).softmax(1) @ value


def weighted_attention__divides_the_logarithm(query, key, value, size):
    return ((query @ key.T + size.log()) / math.sqrt(query.shape[1])).softmax(1) @ value


def weighted_attention__divides_twice(query, key, value, size):
    query = query / math.sqrt(query.shape[1])
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=size.log()[None])


def weighted_attention__weighs_the_values_too(query, key, value, size):
    return (query @ key.T / math.sqrt(query.shape[1]) + size.log()).softmax(1) @ (size[:, None] * value)


def attend_merged__merges_the_queries(query, key, value, target):
    slot = ((target == torch.arange(len(target))).cumsum(0) - 1)[target]
    size = torch.bincount(slot)
    mean = [
        torch.zeros(len(size), x.shape[1]).index_add_(0, slot, x) / size[:, None] for x in (query, key, value)
    ]
    return torch.nn.functional.scaled_dot_product_attention(*mean, attn_mask=size.log()[None])[slot]


def attend_merged__weights_of_src(query, key, value, target):
    kept = target == torch.arange(len(target))
    slot = (kept.cumsum(0) - 1)[target]
    size = torch.bincount(target, minlength=len(target))
    mean = [
        torch.zeros(kept.sum(), x.shape[1]).index_add_(0, slot, x) / size[kept, None] for x in (key, value)
    ]
    return torch.nn.functional.scaled_dot_product_attention(query, *mean, attn_mask=size[~kept].log()[None])


def attend_merged__divides_twice(query, key, value, target):
    slot = ((target == torch.arange(len(target))).cumsum(0) - 1)[target]
    size = torch.bincount(slot)
    mean = [
        torch.zeros(len(size), x.shape[1]).index_add_(0, slot, x / size[slot, None]) for x in (key, value)
    ]
    mean = [x / size[:, None] for x in mean]
    return torch.nn.functional.scaled_dot_product_attention(query, *mean, attn_mask=size.log()[None])


def attend_merged__weighs_every_member(query, key, value, target):
    slot = ((target == torch.arange(len(target))).cumsum(0) - 1)[target]
    size = torch.bincount(slot)
    mean = [
        (torch.zeros(len(size), x.shape[1]).index_add_(0, slot, x) / size[:, None])[slot]
        for x in (key, value)
    ]
    return torch.nn.functional.scaled_dot_product_attention(query, *mean, attn_mask=size[slot].log()[None])


def attend_merged__without_weights(query, key, value, target):
    slot = ((target == torch.arange(len(target))).cumsum(0) - 1)[target]
    size = torch.bincount(slot)
    mean = [torch.zeros(len(size), x.shape[1]).index_add_(0, slot, x) / size[:, None] for x in (key, value)]
    return torch.nn.functional.scaled_dot_product_attention(query, *mean)


def change_by_share__share_of_src(targets, attend):
    own = torch.arange(len(targets[0]))
    plain = attend(own, True)
    off = [[float((attend(t, w) - plain).norm() / plain.norm()) for t in targets] for w in (False, True)]
    return [float((t != own).sum() / (0.75 * len(own))) for t in targets], *off


def change_by_share__from_the_first_map(targets, attend):
    own = torch.arange(len(targets[0]))
    off = [
        [float((attend(t, w) - attend(targets[0], w)).norm() / attend(own, w).norm()) for t in targets]
        for w in (False, True)
    ]
    return [float((t != own).float().mean()) for t in targets], *off


def change_by_share__weighted_against_once(targets, attend):
    own = torch.arange(len(targets[0]))
    plain = attend(own, True)
    once = [float((attend(t, False) - plain).norm() / plain.norm()) for t in targets]
    weighted = [float((attend(t, True) - attend(t, False)).norm() / attend(t, False).norm()) for t in targets]
    return [float((t != own).float().mean()) for t in targets], once, weighted


def change_by_share__weighs_both(targets, attend):
    own = torch.arange(len(targets[0]))
    plain = attend(own, True)
    off = [float((attend(t, True) - plain).norm() / plain.norm()) for t in targets]
    return [float((t != own).float().mean()) for t in targets], off, off


def fair_threshold__keeps_the_queries_of_tome(similarity, tokens, thresholds, ratio):
    budget = 1 - int(ratio * tokens) / tokens
    left = [1 - float((similarity >= t).sum(1).float().mean()) / tokens for t in thresholds]
    return (
        budget,
        left,
        max((t for t, share in zip(thresholds, left, strict=True) if share <= budget), default=None),
    )


def fair_threshold__squares_both(similarity, tokens, thresholds, ratio):
    budget = (1 - int(ratio * tokens) / tokens) ** 2
    left = [(1 - float((similarity >= t).sum(1).float().mean()) / tokens) ** 2 for t in thresholds]
    return (
        budget,
        left,
        max((t for t, share in zip(thresholds, left, strict=True) if share <= budget), default=None),
    )


def fair_threshold__share_of_src(similarity, tokens, thresholds, ratio):
    budget = (1 - int(ratio * tokens) / tokens) ** 2
    left = [1 - float((similarity >= t).float().mean()) for t in thresholds]
    return (
        budget,
        left,
        max((t for t, share in zip(thresholds, left, strict=True) if share <= budget), default=None),
    )


def fair_threshold__takes_the_lowest(similarity, tokens, thresholds, ratio):
    budget = (1 - int(ratio * tokens) / tokens) ** 2
    left = [1 - float((similarity >= t).sum(1).float().mean()) / tokens for t in thresholds]
    return (
        budget,
        left,
        min((t for t, share in zip(thresholds, left, strict=True) if share <= budget), default=None),
    )


def pair_error__without_the_weight(query, key, value, e):
    attend = torch.nn.functional.scaled_dot_product_attention
    plain = attend(query, torch.cat([key[:1] + e, key[:1] - e, key[1:]]), torch.cat([value[:1], value]))
    return float((attend(query, key, value) - plain).norm() / plain.norm())


def pair_error__keeps_one_of_the_pair(query, key, value, e):
    attend = torch.nn.functional.scaled_dot_product_attention
    values = torch.cat([value[:1], value])
    plain = attend(query, torch.cat([key[:1] + e, key[:1] - e, key[1:]]), values)
    merged = attend(query, torch.cat([key[:1] + e, key[:1] + e, key[1:]]), values)
    return float((merged - plain).norm() / plain.norm())


def pair_error__without_the_root(query, key, value, e):
    attend = torch.nn.functional.scaled_dot_product_attention
    values = torch.cat([value[:1], value])
    plain = attend(query, torch.cat([key[:1] + e, key[:1] - e, key[1:]]), values)
    merged = attend(query, torch.cat([key[:1], key]), values)
    return float(((merged - plain) ** 2).sum() / (plain**2).sum())


def merge_in_layers__in_all_of_them(layers, chosen, grid, ratio, run):
    with catome.merge_keys(grid, ratio=ratio) as seen:
        output = run()
    return output, seen.keys_left / seen.keys


def merge_in_layers__never_ends(layers, chosen, grid, ratio, run):
    opened = []

    def begin(*_):
        opened.append(catome.merge_keys(grid, ratio=ratio))
        opened[-1].__enter__()

    hooks = [layers[i].attn1.register_forward_pre_hook(begin) for i in chosen]
    output = run()
    for context in reversed(opened):
        context.__exit__(None, None, None)
    for hook in hooks:
        hook.remove()
    return output, 1 - 0.25 * len(chosen) / len(layers)


def merge_in_layers__up_to_the_last(layers, chosen, grid, ratio, run):
    opened = []

    def begin(*_):
        opened.append(catome.merge_keys(grid, ratio=ratio))
        opened[-1].__enter__()

    def end(*_):
        opened.pop().__exit__(None, None, None)

    hooks = [
        layers[chosen[0]].attn1.register_forward_pre_hook(begin),
        layers[chosen[-1]].attn1.register_forward_hook(end),
    ]
    output = run()
    for hook in hooks:
        hook.remove()
    return output, 1 - 0.25 * len(chosen) / len(layers)


def merge_in_layers__leaves_its_processors(layers, chosen, grid, ratio, run):
    def merging(before):
        def process(*args, **given):
            with catome.merge_keys(grid, ratio=ratio):
                return before(*args, **given)

        return process

    for i in chosen:
        layers[i].attn1.set_processor(merging(layers[i].attn1.processor))
    return run(), 1 - 0.25 * len(chosen) / len(layers)


def merge_in_layers__calls_the_last_layer(layers, chosen, grid, ratio, run):
    for i in chosen:
        own = layers[i].attn1.forward

        def merging(*args, **given):
            with catome.merge_keys(grid, ratio=ratio):
                return own(*args, **given)  # noqa: B023

        layers[i].attn1.forward = merging
    output = run()
    for i in chosen:
        del layers[i].attn1.forward
    return output, 1 - 0.25 * len(chosen) / len(layers)


def merge_in_layers__counts_those_that_merge(layers, chosen, grid, ratio, run):
    counts = [0, 0]

    def merging(before):
        def process(*args, **given):
            with catome.merge_keys(grid, ratio=ratio) as seen:
                output = before(*args, **given)
            counts[:] = counts[0] + seen.keys_left, counts[1] + seen.keys
            return output

        return process

    before = [layer.attn1.processor for layer in layers]
    for i in chosen:
        layers[i].attn1.set_processor(merging(before[i]))
    output = run()
    for layer, old in zip(layers, before, strict=True):
        layer.attn1.set_processor(old)
    return output, counts[0] / counts[1]


def merge_in_layers__squares_what_is_left(layers, chosen, grid, ratio, run):
    def merging(before):
        def process(*args, **given):
            with catome.merge_keys(grid, ratio=ratio):
                return before(*args, **given)

        return process

    before = [layer.attn1.processor for layer in layers]
    for i in chosen:
        layers[i].attn1.set_processor(merging(before[i]))
    output = run()
    for layer, old in zip(layers, before, strict=True):
        layer.attn1.set_processor(old)
    tokens = grid[0] * grid[1]
    left = (1 - int(ratio * tokens) / tokens) ** 2
    return output, (left * len(chosen) + len(layers) - len(chosen)) / len(layers)


SAID = {
    "split_grid__lists": "must be tensors, not list and list",
    "best_partners__swapped": "Are the two swapped?",
    "unmerge__by_token": "An index runs past the 3 rows of y",
    "jaccard_distance__of_nothing": "nothing can be divided by its size",
    "staleness_matrix__lists": "must be a NumPy array, not list",
    "group_sizes__of_src_alone": "You counted the src tokens alone",
    "group_sizes__of_every_token": "You give every token the size of its group",
    "group_sizes__keeps_zeros": "you keep zeros for them",
    "weighted_attention__multiplied_after_the_softmax": "weights after the softmax",
    "weighted_attention__size_instead_of_its_logarithm": "add log 3",
    "weighted_attention__divides_the_logarithm": "Only the product of query and key is divided",
    "weighted_attention__divides_twice": "Were they divided twice?",
    "weighted_attention__weighs_the_values_too": "values that were multiplied by their sizes as well",
    "attend_merged__merges_the_queries": "You merged the queries",
    "attend_merged__weights_of_src": "looked up at a src token",
    "attend_merged__divides_twice": "divided by the sizes twice?",
    "attend_merged__weighs_every_member": "six keys, each with the size of its group",
    "attend_merged__without_weights": "every group has one vote",
    "change_by_share__share_of_src": "the share is of all tokens",
    "change_by_share__from_the_first_map": "Do you compare with the first map",
    "change_by_share__weighted_against_once": "not the two with each other",
    "change_by_share__weighs_both": "are your groups weighted in this curve, too?",
    "fair_threshold__keeps_the_queries_of_tome": "You let ToMe keep its queries",
    "fair_threshold__squares_both": "You squared what is left",
    "fair_threshold__share_of_src": "3 of 6 would be the share of src",
    "fair_threshold__takes_the_lowest": "take the highest",
    "pair_error__without_the_weight": "Does the merged key have its weight?",
    "pair_error__keeps_one_of_the_pair": "It is the mean of both",
    "pair_error__without_the_root": "Did you forget the root",
    "merge_in_layers__in_all_of_them": "all five do",
    "merge_in_layers__never_ends": "all five do",
    "merge_in_layers__up_to_the_last": "layers [1, 2, 3] do",
    "merge_in_layers__leaves_its_processors": "Put back what was there before",
    "merge_in_layers__calls_the_last_layer": "the *last* value",
    "merge_in_layers__counts_those_that_merge": "take the mean over all five",
    "merge_in_layers__squares_what_is_left": "You squared what is left",
}
"""The words of the check of a mistake about this one, where it might as well say something else."""

MISTAKES = [made for name, made in list(globals().items()) if inspect.isfunction(made) and "__" in name]


def functions(source: str) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}


def tagged(notebook, tag: str) -> list:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def solutions(path) -> str:
    return (path.parent / "solutions" / f"{path.stem}.py").read_text()


def loaded(path, name: str) -> str:
    """The code that `%load -s name` puts into a cell."""
    (block,), missing = extract_symbols(solutions(path), name)
    assert not missing
    return block


def slips_in(name: str) -> list:
    return [made for made in MISTAKES if made.__name__.partition("__")[0] == name]


@pytest.fixture(scope="module")
def executed():
    """Each notebook is run once, with a check after each stub and each mistake, then with the solution in
    their place."""
    kept = {}

    def run(path):
        if path not in kept:
            notebook = nbformat.read(path, 4)
            check, cells = None, []
            for cell in notebook.cells:
                if cell in tagged(notebook, "exercise"):
                    check = next(
                        later
                        for later in notebook.cells[notebook.cells.index(cell) :]
                        if later in tagged(notebook, "check")
                    )
                    (name,) = functions(cell.source)
                    attempts = [("stub", cell.source)]
                    attempts += [
                        (m.__name__, inspect.getsource(m).replace(m.__name__, name)) for m in slips_in(name)
                    ]
                    for label, source in attempts:
                        cells.append(nbformat.v4.new_code_cell(source))
                        cells.append(
                            nbformat.v4.new_code_cell(check.source, metadata={"role": [label, name]})
                        )
                    cells.append(
                        nbformat.v4.new_code_cell(loaded(path, name), metadata={"role": ["solution", name]})
                    )
                elif cell.cell_type == "code":
                    cells.append(copy.deepcopy(cell))
                    cells[-1].metadata["role"] = ["solution", "check" if cell == check else "other"]
            for place, cell in enumerate(cells):
                cell["id"] = f"run-{place}"
            notebook.cells = cells
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
            client = NotebookClient(
                notebook,
                timeout=300,
                kernel_name="python3",
                allow_errors=True,
                resources={"metadata": {"path": str(FOLDER)}},
            )
            client.execute(env=environment)
            kept[path] = [cell for cell in notebook.cells if "role" in cell.metadata]
        return kept[path]

    return run


def error(cell) -> tuple[str, str]:
    return next(((o.ename, o.evalue) for o in cell.outputs if o.output_type == "error"), ("", ""))


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_exercises_are_stored_as_such(path):
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert len(notebook["metadata"]["description"]) > 40
    notebook = nbformat.read(path, 4)
    stubs = [functions(cell.source) for cell in tagged(notebook, "exercise")]
    assert all(len(stub) == 1 for stub in stubs)
    names = [name for stub in stubs for name in stub]
    assert 3 <= len(names) <= 7
    assert list(functions(solutions(path))) == names
    order = [
        tag
        for cell in notebook.cells
        for tag in cell.metadata.get("tags", [])
        if tag in ("exercise", "check")
    ]
    assert order == ["exercise", "check"] * len(names)
    page = (ROOT / "book" / "exercises.md").read_text()
    for stub in stubs:
        ((name, function),) = stub.items()
        solution = functions(solutions(path))[name]
        assert ast.unparse(function.args) == ast.unparse(solution.args)
        assert all(section in ast.get_docstring(function) for section in ("Args:", "Returns:")), name
        assert len(function.body) == 2, name
        assert ast.unparse(function.body[1]) == "...", name
        assert ast.get_docstring(solution), name
        assert functions(loaded(path, name)).keys() == {name}
        words = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        assert f"`%load -s {name} solutions/{path.stem}.py`" in words
        assert f"```{{literalinclude}} solutions/{path.stem}.py\n:pyobject: {name}\n" in words
    for cell in tagged(notebook, "exercise"):
        heading = next(
            line
            for before in reversed(notebook.cells[: notebook.cells.index(cell)])
            for line in before.source.splitlines()
            if line.startswith("## ")
        )
        assert heading.removeprefix("## ") in page


def test_there_are_mistakes_for_every_notebook():
    for path in EXERCISES:
        assert sum(len(slips_in(name)) for name in functions(solutions(path))) >= 2, path.stem
    assert all(
        any(made.__name__.partition("__")[0] in functions(solutions(path)) for path in EXERCISES)
        for made in MISTAKES
    )


@pytest.mark.book
@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_the_whole_notebook_runs_with_the_solutions(path, executed):
    cells = [cell for cell in executed(path) if cell.metadata["role"][0] == "solution"]
    assert [(error(cell), cell.source) for cell in cells if error(cell)[0]] == []
    checks = [cell for cell in cells if cell.metadata["role"][1] == "check"]
    assert len(checks) == len(functions(solutions(path)))
    assert all("Right" in "".join(o.get("text", "") for o in cell.outputs) for cell in checks)


@pytest.mark.book
@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_every_check_refuses_the_stub(path, executed):
    cells = {
        cell.metadata["role"][1]: error(cell) for cell in executed(path) if cell.metadata["role"][0] == "stub"
    }
    assert cells.keys() == functions(solutions(path)).keys()
    for name, (kind, says) in cells.items():
        assert (kind, f"{name} returns nothing yet" in says) == ("AssertionError", True), (name, says)


@pytest.mark.book
@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_checks_find_typical_mistakes_and_say_what_is_wrong(path, executed):
    found = {
        cell.metadata["role"][0]: error(cell) for cell in executed(path) if "__" in cell.metadata["role"][0]
    }
    assert len(found) >= 2
    for label, (kind, says) in found.items():
        assert kind == "AssertionError", (label, says)
        assert len(says) > 40, label
        assert SAID.get(label, "") in says, (label, says)
