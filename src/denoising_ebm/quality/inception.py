"""The standard Inception of FID and IS: torch-fidelity's network with the converted TensorFlow weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from denoising_ebm.utils.extras import load_extra

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS}"
#: As torch.hub checks it: the first digits of the file's SHA-256 stand in its name.
HASH_PREFIX = "6726825d"


def find_weights(path: str | Path | None = None) -> Path:
    """Return the file with Inception's weights: the one given, or that in torch's cache, downloaded if need be.

    Raises:
        ValueError: If it is not there and cannot be downloaded, or is another file.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    found = Path(path) if path is not None else cached
    advice = f"get it from {URL} (SHA-256 starts with {HASH_PREFIX}), and put it there or give its path by --inception"
    if path is None and not found.is_file():
        found.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL, str(found), hash_prefix=HASH_PREFIX, progress=False)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{found}: Inception's weights are missing and not to be downloaded: {advice}") from error
    if not found.is_file():
        raise ValueError(f"{found}: no such file; Inception's weights: {advice}")
    with found.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(HASH_PREFIX):
        raise ValueError(f"{found}: SHA-256 starts with {digest[:8]}, so these are not the weights of FID: {advice}")
    return found


class InceptionFeatures(nn.Module):
    """The 2048 pooled features of FID, and the logits of IS.

    uint8 images are resized to 299 x 299 as TensorFlow 1 did (bilinear, not antialiased), which is what published FIDs
    were computed with; gray ones are repeated to RGB.

    Attributes:
        name: What to print beside a number computed on these features.
        num_features: 2048.

    Args:
        weights: The file with the weights; torch's cache if None (see `find_weights`).

    Raises:
        ValueError: If the weights or the package torch-fidelity are missing.
    """

    name = "Inception-v3 (torch-fidelity), 299 px bilinear as in TensorFlow 1"
    num_features = 2048

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        package = self.package()
        path = find_weights(weights)
        self.network: Any = package.FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
        self.requires_grad_(False).eval()

    @staticmethod
    def package() -> Any:
        """Return torch-fidelity's module with the network: to be called before work that would end without it.

        Raises:
            ValueError: If torch-fidelity is not installed.
        """
        return load_extra("torch_fidelity.feature_extractor_inceptionv3", "fid", "FID and IS need torch-fidelity")

    def train(self, mode: bool = True) -> InceptionFeatures:
        """Stay in evaluation mode: features must not depend on the other images of a batch."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the features of uint8 images `(n, 1 or 3, h, w)`, float32, shape `(n, 2048)`."""
        return self.features_and_logits(images)[0]

    @torch.no_grad()
    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features, shape `(n, 2048)`, and logits without bias, shape `(n, 1008)`, of uint8 images."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images must be uint8 (n, 1 or 3, h, w), got {images.dtype} {tuple(images.shape)}")
        device = next(self.network.buffers()).device
        features, logits = self.network(images.to(device).expand(-1, 3, -1, -1))
        return features, logits


def inception_score(logits: Tensor, *, splits: int = 10, seed: int | None = 2020) -> tuple[float, float]:
    r"""Return mean and standard deviation over splits of exp E KL(p(y|x) || p(y)).

    Salimans et al. (2016), with torch-fidelity's protocol: images are shuffled, cut into `splits` parts, and each
    part has its own p(y).

    Args:
        logits: Class logits, shape `(n, classes)`, n >= splits.
        splits: Number of parts, >= 1.
        seed: Of the shuffling (2020 is torch-fidelity's); None keeps the order.

    Raises:
        ValueError: If there are fewer images than parts.
    """
    if logits.ndim != 2 or not 1 <= splits <= len(logits):
        raise ValueError(f"need logits (n, classes) with n >= splits >= 1, got {tuple(logits.shape)} and {splits}")
    if seed is not None:
        # NumPy's generator of old, so that the parts are those of torch-fidelity.
        logits = logits[torch.as_tensor(np.random.RandomState(seed).permutation(len(logits)))]
    log_p = logits.double().log_softmax(1)
    scores = []
    for part in range(splits):
        chunk = log_p[part * len(log_p) // splits : (part + 1) * len(log_p) // splits]
        p = chunk.exp()
        # A class that no image of the part can be has p = 0 and adds nothing.
        divergence = torch.where(p > 0, p * (chunk - p.mean(0, keepdim=True).log()), 0.0)
        scores.append(float(divergence.sum(1).mean().exp()))
    return float(np.mean(scores)), float(np.std(scores))
