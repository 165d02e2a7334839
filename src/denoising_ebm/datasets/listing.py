"""What lies in a folder: images, Parquet files, and what is passed over, counted by kind."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import BinaryIO, NamedTuple

from denoising_ebm.utils.io import open_regular_file, special_kind

READ = {f".{name}" for name in "png jpg jpeg jpe jfif webp bmp dib gif ppm pgm pbm pnm tif tiff apng".split()}
"""Suffixes of images that are read."""
# Images that are not read here: named among the unreadable ones instead of passed over in silence. The second kind begins
# with a small preview that Pillow would take for the image.
_NOT_READ = {f".{name}" for name in "heic heif avif jp2 j2k jpf jpx jxl tga exr hdr dcm dicom".split()}
RAW = {f".{name}" for name in "dng cr2 cr3 nef nrw arw orf rw2 raf pef srw".split()}
"""Suffixes of cameras' own formats."""
IMAGES = READ | _NOT_READ | RAW
"""Suffixes of images."""
_BACKUPS = {f".{name}" for name in "bak backup old orig swp tmp temp part partial crdownload download".split()}
# Files of other suffixes are looked into. Of these it is known that they hold no image, and there can be one beside each.
_OTHER = {
    f".{name}"
    for name in (
        "txt text md rst log json jsonl ndjson xml csv tsv yaml yml toml ini cfg conf html htm css js ts py pyc ipynb "
        "sh bat c h cpp java m r lua npy npz mat h5 hdf5 pkl pickle pt pth ckpt onnx safetensors db sqlite lmdb mdb arrow "
        "feather avro tfrecord tfrecords idx rec zip tar gz tgz bz2 xz zst 7z rar iso pdf doc docx xls xlsx ods odt ppt "
        "pptx mp4 mov avi mkv webm mpg mpeg m4v wmv mp3 wav flac ogg svg ai eps ps psd xcf nii nrrd mhd ply obj stl pcd "
        "las dll so exe lnk url lock md5 sha1 sha256 sum torrent vtt srt"
    ).split()
}
_THUMBNAIL_FOLDERS = re.compile(r"\.?thumb(?:s|nails?)(?:[ _-]?\d+(?:x\d+)?)?|@eadir|__macosx")
_THUMBNAIL_FILES = {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db"}
_FIRST_BYTES = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|II[*+]\0|MM\0[*+]|P[1-6][\s#]+[\d#]"
    rb"|BM.{8}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"
    rb"|....ftyp(?:avif|avis|heic|heix|hevc|mif1|msf1)|\0\0\0\x0c(?:JXL |jP  )\r\n\x87\n",
    re.DOTALL,
)
_MOST_VISITS = 200


class File(NamedTuple):
    """A file below a folder."""

    parts: tuple[str, ...]  #: Names of folders from there, and its own.
    special: str = ""  #: What it is instead of a file: `a named pipe`.

    @property
    def name(self) -> str:
        """Its path from the folder, with slashes."""
        return "/".join(self.parts)

    @property
    def suffix(self) -> str:
        """Of its name, in lower case."""
        return suffix_of(self.parts[-1])


class Listing(NamedTuple):
    """What `list_folder` found, each in the order of names."""

    images: list[File]
    parquet: list[File]
    passed_over: Counter[str]


def list_folder(folder: Path, *, arrays: bool = False) -> Listing:
    """List what lies below a folder but for hidden files and folders, through links.

    A link to a folder is followed unless it leads to one above itself; a link to nothing counts as a file.

    Args:
        folder: The folder.
        arrays: Count `.npy` files as images.

    Raises:
        OSError: If a folder cannot be read.
        ValueError: If links lead to one folder over and over.
    """
    images: list[File] = []
    parquet: list[File] = []
    passed_over: Counter[str] = Counter()
    visits: Counter[tuple[int, int]] = Counter()
    # Each with the folders above it, by which a circle is seen.
    waiting: list[tuple[tuple[str, ...], frozenset[tuple[int, int]], bool]] = [((), frozenset(), False)]
    while waiting:
        parts, above, is_thumbnails = waiting.pop()
        place = os.path.join(folder, *parts)
        status = os.stat(place)
        key = (status.st_dev, status.st_ino)
        if key in above:
            continue
        visits[key] += 1
        if visits[key] > _MOST_VISITS:
            raise ValueError(f"{folder}: links lead to {place} and more than {_MOST_VISITS:,} other names of it")
        with os.scandir(place) as entries:
            for entry in entries:
                lower = entry.name.lower()
                is_thumbnails_too = is_thumbnails or _THUMBNAIL_FOLDERS.fullmatch(lower) is not None
                if entry.name.startswith(".") and not is_thumbnails_too:
                    continue
                if _is_folder(entry):
                    waiting.append(((*parts, entry.name), above | {key}, is_thumbnails_too))
                elif is_thumbnails:
                    passed_over["thumbnails"] += suffix_of(lower) in IMAGES
                elif lower in _THUMBNAIL_FILES:
                    passed_over["thumbnails"] += 1
                else:
                    file = File((*parts, entry.name), _special(entry))
                    kind = "image" if arrays and file.suffix == ".npy" else _kind(file, entry.path)
                    if kind in ("image", "parquet"):
                        (images if kind == "image" else parquet).append(file)
                    else:
                        passed_over[kind] += 1
    return Listing(sorted(images), sorted(parquet), +passed_over)


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name in lower case, with its dot; nothing where there is none."""
    return os.path.splitext(name)[1].lower()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # as of a link to itself: a file that cannot be read
        return False


def _special(entry: os.DirEntry[str]) -> str:
    try:
        return "" if entry.is_file() else special_kind(entry.stat().st_mode)
    except OSError:
        return ""


def _kind(file: File, path: str) -> str:
    """Say `image`, `parquet`, or of what kind a file is counted."""
    name, suffix = file.parts[-1], file.suffix
    if suffix in IMAGES:
        return "image"
    if suffix == ".parquet":
        return "parquet"
    if file.special:
        return "special files"
    if name.endswith("~") or suffix in _BACKUPS:
        return "backups"
    if suffix not in _OTHER and _begins_as_image(path):
        return "image"
    return suffix if re.fullmatch(r"\.\w{1,12}", suffix) else "without suffix" if not suffix else "other suffixes"


def _begins_as_image(path: str) -> bool:
    try:
        with open_regular_file(path) as file:
            return looks_like_image(file)
    except (OSError, ValueError):
        return False


def looks_like_image(file: BinaryIO) -> bool:
    """Whether the first bytes of a file are those of an image of a known format."""
    return _FIRST_BYTES.match(file.read(32)) is not None
