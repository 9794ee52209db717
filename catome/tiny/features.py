"""The embedded world's feature extractor for torch-fidelity: FID and KID offline, on scenes only.

Its numbers compare images of the embedded world with each other. They are not Inception FID and must never
stand beside one without this label: `NAME`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from catome.tiny.model import SceneNet, load_scene_net
from catome.tiny.scenes import SIZE

NAME = "catome-scene-features"
LAYER = "128"


class SceneFeatures(FeatureExtractorBase):
    """`SceneNet`'s pooled features as a torch-fidelity extractor, with one layer, "128"."""

    def __init__(self, name: str, features_list: list[str], **_) -> None:
        super().__init__(name, features_list)
        self.net = load_scene_net()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (LAYER,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"fid": LAYER, "kid": LAYER, "prc": LAYER}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> torch.Tensor:
        return torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """uint8 images ``[B, 3, H, W]`` to a tuple of one ``[B, 128]`` float32 tensor.

        Raises:
            ValueError: if the images are not uint8 RGB of the embedded model's size, for which the features
                mean nothing.
        """
        if images.dtype != torch.uint8 or images.shape[1:] != (3, SIZE, SIZE):
            raise ValueError(
                f"images of {images.dtype} {list(images.shape)} must be uint8 [B, 3, {SIZE}, {SIZE}]: "
                f"the features are of scenes with height={SIZE} and width={SIZE}"
            )
        return (self.net(images.float() / 127.5 - 1),)


def register() -> str:
    """Make the extractor known to torch-fidelity (once); returns its name, for ``feature_extractor=``."""
    if NAME not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(NAME, SceneFeatures)
    return NAME


@torch.no_grad()
def scene_statistics(net: SceneNet, images: torch.Tensor, batch: int = 64) -> dict[str, np.ndarray]:
    """Mean ``[128]`` and covariance ``[128, 128]`` of the features of uint8 images ``[B, 3, H, W]``, in
    float64."""
    features = torch.cat([net(part.float() / 127.5 - 1) for part in images.split(batch)])
    return fid_features_to_statistics(features.double())


def scene_fid(net: SceneNet, images: torch.Tensor, reference: dict[str, np.ndarray]) -> float:
    """Scene FID of uint8 images ``[B, 3, H, W]``, by torch-fidelity; lower is closer.

    Args:
        net: the feature extractor.
        images: at least two.
        reference: `scene_statistics` of the images that they are held against, by the same extractor.
    """
    found = fid_statistics_to_metric(scene_statistics(net, images), reference, verbose=False)
    return found["frechet_inception_distance"]


def accuracy(net: SceneNet, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mark the uint8 images ``[B, 3, H, W]`` that the network names as ``labels`` ``[B]``: bool ``[B]``."""
    with torch.no_grad():
        return net.logits(images.float() / 127.5 - 1).argmax(1) == labels
