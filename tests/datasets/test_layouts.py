from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoising_ebm.datasets.images import load_images
from denoising_ebm.datasets.layouts import (
    anomalous_folders,
    class_of,
    judged,
    parts_of_images,
    set_apart,
    split_named,
    words_of,
)
from denoising_ebm.datasets.listing import File
from denoising_ebm.datasets.preprocessing import Preprocessing
from denoising_ebm.datasets.sources import Source, open_source
from pictures import encoded, noise

PNG = encoded(noise(0, 4, 4), "PNG")


def fill(folder: Path, paths: Iterable[str]) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(PNG)
    return folder


def names(source: Source) -> list[str]:
    return [entry.name for entry in source.entries]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


# -- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *[(name, "train") for name in ("train", "Train", "TRAIN", "training", "Training Set", "train_images")],
        *[
            (name, "train")
            for name in ("images-train", "imgs.train", "train2017", "trainA", "TrainingImages", "DIV2K_train_HR")
        ],
        *[
            (name, "validation")
            for name in ("validation", "valid", "val", "dev", "val2017", "Val_Set", "VALID", "dev-clean")
        ],
        *[
            (name, "test")
            for name in (
                "test",
                "testing",
                "eval",
                "evaluation",
                "imgs_test",
                "test_public",
                "Testing 1",
                "imagesTs",
                "tst",
            )
        ],
        ("extra", "extra"),
        *[
            (name, None)
            for name in ("contest", "trains", "restrained", "value", "cats", "", "0", "train_val", "latest")
        ],
    ],
)
def test_names_of_parts(name: str, part: str | None) -> None:
    assert split_named(name) == part


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("TRAIN", "TEST"),
        ("training", "testing"),
        ("train_images", "test_images"),
        ("images-train", "images-test"),
        ("Training Set", "Evaluation Set"),
        ("images/train", "images/test"),
        ("a/train/b", "a/test/b"),
    ],
)
def test_parts_by_their_names(data: Path, train: str, test: str) -> None:
    fill(data, [f"{train}/cat/1.png", f"{train}/cat/2.png", f"{test}/cat/1.png"])
    for split in (None, "train", "training", "Train"):
        found = open_source(data, split)
        assert names(found) == [f"{train}/cat/1.png", f"{train}/cat/2.png"]
        assert (found.split, found.count) == ("train", 2)
        assert [entry.label for entry in found.entries] == ["cat"] * 2
    for split in (None, "test", "eval"):
        assert names(open_source(data, split, default_split="test")) == [f"{test}/cat/1.png"]
    for split in ("tets", "validation", "val", "", "cat"):
        with pytest.raises(FileNotFoundError, match=rf"data: no split '{split}'; splits found: test, train$"):
            open_source(data, split)
    assert open_source(data, "all").count == 3


def test_a_split_that_names_nothing_is_an_error_in_folders_without_parts_too(data: Path) -> None:
    fill(data, ["cat/1.png", "dog/2.png"])
    for default in ("train", "test"):
        assert open_source(data, default_split=default).count == 2
    for split in ("train", "test", "tets", "cat"):
        with pytest.raises(
            FileNotFoundError, match=rf"data: no split '{split}'; splits found: none; without --split all 2"
        ):
            open_source(data, split)
    # The folder itself may be the part.
    fill(data, ["val2017/1.png"])
    assert open_source(data / "val2017", "val").count == 1
    with pytest.raises(FileNotFoundError, match="no split 'test'"):
        open_source(data / "val2017", "test")
    with pytest.raises(FileNotFoundError, match="no split 'test': it is one file"):
        open_source(data / "cat" / "1.png", "test")


def test_the_outermost_part_decides(data: Path) -> None:
    fill(data, ["train/test/1.png", "train/good/2.png", "val/train/3.png", "val/test/4.png"])
    found = open_source(data)
    assert names(found) == ["train/good/2.png", "train/test/1.png"]
    assert [entry.label for entry in found.entries] == ["good", "test"]
    assert names(open_source(data, "valid")) == ["val/test/4.png", "val/train/3.png"]
    with pytest.raises(FileNotFoundError, match="no split 'test'; splits found: train, validation"):
        open_source(data, default_split="test")


def test_a_wrapping_folder_that_happens_to_name_a_part_does_not_decide(data: Path) -> None:
    fill(data, ["test_bench/train/1.png", "test_bench/test/2.png"])
    assert names(open_source(data)) == ["test_bench/train/1.png"]


def test_a_class_of_which_one_word_names_a_part_is_one(data: Path) -> None:
    """But for two such words, which may be parts of one set: nothing is taken for the other unsaid."""
    fill(data, ["airport/1.png", "train_station/2.png"])
    found = open_source(data)
    assert found.count == 2 and found.split is None
    assert [entry.label for entry in found.entries] == ["airport", "train_station"]
    fill(data, ["test_track/3.png"])
    for default in ("train", "test"):
        with pytest.raises(
            ValueError, match=r"holds a folder test_track/, which names a split, beside images .*airport"
        ):
            open_source(data, default_split=default)
    assert open_source(data, "all").count == 3


_NAMES = st.sampled_from(
    "train Test val2017 test_tube masks ground_truth labels good bad images a cat thumbs Data imgs_test no_mask mask".split()
)


@given(
    st.sets(
        st.tuples(st.lists(_NAMES, max_size=3), st.sampled_from(["1.png", "1_mask.png", "train_1.png", "b.jpg"])).map(
            lambda each: (*each[0], each[1])
        ),
        max_size=12,
    )
)
def test_every_image_is_in_one_place(paths: set[tuple[str, ...]]) -> None:
    """An image, a mask or a small copy; and an image in one part, with a class that is one of its folders."""
    files = [File(parts) for parts in sorted(paths)]
    found = set_apart(files)
    assert sorted([*found.images, *found.masks, *found.thumbnails]) == files
    parts = parts_of_images(found.images)
    assert len(parts) == len(found.images)
    for file, part in zip(found.images, parts, strict=True):
        assert not part.name or (file.parts[part.depth] == part.name and split_named(part.name) == part.split)
        assert class_of(file, part) in (None, *file.parts[:-1])
    # Where some folder says what is normal, something normal is left to learn from.
    anomalous = anomalous_folders(found.images)
    left = [f for f in found.images if not any(f.parts[:depth] in anomalous for depth in range(1, len(f.parts)))]
    assert left or not found.images


def test_one_of_several_folders_of_a_part_can_be_named(data: Path) -> None:
    fill(data, ["train2014/1.png", "train2017/2.png", "val2017/3.png"])
    assert names(open_source(data)) == ["train2014/1.png", "train2017/2.png"]
    assert names(open_source(data, "train2017")) == ["train2017/2.png"]


def test_names_of_files_are_parts_where_all_say_so(data: Path) -> None:
    fill(data, ["test_1.png", "train_1.png", "train_2.png"])
    assert names(open_source(data)) == ["train_1.png", "train_2.png"]
    assert names(open_source(data, "test")) == ["test_1.png"]
    fill(data, ["other.png"])
    assert open_source(data).count == 4
    # One camera's tests are no part.
    fill(data / "b", ["test_1.png", "test_2.png"])
    assert open_source(data / "b").count == 2


def test_parquet_parts(data: Path) -> None:
    fill(data, ["x-train.parquet", "Validation-00000-of-00001.parquet", "odd-00000-of-00001.parquet", "Test/0.parquet"])
    for split in ("train", "validation", "test", "odd"):
        # They are no Parquet files, which the reading of the right one says.
        with pytest.raises(
            ValueError, match=rf"(?i)data/{'x-' if split == 'train' else ''}{split}.*: cannot be read as"
        ):
            open_source(data, split)
    with pytest.raises(FileNotFoundError, match="no split 'dve'; splits found: odd, test, train, validation"):
        open_source(data, "dve")


# -- masks, thumbnails, other files -----------------------------------------------------------------------------------

MASKS = [
    *["segmentation_maps", "LabelMaps", "panoptic_train2017"],
    *["masks", "mask", "Mask", "ground_truth", "GroundTruth", "Ground Truth", "gt", "labels", "label", "annotations"],
    *["Annotations", "SegmentationClass", "SegmentationObject", "gtFine", "labels_mask", "train_masks", "masks-train"],
    *[
        "trimaps",
        "binary_masks",
        "trainannot",
        "train_labels",
        "1st_manual",
        "Masks/Anomaly",
        "deep/masks/of/it",
        "train_lab",
        "labelsTr",
    ],
]


@pytest.mark.parametrize("folder", MASKS)
def test_masks_are_never_images(data: Path, folder: str) -> None:
    fill(data, ["images/1.png", "images/2.png", f"{folder}/1.png", f"{folder}/2_mask.png", f"{folder}/3.png"])
    found = open_source(data)
    assert names(found) == ["images/1.png", "images/2.png"]
    assert found.passed_over == {"masks": 3}
    assert found.summary(2) == "2 images (folder images); 3 other files passed over (masks 3)"
    # Each frame of an animation can be an image.
    assert found.summary(7) == "7 images of 2 files (folder images); 3 other files passed over (masks 3)"
    # A folder that is named itself is taken as it is.
    assert open_source(data / folder).count == 3


@pytest.mark.parametrize(
    "folder", ["lung_masks", "left-masks", "lung_mask", "ISIC2018_Task1_Training_GroundTruth", "roads_labels"]
)
def test_longer_names_are_masks_where_their_files_are_those_of_images(data: Path, folder: str) -> None:
    fill(data, ["images/1.png", "images/2.png", f"{folder}/1.png", f"{folder}/2_segmentation.png"])
    assert names(open_source(data)) == ["images/1.png", "images/2.png"]
    other = fill(data / "other", ["hats/a.png", "face_masks/b.png"])
    assert names(open_source(other)) == ["face_masks/b.png", "hats/a.png"]
    # Numbers are names that classes share.
    other = fill(data / "numbered", ["n95_mask/1.png", "no_hat/1.png", "n95_mask/2.png", "no_hat/2.png"])
    assert open_source(other).count == 4


@pytest.mark.parametrize(
    "folders",
    [
        ("with_mask", "without_mask"),
        ("mask", "no_mask"),
        ("Mask", "Non Mask"),
        ("train/mask", "train/without_mask"),
        ("masked", "unmasked"),
        ("thumbs_up", "thumbs_down"),
        ("n95_mask", "cloth_mask"),
        ("segments", "annotators"),
    ],
)
def test_classes_that_sound_like_masks_are_images(data: Path, folders: tuple[str, str]) -> None:
    fill(data, [f"{folder}/{i}.png" for folder in folders for i in range(2)])
    found = open_source(data)
    assert found.count == 4 and not found.passed_over
    assert {entry.label for entry in found.entries} == {folder.rpartition("/")[2] for folder in folders}


def test_a_folder_of_nothing_but_masks_says_so(data: Path) -> None:
    fill(data, ["labels/1.png", "masks/2.png"])
    with pytest.raises(
        FileNotFoundError, match=r"data: holds no images .*; labels, masks taken for masks; to take such a "
    ):
        open_source(data)


def test_what_may_be_a_class_is_said(data: Path) -> None:
    fill(data, ["bottles/1.png", "labels/2.png"])
    found = open_source(data)
    assert names(found) == ["bottles/1.png"]
    assert found.notes == ("labels taken for masks; to take such a folder, name it",)
    assert not open_source(fill(data / "x", ["images/1.png", "masks/1.png"])).notes


def test_masks_and_small_copies_beside_an_image(data: Path) -> None:
    masks = ["a_mask.png", "a-gt.png", "a_1_mask_2.png", "aMask.png", "mask_a.png", "10000_GT.png", "Part0_label.png"]
    small = ["a_thumb.png", "thumb_a.png", "a-150x150.png", "a_small.png", "a-preview.png"]
    images = ["a.png", "a_1.png", "10000.png", "Part0.jpg", "alone_mask.png", "b_2.png", "unmask.png", "gt.png"]
    fill(data, [*masks, *small, *images])
    found = open_source(data)
    assert names(found) == sorted(images)
    assert found.passed_over == {"masks": len(masks), "thumbnails": len(small)}


def test_a_folder_for_each_picture_and_its_mask(data: Path) -> None:
    pictures = ["a/image.png", "b/ct.png", "c/img.png", "d/front.png", "d/label.png", "e/mask.png", "e/no_mask.png"]
    masks = ["a/mask.png", "b/Mask.png", "b/gt.png", "c/label.png", "c/label_viz.png"]
    fill(data, [*pictures, *masks, "f/mask.png"])
    found = open_source(data)
    assert names(found) == [*pictures, "f/mask.png"]
    assert found.passed_over == {"masks": len(masks)}


def test_what_is_called_seg_is_a_mask_where_its_files_are_those_of_images(data: Path) -> None:
    """A known set of landscapes has its photographs in `seg_train` and `seg_test`."""
    fill(data, ["seg_train/sea/1.png", "seg_test/sea/2.png"])
    found = open_source(data)
    assert names(found) == ["seg_train/sea/1.png"] and not found.passed_over
    fill(data, ["train/2.png", "train/1.png", "test/3.png"])
    assert names(open_source(data)) == ["train/1.png", "train/2.png"]


def test_where_images_lie_is_in_the_line_that_is_printed(data: Path) -> None:
    fill(data, ["depth/1.png", "rgb/1.png"])
    assert open_source(data).summary(1) == "1 of 2 images (folders depth, rgb)"
    fill(data / "b", [f"train/{kind}/1.png" for kind in "abcdefghij"])
    assert open_source(data / "b").summary(10) == "10 images (split train; folders train/a, train/b, train/c, " + (
        "train/d, train/e and 5 more)"
    )


@pytest.mark.parametrize(
    "folder", ["thumbs", "Thumbnails", ".thumbnails", "@eaDir", "__MACOSX", "thumbnails128x128", "a/@eaDir/a.png"]
)
def test_thumbnails_are_passed_over(data: Path, folder: str) -> None:
    fill(
        data,
        ["a.jpg", f"{folder}/a.jpg", f"{folder}/._a.jpg", "Thumbs.db"] if folder[0] != "a" else [f"{folder}/a.jpg"],
    )
    if folder[0] == "a":
        fill(data, ["b.jpg"])
        assert names(open_source(data)) == ["b.jpg"]
    else:
        assert names(open_source(data)) == ["a.jpg"]
        assert open_source(data).passed_over == {"thumbnails": 3}
        assert open_source(data / folder).count == 1


def test_other_files_are_counted_or_looked_into(data: Path) -> None:
    fill(data, ["a", "d", "b.jpg~", "c.png.bak", "e.png", "f.jpg_large", ".hidden.png", ".cache/x.png", "g.unknown"])
    for name in ("1.txt", "2.TXT", "3.json", "README", "4.strange", "5.png.txt", "6.weird suffix"):
        (data / name).write_text("BM no image")
    found = open_source(data)
    assert names(found) == ["a", "d", "e.png", "f.jpg_large", "g.unknown"]
    assert found.passed_over == {
        "backups": 2, ".txt": 3, ".json": 1, "without suffix": 1, ".strange": 1, "other suffixes": 1
    }  # fmt: skip
    assert found.summary(3) == (
        "3 of 5 images; 9 other files passed over "
        "(.txt 3, backups 2, .json 1, .strange 1, other suffixes 1, without suffix 1)"
    )
    assert load_images(data).names == ("a", "d", "e.png", "f.jpg_large", "g.unknown")


def test_images_of_every_format_are_known_by_their_first_bytes(data: Path) -> None:
    data.mkdir()
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"):
        (data / kind).write_bytes(encoded(noise(0), kind))
    assert open_source(data).count == 7
    assert len(load_images(data)) == 7


def test_cameras_own_formats_are_not_read_by_their_preview(data: Path) -> None:
    data.mkdir()
    for name in ("a.dng", "b.tif", "c.NEF"):
        (data / name).write_bytes(encoded(noise(0), "TIFF"))
    images = load_images(data)
    assert images.names == ("b.tif",)
    assert [(lost.name, lost.reason) for lost in images.unreadable] == [
        ("a.dng", "a camera's own format (.dng) is not read; convert it"),
        ("c.NEF", "a camera's own format (.nef) is not read; convert it"),
    ]


# -- layouts of anomaly detection -------------------------------------------------------------------------------------


def test_mvtec(data: Path) -> None:
    fill(
        data,
        ["train/good/1.png", "test/good/1.png", "test/crack/1.png", "ground_truth/crack/1_mask.png", "license.txt"],
    )
    found = open_source(data)
    assert names(found) == ["train/good/1.png"] and not found.notes
    assert found.summary(1).startswith("1 image (split train; folder train/good); 2 other files")
    assert found.passed_over == {"masks": 1, ".txt": 1}
    found = open_source(data, default_split="test")
    assert [(entry.name, entry.label) for entry in found.entries] == [
        ("test/crack/1.png", "crack"),
        ("test/good/1.png", "good"),
    ]


def test_several_categories_are_said(data: Path) -> None:
    fill(
        data,
        [f"{kind}/{part}/good/{i}.png" for kind in ("bottle", "cable") for part in ("train", "test") for i in range(2)],
    )
    found = open_source(data)
    assert names(found) == [f"{kind}/train/good/{i}.png" for kind in ("bottle", "cable") for i in range(2)]
    assert found.summary(4) == "4 images (split train; folders bottle, cable)"
    assert (
        len(found.notes) == 1
        and "several data sets with parts of their own are taken together (bottle, cable)" in found.notes[0]
    )


@pytest.mark.parametrize(
    ("normal", "others"),
    [
        ("good", ["defective"]),
        ("Good", ["Not_Good"]),
        ("OK", ["NG"]),
        ("normal", ["abnormal"]),
        ("Data/Images/Normal", ["Data/Images/Anomaly"]),
        ("NORMAL", ["PNEUMONIA"]),
        ("good", ["crack", "scratch"]),
        ("ok_front", ["def_front"]),
        ("no_defect", ["defect"]),
        ("non-defective", ["defective"]),
        ("healthy", ["blight"]),
        ("train/ok", ["train/ko"]),
    ],
)
def test_learning_takes_normal_images_alone_and_says_so(data: Path, normal: str, others: list[str]) -> None:
    fill(data, [f"{folder}/{i}.png" for folder in (normal, *others) for i in range(2)])
    for split in (None, "train", "Train"):
        found = open_source(data, split)
        assert names(found) == [f"{normal}/0.png", f"{normal}/1.png"]
        assert [entry.label for entry in found.entries] == [normal.rpartition("/")[2]] * 2
        assert found.notes == (
            f"only the 2 normal images are taken, not {2 * len(others)} of {', '.join(sorted(others))}; "
            "split 'all' takes all",
        )
    assert open_source(data, "all").count == 2 + 2 * len(others) and not open_source(data, "all").notes
    if "train" not in normal:
        assert open_source(data, default_split="test").count == open_source(data, "test").count == 2 + 2 * len(others)
        with pytest.raises(FileNotFoundError, match=r"splits found: train \(the normal images\), test"):
            open_source(data, "tets")


def test_other_parts_give_normal_images_alone_if_asked(data: Path) -> None:
    """Those that a detector is calibrated to, or measured on as normal."""
    fill(data, ["train/good/1.png", "test/good/2.png", "test/crack/3.png", "ground_truth/crack/3_mask.png"])
    found = open_source(data, default_split="test", normal_only=True)
    assert names(found) == ["test/good/2.png"]
    assert found.notes == ("only the 1 normal image is taken, not 1 of test/crack; split 'all' takes all",)
    assert open_source(data, "all", normal_only=True).count == 3
    images = Preprocessing(4, 3).read(data, normal_only=True)
    assert images.names == ("test/good/2.png",)
    assert load_images(data, default_split="test").names == ("test/crack/3.png", "test/good/2.png")


def test_judged_names() -> None:
    for name in ("good", "OK", "no_anomaly", "defect-free", "without_defects", "good images", "Healthy"):
        assert judged(name) == "normal", name
    for name in (
        "bad",
        "NG",
        "not_ok",
        "notgood",
        "unhealthy",
        "un-healthy",
        "Abnormal",
        "broken_large",
        "test_anomaly",
    ):
        assert judged(name) == "anomalous", name
    for name in ("crack", "normal_map", "goods", "cat", "goodyear", "Apple___healthy", "no", "okapi"):
        assert judged(name) == "", name


def test_words() -> None:
    assert words_of("GroundTruth_train2") == ("groundtruth", "train")
    assert words_of("valImages_2017-XYZ") == ("val", "images", "xyz")


def test_classes_below_folders_that_only_hold_images(data: Path) -> None:
    fill(data, ["train/cat/images/1.png", "train/images/2.png", "train/a/3.png"])
    assert [entry.label for entry in open_source(data).entries] == ["a", "cat", None]
