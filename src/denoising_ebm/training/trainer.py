"""The training loop, on a CPU, a GPU or many machines; the only file that imports Fabric."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from denoising_ebm.config import Config, to_dict
from denoising_ebm.datasets.images import content_hash, to_float
from denoising_ebm.datasets.preprocessing import Preprocessing
from denoising_ebm.literals import Precision
from denoising_ebm.model import DenoisingEBM, expected_tensors
from denoising_ebm.schema import check_tensors
from denoising_ebm.training.batches import draw_batch
from denoising_ebm.training.calibration import calibrate, normalise
from denoising_ebm.training.checkpoint import RunState, read_state, save_state
from denoising_ebm.training.ema import AveragedWeights
from denoising_ebm.training.health import (
    DIVISORS,
    MAX_GROWTH,
    MAX_IN_A_ROW,
    MAX_LAST_RATIO,
    MAX_LOST,
    MIN_BEST,
    MIN_RATE,
    RECOVERY_CHECKS,
    REFERENCE_STEPS,
    Probe,
    compare_figures,
    compare_losses,
    find_not_finite,
    find_vanished,
    has_grown_moments,
    weight_norm,
)
from denoising_ebm.training.interrupt import interruptible
from denoising_ebm.training.logging import METRICS_FILE, Monitor, trim_metrics
from denoising_ebm.training.lr import learning_rate, stage_schedule
from denoising_ebm.training.objectives import Batch, Objective, make_objective, validation_loss
from denoising_ebm.training.sample_images import save_sample_images
from denoising_ebm.training.setup import (
    CONFIG_FILE,
    MODEL_FOLDER,
    SAMPLES_FOLDER,
    check_run,
    choose_hardware,
    new_model,
    place_images,
)
from denoising_ebm.training.state_schema import check_number
from denoising_ebm.utils.device import describe
from denoising_ebm.utils.io import clear_temporaries, write_text_atomically
from denoising_ebm.utils.lock import locked
from denoising_ebm.utils.seeds import hashed_generator
from denoising_ebm.utils.text import counted


class _Step(nn.Module):
    """The objective as a module's forward: synchronised training sees only what happens inside of that."""

    def __init__(self, model: DenoisingEBM) -> None:
        super().__init__()
        self.model = model
        self.objective: Objective | None = None

    def forward(self, batch: _Opaque) -> dict[str, Tensor]:
        assert self.objective is not None
        return self.objective(self.model, batch.content)


class _Opaque:
    """A batch that Fabric does not look into: it would round images and noise levels to bf16 under `bf16-mixed`."""

    def __init__(self, content: Batch) -> None:
        self.content = content


@dataclass(frozen=True)
class TrainingResult:
    """What `train` returns."""

    model: DenoisingEBM  #: The averaged, calibrated model in eval mode.
    finished: bool  #: False if the run was interrupted; `resume` continues it.
    diverged: int = 0  #: Training stages that ended by divergence, each at its last good state.
    rollbacks: int = 0  #: Divergences in all, after each of which the run went back to its last good state.
    problems: tuple[str, ...] = ()  #: Why the model is not what such a run should give; empty if nothing is known.
    interrupted: bool = False  #: The user interrupted; a signal in the last moments leaves a finished run.


def train(
    pixels: Tensor,
    config: Config,
    folder: str | Path,
    *,
    data_name: str = "",
    resume: bool = False,
    initial: DenoisingEBM | None = None,
    preprocessing: Preprocessing | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    tensorboard: bool = False,
    quiet: bool = False,
) -> TrainingResult:
    """Train a model and write its run folder: config.yaml, metrics.jsonl, samples/, state.pt and model/.

    Under `torchrun` every process takes its slice of each batch. Ctrl-C (or SIGTERM, or a closed terminal) finishes the
    step, saves and returns; a resumed run continues exactly (but persistent chains of all processes except the first start
    anew). So does one that was killed, at whatever moment, from its last save. The last two states are kept, each with a
    hash: where state.pt is damaged, the run goes on from state-previous.pt, and says so.

    Args:
        pixels: Training images, uint8, shape (n, channels, height, width).
        config: What to train and how.
        folder: The run folder, created if missing.
        data_name: Where the images come from, for the model card.
        resume: Continue the run in `folder`.
        initial: Start from this model's weights, with a fresh optimizer and clock.
        preprocessing: How `pixels` were prepared, which the model keeps; for a resumed run its own if None.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; for a resumed run `auto` is the kind it was on, if that is here.
        precision: `auto`, `fp32` or `bf16` for the networks; energies and losses are float32 always. For a resumed run
            `auto` is its own.
        tensorboard: Also write TensorBoard events.
        quiet: No progress on stderr.

    Raises:
        ValueError: If the images do not fit the config, or `folder` holds a run and `resume` is off, or another run, or
            is in use by another process.
        FileNotFoundError: If `resume` is on and there is nothing to resume.
    """
    folder = Path(folder)
    check_run(pixels, config, folder, resume)
    with locked(folder, "debm train"), locked(folder / MODEL_FOLDER, "debm train"):
        # Another process may have begun a run here meanwhile.
        check_run(pixels, config, folder, resume)
        return _train(
            pixels, config, folder, data_name, resume, initial, preprocessing, device, precision, tensorboard, quiet
        )


def _train(
    pixels: Tensor,
    config: Config,
    folder: Path,
    data_name: str,
    resume: bool,
    initial: DenoisingEBM | None,
    preprocessing: Preprocessing | None,
    device: str,
    precision: Precision,
    tensorboard: bool,
    quiet: bool,
) -> TrainingResult:
    """Do what `train` does, in a folder of one's own."""
    images = content_hash(pixels)
    remarks: list[str] = []
    saved = read_state(config, folder, images, remarks.append) if resume else None
    place, precision = choose_hardware(device, precision, saved)
    hardware = {"device": place.type, "precision": precision}
    fabric = _fabric(place, precision, several_parts=config.energy.density)
    model = new_model(config)
    past: dict[str, Any] = {}
    if initial is not None:
        tensors = initial.state_dict()
        if model.density is not None and initial.density is None:
            # It starts from those of the denoiser, in its own stage.
            fresh = model.state_dict()
            tensors = {**tensors, **{name: fresh[name] for name in fresh if name.startswith("density.")}}
        check_tensors(
            expected_tensors(config), tensors, Path("initial model"), misfit="weights do not fit the settings"
        )
        model.load_state_dict(tensors)
        past = {
            name: check_number(initial.metadata.get(name, 0), f"initial model: metadata: {name}")
            for name in ("images seen", "minutes")
        }

    step_module = _Step(model)
    training = config.training
    optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate, betas=training.betas, fused=True)
    wrapped, optimizer = fabric.setup(step_module, optimizer)
    if config.training.compile:
        model.dae.unet.compile()
        model.decoder.compile()
    average = AveragedWeights(model, config.training.ema_decay)
    state = RunState(model, average, optimizer, make_objective(config.stages[0].objective, config), past=past)
    state.preprocessing = preprocessing
    if saved is not None:
        # Past the last stage when that ended by divergence.
        stage = config.stages[min(saved["clock"]["stage"], len(config.stages) - 1)]
        state.objective = make_objective(stage.objective, config)
        if fabric.global_rank:
            # Those saved are the first process's: taken over by all they would be the same chains everywhere.
            saved["objective"] = state.objective.state_dict()
        state.restore(saved, clock=True)
    if fabric.global_rank == 0:
        clear_temporaries(folder / SAMPLES_FOLDER)
        text = yaml.safe_dump(to_dict(config), sort_keys=False)
        if saved is not None:
            if damaged := trim_metrics(folder, state.clock.step):
                remarks.append(f"{folder / METRICS_FILE}: {counted(damaged, 'damaged line')} dropped")
        else:
            # So that a run that dies before its first save can be resumed too; first of all files, since without it the
            # others are no run.
            save_state(state, config, folder, images, hardware)
        write_text_atomically(folder / CONFIG_FILE, text)
    fabric.barrier()

    order = torch.randperm(len(pixels), generator=hashed_generator(torch.device("cpu"), config.training.seed, 2))
    num_val = min(config.training.holdout, len(pixels) // 10)
    val_images, train_images = pixels[order[:num_val]], place_images(pixels[order[num_val:]], fabric.device)
    metadata = {"data": data_name or "not named", "training images": len(train_images), "hardware": describe(place)}
    probe = Probe(val_images, train_images, config, fabric.device)
    run = _Run(fabric, wrapped, state, config, folder, val_images, metadata, hardware, images, probe)
    with ExitStack() as stack:
        interrupted = stack.enter_context(interruptible())
        monitor = Monitor(folder, active=fabric.global_rank == 0, tensorboard=tensorboard, quiet=quiet)
        stack.callback(monitor.close)
        for remark in remarks:
            monitor.event(state.clock, remark)
        finished = run.loop(train_images, monitor, interrupted)
        run.save(monitor, final=finished)
    model = run.evaluation_model(final=finished)
    diverged, rollbacks = state.clock.diverged, state.record.rollbacks
    return TrainingResult(model, finished, diverged, rollbacks, run.problems(), interrupted.is_set())


@dataclass
class _Run:
    """One stretch of training: the loop and what it does at intervals."""

    fabric: Fabric
    wrapped: Any  #: The step as Fabric's module.
    state: RunState
    config: Config
    folder: Path
    val_images: Tensor  #: Kept out of training, uint8.
    metadata: dict[str, Any]  #: For the model card.
    hardware: dict[str, Any]  #: Device and precision, for `state.pt`.
    images: str  #: A hash of the training images.
    probe: Probe

    def __post_init__(self) -> None:
        #: The last state found sound, and one from about `REFERENCE_STEPS` before it: what shows late may have begun early.
        self._good = self._older = self.state.snapshot()
        #: The state that the stretch under way began with.
        self._begun = self._good
        self._calibrated = True
        self._final: DenoisingEBM | None = None
        self._worse_end = ""

    # -- the loop ---------------------------------------------------------------------------------------------------

    def loop(self, pixels: Tensor, monitor: Monitor, interrupted: threading.Event) -> bool:
        """Train until the budget is used up (True) or the user interrupts (False)."""
        training, state = self.config.training, self.state
        self.wrapped.train()
        if not state.record.best:
            # A new run, or one of before such losses were kept.
            if state.clock.step == 0:
                state.objective.begin(state.model, state.average)
            state.record.start_stage(state.clock.step, self._losses(), weight_norm(state.model))
            self._good = self._older = self._begun = state.snapshot()
        self._retry_stage(monitor)
        monitor.start(self.progress())
        started, before = time.monotonic(), state.clock.seconds
        last_sample = state.clock.seconds
        stopped = False
        while self._enter_stage(monitor, progress := self.progress()):
            # Signals reach processes at different steps, and each has a clock of its own: they act on what all agree on,
            # or one would wait for the others for ever.
            if stopped := self._agree(interrupted.is_set()):
                break
            figures = self._step(pixels, progress)
            monitor.add(figures, training.batch_size)
            clock = state.clock
            clock.step, clock.stage_step = clock.step + 1, clock.stage_step + 1
            clock.images_seen += training.batch_size
            clock.seconds = before + time.monotonic() - started
            if clock.step % training.log_every == 0:
                self._check_health(monitor, regular=True)
                since = self._agree(clock.seconds - last_sample)
                if training.sample_minutes and since >= 60 * training.sample_minutes:
                    self.save(monitor, final=False)
                    last_sample = clock.seconds
                    # Sample images and saving are not training time.
                    started, before = time.monotonic(), clock.seconds
                    monitor.pause()
        self._check_health(monitor)
        if not stopped:
            self._settle()
            self._judge_end(monitor)
        return not stopped

    def _step(self, pixels: Tensor, progress: float) -> dict[str, Tensor]:
        training, clock, fabric = self.config.training, self.state.clock, self.fabric
        largest, share_used = stage_schedule(training, self.config.stages, clock.stage, progress)
        own_rate = self.config.stages[clock.stage].learning_rate is not None
        seen = clock.stage_step * training.batch_size if own_rate else clock.images_seen
        rate = clock.rate_scale * learning_rate(training, seen, share_used, largest)
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate
        share: dict[str, Any] = {"rank": fabric.global_rank, "world_size": fabric.world_size, "device": fabric.device}
        # A run that goes on from another model goes on with its draws too: with one seed they would be the same again.
        before = self.state.past.get("images seen", 0) // training.batch_size
        batches = draw_batch(pixels, self.config, before + clock.step, clock.stage_step, **share)
        figures: dict[str, Tensor] = {}
        for i, batch in enumerate(batches):
            with fabric.no_backward_sync(self.wrapped, enabled=i < len(batches) - 1):
                losses = self.wrapped(_Opaque(batch))
                part = len(batch.x0) * fabric.world_size / training.batch_size
                fabric.backward(losses["loss"] * part)
            for name, value in losses.items():
                figures[name] = figures.get(name, torch.zeros((), device=value.device)) + part * value.detach()
        norm = fabric.clip_gradients(
            self.wrapped, self.state.optimizer, max_norm=training.clip_norm or float("inf"), error_if_nonfinite=False
        )
        self.state.optimizer.step()
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.average.update_parameters(self.state.model)
        return figures if norm is None else {**figures, "grad_norm": norm}

    def progress(self) -> float:
        """Return the share of the budget that is used up, 0..1."""
        training, clock = self.config.training, self.state.clock
        shares = [clock.images_seen / training.max_images]
        if training.max_minutes:
            shares.append(clock.seconds / (60 * training.max_minutes))
        return min(1.0, float(self._agree(max(shares))))

    def _enter_stage(self, monitor: Monitor, progress: float) -> bool:
        """Set the objective of the current training stage; False when the stages or the budget is at its end."""
        clock, stages = self.state.clock, self.config.stages
        total = sum(stage.fraction for stage in stages)
        ends = [sum(stage.fraction for stage in stages[: i + 1]) / total for i in range(len(stages))]
        due = next((i for i, end in enumerate(ends) if progress < end), len(stages))
        if progress >= 1:
            return False
        if due > clock.stage:
            # The figures so far belong to the stage before, whose end is only kept if it went well.
            self._check_health(monitor)
            self._start_stage(due)
        self.wrapped.module.objective = self.state.objective
        return clock.stage < len(stages)

    def _start_stage(self, index: int) -> None:
        clock, state = self.state.clock, self.state
        self._settle()
        clock.stage, clock.stage_step, clock.rate_scale = index, 0, 1.0
        if index < len(self.config.stages):
            state.objective = make_objective(self.config.stages[index].objective, self.config)
            state.objective.begin(state.model, state.average)
            state.record.start_stage(clock.step, self._losses(), weight_norm(state.model))
        self._good = self._older = self._begun = state.snapshot()

    def _retry_stage(self, monitor: Monitor) -> None:
        """Begin the last stage again if it ended by divergence before the budget did."""
        clock, stages = self.state.clock, self.config.stages
        if clock.stage < len(stages) or self.progress() >= 1:
            return
        self._start_stage(len(stages) - 1)
        clock.rate_scale = self.state.record.rate_limit = 0.5
        clock.diverged -= 1
        name = stages[-1].objective
        monitor.event(clock, f"the {name} stage, which ended by divergence, is tried again at half the learning rate")

    # -- safety -----------------------------------------------------------------------------------------------------

    def _check_health(self, monitor: Monitor, *, regular: bool = False) -> None:
        """Log; keep the state if it is sound, else go back to the last good one and lower the learning rate.

        With `regular` what the run is compared with moves on, which it does at the same steps whether interrupted or not.
        """
        clock, state, own = self.state.clock, self.state, monitor.collect()
        if not own:
            return
        # Judged by each process for its own chains: means would hide those that went wrong in one.
        broken = compare_figures(own) or self._find_broken(own)
        losses = {} if broken else self._losses()
        worse = "" if broken else self._find_worse(own, losses)
        means = self._mean(own)
        rate = float(state.optimizer.param_groups[0]["lr"])
        if self._agree(bool(broken)):
            self._roll_back(monitor, broken or "in another process", means, rate, by_rate=False)
        elif self._agree(bool(worse)):
            self._roll_back(monitor, worse or "in another process", means, rate, by_rate=True)
        else:
            monitor.write(clock, self._stage_name(), means, self.progress(), rate)
            if regular:
                self._note_good(monitor, losses)
            self._good = self._begun = state.snapshot()
            if state.record.norm_step == clock.step:
                self._older = self._good

    def _losses(self) -> dict[str, float]:
        """Return the losses of the fixed images, by the weights and by their averages."""
        models: dict[str, Any] = {"weights": self.state.model, "average": self.state.average.module}
        # Compiled networks would be compiled again for this size of batch.
        eager = torch.compiler.set_stance("force_eager") if self.config.training.compile else nullcontext()
        with eager, self.fabric.autocast():
            return {
                f"{which} {name}": value
                for which, model in models.items()
                for name, value in self.probe.losses(model, self.state.objective).items()
            }

    def _find_broken(self, figures: dict[str, float]) -> str:
        """Return what no training can have done to the state, which may be a fault that passes; empty if nothing is."""
        state = self.state
        if name := find_not_finite(state.capture()):
            return f"{name} is not finite"
        for which, module, prefix in (("model", state.model, ""), ("average", state.average.module, "module.")):
            weights = {f"{prefix}{name}": weight for name, weight in module.named_parameters()}
            if name := find_vanished(weights, self._begun[which]):
                return f"{which}.{name} lost its values"
        before, norm = self._begun["optimizer"]["state"], figures.get("grad_norm", math.inf)
        if has_grown_moments(state.optimizer, before, norm, self.config.training.betas[1]):
            return "the optimizer's second moments are larger than its gradients make them"
        return ""

    def _find_worse(self, figures: dict[str, float], losses: dict[str, float]) -> str:
        """Return what shows that a finite state has diverged; empty if nothing does."""
        record = self.state.record
        if worse := compare_figures(figures, self.config.contrastive.gap_bound):
            return worse
        if worse := compare_losses(losses, record.best, min_best=self._min_best()):
            return worse
        norm, steps = weight_norm(self.state.model), self.state.clock.step - record.norm_step
        if norm > MAX_GROWTH * record.norm:
            return f"the weights grew {norm / max(record.norm, 1e-12):.3g}-fold in {steps} steps"
        # No average of weights is larger than the largest of them.
        average = weight_norm(self.state.average.module)
        return (
            f"the averages are {average / norm:.3g} times the weights"
            if average > MAX_GROWTH * max(norm, record.norm)
            else ""
        )

    def _note_good(self, monitor: Monitor, losses: dict[str, float]) -> None:
        """Move on what the run is compared with; raise a lowered learning rate again if the rate was not to blame."""
        clock, record = self.state.clock, self.state.record
        record.best = {name: min(value, record.best.get(name, value)) for name, value in losses.items()}
        if clock.step - record.norm_step >= REFERENCE_STEPS:
            record.norm, record.norm_step = weight_norm(self.state.model), clock.step
        record.good_checks += 1
        if record.good_checks >= RECOVERY_CHECKS:
            record.in_a_row, record.raised_from = 0, 0.0
            if clock.rate_scale < record.rate_limit:
                record.raised_from, record.good_checks = clock.rate_scale, 0
                clock.rate_scale = record.rate_limit
                share = f"{clock.rate_scale:g} of" if clock.rate_scale < 1 else "that of"
                monitor.event(
                    clock, f"sound for {RECOVERY_CHECKS} checks: learning rate raised again to {share} the settings"
                )

    def _roll_back(self, monitor: Monitor, why: str, means: dict[str, float], rate: float, *, by_rate: bool) -> None:
        """Return to a good state with a lower learning rate, or end the stage there after too many in a row.

        Args:
            monitor: Of the run.
            why: What was found.
            means: Figures of the stretch.
            rate: Its learning rate.
            by_rate: Too large a rate shows so: it will not be tried again. What is not finite may be a fault that passes.
        """
        clock, record, before = self.state.clock, self.state.record, self.state.clock.rate_scale
        # What is not finite was not there before; but a good state that leads to it again and again was none.
        lost = self._restore(self._older if by_rate or record.in_a_row >= 2 else self._good)
        record.rollbacks, record.good_checks = record.rollbacks + 1, 0
        clock.rate_scale = record.raised_from or clock.rate_scale / DIVISORS[min(record.in_a_row, len(DIVISORS) - 1)]
        if by_rate or record.raised_from:
            record.rate_limit = clock.rate_scale
        record.raised_from, record.in_a_row = 0.0, record.in_a_row + 1
        figures = ", ".join(f"{name} {value:.4g}" for name, value in means.items() if name != "images_per_second")
        stage = self._stage_name()
        message = f"the {stage} stage diverged at step {clock.step} ({why}; {figures}): {lost} steps back, "
        if record.in_a_row >= MAX_IN_A_ROW:
            monitor.event(clock, message + f"stage ended after {record.in_a_row} divergences in a row")
            clock.diverged += 1
            self._start_stage(clock.stage + 1)
        else:
            monitor.event(clock, message + f"learning rate lowered to {rate * clock.rate_scale / before:.3g}")

    def _restore(self, saved: dict[str, Any]) -> int:
        """Return to a snapshot and to what it is compared with; return the steps that this undoes."""
        clock, record, was = self.state.clock, self.state.record, saved["record"]
        self.state.restore(saved, clock=False)
        self._begun = saved
        lost: int = clock.step - saved["clock"]["step"]
        record.best, record.norm, record.norm_step = dict(was["best"]), was["norm"], clock.step
        record.lost_steps = was["lost_steps"] + lost
        return lost

    def _settle(self) -> None:
        """At the end of a stage or run that was not sound again after a divergence, take the last state that was."""
        record = self.state.record
        if record.in_a_row and not record.good_checks:
            self._restore(self._good)

    def _judge_end(self, monitor: Monitor) -> None:
        """Note where the averages are worse than the best there was, though not so much that the run went back."""
        losses = {name: value for name, value in self._losses().items() if name.startswith("average")}
        self._worse_end = compare_losses(losses, self.state.record.best, MAX_LAST_RATIO, self._min_best())
        if self._worse_end:
            monitor.event(self.state.clock, f"at the end {self._worse_end}")

    def _min_best(self) -> float:
        return MIN_BEST if self.config.noise.weighting == "edm" else 0.0

    def _stage_name(self) -> str:
        return self.config.stages[min(self.state.clock.stage, len(self.config.stages) - 1)].objective

    def problems(self) -> tuple[str, ...]:
        """Return why the model is not what such a run should give; empty if nothing is known."""
        clock, record = self.state.clock, self.state.record
        found = []
        if clock.diverged:
            found.append(
                f"{counted(clock.diverged, 'training stage')} ended by divergence, each at its last good state"
            )
        if record.lost_steps > MAX_LOST * clock.step:
            found.append(f"{record.lost_steps:,} of {clock.step:,} steps diverged and were thrown away")
        if clock.rate_scale < MIN_RATE:
            found.append(f"only {clock.rate_scale:.2g} of the learning rate did not diverge")
        if self._worse_end:
            found.append(f"at the end {self._worse_end}")
        if not self._calibrated:
            found.append("calibration gave values that are not finite; the model has none")
        return tuple(found)

    def _agree(self, value: float | bool) -> Any:
        """Return the largest of the processes' values: they must all stop, or go back, at the same step."""
        if self.fabric.world_size == 1:
            return value
        largest = self.fabric.all_reduce(torch.tensor(float(value), device=self.fabric.device), reduce_op="max")
        return type(value)(float(largest))  # type: ignore[arg-type]

    def _mean(self, figures: dict[str, float]) -> dict[str, float]:
        """Return means over the processes, each of which knows its slice of the batches only."""
        if self.fabric.world_size == 1:
            return figures
        # The clock is one process's own, and the log is written by the first.
        names = [name for name in figures if name != "images_per_second"]
        values = torch.tensor([figures[name] for name in names], dtype=torch.float64, device=self.fabric.device)
        means = self.fabric.all_reduce(values, reduce_op="mean")
        return figures | dict(zip(names, means.tolist(), strict=True))  # type: ignore[union-attr]

    # -- results ----------------------------------------------------------------------------------------------------

    def evaluation_model(self, *, final: bool) -> DenoisingEBM:
        """Return the averaged weights as a calibrated model in eval mode; at the end its density network is normalised."""
        if final and self._final is not None:
            return self._final
        config = self.config
        if config.sampling.pixel.drift == "density" and not self._has_fitted_density():
            # Until then its energy is that of random weights.
            pixel = replace(config.sampling.pixel, drift="denoiser")
            config = replace(config, sampling=replace(config.sampling, pixel=pixel))
        model = new_model(config, self._model_metadata()).to(self.fabric.device)
        model.preprocessing = self.state.preprocessing
        model.load_state_dict(self.state.average.module.state_dict())
        model.eval().set_precision(self.hardware["precision"])
        calibrate(model, to_float(self.val_images), seed=self.config.training.seed)
        if model.density is not None and self._has_fitted_density():
            # That of the weights that the run began with is not that of these.
            model.density.log_z.fill_(float("nan"))
        if final and self._has_fitted_density() and len(self.val_images):
            # A few per cent of the run's passes at most: a trial of seconds ends in seconds.
            count = min(64, max(2, self.state.clock.images_seen // 250))
            seed = self.config.training.seed
            found = normalise(model, to_float(self.val_images), images_per_level=count, seed=seed)
            model.metadata["standard error of log Z at the smallest level, nats"] = round(
                float(found.standard_error[-1]), 1
            )
        reference = model.reference if len(self.val_images) else model.jacobian_norm
        self._calibrated = bool(model.jacobian_norm.isfinite() & reference.isfinite().all())
        if not self._calibrated:
            # As in a model that was never calibrated.
            model.jacobian_norm.fill_(1.0)
            model.reference.fill_(float("nan"))
        if final:
            self._final = model
        return model

    def _has_fitted_density(self) -> bool:
        """Say whether a stage so far trained the density network."""
        begun = self.config.stages[: self.state.clock.stage + 1]
        contrasted = self.config.contrastive.energy == "density"
        return any(each.objective == "energy" or (contrasted and each.objective == "contrastive") for each in begun)

    def _model_metadata(self) -> dict[str, Any]:
        clock, past = self.state.clock, self.state.past
        metadata = {**self.metadata, "images seen": clock.images_seen, "minutes": round(clock.seconds / 60, 1)}
        if clock.diverged:
            metadata["stages ended by divergence"] = clock.diverged
        if self.state.record.rollbacks:
            metadata["divergences"] = self.state.record.rollbacks
        if not past:
            return metadata
        # The weights have seen what the initial model saw, too.
        totals = {
            "images seen": clock.images_seen + past["images seen"],
            "minutes": metadata["minutes"] + past["minutes"],
        }
        return {**metadata, **totals, "images seen by the initial model": past["images seen"]}

    def save(self, monitor: Monitor, *, final: bool) -> None:
        """Write the model folder, the state and previews; the state is healthy whenever this is called.

        Previews come last: no failure of theirs loses a state. Whatever fails before, the run goes on from the state before.
        """
        if self.fabric.global_rank == 0:
            model, clock = self.evaluation_model(final=final), self.state.clock
            if not self._calibrated:
                monitor.event(clock, "calibration gave values that are not finite: the model is saved without")
            if len(self.val_images):
                held_out = to_float(self.val_images).to(model.device)
                losses = {"validation_loss": validation_loss(model.denoise, held_out, self.config)}
                model.metadata["held-out denoising loss"] = round(losses["validation_loss"], 5)
                if self._has_fitted_density():
                    energy = model.pixel_energy("density")
                    loss = validation_loss(lambda x, sigma: energy.denoise(x, sigma)[1], held_out, self.config)
                    losses["validation_loss_density"] = loss
                    model.metadata["held-out denoising loss of the energy's gradient"] = round(loss, 5)
                monitor.record(clock, losses)
            model.save_pretrained(self.folder / MODEL_FOLDER)
            monitor.sync()
            save_state(self.state, self.config, self.folder, self.images, self.hardware)
            if self.config.training.sample_minutes or final:
                save_sample_images(model, self.val_images, self.folder / SAMPLES_FOLDER, clock.images_seen)
        self.fabric.barrier()


def _fabric(device: torch.device, precision: Precision, several_parts: bool) -> Fabric:
    # Fabric's own defaults start independent runs under torchrun on CPUs, silently; so take its counts and check.
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    # It announces its precision plugin on stderr, which the model card says anyway.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    strategy: str | DDPStrategy = "auto"
    if processes * nodes > 1:
        # Each stage of a model with a density network trains one part of it, and would wait for gradients of the other.
        strategy = DDPStrategy(find_unused_parameters=True) if several_parts else "ddp"
    fabric = Fabric(
        accelerator="cuda" if device.type == "cuda" else "cpu",
        devices=[device.index] if device.type == "cuda" and device.index is not None and processes == 1 else processes,
        num_nodes=nodes,
        strategy=strategy,
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )
    fabric.launch()
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if fabric.world_size != expected:
        raise RuntimeError(f"the launcher started {expected} processes, but Fabric sees {fabric.world_size}")
    return fabric
