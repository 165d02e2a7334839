"""DenoisingEBM: the networks as one module, with the four jobs: generate, score, localise, restore."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from denoising_ebm import energies
from denoising_ebm.config import Config, Drift, PixelMethod, PixelSampler, SamplerName, SamplingConfig
from denoising_ebm.datasets.images import to_float
from denoising_ebm.datasets.preprocessing import Preprocessing
from denoising_ebm.energies import Energy, SemanticEnergy, TextureEnergy, draw_noise
from denoising_ebm.hub import UNMEASURED, find_model_folder, read_model_folder, write_model_folder
from denoising_ebm.likelihood.discrete import bound_bits, energy_bits, integral_bits
from denoising_ebm.likelihood.gaussian import GaussianFit
from denoising_ebm.likelihood.immse import Estimate, Quadrature, expected_negative_log_density, negative_log_density
from denoising_ebm.likelihood.noise_level import NoiseLevel, estimate_noise
from denoising_ebm.literals import Likelihood, Precision
from denoising_ebm.networks.decoder import SemanticDecoder
from denoising_ebm.networks.density import DensityNetwork
from denoising_ebm.networks.precondition import DenoisingAutoencoder
from denoising_ebm.noise import append_dims, expand_sigma
from denoising_ebm.samplers import (
    METHODS,
    Callback,
    ChainState,
    pixel_nfe,
    sample_pixels,
    two_stage,
    two_stage_nfe,
)
from denoising_ebm.schema import TensorSpec, module_specs
from denoising_ebm.utils.device import choose_device, choose_precision
from denoising_ebm.utils.seeds import ImageNoise, RandomSource

#: A sampler by name or by its settings; see `DenoisingEBM.configure_sampler`.
Sampler = SamplerName | SamplingConfig | PixelSampler


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What the autoencoder computed for a batch of images, in float32."""

    reconstruction: Tensor  #: r(x, sigma), shape of x.
    code: Tensor  #: z = f_alpha(x, sigma), whitened, shape (batch, latent_dim).
    statistics: Tensor  #: Mean and standard deviation of every inner channel of the U-Net, shape (batch, columns).


@dataclasses.dataclass(frozen=True)
class Samples:
    """Drawn images, on the model's device.

    Attributes:
        images: About in [-1, 1], shape `(n, channels, height, width)`.
        semantic: The semantic images h(z^K) that they started from, same shape; None without a semantic stage.
        latents: Their codes z^K, shape `(n, latent_dim)`; None without a semantic stage.
        nfe: Network evaluations an image; an exact gradient counts three (forward, and twice that backward).
    """

    images: Tensor
    semantic: Tensor | None
    latents: Tensor | None
    nfe: int


#: Noise levels at which a model keeps the energies of its reference images, for percentiles.
REFERENCE_SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
QUANTILES = 1001


class DenoisingEBM(nn.Module):
    """A Denoising-EBM: DAE r = g_beta(f_alpha), semantic decoder h_gamma, and the energies made of them.

    `density` is the network of -log q_sigma(x), None in a model without (`config.energy.density`).

    Images are float tensors of shape (batch, channels, height, width) in [-1, 1]; `sigma` is a number or a tensor of
    shape (batch,), in the same units; energies have shape (batch,), low = likely.

    Args:
        config: Sizes, energy and sampling settings.
        metadata: What is known of the weights (data, images seen, figures), kept in the model folder.
        preprocessing: How the images were prepared that it was trained on, kept there too; None if that is not known.
    """

    jacobian_norm: Tensor
    reference: Tensor

    def __init__(
        self, config: Config, metadata: dict[str, Any] | None = None, preprocessing: Preprocessing | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.metadata = dict(metadata or {})
        self.preprocessing = preprocessing
        self.dae = DenoisingAutoencoder(config.network)
        self.decoder = SemanticDecoder(config.network)
        self.density = DensityNetwork(config.network, config.noise) if config.energy.density else None
        self.register_buffer("jacobian_norm", torch.ones(()))
        self.register_buffer("reference", torch.full((len(REFERENCE_SIGMAS), QUANTILES), float("nan")))
        self._compute_dtype: torch.dtype | None = None
        # Convolutions on small images are twice as fast in this layout, on CPUs and GPUs alike.
        self.to(memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.jacobian_norm.device

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        network = self.config.network
        return network.channels, network.image_size, network.image_size

    def set_precision(self, precision: Precision) -> DenoisingEBM:
        """Run the networks in bf16 or fp32 from now on (`auto`: what is fast here); energies stay in float32."""
        self._compute_dtype = torch.bfloat16 if choose_precision(precision, self.device) == "bf16" else None
        return self

    @property
    def precision(self) -> Precision:
        """What `set_precision` chose: `bf16` or `fp32`."""
        return "fp32" if self._compute_dtype is None else "bf16"

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        # Nothing at all by default, so that a trainer's own autocast stays in force.
        if self._compute_dtype is None:
            yield
        else:
            with torch.autocast(self.device.type, dtype=self._compute_dtype):
                yield

    # -- networks ---------------------------------------------------------------------------------------------------

    def reconstruct(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return r(x, sigma), the output of the autoencoder, shape of `x`."""
        with self._autocast():
            output: Tensor = self.dae(x, sigma)[0]
        return output

    def encode(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return the codes z = f_alpha(x, sigma), shape (batch, latent_dim), distributed about as N(0, I)."""
        with self._autocast():
            return self.dae.encode(x, sigma)

    def inspect(self, x: Tensor, sigma: Tensor | float) -> Inspection:
        """Return r(x, sigma), and from the same pass the code and statistics of the features of every resolution."""
        inner: list[Tensor] = []
        with self._autocast():
            reconstruction, code = self.dae(x, sigma, inner)
            z = self.dae.unet.whitening(code)
        flat = [features.float().flatten(2) for features in inner]
        statistics = [
            part
            for features in flat
            for part in (features.mean(2), features.std(2, correction=min(1, features.shape[2] - 1)))
        ]
        return Inspection(reconstruction, z, torch.cat(statistics, dim=1))

    def decode(self, z: Tensor) -> Tensor:
        """Return the semantic images h_gamma(z) of codes of shape (batch, latent_dim)."""
        with self._autocast():
            output: Tensor = self.decoder(z)
        return output

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return D(x, sigma), the estimate of E[x0 | x], shape of `x`.

        D is r for a model trained by denoising and x - sigma^2 grad U(x, sigma) for one trained by `score`. That of the
        density network is `pixel_energy("density").denoise`.
        """
        sigma = expand_sigma(sigma, x)
        if self.config.energy.denoiser == "output":
            return self.reconstruct(x, sigma)
        gradient = TextureEnergy(self.reconstruct, inner_noise=False).gradient(x, sigma)[1]
        return x - append_dims(sigma, x) ** 2 * gradient

    # -- energies ---------------------------------------------------------------------------------------------------

    def energy(self, x: Tensor, sigma: Tensor | float, noise: Tensor | None = None) -> Tensor:
        """Return the texture energy U^c (eq. 7), shape (batch,); `noise` as in `energies.texture_energy_map`.

        Without `noise` it is the energy without inner noise, whatever the config says. Percentiles of a model whose config
        has inner noise are of the energy with `scoring_noise(4)`.
        """
        return energies.texture_energy(self.reconstruct, x, sigma, noise)

    def density_energy(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return the energy of the density network, -log q_sigma(x) in nats, shape (batch,).

        q_sigma is the density of data with noise of `sigma`, at x, which has to have such noise to be typical of it. In a
        model whose levels are not normalised it is known up to a number for each level.

        Raises:
            ValueError: If the model has no density network.
        """
        network, sigma = self._density_network(), expand_sigma(sigma, x)
        with self._autocast():
            energy: Tensor = network(x, sigma)
        return energy + network.log_normaliser(sigma) if network.is_normalised else energy

    def _density_network(self) -> DensityNetwork:
        if self.density is None:
            raise ValueError(
                "this model has no density network: train one on it with an energy stage (`debm train --initial MODEL` "
                "with --energy.density true), or use the denoiser (drift: denoiser; likelihoods by method immse)"
            )
        return self.density

    def energy_map(self, x: Tensor, sigma: Tensor | float, noise: Tensor | None = None) -> Tensor:
        """Return the texture energy of every pixel, shape (batch, height, width); its sum is `energy`."""
        return energies.texture_energy_map(self.reconstruct, x, sigma, noise)

    def semantic_energy(self, z: Tensor, sigma: Tensor | float, noise: Tensor | None = None) -> Tensor:
        """Return the semantic energy U^s (eq. 8) of codes, shape (batch,)."""
        return energies.semantic_energy(self.decode, self.reconstruct, z, sigma, noise)

    def fingerprint(self) -> str:
        """Return a hash of the weights and code statistics: what a detector must have been fitted with."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.dae.state_dict().items()) + sorted(self.decoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
        return digest.hexdigest()[:16]

    def scoring_noise(self, num_samples: int = 1, seed: int = 0) -> Tensor:
        """Return samples of eq. 7's noise, shape (num_samples, 1, channels, height, width), the same for every image.

        With them an image's energy depends on the image and the seed alone, not on its batch.
        """
        generator = torch.Generator().manual_seed(seed)
        return torch.randn((num_samples, 1, *self.image_shape), generator=generator).to(self.device)

    def pixel_energy(self, sampler: PixelSampler | Drift | None = None) -> Energy:
        """Return the energy that samplers in pixels follow, with the drift of `sampler` or of the model's own.

        It is that of the density network for the drift `density`, else U^c. A model trained by `score`, whose denoiser is
        the gradient, has the exact gradient alone. A solver of an ODE gets the texture energy without inner noise, since it
        follows a function.

        Raises:
            ValueError: If the drift is `density` and the model has no density network.
        """
        chosen = self.config.sampling.pixel if sampler is None else sampler
        drift = chosen.drift if isinstance(chosen, PixelSampler) else chosen
        if drift == "density":
            self._density_network()
            return Energy(self.density_energy)
        deterministic = isinstance(chosen, PixelSampler) and not METHODS[chosen.method].stochastic
        return TextureEnergy(
            self.reconstruct,
            inner_noise=self.config.energy.inner_noise and not deterministic,
            drift="energy" if self.config.energy.denoiser == "gradient" else drift,
        )

    def semantic(self, prior: float | None = None) -> SemanticEnergy:
        """Return U^s as an energy for chains."""
        return SemanticEnergy(
            self.decode,
            self.reconstruct,
            inner_noise=self.config.energy.inner_noise,
            prior=self.config.sampling.semantic.prior if prior is None else prior,
            jacobian_norm=float(self.jacobian_norm),
        )

    # -- likelihood -------------------------------------------------------------------------------------------------

    def log_prob(
        self,
        x: Tensor,
        sigma: float | None = None,
        *,
        method: Literal["energy", "immse"] = "energy",
        quadrature: Quadrature | None = None,
        anchor: GaussianFit | None = None,
        seed: int = 0,
        batch_size: int = 256,
    ) -> Tensor:
        """Return log q_sigma(x) in nats, shape (batch,); q_sigma is the density of data with noise of `sigma`.

        Args:
            x: Images with such noise, shape (batch, channels, height, width).
            sigma: Noise level, within those of training; `noise.sigma_min` if None.
            method: `energy`: one pass of the density network, differentiable in x. `immse`: the integral over noise levels
                of the denoiser, which every model has, some 64 passes an image; `immse` gives its standard error too.
            quadrature: Of the integral, as for `immse`.
            anchor: As for `immse`.
            seed: Of the integral's draws.
            batch_size: Images per forward pass of the integral.

        Raises:
            ValueError: If x is no noisy image of the model's size, or sigma is out of range; for `energy`, if the model has
                no density network or its levels are not normalised.
        """
        if method == "immse":
            how: dict[str, Any] = {"quadrature": quadrature, "anchor": anchor, "seed": seed, "batch_size": batch_size}
            return -self.immse(x, sigma, **how).value
        if method != "energy":
            raise ValueError(f"unknown method {method!r}: use energy or immse")
        level = self._checked(x, sigma)
        self._check_normalised()
        return -self.density_energy(x, level)

    @torch.no_grad()
    def immse(
        self,
        x: Tensor,
        sigma: float | None = None,
        *,
        clean: bool = False,
        quadrature: Quadrature | None = None,
        anchor: GaussianFit | None = None,
        seed: int = 0,
        batch_size: int = 256,
        progress: Callable[[int], object] | None = None,
    ) -> Estimate:
        """Return -log q_sigma(x) in nats by the denoiser, with its standard error, each of shape (batch,).

        Args:
            x: Images with noise of `sigma`, or clean ones.
            sigma: Noise level, within those of training; `noise.sigma_min` if None.
            clean: Return the mean over n of -log q_sigma(x + sigma n) instead.
            quadrature: How many levels and draws; by default 32 and 2, with the model's `sigma_data`.
            anchor: Mean and covariance of clean images (`GaussianFit.of`), of which q at the largest level is taken for a
                Gaussian; N(0, sigma_data^2 I) if None.
            seed: Of levels and noise; an image's draws depend on it and on the image alone.
            batch_size: Images per forward pass.
            progress: Called with the number of images after each batch.

        Raises:
            ValueError: If x is no image of the model's size with that noise, or sigma is out of range.
        """
        level = self._checked(x, sigma, clean=clean)
        estimate = expected_negative_log_density if clean else negative_log_density
        settings = quadrature or Quadrature(sigma_data=self.config.network.sigma_data)
        found = []
        for part in torch.split(x, batch_size) if len(x) else ():
            noise = ImageNoise.by_content(seed, part, "likelihood")
            high = self.config.noise.sigma_max
            found.append(estimate(self.denoise, part, level, high, quadrature=settings, anchor=anchor, generator=noise))
            if progress is not None:
                progress(len(part))
        return Estimate.joined(found, x.device)

    @torch.no_grad()
    def bits_per_dim(
        self,
        pixels: Tensor,
        *,
        method: Likelihood = "energy",
        draws: int = 1,
        quadrature: Quadrature | None = None,
        anchor: GaussianFit | None = None,
        seed: int = 0,
        batch_size: int = 256,
        progress: Callable[[int], object] | None = None,
    ) -> Estimate:
        """Return bits per dimension of images of 8 bits, with standard errors, each of shape (batch,).

        `energy` and `immse` give the density at the smallest level, the mean over n of -log2 q(x + sigma_min n), with a grey
        level for the unit: noise of sigma_min takes the place of uniform dequantisation, and it bounds nothing. `bound` is
        an upper bound of -log2 P(x) of the image itself, for the diffusion that the denoiser defines, from a Gaussian at
        the largest level, with a decoder at the smallest. See docs/likelihood.md.

        Args:
            pixels: uint8, shape (batch, channels, height, width).
            method: See above; `energy` costs one pass for each draw, the others what `immse` costs.
            draws: Draws of n for `energy`; for a single one there is no standard error.
            quadrature: As for `immse`.
            anchor: As for `immse`.
            seed: Of all draws; an image's depend on it and on the image alone.
            batch_size: Images per forward pass.
            progress: Called with the number of images after each batch.

        Raises:
            ValueError: If the images are not of the model's size or not uint8; for `energy`, if the model has no density
                network or its levels are not normalised.
        """
        if pixels.dtype != torch.uint8:
            raise ValueError(f"bits per dimension are of images of 8 bits, uint8, got {pixels.dtype}")
        if draws < 1:
            raise ValueError(f"draws must be >= 1, got {draws}")
        if method not in ("energy", "immse", "bound"):
            raise ValueError(f"unknown method {method!r}: use energy, immse or bound")
        if method == "energy":
            self._check_normalised()
        low, high = self.config.noise.sigma_min, self.config.noise.sigma_max
        settings = quadrature or Quadrature(sigma_data=self.config.network.sigma_data)
        found = []
        for part in torch.split(pixels, batch_size) if len(pixels) else ():
            x, noise = to_float(part).to(self.device), ImageNoise.by_content(seed, part, "likelihood")
            self._checked(x, None, clean=True)
            if method == "energy":
                found.append(energy_bits(self.density_energy, x, low, draws=draws, generator=noise))
            else:
                bits = integral_bits if method == "immse" else bound_bits
                found.append(bits(self.denoise, x, low, high, quadrature=settings, anchor=anchor, generator=noise))
            if progress is not None:
                progress(len(part))
        return Estimate.joined(found, self.device)

    @property
    def has_log_prob(self) -> bool:
        """Whether `log_prob` and `bits_per_dim` work by method `energy`."""
        return self.density is not None and self.density.is_normalised

    @torch.no_grad()
    def noise_level(
        self, x: Tensor, *, batch_size: int = 64, progress: Callable[[int], object] | None = None
    ) -> NoiseLevel:
        """Return the standard deviation of white noise in images, with its standard error, each of shape (batch,).

        It is the level of the smallest energy of the density network within the model's noise levels, `noise.sigma_min` for
        images without noise. Cost: 22 passes of it, in float32 whatever the model's precision.

        Args:
            x: Noisy images of the model's kind in data units ([-1, 1] and noise, not clipped), shape
                (batch, channels, height, width).
            batch_size: Images per forward pass.
            progress: Called with the number of images after each batch.

        Raises:
            ValueError: If x has another shape than the model's images; if the model has no density network or its levels
                are not normalised.
        """
        self._check_normalised()
        if tuple(x.shape[1:]) != self.image_shape:
            raise ValueError(f"images must have shape (batch, {str(self.image_shape)[1:]}, got {tuple(x.shape)}")
        noise, precision = self.config.noise, self.precision
        found = []
        # Energies of neighbouring levels differ by less than bf16 resolves.
        self.set_precision("fp32")
        try:
            for part in torch.split(x.to(self.device), batch_size) if len(x) else ():
                found.append(estimate_noise(self.density_energy, part, noise.sigma_min, noise.sigma_max))
                if progress is not None:
                    progress(len(part))
        finally:
            self.set_precision(precision)
        return NoiseLevel.joined(found, self.device)

    def _check_normalised(self) -> None:
        if not self._density_network().is_normalised:
            raise ValueError(
                "the density network of this model is not normalised, as the end of an energy stage of `debm train` does; "
                "method immse needs none"
            )

    def _checked(self, x: Tensor, sigma: float | None, *, clean: bool = False) -> float:
        """Return the noise level, after refusing what is no image of the model with that noise."""
        low, high = self.config.noise.sigma_min, self.config.noise.sigma_max
        level = low if sigma is None else float(sigma)
        # A level out of a float32 tensor is off by one part in 10^7.
        if not low * (1 - 1e-6) <= level <= high * (1 + 1e-6):
            raise ValueError(f"sigma must be within the model's noise levels, {low:g} to {high:g}, got {level:g}")
        if tuple(x.shape[1:]) != self.image_shape:
            raise ValueError(f"images must have shape (batch, {str(self.image_shape)[1:]}, got {tuple(x.shape)}")
        largest = float(x.detach().abs().max()) if len(x) else 0.0
        # Six standard deviations: one value in 10^9 is beyond by chance.
        limit = 1 + (0 if clean else 6 * level)
        if not largest <= limit + 1e-6:
            raise ValueError(
                f"images must be within [-1, 1]{'' if clean else f' but for noise of sigma {level:g}'}, "
                f"got a value of size {largest:g}"
            )
        return min(max(level, low), high)

    # -- sampling ---------------------------------------------------------------------------------------------------

    def configure_sampler(
        self, sampler: Sampler | None = None, *, steps: int | None = None, drift: Drift | None = None
    ) -> SamplingConfig | PixelSampler:
        """Return the settings that `sample` follows for a sampler, from which `sampler_nfe` knows its cost.

        Args:
            sampler: None or `two-stage`: the model's own two-stage sampler, `config.sampling`. The name of a pixel method
                (`denoising_ebm.samplers.METHODS`): that method from noise of the model's largest level to its smallest,
                with the model's settings if they are for this method, else with the method's defaults. Settings: taken as
                they are; a `PixelSampler` starts from noise.
            steps: Noise levels in pixels, in place of those of the settings.
            drift: What pixels follow, in place of what the settings say: `density`, `energy` or `denoiser`.

        Raises:
            ValueError: If `steps` < 1, the sampler is unknown, or the method does not go with the drift.
        """
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be >= 1, got {steps}")
        if sampler is None or sampler == "two-stage":
            sampler = self.config.sampling
        elif isinstance(sampler, str):
            sampler = self._from_noise(sampler)
        pixel = sampler.pixel if isinstance(sampler, SamplingConfig) else sampler
        pixel = replace(pixel, steps=pixel.steps if steps is None else steps, drift=drift or pixel.drift)
        return replace(sampler, pixel=pixel) if isinstance(sampler, SamplingConfig) else pixel

    def _from_noise(self, name: PixelMethod) -> PixelSampler:
        """Return the settings of a method that starts from noise of the largest level that the model was trained at."""
        if name not in METHODS:
            raise ValueError(f"unknown sampler {name!r}: use two-stage, {', '.join(METHODS)}")
        method, own, noise = METHODS[name], self.config.sampling.pixel, self.config.noise
        if own.method != name:
            drift: Drift = own.drift
            if method.needs_energy and drift == "denoiser":
                drift = "energy" if self.density is None else "density"
            own = PixelSampler(name, steps=method.default_steps, schedule=method.default_schedule, drift=drift)
        return replace(own, sigma_max=noise.sigma_max, sigma_min=noise.sigma_min)

    def sampler_nfe(self, sampler: SamplingConfig | PixelSampler) -> int:
        """Return the network evaluations an image that a sampler costs; an exact gradient counts three."""
        pixel = sampler.pixel if isinstance(sampler, SamplingConfig) else sampler
        by_gradient = self.config.energy.denoiser == "gradient" or pixel.drift == "density"
        denoiser: Drift = "energy" if by_gradient else "denoiser"
        if isinstance(sampler, SamplingConfig):
            return two_stage_nfe(sampler, denoiser=denoiser)
        return pixel_nfe(sampler, denoiser=denoiser)

    def _last_step(self, sampler: PixelSampler) -> Callable[[Tensor, Tensor | float], Tensor]:
        """Return the denoiser of a chain's last step: that of the energy that it followed."""
        if sampler.drift != "density":
            return self.denoise
        energy = self.pixel_energy(sampler)
        return lambda x, sigma: energy.denoise(x, sigma)[1]

    @torch.no_grad()
    def sample(
        self,
        num: int,
        *,
        sampler: Sampler | None = None,
        steps: int | None = None,
        drift: Drift | None = None,
        seed: int = 0,
        start: int = 0,
        batch_size: int = 64,
        callback: Callback | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Samples:
        """Draw images; each depends on the seed and its index alone, and sets of different seeds are unrelated.

        Up to the rounding of the networks, whose sums run in another order in batches of another size: several processes
        may draw ranges of one set, and more images may be drawn later.

        Args:
            num: Number of images, >= 1.
            sampler: The model's own two-stage sampler (None), a method's name or settings; see `configure_sampler`.
            steps: Noise levels in pixels, in place of those of the sampler.
            drift: What pixels follow, in place of what the sampler says; see `configure_sampler`.
            seed: Of all images; the same draws on every device.
            start: Index of the first image, >= 0: the images `start` to `start + num - 1` of the seed are drawn.
            batch_size: Images that are drawn at once, >= 1.
            callback: Called with the states of the first batch's chains after every step.
            progress: Called with the number of images after each step of a batch.

        Raises:
            ValueError: If a number is out of range or the sampler is unknown.
        """
        for name, value in (("the number of images", num), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if start < 0:
            raise ValueError(f"start must be >= 0, got {start}")
        chosen = self.configure_sampler(sampler, steps=steps, drift=drift)
        parts = []
        for first in range(start, start + num, batch_size):
            count = min(batch_size, start + num - first)

            def step(state: ChainState, first: int = first, count: int = count) -> None:
                if callback is not None and first == start:
                    callback(state)
                if progress is not None:
                    progress(count)

            noise = ImageNoise.of(seed, range(first, first + count))
            parts.append(self._sample_batch(count, chosen, noise, step))
        images, semantic, latents = zip(*parts, strict=True)
        nfe = self.sampler_nfe(chosen)
        if isinstance(chosen, PixelSampler):
            return Samples(torch.cat(images), None, None, nfe)
        return Samples(torch.cat(images), torch.cat(semantic), torch.cat(latents), nfe)

    def _sample_batch(
        self, num: int, sampler: SamplingConfig | PixelSampler, generator: RandomSource, callback: Callback
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return images, semantic images and codes; of the latter two none without a semantic stage."""
        if isinstance(sampler, SamplingConfig):
            z = draw_noise((num, self.config.network.latent_dim), generator, self.jacobian_norm)
            sample = two_stage(
                self.semantic(sampler.semantic.prior),
                self.decode,
                self.pixel_energy(sampler.pixel),
                self._last_step(sampler.pixel),
                z,
                sampler,
                generator=generator,
                callback=callback,
            )
            return sample.images, sample.semantic, sample.latents
        # sigma_max noise around the mean of the data is what x0 + sigma_max noise looks like, the better the larger.
        spread = (sampler.sigma_max**2 + self.config.network.sigma_data**2) ** 0.5
        x = spread * draw_noise((num, *self.image_shape), generator, self.jacobian_norm)
        x = sample_pixels(self.pixel_energy(sampler), x, sampler, generator=generator, callback=callback)
        images = self._last_step(sampler)(x, sampler.sigma_min) if sampler.final_denoise else x
        return images, x[:0], x[:0]

    # -- percentiles ------------------------------------------------------------------------------------------------

    def percentile(self, energy: Tensor, sigma: float) -> Tensor:
        """Return the share (0..100) of reference images whose energy at `sigma` is below `energy`, shape (batch,).

        NaN where the model keeps no reference energies for `sigma` (see `REFERENCE_SIGMAS`).
        """
        matches = [i for i, level in enumerate(REFERENCE_SIGMAS) if abs(level - sigma) <= 1e-6 * level]
        if not matches or bool(self.reference[matches[0]].isnan().any()):
            return torch.full_like(energy, float("nan"))
        return 100 * torch.searchsorted(self.reference[matches[0]], energy.contiguous()) / QUANTILES

    # -- model folder -----------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write `config.json`, `model.safetensors` and the model card `README.md` into `folder`.

        Args:
            folder: Created if missing.
            dtype: Of the stored weights: bfloat16 halves the file. Statistics stay in float32.
        """
        tensors = self.state_dict()
        weights = dict(self.named_parameters())
        tensors |= {name: weight.detach().to(dtype) for name, weight in weights.items()}
        parameters = sum(weight.numel() for weight in weights.values())
        write_model_folder(Path(folder), self.config, self.metadata, self.preprocessing, tensors, parameters)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, device: str = "cpu", revision: str | None = None) -> DenoisingEBM:
        """Load a model: a folder, the name of a bundled model (`fashion-mnist`), or an id on the Hugging Face Hub.

        Args:
            name: Folder, bundled name or Hub id (`owner/name`, or `hf://owner/name`).
            device: Where to put it: `cpu`, `cuda`, `cuda:N` or `auto`.
            revision: Branch, tag or commit on the Hub.

        Returns:
            The model in eval mode.

        Raises:
            FileNotFoundError: If there is no such model or a file is missing from its folder.
            ValueError: If a file is damaged, holds what no model has, or does not fit the others.
        """
        place = choose_device(device)
        stored = read_model_folder(find_model_folder(str(name), revision), expected_tensors)
        model = cls(stored.config, stored.metadata, stored.preprocessing)
        model.load_state_dict(stored.tensors)
        return model.to(place).eval()


def expected_tensors(config: Config) -> dict[str, TensorSpec]:
    """Return what the tensors of a model of this config must be."""
    return specs_of(empty_model(config))


def empty_model(config: Config) -> DenoisingEBM:
    """Return a model without memory, on the device `meta`: names and shapes of its tensors."""
    with torch.device("meta"):
        return DenoisingEBM(config)


def specs_of(model: DenoisingEBM) -> dict[str, TensorSpec]:
    """Return what the tensors of a model like this one must be."""
    options = {name: {"missing": True} for name in UNMEASURED} | {"jacobian_norm": {"positive": True}}
    return module_specs(model, **options)
