"""Data of a task from torch's loaders: read by index, as their collate_fn makes it, or refused."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from leanfront.search.data import as_data, batches_of, far_from_normal
from leanfront.search.task import TaskError


class Numbered(Dataset[Any]):
    """Images whose every pixel is their number, the number, and what three generators drew for it."""

    def __init__(self, count: int = 10, there: int = 10, noisy: bool = False) -> None:
        self.count, self.there, self.noisy = count, there, noisy

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= self.there:
            raise IndexError(f"no number {index}")
        image = torch.full((1, 2, 2), float(index))
        if self.noisy:
            image += torch.rand(()) + random.random() + np.random.random()
        return image, index


def in_dictionary(examples: list[tuple[Tensor, int]]) -> tuple[dict[str, Tensor], Tensor]:
    images = torch.stack([image for image, _ in examples])
    return {"pixels": images * 2, "numbers": images[:, 0, 0, 0].long()}, torch.tensor(
        [n for _, n in examples]
    )


def test_a_loader_is_read_by_index_with_its_own_collate_fn() -> None:
    loader = DataLoader(Numbered(), batch_size=3, shuffle=True, drop_last=True, collate_fn=in_dictionary)
    data = as_data(loader)
    assert len(data) == 10  # what drop_last would leave out is there
    inputs, targets = data.batch(torch.tensor([9, 2]), None)
    assert inputs["pixels"][:, 0, 0, 0].tolist() == [18.0, 4.0]
    assert inputs["numbers"].dtype == torch.int64
    assert targets.tolist() == [9, 2]


def test_a_loader_over_a_part_of_a_dataset_reads_that_part_alone() -> None:
    """The usual way to make splits: other examples would be those of another split."""
    data = as_data(DataLoader(Numbered(), batch_size=4, sampler=SubsetRandomSampler([7, 1, 5])))
    assert len(data) == 3
    assert data.batch(torch.arange(3), None)[1].tolist() == [7, 1, 5]


def test_workers_read_what_one_process_would_and_leave_the_random_state_alone() -> None:
    parts = [torch.tensor([3, 1]), torch.tensor([0]), torch.tensor([5, 6])]
    found = []
    for workers in (0, 2):
        data = as_data(DataLoader(Numbered(noisy=True), batch_size=2, num_workers=workers))
        state = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        drawn = torch.Generator().manual_seed(1)
        found.append([inputs for inputs, _ in batches_of(data, iter(parts), drawn)])
        after = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        assert state[0].equal(after[0])
        assert state[1:] == after[1:]
    assert len(found[0]) == 3
    assert all(one.equal(other) for one, other in zip(*found, strict=True))
    one_by_one = torch.Generator().manual_seed(1)
    assert found[0][2].equal([as_data(Numbered(noisy=True)).batch(part, one_by_one)[0] for part in parts][2])


class Pictures(Numbered):
    """Images of several sizes and what is in them, as detectors take them."""

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        return torch.zeros(3, 4 + index, 5), {"labels": torch.tensor([index])}


def zipped(batch: list[Any]) -> tuple[Any, ...]:
    """The collate_fn of torchvision's own references."""
    return tuple(zip(*batch, strict=True))


@pytest.mark.parametrize("source", [DataLoader(Pictures(), 2, collate_fn=zipped), Pictures()])
def test_images_of_several_sizes_are_one_list_where_the_model_takes_one(source: object) -> None:
    example = ([torch.zeros(3, 8, 8)],)
    inputs, targets = as_data(source, example).batch(torch.tensor([0, 3]), None)
    ((first, second),) = inputs
    assert (first.shape, second.shape) == ((3, 4, 5), (3, 7, 5))
    assert [one["labels"].item() for one in targets] == [0, 3]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(Numbered())


class Own(DataLoader[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.zeros(1, 1), 0)])


def without_the_first(examples: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in examples[1:]]), torch.tensor([y for _, y in examples[1:]])


def only_inputs(examples: list[Any]) -> dict[str, Tensor]:
    return {"pixels": torch.stack([x for x, _ in examples])}


def stacked(examples: list[Any]) -> tuple[Tensor, list[Any]]:
    return torch.stack([x for x, _ in examples]), [y for _, y in examples]


def ends_of(loader: DataLoader[Any]) -> list[Any]:
    """A batch of the first example and the last."""
    data = as_data(loader)
    return list(batches_of(data, [torch.tensor([0, len(data) - 1])], None))


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (lambda: DataLoader(Stream()), r"Stream is a stream; give a Dataset with a length"),
        (lambda: DataLoader(Numbered(), batch_size=None), r"this DataLoader does so in a way of its own"),
        (lambda: DataLoader(Numbered(), batch_sampler=[[0, 1]]), r"a batch_sampler"),
        (lambda: Own(Numbered()), r"this Own does so in a way of its own"),
        (
            lambda: DataLoader(Numbered(), sampler=WeightedRandomSampler([1.0] * 10, 10)),
            r"WeightedRandomSampler takes some, or some several times; .*Subset",
        ),
        (lambda: DataLoader(Numbered(), sampler=range(4)), r"this range takes some"),
        (
            lambda: DataLoader(Numbered(12)),
            r"Numbered, 12 long, has none for 11 \(IndexError: no number 11\)",
        ),
        (lambda: DataLoader(Numbered(12), num_workers=1), r"has none for 11 \(IndexError: no number 11\)"),
        (
            lambda: DataLoader(Numbered(), collate_fn=without_the_first),
            r"2 of Numbered came back as 1; let collate_fn leave none out",
        ),
        (lambda: DataLoader(Numbered(), collate_fn=only_inputs), r"only_inputs gave a mapping with 'pixels'"),
        (
            lambda: DataLoader(Pictures(), collate_fn=stacked),
            r"stacked failed with 2 of Pictures \(RuntimeError: .*size",
        ),
        (lambda: DataLoader(Pictures()), r"one shape, but \[\(3, 4, 5\), \(3, 13, 5\)\] came.* collate_fn"),
    ],
)
def test_a_loader_that_cannot_be_read_by_index_is_refused_in_one_sentence(loader: Any, words: str) -> None:
    with pytest.raises(TaskError, match=words) as caught:
        ends_of(loader())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (torch.rand(8, 3, 9, 9) * 255, "values up to 25"),
        ({"x": torch.rand(8, 3, 9, 9) / 255}, "deviations 0.001"),
        (torch.randn(8, 3, 9, 9) + torch.tensor([0.0, 0.0, 4.0]).view(3, 1, 1), "means"),
    ],
)
def test_inputs_that_nobody_normalised_are_noted(inputs: Any, words: str) -> None:
    sentence = far_from_normal(inputs)
    assert sentence is not None
    assert words in sentence


@pytest.mark.parametrize(
    "inputs",
    [torch.rand(8, 3, 9, 9), torch.randn(8, 1, 9, 9), (torch.randn(8, 9) * 1000,), torch.ones(2).int()],
)
def test_inputs_that_are_scaled_or_no_images_are_not_noted(inputs: Any) -> None:
    assert far_from_normal(inputs) is None


class Marked(torch.Tensor):
    """As torchvision's transforms mark images and boxes."""


def test_what_a_library_marks_its_tensors_with_is_left_behind() -> None:
    class Boxes(Numbered):
        def __getitem__(self, index: int) -> Any:
            image = torch.zeros(1, 2, 2, dtype=torch.uint8).as_subclass(Marked)
            return image, {"box": torch.ones(4).as_subclass(Marked)}

    loader = DataLoader(Boxes(), collate_fn=zipped)
    ((images,), boxes) = as_data(loader, ([torch.zeros(1, 2, 2)],)).batch(torch.tensor([1, 2]), None)
    assert [type(image) for image in images] == [Tensor, Tensor]
    assert images[0].dtype == torch.float32
    assert [type(each["box"]) for each in boxes] == [Tensor, Tensor]


def test_containers_of_inputs_stay_what_they_are() -> None:
    class Two(Numbered):
        def __getitem__(self, index: int) -> Any:
            return (torch.zeros(2), {"at": torch.tensor(index)}), index

    inputs, _ = as_data(Two()).batch(torch.tensor([4, 5]), None)
    assert isinstance(inputs, tuple)  # two arguments; a list is one
    assert inputs[1]["at"].tolist() == [4, 5]
