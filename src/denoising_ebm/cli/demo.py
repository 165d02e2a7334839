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
    threads: int | None = None,
    overwrite: bool = False,
    device: str = "auto",
) -> int:
    """Train, sample and score on the bundled images.

    Trains on Fashion-MNIST, draws samples and detects OOD images; trains on photos of paper, finds impurities and repairs
    them; and writes report.html into the folder --out.

    An unfinished demo in that folder is continued. A finished one is not trained again; only its report is rebuilt.

    Examples:
        debm demo
        debm demo --minutes 2 --out runs/short
        debm demo --overwrite

    Args:
        out: Folder for the run and the report.
        minutes: Minutes of training on Fashion-MNIST, by default 7. The rest takes about six more on two cores.
        seed: Seed of weights, training and samples.
        fast: 20 seconds of training and few images, to see that it runs.
        threads: Threads on the CPU, by default as many as are free: measured before training and after it.
        overwrite: Delete the demo in the folder and start anew.
        device: auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.
    """
    minutes = minutes if minutes is not None else 1 / 3 if fast else 7.0
    check_positive(minutes=minutes)
    if threads is not None:
        check_positive(threads=threads)
    from denoising_ebm.experiments.demo import FAST, FULL, run_demo
    from denoising_ebm.utils.lock import locked
    from denoising_ebm.utils.progress import progress_bar
    from denoising_ebm.viz.report import print_table

    try:
        with locked(out, "debm demo"):
            result = run_demo(
                out,
                minutes=minutes,
                seed=seed,
                device=device,
                sizes=FAST if fast else FULL,
                threads=threads,
                overwrite=overwrite,
                log=note,
                bar=progress_bar,
            )
    except KeyboardInterrupt:
        note(f"stopped; the same command continues in {out}")
        return 130
    print_table(result.table)
    print(f"\nreport: {result.report}\nphotos: {out / 'photos' / 'index.html'}")
    print(f"model:  {out / 'run'} (try: debm sample {out / 'run'})")
    return 0
