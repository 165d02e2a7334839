"""The models that ship in the package do their jobs on real images they were not trained on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from denoising_ebm import DenoisingEBM, Detector, load_images, preset, to_float
from denoising_ebm.hub import find_model_folder
from denoising_ebm.ood.anomaly_maps import anomaly_map
from denoising_ebm.ood.metrics import auroc
from denoising_ebm.training.objectives import validation_loss


@pytest.fixture(scope="module")
def model() -> DenoisingEBM:
    return DenoisingEBM.from_pretrained("fashion-mnist")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return to_float(load_images("fashion-mnist", split="test", limit=128).pixels)


def sharpness(x: Tensor) -> float:
    """Root mean square second difference along rows: silhouettes count little, detail much."""
    return float((x[..., 2:] - 2 * x[..., 1:-1] + x[..., :-2]).square().mean().sqrt())


def test_restores(model: DenoisingEBM, images: Tensor) -> None:
    """It beats the best linear estimate of each pixel by itself: a Wiener filter with the pixels' own statistics."""
    sigma = 0.3
    noisy = images + sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    variance, mean = images.var(0), images.mean(0)
    wiener = mean + variance / (variance + sigma**2) * (noisy - mean)
    with torch.no_grad():
        error = (model.denoise(noisy, sigma) - images).square().mean()
    assert float(error) < 0.5 * float((wiener - images).square().mean())


def test_scores_normal_images_as_the_reference_ones(model: DenoisingEBM, images: Tensor) -> None:
    """Percentiles of normal images are uniform on 0..100: mean 50, here within 4 standard errors of 29 / sqrt(128)."""
    with torch.no_grad():
        percentiles = model.percentile(model.energy(images, 0.1), 0.1)
    assert abs(float(percentiles.mean()) - 50) < 4 * 29 / 128**0.5


def test_scores_noise_as_anomalous_and_shows_where(model: DenoisingEBM, images: Tensor) -> None:
    noise = torch.rand((8, *images.shape[1:]), generator=torch.Generator().manual_seed(0)) * 2 - 1
    patched = images[:8].clone()
    patched[:, :, 12:20, 12:20] = noise[:, :, 12:20, 12:20]
    with torch.no_grad():
        assert bool((model.percentile(model.energy(noise, 0.1), 0.1) > 99).all())
    before, after = anomaly_map(model, images[:8], 0.2), anomaly_map(model, patched, 0.2)
    square = torch.zeros_like(after, dtype=torch.bool)
    square[:, 12:20, 12:20] = True
    assert auroc(after[~square], after[square]) > 0.9
    assert float(after[square].mean()) > 2 * float(before[square].mean())


def test_generates_in_two_stages_the_second_of_which_sharpens(model: DenoisingEBM, images: Tensor) -> None:
    sample = model.sample(24, seed=0)
    assert sharpness(sample.semantic) < 0.8 * sharpness(images)
    assert sharpness(sample.images) > 1.2 * sharpness(sample.semantic)
    assert sharpness(sample.images) == pytest.approx(sharpness(images), rel=0.35)
    # Samples are images: in range, and black at the padded edge as all of the data are.
    assert float((sample.images.abs() > 1.1).double().mean()) < 0.01 and float(sample.images.abs().max()) < 1.6
    assert float((sample.images[..., 0, :] + 1).abs().max()) < 0.1


# -- cifar10-small ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coloured() -> DenoisingEBM:
    return DenoisingEBM.from_pretrained("cifar10-small").set_precision("auto")


def test_coloured_model_fits_its_preset_and_says_how_it_was_made(coloured: DenoisingEBM) -> None:
    assert coloured.config.network == preset("cifar10-small").network and coloured.image_shape == (3, 32, 32)
    assert coloured.metadata["images seen"] >= 900_000 and coloured.metadata["training images"] == 49_488
    folder = find_model_folder("cifar10-small")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 16 * 2**20
    assert (folder / "model.safetensors").stat().st_size < 12 * 2**20


def test_coloured_model_restores_what_it_never_saw(coloured: DenoisingEBM) -> None:
    """Clothes turned into pictures of three colours: far from the training images, still much better than a mean."""
    gray = to_float(load_images("fashion-mnist", split="test", limit=64).pixels)
    images = (gray * torch.tensor([0.9, 0.6, 0.3])[None, :, None, None]).clamp(-1, 1)
    for sigma, bound in ((0.1, 0.35), (0.3, 0.3)):
        noisy = images + sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            error = (coloured.denoise(noisy, sigma) - images).square().mean()
        assert float(error) < bound * sigma**2


def test_coloured_model_samples_what_it_calls_normal(coloured: DenoisingEBM) -> None:
    sample = coloured.sample(16, seed=0)
    with torch.no_grad():
        percentiles = coloured.percentile(coloured.energy(sample.images.clamp(-1, 1), 0.2), 0.2)
    assert sample.images.shape == (16, 3, 32, 32) and float(sample.images.abs().max()) < 1.5
    assert 1 < float(percentiles.median()) < 99
    # Colours of photographs: neither gray nor saturated.
    assert 0.02 < float((sample.images - sample.images.mean(1, keepdim=True)).square().mean().sqrt()) < 0.4
    assert 0.2 < float(sample.images.std()) < 0.8


def test_coloured_models_detector_flags_ood_images() -> None:
    detector = Detector.from_pretrained("cifar10-small")
    assert len(detector.calibration) >= 999
    gray = load_images("fashion-mnist", split="test", limit=40).pixels.expand(-1, 3, -1, -1)
    noise = torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    # Refits of the detector on other draws of corrupted images move the share of clothes flagged at 1 % by a few of 40.
    for images, at_1, at_5 in ((gray, 0.85, 0.95), (noise, 0.99, 0.99)):
        scores = detector.score(images)
        assert float(detector.flag(scores, 0.01).double().mean()) > at_1
        assert float(detector.flag(scores, 0.05).double().mean()) > at_5
    assert {"noise", "gray noise", "impulses"} >= set(detector.nearest_corruption(noise))


# -- the energy that is the density ---------------------------------------------------------------------------------------


def test_its_own_gradient_makes_images(model: DenoisingEBM, coloured: DenoisingEBM, images: Tensor) -> None:
    assert model.has_log_prob and coloured.has_log_prob
    by_denoiser, by_energy = (model.sample(16, seed=0, drift=drift).images for drift in ("denoiser", "density"))  # type: ignore[arg-type]
    # The same noise leads to nearly the same images; those of another seed are several times as far.
    apart = (by_denoiser - by_energy).square().mean((1, 2, 3))
    other = (by_denoiser - by_denoiser.roll(1, 0)).square().mean((1, 2, 3))
    assert float(apart.mean()) < 0.25 * float(other.mean())
    assert sharpness(by_energy) == pytest.approx(sharpness(images), rel=0.35)
    with torch.no_grad():
        assert float(model.percentile(model.energy(by_energy, 0.2), 0.2).median()) < 99


def test_the_energys_gradient_denoises_as_the_denoiser_does(model: DenoisingEBM, images: Tensor) -> None:
    """On held-out images its loss is less than a hundredth above; here with four times that, for chance."""
    held_out = images[:64]
    energy = model.pixel_energy("density")
    losses = [
        validation_loss(denoise, held_out, model.config)
        for denoise in (model.denoise, lambda x, sigma: energy.denoise(x, sigma)[1])
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.04)


def test_both_ways_to_the_likelihood_agree(model: DenoisingEBM) -> None:
    pixels = load_images("fashion-mnist", split="test", limit=24).pixels
    by_energy, by_integral = (model.bits_per_dim(pixels, method=method).value for method in ("energy", "immse"))
    assert float((by_energy - by_integral).mean().abs()) < 0.15
    assert 2.5 < float(by_integral.mean()) < 4.5


def test_digits_are_less_likely_than_clothes(model: DenoisingEBM) -> None:
    bits = [
        model.bits_per_dim(load_images(name, split="test", limit=100).pixels).value
        for name in ("fashion-mnist", "digits")
    ]
    assert auroc(*bits) > 0.7
