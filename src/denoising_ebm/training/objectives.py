"""Objectives: a batch in, losses out. Eq. 1 and 13 (denoising), Algorithm 1 (contrastive), `score`, and `energy`.

Training goes through stages, each with one objective; all have the same interface, so the trainer knows none of them.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel

from denoising_ebm.config import Config, ObjectiveName, PixelMethod
from denoising_ebm.energies import Reconstruct, SemanticEnergy, draw_noise, semantic_energy, texture_energy
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.networks.derivatives import second_derivatives
from denoising_ebm.noise import append_dims, draw_sigmas, loss_weights
from denoising_ebm.samplers import ReplayBuffer, annealed_langevin, consistent_annealed_sampling, default_step_size


@dataclass(frozen=True)
class Batch:
    """One training batch (Algorithm 1, line 3), or a process's share of it."""

    x0: Tensor  #: Clean images in [-1, 1], shape (batch, channels, height, width).
    sigma: Tensor  #: Noise level of each, shape (batch,).
    noise: Tensor  #: Draws of N(0, I), shape of `x0`.
    step: int  #: Step within the training stage, from 0 on.
    generator: torch.Generator  #: For the draws of chains and inner noise.

    @property
    def noisy(self) -> Tensor:
        """x0 + sigma noise."""
        return self.x0 + append_dims(self.sigma, self.x0) * self.noise


class Objective(Protocol):
    """What a training stage minimises."""

    name: ObjectiveName

    def __call__(self, model: DenoisingEBM, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, to differentiate, and the detached figures to log."""
        ...

    def begin(self, model: DenoisingEBM, average: AveragedModel) -> None:
        """Prepare the weights, and their running averages, for a stage that starts with this objective."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed run needs beside the model."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore `state_dict`."""
        ...


def make_objective(name: ObjectiveName, config: Config) -> Objective:
    """Return the objective of a training stage."""
    if name == "contrastive":
        return Contrastive(config)
    if name == "energy":
        return DensityFit(config)
    return Reconstruction(name, config)


class Reconstruction:
    r"""The denoising loss of eq. 1 with the decoder loss of eq. 13; and the `score` objective.

    `denoising`: E w(sigma) |r(x + sigma e) - x|^2: r becomes the denoiser.
    `score`: the same loss of D(x) = x - sigma^2 grad U(x, sigma), with U = |x - r(x)|^2 / 2 sigma^2: denoising score
    matching (eq. 22) on the gradient of the energy itself. Its optimum for Gaussian data is the maximum-likelihood one.
    """

    def __init__(self, name: ObjectiveName, config: Config) -> None:
        self.name: ObjectiveName = name
        self._config = config

    def __call__(self, model: DenoisingEBM, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted sum of both losses."""
        training, noise = self._config.training, self._config.noise
        x = batch.noisy
        if self.name == "score":
            x.requires_grad_(True)
        with torch.enable_grad(), second_derivatives() if self.name == "score" else nullcontext():
            reconstruction, code = model.dae(x, batch.sigma)
            residual = (x - reconstruction) / append_dims(batch.sigma, x)
            denoised = reconstruction
            if self.name == "score":
                (gradient,) = torch.autograd.grad(0.5 * residual.square().sum(), x, create_graph=True)
                denoised = x - append_dims(batch.sigma, x) ** 2 * gradient
            # The energy that the network now gives these data: eq. 7 of x0 with this noise, or that of the noisy image.
            error = residual if self.name == "score" else (batch.x0 - reconstruction) / append_dims(batch.sigma, x)
        weights = loss_weights(noise.weighting, batch.sigma, self._config.network.sigma_data)
        denoising = (weights * (denoised - batch.x0).square().flatten(1).mean(1)).mean()
        decoding = self._decoder_loss(model, batch, code)
        return {
            "loss": denoising + training.decoder_weight * decoding,
            "loss_denoising": denoising.detach(),
            "loss_decoder": decoding.detach(),
            "energy_data": 0.5 * error.detach().square().mean(),
        }

    def _decoder_loss(self, model: DenoisingEBM, batch: Batch, code: Tensor) -> Tensor:
        training = self._config.training
        keep = batch.sigma <= training.decoder_sigma_max
        if model.training:
            model.dae.unet.whitening.update(code, keep)
        z = model.dae.unet.whitening(code if training.decoder_loss_trains_encoder else code.detach())
        errors = (model.decoder(z) - batch.x0).square().flatten(1).mean(1)
        # A mask, not a selection: all parameters take part in every batch, as synchronised training needs.
        loss: Tensor = (errors * keep).mean()
        return loss

    def begin(self, model: DenoisingEBM, average: AveragedModel) -> None:
        """Leave the weights as they are."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return nothing: this objective has no state."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore nothing."""


class DensityFit:
    r"""The `energy` objective: the density network's gradient is fitted to the denoiser.

    E w(sigma) |D(x, sigma) - t|^2 with D(x, sigma) = x - sigma^2 grad U(x, sigma), x = x0 + sigma e, and the target
    t = r(x, sigma), the output of the trained denoiser (Thornton et al., 2025), or t = x0: denoising score matching, eq. 22.
    Both have the same optimum, U(x, sigma) = -log q_sigma(x) + const; the first has no noise in its target. Only the density
    network is trained.
    """

    name: ObjectiveName = "energy"

    def __init__(self, config: Config) -> None:
        self._config = config
        self._from_denoiser = config.energy.density_target == "denoiser"

    def begin(self, model: DenoisingEBM, average: AveragedModel) -> None:
        """Start from the averaged weights of the denoiser, the best start and the best target that there is.

        A density network that was fitted and normalised before goes on from where it is.
        """
        assert model.density is not None
        if not self._from_denoiser or model.density.is_normalised:
            return
        averaged: Any = average.module
        model.dae.load_state_dict(averaged.dae.state_dict())
        model.decoder.load_state_dict(averaged.decoder.state_dict())
        for density in (model.density, averaged.density):
            density.dae.load_state_dict(averaged.dae.state_dict())
        # The averages of before say nothing of the weights to come.
        average.n_averaged.zero_()

    def __call__(self, model: DenoisingEBM, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted distance of D to its target; beside it the denoising loss of D."""
        assert model.density is not None
        x = batch.noisy.requires_grad_(True)
        target = batch.x0
        if self._from_denoiser:
            with torch.no_grad():
                target = model.dae(x, batch.sigma)[0]
            # Casts of weights that were made without gradients must not serve passes that are learned from.
            torch.clear_autocast_cache()
        with torch.enable_grad(), second_derivatives():
            energy = model.density(x, batch.sigma)
            (gradient,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
            denoised = x - append_dims(batch.sigma, x) ** 2 * gradient
        weights = loss_weights(self._config.noise.weighting, batch.sigma, self._config.network.sigma_data)
        loss = (weights * (denoised - target).square().flatten(1).mean(1)).mean()
        denoising = (weights * (denoised.detach() - batch.x0).square().flatten(1).mean(1)).mean()
        return {"loss": loss, "loss_denoising": denoising, "energy_data": energy.detach().mean() / batch.x0[0].numel()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return nothing: this objective has no state."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore nothing."""


@torch.no_grad()
def validation_loss(denoise: Reconstruct, images: Tensor, config: Config, *, batch_size: int = 256) -> float:
    """Return the weighted denoising loss of images the model was not trained on, with the same draws at every call.

    Args:
        denoise: D, `(x, sigma) -> like x`, on the device of `images`.
        images: Images in [-1, 1], shape (n, channels, height, width).
        config: Noise draw, weights and seed.
        batch_size: Images per forward pass.
    """
    generator = torch.Generator().manual_seed(config.training.seed)
    sigmas = draw_sigmas(config.noise, len(images), generator)
    total = 0.0
    for x0, sigma in zip(torch.split(images, batch_size), torch.split(sigmas, batch_size), strict=True):
        sigma = sigma.to(x0.device)
        x = x0 + append_dims(sigma, x0) * draw_noise(tuple(x0.shape), generator, x0)
        weights = loss_weights(config.noise.weighting, sigma, config.network.sigma_data)
        total += float((weights * (denoise(x, sigma) - x0).square().flatten(1).mean(1)).sum())
    return total / len(images)


@dataclass(frozen=True)
class ContrastiveEnergies:
    """What a contrastive step compares: energies per dimension, shape (chains,), and how far each side is spread."""

    #: U^s of codes of noisy images; gradient reaches gamma alone. None where the density is contrasted.
    latent_data: Tensor | None
    latent_chain: Tensor | None  #: U^s of z^K; gradient reaches gamma alone.
    data: Tensor  #: U^c (or that of the density network) of images; gradient reaches its network alone.
    chain: Tensor  #: The same of x^T.
    #: Standard deviations of codes, z^K, images and x^T over all chains and dimensions: chains that saturate, collapse or
    #: drift off are seen here first.
    stds: dict[str, Tensor]


class Contrastive:
    r"""Algorithm 1: L reconstruction steps, then one contrastive step with chains in both spaces.

    The contrastive step descends U^s(z_i) - U^s(z_i^K) in gamma with phi fixed (line 14) and U^c(x_i) - U^c(x_i^T) in
    phi with gamma fixed (line 16). Energies are divided by the number of pixels and channels, the scale of the
    denoising loss with `energy` weights. Chains run at the noise level that the batch drew for each image: short
    chains anneal down to it from N(0, I), persistent ones stay at it.

    With `contrastive.energy: density` the energy of the density network is contrasted in pixels, and nothing else is
    trained.
    """

    name: ObjectiveName = "contrastive"

    def __init__(self, config: Config) -> None:
        self._config = config
        trained_by_gradient = config.energy.denoiser == "gradient"
        self._by_density = config.contrastive.energy == "density"
        self._reconstruction: Objective = Reconstruction("score" if trained_by_gradient else "denoising", config)
        if self._by_density:
            self._reconstruction = DensityFit(config)
        persistent = config.contrastive.chains == "persistent"
        options = config.contrastive
        self._buffer = ReplayBuffer(options.buffer_size, options.restart_rate) if persistent else None

    def __call__(self, model: DenoisingEBM, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of step `batch.step`: of lines 3-5, or of lines 7-18."""
        period = self._config.contrastive.reconstruction_steps + 1
        if batch.step % period != period - 1:
            # Its energy of data is another one than that which is contrasted below.
            figures = self._reconstruction(model, batch)
            return {name: value for name, value in figures.items() if name != "energy_data"}
        contrastive_energies = self.contrastive_energies(model, batch)
        options = self._config.contrastive
        figures = dict(contrastive_energies.stds)
        loss = batch.x0.new_zeros(())
        pairs = {"energy": (contrastive_energies.data, contrastive_energies.chain)}
        latent_data, latent_chain = contrastive_energies.latent_data, contrastive_energies.latent_chain
        if latent_data is not None and latent_chain is not None:
            pairs = {"latent_energy": (latent_data, latent_chain), **pairs}
        for prefix, (data, chain) in pairs.items():
            loss = loss + options.weight * (data.mean() - chain.mean())
            if options.regularisation:
                loss = loss + options.regularisation * (data.square().mean() + chain.square().mean())
            figures[f"{prefix}_data"] = data.detach().mean()
            figures[f"{prefix}_chain"] = chain.detach().mean()
            figures[f"{prefix}_gap"] = data.detach().mean() - chain.detach().mean()
        return {"loss": loss, **figures}

    def contrastive_energies(self, model: DenoisingEBM, batch: Batch) -> ContrastiveEnergies:
        """Run the chains of lines 7-13 and return the energies of data and chain ends."""
        options, sampling = self._config.contrastive, self._config.sampling
        generator = batch.generator
        # This forward pass's share of the chains, as of the images.
        share = len(batch.x0) / self._config.training.batch_size
        num = min(max(1, round(options.chain_batch * share)), len(batch.x0)) if options.chain_batch else len(batch.x0)
        x0, sigma = batch.x0[:num], batch.sigma[:num]
        noisy = batch.noisy[:num]

        slots, sigma, z_end, x_end = self._run_chains(model, x0, sigma, generator)
        if self._buffer is not None:
            noisy = x0 + append_dims(sigma, x0) * batch.noise[:num]
            self._buffer.put(slots, {"z": z_end, "x": x_end, "sigma": sigma}, torch.Generator().manual_seed(batch.step))

        def draw() -> Tensor | None:
            return draw_noise(tuple(x0.shape), generator, x0) if self._config.energy.inner_noise else None

        # All this ran without gradients: casts that older versions of torch kept from it in autocast must not serve passes
        # that are learned from.
        torch.clear_autocast_cache()
        positives = noisy if options.positive_samples == "noisy" else x0
        stds = {"latent_chain_std": z_end.std(), "image_std": positives.std(), "chain_std": x_end.std()}
        dim = x0[0].numel()
        if self._by_density:
            assert model.density is not None
            # log Z is the same on both sides.
            data, chain = model.density(positives, sigma) / dim, model.density(x_end, sigma) / dim
            return ContrastiveEnergies(None, None, data, chain, stds)
        frozen = {name: value.detach() for name, value in model.dae.state_dict(keep_vars=True).items()}

        def frozen_reconstruct(x: Tensor, level: Tensor) -> Tensor:
            output: Tensor = functional_call(model.dae, frozen, (x, level))[0]
            return output

        z_sigma = sigma.clamp(sampling.semantic.sigma_min, sampling.semantic.sigma_max)
        # Codes are known, to h_gamma and to the whitening, up to this level.
        known = sigma.clamp_max(self._config.training.decoder_sigma_max)
        with torch.no_grad():
            z_data = model.encode(x0 + append_dims(known, x0) * batch.noise[:num], known)
        torch.clear_autocast_cache()
        z_noise = draw()
        latent_data = semantic_energy(model.decode, frozen_reconstruct, z_data, z_sigma, z_noise) / dim
        latent_chain = semantic_energy(model.decode, frozen_reconstruct, z_end, z_sigma, z_noise) / dim
        # One draw for both sides: the difference of energies then has less variance.
        noise = draw()
        data = texture_energy(model.reconstruct, positives, sigma, noise) / dim
        chain = texture_energy(model.reconstruct, x_end, sigma, noise) / dim
        return ContrastiveEnergies(latent_data, latent_chain, data, chain, {"code_std": z_data.std(), **stds})

    @torch.no_grad()
    def _run_chains(
        self, model: DenoisingEBM, x0: Tensor, sigma: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run lines 7-13; return buffer slots, noise levels, z^K and x^T of as many chains as there are images."""
        options, sampling = self._config.contrastive, self._config.sampling
        num = len(x0)
        z = draw_noise((num, self._config.network.latent_dim), generator, x0)
        slots = torch.full((num,), -1, dtype=torch.long)
        kept: dict[str, Tensor] = {}
        if self._buffer is not None:
            slots, kept = self._buffer.draw(num, torch.Generator().manual_seed(int(generator.initial_seed() % 2**31)))
        going_on = (slots >= 0).to(x0.device)
        if kept and bool(going_on.any()):
            sigma, z = sigma.clone(), z.clone()
            sigma[going_on] = kept["sigma"].to(x0.device)
            z[going_on] = kept["z"].to(x0.device)

        chain, pixel = sampling.semantic, sampling.pixel
        z_end = sigma.clamp(chain.sigma_min, chain.sigma_max)
        z_start = torch.where(going_on, z_end, torch.full_like(sigma, chain.sigma_max))
        z = annealed_langevin(
            _semantic(model, self._config),
            z,
            _chain_sigmas(z_start, z_end, options.semantic_steps),
            step_size=chain.step_size,
            temperature=chain.temperature,
            generator=generator,
        )
        x = model.decode(z)
        start = torch.where(going_on, sigma, sigma.clamp_min(pixel.sigma_max))
        if sampling.noise_init:
            x = x + append_dims(start, x) * draw_noise(tuple(x.shape), generator, x)
        if kept and bool(going_on.any()):
            x[going_on] = kept["x"].to(x0.device)
        # Levels of these chains may stay where they are, where a solver of the reverse diffusion would stand still.
        langevin = pixel.method == "annealed-langevin"
        run = annealed_langevin if langevin else consistent_annealed_sampling
        name: PixelMethod = "annealed-langevin" if langevin else "consistent-annealed"
        x = run(
            # Of the energy itself, whatever samplers follow: its first term alone is the gradient of no energy, and these
            # chains must end where the energy that is learned is low.
            model.pixel_energy("density" if self._by_density else "energy"),
            x,
            _chain_sigmas(start, sigma, options.texture_steps),
            step_size=pixel.step_size or default_step_size(name, x0[0].numel()),
            temperature=pixel.temperature,
            generator=generator,
        )
        return slots, sigma, z, x

    def begin(self, model: DenoisingEBM, average: AveragedModel) -> None:
        """Leave the weights as they are."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the persistent chains."""
        return self._buffer.state_dict() if self._buffer is not None else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the persistent chains."""
        if self._buffer is not None:
            self._buffer.load_state_dict(state)


def _semantic(model: DenoisingEBM, config: Config) -> SemanticEnergy:
    # During training the step length in z follows the spread of the images: h(N(0, I)) covers them.
    network = config.network
    spread = network.sigma_data * (network.channels * network.image_size**2 / network.latent_dim) ** 0.5
    return SemanticEnergy(
        model.decode,
        model.reconstruct,
        inner_noise=config.energy.inner_noise,
        prior=config.sampling.semantic.prior,
        jacobian_norm=spread,
    )


def _chain_sigmas(start: Tensor, end: Tensor, num: int) -> Tensor:
    """Return noise levels falling geometrically from `start` to `end` per chain, shape (num, batch)."""
    fractions = torch.linspace(0, 1, num, device=start.device) if num > 1 else torch.ones(num, device=start.device)
    return torch.exp(torch.lerp(start.log()[None], end.log()[None], fractions[:, None]))
