from __future__ import annotations

import copy
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

import two_processes
from denoising_ebm import DenoisingEBM, load_images, to_float
from denoising_ebm.config import Config, EnergyConfig, TrainingStage, from_dict
from denoising_ebm.networks.whitening import Whitening
from denoising_ebm.noise import draw_sigmas, loss_weights
from denoising_ebm.presets import PRESETS, preset
from denoising_ebm.training import trainer
from denoising_ebm.training.batches import draw_batch
from denoising_ebm.training.calibration import calibrate
from denoising_ebm.training.ema import AveragedWeights
from denoising_ebm.training.logging import read_metrics, trim_metrics
from denoising_ebm.training.objectives import Batch, Reconstruction, validation_loss
from denoising_ebm.training.setup import choose_hardware, place_images
from denoising_ebm.training.trainer import TrainingResult
from denoising_ebm.utils.seeds import hashed_generator
from support import random_pixels, randomise, tiny_config


def train(pixels: Tensor, config: Config, folder: Path, **options: Any) -> TrainingResult:
    return trainer.train(pixels, config, folder, device="cpu", quiet=True, **{"precision": "fp32", **options})


def read_state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "state.pt", weights_only=True)
    return state


def assert_equal(first: Any, second: Any, path: str = "") -> None:
    """Compare nested states to the bit."""
    if isinstance(first, Tensor):
        torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{path}: {text}")
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_equal(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), path
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_equal(a, b, f"{path}.{i}")
    else:
        assert first == second, path


# -- several processes ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two_processes.py under torchrun, two gloo processes on this machine."""
    folder = tmp_path_factory.mktemp("two")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(__file__).parents[1] / "two_processes.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(script), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["denoising", "score"])
def test_two_processes_have_the_gradients_of_one(name: str, two: Path, tmp_path: Path) -> None:
    two_processes.run(name, tmp_path, 0)
    one = torch.load(tmp_path / f"{name}-0.pt")
    both = [torch.load(two / f"{name}-{rank}.pt") for rank in (0, 1)]
    assert [run["steps"] for run in (one, *both)] == [2, 2, 2]
    assert_equal(both[0], both[1])
    # The second step's gradients are those of the weights and code statistics that the first one left.
    for step, limit in ((0, 1e-6), (1, 1e-3)):
        expected = one["gradients"][step]
        norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
        assert float(norm) > 0.1
        gaps = [(both[0]["gradients"][step][key] - gradient).norm() for key, gradient in expected.items()]
        assert float(torch.stack(gaps).norm() / norm) < limit
    # Adam divides by the size of a gradient, so single weights whose gradient is all rounding may move by whole steps: the
    # bound is on all of them together. Without a common gradient they would be about a step of 1e-3 apart.
    floats = {key: v for key, v in one["weights"].items() if v.is_floating_point() and key != "reference"}
    gap = torch.cat([(both[0]["weights"][key] - value).flatten() for key, value in floats.items()])
    assert float(gap.square().mean().sqrt()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["contrastive", "persistent"])
def test_processes_stay_together_under_algorithm_1(name: str, two: Path) -> None:
    first, second = (torch.load(two / f"{name}-{rank}.pt") for rank in (0, 1))
    assert first["steps"] == 4
    assert_equal(first, second)
    assert all(value.isfinite().all() for key, value in first["weights"].items() if key != "reference")


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_one_step(two: Path) -> None:
    for rank in (0, 1):
        found = torch.load(two / f"interrupted-{rank}.pt")
        assert found == {"finished": [False, True], "steps": [3, 7]}
    assert read_state(two / "interrupted")["clock"]["step"] == 10


@pytest.mark.slow
def test_one_log_and_one_state_for_all_processes(two: Path, tmp_path: Path) -> None:
    steps = [record["step"] for record in read_metrics(two / "denoising")]
    assert steps == [2]
    assert read_state(two / "denoising")["clock"]["images_seen"] == 16
    # Of both halves of the batches: the loss is that of one process that sees them whole.
    two_processes.run("denoising", tmp_path, 0)
    expected, found = (read_metrics(folder / "denoising")[0]["loss"] for folder in (tmp_path, two))
    assert found == pytest.approx(expected, rel=1e-4)


# -- resume ---------------------------------------------------------------------------------------------------------


def interrupt_at(monkeypatch: pytest.MonkeyPatch, steps: list[int], number: signal.Signals = signal.SIGINT) -> None:
    """Send the process a signal while it draws the batches of these steps."""

    def draw(pixels: Tensor, config: Config, step: int, *rest: Any, **options: Any) -> list[Batch]:
        if step in steps:
            os.kill(os.getpid(), number)
        return draw_batch(pixels, config, step, *rest, **options)

    monkeypatch.setattr(trainer, "draw_batch", draw)


RECIPES = {
    "denoising": (TrainingStage("denoising"),),
    "contrastive": (TrainingStage("denoising"), TrainingStage("contrastive")),
    "score": (TrainingStage("score"), TrainingStage("contrastive", 0.5), TrainingStage("score", 0.5)),
}


@pytest.mark.parametrize("name", RECIPES)
def test_resumed_run_equals_a_straight_one_to_the_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the first phase, and again in the middle of a later one with persistent chains under way."""
    config = tiny_config(*RECIPES[name], max_images=96, warmup_images=40, cooldown=0.3, micro_batch_size=4)
    config = replace(config, contrastive=replace(config.contrastive, chains="persistent", restart_rate=0.3))
    pixels = random_pixels(40)
    straight = train(pixels, config, tmp_path / "straight")
    assert straight.finished

    interrupt_at(monkeypatch, [2, 8])
    before = signal.getsignal(signal.SIGINT)
    legs = [train(pixels, config, tmp_path / "legs", resume=resume) for resume in (False, True)]
    assert signal.getsignal(signal.SIGINT) is before
    assert [leg.finished for leg in legs] == [False, False]
    state = read_state(tmp_path / "legs")
    assert state["clock"]["step"] == 9
    assert (name == "denoising") == (state["clock"]["stage"] == 0)
    last = train(pixels, config, tmp_path / "legs", resume=True)
    assert last.finished

    first, second = read_state(tmp_path / "straight"), read_state(tmp_path / "legs")
    assert first["clock"].pop("seconds") > 0 and second["clock"].pop("seconds") > 0
    assert_equal(first, second)
    assert name != "contrastive" or len(first["objective"]["x"]) > 0
    weights = [(tmp_path / leg / "model" / "model.safetensors").read_bytes() for leg in ("straight", "legs")]
    assert weights[0] == weights[1]
    assert_equal(straight.model.state_dict(), last.model.state_dict())


def test_sigterm_interrupts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(monkeypatch, [1], signal.SIGTERM)
    assert not train(random_pixels(20), tiny_config(), tmp_path / "run").finished
    assert read_state(tmp_path / "run")["clock"]["step"] == 2
    assert DenoisingEBM.from_pretrained(tmp_path / "run").metadata["images seen"] == 16


def test_a_resumed_run_keeps_its_precision_and_kind_of_device(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = {"hardware": {"device": "cpu", "precision": "fp32"}}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_hardware("auto", "auto", saved) == (torch.device("cpu"), "fp32")
    assert choose_hardware("cpu", "bf16", saved) == (torch.device("cpu"), "bf16")
    # One that began on a GPU goes on where there is none.
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    gone = {"hardware": {"device": "cuda", "precision": "bf16"}}
    assert choose_hardware("auto", "auto", gone) == (torch.device("cpu"), "bf16")
    assert choose_hardware("auto", "fp32", {}) == choose_hardware("auto", "fp32", None) == (torch.device("cpu"), "fp32")


def test_resume_refuses_other_settings(tmp_path: Path) -> None:
    pixels, config, folder = random_pixels(20), tiny_config(max_images=16), tmp_path / "run"
    with pytest.raises(FileNotFoundError, match=r"state\.pt: nothing to resume"):
        train(pixels, config, folder, resume=True)
    train(pixels, config, folder)
    with pytest.raises(ValueError, match="already holds a run"):
        train(pixels, config, folder)
    other = replace(config, training=replace(config.training, learning_rate=0.5))
    with pytest.raises(ValueError, match=r"state\.pt: the run has training\.learning_rate = 0\.001, not 0\.5"):
        train(pixels, other, folder, resume=True)
    longer = replace(config, training=replace(config.training, max_images=32))
    for images in (pixels[:-1], pixels.flip(0)):
        with pytest.raises(ValueError, match=r"state\.pt: the run was on other images; resume with the same data"):
            train(images, longer, folder, resume=True)
    assert train(pixels, longer, folder, resume=True).finished
    assert read_state(folder)["clock"]["images_seen"] == 32
    (folder / "state.pt").write_bytes((folder / "state.pt").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"state\.pt: not a readable state") as caught:
        train(pixels, longer, folder, resume=True)
    assert "\n" not in str(caught.value)
    for content in (bytes(100), b"version https://git-lfs.github.com/spec/v1\n"):
        (folder / "state.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"state\.pt: not a readable state"):
            train(pixels, longer, folder, resume=True)


def with_pixel(config: Config, **changes: Any) -> Config:
    sampling = replace(config.sampling, pixel=replace(config.sampling.pixel, **changes))
    return replace(config, sampling=sampling)


def test_chains_beyond_the_trained_levels_are_refused(tmp_path: Path) -> None:
    config = tiny_config()
    config = with_pixel(config, sigma_max=4.0)
    with pytest.raises(ValueError, match=r"sampling.pixel.sigma_max is 4, above noise.sigma_max 1: chains would start"):
        train(random_pixels(20), config, tmp_path / "run")
    config = with_pixel(config, sigma_max=1.0, sigma_min=0.01)
    with pytest.raises(ValueError, match=r"pixel.sigma_min is 0.01, below noise.sigma_min 0.05: chains would end"):
        train(random_pixels(20), config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_before_with_lower_chains_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(max_images=16)
    config = with_pixel(config, sigma_min=0.01)
    longer = replace(config, training=replace(config.training, max_images=32))
    with monkeypatch.context() as before:
        before.setattr(trainer, "check_run", lambda *_: None)
        train(random_pixels(20), config, tmp_path / "run")
    assert train(random_pixels(20), longer, tmp_path / "run", resume=True).finished


def test_images_larger_than_a_gpu_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = random_pixels(4)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (2 * pixels.numel() - 2, 10**12))
    assert place_images(pixels, torch.device("cuda")) is pixels
    assert place_images(pixels, torch.device("cpu")) is pixels


# -- presets --------------------------------------------------------------------------------------------------------


def presets_that_differ() -> list[Any]:
    """Names of presets, one of those that are equal (the paper's for CIFAR-10 and for SVHN); large networks are slow."""
    names: list[str] = []
    for name in PRESETS:
        if preset(name) not in map(preset, names):
            names.append(name)
    return [
        pytest.param(name, marks=pytest.mark.slow if max(preset(name).network.widths) > 128 else ()) for name in names
    ]


@pytest.mark.parametrize("name", presets_that_differ())
def test_every_preset_takes_a_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own networks, noise and objectives, on two images and with one step of every chain."""
    config = preset(name)
    config = replace(
        config,
        training=replace(config.training, batch_size=2, max_images=2, max_minutes=0.0, compile=False),
        contrastive=replace(
            config.contrastive, reconstruction_steps=0, semantic_steps=1, texture_steps=1, buffer_size=2
        ),
    )
    # The large networks take a minute for pictures and hundreds of megabytes for a state; other tests read both.
    monkeypatch.setattr(trainer, "save_sample_images", lambda *arguments, **options: None)
    monkeypatch.setattr(trainer, "save_state", lambda *arguments, **options: None)
    channels, size, _ = DenoisingEBM(config).image_shape
    start: dict[str, Tensor] = {}

    def look(optimizer: torch.optim.Optimizer, *rest: object) -> None:
        start.update({str(i): p.detach().clone() for i, p in enumerate(optimizer.param_groups[0]["params"])})

    handle = register_optimizer_step_pre_hook(look)
    result = train(random_pixels(4, size=size, channels=channels), config, tmp_path / "run")
    handle.remove()
    assert result.finished and read_metrics(tmp_path / "run")[-1]["step"] == 1
    moved = [not torch.equal(p, start[str(i)]) for i, p in enumerate(result.model.parameters())]
    assert sum(moved) > 4
    assert all(bool(p.isfinite().all()) for p in result.model.parameters())


def test_compiled_networks_train_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as on a GPU, run as traced: averages, pictures and the model's files come out as without."""
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))
    results = []
    for compiled in (False, True):
        config = tiny_config(max_images=32, compile=compiled)
        results.append(train(random_pixels(20), config, tmp_path / str(compiled)).model.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-5, atol=1e-6, equal_nan=True, msg=name)
    saved = DenoisingEBM.from_pretrained(tmp_path / "True").state_dict()
    assert_equal(saved, results[1])


def test_the_callers_random_numbers_stay_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(random_pixels(20), tiny_config(max_images=16), tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


def test_steps_in_z_are_measured_without_held_out_images(tmp_path: Path) -> None:
    model = train(random_pixels(20), tiny_config(max_images=16, holdout=0), tmp_path / "run").model
    expected = copy.deepcopy(model)
    calibrate(expected, to_float(random_pixels(5)), seed=0)
    assert float(model.jacobian_norm) == float(expected.jacobian_norm) != 1.0
    assert bool(model.reference.isnan().all()) and not bool(expected.reference.isnan().any())


# -- divergence -----------------------------------------------------------------------------------------------------


class Faulty(Reconstruction):
    """A denoising objective that goes wrong on chosen steps, and keeps the weights that it saw."""

    def __init__(self, config: Config, wrong: Callable[[int], bool], kind: str) -> None:
        super().__init__("denoising", config)
        self.wrong, self.kind = wrong, kind
        self.seen: list[Tensor] = []

    def __call__(self, model: DenoisingEBM, batch: Batch) -> dict[str, Tensor]:
        self.seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        losses = super().__call__(model, batch)
        if self.wrong(batch.step):
            if self.kind == "gap":
                losses["energy_gap"] = torch.tensor(-1e3)
            else:
                losses["loss"] = losses["loss"] * float(self.kind)
        return losses


def events(folder: Path) -> list[str]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["event"] for line in lines if "event" in line]


@pytest.mark.parametrize("kind", ["nan", "inf", "gap"])
def test_divergence_rolls_back_and_ends_the_stage(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(TrainingStage("denoising", 3.0), TrainingStage("denoising", 1.0), max_images=160)
    made: list[Faulty] = []

    def make(name: str, config: Config) -> Faulty:
        first = not made
        made.append(Faulty(config, lambda step: first and step >= 5, kind))
        return made[-1]

    monkeypatch.setattr(trainer, "make_objective", make)
    result = train(random_pixels(20), config, tmp_path / "run")
    assert result.finished
    faulty, after = made
    # Lines every 2 steps: good until 4, wrong at 6, 8 and 10; the weights go back to those of step 4 each time.
    assert len(faulty.seen) == 10 and len(after.seen) == 10
    good = faulty.seen[4]
    for seen in (faulty.seen[6], faulty.seen[8], after.seen[0]):
        assert torch.equal(seen, good)
    assert not torch.equal(faulty.seen[3], good)

    messages = events(tmp_path / "run")
    assert ["learning rate halved" in message for message in messages] == [True, True, False]
    assert "learning rate halved to 0.0005" in messages[0] and "learning rate halved to 0.00025" in messages[1]
    assert "stage ended after 3 divergences" in messages[2]
    assert all("the denoising stage diverged at step" in message for message in messages)
    rates = [record["learning_rate"] for record in read_metrics(tmp_path / "run")]
    # Only good stretches are recorded, and the next phase starts with the full rate.
    assert set(rates) == {1e-3}
    assert all(bool(p.isfinite().all()) for p in result.model.parameters())
    DenoisingEBM.from_pretrained(tmp_path / "run")  # refuses weights that are not finite


def test_a_run_that_only_diverges_can_still_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "make_objective", lambda name, config: Faulty(config, lambda step: True, "nan"))
    folder, config = tmp_path / "run", tiny_config()
    result = train(random_pixels(20), config, folder)
    assert result.finished and result.diverged == 1 and result.model.metadata["stages ended by divergence"] == 1
    assert len(events(folder)) == 3
    assert all(bool(p.isfinite().all()) for p in DenoisingEBM.from_pretrained(folder).parameters())
    # There is nothing left to do, which is no error.
    assert train(random_pixels(20), config, folder, resume=True).finished


def test_one_bad_step_costs_one_stretch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = Faulty(tiny_config(), lambda step: step == 4, "nan")
    monkeypatch.setattr(trainer, "make_objective", lambda name, config: objective)
    train(random_pixels(20), tiny_config(), tmp_path / "run")
    assert len(events(tmp_path / "run")) == 1
    assert [record["step"] for record in read_metrics(tmp_path / "run")] == [2, 4, 8, 10]
    assert torch.equal(objective.seen[6], objective.seen[4])


# -- batches --------------------------------------------------------------------------------------------------------


def joined(batches: list[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.cat([getattr(b, name) for b in batches]) for name in ("x0", "sigma", "noise"))  # type: ignore


def test_slices_make_up_the_batch() -> None:
    pixels, config = random_pixels(50), tiny_config(batch_size=12)
    whole = draw_batch(pixels, config, 7, 3)
    assert len(whole) == 1 and whole[0].step == 3
    slices = [draw_batch(pixels, config, 7, 3, rank=rank, world_size=3) for rank in range(3)]
    micro = replace(config, training=replace(config.training, micro_batch_size=5))
    for parts in ([batch for part in slices for batch in part], draw_batch(pixels, micro, 7, 3)):
        for a, b in zip(joined(whole), joined(parts), strict=True):
            assert torch.equal(a, b)
    assert [len(batch.x0) for batch in draw_batch(pixels, micro, 7, 3)] == [5, 5, 2]
    draws = [torch.rand(1, generator=s[0].generator).item() for s in slices]
    assert len(set(draws)) == 3  # every process has inner noise of its own
    with pytest.raises(ValueError, match=r"training\.batch_size must be divisible .* \(5\), got 12"):
        draw_batch(pixels, config, 0, 0, world_size=5)


def test_steps_and_seeds_decide_a_batch() -> None:
    pixels, config = random_pixels(50), tiny_config()
    same, again, later = (draw_batch(pixels, config, step, 0)[0] for step in (7, 7, 8))
    assert torch.equal(same.noise, again.noise) and not torch.equal(same.noise, later.noise)
    other = draw_batch(pixels, replace(config, training=replace(config.training, seed=1)), 7, 0)[0]
    assert not torch.equal(same.noise, other.noise)
    seeds = {
        hashed_generator(torch.device("cpu"), seed, step).initial_seed() for seed in range(30) for step in range(30)
    }
    assert len(seeds) == 900


@pytest.mark.parametrize("flip", [True, False])
def test_half_of_the_images_are_flipped(flip: bool) -> None:
    pixels = random_pixels(1)
    num = 4000
    batch = draw_batch(pixels, tiny_config(batch_size=num, flip=flip), 0, 0)[0]
    image = to_float(pixels[0])
    flipped = (batch.x0 == image.flip(2)).flatten(1).all(1)
    straight = (batch.x0 == image).flatten(1).all(1)
    assert bool((flipped ^ straight).all())
    expected = num / 2 if flip else 0
    assert abs(int(flipped.sum()) - expected) <= (5 * math.sqrt(num / 4) if flip else 0)


def test_every_image_is_drawn_evenly() -> None:
    pixels = torch.arange(8, dtype=torch.uint8).reshape(8, 1, 1, 1).expand(8, 1, 16, 16)
    batch = draw_batch(pixels, tiny_config(batch_size=8000), 0, 0)[0]
    counts = torch.bincount(((batch.x0[:, 0, 0, 0] + 1) * 127.5).round().long(), minlength=8)
    assert bool(((counts - 1000).abs() < 5 * math.sqrt(8000 / 8 * 7 / 8)).all())
    assert float(batch.noise.var()) == pytest.approx(1, rel=5 * math.sqrt(2 / batch.noise.numel()))
    torch.testing.assert_close(batch.noisy, batch.x0 + batch.sigma[:, None, None, None] * batch.noise)


@pytest.mark.parametrize("objective", ["denoising", "score"])
def test_micro_batches_have_the_gradient_of_one(
    objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the code statistics, which move with every forward pass and are held here."""
    monkeypatch.setattr(Whitening, "update", lambda self, codes, keep=None: None)
    gradients: list[Tensor] = []

    def keep(optimizer: torch.optim.Optimizer, *rest: object) -> None:
        gradients.append(torch.cat([p.grad.flatten() for p in optimizer.param_groups[0]["params"]]))

    handle = register_optimizer_step_pre_hook(keep)
    for size in (0, 3, 1):
        config = tiny_config(TrainingStage(objective), max_images=8, micro_batch_size=size, clip_norm=0.0)  # type: ignore
        initial = DenoisingEBM(config)
        randomise(initial)
        train(random_pixels(20), config, tmp_path / str(size), initial=initial)
    handle.remove()
    one, *others = gradients
    assert len(others) == 2
    for other in others:
        assert float((other - one).norm() / one.norm()) < 1e-6


def test_gradients_are_clipped(tmp_path: Path) -> None:
    norms: list[float] = []

    def keep(optimizer: torch.optim.Optimizer, *rest: object) -> None:
        norms.append(float(torch.cat([p.grad.flatten() for p in optimizer.param_groups[0]["params"]]).norm()))

    handle = register_optimizer_step_pre_hook(keep)
    for clip in (0.0, 0.01):
        train(random_pixels(20), tiny_config(max_images=16, clip_norm=clip), tmp_path / str(clip))
    handle.remove()
    assert norms[2:] == pytest.approx([0.01, 0.01], rel=1e-3)
    logged = read_metrics(tmp_path / "0.0")[0]["grad_norm"]
    assert logged == pytest.approx(sum(norms[:2]) / 2, rel=1e-4)
    assert min(norms[:2]) > 0.02


# -- averaged weights -----------------------------------------------------------------------------------------------


def fill(model: DenoisingEBM, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def test_average_of_constant_weights(tiny_model: DenoisingEBM) -> None:
    average = AveragedWeights(tiny_model, 0.999)
    for _ in range(20):
        average.update_parameters(tiny_model)
    assert_equal(list(average.module.parameters()), list(tiny_model.parameters()))


def test_average_of_a_ramp(tiny_model: DenoisingEBM) -> None:
    """With w_n = n and a constant decay d the average is n - (1 - d^n) d / (1 - d)."""
    d, n = 0.15, 30  # below the warm-up's smallest decay 2 / 11
    average = AveragedWeights(tiny_model, d)
    for i in range(n + 1):
        fill(tiny_model, float(i))
        average.update_parameters(tiny_model)
    expected = n - (1 - d**n) * d / (1 - d)
    for parameter in average.module.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected))


def test_average_forgets_the_first_weights(tiny_model: DenoisingEBM) -> None:
    """The warm-up leaves the product of (1 + i) / (10 + i) of them, not 0.999^n."""
    average = AveragedWeights(tiny_model, 0.999)
    fill(tiny_model, 1.0)
    average.update_parameters(tiny_model)  # the first update copies
    fill(tiny_model, 0.0)
    for _ in range(50):
        average.update_parameters(tiny_model)
    expected = math.prod((1 + i) / (10 + i) for i in range(1, 51))
    value = next(average.module.parameters()).detach().flatten()[0]
    assert float(value) == pytest.approx(expected, rel=1e-4)


def test_average_copies_buffers(tiny_model: DenoisingEBM, generator: torch.Generator) -> None:
    average = AveragedWeights(tiny_model, 0.999)
    average.update_parameters(tiny_model)
    tiny_model.dae.unet.whitening.update(torch.randn(20, 4, generator=generator) + 5)
    average.update_parameters(tiny_model)
    averaged = average.module
    assert isinstance(averaged, DenoisingEBM)
    assert torch.equal(averaged.dae.unet.whitening.mean, tiny_model.dae.unet.whitening.mean)


# -- the run folder -------------------------------------------------------------------------------------------------

ALWAYS = {"images_seen", "step", "minutes", "stage", "learning_rate", "loss", "grad_norm", "images_per_second"}
DENOISING = ALWAYS | {"loss_denoising", "loss_decoder", "energy_data"}
CHAINS = {f"{prefix}energy_{kind}" for prefix in ("", "latent_") for kind in ("data", "chain", "gap")}
CHAINS |= {"image_std", "chain_std", "code_std", "latent_chain_std"}


def test_run_folder(tmp_path: Path) -> None:
    config = tiny_config(
        TrainingStage("denoising"), TrainingStage("contrastive"), max_images=96, warmup_images=32, cooldown=0.5
    )
    result = train(random_pixels(60), config, tmp_path, data_name="waves")
    assert result.finished
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    model = {f"model/{name}" for name in ("config.json", "model.safetensors", "README.md")}
    pictures = {f"samples/{name}-000000096.png" for name in ("samples", "reconstructions")}
    assert files == {"config.yaml", "metrics.jsonl", "state.pt"} | model | pictures
    assert from_dict(Config, yaml.safe_load((tmp_path / "config.yaml").read_text())) == config

    records = read_metrics(tmp_path)
    assert [record["step"] for record in records] == [2, 4, 6, 8, 10, 12]
    assert [record["images_seen"] for record in records] == [16, 32, 48, 64, 80, 96]
    assert [record["stage"] for record in records] == ["denoising"] * 3 + ["contrastive"] * 3
    for record in records[:3]:
        assert set(record) == DENOISING
        assert record["loss"] == pytest.approx(record["loss_denoising"] + record["loss_decoder"], rel=1e-4)
    for record in records[3:]:  # L = 1: one step of each kind
        assert set(record) == DENOISING | CHAINS
        assert record["energy_gap"] == pytest.approx(record["energy_data"] - record["energy_chain"], rel=1e-3, abs=1e-5)
    # A warm-up of 4 steps, cut to the first one, a twentieth of the budget; linear fall from half of the budget on.
    expected = [1.0, 1.0, 1.0, 10 / 12, 6 / 12, 2 / 12]
    assert [record["learning_rate"] for record in records] == pytest.approx([1e-3 * share for share in expected])

    loaded = DenoisingEBM.from_pretrained(tmp_path)
    assert_equal(loaded.state_dict(), result.model.state_dict())
    assert loaded.metadata["data"] == "waves" and loaded.metadata["images seen"] == 96
    assert loaded.metadata["training images"] == 58


def test_minutes_end_a_run(tmp_path: Path) -> None:
    config = tiny_config(max_images=10**9, max_minutes=0.5 / 60)
    assert train(random_pixels(20), config, tmp_path).finished
    clock = read_state(tmp_path)["clock"]
    assert 0.5 <= clock["seconds"] < 5 and clock["images_seen"] < 10**6


def test_initial_weights(tmp_path: Path, tiny_model: DenoisingEBM) -> None:
    config = tiny_config(learning_rate=1e-9, max_images=8)
    tiny_model.metadata = {"images seen": 100, "minutes": 2.5, "data": "elsewhere"}
    result = train(random_pixels(20), config, tmp_path / "run", initial=tiny_model)
    for a, b in zip(result.model.parameters(), tiny_model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)
    assert result.model.metadata["images seen"] == 108 and result.model.metadata["minutes"] >= 2.5
    longer = replace(config, training=replace(config.training, max_images=16))
    resumed = train(random_pixels(20), longer, tmp_path / "run", resume=True)
    assert resumed.model.metadata["images seen"] == 116
    assert resumed.model.metadata["images seen by the initial model"] == 100
    other = DenoisingEBM(replace(config, network=replace(config.network, latent_dim=5)))
    with pytest.raises(ValueError, match=r"initial model: .*shape"):
        train(random_pixels(20), config, tmp_path / "other", initial=other)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (random_pixels(20, channels=3), r"training images have shape \(3, 16, 16\), but the model takes \(1, 16, 16\)"),
        (random_pixels(20).float(), "training images have shape"),
        (random_pixels(1), "at least 2 images, got 1"),
    ],
)
def test_images_that_do_not_fit(pixels: Tensor, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train(pixels, tiny_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- it learns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["denoising", "score"])
def test_loss_falls_on_real_images(objective: str, tmp_path: Path) -> None:
    """Sixty steps on Fashion-MNIST at 16 pixels beat the best denoiser that ignores what images look like."""

    def load(split: str, limit: int) -> Tensor:
        pixels = load_images("fashion-mnist", split=split, limit=limit).pixels
        return torch.nn.functional.avg_pool2d(pixels.float(), 2).round().to(torch.uint8)

    config = tiny_config(TrainingStage(objective), batch_size=16, max_images=60 * 16, log_every=10, learning_rate=3e-3)  # type: ignore
    network = replace(config.network, widths=(16, 32), decoder_widths=(8, 16), latent_dim=16)
    config = replace(config, network=network, training=replace(config.training, holdout=60))
    result = train(load("train", 600), config, tmp_path)
    losses = [record["loss_denoising"] for record in read_metrics(tmp_path)]
    assert len(losses) == 6 and losses[-1] < 0.7 * losses[0]
    decoder = [record["loss_decoder"] for record in read_metrics(tmp_path)]
    assert decoder[-1] < 0.8 * decoder[0]

    held = to_float(load("test", 64))
    noise = torch.randn(held.shape, generator=torch.Generator().manual_seed(0))
    for sigma in (0.3, 0.8):
        noisy = held + sigma * noise
        error = (result.model.denoise(noisy, sigma) - held).square().mean()
        a = held.var() / (held.var() + sigma**2)
        linear = (held.mean() + a * (noisy - held.mean()) - held).square().mean()
        assert float(error.detach()) < 0.8 * float(linear)


def test_validation_loss_is_the_weighted_error_of_the_denoiser(tiny_model: DenoisingEBM) -> None:
    config = tiny_config()
    images = to_float(random_pixels(6))
    generator = torch.Generator().manual_seed(config.training.seed)
    sigma = draw_sigmas(config.noise, 6, generator)
    x = images + sigma.view(-1, 1, 1, 1) * torch.randn(images.shape, generator=generator)
    with torch.no_grad():
        errors = (tiny_model.denoise(x, sigma) - images).square().mean((1, 2, 3))
    expected = (loss_weights(config.noise.weighting, sigma, config.network.sigma_data) * errors).mean()
    assert validation_loss(tiny_model, images, config) == pytest.approx(float(expected), rel=1e-5)


def test_resume_drops_lines_that_it_will_write_again(tmp_path: Path) -> None:
    """A run that was killed has logged steps after its last save, the last line perhaps in part."""
    lines = [json.dumps({"images_seen": 8 * step, "step": step, "loss": 1.0}) + "\n" for step in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"images_seen": 48, "st')
    trim_metrics(tmp_path, 3)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines[:3])
    trim_metrics(tmp_path / "elsewhere", 3)


@pytest.mark.parametrize("stage", ["denoising", "contrastive", "score"])
def test_bf16_rounds_networks_and_not_images_or_losses(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fabric would round every tensor of a batch to bf16 on its way into a module."""
    config = tiny_config(TrainingStage(stage))  # type: ignore[arg-type]
    if stage == "score":
        config = replace(config, energy=EnergyConfig(inner_noise=False, denoiser="gradient"))
    config = replace(config, contrastive=replace(config.contrastive, reconstruction_steps=0))
    seen: list[Batch] = []
    figures: list[dict[str, Tensor]] = []
    inner: list[torch.dtype] = []
    make = trainer.make_objective

    def spying(name: Any, config: Config) -> Any:
        objective = make(name, config)

        class Spy(type(objective)):  # type: ignore[misc]
            def __call__(self, model: DenoisingEBM, batch: Batch) -> dict[str, Tensor]:
                seen.append(batch)
                head = model.dae.unet.decoder.head
                hook = head.register_forward_hook(lambda module, args, output: inner.append(output.dtype))
                figures.append(super().__call__(model, batch))
                hook.remove()
                return figures[-1]

        objective.__class__ = Spy
        return objective

    monkeypatch.setattr(trainer, "make_objective", spying)
    train(random_pixels(20), config, tmp_path / "run", precision="bf16")
    assert set(inner) == {torch.bfloat16}
    drawn = draw_batch(random_pixels(20)[:1], config, 0, 0)[0]
    assert seen[0].x0.dtype == seen[0].noise.dtype == torch.float32
    assert torch.equal(seen[0].sigma, drawn.sigma)
    assert {value.dtype for value in figures[0].values()} == {torch.float32}
