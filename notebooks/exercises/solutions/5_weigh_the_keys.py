"""Solutions of the exercises in 5_weigh_the_keys.ipynb."""

import math

import torch

import catome


def group_sizes(target):
    """The number of tokens that each token that is left stands for: ``[N]`` to ``[L]``."""
    # a dst takes its own place, so it is counted among its members
    members = torch.bincount(target, minlength=len(target))
    # a token that is merged away has no members, and its 0 goes
    return members[target == torch.arange(len(target))]


def weighted_attention(query, key, value, size):
    """Attention ``[Q, d]`` over L keys, each of which counts ``size`` ``[L]`` times."""
    scores = query @ key.T / math.sqrt(query.shape[1])
    # after the division: votes are not scaled
    return (scores + size.log()).softmax(dim=1) @ value


def attend_merged(query, key, value, target):
    """Attention of all queries ``[N, d]`` over merged keys, weighted by group size."""
    kept = target == torch.arange(len(target))
    slot = (kept.cumsum(0) - 1)[target]  # for every token the row of its group
    size = torch.bincount(slot)

    def mean(x):
        total = torch.zeros(len(size), x.shape[1]).index_add_(0, slot, x)
        return total / size[:, None]

    # the queries stay as they are, so there is nothing to copy back
    scores = query @ mean(key).T / math.sqrt(query.shape[1])
    return (scores + size.log()).softmax(dim=1) @ mean(value)


def change_by_share(targets, attend):
    """Merged shares, and how far the result is off without and with weights: [M]."""
    own = torch.arange(len(targets[0]))
    plain = attend(own, True)  # nothing is merged, so weights make no difference
    share, once, weighted = [], [], []
    for target in targets:
        share.append(float((target != own).sum()) / len(own))
        for weights, curve in ((False, once), (True, weighted)):
            change = attend(target, weights) - plain
            curve.append(float(change.norm() / plain.norm()))
    return share, once, weighted


def fair_threshold(similarity, tokens, thresholds, ratio):
    """Scores that ToMe leaves, those that merged keys leave, and a fair threshold."""
    # ToMe merges queries as well as keys, hence the square
    budget = ((tokens - int(ratio * tokens)) / tokens) ** 2
    # merged keys: one factor only, for all queries are kept
    merged = [(similarity >= t).sum(1).double().mean() for t in thresholds]
    left = [1 - float(count) / tokens for count in merged]
    fair = [t for t, share in zip(thresholds, left, strict=True) if share <= budget]
    return budget, left, max(fair, default=None)


def pair_error(query, key, value, e):
    """The relative error of attention if keys ``k + e`` and ``k - e`` are one ``k``."""

    def attend(keys, values, size):
        scores = query @ keys.T / math.sqrt(query.shape[1])
        return (scores + size.log()).softmax(dim=1) @ values

    ones = torch.ones_like(key[:, 0])
    pair = torch.cat([key[:1] + e, key[:1] - e, key[1:]])
    plain = attend(pair, torch.cat([value[:1], value]), torch.cat([ones[:1], ones]))
    # the mean of the two keys is k itself, and it counts twice
    merged = attend(key, value, torch.cat([2 * ones[:1], ones[1:]]))
    return float((merged - plain).norm() / plain.norm())


def merge_in_layers(layers, chosen, grid, ratio, run):
    """Run a transformer with keys merged in some layers; also the scores left."""

    def merging(before):
        def process(*args, **given):
            # within one attention: the layers behind it are outside again
            with catome.merge_keys(grid, ratio=ratio):
                return before(*args, **given)

        return process

    attentions = [layers[place].attn1 for place in chosen]
    before = [attention.processor for attention in attentions]
    try:
        for attention in attentions:
            attention.set_processor(merging(attention.processor))
        output = run()
    finally:
        for attention, old in zip(attentions, before, strict=True):
            attention.set_processor(old)
    tokens = grid[0] * grid[1]
    # queries are kept, so a layer saves the share of its keys that are merged
    saved = int(ratio * tokens) / tokens
    return output, 1 - saved * len(chosen) / len(layers)
