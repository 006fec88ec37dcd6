"""Images in one folder per class, as a folder on disk or inside a .zip."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from leanfront.search.readers.cache import cached, content_key
from leanfront.search.readers.decoding import SUFFIXES, decoded
from leanfront.search.readers.images import Images, TaskError

MOST_BYTES = 1 << 28
"""The largest file that is taken for an image: an entry of a .zip may unpack to a thousand times its size."""


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
    images, kept = decoded(
        [name for _, name in wanted], partial(_content, source), source.name, channels, skip_corrupt
    )
    short = [str(PurePosixPath(name).relative_to(root)) for _, name in wanted]
    labels = [wanted[number][0] for number in kept]
    if missing := sorted(set(range(len(members))) - set(labels)):
        raise TaskError(
            f"Each class needs at least one readable image, but all of {list(members)[missing[0]]!r} of "
            f"{source.name} are corrupt; replace them"
        )
    there = set(kept)
    skipped = tuple(name for number, name in enumerate(short) if number not in there)
    names = tuple(short[number] for number in kept)
    return Images(images, np.asarray(labels, dtype=np.int64), tuple(members), names, skipped)


def _content(source: _Source, name: str) -> bytes:
    size = int(source.files[name].split()[0])
    if size > MOST_BYTES:
        raise TaskError(f"An image file has at most {MOST_BYTES} bytes, but one has {size}; make it smaller")
    return source.read(name)
