"""What every trial goes through: kept in memory, or decoded on a disk that workers share, or made anew."""

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

T = TypeVar("T")
KEPT_BYTES = 600_000_000
"""What is kept in memory is at most so large: the images of a fine-tune, the teacher's answers to them, and
the same of the search split."""
FREE_BYTES = 2_000_000_000
"""So much of a disk is left to others."""
_BUCKETS = 65535
_CODES = 256


@dataclass(frozen=True)
class Again(Generic[T]):
    """The same items each time it is iterated, made anew."""

    make: Callable[[], Iterator[T]]

    def __iter__(self) -> Iterator[T]:
        return self.make()


def kept(make: Callable[[], Iterator[T]], floats: int) -> Iterable[T]:
    """Items that hold so many floats together: in memory, or made anew each time where that is too much."""
    return list(make()) if fits(floats) else Again(make)


def fits(floats: int) -> bool:
    """Whether so many floats of 32 bits are kept in memory."""
    return floats * 4 <= KEPT_BYTES


def kept_answers(make: Callable[[], Iterator[Any]], floats: int) -> Iterable[Any] | None:
    """A network's outputs, so many floats together, in memory: in half precision where only that fits and
    holds them all (its largest number is 65504). None where they must be computed each time."""
    if fits(floats):
        return list(make())
    if not fits(-(-floats // 2)):
        return None
    halved = []
    for outputs in make():
        half = pytree.tree_map_only(Tensor, lambda x: x.half() if x.dtype == torch.float32 else x, outputs)
        if not all(bool(x.isfinite().all()) for x in pytree.tree_leaves(half) if isinstance(x, Tensor)):
            return None
        halved.append(half)
    return Again(lambda: (pytree.tree_map_only(Tensor, _single, half) for half in halved))


def _single(answers: Tensor) -> Tensor:
    return answers.float() if answers.dtype == torch.float16 else answers


def stored(
    folder: Path, name: str, make: Callable[[], Iterator[T]], note: Callable[[str], None]
) -> Iterable[T]:
    """Items (tensors, numbers and text in lists, tuples and dictionaries) in files of a folder, exactly as
    they are made; whoever asks first makes them, others wait for it and find them.

    They are known by name and by what the first of them holds, which is made each time: a data set that was
    changed is another. Images of at most 256 values a channel, as those from files of 8 bits are, take a byte
    a value. What cannot be written, on a disk that is (nearly) full, say, is made anew each time, and
    ``note`` hears of it.
    """
    with closing(make()) as first:  # type: ignore[type-var]  # generators, all of them
        digest = _digest(next(iter(first)))
    place = folder / f"{name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            beside = folder / f".{name}.partial"
            shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed, if it is there
            try:
                _write(beside, make())
                beside.rename(place)
            except _NotWrittenError as problem:
                note(f"images cannot be kept in {folder}, so each trial decodes them anew: {problem}")
                return Again(make)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    return Again(lambda: map(_read, sorted(place.iterdir())))


class _NotWrittenError(Exception):
    """Items were made, but could not be written, and why."""


def _write(folder: Path, items: Iterable[Any]) -> None:
    folder.mkdir()
    for number, item in enumerate(items):
        path = folder / f"{number:06d}.pt"
        try:
            if shutil.disk_usage(folder).free < FREE_BYTES:
                raise OSError("the disk is nearly full")
            _write_one(path, item)
            if number == 0:
                _read(path)  # what only a pickle could hold is not read
        except Exception as problem:  # of many kinds: a disk, a container of somebody's own
            raise _NotWrittenError(" ".join(str(problem).split())) from problem


def _write_one(path: Path, item: Any) -> None:
    leaves, spec = pytree.tree_flatten(item)
    tables: dict[int, Tensor] = {}
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) and (coded := in_bytes(leaf)) is not None:
            leaves[place], tables[place] = coded
    torch.save({"leaves": leaves, "tables": tables, "spec": pytree.treespec_dumps(spec)}, path)


def _read(path: Path) -> Any:
    content = torch.load(path, mmap=True, weights_only=True)
    leaves = content["leaves"]
    for place, table in content["tables"].items():
        leaves[place] = from_bytes(leaves[place], table)
    return pytree.tree_unflatten(leaves, pytree.treespec_loads(content["spec"]))


def in_bytes(images: Tensor) -> tuple[Tensor, Tensor] | None:
    """Images (N, C, H, W) or an image (C, H, W) in float32 as bytes of the same shape, and what each byte of
    a channel stands for, (C, 256); None where a channel has more values, or is too small to be worth it."""
    if images.dtype != torch.float32 or images.dim() not in (3, 4):
        return None
    pixels = images.numpy()
    by_channel = np.moveaxis(pixels, -3, 0)
    if by_channel[0].size < 4 * _CODES:
        return None
    codes = np.empty(pixels.shape, np.uint8)
    table = np.zeros((len(by_channel), _CODES), np.float32)
    for channel, code, row in zip(by_channel, np.moveaxis(codes, -3, 0), table, strict=True):
        values = channel.reshape(-1)
        if _coded(values[: 16 * _CODES]) is None or (found := _coded(values)) is None:
            return None
        row[: len(found[1])] = found[1]
        code[...] = found[0].reshape(code.shape)
    return torch.from_numpy(codes), torch.from_numpy(table)


def _coded(values: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]] | None:
    """Bytes, and the values that they stand for, found with narrow buckets, of which each must hold one value
    only: sorting takes five times as long."""
    low, span = values.min(), values.max() - values.min()
    if not np.isfinite(span):
        return None
    bucket = ((values - low) * ((_BUCKETS - 1) / span if span else 0.0)).astype(np.uint16)
    held, seen = np.zeros(_BUCKETS, np.float32), np.zeros(_BUCKETS, bool)
    held[bucket], seen[bucket] = values, True
    if int(seen.sum()) > _CODES or not np.array_equal(held[bucket], values):
        return None
    return (np.cumsum(seen) - 1).astype(np.uint8)[bucket], held[seen]


def from_bytes(codes: Tensor, table: Tensor) -> Tensor:
    """The images that ``in_bytes`` was given."""
    coded, values = codes.numpy(), table.numpy()
    pixels = np.empty(coded.shape, np.float32)
    places = zip(np.moveaxis(coded, -3, 0), np.moveaxis(pixels, -3, 0), values, strict=True)
    for code, channel, row in places:
        channel[...] = row.take(code)
    return torch.from_numpy(pixels)


def _digest(item: Any) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for leaf in pytree.tree_leaves(item):
        if isinstance(leaf, Tensor):
            digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            digest.update(leaf.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()
