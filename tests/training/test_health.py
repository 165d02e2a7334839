"""Faults put into a training run: what was good comes back to the bit, and nothing bad is kept or hidden."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from denoising_ebm import DenoisingEBM, to_float
from denoising_ebm.config import Config, TrainingStage
from denoising_ebm.noise import draw_sigmas, loss_weights
from denoising_ebm.training import trainer
from denoising_ebm.training.batches import draw_batch
from denoising_ebm.training.calibration import calibrate
from denoising_ebm.training.checkpoint import save_state
from denoising_ebm.training.health import (
    MAX_RATIO,
    NUM_IMAGES,
    Probe,
    compare_figures,
    compare_losses,
    find_not_finite,
    find_vanished,
    has_grown_moments,
    weight_norm,
)
from denoising_ebm.training.objectives import Batch, make_objective
from denoising_ebm.training.trainer import TrainingResult
from runs import assert_equal, read_state, train
from support import random_pixels, randomise, tiny_config

NAN = float("nan")
Spoil = Callable[[Any], None]


def spoil_steps(monkeypatch: pytest.MonkeyPatch, spoil: Spoil, steps: set[int]) -> list[dict[str, Any]]:
    """Apply `spoil` to the run's state after these steps (from 1); return the states after every step before that."""
    seen: list[dict[str, Any]] = []
    step = trainer._Run._step

    def spoiled(run: Any, pixels: Tensor, progress: float) -> dict[str, Tensor]:
        figures = step(run, pixels, progress)
        seen.append(run.state.snapshot())
        if len(seen) in steps:
            with torch.no_grad():
                spoil(run.state)
        return figures

    monkeypatch.setattr(trainer._Run, "_step", spoiled)
    return seen


def largest(module: nn.Module) -> Tensor:
    return max(module.parameters(), key=lambda weight: weight.numel())


def put(choose: Callable[[Any], Tensor], value: float) -> Spoil:
    def spoil(state: Any) -> None:
        tensor = choose(state)
        tensor[(0,) * tensor.ndim] = value

    return spoil


def moment(name: str) -> Callable[[Any], Tensor]:
    return lambda state: next(iter(state.optimizer.state.values()))[name]


def noise(state: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    for weight in state.model.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator))


def decoder_noise(state: Any) -> None:
    for weight in state.model.decoder.parameters():
        weight.normal_(0, 3, generator=torch.Generator().manual_seed(0))


def larger(state: Any) -> None:
    """Weights that have grown in ways that a normalised network hardly shows."""
    for weight in state.model.parameters():
        if weight.ndim == 1:
            weight.mul_(1.0 + 2 * (weight == weight.max()))
    largest(state.model).mul_(30)


def times(factor: float, values: Callable[[Any], Iterable[Tensor]]) -> Spoil:
    def spoil(state: Any) -> None:
        for tensor in values(state):
            tensor.mul_(factor)

    return spoil


def moments(name: str) -> Callable[[Any], Iterable[Tensor]]:
    return lambda state: [values[name] for values in state.optimizer.state.values()]


#: What is spoiled after a step, and the words for it.
FAULTS: dict[str, tuple[Spoil, str]] = {
    "weight NaN": (put(lambda state: largest(state.model), NAN), r"model\.\S+ is not finite"),
    "weight infinite": (put(lambda state: largest(state.model), math.inf), r"model\.\S+ is not finite"),
    "weight 1e30": (put(lambda state: largest(state.model), 1e30), r"model\.\S+ is not finite"),
    "weight 1e10": (put(lambda state: largest(state.model), 1e10), r"the loss weights .* is .*, at best|grew"),
    "average NaN": (put(lambda state: largest(state.average.module), NAN), r"average\.module\.\S+ is not finite"),
    "average 1e10": (
        put(lambda state: largest(state.average.module), 1e10),
        r"the loss average .* is .*, at best|the averages are .* times the weights",
    ),
    "first moment NaN": (put(moment("exp_avg"), NAN), r"optimizer\.state\.0\.exp_avg is not finite"),
    "second moment infinite": (put(moment("exp_avg_sq"), math.inf), r"optimizer\.state\.0\.exp_avg_sq is not finite"),
    "second moment NaN": (put(moment("exp_avg_sq"), NAN), r"optimizer\.state\.0\.exp_avg_sq is not finite"),
    "second moments x 1,000": (
        times(1e3, moments("exp_avg_sq")),
        "second moments are larger than its gradients make them",
    ),
    "weights zero": (times(0.0, lambda state: state.model.parameters()), r"model\.\S+ lost its values"),
    "weights a thousandth": (times(1e-3, lambda state: state.model.parameters()), r"model\.\S+ lost its values"),
    "one matrix zero": (times(0.0, lambda state: [largest(state.model)]), r"model\.\S+ lost its values"),
    "decoder zero": (times(0.0, lambda state: state.model.decoder.parameters()), r"model\.decoder\S+ lost its values"),
    "averages zero": (
        times(0.0, lambda state: state.average.module.parameters()),
        r"average\.module\.\S+ lost its values",
    ),
    "code mean NaN": (put(lambda state: state.model.dae.unet.whitening.mean, NAN), r"whitening\.mean is not finite"),
    "code covariance NaN": (put(lambda state: state.model.dae.unet.whitening.covariance, NAN), "is not finite"),
    "weights noise": (noise, r"the loss weights .* is .*, at best|the weights grew"),
    "decoder noise": (decoder_noise, r"the loss weights decoder|the loss weights held-out decoder is|the weights grew"),
    "weights grown": (larger, r"the weights grew .*-fold in \d+ steps|the loss weights"),
}


def events(folder: Path) -> list[str]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["event"] for record in records if "event" in record]


def assert_loadable(folder: Path) -> None:
    assert find_not_finite(DenoisingEBM.from_pretrained(folder).state_dict()) == ""
    assert find_not_finite({name: read_state(folder)[name] for name in ("model", "average", "optimizer")}) == ""


def weights_of(state: dict[str, Any]) -> dict[str, Any]:
    # The rate in the optimizer is set anew at every step.
    return {name: state[name] for name in ("model", "average", "objective")} | {"moments": state["optimizer"]["state"]}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_at_the_last_step_of_a_stretch_comes_into_no_state(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures of that stretch are all sound. Lines come every 2 steps; the state after step 4 is the last good one."""
    spoil, words = FAULTS[name]
    seen = spoil_steps(monkeypatch, spoil, {6})
    restored: list[dict[str, Any]] = []

    def draw(pixels: Tensor, config: Config, step: int, *rest: Any, **options: Any) -> list[Batch]:
        if step in (0, 6):
            (restored if step else first).append(running[0].state.snapshot())
        return draw_batch(pixels, config, step, *rest, **options)

    first: list[dict[str, Any]] = []
    running: list[Any] = []
    init = trainer._Run.__post_init__
    monkeypatch.setattr(trainer._Run, "__post_init__", lambda run: (running.append(run), init(run))[1])
    monkeypatch.setattr(trainer, "draw_batch", draw)
    result = train(random_pixels(20), tiny_config(), tmp_path / "run")
    (event,) = events(tmp_path / "run")
    assert event.startswith("the denoising stage diverged at step 6 (")
    assert re.search(words, event), event
    if re.search("is not finite|lost its values|second moments", event):
        assert event.endswith("2 steps back, learning rate lowered to 0.0005")
        assert_equal(weights_of(restored[0]), weights_of(seen[3]))
    else:
        # What shows late may have begun early: back to where the comparison starts, here the start of the run.
        assert event.endswith("6 steps back, learning rate lowered to 0.0005")
        assert_equal(weights_of(restored[0]), weights_of(first[0]))
    assert result.rollbacks == 1 and result.diverged == 0
    assert_loadable(tmp_path / "run")


@pytest.mark.parametrize("step", [1, 10])
@pytest.mark.parametrize("name", ["weight NaN", "average NaN", "weights noise"])
def test_a_fault_at_the_first_and_last_steps(
    name: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spoil_steps(monkeypatch, FAULTS[name][0], {step})
    result = train(random_pixels(20), tiny_config(), tmp_path / "run")
    assert len(events(tmp_path / "run")) == result.rollbacks == 1
    assert_loadable(tmp_path / "run")
    if step > 8:
        # The run ends with the state before the last stretch, and says that a fifth of it is gone.
        assert_equal(weights_of(read_state(tmp_path / "run")), weights_of(seen[7]))
        assert result.problems == ("2 of 10 steps diverged and were thrown away",)


def test_a_fault_at_a_change_of_stage_stays_in_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change is after step 5, the last line before it at step 4."""
    config = tiny_config(TrainingStage("denoising"), TrainingStage("contrastive"))
    seen = spoil_steps(monkeypatch, FAULTS["weight NaN"][0], {5})
    result = train(random_pixels(20), config, tmp_path / "run")
    (event,) = events(tmp_path / "run")
    assert event.startswith("the denoising stage diverged at step 5 (") and result.rollbacks == 1
    before, after = seen[3]["model"], seen[5]["model"]
    # One step of the new stage from what was good, at its own full rate.
    moved = max(float((after[name] - before[name]).abs().max()) for name, _ in DenoisingEBM(config).named_parameters())
    assert 0 < moved < 1.1e-3
    assert_loadable(tmp_path / "run")


def test_spoiled_chains_are_rolled_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(TrainingStage("contrastive"))
    config = replace(config, contrastive=replace(config.contrastive, chains="persistent"))
    seen = spoil_steps(monkeypatch, put(lambda state: state.objective.state_dict()["x"], NAN), {10})
    train(random_pixels(20), config, tmp_path / "run")
    (event,) = events(tmp_path / "run")
    assert "objective.x is not finite" in event
    assert_equal(weights_of(read_state(tmp_path / "run")), weights_of(seen[7]))


@pytest.mark.parametrize("where", ["image", "gradient"])
def test_one_bad_image_or_gradient(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(pixels: Tensor, config: Config, step: int, *rest: Any, **options: Any) -> list[Batch]:
        batches = draw_batch(pixels, config, step, *rest, **options)
        if step == 5 and where == "image":
            batches[0].x0[0, 0, 0, 0] = NAN
        return batches

    def spoil(optimizer: torch.optim.Optimizer, *rest: object) -> None:
        done.append(1)
        if len(done) == 6 and where == "gradient":
            optimizer.param_groups[0]["params"][0].grad[0] = NAN

    done: list[int] = []
    monkeypatch.setattr(trainer, "draw_batch", draw)
    handle = register_optimizer_step_pre_hook(spoil)
    train(random_pixels(20), tiny_config(), tmp_path / "run")
    handle.remove()
    (event,) = events(tmp_path / "run")
    assert "diverged at step 6" in event and "is not finite" in event
    assert_loadable(tmp_path / "run")


def test_the_rate_comes_back_after_a_fault_that_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN in stretches 2 to 4 lowers it to 1/128, the third from the start on; five good ones later it is back."""
    spoil_steps(monkeypatch, FAULTS["weight NaN"][0], {4, 6, 8})
    result = train(random_pixels(20), tiny_config(max_images=400), tmp_path / "run")
    found = events(tmp_path / "run")
    assert [event.rpartition(" lowered to ")[2] for event in found[:3]] == ["0.0005", "0.000125", "7.81e-06"]
    assert found[3:] == ["sound for 5 checks: learning rate raised again to that of the settings"]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = {record["step"]: record["learning_rate"] for record in records if "stage" in record}
    assert rates[18] == pytest.approx(1e-3 / 128) and rates[20] == rates[50] == 1e-3
    assert result.problems == ("8 of 50 steps diverged and were thrown away",)


def test_a_rate_that_was_too_large_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_steps(monkeypatch, noise, {4})
    train(random_pixels(20), tiny_config(max_images=400), tmp_path / "run")
    assert len(events(tmp_path / "run")) == 1
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["learning_rate"] for record in records if "stage" in record][-1] == 5e-4


@pytest.mark.parametrize(
    ("factor", "objective"),
    [
        (1e3, "denoising"),
        pytest.param(1e6, "denoising", marks=pytest.mark.slow),
        pytest.param(1e3, "contrastive", marks=pytest.mark.slow),
    ],
)
def test_a_rate_far_too_large_is_lowered_until_it_serves(factor: float, objective: Any, tmp_path: Path) -> None:
    def run(name: str, rate: float) -> TrainingResult:
        config = tiny_config(TrainingStage(objective), max_images=480, learning_rate=rate)
        return train(random_pixels(60), config, tmp_path / name)

    result, _ = run("large", 1e-3 * factor), run("sound", 1e-3)
    found = events(tmp_path / "large")
    assert 2 <= len(found) <= 7 and "diverged at step 2 " in found[0]
    assert result.diverged == 0 and result.rollbacks == len(found)
    assert_loadable(tmp_path / "large")
    large, sound = (DenoisingEBM.from_pretrained(tmp_path / name).metadata for name in ("large", "sound"))
    assert large["held-out denoising loss"] < 1.3 * sound["held-out denoising loss"]


def test_a_stage_that_ended_is_tried_again_and_can_recover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, folder = tiny_config(max_images=320), tmp_path / "run"
    with monkeypatch.context() as faulty:
        spoil_steps(faulty, FAULTS["weight NaN"][0], set(range(5, 100)))
        first = train(random_pixels(20), config, folder)
    assert first.finished and first.diverged == 1 and read_state(folder)["clock"]["step"] == 18
    assert first.problems[0] == "1 training stage ended by divergence, each at its last good state"
    second = train(random_pixels(20), config, folder, resume=True)
    assert second.diverged == 0 and read_state(folder)["clock"]["step"] == 40
    assert events(folder)[7:] == [
        "the denoising stage, which ended by divergence, is tried again at half the learning rate"
    ]
    assert not torch.equal(largest(second.model), largest(first.model))


def test_a_run_that_ends_far_from_its_best_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best losses of a run are made better than any, though not so much that it would go back."""

    def flatter(state: Any) -> None:
        losses = state.record.best
        losses |= {name: 0.6 * value for name, value in losses.items() if name.startswith("average")}

    spoil_steps(monkeypatch, flatter, {10})
    result = train(random_pixels(20), tiny_config(learning_rate=1e-6), tmp_path / "run")
    (event,) = events(tmp_path / "run")
    assert re.fullmatch(r"at the end the loss average held-out denoising is \S+, at best \S+", event)
    assert result.problems == (event,) and result.finished and result.rollbacks == 0
    assert_loadable(tmp_path / "run")


def test_calibration_that_fails_leaves_a_model_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(model: DenoisingEBM, *rest: Any, **options: Any) -> None:
        calibrate(model, *rest, **options)
        model.jacobian_norm.fill_(NAN)

    monkeypatch.setattr(trainer, "calibrate", spoiled)
    result = train(random_pixels(20), tiny_config(), tmp_path / "run")
    assert result.problems == ("calibration gave values that are not finite; the model has none",)
    assert events(tmp_path / "run") == ["calibration gave values that are not finite: the model is saved without"]
    model = DenoisingEBM.from_pretrained(tmp_path / "run")
    assert float(model.jacobian_norm) == 1.0 and bool(model.reference.isnan().all())


def test_no_model_folder_takes_what_is_not_finite(tmp_path: Path, tiny_model: DenoisingEBM) -> None:
    tiny_model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with torch.no_grad():
        largest(tiny_model)[0, 0] = NAN
    with pytest.raises(ValueError, match=r"model\.safetensors: \S+ holds values that are not finite"):
        tiny_model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_saved_state_that_is_not_finite_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(state: Any, *rest: Any) -> None:
        if state.clock.step:
            with torch.no_grad():
                largest(state.average.module)[0, 0] = NAN
        save_state(state, *rest)

    config = tiny_config(max_images=16)
    with monkeypatch.context() as before:
        before.setattr(trainer, "save_state", save)
        train(random_pixels(20), config, tmp_path / "run")
    longer = replace(config, training=replace(config.training, max_images=32))
    assert train(random_pixels(20), longer, tmp_path / "run", resume=True).finished
    (event,) = events(tmp_path / "run")
    assert re.search(r"state\.pt: module\.\S+ holds values that are not finite", event)
    assert event.endswith("going on from state-previous.pt, saved at step 0")


STAGES = {
    "denoising": ("denoising",),
    "score": ("score",),
    "both": ("denoising", "score"),
    "contrastive": ("denoising", "contrastive"),
    "score and contrastive": ("score", "contrastive", "score"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_sound_runs_are_left_alone(name: str, tmp_path: Path) -> None:
    """Also with two held-out images, and at three times the rate, from the first step on."""
    seed = list(STAGES).index(name)
    stages = (TrainingStage(objective) for objective in STAGES[name])  # type: ignore[arg-type]
    config = tiny_config(*stages, max_images=240, seed=seed, learning_rate=3e-3)
    result = train(random_pixels(40, seed=seed), config, tmp_path / "run")
    assert events(tmp_path / "run") == [] and result.rollbacks == 0 and result.problems == ()


def test_a_state_of_before_goes_on(tmp_path: Path) -> None:
    """It has no record to compare with; and its clock none of what is newer."""
    config = tiny_config(max_images=16)
    train(random_pixels(20), config, tmp_path / "run")
    state = read_state(tmp_path / "run")
    del state["record"]
    torch.save(state, tmp_path / "run" / "state.pt")
    longer = replace(config, training=replace(config.training, max_images=48))
    assert train(random_pixels(20), longer, tmp_path / "run", resume=True).finished
    record = read_state(tmp_path / "run")["record"]
    assert len(record["best"]) == 8 and record["norm"] > 0 and record["good_checks"] == 2


# -- the parts ------------------------------------------------------------------------------------------------------


def test_probe_measures_the_losses_of_its_images(tiny_model: DenoisingEBM) -> None:
    config = tiny_config()
    randomise(tiny_model)
    held_out, trained = random_pixels(3, seed=1), random_pixels(50, seed=2)
    probe = Probe(held_out, trained, config, torch.device("cpu"))
    losses = probe.losses(tiny_model.train(), make_objective("denoising", config))
    assert list(losses) == [
        f"{where} {kind}" for where in ("held-out", "training") for kind in ("denoising", "decoder")
    ]
    assert tiny_model.training
    batch = probe._batches["training"]
    torch.testing.assert_close(batch.x0, to_float(trained[:NUM_IMAGES]), rtol=0, atol=0)
    assert torch.equal(probe._batches["held-out"].x0, to_float(held_out)[[0, 1, 2, 0, 1, 2, 0, 1]])
    # The levels are quantiles of the training draw, one from each eighth of it.
    draws = draw_sigmas(config.noise, 100_000, torch.Generator().manual_seed(0))
    shares = (draws[None] < batch.sigma[:, None]).float().mean(1)
    assert bool(((shares - (torch.arange(8) + 0.5) / 8).abs() < 0.12).all())
    tiny_model.eval()
    with torch.no_grad():
        x = batch.x0 + batch.sigma.view(-1, 1, 1, 1) * batch.noise
        errors = (tiny_model.reconstruct(x, batch.sigma) - batch.x0).square().mean((1, 2, 3))
        decoded = (tiny_model.decode(tiny_model.encode(x, batch.sigma)) - batch.x0).square().mean((1, 2, 3))
    expected = (loss_weights("edm", batch.sigma, config.network.sigma_data) * errors).mean()
    assert losses["training denoising"] == pytest.approx(float(expected), rel=1e-5)
    kept = decoded * (batch.sigma <= config.training.decoder_sigma_max)
    assert losses["training decoder"] == pytest.approx(float(kept.mean()), rel=1e-4)


def test_probe_leaves_model_and_random_numbers_alone(tiny_model: DenoisingEBM) -> None:
    config = tiny_config(TrainingStage("score"))
    model = DenoisingEBM(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    probe = Probe(random_pixels(2), random_pixels(9), config, torch.device("cpu"))
    first, second = (probe.losses(model, make_objective("score", config)) for _ in range(2))
    assert first == second and torch.equal(torch.rand(2), expected)
    assert_equal(before, model.state_dict())
    assert all(weight.grad is None for weight in model.parameters())
    # Without held-out images those of training alone are judged.
    alone = Probe(random_pixels(0), random_pixels(9), config, torch.device("cpu"))
    assert list(alone.losses(model, make_objective("score", config))) == ["training denoising", "training decoder"]


def test_losses_count_where_held_out_and_training_images_agree() -> None:
    best = {"weights held-out denoising": 1.0, "weights training denoising": 0.1}
    assert (
        compare_losses({"weights held-out denoising": 9.0, "weights training denoising": 0.1}, best) == ""
    )  # overfitting
    assert compare_losses({"weights held-out denoising": 1.0, "weights training denoising": 0.9}, best) == ""
    below = {name: 0.99 * MAX_RATIO * value for name, value in best.items()}
    assert compare_losses(below, best) == ""
    above = {name: 1.01 * MAX_RATIO * value for name, value in best.items()}
    assert compare_losses(above, best) == "the loss weights held-out denoising is 2.02, at best 1"
    assert compare_losses(below, best, 1.5) == "the loss weights held-out denoising is 1.98, at best 1"
    # Where the best is nearly nothing, any factor is nothing.
    low, decoder = {"training denoising": 0.001}, {"training decoder": 0.001}
    assert compare_losses({"training denoising": 0.19}, low, min_best=0.1) == ""
    assert compare_losses({"training denoising": 0.21}, low, min_best=0.1) != ""
    assert compare_losses({"training decoder": 0.19}, decoder, min_best=0.1) != ""
    assert compare_losses(dict.fromkeys(best, NAN), best) != "" != compare_losses(dict.fromkeys(best, math.inf), {})


def test_figures() -> None:
    assert compare_figures({"loss": 1.0, "energy_gap": -5.0, "images_per_second": math.inf}) == ""
    assert compare_figures({"loss": NAN}) == "loss is not finite"
    assert compare_figures({"energy_gap": -5.0, "latent_energy_gap": 11.0}, 10.0) == "latent_energy_gap is beyond 10"


def test_find_not_finite_names_the_tensor() -> None:
    values: dict[str, Any] = {
        "a": {"x": torch.ones(3), "n": torch.tensor([2**62]), "model.reference": torch.tensor([NAN])},
        "b": [torch.zeros(2), {"y": torch.ones(2, 2)}],
        "c": torch.zeros(0),
        "d": "text",
    }
    assert find_not_finite(values) == ""
    for bad in (NAN, math.inf, -math.inf, 1e30):
        values["b"][1]["y"][1, 0] = bad
        assert find_not_finite(values) == "b.1.y"


def test_find_vanished() -> None:
    before = {"a": torch.ones(2, 2), "b": torch.ones(3), "c": torch.zeros(2, 2)}
    assert find_vanished({"a": 0.02 * torch.ones(2, 2), "b": torch.zeros(3), "c": torch.zeros(2, 2)}, before) == ""
    assert find_vanished(before | {"a": 0.005 * torch.ones(2, 2)}, before) == "a"


def test_second_moments_are_no_larger_than_gradients_make_them() -> None:
    """Ten steps with gradients of one norm make them as large as they get: 1 - 0.99^10 = 0.0956 of its square."""
    weight = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.Adam([weight], lr=0.1, betas=(0.9, 0.99))
    assert not has_grown_moments(optimizer, {}, 0.0, 0.99)
    for _ in range(10):
        weight.grad = torch.full((4,), 2.0)
        optimizer.step()
    before = copy.deepcopy(optimizer.state_dict()["state"])
    moments = optimizer.state[weight]["exp_avg_sq"]
    assert float(moments.sum()) == pytest.approx(0.0956 * 16, rel=1e-3)
    assert not has_grown_moments(optimizer, {}, 4.0, 0.99) and not has_grown_moments(optimizer, before, 0.0, 0.99)
    moments.mul_(1.1)
    assert has_grown_moments(optimizer, before, 4.0, 0.99)


def test_weight_norm(tiny_model: DenoisingEBM) -> None:
    flat = torch.cat([weight.detach().flatten() for weight in tiny_model.parameters()]).double()
    assert weight_norm(tiny_model) == pytest.approx(float(flat.norm()), rel=1e-6)
