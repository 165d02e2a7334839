"""What is written of an inspection: tables, files and the page."""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
import pytest
import torch
from PIL import Image

from denoising_ebm.inspection.metrics import Record, evaluate_maps
from denoising_ebm.inspection.page import About, InspectionFolder, as_picture, difference, marked, overlay
from denoising_ebm.inspection.regions import find_regions
from denoising_ebm.inspection.results import InspectedPhoto

ABOUT = About("runs/a", "photos <1>", 0.1, 19, 2.0, "debm inspect")
MAXIMA = torch.linspace(0, 2, 19).double()


def inspected(name: str, spots: int, *, channels: int = 1, repaired: bool = False) -> InspectedPhoto:
    values = torch.zeros(20, 30)
    for i in range(spots):
        values[4 : 7 + i, 5 + 10 * i : 8 + 10 * i] = 5 + i
    x = torch.linspace(-1, 1, channels * 600).reshape(channels, 20, 30)
    mask, regions = find_regions(values, MAXIMA, 0.1)
    truth = values > 0
    return InspectedPhoto(
        name=name,
        x=x,
        kind="spot" if spots else "good",
        is_normal=not spots,
        notes=("gray, taken as colour",) if channels == 3 else (),
        score=float(values.max()),
        p_value=0.05 if spots else 1.0,
        map=values,
        mask=mask,
        regions=regions,
        truth=truth,
        repaired=x - 0.5 * truth if repaired else None,
    )


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("href", "src") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(folder: Path, **options: str) -> InspectionFolder:
    with InspectionFolder(folder, ABOUT, **options) as written:  # type: ignore[arg-type]
        written.add(inspected("good/a.png", 0))
        written.add(inspected("spot/b & c.png", 2, channels=3, repaired=True))
        written.add_unreadable("spot/=d.png", "is cut off")
    return written


def test_tables_hold_what_was_found(tmp_path: Path) -> None:
    written = write(tmp_path)
    assert (written.count, written.num_flagged, written.num_unreadable) == (2, 1, 1)
    good, spot, lost = rows_of(tmp_path / "photos.csv")
    assert (good["name"], good["flagged"], good["regions"], good["area_share"]) == ("good/a.png", "false", "0", "0.0")
    assert (spot["flagged"], spot["regions"], spot["width"], spot["height"]) == ("true", "2", "30", "20")
    assert float(spot["area_share"]) == pytest.approx(21 / 600, abs=1e-6)
    assert (spot["score"], spot["map_max"], spot["p_value"]) == ("6.0", "6.0", "0.05")
    assert spot["notes"] == "gray, taken as colour"
    assert (lost["name"], lost["status"], lost["notes"]) == ("spot/=d.png", "unreadable", "is cut off")
    first, second = rows_of(tmp_path / "regions.csv")
    assert [first[key] for key in ("region", "peak", "area", "top", "left", "bottom", "right")] == (
        ["1", "6.0", "12", "4", "15", "8", "18"]
    )
    assert [second[key] for key in ("region", "area", "top", "left")] == ["2", "9", "4", "5"]


def test_masks_and_maps_are_those_of_the_photo(tmp_path: Path) -> None:
    write(tmp_path)
    mask = np.asarray(Image.open(tmp_path / "masks/spot/b & c.png"))
    photo = inspected("", 2)
    np.testing.assert_array_equal(mask, 255 * photo.mask.numpy().astype(np.uint8))
    np.testing.assert_array_equal(np.load(tmp_path / "maps/spot/b & c.npy"), photo.map.numpy())
    write(tmp_path / "tiff", maps="tiff")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "tiff/maps/good/a.tiff")), np.zeros((20, 30)))
    write(tmp_path / "none", maps="none")
    assert not (tmp_path / "none/maps").exists()


def test_the_page_links_to_files_that_exist_and_shows_names_as_they_are(tmp_path: Path) -> None:
    written = write(tmp_path)
    written.add_metrics(
        evaluate_maps([Record("good", True, 0.1, name="a"), Record("spot", False, 2.0, name="b")], resamples=10)
    )
    written.write_page()
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    page = Links()
    page.feed(html)
    assert len([link for link in page.found if link.endswith(".png")]) >= 8
    for link in page.found:
        assert (tmp_path / unquote(link)).is_file(), link
        assert "://" not in link
    assert "1 of 2 photos flagged" in page.text
    assert "photos <1>" in page.text
    assert "spot/b & c.png" in page.text
    assert "<1>" not in html
    assert "12 pixels at row 4, column 15" in page.text
    assert rows_of(tmp_path / "metrics.csv")[0]["image_auroc"] == "1.0"


def test_what_is_done_stays_when_it_ends_early(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), InspectionFolder(tmp_path, ABOUT) as written:
        written.add(inspected("a.png", 1))
        raise RuntimeError
    assert len(rows_of(tmp_path / "photos.csv")) == 1
    assert "1 of 1 photos flagged" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_photos_of_one_name_in_two_formats_have_files_of_their_own(tmp_path: Path) -> None:
    with InspectionFolder(tmp_path, ABOUT) as written:
        written.add(inspected("a.jpg", 0))
        written.add(inspected("a.jpg.png", 1))
    assert len(list((tmp_path / "masks").iterdir())) == 2


def test_an_overlay_leaves_what_is_usual_gray_and_makes_the_threshold_red() -> None:
    values = torch.zeros(4, 4)
    values[0, 0], values[3, 3] = 2.0, 1.0
    pixels = np.asarray(overlay(Image.new("RGB", (4, 4), (100, 100, 100)), values, 2.0)).astype(int)
    np.testing.assert_array_equal(pixels[1, 1], [100, 100, 100])
    np.testing.assert_array_equal(pixels[3, 3], [100, 100, 100])
    assert pixels[0, 0, 0] > 180
    assert pixels[0, 0, 2] < 50


def test_a_difference_is_gray_where_nothing_changed() -> None:
    x = torch.zeros(1, 1, 2)
    repaired = x.clone()
    repaired[0, 0, 1] = -0.4
    assert np.asarray(difference(x, repaired)).tolist() == [[127, 178]]


def test_of_many_bands_three_are_shown_and_it_is_said() -> None:
    picture, note = as_picture(torch.linspace(-1, 1, 5)[:, None, None].expand(5, 2, 2))
    assert note == "the page shows bands 1 to 3 of 5"
    assert picture.getpixel((0, 0)) == (0, 64, 128)
    assert as_picture(torch.zeros(1, 2, 2))[0].getpixel((0, 0)) == (128, 128, 128)


def test_a_suffix_in_capitals_takes_no_other_photos_map(tmp_path: Path) -> None:
    with InspectionFolder(tmp_path, ABOUT) as written:
        written.add(inspected("a.png", 0))
        written.add(inspected("a.PNG", 1))
    maxima = [float(np.load(path).max()) for path in (tmp_path / "maps").iterdir()]
    assert sorted(maxima) == [0, 5]


def test_all_regions_are_counted_and_the_first_are_shown(tmp_path: Path) -> None:
    values = torch.zeros(40, 40)
    values[2::8, 2::8] = 5
    mask, regions = find_regions(values, MAXIMA, 0.1)
    photo = replace(inspected("a.png", 1), x=torch.zeros(1, 40, 40), map=values, mask=mask, regions=regions, truth=None)
    with InspectionFolder(tmp_path, ABOUT) as written:
        written.add(photo)
    page = Links()
    page.feed((tmp_path / "index.html").read_text(encoding="utf-8"))
    text = " ".join(page.text.split())
    assert "25 regions, the first 8 shown: 1 pixels at row 2, column 2" in text
    assert text.count("pixels at row") == 8
    assert "blue for what is known" not in text
    assert len(rows_of(tmp_path / "regions.csv")) == 25


@pytest.mark.skipif(os.name == "nt", reason="names of files are Unicode there")
def test_names_that_are_not_unicode_or_turn_the_line_are_shown_and_linked(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.png")
    try:
        (tmp_path / name).touch()
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    with InspectionFolder(tmp_path, ABOUT) as written:
        written.add(replace(inspected(name, 1), kind="a\u202eb"))
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    page = Links()
    page.feed(html)
    assert "photos/%FF.png" in page.found
    assert all((tmp_path / os.fsdecode(unquote_to_bytes(link))).is_file() for link in page.found)
    assert "\\xff.png" in page.text
    assert "kind a\\u202eb" in page.text
    assert "\u202e" not in html


def test_a_box_at_the_border_keeps_all_its_sides() -> None:
    values = torch.zeros(20, 30)
    values[0, 0] = 5
    mask, regions = find_regions(values, MAXIMA, 0.1)
    photo = replace(inspected("a", 1), map=values, mask=mask, regions=regions, truth=None)
    pixels = np.asarray(marked(Image.new("RGB", (30, 20)), photo, 2.0))
    # One past the region's box of 0..1, two pixels further: sides at 0 and 3.
    for side in (pixels[0, 1:4], pixels[3, :4], pixels[1:4, 0], pixels[:4, 3]):
        assert (side == 255).all()
