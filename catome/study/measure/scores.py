"""The attention scores that a generation computes, whatever the method: counted where attention is called.

`catome.summary` tells what a patch of the library leaves. A method that is written from a paper, or by a
reader, has no patch, so the calls themselves are watched here. A score that a mask rules out is not left: in
a batch, an image that keeps fewer keys than another is padded, and the padding counts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from catome.study.run.denoiser import denoiser, topmost_blocks
from catome.study.run.generate import generate_batch
from catome.study.run.parameters import Setting
from catome.tensors.attention import unexpanded

_ATTENTION = F.scaled_dot_product_attention
_SOFTMAX = (F.softmax, torch.softmax, torch.Tensor.softmax)
_NEVER = -1e4  # a score as low as this is ruled out: what fits in float16 in place of minus infinity


class Count(TorchFunctionMode):
    """Counts scores within the topmost self-attentions; each head has its own.

    Attributes:
        found: queries times keys of every call of `F.scaled_dot_product_attention`, and what enters every
            softmax of a method that computes its attention by hand; without what is ruled out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = 0
        self._inside = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._inside > 0 and func is _ATTENTION:
            self.found += _of_attention(*args, **kwargs)
        elif self._inside > 0 and func in _SOFTMAX:
            scores = args[0] if args else kwargs["input"]
            self.found += int((scores > _NEVER).sum())
        return func(*args, **kwargs)

    def _go(self, by: int) -> None:
        """Go into what is counted (1), or out of it (-1)."""
        self._inside += by

    @contextmanager
    def within(self, model: torch.nn.Module, blocks: Iterable[str]) -> Iterator[None]:
        """Count in what is found under the names of these blocks now, except in their cross-attention."""
        with ExitStack() as stack:
            for name in blocks:
                block = model.get_submodule(name)
                cross = getattr(block, "attn2", None)
                for module, by in ((block, 1), (cross, -1)):
                    if module is not None:
                        before = module.register_forward_pre_hook(lambda *_, by=by: self._go(by))
                        after = module.register_forward_hook(
                            lambda *_, by=by: self._go(-by), always_call=True
                        )
                        stack.callback(before.remove)
                        stack.callback(after.remove)
            yield


def _of_attention(query, key, value, attn_mask=None, *_, **rest) -> int:
    """Scores of ``[B, H, Q, D]`` queries and ``[B, H, K, D]`` keys that are not ruled out by a mask."""
    scores = query.shape[:-1].numel() * key.shape[-2]
    if attn_mask is None:
        return scores
    mask = unexpanded(attn_mask)
    left = mask if mask.dtype == torch.bool else mask > _NEVER
    return int(left.sum()) * scores // left.numel()


@contextmanager
def counted(pipe, applied: Callable[[object], AbstractContextManager]) -> Iterator[Count]:
    """The context ``applied(pipe)``, in which the scores of the topmost self-attentions are counted.

    Args:
        pipe: a pipeline with a denoising model that nothing has been put on.
        applied: of a `catome.study.methods.Method`.
    """
    count = Count()
    model = denoiser(pipe)
    blocks = list(topmost_blocks(model))
    with count, applied(pipe), count.within(model, blocks):
        yield count


def without_merging(pipe, setting: Setting) -> int:
    """The scores that `counted` finds when an unpatched pipeline generates all images of a setting.

    One image is generated in one step; every call of every image computes as many."""
    one = replace(setting, images=1, steps=1)
    with counted(pipe, lambda pipe: ExitStack()) as count:
        generate_batch(pipe, one, range(1))
    return count.found // one.calls * setting.calls * setting.images
