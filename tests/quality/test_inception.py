from __future__ import annotations

import hashlib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from denoising_ebm.datasets.images import load_images
from denoising_ebm.quality import inception
from denoising_ebm.quality.frechet import feature_statistics, frechet_distance
from denoising_ebm.quality.inception import InceptionFeatures, find_weights, inception_score

#: torch-fidelity itself: what FID and IS are held against.
network_package: Any = import_module("torch_fidelity.feature_extractor_inceptionv3")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the file format of the real ones, which cannot be had offline."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_package, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(network_package.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = network_package.FeatureExtractorInceptionV3("inception", ["2048"])
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def accepted(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(inception, "HASH_PREFIX", hashlib.sha256(weights.read_bytes()).hexdigest()[:8])
    return weights


@pytest.mark.slow
def test_features_and_fid_are_torch_fidelitys(accepted: Path) -> None:
    pixels = load_images("fashion-mnist", split="test", limit=10).pixels
    ours = InceptionFeatures(accepted)
    theirs = network_package.FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(accepted)
    )
    with torch.no_grad():
        features, logits = theirs(pixels.expand(-1, 3, -1, -1))
    found = ours.features_and_logits(pixels)
    torch.testing.assert_close(found[0], features)
    torch.testing.assert_close(found[1], logits)
    assert ours(pixels).shape == (10, ours.num_features)

    fid: Any = import_module("torch_fidelity.metric_fid")
    statistics = [fid.fid_features_to_statistics(half) for half in (features[:5], features[5:])]
    expected = fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    distance = frechet_distance(feature_statistics(pixels[:5], ours), feature_statistics(pixels[5:], ours))
    assert distance == pytest.approx(expected, rel=1e-3) and distance > 0


def test_other_weights_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"inception.pth: SHA-256 starts with \w{8}, so these are not the weights"):
        InceptionFeatures(weights)
    with pytest.raises(ValueError, match=r"nowhere.pth: no such file; .*SHA-256 starts with 6726825d.*--inception"):
        find_weights(tmp_path / "nowhere.pth")


def test_missing_weights_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ValueError, match=r"weights-inception-2015-12-05-6726825d.pth: .* are missing .*https://\S+"):
        find_weights()


@pytest.mark.parametrize("splits", [1, 10])
def test_inception_score_is_torch_fidelitys(splits: int, generator: torch.Generator) -> None:
    logits = 3 * torch.randn(1003, 50, generator=generator)
    metric: Any = import_module("torch_fidelity.metric_isc")
    expected = metric.isc_features_to_metric(logits, splits=splits)
    found = inception_score(logits, splits=splits)
    assert found[0] == pytest.approx(expected["inception_score_mean"], rel=1e-9)
    assert found[1] == pytest.approx(expected["inception_score_std"], rel=1e-6, abs=1e-12)


def test_inception_score_in_closed_form() -> None:
    # Sure of one of ten classes, each equally often: exp(ln 10); never sure: exp(0).
    sure = 1000 * torch.eye(10).repeat(30, 1)
    assert inception_score(sure, splits=1)[0] == pytest.approx(10.0)
    assert inception_score(torch.zeros(20, 10), splits=2) == pytest.approx((1.0, 0.0))
    # In order, each of three parts sees one class only.
    ordered = 1000 * torch.eye(3).repeat_interleave(5, 0)
    assert inception_score(ordered, splits=3, seed=None)[0] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="splits"):
        inception_score(sure[:3], splits=4)


def test_gray_images_only_of_bytes(accepted: Path) -> None:
    with pytest.raises(ValueError, match="images must be uint8"):
        InceptionFeatures(accepted)(torch.zeros(1, 1, 32, 32))
    assert bool(InceptionFeatures(accepted)(torch.zeros(1, 1, 32, 32, dtype=torch.uint8)).isfinite().all())
