from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from denoising_ebm import DenoisingEBM, load_images
from denoising_ebm.config import from_dict, to_dict
from denoising_ebm.ood.alterations import alterations
from denoising_ebm.ood.anomaly_maps import AnomalyMapConfig
from denoising_ebm.ood.conformal import fpr_interval
from denoising_ebm.ood.detector import Detector, DetectorConfig
from denoising_ebm.ood.features import FeatureConfig, compute_features
from denoising_ebm.ood.lda import FisherDiscriminants
from denoising_ebm.ood.members import Member
from denoising_ebm.ood.metrics import auroc
from denoising_ebm.ood.outliers import SYNTHETIC_OOD
from support import randomise, tiny_config

SMALL = DetectorConfig(
    FeatureConfig(sigmas=(0.1, 0.5), families=("energy", "noised-energy", "latent"), inner_sigmas=(0.1,)),
    (
        Member(("energy", "noised-energy")),
        Member(("latent",), "neighbours"),
        Member(("latent",), "conditional", given=("energy", "noised-energy")),
    ),
    maps=AnomalyMapConfig(sigmas=(0.2,), clean_sigmas=(0.2,), draws=1, smooth=1.0),
)
DISCRIMINANTS = replace(
    SMALL,
    members=(
        Member(
            ("energy", "noised-energy", "latent"),
            "discriminants",
            given=("energy",),
            blocks=(("noised-energy", "energy"), ("latent", "energy")),
        ),
    ),
    altered=20,
)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Real images at half their size."""
    images = load_images("fashion-mnist", limit=300).pixels.float()
    return torch.nn.functional.avg_pool2d(images, 2).round().to(torch.uint8)


@pytest.fixture(scope="module")
def model() -> DenoisingEBM:
    model = DenoisingEBM(tiny_config())
    randomise(model.dae)
    return model.eval()


@pytest.fixture(scope="module")
def detector(model: DenoisingEBM, pixels: Tensor) -> Detector:
    return Detector(model, SMALL).fit(pixels[:200])


@pytest.fixture
def folder(detector: Detector, tmp_path: Path) -> Iterator[Path]:
    detector.model.save_pretrained(tmp_path)
    detector.save(tmp_path)
    yield tmp_path


def test_scores_combine_standardised_members(model: DenoisingEBM, pixels: Tensor) -> None:
    alone = [Detector(model, replace(SMALL, members=(member,))).fit(pixels[:200]) for member in SMALL.members]
    scores = torch.stack([detector.score(pixels[200:]) for detector in alone])
    together = Detector(model, SMALL).fit(pixels[:200])
    torch.testing.assert_close(together.score(pixels[200:]), scores.max(0).values)
    mean = Detector(model, replace(SMALL, combine="mean")).fit(pixels[:200])
    torch.testing.assert_close(mean.score(pixels[200:]), scores.mean(0))
    # A member sees normal images it was not fitted on at mean 0 and spread 1.
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))[40:]
    held = alone[0].score(pixels[order[:16]])
    assert float(held.mean()) == pytest.approx(0, abs=1e-9) and float(held.std()) == pytest.approx(1)
    assert together.metadata == {"fitted on": 144, "calibrated on": 40}


def test_calibration_images_take_no_part_in_fitting(model: DenoisingEBM, pixels: Tensor) -> None:
    first = Detector(model, SMALL).fit(pixels[:150], calibration=pixels[150:200])
    second = Detector(model, SMALL).fit(pixels[:150], calibration=pixels[200:290])
    torch.testing.assert_close(first.score(pixels[290:]), second.score(pixels[290:]))
    torch.testing.assert_close(first.calibration, second.score(pixels[150:200]))
    assert len(second.calibration) == 90


def test_pixels_of_calibration_images_do_not_move_scores(model: DenoisingEBM, pixels: Tensor) -> None:
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    changed = pixels[:100].clone()
    changed[order[:20]] = 255 - changed[order[:20]]
    detectors = [Detector(model, SMALL).fit(images) for images in (pixels[:100], changed)]
    first, second = (detector.score(pixels[200:]) for detector in detectors)
    assert torch.equal(first, second)
    assert not torch.equal(detectors[0].calibration, detectors[1].calibration)
    assert torch.equal(detectors[0].was_fitted_on(pixels[80:120]), torch.tensor([True] * 20 + [False] * 20))
    # Other calibration images take the place of those before.
    again = detectors[0].calibrate(pixels[100:130])
    assert int(again.was_fitted_on(pixels[:100]).sum()) == 80 and bool(again.was_fitted_on(pixels[100:130]).all())
    with pytest.raises(ValueError, match="the calibration images are those of fitting"):
        Detector(model, SMALL).fit(pixels[:40], calibration=pixels[10:20])


def test_scores_are_the_same_in_parts(detector: Detector, pixels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = detector.score(pixels[200:220])
    monkeypatch.setattr("denoising_ebm.ood.detector.SCORED_AT_ONCE", 7)
    torch.testing.assert_close(detector.score(pixels[200:220]), whole, rtol=1e-5, atol=1e-5)
    assert detector.score(pixels[:0]).shape == (0,)


def test_threads_can_share_a_detector(model: DenoisingEBM, pixels: Tensor) -> None:
    features = FeatureConfig(sigmas=(0.2,), families=("pooled",))
    detector = Detector(model, DetectorConfig(features, (Member(("pooled",), "neighbours"),), maps=SMALL.maps))
    detector.fit(pixels[:60])
    parts = torch.split(pixels[200:280], 10)
    expected = [detector.score(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, single in zip(pool.map(detector.score, parts), expected, strict=True):
                torch.testing.assert_close(found, single, rtol=1e-4, atol=1e-4)


def test_scores_are_functions_of_the_image(detector: Detector, pixels: Tensor) -> None:
    scores = detector.score(pixels[200:230])
    torch.testing.assert_close(
        detector.score(pixels[200:230].flip(0), batch_size=7).flip(0), scores, rtol=1e-3, atol=1e-4
    )


def test_odd_images_score_higher(detector: Detector, pixels: Tensor) -> None:
    noise = SYNTHETIC_OOD["uniform-noise"](pixels[200:], torch.Generator().manual_seed(0))
    assert auroc(detector.score(pixels[200:]), detector.score(noise)) > 0.99


def test_discriminants_learn_from_altered_images(model: DenoisingEBM, pixels: Tensor, tmp_path: Path) -> None:
    counts: list[int] = []
    detector = Detector(model, DISCRIMINANTS).fit(pixels[:200], progress=counts.append)
    assert DISCRIMINANTS.num_altered(160, 1) == 20 * (1 + len(alterations(1)))
    assert sum(counts) == 160 + DISCRIMINANTS.num_altered(160, 1) + 160 + 40
    # New images, altered in the ways that were shown, look odder than as they are.
    altered = detector.altered_columns(pixels[200:220])
    # The last images: the first ones set the scale.
    more = detector.altered_columns(pixels[150:220])
    assert all(torch.equal(more[family], altered[family]) for family in altered)
    scores = torch.stack(
        [detector.combine({k: v[i] for k, v in altered.items()}) for i in range(len(alterations(1)) + 1)]
    )
    means = dict(zip(["as they are", *alterations(1)], scores.mean(1).tolist(), strict=True))
    for name in ("noise", "blur", "negative"):
        assert means[name] > means["as they are"] + 0.3, means
    model.save_pretrained(tmp_path)
    detector.save(tmp_path)
    loaded = Detector.from_pretrained(tmp_path)
    columns = loaded.columns(pixels[200:])
    density = detector._opinions[0].density
    assert isinstance(density, FisherDiscriminants)
    given = columns["energy"]
    heads = density.heads(torch.cat([columns["energy"], columns["noised-energy"], columns["latent"]], 1), given)
    assert loaded.nearest_corruption(columns) == [list(alterations(1))[i] for i in heads.argmax(1).tolist()]
    assert Detector(model, SMALL).fit(pixels[:60]).nearest_corruption(columns) is None
    torch.testing.assert_close(loaded.score(pixels[200:]), detector.score(pixels[200:]), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="discriminants need features of altered images"):
        Detector(model, DISCRIMINANTS).fit_columns(compute_features(model, pixels[:50], DISCRIMINANTS.features))


def test_false_alarm_rate_on_real_images_over_splits() -> None:
    """The promise: a share of at most alpha of new normal images is flagged, for a poor model as for a good one."""
    model = DenoisingEBM.from_pretrained("fashion-mnist")
    images = load_images("fashion-mnist", split="test", limit=800).pixels
    config = DetectorConfig(
        FeatureConfig(sigmas=(0.1, 1.0), families=("energy", "noised-energy")), (Member(("energy", "noised-energy")),)
    )
    train = load_images("fashion-mnist", limit=200).pixels
    scores = Detector(model, config).fit(train).score(images)
    detector = Detector(model, config)
    for rate in (0.01, 0.05, 0.1):
        shares = []
        for seed in range(20):
            order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
            detector.calibration = scores[order[:400]]
            share = float(detector.flag(scores[order[400:]], rate).double().mean())
            low, high = fpr_interval(rate, 400, 400, share=0.9995)
            assert low <= share <= high
            shares.append(share)
        # Over all splits together: the mean of 20 shares, of which each spreads like sqrt(2 a (1 - a) / 400).
        spread = (2 * rate * (1 - rate) / 400 / 20) ** 0.5
        assert abs(sum(shares) / 20 - int(401 * rate) / 401) < 3.5 * spread


def test_saved_and_loaded_detectors_agree(detector: Detector, pixels: Tensor, folder: Path) -> None:
    loaded = Detector.from_pretrained(folder)
    assert loaded.config == detector.config and loaded.metadata == detector.metadata
    # Distances are kept in float32.
    torch.testing.assert_close(loaded.score(pixels[200:]), detector.score(pixels[200:]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(loaded.calibration, detector.calibration, rtol=0, atol=0)
    torch.testing.assert_close(loaded.maps(pixels[200:204]), detector.maps(pixels[200:204]), rtol=1e-4, atol=1e-4)


def test_loading_restores_the_precision_of_fitting(folder: Path) -> None:
    model = DenoisingEBM.from_pretrained(folder).set_precision("bf16")
    assert Detector.load(folder, model).model.precision == "fp32"


def test_config_survives_yaml_and_json() -> None:
    values = json.loads(json.dumps(to_dict(SMALL)))
    assert from_dict(DetectorConfig, values) == SMALL


def test_all_features_by_family(detector: Detector, model: DenoisingEBM, pixels: Tensor) -> None:
    columns = compute_features(model, pixels[200:210], SMALL.features)
    torch.testing.assert_close(detector.combine(columns), detector.score(pixels[200:210]))


def test_maps_standardise_and_tile(detector: Detector, pixels: Tensor) -> None:
    usual = detector.maps(pixels[:100])
    assert usual.shape == (100, 16, 16) and abs(float(usual.mean())) < 0.2
    large = torch.cat([pixels[200:202], pixels[202:204]], dim=3)
    assert detector.maps(large).shape == (2, 16, 32)


# -- what is refused ----------------------------------------------------------------------------------------------------


def test_detector_of_other_weights(folder: Path, model: DenoisingEBM) -> None:
    other = DenoisingEBM(model.config)
    randomise(other.dae, seed=1)
    with pytest.raises(ValueError, match=r"detector\.json: fitted for other weights \(\w{16}\) than those given"):
        Detector.load(folder, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "detector.json").unlink(), r"detector\.json: missing; `debm fit-detector`"),
        (lambda folder: (folder / "detector.safetensors").unlink(), r"detector\.safetensors: missing"),
        (lambda folder: (folder / "detector.json").write_text("{"), r"detector\.json: not valid JSON"),
        (
            lambda folder: (folder / "detector.json").write_text("[]"),
            r"detector\.json: expected a JSON object, found list",
        ),
        (
            lambda folder: (folder / "detector.json").write_text('{"format": 1}'),
            r"not a detector of format 2; fit it again",
        ),
        (lambda folder: (folder / "detector.json").write_text('{"format": 2}'), r"detector\.json: 'model' is missing"),
        (lambda folder: (folder / "detector.safetensors").write_bytes(b"x"), r"detector\.safetensors: not a readable"),
    ],
)
def test_damaged_detector_files(folder: Path, change: object, message: str) -> None:
    model = DenoisingEBM.from_pretrained(folder)
    change(folder)  # type: ignore[operator]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Detector.load(folder, model)


def test_missing_tensors_are_named(folder: Path, model: DenoisingEBM) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "detector.safetensors"
    save_file({k: v for k, v in load_file(path).items() if k != "calibration"}, path)
    values = json.loads((folder / "detector.json").read_text())
    del values["tensors"]  # as in files of before, of which no hash was kept
    (folder / "detector.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"detector\.safetensors: 'calibration' is missing"):
        Detector.load(folder, model)


def test_tensors_of_another_fit_are_refused(folder: Path, model: DenoisingEBM, pixels: Tensor, tmp_path: Path) -> None:
    """As left by a full disk between the two files: scores would meet p-values and settings of another fit."""
    other = tmp_path / "other"
    Detector(model, SMALL).fit(pixels[:60], seed=3).save(other)
    (folder / "detector.safetensors").write_bytes((other / "detector.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"detector\.json: belongs to another detector\.safetensors"):
        Detector.load(folder, model)


def test_nothing_of_an_earlier_fit_is_left(model: DenoisingEBM, pixels: Tensor) -> None:
    """A fit that fails half way must not answer with the p-values and maps of the one before."""
    detector = Detector(model, SMALL).fit(pixels[:100])
    detector.fit_columns(detector.columns(pixels[100:200]), detector.altered_columns(pixels[100:200]))
    scores = detector.score(pixels[200:210])
    with pytest.raises(ValueError, match="no calibration scores"):
        detector.flag(scores, 0.1)
    with pytest.raises(ValueError, match="the maps are not fitted"):
        detector.maps(pixels[200:202])
    assert not bool(detector.was_fitted_on(pixels[:100]).any())


def test_images_of_fitting_are_left_out_of_calibration(model: DenoisingEBM, pixels: Tensor) -> None:
    """Their scores are too low, so that more than the promised share of new images would be flagged."""
    mixed = torch.cat([pixels[:150], pixels[150:200]])
    detector = Detector(model, SMALL).fit(pixels[:150], calibration=mixed)
    assert detector.metadata["calibrated on"] == 50
    torch.testing.assert_close(detector.calibration, detector.score(pixels[150:200]))
    assert detector.calibrate(pixels[140:180]).metadata["calibrated on"] == 30
    # An image that stands in the set twice is not fitted to and calibrated on.
    twice = Detector(model, SMALL).fit(torch.cat([pixels[:50], pixels[:50]]))
    assert twice.metadata["calibrated on"] < 20


def test_another_precision_than_that_of_fitting_is_refused(folder: Path, model: DenoisingEBM, pixels: Tensor) -> None:
    detector = Detector.load(folder, model)
    before = detector.score(pixels[:4])
    other = "fp32" if model.precision == "bf16" else "bf16"
    try:
        model.set_precision(other)
        for call in (detector.score, detector.maps):
            with pytest.raises(ValueError, match=f"fitted in {detector._precision}, the model is in {other} now"):
                call(pixels[:4])
    finally:
        model.set_precision(detector._precision)
    assert torch.equal(before, detector.score(pixels[:4]))


def test_rates_that_cannot_be_promised(detector: Detector, pixels: Tensor) -> None:
    scores = detector.score(pixels[200:210])
    assert detector.flag(scores, 0.05).dtype == torch.bool
    message = "a false-alarm rate of 0.01 needs at least 99 calibration images, there are 40"
    with pytest.raises(ValueError, match=message):
        detector.flag(scores, 0.01)


def test_unfitted_and_too_few(model: DenoisingEBM, pixels: Tensor, tmp_path: Path) -> None:
    fresh = Detector(model, SMALL)
    for call in (lambda: fresh.score(pixels[:2]), lambda: fresh.save(tmp_path), lambda: fresh.combine({})):
        with pytest.raises(ValueError, match="not fitted: call fit first"):
            call()
    with pytest.raises(ValueError, match="needs at least 20 normal images, got 5"):
        fresh.fit(pixels[:5])
    with pytest.raises(ValueError, match="needs at least 20 normal images, got 5"):
        fresh.fit(pixels[:5], calibration=pixels[:5])
    with pytest.raises(ValueError, match="no calibration images"):
        fresh.fit(pixels[:30], calibration=pixels[:0])
    with pytest.raises(ValueError, match="at least one member"):
        DetectorConfig(members=())
    with pytest.raises(ValueError, match="density conditional needs `given`"):
        Member(("energy",), "conditional")
    with pytest.raises(ValueError, match="density mahalanobis takes no `given`"):
        Member(("energy",), given=("latent",))
    with pytest.raises(ValueError, match="ridge and shift of a member must be > 0, got 0 and 1"):
        Member(("energy",), "discriminants", given=("energy",), ridge=0)
    with pytest.raises(ValueError, match=r"blocks of a member must be made of its families \(energy\)"):
        Member(("energy",), "discriminants", given=("energy",), blocks=(("energy", "latent"),))
    with pytest.raises(ValueError, match=r"detector\.altered must be >= 1, got 0"):
        DetectorConfig(altered=0)
    with pytest.raises(ValueError, match="latent is not among the computed features"):
        DetectorConfig(FeatureConfig(families=("energy",)), (Member(("latent",)),))
