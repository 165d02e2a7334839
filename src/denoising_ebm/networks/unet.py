"""The denoising autoencoder with U-Net shape: encoder f_alpha and decoder with skips g_beta."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from denoising_ebm.config import NetworkConfig
from denoising_ebm.networks.derivatives import concatenate, downsample, silu, upsample
from denoising_ebm.networks.layers import (
    Conv2d,
    NoiseEmbedding,
    ResidualBlock,
    SelfAttention,
    group_norm,
    zero_init,
)
from denoising_ebm.networks.whitening import Whitening


class Level(nn.Module):
    """The residual blocks of one resolution, with attention after each where the resolution has it."""

    def __init__(self, in_channels: int, channels: int, config: NetworkConfig, size: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(in_channels if i == 0 else channels, channels, config.embedding_dim)
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
        widths = config.widths
        self.stem = Conv2d(config.channels, widths[0], 3)
        self.levels = nn.ModuleList(
            Level(widths[max(i - 1, 0)], width, config, config.image_size // 2**i) for i, width in enumerate(widths)
        )
        bottleneck = config.image_size // 2 ** (len(widths) - 1)
        self.norm = group_norm(widths[-1])
        self.to_code = nn.Linear(widths[-1] * bottleneck**2, config.latent_dim)

    def forward(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return raw codes, shape (batch, latent_dim), and one feature map per resolution."""
        h = self.stem(x)
        features = []
        for i, level in enumerate(self.levels):
            h = level(downsample(h) if i else h, embedding)
            features.append(h)
        return self.to_code(silu(self.norm(h)).flatten(1)), features


class SkipDecoder(nn.Module):
    """g_beta: code and skip features -> raw output of the size of the image."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths = config.widths
        self.size = config.image_size // 2 ** (len(widths) - 1)
        self.from_code = nn.Linear(config.latent_dim, widths[-1] * self.size**2)
        # Narrowed before they are enlarged: the same map, on a quarter of the pixels.
        self.narrow = nn.ModuleList(Conv2d(widths[i + 1], width, 1) for i, width in enumerate(widths[:-1]))
        self.levels = nn.ModuleList(
            Level(2 * width, width, config, config.image_size // 2**i) for i, width in enumerate(widths)
        )
        self.norm = group_norm(widths[0])
        self.head = zero_init(Conv2d(widths[0], config.channels, 3))

    def forward(
        self, z: Tensor, features: list[Tensor], embedding: Tensor, inner: list[Tensor] | None = None
    ) -> Tensor:
        """Return the raw output, shape (batch, channels, image_size, image_size); add what levels give to `inner`."""
        deepest = features[-1]
        h = self.from_code(z).reshape(len(z), deepest.shape[1], self.size, self.size)
        h = h.contiguous(memory_format=torch.channels_last)
        for i in reversed(range(len(self.levels))):
            h = self.levels[i](concatenate(h, features[i]), embedding)
            if inner is not None:
                inner.append(h)
            h = upsample(self.narrow[i - 1](h)) if i else h
        output: Tensor = self.head(silu(self.norm(h)))
        return output


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
        return self.decoder(self.whitening(code), features, embedding, inner), code

    def encode(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """Return the raw code alone, shape (batch, latent_dim)."""
        code: Tensor = self.encoder(x.contiguous(memory_format=torch.channels_last), self.embedding(c_noise))[0]
        return code
