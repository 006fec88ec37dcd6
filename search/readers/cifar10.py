"""CIFAR-10 in any of its forms, split so that the search and the final test see different images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leanfront.search.readers.cifar10_batches import read_cifar10_batches
from leanfront.search.readers.error import TaskError
from leanfront.search.readers.image_folder import read_image_folder
from leanfront.search.readers.images import Images, split_each_class

# The scaling the example networks were trained with (ImageNet's, per channel, for pixels in 0..1).
CIFAR10_MEAN = (0.485, 0.456, 0.406)
CIFAR10_STD = (0.229, 0.224, 0.225)
SEARCH_PER_CLASS = 500


@dataclass(frozen=True, eq=False)
class Cifar10:
    """train: 50,000 images (N, 3, 32, 32); search: the first 500 test images of a class; test: the others."""

    train: Images
    search: Images
    test: Images


def read_cifar10(path: Path | str) -> Cifar10:
    """Reads cifar-10-python.tar.gz, the folder unpacked from it, or train/ and test/ folders of images (or a
    .zip).

    A trained network has seen every training image, so the search is scored on half of the test images and
    the other half is kept for the end. Raises TaskError, for missing data with where to get it.
    """
    path = Path(path)
    if not path.exists():
        raise TaskError(
            f"CIFAR-10 is needed, but {path} does not exist; download "
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz and give its path as the task's option "
            "'data'"
        )
    if _has_batches(path):
        train, held_out = read_cifar10_batches(path, "train"), read_cifar10_batches(path, "test")
    else:
        train, held_out = read_image_folder(path, "train"), read_image_folder(path, "test")
        if train.classes != held_out.classes:
            differing = sorted(set(train.classes) ^ set(held_out.classes))
            raise TaskError(
                f"train and test must have the same classes, but {', '.join(differing)} of {path} is only "
                "in one; complete the data"
            )
    search, test = split_each_class(held_out, SEARCH_PER_CLASS)
    return Cifar10(train, search, test)


def _has_batches(path: Path) -> bool:
    if path.is_dir():
        return (path / "test_batch").exists() or (path / "cifar-10-batches-py").is_dir()
    return path.name.endswith((".tar.gz", ".tgz", ".tar"))
