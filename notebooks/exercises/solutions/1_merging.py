"""Solutions of the exercises in 1_merging.ipynb."""

import torch


def split_grid(grid):
    """Src and dst tokens of a grid ``(height, width)``: two ascending index tensors."""
    height, width = grid
    is_dst = torch.zeros(height, width, dtype=torch.bool)
    # the ends leave out windows that are cut off: an odd last row has no dst
    is_dst[: height // 2 * 2 : 2, : width // 2 * 2 : 2] = True
    tokens = torch.arange(height * width)
    return tokens[~is_dst.flatten()], tokens[is_dst.flatten()]


def best_partners(tokens, src, dst):
    """The most similar dst token of every src token, and their cosine: two ``[S]``."""
    # normalizing N tokens is cheaper than dividing S x D products
    unit = torch.nn.functional.normalize(tokens, dim=1)
    similarity, place = (unit[src] @ unit[dst].T).max(dim=1)
    return dst[place], similarity


def choose_pairs(src, best, similarity, tokens, ratio):
    """For every token the token whose place it takes ``[N]``, by a fixed share."""
    target = torch.arange(tokens)
    # of all tokens: attention works on dst tokens as well
    merged = similarity.topk(int(ratio * tokens)).indices
    target[src[merged]] = best[merged]
    return target


def merge(x, target):
    """The mean of every group of tokens with one target: ``[N, C]`` to ``[L, C]``."""
    kept = target == torch.arange(len(target))
    slot = (kept.cumsum(0) - 1)[target]  # for every token the row of its group
    total = torch.zeros(int(kept.sum()), x.shape[1]).index_add_(0, slot, x)
    # divided once, at the end: pair by pair, the last member would count half
    return total / torch.bincount(slot)[:, None]


def unmerge(y, target):
    """A copy of its group's row for every token: ``[L, C]`` to ``[N, C]``."""
    kept = target == torch.arange(len(target))
    slot = (kept.cumsum(0) - 1)[target]
    return y[slot]
