from __future__ import annotations

from typing import Any

import pytest

from denoising_ebm.experiments.experiment import Experiment
from denoising_ebm.experiments.figures import speed


def test_seconds_of_several_machines_are_not_divided(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand evaluations in two seconds on a GPU, eleven in 44 on a CPU: 1000 / 11 times fewer."""

    def row(name: str, make: object) -> dict[str, Any]:
        quality = {"frechet_distance": 5.0, "precision": 1.0, "recall": 1.0}
        if "NCSN" in name:
            return quality | {"nfe": 1000, "s_per_64": 2.0, "hardware": "GPU"}
        return quality | {"nfe": 11, "s_per_64": 44.0, "hardware": "CPU"}

    monkeypatch.setattr(experiment, "quality_row", row)
    section = speed(experiment)
    assert section.table is not None and "WARNING: rows were made on several machines" in section.table.caption
    assert f"takes {1000 / 11:.1f} times fewer evaluations" in section.text


def test_rows_left_out_are_named(experiment: Experiment) -> None:
    """NCSN's levels reach beyond those that this model was trained at."""
    section = speed(experiment)
    assert "Left out: speed, NCSN's protocol, 10 x 10 steps: NCSN's protocol needs noise levels" in section.text
    assert section.table is not None and len(section.table.rows) == 6
    assert not any("NCSN" in str(row[0]) for row in section.table.rows)
