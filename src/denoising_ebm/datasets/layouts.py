"""How folders of images are laid out: parts by their names, masks, normal and anomalous images. Names alone decide."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from denoising_ebm.datasets.listing import File

SPLITS = {
    word: split
    for split, words in {
        "train": "train training trn",
        "validation": "validation valid val dev vld",
        "test": "test testing eval evaluation tst",
        "extra": "extra",
    }.items()
    for word in words.split()
}
"""Words that name a part of a data set, and the part, as in Hugging Face `datasets`."""

# Folders of these names hold the classes, and are none.
_CONTAINERS = set("image images img imgs jpegimages picture pictures photo photos frame frames data dataset".split())
# Words that say nothing of what is in a folder.
_GENERIC = set(
    "image images img imgs picture pictures pic pics photo photos frame frames data dataset set sets file files folder dir "
    "png jpg jpeg jpegs bmp tif tiff all raw full small large original originals class classes object objects instance "
    "instances semantic pixel pixels level binary color colour gray grey rgb aug augmented fine coarse sample samples part "
    "parts item items product products front back top bottom left right side view views cam camera a b x y".split()
)
_MASKS = set(
    "mask masks gt gts groundtruth groundtruths annotation annotations annot annots anno annos label labels seg segs "
    "segmentation segmentations trimap trimaps panoptic stuffthingmaps".split()
)
# At the end of a longer name, `lung_masks`, these need images of the same names elsewhere to be masks.
_MASK_HEADS = set("masks groundtruth groundtruths annotations segmentations segmentation trimaps labels".split())
_NEGATIONS = set("no not non un without free".split())
_PREPOSITIONS = _NEGATIONS | set("with wearing in on off".split())
_NORMAL = set("good normal normals ok okay healthy nominal intact undamaged flawless".split())
_ANOMALOUS = set(
    "bad defect defects defective def anomaly anomalies anomalous abnormal abnormals abnormality ng nok ko fault faults "
    "faulty broken damaged damage damages reject rejects rejected fail failed failure outlier outliers disease diseased "
    "unhealthy sick notgood nogood notok scrap".split()
)
# Whole names in a folder for each picture, `image.png` and `mask.png`; of labels only where the picture is named so.
_MOST_BESIDE = 5
_MASK_ALONE = re.compile(r"(?i:masks?|gt|ground[ _-]?truth|segmentation|trimap)")
_LABEL_ALONE = re.compile(r"(?i:labels?|seg)(?i:[ _-](?:viz|vis|colou?r|rgb))?")
_MARKED = re.compile(
    r"(?P<base>.+?)[ _.-]?(?:(?<=[ _.-])|(?=[A-Z]))"
    r"(?i:masks?|gt|ground[ _-]?truth|seg|segmentation|labels?|annotation|trimap)(?:[ _-]?\d+)?"
    r"|(?i:mask|gt|seg|label)[ _-](?P<rest>.+)"
)
_SMALLER = re.compile(
    r"(?P<base>.+?)(?:[ _.-](?i:thumb|thumbnail|small|preview|tn)|-\d+x\d+)|(?i:thumb|thumbnail)[ _-](?P<rest>.+)"
)


@lru_cache(maxsize=4096)
def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a name in lower case: `val2017` is val, `GroundTruth_train` groundtruth and train."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    joined = " ".join(words).replace("ground truth", "groundtruth")
    return tuple(joined.split())


@lru_cache(maxsize=4096)
def split_named(name: str) -> str | None:
    """Return the part of a data set that a folder or file is named for: `Train`, `imgs_test`; None for none, or two."""
    words = words_of(name)
    if len(words) == 2 and words[0] in ("images", "imgs") and words[1] in ("tr", "ts"):
        return "train" if words[1] == "tr" else "test"
    named = {SPLITS[word] for word in words if word in SPLITS}
    return named.pop() if len(named) == 1 else None


def split_only(name: str) -> str | None:
    """Return the part that a name says, if it says nothing else: `Train`, `val_images`, but not `test_bench`."""
    return split_named(name) if set(words_of(name)) <= _GENERIC | SPLITS.keys() else None


# -- masks and small copies -----------------------------------------------------------------------------------------


class Sorted(NamedTuple):
    """Files with image suffixes by what they are."""

    images: list[File]
    masks: list[File]
    thumbnails: list[File]
    mask_folders: list[str]  #: Names of the folders that hold the masks.


def set_apart(files: Sequence[File]) -> Sorted:
    """Tell images from the masks that belong to them, and from small copies beside them."""
    siblings = _children(files)
    sure: set[tuple[str, ...]] = set()  # folders of masks, by their path
    likely: set[tuple[str, ...]] = set()
    for parent, names in siblings.items():
        for name in names:
            kind = _mask_kind(name, names)
            if kind:
                (sure if kind == "sure" else likely).add((*parent, name))

    def first_within(folders: set[tuple[str, ...]], file: File) -> tuple[str, ...] | None:
        steps = range(1, len(file.parts))
        return next((file.parts[:depth] for depth in steps if file.parts[:depth] in folders), None)

    if likely:
        sure |= _with_partners(files, likely, {file for file in files if first_within(sure, file) is not None})
    images: list[File] = []
    masks: list[File] = []
    mask_folders: dict[str, None] = {}
    for file in files:
        folder = first_within(sure, file)
        (images if folder is None else masks).append(file)
        if folder is not None:
            mask_folders[folder[-1]] = None
    stems: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for file in images:
        stems[file.parts[:-1]].add(_stem(file))

    def copies(pattern: re.Pattern[str], file: File) -> bool:
        match = pattern.fullmatch(os.path.splitext(file.parts[-1])[0])
        return match is not None and (match["base"] or match["rest"]).lower() in stems[file.parts[:-1]]

    def is_alone(file: File) -> bool:
        stem, others = _stem(file), stems[file.parts[:-1]]
        if len(others) > _MOST_BESIDE:
            return False
        if _MASK_ALONE.fullmatch(stem):
            return not all(map(_MASK_ALONE.fullmatch, others)) and not any(map(_denies_mask, others))
        return _LABEL_ALONE.fullmatch(stem) is not None and not others.isdisjoint(("img", "image"))

    beside = {file for file in images if copies(_MARKED, file) or is_alone(file)}
    thumbnails = [file for file in images if copies(_SMALLER, file)]
    left = beside.union(thumbnails)
    return Sorted(
        [file for file in images if file not in left],
        [*masks, *(file for file in images if file in beside)],
        thumbnails,
        list(mask_folders),
    )


def _children(files: Iterable[File]) -> dict[tuple[str, ...], set[str]]:
    """Return the names of the folders in each folder."""
    children: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for file in files:
        for depth in range(len(file.parts) - 1):
            children[file.parts[:depth]].add(file.parts[depth])
    return children


def _mask_kind(name: str, siblings: set[str]) -> str:
    """Say whether a folder is `sure` to hold masks by its name, `likely`, or neither."""
    words = words_of(name)
    if re.fullmatch(r"(?i)(?:1st|2nd)_manual\d*|(?:train|val|test)annot", name):
        return "sure"
    if set(words) & {"lab", "labs"} and set(words) <= {"lab", "labs", *SPLITS} and len(words) > 1:
        return "sure"
    marks = _MASKS.intersection(words)
    if not marks or _PREPOSITIONS.intersection(words):
        return ""
    if marks <= {"seg", "segs"} and set(words) - marks <= SPLITS.keys() and len(words) > 1:
        return "likely"  # `seg_train` may hold the photographs themselves
    if set(words) <= _MASKS | _GENERIC | SPLITS.keys() | {"map", "maps", "tr", "ts"}:
        # A class of faces: `mask` beside `no_mask`.
        is_class = marks <= {"mask", "masks"} and any(map(_denies_mask, siblings))
        return "" if is_class else "sure"
    ends = [word for word in words if word not in _GENERIC | SPLITS.keys()]
    beside_images = any(words_of(other) and _GENERIC.issuperset(words_of(other)) for other in siblings)
    return "likely" if ends and ends[-1] in (_MASKS if beside_images else _MASK_HEADS) else ""


def says_mask(name: str) -> bool:
    """Whether a folder's name speaks of masks, and not only of labels."""
    words = set(words_of(name))
    return bool(words & _MASKS - {"label", "labels", "seg", "segs"}) or "manual" in words


def unmarked(stem: str) -> str | None:
    """Return the name of the image that a mask's name is made of: `000` of `000_mask`; None where it is made of none."""
    match = _MARKED.fullmatch(stem)
    return None if match is None else match["base"] or match["rest"]


def _denies_mask(name: str) -> bool:
    words = set(words_of(name))
    if words & {"nomask", "unmasked", "withoutmask", "nonmask", "maskless"}:
        return True
    return bool(words & {"mask", "masks"} and words & _NEGATIONS)


def _with_partners(files: Sequence[File], folders: set[tuple[str, ...]], masks: set[File]) -> set[tuple[str, ...]]:
    """Return those of the folders in which most files have the name of an image elsewhere."""
    inside: dict[tuple[str, ...], list[str]] = defaultdict(list)
    outside: set[str] = set()
    for file in files:
        steps = range(1, len(file.parts))
        folder = next((file.parts[:depth] for depth in steps if file.parts[:depth] in folders), None)
        if folder is not None:
            inside[folder].append((unmarked(os.path.splitext(file.parts[-1])[0]) or _stem(file)).lower())
        elif file not in masks:
            outside.add(_stem(file))
    return {folder for folder, stems in inside.items() if 2 * sum(stem in outside for stem in stems) >= len(stems)}


def _stem(file: File) -> str:
    return os.path.splitext(file.parts[-1])[0].lower()


# -- parts ----------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """Where a file belongs."""

    split: str  #: Nothing where no name says it.
    name: str = ""  #: Of the folder or file that says so.
    depth: int = 0  #: Number of folders above that folder.


def parts_of_images(files: Sequence[File]) -> list[Part]:
    """Return the part of each image: the outermost folder that names one decides.

    Without such folders names of files do, where each names a part and there are several: `train_001.png`.
    """
    wrappers = _wrappers(files)
    parts = [_part_of(file, wrappers) for file in files]
    named = {part.split: None for part in parts if part.split}
    if named and not (len(named) == 1 and any(not part.split for part in parts) and not _is_part_only(parts)):
        return parts
    parts = [Part("")] * len(files)
    own = [split_named(os.path.splitext(file.parts[-1])[0]) for file in files]
    if all(own) and len(set(own)) > 1:
        return [Part(split, "", len(file.parts)) for split, file in zip(own, files, strict=True) if split]
    return parts


def _is_part_only(parts: Sequence[Part]) -> bool:
    """Whether a folder's name says nothing but a part; `train_station` beside others is a class."""
    return any(split_only(name) for name in {part.name for part in parts} if name)


def parts_of_parquet(files: Sequence[File]) -> list[Part]:
    """Return the part of each Parquet file, by its folders or its own name: `train-00000-of-00002.parquet`."""
    parts = []
    for file in files:
        part = _part_of(file, 0)
        if not part.split:
            stem = os.path.splitext(file.parts[-1])[0]
            sharded = re.fullmatch(r"(.+?)-\d{4,}-of-\d{4,}.*", stem)
            own = sharded[1] if sharded else stem
            part = Part(split_named(own) or (own if sharded else ""), own, len(file.parts) - 1)
        parts.append(part)
    if any(part.split for part in parts):
        return [part if part.split else part._replace(split=part.name) for part in parts]
    return parts


def _part_of(file: File, start: int) -> Part:
    for depth, name in enumerate(file.parts[start:-1], start):
        if split := split_named(name):
            return Part(split, name, depth)
    return Part("")


def _wrappers(files: Sequence[File]) -> int:
    """Return how many outer folders hold all parts, though one of their words names one: `test_bench/train`."""
    for depth, name in enumerate(_common([file.parts[:-1] for file in files])):
        if not split_named(name):
            continue
        if split_only(name):
            return 0
        inner = {_part_of(file, depth + 1).split for file in files}
        return depth + 1 if len(inner) > 1 and "" not in inner else 0
    return 0


def class_of(file: File, part: Part) -> str | None:
    """Return the class of an image: its folder below the source and the part; a folder `images` stands for the one above."""
    folders = file.parts[part.depth + 1 if part.name else 0 : -1]
    return next((name for name in reversed(folders) if not is_container(name)), None)


# -- normal and anomalous -------------------------------------------------------------------------------------------


def judged(name: str) -> str:
    """Say whether a folder's name calls its images `normal` or `anomalous`, or nothing of it."""
    words = [word for word in words_of(name) if word not in _GENERIC]
    is_normal, is_anomalous = (not kind.isdisjoint(words) for kind in (_NORMAL, _ANOMALOUS))
    if (is_normal and is_anomalous) or not (is_normal or is_anomalous):
        return ""
    if not _NEGATIONS.isdisjoint(words):
        is_normal = not is_normal
    elif is_normal and not _NORMAL.issuperset(words):
        return ""
    return "normal" if is_normal else "anomalous"


def anomalous_folders(files: Sequence[File]) -> set[tuple[str, ...]]:
    """Return the folders, by their paths, that stand beside one of normal images and are not of them."""
    found: set[tuple[str, ...]] = set()
    for parent, names in _children(files).items():
        kinds = {name: judged(name) for name in names}
        if "normal" in kinds.values():
            found |= {(*parent, name) for name, kind in kinds.items() if kind != "normal" and not _no_class(name)}
    return found


def _no_class(name: str) -> bool:
    return split_named(name) is not None or is_container(name)


def is_container(name: str) -> bool:
    """Whether a folder's name says only that it holds images: `Data`, `images`."""
    words = words_of(name)
    return bool(words) and _CONTAINERS.issuperset(words)


# -- in words -------------------------------------------------------------------------------------------------------


def folders_in_words(files: Sequence[File]) -> str:
    """Return the folders of files, from where they differ: `folders a, b, c`; nothing for files of the source itself."""
    parents = {file.parts[:-1]: None for file in files}
    common = _common(list(parents))
    if len(parents) == 1:
        return f"folder {'/'.join(common)}" if common else ""
    names = list(dict.fromkeys("/".join(parent[: len(common) + 1]) or "." for parent in parents))
    return f"folders {enumerated(names)}"


def _common(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return what all paths begin with."""
    first, last = min(paths, default=()), max(paths, default=())
    return first[
        : next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    ]


def enumerated(names: Sequence[str], most: int = 5) -> str:
    """Return names with commas; of many the first, and how many more."""
    more = len(names) - most
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:most])} and {more:,} more"
