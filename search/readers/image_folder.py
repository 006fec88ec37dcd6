"""Images in one folder per class, as a folder on disk or inside a .zip."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from leanfront.search.readers.cache import cached, content_key
from leanfront.search.readers.images import Images, TaskError

MOST_BYTES = 1 << 28
"""The largest file that is taken for an image: an entry of a .zip may unpack to a thousand times its size."""
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
FORMATS = (
    "JPEG",
    "PNG",
    "BMP",
    "GIF",
    "WEBP",
    "PPM",
    "TIFF",
)  # no decoder beyond these sees the user's files


def read_image_folder(
    path: Path | str, split: str | None = None, *, channels: int = 3, skip_corrupt: bool = False
) -> Images:
    """Reads `<class>/<image>` from a folder or a .zip; classes and files are in sorted order.

    split: the folder that holds the class folders, as the end of its path: "train" finds "cifar10/train".
    Without it, folders that only wrap the class folders are passed through. channels: 3 decodes to RGB, 1 to
    grey. The decoded images are cached (see search.readers.cache).

    Raises TaskError for a missing path, a damaged zip, an unknown or ambiguous split, an empty class, images
    of different size, and a corrupt image; with skip_corrupt those are left out, counted in a warning and
    listed in `skipped`.
    """
    path = Path(path)
    if channels not in (1, 3):
        raise TaskError(f"Images have 1 or 3 channels, but channels is {channels}; give one of these")
    with _open(path) as source:
        root = _find_split(source, split)
        key = content_key(
            [str(channels), str(skip_corrupt), str(root)]
            + [f"{name} {fingerprint}" for name, fingerprint in source.files.items()]
        )
        images = cached(key, lambda: _decode(source, root, channels, skip_corrupt))
    if images.skipped:
        warnings.warn(
            f"{len(images.skipped)} corrupt images of {path} were skipped, the first is {images.skipped[0]}",
            stacklevel=2,
        )
    return images


@dataclass(frozen=True)
class _Source:
    """A tree of files: path inside it -> what changes when it does (size with CRC or time), and a reader."""

    name: Path
    files: Mapping[str, str]
    folders: frozenset[PurePosixPath]
    read: Callable[[str], bytes]


@contextmanager
def _open(path: Path) -> Iterator[_Source]:
    if path.is_dir():
        yield _folder_source(path)
    elif not path.exists():
        raise TaskError(
            f"Image data is a folder or .zip with one folder of images per class, but {path} does not exist; "
            "download the data set and give the path of its folder or .zip"
        )
    else:
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as problem:
            raise TaskError(
                f"Image data is a folder or a complete .zip, but {path} cannot be opened as one ({problem}); "
                "it may be cut short, so download it again"
            ) from problem
        with archive:
            yield _zip_source(path, archive)


def _folder_source(path: Path) -> _Source:
    files: dict[str, str] = {}
    folders: set[PurePosixPath] = set()
    for parent, subfolders, names in os.walk(path, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not _is_clutter(name))
        here = PurePosixPath(Path(parent).relative_to(path).as_posix())
        folders.add(here)
        for name in sorted(names):
            if not _is_clutter(name):
                status = Path(parent, name).stat()
                files[str(here / name)] = f"{status.st_size} {status.st_mtime_ns}"
    return _Source(path, files, frozenset(folders), lambda name: (path / name).read_bytes())


def _zip_source(path: Path, archive: zipfile.ZipFile) -> _Source:
    files: dict[str, str] = {}
    parents = {""}
    for entry in archive.infolist():
        parent, _, name = entry.filename.rpartition("/")  # a folder's own entry ends with "/": no name
        parents.add(parent)
        if name and not _is_clutter(name):
            files[entry.filename] = f"{entry.file_size} {entry.CRC}"
    clutter = {parent for parent in parents if parent and any(map(_is_clutter, parent.split("/")))}
    files = {name: state for name, state in files.items() if name.rpartition("/")[0] not in clutter}
    folders = {PurePosixPath(parent) for parent in parents - clutter}
    folders |= {above for folder in folders for above in folder.parents}
    return _Source(path, files, frozenset(folders), archive.read)


def _is_clutter(name: str) -> bool:
    return not name or name.startswith(".") or name == "__MACOSX"


def _find_split(source: _Source, split: str | None) -> PurePosixPath:
    """The folder whose subfolders are the classes."""
    if split is None:
        root = PurePosixPath(".")
        while True:
            below = [folder for folder in source.folders if folder != root and folder.parent == root]
            if len(below) != 1 or not any(folder.parent == below[0] for folder in source.folders):
                return root
            root = below[0]
    wanted = PurePosixPath(split).parts
    found = [folder for folder in source.folders if wanted and folder.parts[-len(wanted) :] == wanted]
    # A class may bear the split's name ("train/train"): the outer folder is the split.
    found = sorted(folder for folder in found if not set(folder.parents) & set(found))
    if len(found) == 1:
        return found[0]
    if found:
        raise TaskError(
            f"A split names one folder, but {split!r} fits {', '.join(map(str, found))} of {source.name}; "
            "give more of its path"
        )
    near = sorted(folder for folder in source.folders if 0 < len(folder.parts) <= 2)[:8]
    raise TaskError(
        f"A split names a folder, but {source.name} has no folder {split!r}; "
        f"it has {', '.join(map(str, near)) or 'no folders'}"
    )


def _members(source: _Source, root: PurePosixPath) -> dict[str, list[str]]:
    """Class name -> its image files, as paths inside the source, both sorted."""
    classes: dict[str, list[str]] = {
        folder.name: [] for folder in sorted(source.folders) if folder != root and folder.parent == root
    }
    prefix = "" if root == PurePosixPath(".") else f"{root}/"
    for name in sorted(source.files):
        if not name.startswith(prefix) or PurePosixPath(name).suffix.lower() not in SUFFIXES:
            continue
        parts = name[len(prefix) :].split("/")
        if len(parts) != 2:
            raise TaskError(
                f"Images lie exactly one folder deep, in the folder of their class, but {source.name} has "
                f"{name}; move it, or name the folder above the class folders as the split"
            )
        classes[parts[0]].append(name)
    if not classes:
        raise TaskError(
            f"Image data has one folder of images per class, but {source.name} has no folder in "
            f"{str(root)!r}; give the folder that holds the class folders"
        )
    for label, names in classes.items():
        if not names:
            raise TaskError(
                f"Each class folder needs at least one image, but {label!r} of {source.name} has none "
                f"({', '.join(sorted(SUFFIXES))}); add some or remove it"
            )
    return classes


def _decode(source: _Source, root: PurePosixPath, channels: int, skip_corrupt: bool) -> Images:
    members = _members(source, root)
    wanted = [(label, name) for label, names in enumerate(members.values()) for name in names]
    images: NDArray[np.uint8] | None = None
    labels: list[int] = []
    kept: list[str] = []
    skipped: list[str] = []
    for label, name in wanted:
        short = str(PurePosixPath(name).relative_to(root))
        try:
            pixels = _decode_one(_content(source, name), channels)
        except TaskError as problem:
            raise TaskError(f"{problem} ({name} of {source.name})") from None
        except Exception as problem:  # decoders and the zip reader raise a dozen types for broken bytes
            if not skip_corrupt:
                raise TaskError(
                    f"Each image must be readable, but {name} of {source.name} is corrupt ({problem}); "
                    "replace it, or read with skip_corrupt=True"
                ) from problem
            skipped.append(short)
            continue
        if images is None:
            images = np.empty((len(wanted), *pixels.shape), dtype=np.uint8)
        if pixels.shape != images.shape[1:]:
            raise TaskError(
                f"All images must have one size, but {name} of {source.name} is {_size(pixels.shape)} where "
                f"those before it are {_size(images.shape[1:])}; resize or remove it"
            )
        images[len(kept)] = pixels
        labels.append(label)
        kept.append(short)
    missing = sorted(set(range(len(members))) - set(labels))
    if images is None or missing:
        raise TaskError(
            f"Each class needs at least one readable image, but all of {list(members)[missing[0]]!r} of "
            f"{source.name} are corrupt; replace them"
        )
    return Images(
        images[: len(kept)], np.asarray(labels, dtype=np.int64), tuple(members), tuple(kept), tuple(skipped)
    )


def _content(source: _Source, name: str) -> bytes:
    size = int(source.files[name].split()[0])
    if size > MOST_BYTES:
        raise TaskError(f"An image file has at most {MOST_BYTES} bytes, but one has {size}; make it smaller")
    return source.read(name)


def _decode_one(data: bytes, channels: int) -> NDArray[np.uint8]:
    """One image as uint8 (channels, H, W)."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.mode[0] in "IF":
            raise TaskError(f"Images must have 8 bits a channel, but one has mode {image.mode}; convert it")
        pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"), dtype=np.uint8)
    return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]}"
