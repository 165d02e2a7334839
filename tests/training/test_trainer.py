from __future__ import annotations

import copy
import json
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

from denoising_ebm import DenoisingEBM, load_images, to_float
from denoising_ebm.config import Config, EnergyConfig, TrainingStage, from_dict
from denoising_ebm.noise import draw_sigmas, loss_weights
from denoising_ebm.presets import PRESETS, preset
from denoising_ebm.training import trainer
from denoising_ebm.training.batches import draw_batch
from denoising_ebm.training.calibration import calibrate
from denoising_ebm.training.logging import read_metrics
from denoising_ebm.training.objectives import Batch, Reconstruction, validation_loss
from denoising_ebm.training.setup import place_images
from runs import assert_equal, read_state, train
from support import random_pixels, tiny_config


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
    config = tiny_config(TrainingStage("denoising", 3.0), TrainingStage("denoising", 1.0), max_images=320)
    made: list[Faulty] = []

    def make(name: str, config: Config) -> Faulty:
        first = not made
        made.append(Faulty(config, lambda step: first and step >= 5, kind))
        return made[-1]

    monkeypatch.setattr(trainer, "make_objective", make)
    result = train(random_pixels(20), config, tmp_path / "run")
    assert result.finished
    faulty, after = made
    # Lines every 2 steps: good until 4, wrong at 6, 8, ... 18; the weights go back to those of step 4, later to the start's.
    assert len(faulty.seen) == 18 and len(after.seen) == 22
    good = faulty.seen[4]
    back = [good, good, *[faulty.seen[0]] * 4] if kind != "gap" else [faulty.seen[0]] * 6
    for seen, expected in zip(faulty.seen[6::2], back, strict=True):
        assert torch.equal(seen, expected)
    # What the stage leaves is the last good state.
    assert torch.equal(after.seen[0], good) and not torch.equal(faulty.seen[3], good)

    messages = events(tmp_path / "run")
    rates = [5e-4, 1.25e-4, *(1.25e-4 / 16**power for power in range(1, 5))]
    for message, rate in zip(messages, rates, strict=False):
        assert message.endswith(f"learning rate lowered to {rate:.3g}")
    assert len(messages) == 7 and messages[6].endswith("stage ended after 7 divergences in a row")
    assert all("the denoising stage diverged at step" in message for message in messages)
    rates = [record["learning_rate"] for record in read_metrics(tmp_path / "run")]
    # Only good stretches are recorded, and the next phase starts with the full rate.
    assert set(rates) == {1e-3}
    assert all(bool(p.isfinite().all()) for p in result.model.parameters())
    DenoisingEBM.from_pretrained(tmp_path / "run")  # refuses weights that are not finite


def test_a_run_that_only_diverges_can_still_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "make_objective", lambda name, config: Faulty(config, lambda step: True, "nan"))
    folder, config = tmp_path / "run", tiny_config(max_images=160)
    result = train(random_pixels(20), config, folder)
    assert result.finished and result.diverged == 1 and result.model.metadata["stages ended by divergence"] == 1
    assert len(events(folder)) == 7 and read_state(folder)["clock"]["step"] == 14
    assert all(bool(p.isfinite().all()) for p in DenoisingEBM.from_pretrained(folder).parameters())
    # The rest of its budget is for another try, from the same weights; with nothing left to do there is no error.
    for _ in range(2):
        again = train(random_pixels(20), config, folder, resume=True)
        assert again.finished and again.problems == (
            "20 of 20 steps diverged and were thrown away",
            "only 0.0039 of the learning rate did not diverge",
        )
        assert_equal(dict(again.model.named_parameters()), dict(result.model.named_parameters()))
    found = events(folder)[7:]
    assert found[0] == "the denoising stage, which ended by divergence, is tried again at half the learning rate"
    assert len(found) == 4 and all("diverged at step" in event for event in found[1:])


def test_one_bad_step_costs_one_stretch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = Faulty(tiny_config(), lambda step: step == 4, "nan")
    monkeypatch.setattr(trainer, "make_objective", lambda name, config: objective)
    train(random_pixels(20), tiny_config(), tmp_path / "run")
    assert len(events(tmp_path / "run")) == 1
    assert [record["step"] for record in read_metrics(tmp_path / "run")] == [2, 4, 8, 10]
    assert torch.equal(objective.seen[6], objective.seen[4])


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
    assert files == {"config.yaml", "metrics.jsonl", "state.pt", "state-previous.pt"} | model | pictures
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


def test_an_energy_stage_trains_the_density_alone(tmp_path: Path) -> None:
    """A denoiser, then the energy from its averaged weights, with a rate of its own; normalised at the end."""
    config = tiny_config(TrainingStage("denoising"), TrainingStage("energy", 1.0, 2e-3), max_images=160, log_every=5)
    config = with_pixel(config, drift="density")
    config = replace(config, training=replace(config.training, holdout=20))
    first = replace(config, training=replace(config.training, max_images=80), stages=config.stages[:1])
    denoiser = train(random_pixels(200), first, tmp_path / "first").model
    # Nobody has fitted its energy yet: what it draws follows the denoiser.
    assert denoiser.config.sampling.pixel.drift == "denoiser"
    assert denoiser.density is not None and not denoiser.density.is_normalised

    model = train(random_pixels(200), config, tmp_path / "both").model
    records = read_metrics(tmp_path / "both")
    assert [record["stage"] for record in records] == ["denoising"] * 2 + ["energy"] * 2
    assert set(records[2]) == ALWAYS | {"loss_denoising", "energy_data"}
    assert [record["learning_rate"] for record in records] == pytest.approx([1e-3, 1e-3, 2e-3, 2e-3])
    assert_equal(model.dae.state_dict(), denoiser.dae.state_dict())
    assert_equal(model.decoder.state_dict(), denoiser.decoder.state_dict())
    assert model.density is not None and model.density.is_normalised
    assert model.config.sampling.pixel.drift == "density"
    # Ten steps bring its gradient nearer to the denoiser, from the weights of which it starts.
    x, sigma = to_float(random_pixels(20, seed=1)), 0.3
    x = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    after = model.pixel_energy("density").denoise(x, sigma)[1]
    model.density.dae.load_state_dict(model.dae.state_dict())
    before = model.pixel_energy("density").denoise(x, sigma)[1]
    wanted = model.denoise(x, sigma).detach()
    assert float((after - wanted).square().mean()) < 0.9 * float((before - wanted).square().mean())


def test_a_density_is_added_to_a_model_of_before(tmp_path: Path, tiny_model: DenoisingEBM) -> None:
    config = replace(tiny_config(TrainingStage("energy"), max_images=16), energy=EnergyConfig(True, density=True))
    model = train(random_pixels(40), config, tmp_path, initial=tiny_model).model
    assert_equal(model.dae.state_dict(), tiny_model.dae.state_dict())
    assert model.density is not None and model.density.is_normalised


def test_log_z_of_other_weights_is_not_kept(tmp_path: Path) -> None:
    """A run that goes on from a normalised density changes it: without images to normalise by, it has no log Z."""
    config = tiny_config(TrainingStage("energy"), max_images=16, holdout=0)
    initial = DenoisingEBM(config)
    assert initial.density is not None
    initial.density.log_z.zero_()
    model = train(random_pixels(40), config, tmp_path, initial=initial).model
    assert model.density is not None and bool(model.density.log_z.isnan().all())


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
    assert validation_loss(tiny_model.denoise, images, config) == pytest.approx(float(expected), rel=1e-5)


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
