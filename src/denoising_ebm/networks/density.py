r"""The density network: one scalar for an image and a noise level, -log q_sigma(x), whose gradient is the score.

q_sigma is the density of data with noise of sigma. The energy is an inner product,

$$U(x, \sigma) = \frac{\langle x, x - f(x, \sigma) \rangle}{2 \sigma^2} + \log Z(\sigma),$$

with f an autoencoder of the form of r. For Gaussian data it is exact with f = r, the best denoiser; the reconstruction
error |x - r|^2 / 2 sigma^2 of eq. 7 is not (it is too flat along the data). So it can start from the weights of a denoiser.
The form is that of Guth et al. (2025); how it is fitted is in `training.objectives`, log Z in `likelihood.normalisation`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from denoising_ebm.config import NetworkConfig, NoiseConfig
from denoising_ebm.networks.precondition import DenoisingAutoencoder
from denoising_ebm.noise import append_dims, expand_sigma, geometric_sigmas


class DensityNetwork(nn.Module):
    """U(x, sigma), an estimate of -log q_sigma(x) in nats for images in [-1, 1].

    Args:
        network: Sizes; f has the form of r.
        noise: The range of noise levels that it is trained at.
    """

    log_z: Tensor

    def __init__(self, network: NetworkConfig, noise: NoiseConfig) -> None:
        super().__init__()
        self.dae = DenoisingAutoencoder(network)
        self.sigma_data = network.sigma_data
        self.dim = network.channels * network.image_size**2
        self.log_range = math.log(noise.sigma_min), math.log(noise.sigma_max)
        #: log Z at `num_sigmas` geometric levels, less that of N(0, sigma_data^2 + sigma^2), which leaves it small and
        #: smooth; NaN until it is fitted.
        self.register_buffer("log_z", torch.full((noise.num_sigmas,), float("nan")))

    @property
    def is_normalised(self) -> bool:
        """Whether log Z is known."""
        return bool(self.log_z.isfinite().all())

    @property
    def levels(self) -> Tensor:
        """The noise levels of `log_z`, falling, shape (num_sigmas,)."""
        low, high = self.log_range
        return geometric_sigmas(math.exp(high), math.exp(low), len(self.log_z)).to(self.log_z.device)

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return U without log Z, shape (batch,), in float32 (or float64).

        Args:
            x: Images in data units, shape (batch, channels, height, width).
            sigma: Noise level, a number or shape (batch,).
        """
        sigma = expand_sigma(sigma, x)
        output: Tensor = self.dae(x, sigma)[0]
        # Each factor in units of its own size, so that sums at small levels lose nothing.
        scale = append_dims(sigma, x)
        return 0.5 * ((x / scale) * ((x - output) / scale)).flatten(1).sum(1)

    def gaussian_log_z(self, sigma: Tensor) -> Tensor:
        """Return log Z of N(0, sigma_data^2 + sigma^2), shape of `sigma`."""
        return 0.5 * self.dim * (2 * math.pi * (self.sigma_data**2 + sigma**2)).log()

    def set_log_z(self, log_z: Tensor) -> None:
        """Take over log Z at `levels`, in nats, shape (num_sigmas,)."""
        self.log_z.copy_(log_z.to(self.log_z.device) - self.gaussian_log_z(self.levels.to(log_z.device).double()))

    def log_normaliser(self, sigma: Tensor) -> Tensor:
        """Return log Z(sigma), shape of `sigma`: linear in log sigma between the levels; NaN where it is not known."""
        low, high = self.log_range
        last = len(self.log_z) - 1
        place = ((high - sigma.log()) / (high - low) * last).clamp(0, last)
        left = place.floor().clamp_max(last - 1).long()
        values = self.log_z.to(sigma.dtype)
        return self.gaussian_log_z(sigma) + torch.lerp(values[left], values[left + 1], place - left)
