r"""What each objective converges to on the one-parameter model r = b x, in closed form (Gaussian data of deviation tau).

- denoising: b = 1 - sigma^2 / (tau^2 + sigma^2)
- contrastive with clean positives: b = 1 - sigma / tau
- contrastive with noisy positives: b = 1 - sigma / sqrt(tau^2 + sigma^2)
- score: the same as the line above, without chains
- energy: the inner product's gradient is b x itself, so b is that of the denoiser, whether fitted to it or to data
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoising_ebm import DenoisingEBM, to_float
from denoising_ebm.config import (
    Config,
    ContrastiveConfig,
    Drift,
    EnergyConfig,
    NoiseConfig,
    PixelSampler,
    SamplingConfig,
    TrainingStage,
)
from denoising_ebm.energies import Energy, TextureEnergy
from denoising_ebm.networks.precondition import DenoisingAutoencoder
from denoising_ebm.noise import append_dims
from denoising_ebm.training.ema import AveragedWeights
from denoising_ebm.training.objectives import Batch, Contrastive, DensityFit, Reconstruction, make_objective
from support import TINY_NETWORK, random_pixels, randomise, tiny_config

TAU, SIGMA, SIZE = 1.0, 0.5, 4


# -- the one-parameter model ----------------------------------------------------------------------------------------


class NoWhitening(nn.Module):
    def forward(self, codes: Tensor) -> Tensor:
        return codes

    def update(self, codes: Tensor, keep: Tensor | None = None) -> None:
        pass


class LinearDAE(nn.Module):
    def __init__(self, b: float) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.tensor(b))
        self.unet = nn.Module()
        self.unet.whitening = NoWhitening()

    def forward(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return self.b * x, x.flatten(1)[:, :4]


class Repeat(nn.Module):
    """A decoder with one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, z: Tensor) -> Tensor:
        return self.scale * z.repeat(1, SIZE).reshape(-1, 1, SIZE, SIZE)


class LinearModel(nn.Module):
    """What the objectives use of a DenoisingEBM."""

    def __init__(self, b: float) -> None:
        super().__init__()
        self.dae, self.decoder = LinearDAE(b), Repeat()
        self.density_b = nn.Parameter(torch.tensor(b))

    def density(self, x: Tensor, sigma: Tensor) -> Tensor:
        return 0.5 * ((1 - self.density_b) * x.square() / append_dims(sigma, x) ** 2).flatten(1).sum(1)

    def reconstruct(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.dae(x, sigma)[0]

    def encode(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.dae(x, sigma)[1]

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    def pixel_energy(self, drift: Drift) -> Energy:
        if drift == "density":
            return Energy(self.density)
        return TextureEnergy(self.reconstruct, inner_noise=False, drift=drift)


def linear_config(**contrastive: Any) -> Config:
    config = tiny_config(decoder_weight=0.0)
    # h = step sigma^2 = 0.02 v at the optimum: unadjusted chains are 1 % too wide there, which moves 1 - b by 0.5 %.
    sampling = SamplingConfig(pixel=PixelSampler(step_size=0.08, sigma_max=SIGMA, sigma_min=SIGMA))
    options = {
        "reconstruction_steps": 0,
        "semantic_steps": 0,
        "texture_steps": 5,
        "chains": "persistent",
        "buffer_size": 512,
        "restart_rate": 0.0,
    }
    return replace(
        config,
        noise=NoiseConfig(weighting="uniform"),
        energy=EnergyConfig(inner_noise=False),
        sampling=sampling,
        contrastive=ContrastiveConfig(**{**options, **contrastive}),
    )


def batch_of(x0: Tensor, generator: torch.Generator, sigma: float = SIGMA, step: int = 0) -> Batch:
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    return Batch(x0, torch.full((len(x0),), sigma, dtype=x0.dtype), noise, step, generator)


def converge(objective: Any, generator: torch.Generator, start: float, steps: int, num: int = 512) -> float:
    """Minimise with Adam and a falling rate; the mean of b over the last third."""
    model = LinearModel(start)
    optimizer = torch.optim.Adam([model.dae.b], lr=0.01)
    late = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / steps) + 1e-4
        x0 = TAU * torch.randn(num, 1, SIZE, SIZE, generator=generator)
        loss = objective(model, batch_of(x0, generator, step=step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= 2 * steps // 3:
            late.append(float(model.dae.b.detach()))
    return sum(late) / len(late)


CLEAN = 1 - SIGMA / TAU
NOISY = 1 - SIGMA / math.sqrt(TAU**2 + SIGMA**2)
DENOISER = 1 - SIGMA**2 / (TAU**2 + SIGMA**2)


@pytest.mark.parametrize("start", [0.2, 0.9])
def test_denoising_converges_to_the_denoiser(start: float, generator: torch.Generator) -> None:
    b = converge(Reconstruction("denoising", linear_config()), generator, start, 300)
    assert b == pytest.approx(DENOISER, rel=0.01)


@pytest.mark.parametrize("start", [0.2, 0.9])
def test_score_converges_to_maximum_likelihood(start: float, generator: torch.Generator) -> None:
    b = converge(Reconstruction("score", linear_config()), generator, start, 300)
    assert b == pytest.approx(NOISY, rel=0.01)


@pytest.mark.parametrize(("positives", "expected"), [("clean", CLEAN), ("noisy", NOISY)])
def test_contrast_converges_to_maximum_likelihood(positives: str, expected: float, generator: torch.Generator) -> None:
    b = converge(Contrastive(linear_config(positive_samples=positives)), generator, 0.3, 800)
    assert b == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("target", ["denoiser", "data"])
def test_energy_converges_to_the_density(target: str, generator: torch.Generator) -> None:
    """U = (1 - b) |x|^2 / 2 sigma^2 is then |x|^2 / 2 (tau^2 + sigma^2), and r is left as it is."""
    config = linear_config()
    config = replace(config, energy=EnergyConfig(False, density=True, density_target=target))  # type: ignore[arg-type]
    objective, model = DensityFit(config), LinearModel(0.2)
    model.dae.b.data.fill_(DENOISER if target == "denoiser" else 0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    late = []
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 300) + 1e-4
        x0 = TAU * torch.randn(512, 1, SIZE, SIZE, generator=generator)
        optimizer.zero_grad()
        objective(model, batch_of(x0, generator))["loss"].backward()  # type: ignore[arg-type]
        optimizer.step()
        late.append(float(model.density_b.detach()))
    assert sum(late[200:]) / 100 == pytest.approx(DENOISER, rel=0.01)
    assert float(model.dae.b.detach()) == pytest.approx(DENOISER if target == "denoiser" else 0.1)


def test_contrast_of_the_density_leaves_a_perfect_one(generator: torch.Generator) -> None:
    """At b of the denoiser the energy is that of noisy data: chains stay among them, and the gap is that of chance."""
    config = replace(
        linear_config(positive_samples="noisy", texture_steps=50), energy=EnergyConfig(False, density=True)
    )
    config = replace(config, contrastive=replace(config.contrastive, energy="density"))
    objective, model = Contrastive(config), LinearModel(DENOISER)
    x0 = TAU * torch.randn(2048, 1, SIZE, SIZE, generator=generator)
    losses = objective(model, batch_of(x0, generator))  # type: ignore[arg-type]
    losses["loss"].backward()
    # The energy per dimension of either side is 1/2 on average, with a standard error of 0.7 / sqrt(16 x 2048).
    assert float(losses["energy_data"]) == pytest.approx(0.5, abs=0.02)
    assert float(losses["energy_gap"]) == pytest.approx(0.0, abs=0.03)
    assert "latent_energy_gap" not in losses
    assert model.density_b.grad is not None
    assert model.dae.b.grad is None


def test_energy_starts_from_the_averaged_denoiser(tiny_model: DenoisingEBM) -> None:
    config = replace(tiny_model.config, energy=EnergyConfig(False, density=True))
    model = DenoisingEBM(config)
    average = AveragedWeights(model, 0.9)
    randomise(average.module.dae)
    average.n_averaged.fill_(100)
    DensityFit(config).begin(model, average)
    wanted = {name: tensor.clone() for name, tensor in average.module.dae.state_dict().items()}
    for part in (model.dae, model.density.dae, average.module.density.dae):  # type: ignore[union-attr]
        assert all(torch.equal(part.state_dict()[name], tensor) for name, tensor in wanted.items())
    assert int(average.n_averaged) == 0
    # One that was fitted before goes on from where it is.
    model.density.log_z.zero_()  # type: ignore[union-attr]
    randomise(average.module.dae, seed=1)
    DensityFit(config).begin(model, average)
    assert torch.equal(model.density.dae.unet.encoder.stem.weight, wanted["unet.encoder.stem.weight"])  # type: ignore[union-attr]


def test_the_optima_are_apart() -> None:
    assert CLEAN < 0.95 * NOISY < 0.95 * 0.95 * DENOISER


def test_contrast_starts_from_the_denoiser_with_a_negative_gap(generator: torch.Generator) -> None:
    """b of the denoiser makes the energy too flat: chains spread, and their energy is above that of the data."""
    objective, model = Contrastive(linear_config(texture_steps=300)), LinearModel(DENOISER)
    x0 = TAU * torch.randn(512, 1, SIZE, SIZE, generator=generator)
    figures = objective(model, batch_of(x0, generator))  # type: ignore[arg-type]
    # Per dimension (1 - b)^2 tau^2 / 2 sigma^2 on data, 1/2 on chains of the energy's own variance.
    assert float(figures["energy_data"]) == pytest.approx((1 - DENOISER) ** 2 * TAU**2 / (2 * SIGMA**2), rel=0.1)
    assert float(figures["energy_chain"]) > 2 * float(figures["energy_data"])
    assert float(figures["energy_gap"]) == pytest.approx(float(figures["energy_data"] - figures["energy_chain"]))


# -- losses of exact models -----------------------------------------------------------------------------------------


def test_losses_of_the_exact_denoiser(generator: torch.Generator) -> None:
    """Untrained networks with sigma_data = tau are optimal: tau^2 sigma^2 / (tau^2 + sigma^2) per dimension."""
    tau, num = 0.5, 128
    x0 = tau * torch.randn(num, 1, 16, 16, generator=generator)
    best = tau**2 * SIGMA**2 / (tau**2 + SIGMA**2)
    error = math.sqrt(2 / x0.numel())
    for name, weighting, weight in (
        ("denoising", "uniform", 1.0),
        ("denoising", "energy", 1 / (2 * SIGMA**2)),
        ("denoising", "edm", 1 / best),
        ("score", "edm", 1 / best),
    ):
        config = tiny_config(TrainingStage(name))  # type: ignore[arg-type]
        config = replace(config, noise=replace(config.noise, weighting=weighting))
        model = DenoisingEBM(config).eval()
        losses = make_objective(name, config)(model, batch_of(x0, generator))  # type: ignore[arg-type]
        assert float(losses["loss_denoising"]) == pytest.approx(weight * best, rel=4.5 * error)
        assert float(losses["loss"].detach()) == pytest.approx(
            float(losses["loss_denoising"] + losses["loss_decoder"]), rel=1e-6
        )


@pytest.mark.parametrize("learns", [False, True])
def test_decoder_loss(learns: bool, tiny_model: DenoisingEBM, generator: torch.Generator) -> None:
    """Eq. 13 on the images below decoder_sigma_max; it trains gamma, and f_alpha only if asked."""
    config = tiny_config(decoder_loss_trains_encoder=learns, decoder_sigma_max=0.5)
    model = tiny_model.eval()  # code statistics stay as they are
    batch = batch_of(to_float(random_pixels(4)), generator)
    batch = replace(batch, sigma=torch.tensor([0.1, 0.9, 0.5, 0.6]))
    objective = Reconstruction("denoising", config)
    losses = objective(model, batch)
    with torch.no_grad():
        decoded = model.decode(model.encode(batch.noisy, batch.sigma))
        errors = (decoded - batch.x0).square().flatten(1).mean(1)
    assert float(losses["loss_decoder"]) == pytest.approx(float(errors[[0, 2]].sum()) / 4, rel=1e-5)
    code = model.dae(batch.noisy, batch.sigma)[1]
    objective._decoder_loss(model, batch, code).backward()
    assert all(parameter.grad is not None for parameter in model.decoder.parameters())
    touched = [name for name, parameter in model.dae.named_parameters() if parameter.grad is not None]
    if learns:
        assert touched and all(name.startswith(("unet.encoder", "unet.embedding")) for name in touched)
    else:
        assert not touched


def test_score_loss_is_that_of_the_gradient(generator: torch.Generator) -> None:
    """D = x - sigma^2 grad U, with U and its gradient from the public energy."""
    config = tiny_config(TrainingStage("score"), decoder_weight=0.0)
    model = DenoisingEBM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    batch = batch_of(to_float(random_pixels(4)), generator)
    losses = Reconstruction("score", config)(model, batch)
    errors = (model.denoise(batch.noisy, SIGMA) - batch.x0).square().mean()
    weight = (SIGMA**2 + 0.25) / (SIGMA * 0.5) ** 2
    assert float(losses["loss_denoising"]) == pytest.approx(float(weight * errors), rel=1e-5)
    losses["loss"].backward()
    assert float(sum(p.grad.abs().sum() for p in model.dae.parameters() if p.grad is not None)) > 0


# -- Algorithm 1: who learns from which contrast --------------------------------------------------------------------


def step_after(model: DenoisingEBM, loss: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Do an Adam step on `loss`; return copies of the weights before and after."""

    def copy() -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in model.named_parameters()}

    before = copy()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss.backward()
    optimizer.step()
    return before, copy()


@pytest.mark.parametrize("inner_noise", [False, True])
@pytest.mark.parametrize("contrast", ["semantic", "texture"])
def test_each_contrast_trains_its_own_part(
    contrast: str, inner_noise: bool, tiny_model: DenoisingEBM, generator: torch.Generator
) -> None:
    config = tiny_config(TrainingStage("contrastive"))
    config = replace(config, energy=EnergyConfig(inner_noise=inner_noise))
    x0 = to_float(random_pixels(6))
    contrastive_energies = Contrastive(config).contrastive_energies(tiny_model, batch_of(x0, generator))
    semantic = (contrastive_energies.latent_data, contrastive_energies.latent_chain)
    data, chain = semantic if contrast == "semantic" else (contrastive_energies.data, contrastive_energies.chain)
    assert data.shape == chain.shape == (6,)
    learner, other = (
        (tiny_model.decoder, tiny_model.dae) if contrast == "semantic" else (tiny_model.dae, tiny_model.decoder)
    )
    before, after = step_after(tiny_model, data.mean() - chain.mean())
    assert all(parameter.grad is None for parameter in other.parameters())
    assert all(parameter.grad is not None for parameter in learner.parameters())
    prefix = "decoder." if contrast == "semantic" else "dae."
    for name, value in before.items():
        assert torch.equal(value, after[name]) != name.startswith(prefix), name


def test_casts_of_passes_without_gradients_do_not_serve_those_with(
    tiny_model: DenoisingEBM, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older versions of torch keep in autocast what was cast without gradients, for passes that need them too."""
    order: list[str] = []
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: order.append("clear"))

    def forward(*_: object) -> None:
        order.append("learning" if torch.is_grad_enabled() else "fixed")

    for parameter in tiny_model.parameters():
        parameter.requires_grad_(True)
    tiny_model.dae.register_forward_pre_hook(forward)
    tiny_model.decoder.register_forward_pre_hook(forward)
    tiny_model.dae.unet.encoder.register_forward_pre_hook(forward)
    batch = batch_of(to_float(random_pixels(6)), generator)
    # As in the trainer; without it every pass has an autocast of its own, which forgets at its end.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Contrastive(tiny_config(TrainingStage("contrastive"))).contrastive_energies(tiny_model, batch)
        during = order.copy()
    cleared = len(during) - 1 - during[::-1].index("clear")
    assert "fixed" in during[:cleared] and "fixed" not in during[cleared:] and "learning" in during[cleared:]


def test_contrasts_are_energies_per_dimension(tiny_model: DenoisingEBM, generator: torch.Generator) -> None:
    """Without chain steps and inner noise both contrasts can be written down."""
    config = tiny_config(TrainingStage("contrastive"))
    contrastive = replace(config.contrastive, semantic_steps=0, texture_steps=0)
    config = replace(config, energy=EnergyConfig(inner_noise=False), contrastive=contrastive)
    batch = batch_of(to_float(random_pixels(6)), generator)
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(9))
    batch = replace(batch, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        contrastive_energies = Contrastive(config).contrastive_energies(tiny_model, batch)
        decoded = tiny_model.decode(z)
        torch.testing.assert_close(contrastive_energies.data, tiny_model.energy(batch.x0, SIGMA) / 256)
        torch.testing.assert_close(contrastive_energies.chain, tiny_model.energy(decoded, SIGMA) / 256)
        torch.testing.assert_close(contrastive_energies.latent_chain, tiny_model.semantic_energy(z, SIGMA) / 256)
        codes = tiny_model.encode(batch.noisy, SIGMA)
        torch.testing.assert_close(contrastive_energies.latent_data, tiny_model.semantic_energy(codes, SIGMA) / 256)
        stds = {"code_std": codes, "latent_chain_std": z, "image_std": batch.x0, "chain_std": decoded}
        for name, values in stds.items():
            torch.testing.assert_close(contrastive_energies.stds[name], values.std())

        noisy = replace(config, contrastive=replace(contrastive, positive_samples="noisy", chain_batch=4))
        contrastive_energies = Contrastive(noisy).contrastive_energies(tiny_model, batch)
        # A batch of 6 is three quarters of a step's 8 images, and has that share of the chains.
        assert len(contrastive_energies.chain) == 3
        torch.testing.assert_close(contrastive_energies.data, tiny_model.energy(batch.noisy[:3], SIGMA) / 256)


def test_loss_is_the_sum_of_both_contrasts(tiny_model: DenoisingEBM, generator: torch.Generator) -> None:
    config = tiny_config(TrainingStage("contrastive"))
    options = replace(config.contrastive, reconstruction_steps=0, weight=0.5, regularisation=0.1)
    config = replace(config, contrastive=options)
    x0, state = to_float(random_pixels(6)), generator.get_state()
    figures = Contrastive(config)(tiny_model, batch_of(x0, generator))
    generator.set_state(state)
    contrastive_energies = Contrastive(config).contrastive_energies(tiny_model, batch_of(x0, generator))
    expected = sum(
        0.5 * (data.mean() - chain.mean()) + 0.1 * (data.square().mean() + chain.square().mean())
        for data, chain in (
            (contrastive_energies.latent_data, contrastive_energies.latent_chain),
            (contrastive_energies.data, contrastive_energies.chain),
        )
    )
    torch.testing.assert_close(figures["loss"], expected)
    energies = {f"{p}energy_{s}" for p in ("", "latent_") for s in ("data", "chain", "gap")}
    assert set(figures) == {"loss", *energies, *contrastive_energies.stds}


def test_contrastive_steps_come_after_l_denoising_ones(tiny_model: DenoisingEBM, generator: torch.Generator) -> None:
    config = tiny_config(TrainingStage("contrastive"))
    objective = Contrastive(replace(config, contrastive=replace(config.contrastive, reconstruction_steps=3)))
    x0 = to_float(random_pixels(2))
    kinds = ["energy_gap" in objective(tiny_model, batch_of(x0, generator, step=step)) for step in range(8)]
    assert kinds == [False, False, False, True] * 2


def test_persistent_chains_go_on(tiny_model: DenoisingEBM, generator: torch.Generator) -> None:
    config = tiny_config(TrainingStage("contrastive"))
    options = replace(config.contrastive, chains="persistent", buffer_size=6, restart_rate=0.0)
    config = replace(config, contrastive=replace(options, semantic_steps=0, texture_steps=0))
    objective, x0 = Contrastive(config), to_float(random_pixels(6))
    objective.contrastive_energies(tiny_model, batch_of(x0, generator, sigma=0.3))
    first = {name: value.clone() for name, value in objective.state_dict().items()}
    assert set(first) == {"x", "z", "sigma"} and len(first["x"]) == 6
    # Chains of no steps stay where they are, at the level they were started with.
    objective.contrastive_energies(tiny_model, batch_of(x0, generator, sigma=0.8))
    for name, value in objective.state_dict().items():
        assert torch.equal(value, first[name])
    other = Contrastive(config)
    other.load_state_dict(first)
    assert torch.equal(other.state_dict()["x"], first["x"])


def test_persistent_chains_move_whatever_the_samplers_steps(
    tiny_model: DenoisingEBM, generator: torch.Generator
) -> None:
    """Steps of the reverse diffusion stand still where the level stays: chains of training take their own."""
    config = tiny_config(TrainingStage("contrastive"))
    sampling = replace(config.sampling, pixel=PixelSampler("ancestral", sigma_min=0.05))
    options = replace(config.contrastive, chains="persistent", buffer_size=6, restart_rate=0.0, texture_steps=5)
    config = replace(config, sampling=sampling, contrastive=options)
    objective, x0 = Contrastive(config), to_float(random_pixels(6))
    objective.contrastive_energies(tiny_model, batch_of(x0, generator, sigma=0.3))
    first = objective.state_dict()["x"].clone()
    objective.contrastive_energies(tiny_model, batch_of(x0, generator, sigma=0.3))
    moved = (objective.state_dict()["x"] - first).square().mean((1, 2, 3)).sqrt()
    assert bool((moved > 0.1 * 0.3).all())


def test_chains_of_training_fall_to_the_level_of_the_image(
    tiny_model: DenoisingEBM, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(TrainingStage("contrastive"))
    config = replace(config, contrastive=replace(config.contrastive, semantic_steps=3, texture_steps=4))
    grids: list[Tensor] = []

    def spy(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapped(energy: Any, x: Tensor, sigmas: Tensor, **options: Any) -> Tensor:
            grids.append(sigmas)
            return run(energy, x, sigmas, **options)

        return wrapped

    from denoising_ebm.training import objectives

    monkeypatch.setattr(objectives, "annealed_langevin", spy(objectives.annealed_langevin))
    batch = batch_of(to_float(random_pixels(2)), generator)
    batch = replace(batch, sigma=torch.tensor([0.05, 0.5]))
    Contrastive(config).contrastive_energies(tiny_model, batch)
    semantic, texture = grids
    torch.testing.assert_close(semantic[:, 0], torch.tensor([1.0, math.sqrt(0.1), 0.1]))  # its own lowest level
    torch.testing.assert_close(semantic[:, 1], torch.tensor([1.0, math.sqrt(0.5), 0.5]))
    torch.testing.assert_close(texture[[0, -1]], torch.tensor([[1.0, 1.0], [0.05, 0.5]]))
    ratios = texture[1:] / texture[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand(3, 2))


def test_stand_in_matches_the_real_model() -> None:
    """The one-parameter model has what the objectives use of the real one."""
    real = DenoisingAutoencoder(TINY_NETWORK)
    assert callable(real.unet.whitening.update)
    for name in ("reconstruct", "encode", "decode", "pixel_energy", "dae", "decoder"):
        assert hasattr(LinearModel(0.5), name) and (hasattr(DenoisingEBM, name) or name in ("dae", "decoder"))
