"""Ready-made data readers: numpy and Pillow only, every wrong input is one TaskError sentence."""

from leanfront.search.readers.arrays import read_npy
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
from leanfront.search.readers.images import Images, TaskError, split_at_random, split_each_class
from leanfront.search.readers.medmnist import read_medmnist
from leanfront.search.readers.table import read_csv

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "Cifar10",
    "Images",
    "TaskError",
    "cache_folder",
    "read_cifar10",
    "read_cifar10_batches",
    "read_csv",
    "read_fashion_mnist",
    "read_idx",
    "read_image_folder",
    "read_medmnist",
    "read_npy",
    "split_at_random",
    "split_each_class",
]
