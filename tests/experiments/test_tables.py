from __future__ import annotations

from denoising_ebm.experiments.experiment import Experiment
from denoising_ebm.experiments.tables import table1


def test_a_floor_of_fewer_images_says_so(experiment: Experiment) -> None:
    table = table1(experiment, cases=()).table
    assert table is not None and table.rows[0][0] == "training images (floor: 30 only, so too high)"
