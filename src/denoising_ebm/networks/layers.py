"""Building blocks shared by the U-Net and the semantic decoder; all of them have second derivatives."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from denoising_ebm.networks import derivatives
from denoising_ebm.networks.derivatives import silu


class GroupNorm(nn.GroupNorm):
    """Group normalisation that heeds `second_derivatives`."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x`, shape (batch, channels, height, width)."""
        return derivatives.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class PlaceNorm(nn.Module):
    """Root-mean-square normalisation over the channels of every place alone: what is elsewhere changes nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x`, shape (batch, channels, height, width)."""
        full = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = (full.square().mean(1, keepdim=True) + 1e-5).rsqrt()
        return x * scale.to(x.dtype) * self.weight[:, None, None] + self.bias[:, None, None]


def normalisation(channels: int, *, any_size: bool = False) -> nn.Module:
    """Return group normalisation or, for networks that take images of any size, that of every place."""
    return PlaceNorm(channels) if any_size else group_norm(channels)


def group_norm(channels: int) -> GroupNorm:
    """Group normalisation, of 16 channels a group where they divide so, else of the next larger number that does."""
    groups = next(groups for groups in range(max(1, channels // 16), 0, -1) if channels % groups == 0)
    return GroupNorm(groups, channels)


class Conv2d(nn.Conv2d):
    """Convolution with a square kernel of odd size, to an image of the same size, that heeds `second_derivatives`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x`, shape (batch, in_channels, height, width)."""
        half = self.kernel_size[0] // 2
        return derivatives.conv2d(x, self.weight, self.bias, (half, half))


def zero_init(module: nn.Conv2d) -> nn.Conv2d:
    """Set weights and bias to zero, so that a residual branch starts as the identity."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


class NoiseEmbedding(nn.Module):
    """Map c_noise, shape (batch,), to a vector, shape (batch, dim): sines and cosines, then two linear layers."""

    frequencies: Tensor

    def __init__(self, dim: int, features: int = 16) -> None:
        super().__init__()
        # c_noise = ln(sigma) / 4 spans about 2 units: periods from 25 units (monotone over the range) to 0.4.
        frequencies = torch.logspace(math.log10(0.25), math.log10(16.0), features, device="cpu")
        self.register_buffer("frequencies", frequencies.to(torch.get_default_device()), persistent=False)
        self.layers = nn.Sequential(nn.Linear(2 * features, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())

    def forward(self, c_noise: Tensor) -> Tensor:
        """Embed `c_noise`, shape (batch,)."""
        phases = c_noise[:, None] * self.frequencies
        output: Tensor = self.layers(torch.cat([phases.sin(), phases.cos()], dim=1))
        return output


class ResidualBlock(nn.Module):
    """Pre-activation ResNet block (He et al., 2016); a noise embedding, if any, scales and shifts its middle."""

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int = 0, *, any_size: bool = False) -> None:
        super().__init__()
        self.norm1 = normalisation(in_channels, any_size=any_size)
        self.conv1 = Conv2d(in_channels, out_channels, 3)
        self.modulation = nn.Linear(embedding_dim, 2 * out_channels) if embedding_dim else None
        self.norm2 = normalisation(out_channels, any_size=any_size)
        self.conv2 = zero_init(Conv2d(out_channels, out_channels, 3))
        self.shortcut = nn.Identity() if in_channels == out_channels else Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Apply the block to `x`, shape (batch, in_channels, height, width)."""
        h = self.conv1(silu(self.norm1(x)))
        h = self.norm2(h)
        if self.modulation is not None and embedding is not None:
            scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        output: Tensor = self.shortcut(x) + self.conv2(silu(h))
        return output


class SelfAttention(nn.Module):
    """Self-attention over all positions, with a residual connection."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels)
        self.qkv = Conv2d(channels, 3 * channels, 1)
        self.out = zero_init(Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Apply attention to `x`, shape (batch, channels, height, width)."""
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        query, key, value = qkv.unbind(1)
        # Plain softmax(QK^T)V: scaled_dot_product_attention has no double backward outside its math kernel.
        weights = torch.softmax(query.transpose(2, 3) @ key / math.sqrt(channels // self.heads), dim=-1)
        attended = (value @ weights.transpose(2, 3)).reshape(batch, channels, height, width)
        output: Tensor = x + self.out(attended)
        return output
