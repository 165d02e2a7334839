from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from denoising_ebm.datasets.images import to_float
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.training.calibration import calibrate
from support import random_pixels


class Linear(nn.Module):
    """h(z) = z A, of which a nudge of length one in a random direction moves the image by |A| / sqrt(dim), rms."""

    def __init__(self, dim: int, pixels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim, pixels, generator=torch.Generator().manual_seed(1)))

    def forward(self, z: Tensor) -> Tensor:
        side = int(self.weight.shape[1] ** 0.5)
        return (20 + z @ self.weight).reshape(len(z), 1, side, side)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_step_length_in_z_is_that_of_the_decoder(precision: str, tiny_model: DenoisingEBM) -> None:
    """In bf16 too: beside a mean of 20 it would round to steps of .06 and more, as large as what a nudge moves."""
    _, size, _ = tiny_model.image_shape
    dim = tiny_model.config.network.latent_dim
    tiny_model.decoder = Linear(dim, size**2)  # type: ignore[assignment]
    tiny_model.set_precision(precision)  # type: ignore[arg-type]
    calibrate(tiny_model, to_float(random_pixels(20)))
    expected = float(tiny_model.decoder.weight.detach().norm()) / dim**0.5
    # 256 random directions: their mean square has a relative standard error below 5 %.
    assert float(tiny_model.jacobian_norm) == pytest.approx(expected, rel=0.1)
    assert tiny_model.precision == precision
