"""Run `debm` with a fault in its training.

    python benchmarks/reliability/spoil.py FAULT:STEP[:TIMES] train DATA --out RUN ...

At optimizer step STEP (from 1, in this process) the fault happens, and at TIMES steps in all (1; 0: from then on):

    batch-nan       a pixel of the batch is NaN
    grad-nan        a gradient is NaN after clipping
    weight-nan, weight-inf, weight-big    a weight is NaN, infinite or 1e30 after the step
    weight-noise    all weights are replaced by N(0, 1)
    weight-zero, weight-small, weight-sign    all weights are 0, a thousandth, or of the other sign
    decoder-noise   so are those of the semantic decoder alone
    average-nan, average-big    an averaged weight is NaN or 1e30
    average-zero    all averaged weights are 0
    adam-nan        a first moment is NaN
    adam-inf, adam-secondnan    a second moment is infinite or NaN
    adam-huge       all second moments are a million million times too large
    adam-zero       all second moments are 0
    batch-big, batch-black, batch-noise    the batch holds a pixel of 1e10, is black, or is noise
    whitening-nan   the covariance of codes holds a NaN
    chains-nan      a persistent chain holds a NaN
    jacobian-nan    the calibrated step length in z is NaN (at every calibration from that step on)
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from denoising_ebm.cli import main
from denoising_ebm.training import batches, calibration, trainer


def install(fault: str) -> None:
    """Patch the trainer of this process."""
    what, *numbers = fault.split(":")
    first, times = int(numbers[0]), int(numbers[1]) if len(numbers) > 1 else 1
    done = 0

    def due() -> bool:
        return done >= first and (times == 0 or done < first + times)

    inner_step, inner_draw, inner_calibrate = trainer._Run._step, batches.draw_batch, calibration.calibrate

    def step(run: Any, pixels: Tensor, progress: float) -> dict[str, Tensor]:
        nonlocal done
        done += 1
        optimizer = run.state.optimizer
        if what == "grad-nan" and due():
            take = optimizer.step

            def once(*arguments: Any, **options: Any) -> Any:
                gradients = [p.grad for p in run.state.model.parameters() if p.grad is not None]
                _first(gradients[0]).fill_(float("nan"))
                optimizer.step = take
                return take(*arguments, **options)

            optimizer.step = once
        figures = inner_step(run, pixels, progress)
        if due():
            with torch.no_grad():
                _spoil(run.state, what)
        return figures

    def draw(*arguments: Any, **options: Any) -> Any:
        drawn = inner_draw(*arguments, **options)
        if what == "batch-nan" and due():
            for batch in drawn:
                _first(batch.x0).fill_(float("nan"))
        for batch in drawn if due() else ():
            if what == "batch-big":
                _first(batch.x0).fill_(1e10)
            elif what == "batch-black":
                batch.x0.fill_(-1)
            elif what == "batch-noise":
                batch.x0.uniform_(-1, 1)
        return drawn

    def calibrate(model: Any, *arguments: Any, **options: Any) -> None:
        inner_calibrate(model, *arguments, **options)
        if what == "jacobian-nan" and done >= first:
            model.jacobian_norm.fill_(float("nan"))

    for place, name, new in (
        (trainer._Run, "_step", step),
        (trainer, "draw_batch", draw),
        (trainer, "calibrate", calibrate),
    ):
        setattr(place, name, new)


def _spoil(state: Any, what: str) -> None:
    kind = {"nan": float("nan"), "inf": float("inf"), "big": 1e30}.get(what.partition("-")[2], 0.0)
    if what in ("weight-nan", "weight-inf", "weight-big"):
        _first(_largest(state.model)).fill_(kind)
    if what in ("average-nan", "average-big"):
        _first(_largest(state.average.module)).fill_(kind)
    if what in ("weight-noise", "decoder-noise"):
        for weight in (state.model if what == "weight-noise" else state.model.decoder).parameters():
            weight.normal_()
    if what in ("weight-zero", "weight-small", "weight-sign", "average-zero"):
        for weight in (state.average.module if what == "average-zero" else state.model).parameters():
            weight.mul_({"weight-small": 1e-3, "weight-sign": -1.0}.get(what, 0.0))
    if what in ("adam-huge", "adam-zero"):
        for moments in state.optimizer.state.values():
            moments["exp_avg_sq"].mul_(1e12 if what == "adam-huge" else 0.0)
    if what == "adam-secondnan":
        _first(next(iter(state.optimizer.state.values()))["exp_avg_sq"]).fill_(float("nan"))
    if what in ("adam-nan", "adam-inf"):
        moments = next(iter(state.optimizer.state.values()))
        _first(moments["exp_avg" if what == "adam-nan" else "exp_avg_sq"]).fill_(kind)
    if what == "whitening-nan":
        state.model.dae.unet.whitening.covariance[0, 0] = kind
    if what == "chains-nan":
        for rows in state.objective.state_dict().values():
            rows[:1] = kind


def _first(tensor: Tensor) -> Tensor:
    return tensor[(0,) * tensor.ndim]


def _largest(module: nn.Module) -> Tensor:
    return max(module.parameters(), key=lambda weight: weight.numel())


if __name__ == "__main__":
    install(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
