"""The task contract: what data gives, what a task file may do, and the sentence for each wrong input."""

import itertools
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from leanfront.search.task import (
    ArrayData,
    Data,
    DatasetData,
    Task,
    TaskError,
    as_data,
    load_state,
    load_task,
    top1,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
SHARED = Path(__file__).parents[3] / "shared"
needs_shared = pytest.mark.skipif(
    not SHARED.exists() and os.environ.get("CI") != "true", reason=f"needs the data and weights of {SHARED}"
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def array_data(count: int = 6, **augmentation: int) -> ArrayData:
    pixels = np.random.default_rng(0).integers(1, 256, (count, 2, 5, 4)).astype(np.uint8)
    return ArrayData(pixels, np.arange(count) % 3, (0.5, 0.25), (0.5, 2.0), **augmentation)  # type: ignore[arg-type]


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(40), nn.Linear(40, 3))


def make_task(**changes: object) -> Task:
    data = array_data()
    parts: dict[str, object] = {"model": net(), "example_input": torch.zeros(1, 2, 5, 4)}
    parts |= {"train": data, "search": data, "test": data}
    return Task(**(parts | changes))  # type: ignore[arg-type]


def test_without_a_generator_inputs_are_only_scaled() -> None:
    data = array_data(pad=2, flip=True)
    inputs, targets = data.batch(torch.tensor([4, 0, 4]), None)
    pixels = data.images[[4, 0, 4]].astype(np.float64) / 255
    expected = (pixels - np.array([0.5, 0.25]).reshape(2, 1, 1)) / np.array([0.5, 2.0]).reshape(2, 1, 1)
    assert inputs.dtype == torch.float32
    np.testing.assert_allclose(inputs.numpy(), expected, atol=1e-6)
    assert (targets.tolist(), targets.dtype) == ([1, 0, 1], torch.int64)


def test_float_images_are_taken_as_scaled_and_never_changed() -> None:
    pixels = np.array([[[[0.0, 3.0]]]], dtype=np.float32)
    data = ArrayData(pixels, np.array([0]), (1.0,), (2.0,))
    for _ in range(2):
        assert data.batch(torch.tensor([0]), None)[0].tolist() == [[[[-0.5, 1.0]]]]
    assert pixels.tolist() == [[[[0.0, 3.0]]]]


@given(st.integers(0, 3), st.booleans(), st.integers(0, 1000))
def test_each_augmented_image_is_a_crop_of_the_padded_one_perhaps_mirrored(
    pad: int, flip: bool, seed: int
) -> None:
    pixels = array_data(8).images
    data = ArrayData(pixels, np.zeros(8, np.int64), (0.0, 0.0), (1 / 255, 1 / 255), pad, flip)
    inputs = data.batch(torch.arange(8), generator(seed))[0].numpy().round()
    padded = np.pad(pixels, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    for image, wide in zip(inputs, padded, strict=True):
        crops = [wide[:, y : y + 5, x : x + 4] for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
        crops += [crop[:, :, ::-1] for crop in crops] if flip else []
        assert any((image == crop).all() for crop in crops)


def test_augmentation_is_drawn_per_image_from_the_generator() -> None:
    one = ArrayData(
        array_data(1).images.repeat(400, 0), np.zeros(400, np.int64), (0.0, 0.0), (1.0, 1.0), 1, True
    )
    inputs = one.batch(torch.arange(400), generator(1))[0]
    assert len(inputs.unique(dim=0)) == 18  # 3 x 3 positions, mirrored or not: all come up in 400 draws
    assert inputs.equal(one.batch(torch.arange(400), generator(1))[0])
    assert not inputs.equal(one.batch(torch.arange(400), generator(2))[0])


@pytest.mark.parametrize(
    ("images", "labels", "mean", "words"),
    [
        (np.zeros((2, 3, 4)), np.zeros(2, int), (0.0,) * 3, r"\(N, C, H, W\), but float64 \(2, 3, 4\) came"),
        (np.zeros((2, 1, 3, 4), np.int32), np.zeros(2, int), (0.0,), r"but int32"),
        (
            np.zeros((2, 1, 3, 4)),
            np.zeros(3, int),
            (0.0,),
            r"one integer per image, \(2,\), .*but int64 \(3,\)",
        ),
        (np.zeros((2, 1, 3, 4)), np.zeros((2, 3), int), (0.0,), r"one integer per image.*int64 \(2, 3\)"),
        (np.zeros((2, 1, 3, 4)), np.array(["a", "b"]), (0.0,), r"one integer per image.*<U1"),
        (np.zeros((2, 3, 3, 4)), np.zeros(2, int), (0.0,), r"one number per channel \(3\)"),
    ],
)
def test_array_data_that_does_not_fit_is_refused(
    images: np.ndarray, labels: np.ndarray, mean: tuple[float, ...], words: str
) -> None:
    with pytest.raises(TaskError, match=words):
        ArrayData(images, labels, mean, (1.0,) * len(mean))


class Noisy(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(1, 2, 2) + index, index


def test_a_torch_dataset_repeats_and_leaves_the_random_state_alone() -> None:
    data = as_data(Noisy())
    assert isinstance(data, DatasetData)
    assert len(data) == 5
    state = torch.random.get_rng_state()
    inputs, targets = data.batch(torch.tensor([3, 1]), generator(1))
    assert torch.random.get_rng_state().equal(state)
    assert (inputs.floor()[:, 0, 0, 0].tolist(), targets.tolist()) == ([3, 1], [3, 1])
    assert inputs.equal(data.batch(torch.tensor([3, 1]), generator(1))[0])
    assert not inputs.equal(data.batch(torch.tensor([3, 1]), generator(2))[0])
    assert data.batch(torch.tensor([0]), None)[0].equal(data.batch(torch.tensor([0]), None)[0])


class Listed(Dataset[object]):
    def __init__(self, *examples: object) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> object:
        return self.examples[index]


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        (("picture", "picture"), r"Listed gave str 'picture'; add a transform"),
        (((np.zeros(3), 1),) * 2, r"gave a tuple of ndarray, int"),
        (((torch.zeros(1, 2, 2), 0), (torch.zeros(1, 2, 3), 0)), r"\(1, 2, 2\), \(1, 2, 3\).* resize"),
    ],
)
def test_examples_of_the_wrong_kind_are_named(examples: tuple[object, ...], words: str) -> None:
    with pytest.raises(TaskError, match=words):
        as_data(Listed(*examples)).batch(torch.tensor([0, 1]), None)


def test_as_data_keeps_data_and_refuses_the_rest() -> None:
    data = array_data()
    assert as_data(data) is data
    assert isinstance(data, Data)

    class Endless(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return itertools.count()

    for wrong in ([1, 2], Endless(), ArrayData):
        with pytest.raises(TaskError, match=rf"but {type(wrong).__name__} came"):
            as_data(wrong)
    with pytest.raises(TaskError, match="Listed is empty"):
        as_data(Listed())


def test_top1_scores_each_example() -> None:
    outputs = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert top1(outputs, torch.tensor([1, 1, 1])).tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": nn.Linear}, r"model is a torch nn.Module, .* but type .*Linear"),
        ({"example_input": torch.zeros(2, 3)}, r"batch of one.*float32 tensor \(2, 3\)"),
        ({"example_input": torch.zeros(1, 3, dtype=torch.uint8)}, r"batch of one.*torch.uint8"),
        ({"search": [1, 2]}, r"In the task's search: .*but list came"),
        ({"test": Listed()}, r"In the task's test: .*empty"),
        ({"loss": "cross_entropy"}, r"loss is a function .*str 'cross_entropy'"),
        ({"score": 1}, r"score is a function"),
        ({"classes": 1}, r"whole number from 2, or None, but int 1"),
        ({"classes": True}, r"whole number from 2, or None, but bool"),
    ],
)
def test_a_task_of_wrong_parts_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(TaskError, match=words):
        make_task(**changes)


def width(task: Task) -> int:
    return int(task.model(task.example_input).shape[1])


GOOD = """
import numpy as np, torch
from leanfront import ArrayData, Task
data = ArrayData(np.zeros((2, 1, 2, 2), np.uint8), np.array([0, 1]), (0.0,), (1.0,))
def task(width=2, *, depth=1):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, width))
    return Task(model, torch.zeros(1, 1, 2, 2), data, data, data)
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "task.py"
    path.write_text(text)
    return path


def test_load_task_passes_the_options(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert width(load_task(path, {"width": 5, "depth": 2})) == 5
    assert width(load_task(path, {})) == 2
    anything = write(tmp_path, GOOD.replace("*, depth=1", "**rest"))
    assert width(load_task(anything, {"unheard_of": 1})) == 2


def test_two_task_files_of_one_name_stay_apart_and_see_their_neighbours(tmp_path: Path) -> None:
    for folder, width in (("one", 3), ("two", 4)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"width_of_{folder}.py").write_text(f"WIDTH = {width}")
        text = f"from width_of_{folder} import WIDTH\n" + GOOD.replace("width=2", "width=WIDTH")
        write(tmp_path / folder, text)
    one, two = (load_task(tmp_path / folder / "task.py", {}) for folder in ("one", "two"))
    assert [each.model(each.example_input).shape[1] for each in (one, two)] == [3, 4]


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("def tusk(): pass", {}, r"has no function task; add it"),
        ("task = 3", {}, r"has no function task"),
        ("def task(): return 3", {}, r"returned int 3; return a Task"),
        (GOOD, {"widht": 3}, r"takes no 'widht'; did you mean 'width'\? it takes width, depth"),
        ("def task(): pass", {"a": 3}, r"takes no 'a'; it takes none"),
        ("def task(data): pass", {}, r"got no data; add it"),
        ("def task(:", {}, r"task.py, line 1: SyntaxError"),
        ("x = 1\nimport no_such_module", {}, r"task.py, line 2: ModuleNotFoundError: .*no_such_module"),
        ("import json\ndef task():\n    json.loads('{')", {}, r"task.py, line 3: JSONDecodeError"),
        ("def task():\n    open('/no/such/file')", {}, r"file that is not there: .*/no/such/file"),
        ("from leanfront import TaskError\ndef task():\n    raise TaskError('My own.')", {}, r"^My own\.$"),
    ],
)
def test_a_wrong_task_file_is_one_sentence(
    tmp_path: Path, text: str, options: dict[str, object], words: str
) -> None:
    with pytest.raises(TaskError, match=words) as caught:
        load_task(write(tmp_path, text), options)
    assert "\n" not in str(caught.value)


def test_a_missing_or_foreign_task_file(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"nothing.py is not there; correct the path"):
        load_task(tmp_path / "nothing.py", {})
    (tmp_path / "task.toml").write_text("")
    with pytest.raises(TaskError, match=r"does not end in .py"):
        load_task(tmp_path / "task.toml", {})


def test_what_the_users_code_raised_is_chained(tmp_path: Path) -> None:
    with pytest.raises(TaskError) as caught:
        load_task(write(tmp_path, "def task(): return 1 / 0"), {})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_load_state_loads_what_fits(tmp_path: Path, suffix: str) -> None:
    state = net().state_dict()
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    model = net()
    load_state(model, path)
    assert all(value.equal(state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("2.bias"), r"it has no '2.bias'; give"),
        (lambda state: state.update(extra=torch.zeros(1)), r"the model has no 'extra'"),
        (
            lambda state: state.update({"2.weight": torch.zeros(2, 40)}),
            r"'2.weight' is \(2, 40\) .*\(3, 40\)",
        ),
        (lambda state: (state.pop("2.bias"), state.pop("2.weight")), r"no '2.weight' \(and 1 more\)"),
    ],
)
def test_load_state_names_what_does_not_fit_and_loads_nothing(
    tmp_path: Path, change: object, words: str
) -> None:
    assert callable(change)
    state = net().state_dict()
    change(state)
    torch.save(state, tmp_path / "weights.pt")
    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(TaskError, match=words):
        load_state(model, tmp_path / "weights.pt")
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


class _Attack:
    def __init__(self, at: Path) -> None:
        self.at = at

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.at),)


def test_load_state_refuses_files_that_are_not_weights(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"weights.pt is not there"):
        load_state(net(), tmp_path / "weights.pt")
    hostile = {"x": _Attack(tmp_path / "owned")}
    torch.save(hostile, tmp_path / "zipped.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(hostile, protocol=2))
    (tmp_path / "noise.pt").write_bytes(b"noise")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    for name in ("zipped.pt", "plain.pt", "noise.pt", "empty.pt", "noise.safetensors"):
        with pytest.raises(TaskError, match=rf"{name} is neither; save it again"):
            load_state(net(), tmp_path / name)
    assert not (tmp_path / "owned").exists()
    torch.save({"epoch": 3, "model": net().state_dict()}, tmp_path / "checkpoint.pt")
    with pytest.raises(TaskError, match=r"holds a mapping with 'epoch', 'model'"):
        load_state(net(), tmp_path / "checkpoint.pt")


def accuracy(task: Task, data: Data, count: int) -> float:
    inputs, targets = data.batch(torch.arange(count), None)
    with torch.no_grad():
        return float(task.score(task.model(inputs), targets).mean())


@pytest.mark.slow  # make test runs the example's search, too
def test_the_digits_example_trains_once_and_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path))
    path = EXAMPLES / "digits/task.py"
    state = torch.random.get_rng_state()
    task = load_task(path, {})
    assert torch.random.get_rng_state().equal(state)
    (kept,) = tmp_path.iterdir()
    written = kept.stat().st_mtime_ns
    again = load_task(path, {})
    assert kept.stat().st_mtime_ns == written
    weights = again.model.state_dict()
    assert all(value.equal(weights[key]) for key, value in task.model.state_dict().items())
    kept.write_bytes(b"damaged")
    rebuilt = load_task(path, {}).model.state_dict()
    assert all(value.equal(weights[key]) for key, value in rebuilt.items())

    splits = [as_data(split) for split in (task.train, task.search, task.test)]
    assert [len(split) for split in splits] == [892, 454, 451]
    pixels = [split.batch(torch.arange(len(split)), None)[0].flatten(1) for split in splits]
    assert len(torch.cat(pixels).unique(dim=0)) == 1797  # no image is in two splits
    for split in splits[1:]:
        assert (
            0.95 < accuracy(task, split, len(split)) < 1.0
        )  # neither untrained nor tested on what it learnt
    assert torch.fx.symbolic_trace(task.model)(task.example_input).shape == (1, 10)


@needs_shared
@pytest.mark.parametrize("name", ["cifar10_vgg11", "cifar10_resnet20"])
def test_the_cifar10_examples_hold_their_trained_networks(name: str) -> None:
    task = load_task(EXAMPLES / name / "task.py", {})
    splits = [as_data(split) for split in (task.train, task.search, task.test)]
    assert [len(split) for split in splits] == [50000, 5000, 5000]
    picked = torch.arange(0, 5000, 20)  # 25 images of each class
    inputs, targets = splits[1].batch(picked, None)
    with torch.no_grad():
        assert 0.8 < float(task.score(task.model(inputs), targets).mean()) < 0.95
    assert torch.fx.symbolic_trace(task.model)(task.example_input).shape == (1, width(task))


@pytest.mark.parametrize("name", ["cifar10_vgg11", "cifar10_resnet20"])
def test_a_cifar10_example_without_data_says_where_to_get_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"none.zip does not exist; download https://\S+"):
        load_task(EXAMPLES / name / "task.py", {"data": str(tmp_path / "none.zip")})


class Pairs(Dataset):
    def __init__(self, *examples: object) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> object:
        return self.examples[index]


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        ((0.5, 1.5), torch.tensor([0.5, 1.5])),
        ((1, 2), torch.tensor([1, 2])),
        (([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])),
    ],
)
def test_targets_of_a_dataset_are_tensors_of_single_precision(
    targets: tuple[object, ...], wanted: torch.Tensor
) -> None:
    data = as_data(Pairs(*((torch.zeros(3), target) for target in targets)))
    found = data.batch(torch.arange(2), None)[1]
    assert found.dtype == wanted.dtype
    assert torch.equal(found, wanted)


def test_targets_in_containers_stay_in_them() -> None:
    data = as_data(Pairs(*(({"a": torch.zeros(3)}, {"class": n, "box": (1.0, 2.0)}) for n in range(2))))
    inputs, targets = data.batch(torch.arange(2), None)
    assert inputs["a"].shape == (2, 3)
    assert targets["class"].tolist() == [0, 1]
    assert [side.tolist() for side in targets["box"]] == [[1.0, 1.0], [2.0, 2.0]]
