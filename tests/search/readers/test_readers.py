"""The data readers on real files: what they read, what they keep, and the sentence for each wrong input."""

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from leanfront.search.readers import (
    Images,
    TaskError,
    cache_folder,
    read_cifar10,
    read_cifar10_batches,
    read_fashion_mnist,
    read_idx,
    read_image_folder,
    split_each_class,
)
from leanfront.search.readers.cache import content_key

CIFAR10_ZIP = Path(__file__).parents[4] / "shared/data/cifar10_jpeg.zip"
needs_cifar10 = pytest.mark.skipif(
    not CIFAR10_ZIP.exists() and os.environ.get("CI") != "true", reason=f"needs {CIFAR10_ZIP}"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LEANFRONT_CACHE", str(folder))
    return folder


def png(value: int, width: int = 4, height: int = 3, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height), value if mode != "RGB" else (value, value + 1, value + 2)).save(
        file, "PNG"
    )
    return file.getvalue()


TREE = {
    "set/train/cat/b.png": png(20),
    "set/train/cat/a.png": png(10),
    "set/train/dog/c.png": png(30),
    "set/test/cat/d.png": png(40),
    "set/test/dog/e.png": png(50),
}


def make(tree: dict[str, bytes], kind: str, at: Path) -> Path:
    if kind == "zip":
        with zipfile.ZipFile(at / "data.zip", "w") as archive:
            for name, data in tree.items():
                archive.writestr(name, data)
        return at / "data.zip"
    for name, data in tree.items():
        (at / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (at / "data" / name).write_bytes(data)
    return at / "data"


both = pytest.mark.parametrize("kind", ["zip", "folder"])


@both
@pytest.mark.parametrize("split", ["train", "set/train"])
def test_reads_a_split_in_sorted_order(tmp_path: Path, kind: str, split: str) -> None:
    tree = TREE | {
        "__MACOSX/set/train/cat/._a.png": b"x",
        "set/train/.DS_Store": b"x",
        "set/readme.txt": b"x",
    }
    images = read_image_folder(make(tree, kind, tmp_path), split)
    assert images.images.dtype == np.uint8
    assert images.images.shape == (3, 3, 3, 4)
    assert images.images[:, :, 0, 0].tolist() == [[10, 11, 12], [20, 21, 22], [30, 31, 32]]
    assert (images.labels.tolist(), images.classes) == ([0, 0, 1], ("cat", "dog"))
    assert images.names == ("cat/a.png", "cat/b.png", "dog/c.png")


@both
def test_wrapping_folders_are_passed_through_and_grey_is_one_channel(tmp_path: Path, kind: str) -> None:
    tree = {"pets/all/cat/a.png": png(7, mode="L"), "pets/all/dog/b.png": png(9, mode="L")}
    images = read_image_folder(make(tree, kind, tmp_path), channels=1)
    assert images.images.shape == (2, 1, 3, 4)
    assert images.images[:, 0, 0, 0].tolist() == [7, 9]


@both
@pytest.mark.parametrize(
    ("change", "split", "words"),
    [
        ({}, "val", r"no folder 'val'; it has set, set/test, set/train"),
        ({}, "cat", r"'cat' fits set/test/cat, set/train/cat"),
        ({}, None, r"one folder deep.*set/test/cat/d.png.*split"),
        (
            {"set/train/dog/c.png": png(30, width=5)},
            "train",
            r"set/train/dog/c.png .*is 5x3 .*are 4x3; resize",
        ),
        (
            {"set/train/dog/c.png": TREE["set/train/dog/c.png"][:50]},
            "train",
            r"set/train/dog/c.png .*is corrupt",
        ),
        ({"set/train/emu/notes.txt": b"none yet"}, "train", r"'emu' .*has none"),
        ({"set/train/stray.png": png(1)}, "train", r"one folder deep.*stray.png"),
        ({"set/train/cat/a.png": png(1, mode="I;16")}, "train", r"8 bits.*I;16.*set/train/cat/a.png"),
    ],
)
def test_bad_tree(tmp_path: Path, kind: str, change: dict[str, bytes], split: str | None, words: str) -> None:
    with pytest.raises(TaskError, match=words) as caught:
        read_image_folder(make(TREE | change, kind, tmp_path), split)
    assert "\n" not in str(caught.value)


def test_a_missing_path_and_a_truncated_zip_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"does not exist; download"):
        read_image_folder(tmp_path / "nothing.zip")
    path = make(TREE, "zip", tmp_path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(TaskError, match=r"cut short, so download it again"):
        read_image_folder(path, "train")


@both
def test_corrupt_images_are_skipped_only_on_request_and_always_reported(tmp_path: Path, kind: str) -> None:
    path = make(TREE | {"set/train/cat/a.png": b"not an image"}, kind, tmp_path)
    with pytest.raises(TaskError, match=r"set/train/cat/a.png .*skip_corrupt=True"):
        read_image_folder(path, "train")
    for _ in range(2):  # the second time from the cache
        with pytest.warns(UserWarning, match=r"1 corrupt images .*cat/a.png"):
            images = read_image_folder(path, "train", skip_corrupt=True)
        assert images.names == ("cat/b.png", "dog/c.png")
        assert images.skipped == ("cat/a.png",)
    path = make(TREE | {"set/train/dog/c.png": b"not an image"}, kind, tmp_path)
    with pytest.raises(TaskError, match=r"all of 'dog' .*are corrupt"):
        read_image_folder(path, "train", skip_corrupt=True)


@both
def test_the_second_load_decodes_nothing(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(TREE, kind, tmp_path)
    first = read_image_folder(path, "train")
    monkeypatch.setattr(Image, "open", None)
    second = read_image_folder(path, "train")
    assert isinstance(second.images, np.memmap)
    assert (second.images == first.images).all()
    assert (second.classes, second.names) == (first.classes, first.names)


@both
def test_changed_content_is_read_again(tmp_path: Path, kind: str) -> None:
    read_image_folder(make(TREE, kind, tmp_path), "train")
    changed = read_image_folder(make(TREE | {"set/train/cat/a.png": png(99)}, kind, tmp_path), "train")
    assert changed.images[0, 0, 0, 0] == 99


@pytest.mark.parametrize("file", ["images.npy", "labels.npy", "about.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_cache_is_rebuilt(tmp_path: Path, own_cache: Path, file: str, damage: str) -> None:
    path = make(TREE, "zip", tmp_path)
    read_image_folder(path, "train")
    (kept,) = own_cache.glob(f"*/{file}")
    data = kept.read_bytes()
    kept.unlink()  # a new file: the old one may still be mapped
    if damage != "gone":
        kept.write_bytes(data[:-1] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    again = read_image_folder(path, "train")
    assert again.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert again.labels.tolist() == [0, 0, 1]
    assert kept.read_bytes() == data
    assert len(list(own_cache.iterdir())) == 1


def test_an_unwritable_cache_costs_only_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("a file where the folder should be")
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="could not be kept"):
        images = read_image_folder(make(TREE, "zip", tmp_path), "train")
    assert len(images) == 3


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("LEANFRONT_CACHE", "/own")
    assert cache_folder() == Path("/own")
    monkeypatch.delenv("LEANFRONT_CACHE")
    assert cache_folder() == Path("/x/leanfront")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/leanfront"


@given(st.lists(st.text(max_size=3), max_size=4), st.lists(st.text(max_size=3), max_size=4))
def test_two_contents_share_a_key_only_when_equal(one: list[str], other: list[str]) -> None:
    assert (content_key(one) == content_key(other)) == (one == other)


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


PIXELS = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2)
LABELS = np.array([1, 0, 1], dtype=np.uint8)


@pytest.mark.parametrize("packed", [False, True])
def test_reads_idx(tmp_path: Path, packed: bool) -> None:
    for name, array in (("images", PIXELS), ("labels", LABELS)):
        (tmp_path / name).write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    images = read_idx(tmp_path / "images", tmp_path / "labels", ["no", "yes"])
    assert (images.images == PIXELS[:, None]).all()
    assert images.images.shape == (3, 1, 2, 2)
    assert (images.labels.tolist(), images.labels.dtype, images.classes) == (
        [1, 0, 1],
        np.int64,
        ("no", "yes"),
    )


@pytest.mark.parametrize(
    ("pixels", "labels", "classes", "words"),
    [
        (idx(PIXELS), idx(LABELS), 1, r"0 to 0 for 1 classes, but example 0 .*has 1"),
        (idx(PIXELS), idx(LABELS), 3, r"class '2' .*has none"),
        (idx(PIXELS), idx(LABELS[:2]), 2, r"3 images .*2 labels"),
        (idx(PIXELS)[:-1], idx(LABELS), 2, r"11 of the 12 bytes"),
        (gzip.compress(idx(PIXELS), mtime=0)[:-12], idx(LABELS), 2, r"must be whole"),
        (
            idx(LABELS),
            idx(PIXELS),
            2,
            r"begins with 00 00 08 03, but .*begins with 00 00 08 01; give the images",
        ),
        (b"", idx(LABELS), 2, r"begins with nothing"),
        (None, idx(LABELS), 2, r"does not exist"),
    ],
)
def test_wrong_idx_is_one_sentence(
    tmp_path: Path, pixels: bytes | None, labels: bytes, classes: int, words: str
) -> None:
    if pixels is not None:
        (tmp_path / "images").write_bytes(pixels)
    (tmp_path / "labels").write_bytes(labels)
    with pytest.raises(TaskError, match=words):
        read_idx(tmp_path / "images", tmp_path / "labels", classes)


def test_fashion_mnist_from_its_four_files_or_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="apt install dataset-fashion-mnist"):
        read_fashion_mnist("test", tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros((20, 28, 28), np.uint8))))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.arange(20, dtype=np.uint8) % 10))
    images = read_fashion_mnist("test", tmp_path)
    assert images.images.shape == (20, 1, 28, 28)
    assert images.classes[images.labels[9]] == "ankle boot"
    with pytest.raises(TaskError, match="'train' and 'test', but 'val'"):
        read_fashion_mnist("val", tmp_path)


def batch(count: int, start: int) -> dict[bytes, Any]:
    data = (np.arange(count * 3072) + start).astype(np.uint8).reshape(count, 3072)
    names = [f"{start}_{i}.png".encode() for i in range(count)]
    return {b"data": data, b"labels": [i % 10 for i in range(count)], b"filenames": names}


def python2_pickle(content: dict[bytes, Any]) -> bytes:
    """The batch in the opcodes that Python 2's numpy wrote, as in the official files."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    data, labels, names = content[b"data"], content[b"labels"], content[b"filenames"]
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        + number(0)
        + b"\x85"
        + text(b"b")
        + b"\x87R"
    )
    array += b"(" + number(1) + number(data.shape[0]) + number(data.shape[1]) + b"\x86"
    array += dtype + b"\x89" + text(data.tobytes()) + b"tb"
    numbers = b"](" + b"".join(map(number, labels)) + b"e"
    strings = b"](" + b"".join(map(text, names)) + b"e"
    pairs = text(b"data") + array + text(b"labels") + numbers + text(b"filenames") + strings
    return b"\x80\x02}(" + pairs + b"u."


def cifar10_tar(at: Path, test_batch: bytes | None = None) -> Path:
    files = {f"data_batch_{i}": python2_pickle(batch(10, i)) for i in range(1, 6)}
    files["test_batch"] = test_batch or pickle.dumps(batch(10, 77), protocol=2)
    path = at / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


@pytest.mark.parametrize("unpacked", [False, True])
def test_reads_cifar10_batches(tmp_path: Path, unpacked: bool) -> None:
    path = cifar10_tar(tmp_path)
    if unpacked:
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path, filter="data")
        path = tmp_path
    train, test = read_cifar10_batches(path, "train"), read_cifar10_batches(path, "test")
    expected = np.concatenate([batch(10, i)[b"data"] for i in range(1, 6)]).reshape(-1, 3, 32, 32)
    assert (train.images == expected).all()
    assert train.labels.tolist() == list(range(10)) * 5
    assert (test.images == batch(10, 77)[b"data"].reshape(-1, 3, 32, 32)).all()
    assert test.names == tuple(f"77_{i}.png" for i in range(10))


class _Attack:
    def __init__(self, at: Path) -> None:
        self.at = at

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.at),)


def test_a_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    path = cifar10_tar(tmp_path, pickle.dumps(batch(10, 1) | {b"x": _Attack(tmp_path / "owned")}, protocol=2))
    with pytest.raises(TaskError, match=r"asks for (posix|nt)\.mkdir, which no batch needs"):
        read_cifar10_batches(path, "test")
    assert not (tmp_path / "owned").exists()
    objects = batch(10, 1) | {b"data": np.array([None], dtype=object)}
    with pytest.raises(TaskError, match="images are not bytes"):
        read_cifar10_batches(cifar10_tar(tmp_path, pickle.dumps(objects, protocol=2)), "test")


def test_damaged_batches_are_one_sentence(tmp_path: Path) -> None:
    path = cifar10_tar(tmp_path, pickle.dumps(batch(10, 1) | {b"labels": [1]}, protocol=2))
    with pytest.raises(TaskError, match="10 images, 1 labels"):
        read_cifar10_batches(path, "test")
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(TaskError, match=r"whole, but .*download"):
        read_cifar10_batches(path, "train")
    with pytest.raises(TaskError, match="data_batch_1 cannot be read"):
        read_cifar10_batches(tmp_path, "train")


def test_missing_cifar10_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"download https://\S+cifar-10-python.tar.gz and give its path"):
        read_cifar10(tmp_path / "cifar10.zip")


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(0, 5))
def test_split_each_class_takes_the_first_of_each(labels: list[int], count: int) -> None:
    wanted = np.array(labels + [0, 1, 2] * (count + 1))
    pixels = np.arange(len(wanted), dtype=np.uint8).reshape(-1, 1, 1, 1)
    images = Images(pixels, wanted, ("a", "b", "c"), tuple(map(str, range(len(wanted)))))
    first, rest = split_each_class(images, count)
    for half in (first, rest):
        assert half.names == tuple(str(i) for i in half.images.ravel())
        assert (wanted[half.images.ravel()] == half.labels).all()
    for label in range(3):
        ours, others = first.images[first.labels == label], rest.images[rest.labels == label]
        assert np.concatenate([ours, others]).ravel().tolist() == np.flatnonzero(wanted == label).tolist()
        assert len(ours) == count
    with pytest.raises(TaskError, match="has only"):
        split_each_class(images, len(wanted))


def test_readers_load_no_torch() -> None:
    code = "import sys, leanfront.search.readers; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


@needs_cifar10
def test_the_halves_of_the_cifar10_zip_are_the_documented_files() -> None:
    held_out = read_image_folder(CIFAR10_ZIP, "cifar10/test")
    search, test = split_each_class(held_out, 500)
    assert (len(search), len(test)) == (5000, 5000)
    assert {name.split("/")[1] for name in search.names or ()} == {f"{i:04}.jpg" for i in range(500)}
    assert {name.split("/")[1] for name in test.names or ()} == {f"{i:04}.jpg" for i in range(500, 1000)}
    assert np.bincount(search.labels).tolist() == [500] * 10
