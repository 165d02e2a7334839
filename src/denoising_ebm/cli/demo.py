"""`debm demo`."""

from __future__ import annotations

from pathlib import Path

from denoising_ebm.cli.common import check_positive, note


def demo(
    *,
    out: Path = Path("runs/demo"),
    minutes: float | None = None,
    seed: int = 0,
    fast: bool = False,
    overwrite: bool = False,
    device: str = "auto",
) -> int:
    """Train, sample and score on the bundled images.

    Trains on Fashion-MNIST, draws samples in two stages, finds anomalous images, and writes report.html into the
    folder --out.

    An unfinished demo in that folder is continued. A finished one is not trained again; only its report is rebuilt.

    Examples:
        debm demo
        debm demo --minutes 2 --out runs/short
        debm demo --overwrite

    Args:
        out: Folder for the run and the report.
        minutes: Minutes of training, by default 7. The rest takes about two more.
        seed: Seed of weights, training and samples.
        fast: 20 seconds of training and few images, to see that it runs.
        overwrite: Delete the demo in the folder and start anew.
        device: auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.
    """
    minutes = minutes if minutes is not None else 1 / 3 if fast else 7.0
    check_positive(minutes=minutes)
    from denoising_ebm.experiments.demo import FAST, FULL, run_demo

    result = run_demo(
        out, minutes=minutes, seed=seed, device=device, sizes=FAST if fast else FULL, overwrite=overwrite, log=note
    )
    if result is None:
        note(f"stopped and saved; the same command continues in {out}")
        return 130
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title="AUROC: 1 = OOD images are always found, 0.5 = chance", box=SIMPLE_HEAD)
    for i, column in enumerate(result.table.columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in result.table.rows:
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    Console().print(table)
    print(f"report: {result.report}")
    print(f"model:  {out / 'run'} (try: debm sample {out / 'run'})")
    return 0
