"""Solutions of the exercises in 2_a_threshold.ipynb."""

import numpy as np
import torch


def above_threshold(similarity, tokens, threshold):
    """Which src tokens are merged ``[B, S]``, and their share of all tokens ``[B]``."""
    merged = similarity >= threshold
    # the sum is over one image: nothing crosses the batch
    return merged, merged.sum(1) / tokens


def fixed_share_instead(similarity, threshold):
    """Pairs of a fixed share, the weakest ``[B]``, and those that it misses ``[B]``."""
    counts = (similarity >= threshold).sum(1)
    # in integers: a mean in float32 may fall just short of a whole number
    pairs = int(counts.sum()) // len(counts)
    ordered = similarity.sort(dim=1, descending=True).values
    nothing = torch.full((len(counts),), torch.inf)
    weakest = ordered[:, pairs - 1] if pairs else nothing
    return pairs, weakest, (counts - pairs).clamp(min=0)


def batch_maximum(similarity, threshold):
    """Who is merged ``[B, S]`` if all images merge as many as the one with most."""
    most = int((similarity >= threshold).sum(1).max())
    chosen = similarity.topk(most, dim=1).indices
    return torch.zeros_like(similarity, dtype=torch.bool).scatter(1, chosen, True)


def leaks(rule, similarity):
    """Which images ``[B]`` a rule decides otherwise in the batch than alone."""
    together = rule(similarity)
    # slices keep the batch dimension, so that the rule sees a batch of one
    alone = torch.cat([rule(similarity[i : i + 1]) for i in range(len(similarity))])
    return (together != alone).any(dim=1)


def paired_interval(a, b, resamples=2000, seed=0):
    """Mean of ``a - b`` ``[n]`` and its 95 % interval, by the paired bootstrap."""
    # first of all: whatever makes an image easy or hard for both cancels here
    difference = np.asarray(a) - np.asarray(b)
    rng, n = np.random.default_rng(seed), len(difference)
    means = difference[rng.integers(n, size=(resamples, n))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(difference.mean()), float(low), float(high)
