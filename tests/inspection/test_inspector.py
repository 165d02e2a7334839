"""The inspector: maps, the promise, aligned sets, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from denoising_ebm.config import Config, from_dict
from denoising_ebm.datasets.photos import Photo
from denoising_ebm.inspection.defects import DEFECTS
from denoising_ebm.inspection.head import HeadConfig
from denoising_ebm.inspection.inspector import Inspector, InspectorConfig, is_aligned, split_photos
from denoising_ebm.model import DenoisingEBM

HEAD = HeadConfig(sigmas=(0.1, 0.5), widths=(8, 8), crop=32, batch_size=4, learning_rate=5e-3, max_crops=720)
KINDS = {name: DEFECTS[name] for name in ("cover", "stain", "speck")}


def make_model(**network: object) -> DenoisingEBM:
    values = {"image_size": 16, "channels": 1, "any_size": True, "widths": [8, 8], "attention": []}
    values |= {"latent_dim": 4, "decoder_widths": [8, 8], "embedding_dim": 8, **network}
    torch.manual_seed(0)
    return DenoisingEBM(from_dict(Config, {"network": values}, where="test")).eval()


def photo(seed: int, shape: tuple[int, int] = (48, 56), name: str = "") -> Photo:
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))
    return Photo(name or f"{seed}.png", (128 + 8 * noise).round().clamp(0, 255).to(torch.uint8), "good", True)


def spotted(seed: int, row: int, column: int) -> Photo:
    normal = photo(seed)
    pixels = normal.pixels.clone()
    pixels[:, max(0, row - 3) : row + 4, max(0, column - 3) : column + 4] = 230
    return Photo(normal.name, pixels, "spot", False)


@pytest.fixture(scope="module")
def inspector() -> Inspector:
    normal = [photo(seed) for seed in range(12)]
    held_out = [photo(seed) for seed in range(100, 120)]
    config = InspectorConfig(head=HEAD)
    return Inspector.fit(make_model(), normal, calibration=held_out, config=config, defects=KINDS)


def test_a_defect_at_any_border_moves_the_row_as_much_as_one_in_the_middle(inspector: Inspector) -> None:
    normal = inspector.score(photo(7).x)
    middle = inspector.score(spotted(7, 24, 28).x) - normal
    assert middle > 1
    for place in ((0, 28), (47, 28), (24, 0), (24, 55), (0, 0), (47, 55)):
        assert inspector.score(spotted(7, *place).x) - normal > 0.5 * middle


def test_a_spot_is_flagged_where_it_is(inspector: Inspector) -> None:
    found = inspector.inspect(spotted(7, 10, 40), 0.05)
    assert found.flagged
    assert found.p_value == pytest.approx(1 / 21)
    top, left, bottom, right = found.regions[0].box
    assert top <= 10 < bottom
    assert left <= 40 < right
    assert found.regions[0].area == int(found.mask.sum()) < 400
    assert found.score == pytest.approx(float(found.map.max()))


def test_the_row_is_that_of_the_map(inspector: Inspector) -> None:
    for seed in range(30, 40):
        found = inspector.inspect(photo(seed), 0.1)
        assert found.flagged == (found.p_value <= 0.1 + 1e-9) == bool(found.mask.any())


def test_few_calibration_photos_promise_little(inspector: Inspector) -> None:
    assert inspector.promise() == "20 normal photos can promise rates from 0.048 on"
    with pytest.raises(
        ValueError, match=r"a false-alarm rate of 0.01 needs at least 99 calibration photos, there are 20"
    ):
        inspector.inspect(photo(0), 0.01)


def test_photos_of_fitting_do_not_calibrate(inspector: Inspector) -> None:
    with pytest.raises(ValueError, match="2 of 2 calibration photos are among those of fitting"):
        inspector.calibrate([photo(0), photo(1)])
    before = inspector.maxima
    inspector.calibrate([*(photo(seed) for seed in range(100, 120)), photo(0)])
    torch.testing.assert_close(inspector.maxima, before)


def test_files_give_the_same_maps(inspector: Inspector, tmp_path: Path) -> None:
    inspector.model.save_pretrained(tmp_path)
    inspector.save(tmp_path)
    read = Inspector.from_pretrained(tmp_path)
    x = photo(3).x
    assert torch.equal(read.map(x), inspector.map(x))
    assert torch.equal(read.maxima, inspector.maxima)
    assert read.config == inspector.config
    assert read.metadata == inspector.metadata
    with pytest.raises(ValueError, match="of 1 calibration photos are among those of fitting"):
        read.calibrate([photo(0)])


def test_files_of_other_weights_or_damaged_are_refused(inspector: Inspector, tmp_path: Path) -> None:
    inspector.save(tmp_path)
    with pytest.raises(ValueError, match=r"inspector\.json: fitted for other weights"):
        other = make_model()
        next(other.parameters()).data.add_(1)
        Inspector.load(tmp_path, other)
    path = tmp_path / "inspector.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"inspector\.safetensors: is damaged"):
        Inspector.load(tmp_path, inspector.model)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"inspector\.safetensors: missing; `debm inspect --train` makes it"):
        Inspector.load(tmp_path, inspector.model)


class Counter:
    """Photos of a thing at one place: alike but for noise."""

    def __init__(self, num: int, move: int) -> None:
        self.photos = [self._make(seed, move) for seed in range(num)]

    @staticmethod
    def _make(seed: int, move: int) -> Photo:
        pixels = photo(seed).pixels.clone()
        start = 8 + move * seed % 32
        pixels[:, 10:30, start : start + 16] = 30
        return Photo(f"{seed}.png", pixels, "good", True)


def test_alignment_is_found_out() -> None:
    assert is_aligned(Counter(8, 0).photos)
    assert not is_aligned(Counter(8, 7).photos)
    assert not is_aligned([photo(seed) for seed in range(8)])
    assert not is_aligned([*Counter(8, 0).photos, photo(0, (48, 57))])


def test_an_aligned_set_is_judged_place_by_place() -> None:
    def made(seed: int) -> Photo:
        pixels = photo(seed).pixels.clone()
        # Half of the photos have a light here, which is normal at this place and nowhere else.
        if seed % 2:
            pixels[:, 6:14, 6:14] = 230
        return Photo(f"{seed}.png", pixels)

    normal = [made(seed) for seed in range(16)]
    config = InspectorConfig(head=HEAD, aligned=True)
    held_out = [made(seed) for seed in range(100, 120)]
    inspector = Inspector.fit(make_model(), normal, calibration=held_out, config=config, defects=KINDS)
    assert inspector.places is not None
    assert inspector.places.shape == (2, 48, 56)
    elsewhere = photo(200).pixels.clone()
    elsewhere[:, 30:38, 30:38] = 230
    there = photo(200).pixels.clone()
    there[:, 6:14, 6:14] = 230
    raw = [inspector._logits(Photo("", pixels).x).max() for pixels in (elsewhere, there)]
    judged = [inspector.score(Photo("", pixels).x) for pixels in (elsewhere, there)]
    assert judged[0] / judged[1] > float(raw[0] / raw[1])
    with pytest.raises(ValueError, match=r"a\.png: the photo is 57 x 48, those of this aligned set are 56 x 48"):
        inspector.inspect(photo(0, (48, 57), "a.png"), 0.05)


def test_large_photos_are_read_in_tiles(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    x = photo(1, (150, 170)).x
    whole = inspector.map(x)
    seen: list[Tensor] = []

    def small(function: object, x: Tensor) -> Tensor:
        from denoising_ebm.inspection.evidence import tiled

        def noted(part: Tensor) -> Tensor:
            seen.append(part)
            return function(part)  # type: ignore[operator, no-any-return]

        return tiled(noted, x, tile=48, margin=32)

    monkeypatch.setattr("denoising_ebm.inspection.inspector.tiled", small)
    torch.testing.assert_close(inspector.map(x), whole, atol=0.05, rtol=0.05)
    assert len(seen) == 16
    assert all(max(part.shape[2:]) <= 112 for part in seen)


@pytest.mark.parametrize(("count", "kept"), [(120, 30), (40, 19), (30, 15), (20, 10)])
def test_a_quarter_is_kept_and_of_few_photos_half(count: int, kept: int) -> None:
    photos = [photo(seed, (8, 8)) for seed in range(count)]
    split = split_photos(photos, "none")
    assert len(split.kept) == kept
    assert sorted(split.fitted + split.kept) == list(range(count))
    assert split.groups is None
    assert split_photos(photos, "none", seed=1).kept != split.kept


def test_photos_of_a_group_stay_together() -> None:
    photos = [photo(seed, (8, 8), f"sheet{seed // 4:02}_{seed % 4}.png") for seed in range(80)]
    split = split_photos(photos, "prefix")
    sheets = {i // 4 for i in split.kept}
    assert len(split.kept) == 4 * len(sheets) == 40
    assert sheets.isdisjoint(i // 4 for i in split.fitted)
    assert split.groups is not None
    assert len(set(split.groups.tolist())) == 10
    with pytest.raises(ValueError, match="all 4 normal photos are of one group"):
        split_photos(photos[:4], "prefix")


def test_groups_of_calibration_photos_have_one_say_each(inspector: Inspector) -> None:
    held_out = [photo(seed) for seed in range(100, 120)]
    grouped = Inspector(inspector.model, inspector.head, inspector.config)
    grouped.calibrate(held_out, torch.arange(20) // 5)
    assert grouped.promise() == "4 normal groups of photos can promise rates from 0.2 on"
    with pytest.raises(ValueError, match="needs at least 9 calibration groups of photos, there are 4"):
        grouped.inspect(photo(0), 0.1)
    assert grouped.inspect(spotted(7, 10, 40), 0.2).p_value == pytest.approx(0.2)


def test_what_cannot_be_fitted() -> None:
    photos = [photo(seed) for seed in range(12)]
    with pytest.raises(ValueError, match="the model takes images of one size only"):
        Inspector.fit(make_model(any_size=False), photos, calibration=photos)
    with pytest.raises(ValueError, match="fitting an inspector needs at least 10 normal photos, got 3"):
        Inspector.fit(make_model(), photos[:3], calibration=photos)
    with pytest.raises(ValueError, match=r"blur must be within 0..100, got -1"):
        InspectorConfig(blur=-1)


def test_photos_of_other_channels_are_refused(inspector: Inspector) -> None:
    with pytest.raises(ValueError, match=r"photos must have shape \(1, height, width\), got \(3, 8, 8\)"):
        inspector.map(torch.zeros(3, 8, 8))


def test_the_rate_is_kept_over_splits(inspector: Inspector) -> None:
    """Twenty draws of twenty calibration photos and forty new ones: the mean rate lies where it was promised."""
    scores = np.array([inspector.score(photo(seed).x) for seed in range(300, 360)])
    rng = np.random.default_rng(0)
    rates = {0.05: [], 0.1: []}
    for _ in range(200):
        order = rng.permutation(60)
        held, new = np.sort(scores[order[:20]]), scores[order[20:]]
        for rate, found in rates.items():
            p = (1 + (held[None] >= new[:, None]).sum(1)) / 21
            found.append(float((p <= rate + 1e-9).mean()))
    assert np.mean(rates[0.05]) <= 0.055
    assert 0.06 <= np.mean(rates[0.1]) <= 0.105
