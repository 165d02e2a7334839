"""Features against their formulas, written out one image, one level and one forward pass at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoising_ebm import preset
from denoising_ebm.config import NetworkConfig
from denoising_ebm.datasets.images import load_images, to_float
from denoising_ebm.model import DenoisingEBM, Inspection
from denoising_ebm.ood.features import (
    FAMILIES,
    NETWORK_FEATURES,
    Family,
    FeatureConfig,
    compute_features,
    log_energies,
)
from support import random_pixels, randomise, tiny_config

SIGMAS = (0.05, 0.3, 1.0)
EVERYTHING = FeatureConfig(sigmas=SIGMAS, families=FAMILIES)


@pytest.fixture(scope="module")
def model() -> DenoisingEBM:
    config = tiny_config()
    network = NetworkConfig(**{**config.network.__dict__, "channels": 3})
    model = DenoisingEBM(replace(config, network=network))
    randomise(model)
    model.dae.unet.whitening.calibrate(torch.randn(50, 4, generator=torch.Generator().manual_seed(3)) * 2 + 1)
    return model.eval()


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return random_pixels(7, channels=3)


def test_every_family_against_its_formula(model: DenoisingEBM, pixels: Tensor) -> None:
    found = compute_features(model, pixels, EVERYTHING, batch_size=4)
    noise = torch.randn((1, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    dim = 3 * 16 * 16
    for i in range(len(pixels)):
        x = to_float(pixels[i : i + 1])
        for j, sigma in enumerate(SIGMAS):

            def at(family: str, columns: int, i: int = i, j: int = j) -> Tensor:
                return found[family][i, j * columns : (j + 1) * columns].float()  # type: ignore[index]

            def close(family: str, expected: Tensor) -> None:
                torch.testing.assert_close(at(family, expected.numel()), expected.flatten(), rtol=2e-3, atol=2e-4)

            with torch.no_grad():
                clean, noisy = model.reconstruct(x, sigma), model.reconstruct(x + sigma * noise, sigma)
                z = model.encode(x, sigma)
                close("energy", model.energy(x, sigma).log())
                close("noisy-energy", model.energy(x, sigma, noise).log())
                score = (x + sigma * noise - noisy) / sigma
                close("score", torch.stack([score.square().sum().log(), (score * noise).sum() / dim]))
                close("curvature", ((noisy - clean) * noise).sum() / (sigma * dim))
                powers = [(x - r).square().sum((0, 2, 3)) for r in (clean, noisy)]
                close("colour", torch.cat([(p / p.sum()).log()[1:] for p in powers]))
                close("latent", z)


def test_feature_statistics_are_those_of_the_feature_maps(model: DenoisingEBM, pixels: Tensor) -> None:
    x = to_float(pixels)
    with torch.no_grad():
        config = FeatureConfig(sigmas=(0.3,), families=("feature-statistics",))
        found = compute_features(model, pixels, config)["feature-statistics"]
        unet, c_noise = model.dae.unet, torch.full((len(x),), 0.3).log() / 4
        features = unet.encoder(x / (0.3**2 + model.config.network.sigma_data**2) ** 0.5, unet.embedding(c_noise))[1]
    expected = torch.cat([f(m) for m in features for f in (lambda m: m.mean((2, 3)), lambda m: m.flatten(2).std(2))], 1)
    torch.testing.assert_close(found[:, : expected.shape[1]].float(), expected, rtol=1e-4, atol=1e-5)
    assert found.shape[1] == 2 * 2 * sum(model.config.network.widths)


def test_spectrum_is_a_share_of_the_power_in_its_band(model: DenoisingEBM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A residual of one wave has all of its power in the wave's band, and shares sum to one (Parseval)."""
    ramp = torch.arange(16) / 16
    for cycles, band in ((0, 0), (1, 0), (2, 1), (4, 3), (7, 5), (8, 5)):
        wave = torch.cos(2 * torch.pi * cycles * ramp).expand(1, 3, 16, 16)

        def inspect(x: Tensor, sigma: Tensor, wave: Tensor = wave) -> Inspection:
            return Inspection(x - wave, torch.zeros(len(x), 4), torch.zeros(len(x), 4))

        monkeypatch.setattr(model, "inspect", inspect)
        config = FeatureConfig(sigmas=(1.0,), families=("spectrum",))
        shares = compute_features(model, random_pixels(2, channels=3), config)["spectrum"][:, :6].exp()
        torch.testing.assert_close(shares.sum(1), torch.ones(2).double(), rtol=1e-4, atol=0)
        assert bool((shares[:, band] > 0.999).all()), (cycles, shares)


def test_curvature_of_a_linear_map_is_its_slope(model: DenoisingEBM, monkeypatch: pytest.MonkeyPatch) -> None:
    """r(x) = a x has divergence a d: its estimate is a |e|^2 / d, close to a."""

    def inspect(x: Tensor, sigma: Tensor) -> Inspection:
        return Inspection(0.7 * x, torch.zeros(len(x), 4), torch.zeros(len(x), 4))

    monkeypatch.setattr(model, "inspect", inspect)
    config = FeatureConfig(sigmas=(0.1, 2.0), families=("curvature",))
    found = compute_features(model, random_pixels(2, channels=3), config)["curvature"]
    torch.testing.assert_close(found, torch.full((2, 2), 0.7).double(), rtol=0.1, atol=0)
    assert float((found - found[0, 0]).abs().max()) < 1e-4


def test_features_do_not_depend_on_the_batch(model: DenoisingEBM, pixels: Tensor) -> None:
    calls: list[int] = []
    whole = compute_features(model, pixels, EVERYTHING, batch_size=1000, progress=calls.append)
    assert sum(calls) == len(pixels)
    for size in (1, 2, 6):
        parts = compute_features(model, pixels, EVERYTHING, batch_size=size)
        for family in FAMILIES:
            torch.testing.assert_close(parts[family], whole[family], rtol=1e-3, atol=2e-4)


def test_the_seed_is_the_noise(model: DenoisingEBM, pixels: Tensor) -> None:
    config = FeatureConfig(sigmas=(0.3,), families=("energy", "noisy-energy"))
    one, other = (compute_features(model, pixels, replace(config, seed=seed)) for seed in (0, 1))
    assert torch.equal(one["energy"], other["energy"])
    assert not torch.allclose(one["noisy-energy"], other["noisy-energy"], rtol=1e-3)


@pytest.mark.parametrize("families", [("energy", "latent"), ("noisy-energy", "score"), FAMILIES])
def test_two_passes_a_level_at_most(
    families: tuple[Family, ...], model: DenoisingEBM, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    inspect = model.inspect
    monkeypatch.setattr(model, "inspect", lambda x, sigma: (seen.append(len(x)), inspect(x, sigma))[1])
    compute_features(model, random_pixels(5, channels=3), FeatureConfig(SIGMAS, families), batch_size=8)
    assert sum(seen) == 5 * len(SIGMAS) * (2 if families == FAMILIES else 1)


def test_long_families_are_kept_at_some_levels(model: DenoisingEBM, pixels: Tensor) -> None:
    some = compute_features(model, pixels, replace(EVERYTHING, feature_sigmas=(0.3,)))
    for family, table in compute_features(model, pixels, EVERYTHING).items():
        per_level = table.shape[1] // len(SIGMAS)
        expected = table[:, per_level : 2 * per_level] if family in NETWORK_FEATURES else table
        torch.testing.assert_close(some[family], expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sigmas": ()}, r"features\.sigmas"),
        ({"sigmas": (0.1, -1.0)}, r"features\.sigmas"),
        ({"sigmas": (float("nan"),)}, r"features\.sigmas"),
        ({"families": ()}, r"features\.families"),
        ({"families": ("energy", "magic")}, r"features\.families .* got \['magic'\]"),
        ({"feature_sigmas": (0.3,)}, r"features\.feature_sigmas must be among .*, got \[0\.3\]"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureConfig(**values)  # type: ignore[arg-type]


def test_bad_images_are_refused(model: DenoisingEBM) -> None:
    config = FeatureConfig()
    with pytest.raises(ValueError, match="images must be uint8"):
        compute_features(model, torch.zeros(1, 3, 16, 16), config)
    for images in (random_pixels(2), random_pixels(0, channels=3)):
        with pytest.raises(ValueError, match=r"images must have shape \(n >= 1, 3, 16, 16\)"):
            compute_features(model, images, config)


# -- log energies -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untrained() -> DenoisingEBM:
    torch.manual_seed(0)
    return DenoisingEBM(preset("fashion-mnist")).eval()


def test_log_energies_are_the_models_energies_whatever_the_batch(untrained: DenoisingEBM) -> None:
    pixels = load_images("fashion-mnist", split="test", limit=7).pixels
    sigmas, calls = (0.05, 0.5), []
    result = log_energies(untrained, pixels, sigmas, batch_size=3, progress=calls.append)
    assert result.dtype == torch.float64 and sum(calls) == 14
    with torch.no_grad():
        expected = torch.stack([untrained.energy(to_float(pixels), sigma) for sigma in sigmas], dim=1).double().log()
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_log_energies_use_the_given_noise(untrained: DenoisingEBM) -> None:
    pixels = load_images("fashion-mnist", split="test", limit=4).pixels
    noise = untrained.scoring_noise(num_samples=2, seed=1)
    with torch.no_grad():
        expected = untrained.energy(to_float(pixels), 0.2, noise).double().log()
    result = log_energies(untrained, pixels, [0.2], noise=noise)
    torch.testing.assert_close(result[:, 0], expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(result, log_energies(untrained, pixels, [0.2]), rtol=1e-3)


def test_log_energies_refuses_bad_levels_and_floats(untrained: DenoisingEBM) -> None:
    pixels = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="sigmas"):
        log_energies(untrained, pixels, [0.1, -0.1])
    with pytest.raises(ValueError, match="uint8"):
        log_energies(untrained, to_float(pixels), [0.1])
