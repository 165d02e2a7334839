from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import datasets
import denoising_ebm
from denoising_ebm.datasets.images import load_images
from pictures import encoded, noise, write_parquet

DATA = Path(denoising_ebm.__file__).parent / "assets" / "datasets"


def test_folder_parquet_and_single_file_agree(folder: Path, tmp_path: Path) -> None:
    expected = np.stack([noise(seed).transpose(2, 0, 1) for seed in range(3)])
    images = load_images(folder)
    assert images.names == ("a.png", "b.png", "z/c.png")
    assert np.array_equal(images.pixels.numpy(), expected)

    shards = tmp_path / "shards"
    write_parquet(shards / "train-00000-of-00002.parquet", [encoded(noise(0), "PNG"), encoded(noise(1), "WEBP")])
    write_parquet(shards / "train-00001-of-00002.parquet", [encoded(noise(2), "BMP")])
    write_parquet(shards / "test.parquet", [encoded(noise(3), "PNG")])
    sharded = load_images(shards)
    assert sharded.names == (
        "train-00000-of-00002.parquet#0",
        "train-00000-of-00002.parquet#1",
        "train-00001-of-00002.parquet#0",
    )
    assert np.array_equal(sharded.pixels.numpy(), expected)

    one = load_images(shards / "train-00001-of-00002.parquet", split="train")
    assert one.names == ("train-00001-of-00002.parquet#0",)
    file = load_images(str(folder / "z" / "c.png"))
    assert file.names == ("c.png",)
    assert torch.equal(one.pixels, file.pixels)
    assert np.array_equal(file.pixels[0].numpy(), expected[2])


def test_special_characters_and_hidden_folders_in_a_path(tmp_path: Path) -> None:
    for name in ("a [1]* b", ".hidden"):
        write_parquet(tmp_path / name / "train.parquet", [encoded(noise(0), "PNG")])
        assert np.array_equal(load_images(tmp_path / name).pixels[0].numpy(), noise(0).transpose(2, 0, 1))


def test_binary_column_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [encoded(noise(0), "PNG")]}), tmp_path / "x.parquet")
    assert np.array_equal(load_images(tmp_path).pixels[0].numpy(), noise(0).transpose(2, 0, 1))


def test_nothing_is_left_in_the_cache_or_the_progress_settings(folder: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "p" / "train.parquet", [encoded(noise(0), "PNG")] * 2)
    datasets.enable_progress_bars()
    load_images(tmp_path / "p", limit=1)
    assert not datasets.utils.are_progress_bars_disabled()
    before = sorted(Path(datasets.config.HF_DATASETS_CACHE).glob("*"))
    load_images(tmp_path / "p")
    assert sorted(Path(datasets.config.HF_DATASETS_CACHE).glob("*")) == before


def test_subfolders_named_as_splits_are_splits(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for split, seed in (("train", 5), ("test", 6)):
        (folder / split / "cat").mkdir(parents=True)
        Image.fromarray(noise(seed)).save(folder / split / "cat" / "x.png")
    images = load_images(folder, split="test")
    assert images.names == ("test/cat/x.png",)
    assert np.array_equal(images.pixels[0].numpy(), noise(6).transpose(2, 0, 1))
    for asked in ("validation", "tets"):
        with pytest.raises(FileNotFoundError, match=rf"photos: no split '{asked}'; splits found: test, train$"):
            load_images(folder, split=asked)


def test_a_class_named_as_a_split_does_not_hide_the_others(tmp_path: Path) -> None:
    for kind, seed in (("bus", 0), ("car", 1), ("train", 2)):
        (tmp_path / kind).mkdir()
        Image.fromarray(noise(seed)).save(tmp_path / kind / "x.png")
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=r"holds a folder train/, which names a split, beside images .*bus/x\.png"):
            load_images(tmp_path, split=split)
    images = load_images(tmp_path, split="all")
    assert images.names == ("bus/x.png", "car/x.png", "train/x.png")
    assert images.labels == ("bus", "car", "train")


@pytest.mark.parametrize("source", ["nowhere", "./nowhere", "a/b/c", "folder/x.png", "folder/x.parquet", ""])
def test_unknown_sources(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder") as caught:
        load_images(source)
    assert "\n" not in str(caught.value)


def test_missing_splits_are_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00001.parquet", [encoded(noise(0), "PNG")])
    write_parquet(tmp_path / "extra.parquet", [encoded(noise(0), "PNG")])
    with pytest.raises(FileNotFoundError, match=r"no split 'test'; splits found: extra, train$"):
        load_images(tmp_path, split="test")
    with pytest.raises(FileNotFoundError, match=r"digits: no split 'train', only test$"):
        load_images("digits")


def test_parquet_files_of_other_names_are_no_parts(tmp_path: Path) -> None:
    write_parquet(tmp_path / "pictures-2.parquet", [encoded(noise(0), "PNG")])
    for split in ("train", "test"):
        assert load_images(tmp_path, default_split=split).names == ("pictures-2.parquet#0",)
    with pytest.raises(FileNotFoundError, match=r"no split 'test'; splits found: none; without --split the 1 "):
        load_images(tmp_path, split="test")


def test_unusable_folders_and_files(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: holds no images .*\.png"):
        load_images(tmp_path / "empty")
    (folder / "train.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(ValueError, match=r"holds both Parquet files \(train\.parquet\) and images \(a\.png\)"):
        load_images(folder)
    with pytest.raises(ValueError, match=r"train\.parquet: cannot be read as Parquet with images: "):
        load_images(folder / "train.parquet")
    pq.write_table(pa.table({"label": [1, 2]}), tmp_path / "labels.parquet")
    with pytest.raises(ValueError, match=r"labels\.parquet: .*no column 'image' among label$"):
        load_images(tmp_path / "labels.parquet")
    write_parquet(tmp_path / "none.parquet", [])
    with pytest.raises(FileNotFoundError, match=r"none\.parquet: holds no images$"):
        load_images(tmp_path / "none.parquet")


@pytest.fixture(autouse=True)
def answering_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub says that it has every data set."""
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, timeout: None)


def hub(answer: Callable[[], Any]) -> Callable[..., Any]:
    def load_dataset(name: str, *, split: str, streaming: bool) -> Any:
        assert (name, split) == ("owner/name", "test")
        rows = answer()
        return rows.to_iterable_dataset() if streaming else rows

    return load_dataset


def test_images_that_are_not_read_here_are_named_and_links_followed(tmp_path: Path) -> None:
    """In production a photograph without a row looks as if it had passed."""
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for place in (folder, elsewhere):
        place.mkdir(exist_ok=True)
        Image.new("L", (8, 8), 100).save(place / "a.png")
    (folder / "b.heic").write_bytes(b"no image that is read here")
    (folder / "c.png").symlink_to(tmp_path / "gone.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    images = load_images(folder)
    assert images.names == ("a.png", "linked/a.png")
    assert [image.name for image in images.unreadable] == ["b.heic", "c.png"]
    assert "no such file" in images.unreadable[1].reason


def test_rows_of_paths_are_read_beside_their_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from where the program happens to run, and nothing else on the machine or the net."""
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    for place, level in ((data, 10), (elsewhere, 200)):
        place.mkdir()
        Image.new("L", (8, 8), level).save(place / "a.png")
    paths = ["a.png", str(elsewhere / "a.png"), "../elsewhere/a.png", "http://localhost/a.png"]
    rows = [{"bytes": None, "path": path} for path in paths]
    pq.write_table(pa.table({"image": rows}), data / "images.parquet")
    monkeypatch.chdir(elsewhere)
    images = load_images(data / "images.parquet")
    assert images.names == ("images.parquet#0",) and images.pixels.unique().tolist() == [10]
    assert [image.reason for image in images.unreadable] == [
        f"the row names {path}, which is not beside its file" for path in paths[1:]
    ]


def test_data_sets_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer() -> datasets.Dataset:
        rows = {"img": [{"bytes": encoded(noise(seed), "PNG"), "path": None} for seed in range(3)], "label": [0, 1, 2]}
        return datasets.Dataset.from_dict(rows).cast_column("img", datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", hub(answer))
    images = load_images("hf://owner/name", split="test")
    assert images.names == ("test#0", "test#1", "test#2")
    assert np.array_equal(images.pixels.numpy(), np.stack([noise(seed).transpose(2, 0, 1) for seed in range(3)]))
    assert torch.equal(load_images("hf://owner/name", split="test", limit=2).pixels, images.pixels[:2])


def test_a_stream_of_unknown_length_keeps_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first RGB image comes after hundreds of gray ones."""
    levels = [i % 251 for i in range(700)]

    def answer() -> datasets.Dataset:
        rows = [encoded(np.full((2, 2), level, np.uint8), "PNG") for level in levels]
        rows[600] = encoded(np.full((2, 2, 3), (1, 2, 3), np.uint8), "PNG")
        table = {"image": [{"bytes": row, "path": None} for row in rows]}
        return datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", hub(answer))
    expected = torch.tensor(levels)[:, None, None, None].expand(-1, 3, 2, 2).clone()
    expected[600] = torch.tensor([1, 2, 3])[:, None, None]
    assert torch.equal(load_images("hf://owner/name", split="test", limit=650).pixels, expected[:650].to(torch.uint8))
    assert torch.equal(
        load_images("hf://owner/name", split="test", limit=600).pixels, expected[:600, :1].to(torch.uint8)
    )

    def draw(seed: int) -> tuple[str, ...]:
        generator = torch.Generator().manual_seed(seed)
        drawn = load_images("hf://owner/name", split="test", limit=600, sample=300, generator=generator)
        places = [int(name.partition("#")[2]) for name in drawn.names]
        assert torch.equal(drawn.pixels, expected[places, :1].to(torch.uint8))
        assert len(set(places)) == 300 and max(places) < 600
        # Standard error of the mean of 300 of 600 numbers below 600: 600 / sqrt(12) / sqrt(300) * sqrt(1 / 2) = 7.1.
        assert abs(sum(places) / 300 - 299.5) < 4 * 7.1 and places != sorted(places)
        return drawn.names

    assert draw(3) == draw(3) != draw(4)


def test_labels_are_those_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names of classes where a column has them, as they stand where not, by folders of image files."""
    table = pq.read_table(DATA / "fashion-mnist" / "test.parquet")
    names = datasets.load_dataset("parquet", data_files=str(DATA / "fashion-mnist" / "test.parquet"), split="train")
    classes = names.features["label"].names
    images = load_images("fashion-mnist", split="test", limit=50)
    assert images.labels == tuple(classes[i] for i in table["label"].to_pylist()[:50]) and len(set(images.labels)) > 5
    assert images.take([7, 3]).labels == (images.labels[7], images.labels[3])

    for path in ("train/cat/1.png", "train/cat/2.png", "train/dog/1.png", "test/a.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(encoded(noise(0), "PNG"))
    assert load_images(tmp_path, split="train").labels == ("cat", "cat", "dog")
    assert load_images(tmp_path, split="test").labels == (None,)
    assert load_images(tmp_path / "train" / "cat").labels == (None, None)

    def answer() -> datasets.Dataset:
        rows = {"image": [{"bytes": encoded(noise(seed), "PNG"), "path": None} for seed in range(3)]}
        rows |= {"fine_label": [1, -1, 0]}
        kind = datasets.ClassLabel(names=["ant", "bee"])
        return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).cast_column("fine_label", kind)

    monkeypatch.setattr(datasets, "load_dataset", hub(answer))
    assert load_images("hf://owner/name", split="test").labels == ("bee", None, "ant")


def test_columns_that_hold_no_classes_are_not_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures beside pictures, as for segmentation, and measured numbers."""

    def answer(kind: str) -> datasets.Dataset:
        images = [{"bytes": encoded(noise(seed), "PNG"), "path": None} for seed in range(2)]
        rows = datasets.Dataset.from_dict({"image": images, "label": images if kind == "picture" else [0.5, 1.5]})
        rows = rows.cast_column("image", datasets.Image())
        return rows.cast_column("label", datasets.Image()) if kind == "picture" else rows

    for kind in ("picture", "number"):
        monkeypatch.setattr(datasets, "load_dataset", hub(lambda kind=kind: answer(kind)))
        assert load_images("hf://owner/name", split="test").labels == (None, None)


def test_labels_do_not_move_when_an_image_is_left_out(tmp_path: Path) -> None:
    rows = [encoded(noise(0), "PNG"), b"damaged", encoded(noise(1), "PNG")]
    images = [{"bytes": row, "path": None} for row in rows]
    pq.write_table(pa.table({"image": images, "label": ["x", "y", None]}), tmp_path / "test.parquet")
    found = load_images(tmp_path, split="test")
    assert found.labels == ("x", None) and found.unreadable[0].name == "test.parquet#1"


def test_data_sets_of_the_hub_without_images_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", hub(lambda: datasets.Dataset.from_dict({"label": [0]})))
    with pytest.raises(ValueError, match=r"owner/name: .*no column 'image' among label$"):
        load_images("hf://owner/name", split="test")


@pytest.mark.parametrize(("error", "kind"), [(ConnectionError, FileNotFoundError), (ValueError, ValueError)])
def test_failures_of_the_hub_are_one_line(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], kind: type[Exception]
) -> None:
    def answer() -> Any:
        raise error("cannot reach it\nwith many details")

    monkeypatch.setattr(datasets, "load_dataset", hub(answer))
    with pytest.raises(kind, match=r"owner/name: .*not loaded from the Hugging Face Hub: cannot reach it$"):
        load_images("hf://owner/name", split="test")


def test_no_connection_is_opened_but_for_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(*where: Any, **_: Any) -> Any:
        asked.append(str(where))
        raise OSError("no network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "p" / "train.parquet", [encoded(noise(0), "PNG")])
    (tmp_path / "imgs").mkdir()
    (tmp_path / "imgs" / "a.png").write_bytes(encoded(noise(0), "PNG"))
    for source in ("fashion-mnist", "p", "p/train.parquet", "imgs", "imgs/a.png"):
        assert len(load_images(source, limit=1)) == 1
    for mistyped, hint in (
        ("imgs/new", "; a data set of the Hugging Face Hub is hf://imgs/new"),
        ("owner/name", "; a data set of the Hugging Face Hub is hf://owner/name"),
        ("imgs/b.png", ""),
        ("./new", ""),
        ("imgs/x/y", ""),
    ):
        with pytest.raises(
            FileNotFoundError, match=f"^{mistyped}: no such file or folder, nor a bundled set .*{hint}$"
        ):
            load_images(mistyped)
    assert not asked
    monkeypatch.undo()


def test_names_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str] = []

    def load(name: str, **_: Any) -> datasets.Dataset:
        named.append(name)
        assert not datasets.config.HF_UPDATE_DOWNLOAD_COUNTS, "loads are not reported to a counter"
        rows = {"image": [{"bytes": encoded(noise(0), "PNG"), "path": None}]}
        return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())

    before = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    monkeypatch.setattr(datasets, "load_dataset", load)
    for source in ("hf://owner/name", "hf://datasets/owner/name"):
        assert load_images(source).names == ("train#0",)
    assert named == ["owner/name"] * 2 and before == datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    for source in ("hf://", "hf://name", "hf://a/b/c", "hf://models/a/b"):
        with pytest.raises(ValueError, match=f"^{source}: expected hf://owner/name$"):
            load_images(source)


def test_rows_of_the_hub_open_no_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    for place, level in ((cache, 10), (tmp_path, 200)):
        place.mkdir(exist_ok=True)
        Image.new("L", (8, 8), level).save(place / "a.png")
    paths = [str(cache / "a.png"), str(tmp_path / "a.png"), f"{cache}/../a.png", f"file://{cache}/a.png"]

    def answer() -> datasets.Dataset:
        rows = {"image": [{"bytes": None, "path": path} for path in paths]}
        return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", hub(answer))
    images = load_images("hf://owner/name", split="test")
    assert images.names == ("test#0",) and images.pixels.unique().tolist() == [10]
    assert [lost.reason for lost in images.unreadable] == [
        f"the row names {path}, which is not of the Hub" for path in paths[1:]
    ]


def test_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` by itself tries for half a minute."""
    asked: list[str] = []

    def ask(_: Any, name: str, timeout: float) -> None:
        asked.append(name)
        raise RuntimeError("no route\nto host")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", ask)
    with pytest.raises(FileNotFoundError, match=r"^hf://owner/name: not loaded from the .* Hub: no route$"):
        load_images("hf://owner/name")
    assert asked == ["owner/name"]
