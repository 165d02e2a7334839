r"""Preconditioning: r(x, sigma) = c_skip x + c_out F(c_in x, c_noise) around the raw U-Net F.

For Gaussian data of standard deviation sigma_data, F = 0 is already optimal:

- `edm` (Karras et al., 2022, table 1) for r trained as a denoiser: c_skip = s^2 / (s^2 + sigma^2).
- `energy` for r trained through the gradient of its energy: c_skip = 1 - sigma / sqrt(s^2 + sigma^2), c_out = -sigma, so
  that the residual (x - r) / sigma = x / sqrt(s^2 + sigma^2) + F is of unit scale at every level and U = |residual|^2 / 2
  starts as the energy of N(0, s^2 + sigma^2).
- `none`: r = F, which sees x itself.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from denoising_ebm.config import NetworkConfig, Precondition
from denoising_ebm.networks.unet import UNet
from denoising_ebm.noise import append_dims, expand_sigma


def coefficients(kind: Precondition, sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return c_skip, c_out and c_in at noise levels `sigma`, each of the shape of `sigma`."""
    total = sigma**2 + sigma_data**2
    if kind == "edm":
        return sigma_data**2 / total, sigma * sigma_data / total.sqrt(), total.rsqrt()
    if kind == "energy":
        return 1 - sigma / total.sqrt(), -sigma, total.rsqrt()
    ones = sigma.new_ones(sigma.shape)
    return 0 * ones, ones, ones


class DenoisingAutoencoder(nn.Module):
    """r_phi = g_beta(f_alpha(., sigma)) with preconditioning; phi = (alpha, beta)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.kind: Precondition = config.precondition
        self.sigma_data = config.sigma_data
        self.stride = config.stride if config.any_size else 1
        self.unet = UNet(config)

    def forward(self, x: Tensor, sigma: Tensor | float, inner: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Reconstruct.

        Args:
            x: Noisy images in data units, shape (batch, channels, height, width). A network of any size brings sides to
                multiples of its stride by reflection, and cuts what it added off again; inner features keep it.
            sigma: Their noise level, a number or shape (batch,), in data units.
            inner: A list that the feature maps of the U-Net are added to.

        Returns:
            r(x, sigma), shape of `x`, in float32 (or float64) whatever the network's precision; and the raw codes
            before whitening, shape (batch, latent_dim).
        """
        sigma = expand_sigma(sigma, x)
        c_skip, c_out, c_in = (append_dims(c, x) for c in coefficients(self.kind, sigma, self.sigma_data))
        height, width = x.shape[2:]
        output, code = self.unet(self._padded(c_in * x), sigma.log() / 4, inner)
        return c_skip * x + c_out * output[..., :height, :width].to(x.dtype), code

    def encode(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return the whitened codes z = f_alpha(x, sigma), shape (batch, latent_dim)."""
        sigma = expand_sigma(sigma, x)
        c_in = append_dims(coefficients(self.kind, sigma, self.sigma_data)[2], x)
        z: Tensor = self.unet.whitening(self.unet.encode(self._padded(c_in * x), sigma.log() / 4))
        return z

    def _padded(self, x: Tensor) -> Tensor:
        below, right = (-side % self.stride for side in x.shape[2:])
        if not (below or right):
            return x
        # Sides shorter than what is missing cannot be reflected so far.
        mode = "reflect" if below < x.shape[2] and right < x.shape[3] else "replicate"
        return F.pad(x, (0, right, 0, below), mode=mode)
