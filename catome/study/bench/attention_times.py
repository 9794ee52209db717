"""Time one self-attention on fewer tokens, beside the share of its comparisons that is left."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch

from catome.study.bench.rounds import Call, Clock, Contender, cpu_clock, cuda_clock, take_turns

SHARES = (0.0, 0.25, 0.5, 0.75)
ROUNDS = 10


@torch.no_grad()
def timed(
    attention: torch.nn.Module,
    tokens: torch.Tensor,
    shares: Sequence[float] = SHARES,
    rounds: int = ROUNDS,
    clock: Clock | None = None,
) -> pd.DataFrame:
    """Time a self-attention on all tokens and on fewer of them, in turns.

    Args:
        attention: takes tokens ``[B, N, C]``.
        tokens: all of them; a share merged leaves the first ones.
        shares: of the tokens that are merged.
        rounds: how many turns each has after a warm-up.
        clock: what to time with; None for that of the tokens' device.

    Returns:
        One row for each share: ``tokens`` left, the share of ``comparisons`` left, and ``seconds``, the
        median of the rounds.
    """
    clock = clock or (cuda_clock if tokens.is_cuda else cpu_clock)
    lengths = {share: int(tokens.shape[1] * (1 - share)) for share in shares}
    calls = {share: Call(partial(attention, tokens[:, :length])) for share, length in lengths.items()}
    samples, notes = take_turns(
        [Contender(f"{share:g}", (call,)) for share, call in calls.items()], rounds, clock
    )
    if notes:
        raise RuntimeError(f"shares={shares!r}: {notes}")
    rows = {
        share: {
            "tokens": length,
            "comparisons": (length / tokens.shape[1]) ** 2,
            "seconds": float(np.median(samples[f"{share:g}"])),
        }
        for share, length in lengths.items()
    }
    return pd.DataFrame(rows).T.astype({"tokens": int})


def readable(times: pd.DataFrame, device: torch.device | str) -> pd.DataFrame:
    """The table of `timed`, to be read: its times relative to the longest attention's and in milliseconds."""
    longest = times.loc[times["tokens"].idxmax(), "seconds"]
    table = {
        "tokens left": times["tokens"].map(str),
        "comparisons left": times["comparisons"].map("{:.0%}".format),
        "measured time of self-attention": (times["seconds"] / longest).map("{:.0%}".format),
        f"ms on {device}": (1e3 * times["seconds"]).map("{:.1f}".format),
    }
    return pd.DataFrame(table).rename("r = {:g}".format)


def words(times: pd.DataFrame, device: torch.device | str, rounds: int = ROUNDS) -> dict[str, str]:
    """The words of chapter 1 about the times, by its names there, with _ for -; ``times`` of `timed`."""
    longest = times.loc[times["tokens"].idxmax(), "seconds"]
    return {
        "rounds": str(rounds),
        "device": str(device),
        "torch": torch.__version__,
        "milliseconds": f"{1e3 * longest:.1f}",
    }
