from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from denoising_ebm import load_images, to_float, to_uint8
from denoising_ebm.config import TrainingStage
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.restoration import posterior
from denoising_ebm.restoration.metrics import estimated_noise, psnr, ssim
from denoising_ebm.restoration.operators import Degradation, blurred, masked, noisy
from denoising_ebm.restoration.posterior import restore, restore_batches
from denoising_ebm.restoration.prior import cosine_basis, natural_variances
from denoising_ebm.utils.seeds import ImageNoise
from support import random_pixels, tiny_config

TAU = 0.5


@pytest.fixture(params=["denoising", "score"])
def gaussian_model(request: pytest.FixtureRequest) -> DenoisingEBM:
    """An untrained network with preconditioning is the exact model of N(0, sigma_data^2 = 0.25)."""
    return exact_model(request.param)


def exact_model(objective: Any) -> DenoisingEBM:
    config = tiny_config(TrainingStage(objective))
    return DenoisingEBM(replace(config, noise=replace(config.noise, sigma_max=5.0, sigma_min=0.01)))


def dense(degradation: Degradation, size: int) -> Tensor:
    """The matrix of a degradation of `size` x `size` images, column by column."""
    pictures = torch.eye(size * size, dtype=torch.float64).reshape(-1, 1, size, size)
    return degradation.apply(pictures).flatten(1).mT


# -- degradations ---------------------------------------------------------------------------------------------------


def test_blur_is_a_gaussian_filter_with_mirrored_borders(generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 12, 12, generator=generator, dtype=torch.float64)
    blur = blurred(1.3, 12)
    # SciPy's kernel reaches to the same radius and its `reflect` repeats the border pixel.
    expected = gaussian_filter1d(gaussian_filter1d(x.numpy(), 1.3, axis=2, radius=5), 1.3, axis=3, radius=5)
    np.testing.assert_allclose(blur.apply(x).numpy(), expected, atol=1e-12)
    matrix = dense(blur, 12)
    torch.testing.assert_close(matrix, matrix.mT)
    torch.testing.assert_close(matrix.sum(1), torch.ones(144, dtype=torch.float64))  # constants stay


@pytest.mark.parametrize("kind", ["noise", "mask", "blur"])
def test_correction_is_the_posterior_mean(kind: str, generator: torch.Generator) -> None:
    """Against the textbook formula with dense matrices."""
    known = torch.rand(6, 6, generator=generator) > 0.4
    cases = {"noise": noisy(0.3), "mask": masked(known, 0.2), "blur": blurred(0.8, 6, 0.1)}
    degradation = cases[kind]
    x0 = torch.randn(2, 1, 6, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 1, 6, 6, generator=generator, dtype=torch.float64)
    spread = torch.tensor([0.4, 1.5], dtype=torch.float64)
    corrected = degradation.data_consistency(x0, y, spread)
    matrix = dense(degradation, 6)
    for i in range(2):
        v = float(spread[i]) ** 2
        covariance = v * matrix @ matrix.mT + degradation.noise**2 * torch.eye(36, dtype=torch.float64)
        residual = y[i].flatten() - matrix @ x0[i].flatten()
        expected = x0[i].flatten() + v * matrix.mT @ torch.linalg.solve(covariance, residual)
        torch.testing.assert_close(corrected[i].flatten(), expected, atol=1e-9, rtol=1e-9)


def test_missing_pixels_are_interpolated_as_by_a_gaussian_process(generator: torch.Generator) -> None:
    """C A^T (A C A^T + s^2)^{-1} y is the conditional mean of a Gaussian with that covariance: against dense matrices."""
    basis, variances = cosine_basis(6), natural_variances(6, 0.5)
    matrix = torch.kron(basis, basis)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(36, dtype=torch.float64))
    covariance = matrix @ variances.flatten().diag() @ matrix.mT
    assert float(covariance.diagonal().mean()) == pytest.approx(0.25)
    # Pixels beside each other are more alike than those far apart.
    assert covariance[14, 15] > 0.5 * covariance[14, 14] > covariance[0, 35]
    known = torch.rand(6, 6, generator=generator) > 0.4
    hole, places = masked(known, 0.1), known.flatten()
    y = hole.apply(torch.randn(2, 3, 6, 6, generator=generator, dtype=torch.float64))
    inner = covariance[places][:, places] + 0.1**2 * torch.eye(int(known.sum()), dtype=torch.float64)
    expected = y.flatten(2)[..., places] @ torch.linalg.inv(inner) @ covariance[places]
    found = hole.precision_operator(variances)(y).flatten(2) @ covariance
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="only missing pixels"):
        blurred(1.0, 6).precision_operator(variances)
    # Half-known pixels, or pixels known in one channel, are none that are missing.
    for gains in (torch.tensor([[[0.0, 0.5]]]), torch.tensor([[[0.0]], [[1.0]], [[1.0]]]), torch.ones(1, 1, 1)):
        assert not Degradation(gains, 0.0).hides_pixels


def test_noise_has_its_deviation(generator: torch.Generator) -> None:
    y = noisy(0.3).apply(torch.zeros(4, 1, 64, 64), generator)
    assert float(y.std()) == pytest.approx(0.3, rel=4.5 / math.sqrt(2 * y.numel()))
    known = torch.ones(4, 4, dtype=torch.bool)
    known[0] = False
    assert torch.equal(masked(known).apply(torch.ones(1, 1, 4, 4), generator)[0, 0], known.float())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: noisy(0.0), "sigma must be > 0"),
        (lambda: blurred(-1.0, 8), "width must be > 0"),
        (lambda: blurred(1.0, 8, -0.1), "must be >= 0"),
        (lambda: masked(torch.ones(3, 3, dtype=torch.bool)), "some pixels as missing"),
        (lambda: masked(torch.zeros(3, 3, dtype=torch.bool)), "leave some known"),
    ],
)
def test_degradations_refuse(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# -- posterior ------------------------------------------------------------------------------------------------------


def test_noise_alone_is_removed_by_the_denoiser(gaussian_model: DenoisingEBM, generator: torch.Generator) -> None:
    y = 0.6 * torch.randn(3, 1, 16, 16, generator=generator)
    restored = restore(gaussian_model, y, noisy(0.3))
    torch.testing.assert_close(restored, y * TAU**2 / (TAU**2 + 0.3**2))  # Wiener's shrinkage


def test_samples_of_the_posterior_have_its_moments(gaussian_model: DenoisingEBM, generator: torch.Generator) -> None:
    """Denoising: x0 given y is N(c y, c s^2) with c = tau^2 / (tau^2 + s^2)."""
    y = 0.6 * torch.randn(64, 1, 16, 16, generator=generator)
    c = TAU**2 / (TAU**2 + 0.3**2)
    x = restore(gaussian_model, y, noisy(0.3), estimate="sample", steps=200)
    error = x - c * y
    assert float(error.mean()) == pytest.approx(0.0, abs=4.5 * 0.26 / math.sqrt(y.numel()))
    assert float(error.var()) == pytest.approx(c * 0.3**2, rel=0.05)
    assert float((error * y).mean()) == pytest.approx(0.0, abs=0.003)


@pytest.mark.parametrize("largest", [posterior.MAX_PRECISION_SIZE, 8])
def test_missing_pixels(
    largest: int, gaussian_model: DenoisingEBM, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Independent pixels: known ones are y, missing ones are drawn from the prior; also in images too large to weigh."""
    monkeypatch.setattr(posterior, "MAX_PRECISION_SIZE", largest)
    x0 = TAU * torch.randn(16, 1, 16, 16, generator=generator)
    known = torch.rand(16, 16, generator=generator) > 0.5
    hole = masked(known)
    x = restore(gaussian_model, hole.apply(x0), hole, estimate="sample", steps=100)
    torch.testing.assert_close(x[..., known], x0[..., known], atol=1e-3, rtol=0)
    missing = x[..., ~known]
    assert float(missing.var()) == pytest.approx(TAU**2, rel=0.1)
    mean = restore(gaussian_model, hole.apply(x0), hole, steps=40, num_samples=8)[..., ~known]
    assert float(mean.var()) == pytest.approx(TAU**2 / 8, rel=0.25)  # the average of 8 draws around 0


def test_blur_is_undone_as_by_wiener(gaussian_model: DenoisingEBM, generator: torch.Generator) -> None:
    x0 = TAU * torch.randn(4, 1, 16, 16, generator=generator)
    blur = blurred(1.0, 16, noise=0.05)
    y = blur.apply(x0, generator)
    matrix = dense(blur, 16).float()
    gain = TAU**2 * matrix @ torch.linalg.inv(TAU**2 * matrix @ matrix + 0.05**2 * torch.eye(256))
    wiener = (y.flatten(1) @ gain.mT).reshape(y.shape)
    restored = restore(gaussian_model, y, blur, steps=60, num_samples=12)
    # What remains is the scatter of 12 draws from the posterior, whose covariance is tau^2 (1 - gain A).
    scatter = TAU**2 * float((torch.eye(256) - gain @ matrix).trace()) / 256 / 12
    assert float((restored - wiener).square().mean()) == pytest.approx(scatter, rel=0.3)
    assert scatter < 0.5 * float((y - wiener).square().mean())


def test_missing_pixels_join_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns come in pairs with correlation 0.95: a missing one follows the known one beside it."""
    pair = TAU**2 * torch.tensor([[1.0, 0.95], [0.95, 1.0]])

    def denoise(x: Tensor, sigma: Any) -> Tensor:
        level = torch.as_tensor(sigma).reshape(-1)[0]
        gain = pair @ torch.linalg.inv(pair + level**2 * torch.eye(2))
        return (x.unflatten(-1, (8, 2)) @ gain).flatten(-2)

    known = torch.zeros(16, 16, dtype=torch.bool)
    known[:, ::2] = True
    hole = masked(known)
    y = hole.apply(TAU * torch.randn(16, 1, 16, 16, generator=torch.Generator().manual_seed(1)))
    slopes = {}
    # Of a model trained by `score` the Jacobian is left out: that is not enough.
    for objective in ("score", "denoising"):
        model = exact_model(objective)
        monkeypatch.setattr(model, "denoise", denoise)
        x = restore(model, y, hole, steps=100, num_samples=8)
        missing, beside = x[..., 1::2], y[..., ::2]
        slopes[objective] = float((missing * beside).mean() / beside.square().mean())
    assert slopes["denoising"] == pytest.approx(0.95, abs=0.1)
    assert slopes["score"] < slopes["denoising"] - 0.1
    # Given its neighbour a pixel scatters by tau^2 (1 - 0.95^2); of 8 draws an eighth of that is left.
    scatter = float((missing - slopes["denoising"] * beside).var())
    assert scatter == pytest.approx(TAU**2 * (1 - 0.95**2) / 8, rel=0.6)


def test_restore_refuses(gaussian_model: DenoisingEBM) -> None:
    y = torch.zeros(1, 1, 16, 16)
    cases: list[tuple[Tensor, Degradation, dict[str, Any], str]] = [
        (torch.zeros(1, 1, 8, 8), noisy(0.1), {}, r"images must have shape \(1, 16, 16\)"),
        (y, noisy(9.0), {}, "within the model's noise levels, 0.01 to 5, got 9"),
        (y, blurred(1.0, 16, 9.0), {}, "within the model's noise levels, 0.01 to 5, got 9"),
        (y, blurred(1.0, 16), {"num_samples": 0}, "num_samples must be >= 1"),
        (y, blurred(1.0, 16), {"steps": 1}, "steps >= 2"),
        (y, blurred(1.0, 16), {"step_size": 2.0}, "step_size must be within"),
    ]
    for images, degradation, options, message in cases:
        with pytest.raises(ValueError, match=message):
            restore(gaussian_model, images, degradation, **options)


# -- measures -------------------------------------------------------------------------------------------------------


def test_psnr_and_ssim() -> None:
    clean = load_images("fashion-mnist", split="test", limit=3).pixels
    off = (clean.int() + 10).clamp(0, 255).to(torch.uint8)
    shift = (off.double() - clean.double()).square().mean((1, 2, 3))
    torch.testing.assert_close(psnr(off, clean), 20 * math.log10(255) - 10 * shift.log10())
    assert psnr(torch.full_like(clean, 7), torch.full_like(clean, 17))[0] == pytest.approx(28.1308, abs=1e-4)
    assert bool(psnr(clean, clean).isinf().all())
    torch.testing.assert_close(ssim(clean, clean), torch.ones(3, dtype=torch.float64))
    # Constant images: only the luminance term is left, (2 a b + c) / (a^2 + b^2 + c) with c = (0.01 * 255)^2.
    a, b, c = 50.0, 200.0, 2.55**2
    flat = [torch.full((1, 1, 16, 16), int(value), dtype=torch.uint8) for value in (a, b)]
    assert float(ssim(*flat)[0]) == pytest.approx((2 * a * b + c) / (a * a + b * b + c), abs=1e-9)
    with pytest.raises(ValueError, match="uint8 images of one shape"):
        psnr(clean, clean[:2])


def test_estimated_noise(generator: torch.Generator) -> None:
    """Of white noise around gray it is its deviation; clipped at black at least half of it; of one colour none."""
    for sigma in (0.05, 0.3):
        y = to_uint8(sigma * torch.randn(4, 1, 64, 65, generator=generator))
        # A median of 1,024 numbers: its standard error is 1.17 sigma / sqrt(1024), twice that with rounding.
        torch.testing.assert_close(estimated_noise(y), torch.full((4,), sigma, dtype=torch.float64), rtol=0.17, atol=0)
        dark = to_uint8(-1 + sigma * torch.randn(4, 1, 64, 64, generator=generator))
        assert bool((estimated_noise(dark) > 0.5 * sigma).all())
    assert estimated_noise(torch.full((2, 3, 9, 9), 7, dtype=torch.uint8)).tolist() == [0, 0]


def test_noise_of_one_seed_is_not_met_again(generator: torch.Generator) -> None:
    """Degraded with seed 5 and restored with seed 5, a sample's error is that of the posterior."""
    x0 = TAU * torch.randn(64, 1, 16, 16, generator=generator)
    y = noisy(0.3).apply(x0, ImageNoise.of(5, range(64), "degrade"))
    x = restore(exact_model("denoising"), y, noisy(0.3), estimate="sample", steps=100, seed=5)
    # The sample and the truth are both drawn from N(c y, c s^2).
    expected = 2 * 0.3**2 * TAU**2 / (TAU**2 + 0.3**2)
    assert float((x - x0).square().mean()) == pytest.approx(expected, rel=0.06)


def test_images_are_restored_one_by_one() -> None:
    """Noise and chains of an image depend on the seed and its index alone, whatever the batch."""
    model, degradation, pixels = exact_model("denoising"), noisy(0.3), random_pixels(5)
    options: dict[str, Any] = {"num_samples": 2, "steps": 4, "seed": 7}
    known = torch.ones(16, 16, dtype=torch.bool)
    known[4:9, 4:9] = False
    cases = (
        (degradation, {"estimate": "sample"}),
        (degradation, {}),
        (masked(known), {}),
        (blurred(1.0, 16, 0.05), {}),
    )
    for case, more in cases:
        how = {**options, **more, "degrade": True}
        whole = [
            torch.cat(parts) for parts in zip(*restore_batches(model, pixels, case, batch_size=5, **how), strict=True)
        ]
        batches = list(restore_batches(model, pixels, case, batch_size=2, **how))
        assert [len(degraded) for degraded, _ in batches] == [2, 2, 1]
        last = next(iter(restore_batches(model, pixels[4:], case, images=[4], **how)))
        for i in range(2):
            assert torch.equal(torch.cat([batch[i] for batch in batches]), whole[i])
            assert torch.equal(last[i], whole[i][4:])
    # As they are, without `degrade`.
    ((degraded, _),) = restore_batches(model, pixels, degradation, batch_size=8, **options)
    assert torch.equal(degraded, pixels)


def test_degraded_images_are_those_of_a_file() -> None:
    """Clipped and rounded before they are restored; without that, restored from numbers that no file holds."""
    model, degradation, pixels = exact_model("denoising"), noisy(0.8), random_pixels(3)
    noise = ImageNoise.of(4, range(3), "degrade")
    y = degradation.apply(to_float(pixels), noise)
    assert float((y.abs() > 1).double().mean()) > 0.1
    held, restored = next(iter(restore_batches(model, pixels, degradation, degrade=True, seed=4)))
    assert torch.equal(held, to_uint8(y)) and torch.equal(
        restored, to_uint8(restore(model, to_float(held), degradation))
    )
    held, restored = next(iter(restore_batches(model, pixels, degradation, degrade=True, seed=4, as_file=False)))
    assert torch.equal(held, to_uint8(y)) and torch.equal(restored, to_uint8(restore(model, y, degradation)))


def test_psnr_of_noise_in_a_file() -> None:
    """In the middle of the range the error is sigma^2 + 1/12; at the edge half of it is cut off."""
    gray, model = 1.5, exact_model("denoising")
    for level, expected in ((128, gray**2 + 1 / 12), (0, (gray**2 + 1 / 12) / 2)):
        pixels = torch.full((256, 1, 16, 16), level, dtype=torch.uint8)
        held, _ = next(iter(restore_batches(model, pixels, noisy(gray / 127.5), degrade=True, batch_size=256)))
        error = (held.double() - level).square()
        spread = 4.5 * float(error.std()) / math.sqrt(error.numel())
        assert float(error.mean()) == pytest.approx(expected, abs=spread)
