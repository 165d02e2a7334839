from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from denoising_ebm.viz.grids import image_grid
from denoising_ebm.viz.plots import chain_energies, cost_curves, energy_histograms, png_bytes, training_curves


def test_curves_draw_only_what_was_recorded():
    records = [
        {"images_seen": 100 * step, "stage": "denoising", "loss": 1.0 / (step + 1), "grad_norm": 2.0}
        for step in range(5)
    ]
    figure = training_curves(records)
    assert [axis.get_ylabel() for axis in figure.axes] == ["loss", "gradient norm"]
    assert figure.axes[0].get_yscale() == "log"
    (line,) = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xdata(), [0, 100, 200, 300, 400])
    np.testing.assert_allclose(line.get_ydata(), [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])


def test_curves_mark_the_next_stage_and_survive_negative_losses():
    records = [
        {"images_seen": 1, "stage": "denoising", "loss": 0.5, "loss_denoising": 0.5},
        {"images_seen": 2, "stage": "contrastive", "loss": -0.5, "energy_data": -1.0, "energy_chain": float("nan")},
        {"images_seen": 3, "stage": "contrastive", "loss": 0.1, "energy_data": -2.0, "energy_chain": 3.0},
    ]
    figure = training_curves(records)
    assert [axis.get_ylabel() for axis in figure.axes] == ["loss", "energy"]
    assert figure.axes[0].get_yscale() == "symlog"
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["data", "chain ends"]
    assert list(figure.axes[1].lines[1].get_xdata()) == [3.0]
    assert list(figure.axes[1].lines[-1].get_xdata()) == [2, 2]
    assert [text.get_text().strip() for text in figure.axes[0].texts] == ["contrastive"]
    with pytest.raises(ValueError, match="no record has"):
        training_curves([{"images_seen": 1}])


def test_running_mean_of_many_values_is_centred():
    records = [{"images_seen": step, "loss": 10.0 + step} for step in range(400)]
    figure = training_curves(records)
    raw, mean = figure.axes[0].lines
    assert len(raw.get_xdata()) == 400
    # A straight line is its own running mean, half a step off for an even window.
    np.testing.assert_allclose(mean.get_ydata() - mean.get_xdata(), 10.5)


def test_histograms_share_bins_and_say_what_they_leave_out():
    rng = np.random.default_rng(0)
    energies = {"test": rng.normal(0, 1, 1000), "digits": rng.normal(2, 1, 500), "noise": np.full(100, 1e6)}
    figure = energy_histograms(energies, title="Energies", xlabel="energy at sigma = 0.1", bins=40)
    (axis,) = figure.axes
    stairs = [patch.get_data() for patch in axis.patches]
    assert len(stairs) == 3
    low, high = axis.get_xlim()
    # 99 % of test is within 2.58 of 0, of digits within 2.58 of 2.
    assert -3.5 < low < -2 and 4 < high < 6
    for data, values in zip(stairs, energies.values(), strict=True):
        np.testing.assert_allclose(data.edges, np.linspace(low, high, 41))
        assert data.values.sum() == pytest.approx(np.mean((values >= low) & (values <= high)))
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["test (n = 1,000)", "digits (n = 500)", "noise (n = 100; 100% beyond the axis)"]
    with pytest.raises(ValueError, match="'OOD' must be finite"):
        energy_histograms({"test": np.ones(3), "OOD": np.array([np.inf])}, title="", xlabel="")


def test_histograms_of_equal_values_have_a_range():
    figure = energy_histograms({"test": np.full(5, 3.0)}, title="", xlabel="energy")
    low, high = figure.axes[0].get_xlim()
    assert low < 3 < high
    assert figure.axes[0].patches[0].get_data().values.sum() == 1.0


def test_png_bytes_decode_to_the_picture_and_repeat():
    picture = image_grid(torch.linspace(-1, 1, 40).reshape(2, 1, 4, 5), columns=2)
    with Image.open(io.BytesIO(png_bytes(picture))) as decoded:
        np.testing.assert_array_equal(np.asarray(decoded), np.asarray(picture))
    records = [{"images_seen": 1, "loss": 2.0}, {"images_seen": 2, "loss": 1.0}]
    first, second = png_bytes(training_curves(records), dpi=50), png_bytes(training_curves(records), dpi=50)
    assert first == second
    with Image.open(io.BytesIO(first)) as decoded:
        assert decoded.size == (360, 120)


@pytest.mark.parametrize("top", [1.2, 2.1, 4.9, 900.0])
def test_logarithmic_axes_have_plain_numbers_whatever_they_span(top: float) -> None:
    """An axis with one label tells nothing; values may lie between two powers of ten."""
    energies = {"texture": [torch.tensor([700.0, 710.0]), torch.tensor([700.0 * top, 690.0])]}
    figure = chain_energies(energies)
    png_bytes(figure)
    (axis,) = figure.axes
    low, high = axis.get_ylim()
    shown = [label.get_text() for label in axis.get_yticklabels() if low <= label.get_position()[1] <= high]
    assert len(shown) >= 3 and all(re.fullmatch(r"[\d.]+(e\+\d+)?", text) for text in shown)
    lines = [line.get_ydata() for line in axis.get_lines()]
    np.testing.assert_allclose(lines[-1], [705.0, (700 * top + 690) / 2])


def test_cost_curves_draw_every_point_on_logarithmic_axes() -> None:
    figure = cost_curves({"a": [(5, 900.0), (10, 500.0)], "b": [(1000, 700.0)]}, xlabel="NFE", ylabel="FD")
    (axis,) = figure.axes
    assert (axis.get_xscale(), axis.get_yscale(), axis.get_xlabel(), axis.get_ylabel()) == ("log", "log", "NFE", "FD")
    found = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert found == {"a": [[5, 900], [10, 500]], "b": [[1000, 700]]}
