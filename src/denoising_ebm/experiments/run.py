"""Studies run one after the other, each onto the page of their folder as soon as it is finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from denoising_ebm.experiments.cache import Log, settings_hash
from denoising_ebm.experiments.experiment import Experiment
from denoising_ebm.experiments.figures import figure4, figure5, speed
from denoising_ebm.experiments.page import Page
from denoising_ebm.experiments.tables import classes, table1, table2, table3, table4
from denoising_ebm.viz.report import Section

Study = Callable[[Experiment], Section]
STUDIES: dict[str, Study] = {
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "classes": classes,
    "figure4": figure4,
    "figure5": figure5,
    "speed": speed,
}
_NO_SECOND = Section("Table 2: samples of the second set", "No second set was given: add --second DATA.")


def reproduce(
    targets: Sequence[str],
    experiment: Experiment,
    *,
    second: Experiment | None = None,
    command: str = "",
    studies: Mapping[str, Study] = STUDIES,
    log: Log = lambda message: None,
) -> tuple[Path, list[str]]:
    """Run studies and write `index.html`, `results.md` and its pictures; rows that are finished are not run again.

    The page shows the studies that were finished in this folder before, too.

    Args:
        targets: Names in `studies`, at least one.
        experiment: What they look at; its folder gets the page. One for all, which share its samples and models.
        second: What table 2 looks at, best in a folder within that folder.
        command: Shown on the page.
        studies: In the order of the page.
        log: Told of studies that fail.

    Returns:
        The page, and the targets that could not be made: the page says why, and the others were.
    """
    sources = {name: second if name == "table2" else experiment for name in studies}
    given = [source for source in (experiment, second) if source is not None]
    for each in given:
        # So that a training that is interrupted before the first row is found again.
        each.cache.begin()
    hashes = {name: settings_hash(source.depends) for name, source in sources.items() if source is not None}
    page = Page(experiment.cache.folder, list(studies), _metadata(given, command), hashes)
    failed: list[str] = []
    for target in targets:
        source = sources[target]
        # After each study the page is written: those of hours before must not wait for the last.
        try:
            if source is not None:
                page.add(target, studies[target](source))
            elif target not in page:
                page.add(target, _NO_SECOND, keep=False)
        except (ValueError, FileNotFoundError) as error:
            log(f"{target}: left out: {error}")
            failed.append(target)
            page.add(target, Section(target.capitalize(), f"Left out: {error}"), keep=False)
    return page.path, failed


def _metadata(experiments: Sequence[Experiment], command: str) -> dict[str, list[str]]:
    """Return what stands on top of the page."""
    from denoising_ebm import __version__

    settings = experiments[0].cache.settings
    sets = [(source.images.name, len(source.images.train), len(source.images.test)) for source in experiments]
    lines = {
        "command": [command],
        "version": [f"denoising-ebm {__version__}"],
        "hardware": [experiments[0].hardware],
        "scale": [str(settings["scale"])],
        "seed": [str(settings["seed"])],
        "images": [f"{name}: {train:,} to train on, {test:,} test images" for name, train, test in sets],
        "model": [str(settings["model"])],
    }
    return {name: values for name, values in lines.items() if any(values)}
