"""Anomaly maps: statistics, tiles, and what stands out in them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from denoising_ebm import DenoisingEBM, load_images
from denoising_ebm.ood.anomaly_maps import AnomalyMapConfig, AnomalyMaps, tile_starts
from denoising_ebm.ood.blur import gaussian_blur
from denoising_ebm.ood.metrics import auroc


@pytest.fixture(scope="module")
def clothes() -> Tensor:
    return load_images("fashion-mnist", split="test", limit=160).pixels


@pytest.fixture(scope="module")
def fitted(clothes: Tensor) -> AnomalyMaps:
    model = DenoisingEBM.from_pretrained("fashion-mnist")
    return AnomalyMaps(
        model, AnomalyMapConfig(sigmas=(0.2, 0.4), clean_sigmas=(0.2,), num_noise_samples=2, blur=1.5)
    ).fit(clothes[:96], batch_size=40)


def test_what_was_fitted_is_standard(fitted: AnomalyMaps, clothes: Tensor) -> None:
    """Over the fitted images each level has mean 0 and, but for what is added to it, variance 1 at every pixel."""
    statistics = fitted.tensors()
    single = AnomalyMaps(
        fitted.model, AnomalyMapConfig(sigmas=(0.2,), clean_sigmas=(), num_noise_samples=2, blur=1.5)
    ).load({name: statistics[name][:1] for name in ("mean", "std")})
    maps = single.maps(clothes[:96], batch_size=50)
    assert float(maps.mean(0).abs().max()) < 1e-3
    # A tenth of the mean variance is added to each pixel's.
    square = statistics["std"][0].square()
    expected = ((square - square.mean() / 11) / square).float()
    torch.testing.assert_close(maps.var(0), expected, rtol=0.01, atol=0.01)


def test_a_patch_of_another_image_is_found(fitted: AnomalyMaps, clothes: Tensor) -> None:
    images, others = clothes[96:128], clothes[128:160]
    patched, square = images.clone(), torch.zeros(32, 32, dtype=torch.bool)
    square[12:20, 4:12] = True
    patched[:, :, 12:20, 4:12] = others[:, :, 12:20, 12:20].flip(2)
    maps = fitted.maps(patched)
    changed = (patched != images).flatten(1).any(1)
    inside, outside = maps[changed][:, square].flatten(), maps[changed][:, ~square].flatten()
    assert auroc(outside, inside) > 0.75
    assert float(maps[:, square].mean()) > 0.6 + float(fitted.maps(images)[:, square].mean())


def test_maps_do_not_depend_on_the_batch(fitted: AnomalyMaps, clothes: Tensor) -> None:
    calls: list[int] = []
    whole = fitted.maps(clothes[:5], progress=calls.append)
    assert calls == [5] and whole.shape == (5, 32, 32)
    torch.testing.assert_close(fitted.maps(clothes[:5], batch_size=2), whole, rtol=1e-3, atol=1e-3)


def test_larger_images_are_tiled(fitted: AnomalyMaps, clothes: Tensor) -> None:
    """A mosaic of normal images with one of noise: the noise stands out, and its place is kept."""
    rows = [torch.cat(list(clothes[i : i + 3]), dim=2) for i in (0, 3)]
    mosaic = torch.cat(rows, dim=1)[None]
    noise = torch.randint(0, 256, (32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mosaic[0, 0, 32:64, 64:96] = noise
    found = fitted.maps(mosaic)[0]
    assert found.shape == (64, 96)
    blocks = found.reshape(2, 32, 3, 32).mean((1, 3))
    assert int(blocks.argmax()) == 5
    assert float(blocks.max()) > 1.5 > 0.5 > float(blocks.flatten()[:5].max())
    with pytest.raises(ValueError, match="at least 32 x 32, got 16 x 40"):
        fitted.maps(torch.zeros(1, 1, 16, 40, dtype=torch.uint8))


def test_a_tile_that_covers_the_image_is_the_image(fitted: AnomalyMaps, clothes: Tensor) -> None:
    one = fitted._tiled(clothes[0], 32, 8)
    torch.testing.assert_close(one, fitted.maps(clothes[:1])[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("length", [32, 33, 47, 48, 49, 64, 100, 321])
def test_tiles_cover_and_overlap(length: int) -> None:
    starts = tile_starts(length, 32)
    assert starts[0] == 0 and starts[-1] == length - 32
    assert all(0 < after - before <= 16 for before, after in itertools.pairwise(starts))


def test_blur_keeps_the_mean_and_spreads_a_point() -> None:
    x = torch.zeros(1, 2, 32, 32)
    x[0, 0, 16, 16] = 1.0
    x[0, 1] = 0.3
    out = gaussian_blur(x, 1.5)
    at = torch.arange(32.0) - 16
    assert float((out[0, 0].sum(0) * at**2).sum()) == pytest.approx(1.5**2, rel=0.05)
    torch.testing.assert_close(out[0, 1], x[0, 1])
    assert torch.equal(gaussian_blur(x, 0.0), x)


def test_kept_statistics_give_the_same_maps(fitted: AnomalyMaps, clothes: Tensor) -> None:
    other = AnomalyMaps(fitted.model, fitted.config).load(fitted.tensors())
    assert torch.equal(other.maps(clothes[:2]), fitted.maps(clothes[:2]))


def test_refusals(fitted: AnomalyMaps, clothes: Tensor) -> None:
    with pytest.raises(ValueError, match="not fitted"):
        AnomalyMaps(fitted.model).maps(clothes[:1])
    with pytest.raises(ValueError, match="at least 2 normal images, got 1"):
        AnomalyMaps(fitted.model).fit(clothes[:1])
    for values, field in (
        ({"sigmas": (), "clean_sigmas": ()}, "sigmas"),
        ({"num_noise_samples": 0}, "num_noise_samples"),
        ({"blur": -1.0}, "blur"),
    ):
        with pytest.raises(ValueError, match=rf"maps\.{field}"):
            AnomalyMapConfig(**values)  # type: ignore[arg-type]
