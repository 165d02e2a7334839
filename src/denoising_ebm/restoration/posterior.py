r"""Posterior sampling: annealed Langevin on the texture energy plus a data term, for any `Degradation`.

At level sigma the model's denoiser D estimates x0 with an error of about $r^2 = \sigma^2 s^2 / (\sigma^2 + s^2)$, s the
standard deviation of the data. The observation adds the data term $|y - A D(x)|^2 / 2 (r^2 A^2 + s_y^2)$. Its gradient in
x, through D, times $\sigma^2$, corrects D to the mean of x0 given both (Song et al., 2023). A corrected denoiser is a
denoiser, so the chains are those of sampling. The Jacobian of D carries what is known of one pixel to its neighbours:
without it (a multiple of the identity in its place) missing pixels do not join what is around them.

One r^2 for all directions is wrong by orders of magnitude, since images are smooth. Where pixels are missing the known ones
are weighed by the r_f^2 of each frequency f instead (`restoration.prior`), in images of up to `MAX_PRECISION_SIZE`. A model
trained by `score` has neither: its D is a gradient itself, whose Jacobian would take second derivatives at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from denoising_ebm.datasets.images import to_float, to_uint8
from denoising_ebm.energies import TextureEnergy, draw_noise
from denoising_ebm.literals import Estimate
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.noise import append_dims, expand_sigma, karras_sigmas
from denoising_ebm.restoration.operators import Degradation
from denoising_ebm.restoration.prior import natural_variances
from denoising_ebm.samplers import ChainState, ancestral, consistent_annealed_sampling
from denoising_ebm.utils.seeds import ImageNoise

Denoise = Callable[[Tensor, Tensor], Tensor]

#: Bound on sigma^2 / r^2 in the data term's gradient, where one r^2 stands for all directions.
MAX_GUIDANCE_SCALE = 5.0
#: How many times further than to the known pixels a step may go; it would without end if the images had much more fine
#: detail than `restoration.prior` says.
MAX_OVERSHOOT = 4.0
#: Largest images, in pixels a side, whose missing pixels are weighed by frequency: the matrix takes 8 size^4 bytes.
MAX_PRECISION_SIZE = 96


class GuidedDenoiser:
    """The mean of x0 given x, an image with noise of a level, and y: D(x), corrected by the gradient of the data term.

    Args:
        model: Of clean images.
        degradation: What made `y`.
        y: Degraded images, shape `(batch, channels, size, size)`.
    """

    def __init__(self, model: DenoisingEBM, degradation: Degradation, y: Tensor) -> None:
        self._model, self._degradation, self._y = model, degradation, y
        self._deviation = model.config.network.sigma_data
        self._prior = natural_variances(y.shape[-1], self._deviation).to(y.device)

    def uncertainty(self, sigma: Tensor) -> Tensor:
        """Return r, how far D may be off where all directions are alike."""
        return sigma * self._deviation / (sigma**2 + self._deviation**2).sqrt()

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return corrected images.

        Args:
            x: Several samples of the whole batch, shape `(samples * batch, channels, size, size)`.
            sigma: One noise level.
        """
        sigma, num = expand_sigma(sigma, x), len(self._y)
        precision = None
        small, by_output = x.shape[-1] <= MAX_PRECISION_SIZE, self._model.config.energy.denoiser == "output"
        if self._degradation.hides_pixels and small and by_output:
            level = float(sigma[0]) ** 2
            precision = self._degradation.precision_operator(level * self._prior / (level + self._prior))
        # A sample at a time, which bounds the memory that derivatives take.
        return torch.cat([self._correct(x[i : i + num], sigma[i : i + num], precision) for i in range(0, len(x), num)])

    def _correct(self, x: Tensor, sigma: Tensor, precision: Callable[[Tensor], Tensor] | None) -> Tensor:
        model, degradation, y = self._model, self._degradation, self._y
        if model.config.energy.denoiser == "gradient":
            return degradation.data_consistency(model.denoise(x, sigma), y, self.uncertainty(sigma))
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            denoised = model.denoise(x, sigma)
            mean = denoised.detach()
            if precision is not None:
                residual = y - degradation.apply(mean)
                guidance, guidance_scale = precision(residual), sigma.square()
            else:
                guidance = degradation.data_consistency(mean, y, self.uncertainty(sigma)) - mean
                # sigma^2 / r^2, bounded: coarse structure is far more uncertain than a single r^2 says, and at high levels
                # it would be pushed out of the range of images.
                guidance_scale = (sigma / self.uncertainty(sigma)).square().clamp_max(MAX_GUIDANCE_SCALE)
            (gradient,) = torch.autograd.grad((denoised * guidance).sum(), x)
        correction = append_dims(guidance_scale, gradient) * gradient
        if precision is not None:
            reached = degradation.apply(correction)
            share = (residual * reached).sum((1, 2, 3)) / reached.square().sum((1, 2, 3)).clamp_min(1e-12)
            correction = append_dims((MAX_OVERSHOOT * share).clamp(0, 1), correction) * correction
        return mean + correction


def restore_batches(
    model: DenoisingEBM,
    pixels: Tensor,
    degradation: Degradation,
    *,
    degrade: bool = False,
    as_file: bool = True,
    batch_size: int = 64,
    seed: int = 0,
    images: Sequence[int] | None = None,
    **options: Any,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Restore any number of images, batch after batch; what each becomes does not depend on the batches.

    Args:
        model: The model of clean images.
        pixels: The images, uint8, shape `(n, channels, height, width)`.
        degradation: What made them.
        degrade: The images are clean: degrade them first.
        as_file: Clip and round the degraded images to 8 bits, as a file would hold them, before they are restored. Without
            it noise goes beyond the range of pixels, which tells the restoration more than any file could.
        batch_size: Images that are restored at once.
        seed: Of noise and chains.
        images: Index of each image: its draws depend on it and the seed alone. 0, 1, 2, ... if None.
        options: Further ones of `restore`.

    Yields:
        The degraded and the restored images of each batch, uint8.
    """
    indices = range(len(pixels)) if images is None else images
    for first, batch in zip(range(0, len(pixels), batch_size), torch.split(pixels, batch_size), strict=True):
        y, chosen = to_float(batch), indices[first : first + batch_size]
        if degrade:
            y = degradation.apply(y, ImageNoise.of(seed, chosen, "degrade"))
        held = to_uint8(y)
        if as_file:
            y = to_float(held)
        yield held, to_uint8(restore(model, y, degradation, seed=seed, images=chosen, **options).cpu())


@torch.no_grad()
def restore(
    model: DenoisingEBM,
    y: Tensor,
    degradation: Degradation,
    *,
    estimate: Estimate = "mean",
    num_samples: int = 8,
    steps: int = 50,
    step_size: float = 0.0,
    seed: int = 0,
    images: Sequence[int] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Restore degraded images.

    Args:
        model: The model of clean images.
        y: Degraded images in data units, shape `(batch, channels, height, width)`.
        degradation: What made them.
        estimate: `mean` averages `num_samples` chains: the smaller error, the smoother image. `sample` is one chain, a
            sample of the posterior. Where the degradation is noise alone the mean is D(y, s), one pass of the network.
        num_samples: Chains to average, >= 1.
        steps: Langevin steps of a chain, >= 2; each costs a forward and a backward pass.
        step_size: eta of `consistent_annealed_sampling`, within [0, 1]; 0 for ancestral sampling.
        seed: Of all draws.
        images: Index of each image: its draws depend on it and the seed alone. 0, 1, 2, ... if None.
        progress: Called with the number of images after every step of a chain.

    Returns:
        Restored images, shape of `y`, about in [-1, 1].

    Raises:
        ValueError: If a number is out of range or the images have another shape than the model's.
    """
    if tuple(y.shape[1:]) != model.image_shape:
        raise ValueError(f"images must have shape {model.image_shape}, got {tuple(y.shape[1:])}")
    if num_samples < 1 or steps < 2:
        raise ValueError(f"num_samples must be >= 1 and steps >= 2, got {num_samples} and {steps}")
    if not 0 <= step_size <= 1:
        raise ValueError(f"step_size must be within [0, 1], got {step_size}")
    y = y.to(model.device)
    noise = model.config.noise
    only_noise = degradation.basis is None and bool((degradation.gains == 1).all())
    least = noise.sigma_min if only_noise else 0.0
    if not least <= degradation.noise <= noise.sigma_max:
        raise ValueError(
            f"sigma must be within the model's noise levels, {noise.sigma_min:g} to {noise.sigma_max:g}, got "
            f"{degradation.noise:g}"
        )
    if only_noise and estimate == "mean":
        return model.denoise(y, degradation.noise)

    def callback(state: ChainState) -> None:
        if progress is not None:
            progress(len(observed))

    num = num_samples if estimate == "mean" else 1
    noise_source = ImageNoise.of(seed, range(len(y)) if images is None else images, "restore", repeats=num)
    observed, guided = y.repeat(num, 1, 1, 1), None
    denoise: Denoise = model.denoise
    if only_noise:
        # y is already at its level of noise: the chain goes on from there, on the energy alone.
        sigmas, x = karras_sigmas(degradation.noise, noise.sigma_min, steps), observed
    else:
        sigmas = karras_sigmas(noise.sigma_max, noise.sigma_min, steps)
        denoise = guided = GuidedDenoiser(model, degradation, y)
        spread = (noise.sigma_max**2 + model.config.network.sigma_data**2) ** 0.5
        x = spread * draw_noise(tuple(observed.shape), noise_source, y)
    energy = TextureEnergy(denoise, inner_noise=False, drift="denoiser")
    options = {"generator": noise_source, "callback": callback}
    # Of first order: the data term changes too fast to be carried on.
    if step_size:
        x = consistent_annealed_sampling(energy, x, sigmas, step_size=step_size, **options)  # type: ignore[arg-type]
    else:
        x = ancestral(energy, x, sigmas, **options)  # type: ignore[arg-type]
    x = model.denoise(x, noise.sigma_min)
    if guided is not None:
        # What is known without noise is not left to the network.
        x = degradation.data_consistency(x, observed, guided.uncertainty(expand_sigma(noise.sigma_min, x)))
    return x.reshape(num, *y.shape).mean(0)
