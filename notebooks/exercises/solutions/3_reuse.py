"""Solutions of the exercises in 3_reuse.ipynb."""

import numpy as np

from catome.policy.staleness import derive, total_staleness


def jaccard_distance(p, q):
    """Jaccard distance between two sets of pairs ``[P, 2]`` and ``[Q, 2]``."""
    p, q = (set(map(tuple, pairs.tolist())) for pairs in (p, q))
    union = len(p | q)
    return 1 - len(p & q) / union if union else 0.0


def staleness_matrix(pairs, distance):
    """The distance between the pairs of any two steps: ``[T, T]``, symmetric."""
    matrix = np.zeros((len(pairs), len(pairs)))
    for i in range(len(pairs)):
        for j in range(i):  # the other half is the same
            matrix[i, j] = matrix[j, i] = distance(pairs[i], pairs[j])
    return matrix


def paid(staleness, schedule):
    """What a schedule pays at each step: ``[T]``."""
    last, bill = 0, np.zeros(len(staleness))
    for step in range(len(staleness)):
        # a checkpoint that never comes is never the last
        last = step if step in schedule else last
        bill[step] = staleness[last, step]
    return bill


def best_schedule(staleness, checkpoints):
    """The checkpoints, so many, that pay least in all, by dynamic programming."""
    steps = len(staleness)
    # served[c, e]: what steps c ... e - 1 pay for the pairs of checkpoint c
    served = np.zeros((steps, steps + 1))
    served[:, 1:] = np.cumsum(np.triu(staleness), axis=1)
    # least[e]: the price of the steps before e, with the checkpoints so far
    least, choices = served[0], []
    for _ in range(checkpoints - 1):
        total = least[:steps, None] + served  # [next checkpoint c, end e]
        c, e = np.indices(total.shape)
        # step 0 is taken, and each checkpoint serves its own step at least
        total[(c == 0) | (c >= e)] = np.inf
        choices.append(total.argmin(axis=0))
        least = total.min(axis=0)
    end, schedule = steps, []
    for choice in reversed(choices):  # the last checkpoint is known first
        end = int(choice[end])
        schedule.append(end)
    return (0, *reversed(schedule))


def honest_price(matrices, checkpoints):
    """Staleness of a schedule of these images ``[I, T, T]``, and of the others'."""
    images, steps = matrices.shape[:2]
    common = derive(matrices.mean(axis=0), checkpoints)
    seen = unseen = 0.0
    for image, matrix in enumerate(matrices):
        # the image that pays has no say in its schedule
        others = np.delete(matrices, image, axis=0).mean(axis=0)
        seen += total_staleness(matrix, common)
        unseen += total_staleness(matrix, derive(others, checkpoints))
    return seen / (images * steps), unseen / (images * steps)
