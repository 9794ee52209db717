import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # the kernels are tested on the interpreter; read when they are imported

from catome import tiny


def pytest_configure(config):
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def loaded():
    """The embedded pipeline, loaded once; tests take `pipe`, which checks that nothing was left on it."""
    return tiny.load_pipeline()


@pytest.fixture
def pipe(loaded):
    yield loaded
    assert not any("_diffusers_hook" in vars(module) for module in loaded.unet.modules()), "a patch was left on"


@pytest.fixture
def generate(pipe):
    """``generate(names, steps=..., seed=...)`` -> images ``[B, H, W, 3]``; each image has noise of its own."""

    def run(names, steps=4, seed=0, guidance_scale=tiny.GUIDANCE_SCALE, **arguments):
        names = [names] if isinstance(names, str) else list(names)
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(names))]
        prompts = [tiny.prompt(name) for name in names]
        return pipe(
            prompts,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=generators,
            output_type="np",
            **arguments,
        ).images

    return run
