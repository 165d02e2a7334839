"""The denoising autoencoder with U-Net shape: encoder f_alpha and decoder with skips g_beta."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from denoising_ebm.config import NetworkConfig
from denoising_ebm.networks.derivatives import concatenate, downsample, silu, upsample
from denoising_ebm.networks.layers import (
    Conv2d,
    NoiseEmbedding,
    ResidualBlock,
    SelfAttention,
    normalisation,
    zero_init,
)
from denoising_ebm.networks.whitening import Whitening


class Level(nn.Module):
    """The residual blocks of one resolution, with attention after each where the resolution has it."""

    def __init__(self, in_channels: int, channels: int, config: NetworkConfig, size: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(in_channels if i == 0 else channels, channels, config.embedding_dim, any_size=config.any_size)
            for i in range(config.blocks)
        )
        attend = size in config.attention
        self.attention = nn.ModuleList(
            SelfAttention(channels, config.heads) for _ in range(config.blocks if attend else 0)
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Apply the blocks to `x`, shape (batch, in_channels, size, size)."""
        for i, block in enumerate(self.blocks):
            x = block(x, embedding)
            if len(self.attention):
                x = self.attention[i](x)
        return x


class Encoder(nn.Module):
    """f_alpha: noisy image and embedding of its level -> raw code and the features that g_beta's skips take."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths, sizes = config.widths, config.resolutions
        self.patch = config.patch
        self.stem = Conv2d(config.channels * config.patch**2, widths[0], 3)
        self.levels = nn.ModuleList(
            Level(widths[max(i - 1, 0)], width, config, size)
            for i, (width, size) in enumerate(zip(widths, sizes, strict=True))
        )
        self.window = sizes[-1] if config.any_size else 0  #: Places a side that a code is the mean of; 0 for one code.
        self.norm = normalisation(widths[-1], any_size=config.any_size)
        self.to_code = nn.Linear(widths[-1] * (1 if config.any_size else sizes[-1] ** 2), config.latent_dim)

    def forward(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return raw codes, shape (batch, latent_dim), and one feature map per resolution.

        A network of any size has a code at every place of the smallest resolution: shape (batch, latent_dim, rows, columns).
        """
        h = self.stem(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        features = []
        for i, level in enumerate(self.levels):
            h = level(downsample(h) if i else h, embedding)
            features.append(h)
        deepest = silu(self.norm(h))
        if not self.window:
            return self.to_code(deepest.flatten(1)), features
        codes = self.to_code(deepest.movedim(1, -1)).movedim(-1, 1)
        return _window_means(codes, self.window), features


def _window_means(codes: Tensor, window: int) -> Tensor:
    """Return at every place the mean of a window around it; windows at the borders are moved inside.

    Images of the size of training have one window, so that all places have one code.

    Args:
        codes: Shape (batch, latent_dim, rows, columns).
        window: Places a side.
    """
    rows, columns = codes.shape[2:]
    size = min(window, rows), min(window, columns)
    means = F.avg_pool2d(codes.to(torch.promote_types(codes.dtype, torch.float32)), size, stride=1)
    top, left = (size[0] - 1) // 2, (size[1] - 1) // 2
    return F.pad(means, (left, size[1] - 1 - left, top, size[0] - 1 - top), mode="replicate")


class SkipDecoder(nn.Module):
    """g_beta: code and skip features -> raw output of the size of the image."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths, sizes = config.widths, config.resolutions
        self.size = sizes[-1]
        self.any_size, self.patch = config.any_size, config.patch
        self.from_code = nn.Linear(config.latent_dim, widths[-1] * (1 if config.any_size else self.size**2))
        # Narrowed before they are enlarged: the same map, on a quarter of the pixels.
        self.narrow = nn.ModuleList(Conv2d(widths[i + 1], width, 1) for i, width in enumerate(widths[:-1]))
        self.levels = nn.ModuleList(
            Level(2 * width, width, config, size) for width, size in zip(widths, sizes, strict=True)
        )
        self.norm = normalisation(widths[0], any_size=config.any_size)
        self.head = zero_init(Conv2d(widths[0], config.channels * config.patch**2, 3))

    def forward(
        self, z: Tensor, features: list[Tensor], embedding: Tensor, inner: list[Tensor] | None = None
    ) -> Tensor:
        """Return the raw output, of the size of the image; add what levels give to `inner`.

        Args:
            z: Whitened codes, shape (batch, latent_dim), or at every place (batch, latent_dim, rows, columns).
            features: Of the encoder.
            embedding: Of the noise level.
            inner: A list that feature maps are added to.
        """
        deepest = features[-1]
        if self.any_size:
            h = self.from_code(z.movedim(1, -1)).movedim(-1, 1)
        else:
            h = self.from_code(z).reshape(len(z), deepest.shape[1], self.size, self.size)
        h = h.contiguous(memory_format=torch.channels_last)
        for i in reversed(range(len(self.levels))):
            h = self.levels[i](concatenate(h, features[i]), embedding)
            if inner is not None:
                inner.append(h)
            h = upsample(self.narrow[i - 1](h)) if i else h
        output: Tensor = self.head(silu(self.norm(h)))
        return F.pixel_shuffle(output, self.patch) if self.patch > 1 else output


class UNet(nn.Module):
    """r before preconditioning: g_beta(f_alpha(x, sigma)), with the whitened code z between the two."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.embedding = NoiseEmbedding(config.embedding_dim)
        self.encoder = Encoder(config)
        self.whitening = Whitening(config.latent_dim)
        self.decoder = SkipDecoder(config)

    def forward(self, x: Tensor, c_noise: Tensor, inner: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return the raw output, shape of `x`, and the raw code, shape (batch, latent_dim).

        Feature maps are added to the list `inner` if it is given: of every resolution on the way down, then on the way up.
        """
        embedding = self.embedding(c_noise)
        code, features = self.encoder(x.contiguous(memory_format=torch.channels_last), embedding)
        if inner is not None:
            inner.extend(features)
        if code.ndim == 2:
            return self.decoder(self.whitening(code), features, embedding, inner), code
        z = self.whitening(code.movedim(1, -1)).movedim(-1, 1)
        # The code of an image is that of its places on average: for one of the size of training, that of each.
        return self.decoder(z, features, embedding, inner), code.mean((2, 3))

    def encode(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """Return the raw code alone, shape (batch, latent_dim)."""
        code: Tensor = self.encoder(x.contiguous(memory_format=torch.channels_last), self.embedding(c_noise))[0]
        return code if code.ndim == 2 else code.mean((2, 3))
