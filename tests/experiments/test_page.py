from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from denoising_ebm.experiments.experiment import Experiment, Images
from denoising_ebm.experiments.run import STUDIES, Study, reproduce
from denoising_ebm.viz.plots import png_bytes
from denoising_ebm.viz.report import Picture, Section, Table
from support import Projections, random_pixels


def test_the_page_shows_what_earlier_commands_finished(tmp_path: Path) -> None:
    """In the order of the paper, with both commands, as long as the images are the same."""
    picture = Picture(png_bytes(Image.new("L", (8, 8), 7)), "a caption", "a text")
    table = Table(["sampler", "FD"], [["two-stage", 1.5], ["none", None]], "distances")
    studies: dict[str, Study] = {
        **STUDIES,
        "figure5": lambda _: Section("Figure 5", "chains", pictures=[picture]),
        "table1": lambda _: Section("Table 1", "samples", table),
        # The second set is not there the second time: what was measured on it stands.
        "table2": lambda _: Section("Table 2", "of the second set"),
    }
    images, out = Images("x", random_pixels(30, size=32), random_pixels(30, size=32)), tmp_path / "out"

    def page_of(target: str, images: Images = images, second: bool = False) -> str:
        options: dict[str, Any] = {"extractor": Projections(), "device": "cpu"}
        experiment = Experiment(out, "tiny", images, **options)
        other = Experiment(out / "second", "tiny", images, **options) if second else None
        reproduce([target], experiment, second=other, command=f"debm reproduce {target}", studies=studies)
        assert [path.name for path in (out / "pictures").glob("*")] == ["1.png"]
        return (out / "results.md").read_text()

    alone = page_of("figure5")
    both = page_of("table1")
    assert "- command: debm reproduce table1; debm reproduce figure5\n" in both
    assert both.count("- images: x: 30 to train on, 30 test images\n") == 1
    assert both.index("## Table 1") < both.index("## Figure 5") and "| none | – |" in both
    assert alone[alone.index("## Figure 5") :] == both[both.index("## Figure 5") :]
    assert (out / "pictures" / "1.png").read_bytes() == picture.png
    assert "of the second set" in page_of("table2", second=True)
    assert "of the second set" in page_of("table2") and "No second set" not in page_of("table2")
    # Of other images under the same name.
    studies["figure5"] = lambda _: Section("Figure 5", "others", pictures=[picture])
    others = page_of("figure5", Images("x", random_pixels(30, seed=5, size=32), random_pixels(30, size=32)))
    assert "## Figure 5" in others and "## Table 1" not in others
