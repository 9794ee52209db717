"""The embedded models, trained on procedurally rendered landscapes: a real, tiny Stable Diffusion, the same
distilled to few steps, and a transformer."""

from catome.tiny.lcm import find_lcm, load_lcm
from catome.tiny.model import GUIDANCE_SCALE, find_model, load_pipeline, load_scene_net
from catome.tiny.scenes import CLASSES, prompt, render
from catome.tiny.transformer import find_transformer, load_transformer

__all__ = [
    "CLASSES",
    "GUIDANCE_SCALE",
    "find_lcm",
    "find_model",
    "find_transformer",
    "load_lcm",
    "load_pipeline",
    "load_scene_net",
    "load_transformer",
    "prompt",
    "render",
]
