"""Token merging as the paper's text says it, in loops and without cleverness: what the library is measured
against."""

import math


def split(height, width, sy=2, sx=2):
    """The top-left token of every complete window is dst, all others are src."""
    dst = [y * width + x for y in range(0, height - sy + 1, sy) for x in range(0, width - sx + 1, sx)]
    return [token for token in range(height * width) if token not in set(dst)], dst


def cosine(a, b):
    dot = sum(p * q for p, q in zip(a, b, strict=True))
    return dot / (math.sqrt(sum(p * p for p in a)) * math.sqrt(sum(q * q for q in b)))


def nearness(tokens, lowest=-1.0):
    """The nearness of two tokens of an image: 1 less their squared distance over twice the mean square about
    the mean."""
    mean = [sum(column) / len(tokens) for column in zip(*tokens, strict=True)]
    variance = sum((x - m) ** 2 for token in tokens for x, m in zip(token, mean, strict=True)) / len(tokens)

    def similarity(a, b):
        return max(lowest, 1 - sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / (2 * variance))

    return similarity


def pairs_above(tokens, height, width, threshold, sy=2, sx=2, similarity=cosine):
    """``tokens``: one image as a list of lists of floats. Returns [(src, dst), ...] and every src token's
    best similarity."""
    src, dst = split(height, width, sy, sx)
    pairs, best = [], {}
    for s in src:
        similarities = [similarity(tokens[s], tokens[d]) for d in dst]
        best[s] = max(similarities)
        if best[s] >= threshold:
            pairs.append((s, dst[similarities.index(best[s])]))
    return pairs, best


def merge_and_unmerge(x, pairs, function):
    """Mean of each dst with its src tokens, ``function`` on the shorter sequence, every src gets its dst's
    result."""
    merged_into = dict(pairs)
    kept = [token for token in range(len(x)) if token not in merged_into]
    shorter = []
    for token in kept:
        group = [token] + [s for s, d in pairs if d == token]
        shorter.append([sum(x[member][c] for member in group) / len(group) for c in range(len(x[0]))])
    result = dict(zip(kept, function(shorter), strict=True))
    return [result[merged_into.get(token, token)] for token in range(len(x))]
