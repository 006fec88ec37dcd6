"""MedMNIST's files, tables of files, and arrays: what is read, and the sentence for each wrong one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from leanfront.readers import (
    Images,
    TaskError,
    read_csv,
    read_medmnist,
    read_npy,
    split_at_random,
    split_each_class,
)
from leanfront.search.readers import decoding
from leanfront.search.readers import medmnist as medmnist_reader
from leanfront.search.task import ArrayData


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path_factory.mktemp("cache")))


def medmnist(folder: Path, channels: int = 3, columns: int = 1, **changed: Any) -> Path:
    rng = np.random.default_rng(0)
    held = {}
    for split, count in (("train", 9), ("val", 4), ("test", 5)):
        shape = (count, 6, 5, 3) if channels == 3 else (count, 6, 5)
        held[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        held[f"{split}_labels"] = (np.arange(count * columns) % 3).astype(np.uint8).reshape(count, columns)
    np.savez_compressed(folder / "some.npz", **(held | changed))
    return folder / "some.npz"


@pytest.mark.parametrize("channels", [1, 3])
def test_medmnist_is_read_as_its_images_and_classes(tmp_path: Path, channels: int) -> None:
    path = medmnist(tmp_path, channels)
    found = read_medmnist(path, "val")
    assert found.images.shape == (4, channels, 6, 5)
    stored = np.load(path)["val_images"]
    assert (found.images[1, -1] == (stored[1] if channels == 1 else stored[1, :, :, 2])).all()
    assert (found.labels.tolist(), found.labels.dtype, found.classes) == (
        [0, 1, 2, 0],
        np.int64,
        ("0", "1", "2"),
    )
    assert read_medmnist(path, "test", ["a", "b", "c"]).classes == ("a", "b", "c")
    assert len(read_medmnist(path, "train")) == 9


def test_several_answers_of_yes_and_no_are_numbers(tmp_path: Path) -> None:
    path = medmnist(tmp_path, train_labels=np.eye(9, 4, dtype=np.uint8))
    found = read_medmnist(path, "train")
    assert (found.labels.shape, found.labels.dtype, found.classes) == ((9, 4), np.float32, ())
    data = ArrayData(found.images, found.labels, (0.0,) * 3, (1.0,) * 3)
    assert data.batch(torch.tensor([2]), None)[1].tolist() == [[0.0, 0.0, 1.0, 0.0]]
    with pytest.raises(TaskError, match=r"split by class needs classes"):
        split_each_class(found, 1)


@pytest.mark.parametrize(
    ("make", "split", "words"),
    [
        (lambda folder: folder / "none.npz", "train", r"none.npz does not exist; correct the path"),
        (lambda folder: medmnist(folder), "validation", r"splits train, val, test, but 'validation'"),
        (
            lambda folder: medmnist(folder, train_images=np.zeros((9, 4, 4, 4, 3), np.uint8)),
            "train",
            r"uint8 \(9, 4, 4, 4, 3\); .*Dataset",
        ),
        (
            lambda folder: medmnist(folder, train_labels=np.zeros(8, int)),
            "train",
            r"\(9, k\), but .*int64 \(8,\)",
        ),
        (lambda folder: medmnist(folder, train_labels=np.full((9, 1), None)), "train", r"cannot be read"),
    ],
)
def test_a_wrong_medmnist_file_is_one_sentence(tmp_path: Path, make: Any, split: str, words: str) -> None:
    with pytest.raises(TaskError, match=words) as caught:
        read_medmnist(make(tmp_path), split)
    assert "\n" not in str(caught.value)


def test_a_file_that_would_unpack_to_more_than_any_data_set_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(medmnist_reader, "MOST_BYTES", 1000)
    with pytest.raises(TaskError, match=r"it promises \d+ bytes, 1000 are the most"):
        read_medmnist(medmnist(tmp_path), "train")


def table(folder: Path, text: str, sizes: tuple[tuple[int, int], ...] = ((4, 3),) * 3) -> Path:
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (10 * number, 0, 0)).save(folder / f"{number}.png")
    (folder / "table.csv").write_text(text)
    return folder / "table.csv"


@pytest.mark.parametrize(
    ("column", "labels", "dtype", "classes"),
    [
        ("2 0 2", [2, 0, 2], np.int64, ("0", "1", "2")),
        ("dog cat dog", [1, 0, 1], np.int64, ("cat", "dog")),
        ("0.5 -1 2", [0.5, -1.0, 2.0], np.float32, ()),
    ],
)
def test_what_labels_of_a_table_are_follows_from_them(
    tmp_path: Path, column: str, labels: list[float], dtype: type, classes: tuple[str, ...]
) -> None:
    lines = "".join(f"{n}.png,{label}\n" for n, label in enumerate(column.split()))
    for _ in range(2):  # decoded, and then from the cache
        found = read_csv(table(tmp_path, "file,label\n" + lines))
        assert (found.labels.tolist(), found.labels.dtype, found.classes) == (labels, dtype, classes)
        assert found.images[:, 0, 0, 0].tolist() == [0, 10, 20]
        assert found.images.shape == (3, 3, 3, 4)


def test_a_table_has_splits_and_columns_of_its_own(tmp_path: Path) -> None:
    path = table(tmp_path, "image,x,y,part\n0.png,1,2,train\n1.png,3,4,test\n2.png,5,6,train\n")
    found = read_csv(path, "train", file="image", label=("x", "y"), split_column="part", channels=1)
    assert found.labels.tolist() == [[1.0, 2.0], [5.0, 6.0]]
    assert (found.names, found.images.shape) == (("0.png", "2.png"), (2, 1, 3, 4))
    assert read_csv(path, file="image", label="x").classes == ("0", "1", "2", "3", "4", "5")
    assert read_csv(path, file="image", label="x", numbers=True).labels.tolist() == [1.0, 3.0, 5.0]


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("file,class\n0.png,1\n", {}, r"has a column 'label' as asked for, but .* has 'file', 'class'"),
        ("file,label\n", {}, r"a line for each image, but .* has none"),
        ("file,label\n0.png,\n", {}, r"line 2 of .* has none in column 'label'"),
        ("file,label\n0.png,1\n9.png,1\n", {}, r"line 3 of .* names '9.png', which is not"),
        ("file,label,split\n0.png,1,train\n", {"split": "test"}, r"has 'test'; it has 'train'"),
        ("file,label\n0.png,cat\n", {"numbers": True}, r"line 2 of .* has 'cat' in column 'label'"),
        ("file,label\n0.png,1\n2.png,1\n", {}, r"2.png of .* is 9x7 where those before it are 4x3; resize"),
        ("file,label\ntable.csv,1\n", {}, r"table.csv of .* is corrupt"),
    ],
)
def test_a_wrong_table_is_one_sentence(
    tmp_path: Path, text: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(TaskError, match=words) as caught:
        read_csv(table(tmp_path, text, ((4, 3), (4, 3), (9, 7))), **options)
    assert "\n" not in str(caught.value)


def test_more_images_than_memory_are_decoded_into_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "IN_MEMORY_BYTES", 0)
    images, kept = decoding.decoded(
        ["0.png", "2.png"], lambda name: (tmp_path / name).read_bytes(), table(tmp_path, ""), 3
    )
    assert isinstance(images, np.memmap)
    assert images[:, 0, 0, 0].tolist() == [0, 20]
    assert kept == [0, 1]


def saved(folder: Path, images: Any, labels: Any) -> tuple[Path, Path]:
    for name, array in (("x.npy", images), ("y.npy", labels)):
        np.save(folder / name, array)
    return folder / "x.npy", folder / "y.npy"


@pytest.mark.parametrize("shape", [(4, 3, 6, 5), (4, 6, 5, 3), (4, 6, 5), (4, 1, 6, 5)])
def test_arrays_of_images_are_mapped_with_channels_first(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = read_npy(*saved(tmp_path, pixels, np.array([[0], [1], [1], [0]])))
    assert found.images.shape == (4, 3 if 3 in shape else 1, 6, 5)
    wanted = (
        pixels[2, :, :, 1] if shape[3:] == (3,) else pixels[2, 1] if 3 in shape else pixels[2].reshape(6, 5)
    )
    assert (found.images[2, 1 if 3 in shape else 0] == wanted).all()
    assert (found.labels.tolist(), found.classes) == ([0, 1, 1, 0], ("0", "1"))
    assert isinstance(found.images.base, np.memmap) or isinstance(found.images, np.memmap)


def test_arrays_of_other_labels_are_numbers(tmp_path: Path) -> None:
    pixels = np.zeros((2, 6, 5), np.uint8)
    found = read_npy(*saved(tmp_path, pixels, np.array([0.25, 3.0])))
    assert (found.labels.tolist(), found.labels.dtype, found.classes) == ([0.25, 3.0], np.float32, ())


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.zeros((2, 6, 5)), np.zeros(2, int), r"x.npy is float64 \(2, 6, 5\); other arrays"),
        (np.zeros((2, 4, 6, 5), np.uint8), np.zeros(2, int), r"1 or 3 channels"),
        (np.zeros((2, 6, 5), np.uint8), np.zeros(3, int), r"has 2 images and .* is int64 \(3,\)"),
        (np.zeros((2, 6, 5), np.uint8), np.array([0, 2]), r"class '1' of .* has none"),
        (np.array([None]), np.zeros(1, int), r"cannot be read as one"),
    ],
)
def test_wrong_arrays_are_one_sentence(tmp_path: Path, images: Any, labels: Any, words: str) -> None:
    with pytest.raises(TaskError, match=words) as caught:
        read_npy(*saved(tmp_path, images, labels))
    assert "\n" not in str(caught.value)


def test_parts_are_drawn_once_and_hold_each_image_once() -> None:
    images = Images(np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1), np.arange(20) % 2, ("a", "b"))
    parts, again = (split_at_random(images, 0.6, 0.2, 0.2) for _ in range(2))
    assert [len(part) for part in parts] == [12, 4, 4]
    assert sorted(np.concatenate([part.images.ravel() for part in parts])) == list(range(20))
    assert all((one.images == other.images).all() for one, other in zip(parts, again, strict=True))
    for wrong in ((0.5, 0.6), (1.5, -0.5), (0.01, 0.99)):
        with pytest.raises(TaskError, match=r"correct them|for \(0\.01, 0\.99\); add some"):
            split_at_random(images, *wrong)
