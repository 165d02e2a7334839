"""Build the bundled real images: a balanced part of Fashion-MNIST, and scikit-learn's digits as an OOD set.

python scripts/build_sample.py FOLDER_WITH_THE_FOUR_IDX_GZ_FILES
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Array = npt.NDArray[np.uint8]

DATA = Path(__file__).resolve().parent.parent / "src" / "denoising_ebm" / "assets" / "datasets"
SIZE = 32
SEED = 0
FASHION_CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]


def read_idx(path: Path) -> Array:
    """Read a gzipped idx file of unsigned bytes: two zero bytes, type 8, the number of axes, then their lengths."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: not an idx file of unsigned bytes")
    shape = np.frombuffer(raw, dtype=">u4", count=raw[3], offset=4)
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * raw[3]).reshape([int(n) for n in shape])


def balanced(labels: Array, per_class: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw `per_class` indices of each class, without replacement, in random order."""
    drawn = [generator.choice(np.flatnonzero(labels == k), per_class, replace=False) for k in range(10)]
    return generator.permutation(np.concatenate(drawn))


def pad(image: Array) -> Array:
    """Centre a 28x28 image on 32x32 black."""
    return np.pad(image, (SIZE - image.shape[0]) // 2)


def png(image: Array) -> bytes:
    """Encode without compression: Parquet's own compression sees many images at once and so gets smaller files."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG", compress_level=0)
    return file.getvalue()


def write(path: Path, images: list[Array], labels: Array, origins: list[str], classes: list[str]) -> None:
    """Write the Parquet layout of the Hugging Face Hub: `image` {bytes, path} and `label`."""
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = [{"bytes": png(image), "path": origin} for image, origin in zip(images, origins, strict=True)]
    table = pa.table({"image": rows, "label": labels.astype(np.int64)}, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table, path, compression="zstd", compression_level=22, use_dictionary=["label"], data_page_size=2**24
    )
    print(f"{path}: {len(rows)} images, {path.stat().st_size / 1e6:.2f} MB")


def build_fashion_mnist(folder: Path) -> None:
    """Write 1,000 train and 200 test images a class, padded with black."""
    generator = np.random.default_rng(SEED)
    for split, stem, per_class in (("train", "train", 1000), ("test", "t10k", 200)):
        images = read_idx(folder / f"{stem}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{stem}-labels-idx1-ubyte.gz")
        chosen = balanced(labels, per_class, generator)
        origins = [f"{stem}/{index:05d}.png" for index in chosen]
        path = DATA / "fashion-mnist" / f"{split}.parquet"
        write(path, [pad(images[index]) for index in chosen], labels[chosen], origins, FASHION_CLASSES)


def build_digits() -> None:
    """Write scikit-learn's 1,797 digits, 0..16 scaled to 0..255, 8x8 -> 28x28 (bicubic), padded with black."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BICUBIC)) for image in grey]
    origins = [f"digits/{index:04d}.png" for index in range(len(large))]
    classes = [str(k) for k in range(10)]
    write(DATA / "digits" / "test.parquet", [pad(image) for image in large], digits.target, origins, classes)


def main() -> None:
    """Read the command line and write all files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with Fashion-MNIST's *-ubyte.gz files")
    build_fashion_mnist(parser.parse_args().folder)
    build_digits()


if __name__ == "__main__":
    main()
