"""The semantic decoder h_gamma: a ResNet without skip connections from the code to the semantic image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from denoising_ebm.config import NetworkConfig
from denoising_ebm.networks.derivatives import silu, upsample
from denoising_ebm.networks.layers import Conv2d, ResidualBlock, group_norm


class SemanticDecoder(nn.Module):
    """h_gamma: z, shape (batch, latent_dim) -> image, shape (batch, channels, image_size, image_size).

    It has no path from the image but z (section 4.1: the skips of g_beta make g_beta useless as a decoder of z alone). It
    needs no layers at the full size, since its images are smooth: its last layer makes squares of pixels there.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths = config.decoder_widths
        self.patch = config.patch * 2 ** (len(config.widths) - len(widths))
        self.size = config.image_size // self.patch // 2 ** (len(widths) - 1)
        self.from_code = nn.Linear(config.latent_dim, widths[-1] * self.size**2)
        self.levels = nn.ModuleList()
        for i in reversed(range(len(widths))):
            above = widths[min(i + 1, len(widths) - 1)]
            self.levels.append(
                nn.Sequential(
                    *(ResidualBlock(above if j == 0 else widths[i], widths[i]) for j in range(config.decoder_blocks))
                )
            )
        self.norm = group_norm(widths[0])
        self.head = Conv2d(widths[0], config.channels * self.patch**2, 3)

    def forward(self, z: Tensor) -> Tensor:
        """Decode `z` to images in data units, in float32 (or float64)."""
        h = self.from_code(z)
        h = h.reshape(len(z), -1, self.size, self.size).contiguous(memory_format=torch.channels_last)
        for i, level in enumerate(self.levels):
            h = level(upsample(h) if i else h)
        return F.pixel_shuffle(self.head(silu(self.norm(h))), self.patch).to(z.dtype)
