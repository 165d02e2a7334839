r"""Energies: the one place for eq. 7 (texture), eq. 8 (semantic) and eq. 21 (gradients).

An energy is a callable `energy(x, sigma) -> (batch,)`, low = likely; chains take energies, never networks. `Energy` adds
what samplers need: the gradient, the denoiser, the inner noise (redrawn or held fixed) and the scale of steps.
Everything is computed and summed in float32 (or float64), whatever the network's precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from denoising_ebm.config import Drift
from denoising_ebm.noise import append_dims, expand_sigma
from denoising_ebm.utils.seeds import ImageNoise, RandomSource

EnergyFunction = Callable[[Tensor, Tensor], Tensor]
Reconstruct = Callable[[Tensor, Tensor], Tensor]
Decode = Callable[[Tensor], Tensor]


def texture_residual(reconstruct: Reconstruct, x: Tensor, sigma: Tensor | float, noise: Tensor | None = None) -> Tensor:
    r"""Return the vector of the texture energy, (x - r(x + sigma noise, sigma)) / sigma.

    Args:
        reconstruct: r, `(x, sigma) -> like x`.
        x: Images in data units, shape (batch, channels, height, width).
        sigma: Noise level, a number or shape (batch,).
        noise: The draw of N(0, I) inside eq. 7, shape of `x` or broadcastable to it; None for r(x) without inner noise.

    Returns:
        The residual in units of sigma, shape of `x`. Its half squared norm is the energy.
    """
    sigma = expand_sigma(sigma, x)
    noisy = x if noise is None else x + append_dims(sigma, x) * noise
    return (x - reconstruct(noisy, sigma)) / append_dims(sigma, x)


def texture_energy_map(
    reconstruct: Reconstruct, x: Tensor, sigma: Tensor | float, noise: Tensor | None = None
) -> Tensor:
    r"""Return the energy of every pixel, shape (batch, height, width), whose sum is eq. 7.

    `noise` as in `texture_residual`, or with a leading dimension of draws, shape (draws, ...), to average over.
    """
    draws: list[Tensor | None] = [noise] if noise is None or noise.ndim == x.ndim else list(noise)
    maps = [0.5 * texture_residual(reconstruct, x, sigma, draw).square().sum(1) for draw in draws]
    return torch.stack(maps).mean(0) if len(maps) > 1 else maps[0]


def texture_energy(reconstruct: Reconstruct, x: Tensor, sigma: Tensor | float, noise: Tensor | None = None) -> Tensor:
    r"""Return U^c(x, sigma) = |x - r(x + sigma noise, sigma)|^2 / (2 sigma^2), eq. 7, shape (batch,)."""
    return texture_energy_map(reconstruct, x, sigma, noise).sum((1, 2))


def semantic_energy(
    decode: Decode, reconstruct: Reconstruct, z: Tensor, sigma: Tensor | float, noise: Tensor | None = None
) -> Tensor:
    r"""Return U^s(z, sigma) = U^c(h(z), sigma), eq. 8, shape (batch,).

    Args:
        decode: h_gamma, `z -> images`.
        reconstruct: r, `(x, sigma) -> like x`.
        z: Codes, shape (batch, latent_dim).
        sigma: Noise level, a number or shape (batch,).
        noise: As in `texture_energy_map`, of the shape of h(z).
    """
    return texture_energy(reconstruct, decode(z), sigma, noise)


def draw_noise(shape: tuple[int, ...], generator: RandomSource | None, like: Tensor) -> Tensor:
    """Draw N(0, I) where the source is (so that a seed gives the same chain everywhere) and move it to `like`.

    Args:
        shape: (images, ...).
        generator: One for all images, or one for each (`utils.seeds.ImageNoise`); torch's global one if None.
        like: Of whose type and device the result is.
    """
    return _draw(torch.randn, shape, generator, like)


def draw_uniform(shape: tuple[int, ...], generator: RandomSource | None, like: Tensor) -> Tensor:
    """Draw from [0, 1), as `draw_noise` draws N(0, I)."""
    return _draw(torch.rand, shape, generator, like)


def _draw(kind: Callable[..., Tensor], shape: tuple[int, ...], generator: RandomSource | None, like: Tensor) -> Tensor:
    if isinstance(generator, ImageNoise):
        return generator.draw(kind, shape, like.dtype).to(like.device)
    device = generator.device if generator is not None else like.device
    return kind(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


def value_and_gradient(function: EnergyFunction, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return energies, shape (batch,), and their exact gradient in x, shape of `x`; both detached.

    Only the input's gradient is computed: parameters get none, and no graph survives the call.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        energy = function(x, sigma)
        (gradient,) = torch.autograd.grad(energy.sum(), x)
    return energy.detach(), gradient.detach()


class Energy:
    """An energy function with its gradient.

    Args:
        function: `(x, sigma) -> energies of shape (batch,)`, differentiable in x.
    """

    def __init__(self, function: EnergyFunction) -> None:
        self._function = function

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return the energies of `x` at `sigma`, shape (batch,)."""
        return self._function(x, expand_sigma(sigma, x))

    def gradient(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return the energies, shape (batch,), and the drift's gradient, shape of `x`."""
        return value_and_gradient(self._function, x, expand_sigma(sigma, x))

    def resample_noise(self, x: Tensor, generator: RandomSource | None) -> Energy:
        """Return this energy with a fresh draw of its inner noise held fixed; the same object if it has none."""
        return self

    def denoise(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return the energies, shape (batch,), and the denoiser D(x) = x - l^2 grad U (Tweedie), shape of `x`.

        l is `noise_scale`.
        """
        sigma = expand_sigma(sigma, x)
        value, gradient = self.gradient(x, sigma)
        return value, x - append_dims(self.noise_scale(sigma) ** 2, x) * gradient

    def noise_scale(self, sigma: Tensor) -> Tensor:
        """Return the length in which samplers measure steps at `sigma`: sigma itself in data space."""
        return sigma

    def __add__(self, other: Energy | EnergyFunction) -> SumEnergy:
        """Return the sum of two energies: the density of one times that of the other; see `SumEnergy`."""
        return SumEnergy([(1.0, self), (1.0, other)])

    def __mul__(self, weight: float) -> SumEnergy:
        """Return this energy times a number: the density to that power."""
        return SumEnergy([(weight, self)])

    __rmul__ = __mul__


def as_energy(energy: EnergyFunction | Energy) -> Energy:
    """Wrap a plain function as an `Energy`."""
    return energy if isinstance(energy, Energy) else Energy(energy)


class SumEnergy(Energy):
    r"""A weighted sum of energies, sum_i w_i U_i(x, sigma): the product of their densities to the powers w_i.

    What it is at a noise level is the product of the smoothed densities, which is not the product smoothed, but for terms
    that do not depend on sigma at its smallest level. So its denoiser is that of no clean image, and samplers that go down
    in noise by it end elsewhere than at the product. Langevin steps at each level correct that, and only the last levels
    matter to what they sample; Metropolis tests need energies, as here (Du et al., 2023).

    The operators of `Energy` make sums too: `a + 0.5 * b`.

    Args:
        terms: (weight, energy), one or more; a plain function `(x, sigma) -> (batch,)` will do for an energy. Steps are
            measured in the noise scale of the first: a term that is stiffer, with second derivatives above 1 / sigma^2,
            needs smaller steps.

    Raises:
        ValueError: If there is no term, or a weight is not finite.
    """

    def __init__(self, terms: Sequence[tuple[float, Energy | EnergyFunction]]) -> None:
        if not terms:
            raise ValueError("a sum of energies needs at least one term")
        self.terms: list[tuple[float, Energy]] = [(float(weight), as_energy(energy)) for weight, energy in terms]
        for weight, _ in self.terms:
            if not math.isfinite(weight):
                raise ValueError(f"the weight of an energy must be finite, got {weight}")
        super().__init__(lambda x, sigma: torch.stack([w * term(x, sigma) for w, term in self.terms]).sum(0))

    def gradient(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return the sums of the terms' energies and of their gradients, each by its own drift."""
        parts = [(weight, term.gradient(x, sigma)) for weight, term in self.terms]
        values = torch.stack([weight * value for weight, (value, _) in parts])
        return values.sum(0), torch.stack([weight * gradient for weight, (_, gradient) in parts]).sum(0)

    def resample_noise(self, x: Tensor, generator: RandomSource | None) -> Energy:
        """Return the sum of the terms with fresh inner noise, held fixed; the same object if none has any."""
        fresh = [(weight, term.resample_noise(x, generator)) for weight, term in self.terms]
        same = all(new is old for (_, new), (_, old) in zip(fresh, self.terms, strict=True))
        return self if same else SumEnergy(fresh)

    def noise_scale(self, sigma: Tensor) -> Tensor:
        """Return the noise scale of the first term."""
        return self.terms[0][1].noise_scale(sigma)


class TextureEnergy(Energy):
    """U^c of eq. 7 as an energy for chains in pixels.

    Args:
        reconstruct: r, `(x, sigma) -> like x`.
        inner_noise: Eq. 7's noise inside r. It is drawn at every `resample_noise` (every step of a chain); before the
            first one the energy is that without inner noise.
        drift: `energy` uses the gradient of eq. 21; `denoiser` only its first term (x - r) / sigma^2, the score of the
            denoiser r, which needs no backward pass but is no gradient of any function.
    """

    def __init__(
        self,
        reconstruct: Reconstruct,
        *,
        inner_noise: bool,
        drift: Drift = "energy",
        noise: Tensor | None = None,
    ) -> None:
        super().__init__(lambda x, sigma: texture_energy(reconstruct, x, sigma, noise))
        self._reconstruct = reconstruct
        self._inner_noise = inner_noise
        self._drift: Drift = drift
        self._noise = noise

    def gradient(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return energies and the exact gradient (eq. 21), or energies and its first term."""
        if self._drift == "energy":
            return super().gradient(x, sigma)
        with torch.no_grad():
            residual = texture_residual(self._reconstruct, x, sigma, self._noise)
            return 0.5 * residual.square().flatten(1).sum(1), residual / append_dims(expand_sigma(sigma, x), x)

    def resample_noise(self, x: Tensor, generator: RandomSource | None) -> Energy:
        """Return this energy with fresh inner noise of the shape of `x`, held fixed."""
        if not self._inner_noise:
            return self
        noise = draw_noise(tuple(x.shape), generator, x)
        return TextureEnergy(self._reconstruct, inner_noise=True, drift=self._drift, noise=noise)


class SemanticEnergy(Energy):
    """U^s of eq. 8 as an energy for chains in the latent space.

    Args:
        decode: h_gamma, `z -> images`.
        reconstruct: r, `(x, sigma) -> like x`.
        inner_noise: As in `TextureEnergy`.
        prior: Weight of |z|^2 / 2, which eq. 9 leaves out (0).
        jacobian_norm: Root mean square length by which h moves for a unit step in z. A step of length l in z is one of
            length l * jacobian_norm in the image, so samplers measure steps in sigma / jacobian_norm.
    """

    def __init__(
        self,
        decode: Decode,
        reconstruct: Reconstruct,
        *,
        inner_noise: bool,
        prior: float = 0.0,
        jacobian_norm: float = 1.0,
        noise: Tensor | None = None,
    ) -> None:
        def function(z: Tensor, sigma: Tensor) -> Tensor:
            energy = semantic_energy(decode, reconstruct, z, sigma, noise)
            return energy + 0.5 * prior * z.square().sum(1) if prior else energy

        super().__init__(function)
        self._decode = decode
        self._reconstruct = reconstruct
        self._inner_noise = inner_noise
        self._prior = prior
        self._jacobian_norm = jacobian_norm

    def resample_noise(self, x: Tensor, generator: RandomSource | None) -> Energy:
        """Return this energy with fresh inner noise of the shape of h(x), held fixed."""
        if not self._inner_noise:
            return self
        with torch.no_grad():
            shape = tuple(self._decode(x[:1]).shape[1:])
        return SemanticEnergy(
            self._decode,
            self._reconstruct,
            inner_noise=True,
            prior=self._prior,
            jacobian_norm=self._jacobian_norm,
            noise=draw_noise((len(x), *shape), generator, x),
        )

    def noise_scale(self, sigma: Tensor) -> Tensor:
        """Return sigma / jacobian_norm, at most 1: codes are spread over N(0, I)."""
        return (sigma / self._jacobian_norm).clamp_max(1.0)
