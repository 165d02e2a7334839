"""`debm demo`: all of it, on the bundled images."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from denoising_ebm.cli.common import note

HELP = "train, sample and score on the bundled images; ends with a report"
USAGE = "debm demo [--out DIR] [--minutes M] [options]"
DESCRIPTION = """\
Train on the bundled Fashion-MNIST images, draw samples in two stages, find odd images, and write DIR/report.html.

An unfinished demo in DIR is continued. A finished one is not trained again; only its report is rebuilt."""
EPILOG = """\
Examples:
  debm demo
  debm demo --minutes 2 --out runs/short
  debm demo --overwrite"""

_MINUTES, _FAST_MINUTES = 7.0, 1 / 3


def add(parser: ArgumentParser, argv: list[str]) -> None:
    """Add the options."""
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="folder for the run and the report")
    parser.add_argument(
        "--minutes",
        type=float | None,
        metavar="M",
        help=f"minutes of training (default: {_MINUTES:g}); the rest takes about two more",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of weights, training and samples")
    parser.add_argument(
        "--fast", action="store_true", help="20 seconds of training and few images: to see that it runs"
    )
    parser.add_argument("--overwrite", action="store_true", help="delete the demo in DIR and start anew")
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N; auto takes a GPU if any"
    )


def run(args: Namespace) -> int:
    """Run the demo and show its table."""
    minutes = args.minutes if args.minutes is not None else _FAST_MINUTES if args.fast else _MINUTES
    if minutes <= 0:
        raise ValueError(f"--minutes must be > 0, got {minutes:g}")
    from denoising_ebm.experiments.demo import FAST, FULL, run_demo

    result = run_demo(
        Path(args.out),
        minutes=minutes,
        seed=args.seed,
        device=args.device,
        sizes=FAST if args.fast else FULL,
        overwrite=args.overwrite,
        log=note,
    )
    if result is None:
        note(f"stopped and saved; the same command continues in {args.out}")
        return 130
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title="AUROC: 1 = the odd images are always found, 0.5 = chance", box=SIMPLE_HEAD)
    for i, column in enumerate(result.table.columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in result.table.rows:
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    Console().print(table)
    print(f"report: {result.report}")
    print(f"model:  {Path(args.out) / 'run'} (try: debm sample {Path(args.out) / 'run'})")
    return 0
