"""The data of a task: examples that can be had by index, from arrays, torch datasets and their loaders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset, default_collate

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
    memory map; labels: (N,) integers; mean, std: one number per channel, applied after scaling; pad: pixels
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
            self.labels.shape == self.images.shape[:1] and self.labels.dtype.kind in "iu",
            f"Labels are one integer per image, ({len(self.images)},), but {self.labels.dtype} "
            f"{self.labels.shape} came; give class numbers from 0",
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
        """See Data.batch; the inputs are float32, the targets int64."""
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
        return inputs, torch.from_numpy(np.asarray(self.labels)[rows].astype(np.int64))


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
    """A map-style torch Dataset of (input, target) pairs, read one example at a time.

    The dataset does its own augmentation. Whatever it draws from torch's global generator is seeded here,
    from the generator given or with a constant where that is None, so runs repeat; the caller's random state
    is untouched. Data for scoring must therefore come from a dataset without random transforms.
    """

    dataset: Dataset[Any]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # as_data refuses a dataset without a length

    def batch(self, indices: Tensor, generator: torch.Generator | None) -> tuple[Any, Any]:
        """See Data.batch. Raises TaskError when an example is not a pair of inputs and a target."""
        seed = 0 if generator is None else int(torch.randint(2**31, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            examples = [self.dataset[index] for index in indices.tolist()]
        for example in examples:
            require(
                isinstance(example, (tuple, list))
                and len(example) == 2
                and any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(example[0])),
                f"An example is a pair (inputs, target), but {type(self.dataset).__name__} gave "
                f"{shown(example)}; add a transform such as ToTensor",
            )
        flat = [[leaf for leaf in pytree.tree_leaves(one[0]) if isinstance(leaf, Tensor)] for one in examples]
        for leaves in zip(*flat, strict=True):
            shapes = sorted({tuple(leaf.shape) for leaf in leaves})
            require(
                len(shapes) == 1,
                f"All inputs of a batch have one shape, but {shapes[:3]} came; add a resize transform",
            )
        inputs = default_collate([example[0] for example in examples])
        return _single(inputs), _together([example[1] for example in examples])


def _together(targets: list[Any]) -> Any:
    """Targets of several examples: numbers, lists of numbers and arrays are tensors, in containers or not."""
    if isinstance(targets[0], Mapping):
        return {name: _together([target[name] for target in targets]) for name in targets[0]}
    if isinstance(targets[0], tuple):
        return tuple(_together(list(parts)) for parts in zip(*targets, strict=True))
    return torch.stack([torch.as_tensor(target) for target in targets])


def _single(inputs: Any) -> Any:
    """Floats of single precision; class numbers and ids as they are."""
    return pytree.tree_map_only(
        Tensor,
        lambda tensor: (
            tensor.float() if tensor.is_floating_point() or tensor.dtype == torch.uint8 else tensor
        ),
        inputs,
    )


def as_data(source: object) -> Data:
    """Data as it is, a map-style torch Dataset wrapped; raises TaskError for anything else, or if empty."""
    if isinstance(source, Data) and not isinstance(source, type):
        data: Data = source
    elif isinstance(source, Dataset) and hasattr(source, "__len__"):
        data = DatasetData(source)
    else:
        raise TaskError(
            "Data is an ArrayData, an object with __len__ and batch(indices, generator), or a torch Dataset "
            f"with a length, but {type(source).__name__} came; wrap it in one of these"
        )
    require(
        len(data) > 0,
        f"Data has at least one example, but a {type(source).__name__} is empty; check its source",
    )
    return data


def check_labels(data: object, classes: int, split: str) -> None:
    """Raises TaskError when an array of labels holds one outside 0 .. classes - 1.

    Data that is not held in arrays is not read for this.
    """
    if not isinstance(data, ArrayData) or not len(data.labels):
        return
    lowest, highest = int(data.labels.min()), int(data.labels.max())
    require(
        lowest >= 0 and highest < classes,
        f"Labels are class numbers, 0 to {classes - 1} for this model, but the {split} data holds "
        f"{lowest if lowest < 0 else highest}; correct the labels or the width of the model's output",
    )


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
