"""Solutions of the exercises in 4_what_it_is_worth.ipynb."""

import math
import time

import numpy as np
import torch


def attention_work(queries, keys, channels, heads, itemsize, fused):
    """FLOPs of the two products of one attention, and the bytes that it moves."""
    # all heads together have C channels, so their number does not matter here
    flops = 2 * 2 * queries * keys * channels
    moved = (2 * queries + 2 * keys) * channels * itemsize
    if not fused:
        # here it does: each head has scores of its own
        moved += 4 * heads * queries * keys * itemsize
    return flops, moved


def least_seconds(flops, moved, flops_per_s, bytes_per_s):
    """The least time of operations ``[n]`` in a row, and which wait for memory."""
    computing, moving = flops / flops_per_s, moved / bytes_per_s
    # the sum of maxima: an operation cannot compute while another one moves
    return float(np.maximum(computing, moving).sum()), moving > computing


def speedup(seconds, left):
    """How many times as fast a call becomes when less is left of some parts."""
    after = sum(before * left.get(part, 1.0) for part, before in seconds.items())
    return sum(seconds.values()) / after


def time_in_turns(first, second, rounds, clock=time.perf_counter):
    """Median seconds of two functions run in turns, and the median of their ratios."""
    first()
    second()
    samples = []
    for _ in range(rounds):
        began = clock()
        first()
        between = clock()
        second()
        samples.append((between - began, clock() - between))
    first_s, second_s = np.array(samples).T
    # divided within a round, where the computer is the same for both
    ratio = np.median(first_s / second_s)
    return float(np.median(first_s)), float(np.median(second_s)), float(ratio)


def downsampled_keys(
    attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None
):
    """Self-attention ``[B, N, C]`` to every second token of every second row."""
    edge = math.isqrt(hidden_states.shape[1])
    fewer = hidden_states.unflatten(1, (edge, edge))[:, ::2, ::2].flatten(1, 2)
    # downsampled before the projections, so that these become cheaper, too
    parts = attn.to_q(hidden_states), attn.to_k(fewer), attn.to_v(fewer)
    q, k, v = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in parts)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    # no residual: the transformer block adds it itself
    return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))
