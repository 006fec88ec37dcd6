"""The data of a task: examples that can be had by index, from arrays, torch datasets and their loaders."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
)

from leanfront.search.readers.images import TaskError


@runtime_checkable
class Data(Protocol):
    """Examples that can be had by index, a whole batch at a time."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def batch(self, indices: Tensor, generator: torch.Generator | None) -> tuple[Any, Any]:
        """The examples at indices (N,) int64: inputs as the model takes them (a tensor (N, ...), scaled; a
        tuple of arguments, a dictionary of keywords), and targets as loss and score take them.

        With a generator the inputs carry training augmentation drawn from it; with None they carry none.
        """
        ...


@dataclass(frozen=True, eq=False)
class ArrayData:
    """Images held in one array, as the readers return them, with crop and flip for training.

    images: (N, C, H, W), either uint8 (scaled to 0..1 here) or floats (taken as scaled already), perhaps a
    memory map; labels: (N,) integers, class numbers, or floats (N,) or (N, k), what a regression or several
    answers of yes and no learn; mean, std: one number per channel, applied after scaling; pad: pixels
    of zeros on each side before a random crop back to H x W; flip: mirror half of the images left to right.
    Pad and flip act only where batch() is given a generator. Raises TaskError when the parts do not fit
    together.
    """

    images: NDArray[Any]
    labels: NDArray[Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        require(
            self.images.ndim == 4 and (self.images.dtype == np.uint8 or self.images.dtype.kind == "f"),
            f"Images are a uint8 or float array (N, C, H, W), but {self.images.dtype} {self.images.shape} "
            "came; convert it",
        )
        require(
            self.labels.shape[:1] == self.images.shape[:1]
            and (
                (self.labels.ndim == 1 and self.labels.dtype.kind in "iu")
                or (self.labels.ndim <= 2 and self.labels.dtype.kind == "f")
            ),
            f"Labels are one integer per image, ({len(self.images)},), or floats ({len(self.images)},) or "
            f"({len(self.images)}, k), but {self.labels.dtype} {self.labels.shape} came; give class numbers "
            "from 0, or convert to floats",
        )
        channels = self.images.shape[1]
        require(
            len(self.mean) == len(self.std) == channels and min(self.std) > 0,
            f"Mean and std have one number per channel ({channels}), std above 0, but {self.mean} and "
            f"{self.std} came; correct them",
        )
        require(self.pad >= 0, f"Padding is a number of pixels, 0 or more, but {self.pad} came; correct it")

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """See Data.batch; the inputs are float32, the targets int64 or, of floats, float32."""
        rows = indices.numpy()
        pixels = np.asarray(self.images)[rows]
        if generator is not None and self.pad:
            pixels = _random_crop(pixels, self.pad, generator)
        inputs = torch.from_numpy(pixels)
        if generator is not None and self.flip:
            mirrored = torch.rand(len(rows), generator=generator) < 0.5
            inputs = torch.where(mirrored[:, None, None, None], inputs.flip(3), inputs)
        full_scale = 255.0 if inputs.dtype == torch.uint8 else 1.0
        std = torch.tensor(self.std).view(-1, 1, 1)
        mean = torch.tensor(self.mean).view(-1, 1, 1)
        inputs = (inputs.to(torch.float32) * (1 / (full_scale * std))).sub_(mean / std)
        kind = np.float32 if self.labels.dtype.kind == "f" else np.int64
        return inputs, torch.from_numpy(np.asarray(self.labels)[rows].astype(kind))


def _random_crop(pixels: NDArray[Any], pad: int, generator: torch.Generator) -> NDArray[Any]:
    count, _, height, width = pixels.shape
    top, left = torch.randint(0, 2 * pad + 1, (2, count), generator=generator).numpy()
    windows = sliding_window_view(
        np.pad(pixels, ((0, 0), (0, 0), (pad, pad), (pad, pad))), (height, width), (2, 3)
    )
    cropped: NDArray[Any] = windows[np.arange(count), :, top, left]
    return cropped


@dataclass(frozen=True, eq=False)
class DatasetData:
    """A map-style torch Dataset of (input, target) pairs, read by index, with what its loader adds to it.

    loader: whose collate_fn makes the batches and whose workers read; None: examples are put together here,
    and read in this process. listed: the model takes a list of tensors, one an example, of any sizes.

    The dataset does its own augmentation. Whatever it draws from the global generators of torch, numpy and
    Python is seeded here, from the generator given or with a constant where that is None, so runs repeat,
    with as many workers as there are; the caller's random state is untouched. Data for scoring must therefore
    come from a dataset without random transforms.
    """

    dataset: Any
    loader: DataLoader[Any] | None = None
    listed: bool = False

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Tensor, generator: torch.Generator | None) -> tuple[Any, Any]:
        """See Data.batch.

        Raises:
            TaskError: an example cannot be read, or is not a pair of inputs and a target, or those of a batch
                have several sizes, or the collate_fn makes anything but a pair of as many of each.
        """
        return self.read(_seed(generator), indices.tolist())

    def batches(
        self, parts: Iterable[Tensor], generator: torch.Generator | None
    ) -> Iterator[tuple[Any, Any]]:
        """What batch() gives for each of several parts, one after the other, read ahead by the loader's
        workers. Raises what batch() raises."""
        keys = ((_seed(generator), part.tolist()) for part in parts)
        if self.loader is None or not self.loader.num_workers:
            yield from (self.read(*key) for key in keys)
            return
        workers = DataLoader(
            _Batches(self),
            batch_size=None,
            sampler=keys,  # asked for in this process, in order: what is drawn is what one process would draw
            num_workers=self.loader.num_workers,
            collate_fn=_as_it_is,
            worker_init_fn=self.loader.worker_init_fn,
            multiprocessing_context=self.loader.multiprocessing_context,
            prefetch_factor=self.loader.prefetch_factor,
            timeout=self.loader.timeout,
            generator=torch.Generator(),  # instead of the global one, which is the caller's
        )
        for found in workers:
            if isinstance(found, TaskError):
                raise found
            yield found

    def read(self, seed: int, indices: list[int]) -> tuple[Any, Any]:
        """The batch at indices, with all that is random in it drawn from the seed. Raises as batch()."""
        with _seeded(seed):
            examples = [self._example(index) for index in indices]
            inputs, targets = self._collated(examples)
        if self.listed and isinstance(inputs, (tuple, list)) and all(isinstance(x, Tensor) for x in inputs):
            inputs = (list(inputs),)
        count = _count(inputs, targets, self.listed)
        require(
            count in (None, len(indices)),
            f"A batch has every example that it was asked for, but {len(indices)} of {self._name} came back "
            f"as {count}; let collate_fn leave none out",
        )
        return _single(inputs), pytree.tree_map_only(Tensor, _plain, targets)

    @property
    def _name(self) -> str:
        return type(self.dataset).__name__

    def _example(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except (TaskError, MemoryError):
            raise
        except Exception as problem:  # the user's own code
            raise TaskError(
                f"Data gives an example for each number below its length, but {self._name}, {len(self)} "
                f"long, has none for {index} ({_said(problem)}); correct its length, or the example"
            ) from problem

    def _collated(self, examples: list[Any]) -> tuple[Any, Any]:
        """Inputs and targets as the loader's collate_fn makes them, or stacked."""
        if self.loader is None or self.loader.collate_fn is default_collate:
            for example in examples:
                require(
                    _is_pair(example),
                    f"An example is a pair (inputs, target), but {self._name} gave {shown(example)}; "
                    "add a transform such as ToTensor",
                )
            inputs, targets = [one[0] for one in examples], [one[1] for one in examples]
            if self.listed:
                return inputs, targets
            _require_one_size(inputs)
            return _stacked(inputs), _together(targets)
        collate = self.loader.collate_fn
        name = getattr(collate, "__name__", type(collate).__name__)
        try:
            found = collate(examples)
        except Exception as problem:  # the user's own code
            raise TaskError(
                f"A loader's collate_fn makes a batch of any examples, but {name} failed with "
                f"{len(examples)} of {self._name} ({_said(problem)}); correct it, or resize the examples"
            ) from problem
        require(
            _is_pair(found),
            f"A batch is a pair (inputs, targets), but collate_fn {name} gave {shown(found)}; return a pair",
        )
        return found[0], found[1]


@dataclass(frozen=True, eq=False)
class _Batches(Dataset[Any]):
    """Whole batches by their seeds and indices, for the workers of a loader."""

    data: DatasetData

    def __getitem__(self, key: tuple[int, list[int]]) -> Any:
        try:
            return self.data.read(*key)
        except TaskError as problem:  # what a worker raises comes back as a page of text
            return TaskError(str(problem))


def _as_it_is(batch: Any) -> Any:
    return batch


def _seed(generator: torch.Generator | None) -> int:
    return 0 if generator is None else int(torch.randint(2**31, (), generator=generator))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generators of torch, numpy and Python begin with a seed, and are put back behind it."""
    before, numpy_before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(before)
            np.random.set_state(numpy_before)


def _said(problem: Exception) -> str:
    return f"{type(problem).__name__}: {' '.join(str(problem).split())}"


def _is_pair(example: Any) -> bool:
    return (
        isinstance(example, (tuple, list))
        and len(example) == 2
        and any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(example[0]))
    )


def _require_one_size(inputs: list[Any]) -> None:
    flat = [[leaf for leaf in pytree.tree_leaves(one) if isinstance(leaf, Tensor)] for one in inputs]
    for leaves in zip(*flat, strict=True):
        shapes = sorted({tuple(leaf.shape) for leaf in leaves})
        require(
            len(shapes) == 1,
            f"All inputs of a batch have one shape, but {shapes[:3]} came; add a resize transform, or give a "
            "DataLoader whose collate_fn resizes",
        )


def _count(inputs: Any, targets: Any, listed: bool) -> int | None:
    """How many examples a batch holds; None: its form does not say."""
    if isinstance(targets, Tensor) and targets.dim():
        return len(targets)
    if listed:
        return len(inputs[0])
    return len(inputs) if isinstance(inputs, Tensor) else None


def _stacked(inputs: list[Any]) -> Any:
    """Inputs of several examples, in the containers that each is in."""
    first = inputs[0]
    if isinstance(first, Mapping):
        return {name: _stacked([one[name] for one in inputs]) for name in first}
    if isinstance(first, (tuple, list)):
        return type(first)(_stacked(list(parts)) for parts in zip(*inputs, strict=True))
    return default_collate(inputs)


def _together(targets: list[Any]) -> Any:
    """Targets of several examples: numbers, lists of numbers and arrays are tensors, in containers or not."""
    if isinstance(targets[0], Mapping):
        return {name: _together([target[name] for target in targets]) for name in targets[0]}
    if isinstance(targets[0], tuple):
        return tuple(_together(list(parts)) for parts in zip(*targets, strict=True))
    return torch.stack([torch.as_tensor(target) for target in targets])


def _single(inputs: Any) -> Any:
    """Plain tensors, floats of single precision; class numbers and ids as they are."""

    def single(tensor: Tensor) -> Tensor:
        plain = _plain(tensor)
        return plain.float() if plain.is_floating_point() or plain.dtype == torch.uint8 else plain

    return pytree.tree_map_only(Tensor, single, inputs)


def _plain(tensor: Tensor) -> Tensor:
    """Without what a library marks its images and boxes with."""
    return tensor.as_subclass(Tensor)


def as_data(source: object, example: Any = None) -> Data:
    """Data as it is; a map-style torch Dataset, or a DataLoader over one, wrapped.

    example: what the model takes, with a batch of one. Of a loader the dataset, the collate_fn and the
    workers count; the order, the size of batches and what is dropped at the end are the search's own.

    Raises:
        TaskError: for anything else, if it is empty, or if a loader says which examples there are in a way
            that no index follows.
    """
    listed = isinstance(example, tuple) and len(example) == 1 and isinstance(example[0], list)
    if isinstance(source, Data) and not isinstance(source, type):
        data: Data = source
    elif isinstance(source, DataLoader):
        data = DatasetData(_dataset_of(source), source, listed)
    elif isinstance(source, Dataset) and hasattr(source, "__len__"):
        data = DatasetData(source, None, listed)
    else:
        raise TaskError(
            "Data is an ArrayData, an object with __len__ and batch(indices, generator), a torch Dataset "
            f"with a length, or a DataLoader over one, but {type(source).__name__} came; wrap it in one of "
            "these"
        )
    require(
        len(data) > 0,
        f"Data has at least one example, but a {type(source).__name__} is empty; check its source",
    )
    return data


def _dataset_of(loader: DataLoader[Any]) -> Any:
    """What a loader reads, the subset that its sampler keeps to."""
    dataset = loader.dataset
    require(
        not isinstance(dataset, IterableDataset) and hasattr(dataset, "__len__"),
        "A DataLoader is read by index, so that all networks see the same examples, but "
        f"{type(dataset).__name__} is a stream; give a Dataset with a length, or read it once into arrays",
    )
    batches = loader.batch_sampler
    if type(loader).__iter__ is not DataLoader.__iter__ or type(batches) is not BatchSampler:
        raise TaskError(
            f"A DataLoader makes batches of single examples, but this {type(loader).__name__} does so in a "
            "way of its own (batch_size=None, a batch_sampler, or __iter__); give one with batch_size, or an "
            "object with __len__ and batch(indices, generator)"
        )
    sampler = batches.sampler
    if isinstance(sampler, SubsetRandomSampler):
        return Subset(dataset, [int(index) for index in sampler.indices])
    all_of_it = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler and not sampler.replacement
    )
    require(
        all_of_it and len(sampler) == len(dataset),  # type: ignore[arg-type]  # both have a length here
        f"A DataLoader's sampler takes every example once, but this {type(sampler).__name__} takes some, or "
        "some several times; give a Dataset of these examples: torch.utils.data.Subset",
    )
    return dataset


def batches_of(
    data: Data, parts: Iterable[Tensor], generator: torch.Generator | None
) -> Iterator[tuple[Any, Any]]:
    """What data.batch gives for each of several parts, one after the other, read ahead where data can."""
    if isinstance(data, DatasetData):
        return data.batches(parts, generator)
    return (data.batch(part, generator) for part in parts)


def check_classes(labels: Any, classes: int, split: str) -> None:
    """Raises TaskError when labels (N,), an array or a tensor of class numbers, hold one outside 0 ..
    classes - 1. Maps of labels may mark what belongs to no class: the loss knows."""
    values = torch.as_tensor(labels) if isinstance(labels, (Tensor, np.ndarray)) else torch.empty(0)
    if values.dim() != 1 or values.is_floating_point() or not values.numel():
        return
    lowest, highest = int(values.min()), int(values.max())
    require(
        lowest >= 0 and highest < classes,
        f"Labels are class numbers, 0 to {classes - 1} for this model, but the {split} data holds "
        f"{lowest if lowest < 0 else highest}; correct the labels or the width of the model's output",
    )


def far_from_normal(inputs: Any) -> str | None:
    """A sentence where images (N, C, H, W) in a batch are not scaled and normalised as networks learn them:
    by channel a mean beyond 3 or a standard deviation below 0.05, or values beyond 50; else None."""
    for images in pytree.tree_leaves(inputs):
        if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
            continue
        channels = images.transpose(0, 1).flatten(1)
        mean, std, most = channels.mean(1), channels.std(1, correction=0), float(channels.abs().max())
        if most > 50 or float(mean.abs().max()) > 3 or float(std.min()) < 0.05:
            means, stds = (", ".join(f"{value:.3g}" for value in each.tolist()[:4]) for each in (mean, std))
            return (
                f"images reach the network far from mean 0 and deviation 1: by channel means {means}, "
                f"deviations {stds}, values up to {most:.3g}; unless it was trained so, scale bytes by 1/255 "
                "and give the mean and std that it was trained with"
            )
    return None


def require(condition: bool, message: str) -> None:
    """Raise TaskError with a message unless a condition holds."""
    if not condition:
        raise TaskError(message)


def shown(value: object) -> str:
    """A value in a few words: tensors by shape, containers by what they hold, others by type and value."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(repr(key) for key in list(value)[:3]) or 'nothing'}"
    if isinstance(value, (tuple, list)):
        return (
            f"a {type(value).__name__} of {', '.join(type(item).__name__ for item in value[:3]) or 'nothing'}"
        )
    return f"{type(value).__name__} {value!r:.40}"
