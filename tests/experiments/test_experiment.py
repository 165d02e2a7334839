from __future__ import annotations

from dataclasses import replace

import pytest

from denoising_ebm.experiments.experiment import Experiment, Images
from denoising_ebm.model import DenoisingEBM
from support import random_pixels


def test_rows_of_a_model_depend_on_how_it_denoises(experiment: Experiment, tiny_model: DenoisingEBM) -> None:
    keys = []
    base = tiny_model.config
    for changes in (
        {},
        {"energy": replace(base.energy, inner_noise=False)},
        {"noise": replace(base.noise, sigma_max=0.9)},
        {"sampling": replace(base.sampling, pixel=replace(base.sampling.pixel, steps=9))},
        {"training": replace(base.training, log_every=9)},
    ):
        tiny_model.config = replace(base, **changes)  # type: ignore[arg-type]
        fresh = Experiment(experiment.cache.folder, "tiny", experiment.images, trained=tiny_model)
        keys.append(fresh.depends["model"])
    assert len(set(keys)) == 4 and keys[-1] == keys[0]


def test_images_that_do_not_fit_are_refused_and_leave_no_folder(
    experiment: Experiment, tiny_model: DenoisingEBM
) -> None:
    folder = experiment.cache.folder
    larger = Images("x", random_pixels(30, size=32), random_pixels(30, size=32))
    with pytest.raises(ValueError, match=r"the model takes images of shape \(1, 16, 16\), x has \(1, 32, 32\)"):
        Experiment(folder, "tiny", larger, trained=tiny_model)
    odd = Images("x", random_pixels(30, size=28), random_pixels(30, size=28))
    with pytest.raises(ValueError, match=r"x: images of 28x28: network\.image_size must be divisible by 8"):
        Experiment(folder, "small", odd)
    assert not folder.exists()


def test_what_is_left_out_is_told_by_its_reason(experiment: Experiment) -> None:
    def fails() -> dict[str, float]:
        raise ValueError("no such file")

    assert experiment.left_out("table3, ") == ""
    experiment.row("table3, sigma from 1", fails)
    assert experiment.left_out("table3, ") == "\n\nLeft out: table3, sigma from 1: no such file."
    assert experiment.left_out("speed, ") == ""
