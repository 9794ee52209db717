"""The embedded model: a real, tiny Stable Diffusion trained on procedurally rendered landscapes."""

from catome.tiny.model import GUIDANCE_SCALE, find_model, load_pipeline, load_scene_net
from catome.tiny.scenes import CLASSES, prompt, render

__all__ = ["CLASSES", "GUIDANCE_SCALE", "find_model", "load_pipeline", "load_scene_net", "prompt", "render"]
