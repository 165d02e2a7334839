r"""Degradations y = A x0 + s n, n ~ N(0, I), whose A is known with its eigenvectors: what restoring needs of them.

All three are symmetric, A = V diag(a) V^T with V orthogonal, so that any function of A costs two changes of basis: for
noise and missing pixels V is the identity, for blur a product of two one-dimensional bases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from denoising_ebm.energies import draw_noise
from denoising_ebm.restoration.prior import cosine_basis
from denoising_ebm.utils.seeds import RandomSource


@dataclass(frozen=True)
class Degradation:
    """A linear degradation with noise.

    Attributes:
        gains: Eigenvalues a of A, broadcastable to images `(channels, height, width)`.
        noise: s, the standard deviation of the noise in data units ([-1, 1]), >= 0.
        basis: Orthogonal matrix `(size, size)` of the eigenvectors along each axis, in columns; the identity if None.
    """

    gains: Tensor
    noise: float
    basis: Tensor | None = None

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise ValueError(f"the noise's standard deviation must be >= 0, got {self.noise}")

    def apply(self, x: Tensor, generator: RandomSource | None = None) -> Tensor:
        """Degrade images `(batch, channels, height, width)`; without noise if there is no generator."""
        y = self._back(self.gains.to(x) * self._forth(x))
        if generator is None or self.noise == 0:
            return y
        return y + self.noise * draw_noise(tuple(x.shape), generator, x)

    def data_consistency(self, x0: Tensor, y: Tensor, spread: Tensor) -> Tensor:
        r"""Return the mean of N(x0, spread^2 I) given y: x0 + spread^2 A (spread^2 A^2 + s^2)^{-1} (y - A x0).

        Where neither the image nor the noise is uncertain (both 0) an observed direction takes the value of y.

        Args:
            x0: Estimates, shape `(batch, channels, height, width)`.
            y: Degraded images, same shape.
            spread: How far each estimate may be off, in data units, shape `(batch,)`.
        """
        variance = spread.to(x0)[:, None, None, None] ** 2
        gains = self.gains.to(x0)
        weight = variance * gains / (variance * gains**2 + self.noise**2).clamp_min(1e-12)
        return x0 + self._back(weight * (self._forth(y) - gains * self._forth(x0)))

    def precision_operator(self, variances: Tensor) -> Callable[[Tensor], Tensor]:
        r"""Return v -> A^T (A C A^T + s^2)^{-1} v for missing pixels, C diagonal in cosines: C times it interpolates.

        Takes memory of size^4 and time of size^6 once, for all images: made for images of some dozens of pixels.

        Args:
            variances: Of each pair of frequencies (`restoration.prior`), shape `(size, size)`, on the images' device.

        Returns:
            A function of residuals y - A x0, shape `(batch, channels, size, size)`.

        Raises:
            ValueError: If the degradation is not one of missing pixels.
        """
        if not self.hides_pixels:
            raise ValueError("only missing pixels are weighed by their neighbours")
        variances = variances.double()
        known = self.gains[0].flatten().to(variances.device) > 0
        basis = cosine_basis(len(variances)).to(variances)
        waves = torch.kron(basis, basis)[known]
        covariance = (waves * variances.flatten()) @ waves.mT
        # The last term keeps it invertible where there is no noise.
        diagonal = covariance.diagonal()
        diagonal += self.noise**2 + 1e-6 * diagonal.mean()
        factor = torch.linalg.cholesky(covariance)

        def weigh(residual: Tensor) -> Tensor:
            seen = residual.double().flatten(2)[..., known]
            solved = torch.cholesky_solve(seen.flatten(0, 1).mT, factor).mT
            weighed = torch.zeros_like(residual.flatten(2))
            weighed[..., known] = solved.reshape(seen.shape).to(residual)
            return weighed.reshape(residual.shape)

        return weigh

    @property
    def hides_pixels(self) -> bool:
        """Whether whole pixels are missing, in all channels, and the others left as they are."""
        whole = self.basis is None and self.gains.ndim == 3 and len(self.gains) == 1
        return whole and bool((self.gains == 0).any()) and bool(((self.gains == 0) | (self.gains == 1)).all())

    def _forth(self, x: Tensor) -> Tensor:
        return x if self.basis is None else self.basis.to(x).mT @ x @ self.basis.to(x)

    def _back(self, x: Tensor) -> Tensor:
        return x if self.basis is None else self.basis.to(x) @ x @ self.basis.to(x).mT


def noisy(sigma: float) -> Degradation:
    """Noise of standard deviation `sigma`, in data units, added to whole images."""
    if sigma <= 0:
        raise ValueError(f"sigma must be > 0, got {sigma}")
    return Degradation(torch.ones(1, 1, 1), sigma)


def masked(known: Tensor, noise: float = 0.0) -> Degradation:
    """Missing pixels.

    Args:
        known: bool, True where pixels are known, shape `(height, width)`.
        noise: Of the known pixels.

    Raises:
        ValueError: If no pixel is missing or none is known.
    """
    if bool(known.all()) or not bool(known.any()):
        raise ValueError("the mask must mark some pixels as missing and leave some known")
    return Degradation(known.float()[None], noise)


def blurred(width: float, size: int, noise: float = 0.0) -> Degradation:
    """Gaussian blur with mirrored borders.

    With mirrored borders (each border pixel repeated) a symmetric kernel is a symmetric matrix, whose eigenvectors are
    the cosines of the discrete cosine transform (DCT-II).

    Args:
        width: Standard deviation of the kernel, in pixels, > 0 and at most `size`; cut off at 4 of them.
        size: Height and width of the images in pixels.
        noise: Added after the blur.

    Raises:
        ValueError: If a number is out of range.
    """
    if not 0 < width <= size:
        raise ValueError(f"the blur's width must be > 0 and at most the images' size of {size} pixels, got {width}")
    radius = max(1, round(4 * width))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / width) ** 2)
    kernel = kernel / kernel.sum()
    frequencies = torch.arange(size, dtype=torch.float64) * torch.pi / size
    along = (kernel * torch.cos(frequencies[:, None] * offsets)).sum(1)
    return Degradation((along[:, None] * along)[None], noise, cosine_basis(size))
