"""The embedded models: a real, tiny Stable Diffusion and a transformer, trained on procedurally rendered
landscapes."""

from catome.tiny.model import GUIDANCE_SCALE, find_model, load_pipeline, load_scene_net
from catome.tiny.scenes import CLASSES, prompt, render
from catome.tiny.transformer import find_transformer, load_transformer

__all__ = [
    "CLASSES",
    "GUIDANCE_SCALE",
    "find_model",
    "find_transformer",
    "load_pipeline",
    "load_scene_net",
    "load_transformer",
    "prompt",
    "render",
]
