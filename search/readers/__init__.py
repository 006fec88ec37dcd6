"""Ready-made data readers: numpy and Pillow only, every wrong input is one TaskError sentence."""

from leanfront.search.readers.cache import cache_folder
from leanfront.search.readers.cifar10 import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    Cifar10,
    read_cifar10,
    read_cifar10_batches,
)
from leanfront.search.readers.idx import read_fashion_mnist, read_idx
from leanfront.search.readers.image_folder import read_image_folder
from leanfront.search.readers.images import Images, TaskError, split_each_class

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "Cifar10",
    "Images",
    "TaskError",
    "cache_folder",
    "read_cifar10",
    "read_cifar10_batches",
    "read_fashion_mnist",
    "read_idx",
    "read_image_folder",
    "split_each_class",
]
