from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from denoising_ebm import DenoisingEBM, load_images
from denoising_ebm.config import from_dict, to_dict
from denoising_ebm.datasets.preprocessing import Preprocessing
from denoising_ebm.ood.anomaly_maps import AnomalyMapConfig
from denoising_ebm.ood.conformal import benjamini_hochberg, fpr_interval
from denoising_ebm.ood.corruptions import SYNTHETIC_OOD, corruptions
from denoising_ebm.ood.detector import Detector
from denoising_ebm.ood.detector_config import DetectorConfig
from denoising_ebm.ood.features import FeatureConfig, compute_features
from denoising_ebm.ood.lda import log_mean_exp
from denoising_ebm.ood.metrics import auroc
from support import randomise

SMALL = DetectorConfig(
    FeatureConfig(sigmas=(0.1, 0.5), families=("energy", "noisy-energy", "latent"), feature_sigmas=(0.1,)),
    covariates=("energy",),
    blocks=(("noisy-energy", "energy"), ("latent", "energy")),
    num_corrupted=20,
    maps=AnomalyMapConfig(sigmas=(0.2,), clean_sigmas=(0.2,), num_noise_samples=1, blur=1.0),
)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Real images at half their size."""
    images = load_images("fashion-mnist", limit=300).pixels.float()
    return torch.nn.functional.avg_pool2d(images, 2).round().to(torch.uint8)


@pytest.fixture(scope="module")
def detector(model: DenoisingEBM, pixels: Tensor) -> Detector:
    return Detector(model, SMALL).fit(pixels[:200], groups="none")


@pytest.fixture
def folder(detector: Detector, tmp_path: Path) -> Iterator[Path]:
    detector.model.save_pretrained(tmp_path)
    detector.save(tmp_path)
    yield tmp_path


def test_scores_are_standard_on_normal_images_it_was_not_fitted_to(detector: Detector, pixels: Tensor) -> None:
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))[40:]
    held = detector.score(pixels[order[:16]])
    assert float(held.mean()) == pytest.approx(0, abs=1e-9) and float(held.std()) == pytest.approx(1)
    assert detector.metadata == {"fitted on": 144, "calibrated on": 40}


def test_a_score_is_the_log_mean_exp_of_projections(detector: Detector, pixels: Tensor) -> None:
    """But for the scale, which a line through two scores gives."""
    projections = detector.projections(pixels[200:230])
    assert projections.shape == (30, len(corruptions(1)))
    raw, scores = log_mean_exp(projections, SMALL.shift), detector.score(pixels[200:230])
    slope = (scores[1] - scores[0]) / (raw[1] - raw[0])
    torch.testing.assert_close(scores, scores[0] + slope * (raw - raw[0]))
    names = [list(corruptions(1))[i] for i in projections.argmax(1).tolist()]
    assert detector.nearest_corruption(pixels[200:230]) == names


def test_calibration_images_take_no_part_in_fitting(model: DenoisingEBM, pixels: Tensor) -> None:
    first = Detector(model, SMALL).fit(pixels[:150], calibration=pixels[150:200], groups="none")
    second = Detector(model, SMALL).fit(pixels[:150], calibration=pixels[200:290], groups="none")
    torch.testing.assert_close(first.score(pixels[290:]), second.score(pixels[290:]))
    torch.testing.assert_close(first.calibration, second.score(pixels[150:200]))
    assert len(second.calibration) == 90


def test_pixels_of_calibration_images_do_not_move_scores(model: DenoisingEBM, pixels: Tensor) -> None:
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    changed = pixels[:100].clone()
    changed[order[:20]] = 255 - changed[order[:20]]
    detectors = [Detector(model, SMALL).fit(images, groups="none") for images in (pixels[:100], changed)]
    first, second = (detector.score(pixels[200:]) for detector in detectors)
    assert torch.equal(first, second)
    assert not torch.equal(detectors[0].calibration, detectors[1].calibration)
    assert torch.equal(detectors[0].was_fitted_on(pixels[80:120]), torch.tensor([True] * 20 + [False] * 20))
    # Other calibration images take the place of those before.
    again = detectors[0].calibrate(pixels[100:130], groups="none")
    assert int(again.was_fitted_on(pixels[:100]).sum()) == 80 and bool(again.was_fitted_on(pixels[100:130]).all())
    with pytest.raises(ValueError, match="the calibration images are those of fitting"):
        Detector(model, SMALL).fit(pixels[:40], calibration=pixels[10:20])


def test_scores_are_the_same_in_parts(detector: Detector, pixels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = detector.score(pixels[200:220])
    monkeypatch.setattr("denoising_ebm.ood.detector.SCORED_AT_ONCE", 7)
    torch.testing.assert_close(detector.score(pixels[200:220]), whole, rtol=1e-5, atol=1e-5)
    assert detector.score(pixels[:0]).shape == (0,)


def test_threads_can_share_a_detector(detector: Detector, pixels: Tensor) -> None:
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


def test_ood_images_score_higher(detector: Detector, pixels: Tensor) -> None:
    noise = SYNTHETIC_OOD["uniform-noise"](pixels[200:], torch.Generator().manual_seed(0))
    assert auroc(detector.score(pixels[200:]), detector.score(noise)) > 0.99


def test_corrupted_images_are_what_it_learns_from(detector: Detector, model: DenoisingEBM, pixels: Tensor) -> None:
    counts: list[int] = []
    Detector(model, SMALL).fit(pixels[:200], groups="none", progress=counts.append)
    assert sum(counts) == detector.fit_work(200) == 160 + 20 * (1 + len(corruptions(1))) + 160 + 40
    assert detector.fit_work(30, 7) == 30 + 20 * (1 + len(corruptions(1))) + 30 + 7
    # New images, corrupted in the ways that were shown, look more anomalous than as they are.
    corrupted = detector.corrupted_features(pixels[200:220])
    # The last images: the first ones set the scale.
    more = detector.corrupted_features(pixels[150:220])
    assert all(torch.equal(more[family], corrupted[family]) for family in corrupted)
    kinds = ["as they are", *corruptions(1)]
    scores = [detector.score_features({f: t[i] for f, t in corrupted.items()}) for i in range(len(kinds))]
    means = {kind: float(score.mean()) for kind, score in zip(kinds, scores, strict=True)}
    for name in ("noise", "blur", "negative"):
        assert means[name] > means["as they are"] + 0.3, means


@pytest.mark.slow
@pytest.mark.slow
def test_false_alarm_rate_on_real_images_over_splits() -> None:
    """The promise: a share of at most alpha of new normal images is flagged, for a poor model as for a good one."""
    model = DenoisingEBM.from_pretrained("fashion-mnist")
    images = load_images("fashion-mnist", split="test", limit=800).pixels
    features = FeatureConfig(sigmas=(1.0,), families=("energy", "noisy-energy"))
    config = DetectorConfig(features, covariates=("energy",), blocks=(), num_corrupted=2)
    train = load_images("fashion-mnist", limit=100).pixels
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
    # Statistics are kept in float32.
    torch.testing.assert_close(loaded.score(pixels[200:]), detector.score(pixels[200:]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(loaded.calibration, detector.calibration, rtol=0, atol=0)
    torch.testing.assert_close(loaded.maps(pixels[200:204]), detector.maps(pixels[200:204]), rtol=1e-4, atol=1e-4)


def test_loading_restores_the_precision_of_fitting(folder: Path) -> None:
    model = DenoisingEBM.from_pretrained(folder).set_precision("bf16")
    assert Detector.load(folder, model).model.precision == "fp32"


def test_config_survives_yaml_and_json() -> None:
    values = json.loads(json.dumps(to_dict(SMALL)))
    assert from_dict(DetectorConfig, values) == SMALL


def test_features_are_scored_as_their_images(detector: Detector, model: DenoisingEBM, pixels: Tensor) -> None:
    features = compute_features(model, pixels[200:210], SMALL.features)
    torch.testing.assert_close(detector.score_features(features), detector.score(pixels[200:210]))


def test_maps_standardise_and_tile(detector: Detector, pixels: Tensor) -> None:
    normal = detector.maps(pixels[:100])
    assert normal.shape == (100, 16, 16) and abs(float(normal.mean())) < 0.2
    large = torch.cat([pixels[200:202], pixels[202:204]], dim=3)
    assert detector.maps(large).shape == (2, 16, 32)


# -- from images to rows -------------------------------------------------------------------------------------------------


def test_rows_hold_what_tensors_do(detector: Detector, pixels: Tensor) -> None:
    calls: list[int] = []
    rows = detector.predict(pixels[200:230], fpr=0.1, progress=calls.append)
    scores = detector.score(pixels[200:230])
    p = detector.p_values(scores)
    assert [row.name for row in rows] == [str(i) for i in range(30)] and sum(calls) == 60
    torch.testing.assert_close(torch.tensor([row.score for row in rows]).double(), scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.tensor([row.p_value for row in rows]).double(), p, rtol=1e-3, atol=0)
    assert [row.flagged for row in rows] == detector.flag(scores, 0.1).tolist()
    nearest = detector.nearest_corruption(pixels[200:230])
    assert [row.nearest_corruption for row in rows] == [
        n if q <= 0.1 else None for n, q in zip(nearest, p, strict=True)
    ]
    by_fdr = [row.flagged for row in detector.predict(pixels[200:230], fdr=0.2)]
    assert by_fdr == benjamini_hochberg(p, 0.2).tolist()
    assert {row.flagged for row in detector.predict(pixels[200:203])} == {None} and detector.predict(pixels[:0]) == []
    with pytest.raises(ValueError, match="not both"):
        detector.predict(pixels[:2], fpr=0.1, fdr=0.1)
    with pytest.raises(ValueError, match=r"a false-alarm rate of 0\.001 needs at least 999 calibration images"):
        detector.predict(pixels[:2], fpr=0.001)


def test_files_become_images_as_those_of_fitting_did(model: DenoisingEBM, tmp_path: Path) -> None:
    """From folders of 24 x 20 colour images, cropped, resized and converted, through a file and back."""
    names = ("normal", "new")
    for name in names:
        (tmp_path / name).mkdir()
    source = load_images("fashion-mnist", limit=60).pixels[:, 0, 4:28, 6:26].numpy()
    for i, image in enumerate(source):
        Image.fromarray(image).convert("RGB").save(tmp_path / names[i % 2] / f"{i:02d}.png")
    (tmp_path / "new" / "07b.png").write_bytes(b"no image")
    preprocessing = Preprocessing.of(model, resize="box", center_crop=18, convert=True)
    detector = Detector(model, SMALL, preprocessing=preprocessing).fit(tmp_path / "normal")
    detector.save(tmp_path)
    model.save_pretrained(tmp_path)
    loaded = Detector.from_pretrained(tmp_path)
    assert loaded.preprocessing == preprocessing
    images = load_images(tmp_path / "new", image_size=16, channels=1, resize="box", center_crop=18, convert=True)
    rows = loaded.predict(tmp_path / "new")
    assert [row.name for row in rows if row.status == "ok"] == list(images.names) and rows[4].name == "07b.png"
    assert [(row.status, row.resize) for row in rows[3:6]] == [("ok", "box"), ("unreadable", "box"), ("ok", "box")]
    scores = torch.tensor([row.score for row in rows if row.score is not None]).double()
    torch.testing.assert_close(scores, loaded.score(images.pixels), rtol=0, atol=1e-4)
    assert bool(loaded.was_fitted_on(load_images(tmp_path / "normal", **asdict(preprocessing)).pixels).all())


def test_explanations_are_maps_and_what_images_resemble(detector: Detector, pixels: Tensor) -> None:
    found = detector.explain(pixels[200:204])
    torch.testing.assert_close(found.maps, detector.maps(pixels[200:204]))
    assert found.nearest_corruption == detector.nearest_corruption(pixels[200:204])
    large = torch.cat([pixels[200:202], pixels[202:204]], dim=3)
    assert detector.explain(large).maps.shape == (2, 16, 32) and detector.explain(large).nearest_corruption is None


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
            r"not a detector of format 3; fit it again",
        ),
        (lambda folder: (folder / "detector.json").write_text('{"format": 3}'), r"detector\.json: 'model' is missing"),
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
    with pytest.raises(ValueError, match=r"detector\.safetensors: does not fit detector\.json: calibration is missing"):
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
    features = compute_features(model, pixels[100:200], SMALL.features)
    detector.fit_features(features, detector.corrupted_features(pixels[100:200]))
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
    assert twice.num_calibration <= 10 and twice.metadata["calibrated on"] >= 2 * twice.num_calibration
    assert twice.grouping.alike == 100 and twice.grouping.left_out == 0


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
    for call in (lambda: fresh.score(pixels[:2]), lambda: fresh.save(tmp_path), lambda: fresh.score_features({})):
        with pytest.raises(ValueError, match="not fitted: call fit first"):
            call()
    with pytest.raises(ValueError, match="needs at least 20 normal images, got 5"):
        fresh.fit(pixels[:5])
    with pytest.raises(ValueError, match="needs at least 20 normal images, got 5"):
        fresh.fit(pixels[:5], calibration=pixels[:5])
    with pytest.raises(ValueError, match="no calibration images"):
        fresh.fit(pixels[:30], calibration=pixels[:0])
    with pytest.raises(ValueError, match="not fitted: call fit first"):
        fresh.predict(pixels[:2])
    with pytest.raises(ValueError, match=r"detector\.covariates must be one or more"):
        DetectorConfig(covariates=())
    with pytest.raises(ValueError, match=r"detector\.ridge and detector\.shift must be > 0, got 0 and 1"):
        DetectorConfig(ridge=0)
    with pytest.raises(ValueError, match=r"detector\.num_corrupted must be >= 1, got 0"):
        DetectorConfig(num_corrupted=0)
    for values in ({"covariates": ("latent",)}, {"covariates": ("energy",), "blocks": (("energy", "latent"),)}):
        with pytest.raises(ValueError, match=r"latent is not among the computed features \(energy\)"):
            DetectorConfig(FeatureConfig(families=("energy",)), **{"blocks": (), **values})  # type: ignore[arg-type]
