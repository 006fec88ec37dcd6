"""What is read once: exactly what was made, made once however many ask, and never waited for by a trial."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from leanfront.search.config import load_config
from leanfront.search.run.run_folder import make_run
from leanfront.search.study.prepare import load, prepare
from leanfront.search.task import Task, TaskError
from leanfront.search.trial import kept
from leanfront.search.trial.kept import from_bytes, in_bytes, kept_answers, stored
from leanfront.search.trial.scorer import Scorer
from tests.bright import CONFIG, TASK
from tests.search.trial.test_score import policy, scorer, small_task


def normalised(count: int = 4) -> Tensor:
    """Images of 8 bits, scaled and normalised as torchvision does it."""
    pixels = torch.randint(0, 256, (count, 3, 40, 40), generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (pixels.float().div(255) - mean) / std


@pytest.mark.parametrize("images", [normalised(), normalised(1)[0], torch.zeros(2, 3, 40, 40)])
def test_images_of_8_bits_take_a_byte_a_value_and_come_back_exactly(images: Tensor) -> None:
    coded = in_bytes(images)
    assert coded is not None
    assert (coded[0].dtype, coded[0].shape) == (torch.uint8, images.shape)
    assert from_bytes(*coded).equal(images)


def one_nan() -> Tensor:
    images = normalised()
    images[0, 0, 0, 0] = torch.nan
    return images


def one_value_more() -> Tensor:
    images = normalised(40)
    images[-1, 2, 39, 39] += 1e-3
    return images


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(4, 3, 40, 40),
        one_nan(),
        one_value_more(),
        torch.zeros(9, 9),
        torch.zeros(4, 3, 40, 40).int(),
    ],
)
def test_what_bytes_cannot_hold_exactly_stays_as_it_is(images: Tensor) -> None:
    assert in_bytes(images) is None


def silent(line: str) -> None:
    raise AssertionError(line)


def fixed(first: float = 0.0, seconds: float = 0.0) -> Any:
    def make() -> Iterator[Any]:
        for number in range(3):
            time.sleep(seconds)
            box = torch.full((2, 4), 0.1 * number)
            yield (
                {"x": normalised() + first, "n": torch.tensor([number])},
                [{"box": box, "name": "cat"}, None],
            )
        made.append(first)

    made: list[float] = []
    make.made = made  # type: ignore[attr-defined]
    return make


def test_items_are_made_once_and_come_back_as_they_were(tmp_path: Path) -> None:
    make = fixed()
    wanted = list(make())
    for _ in range(2):
        found = list(stored(tmp_path, "train", make, silent))
        for (inputs, targets), (x, (boxes, nothing)) in zip(found, wanted, strict=True):
            assert inputs["x"].equal(x["x"])
            assert inputs["n"].equal(x["n"])
            assert targets[0]["box"].equal(boxes["box"])
            assert (targets[0]["name"], targets[1], nothing) == ("cat", None, None)
    assert make.made == [0.0, 0.0]  # once for this test


def test_data_that_was_changed_is_made_again_and_a_killed_writer_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / ".train.partial").mkdir()
    (tmp_path / ".train.partial" / "000000.pt").write_text("half")
    one, other = fixed(), fixed(1.0)
    assert len(list(stored(tmp_path, "train", one, silent))) == 3
    found = list(stored(tmp_path, "train", other, silent))
    assert (one.made, other.made) == ([0.0], [1.0])
    assert found[0][0]["x"].equal(normalised() + 1.0)
    assert not (tmp_path / ".train.partial").exists()


def test_who_asks_second_waits_for_the_first(tmp_path: Path) -> None:
    make = fixed(seconds=0.05)
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(len(list(stored(tmp_path, "train", make, silent)))))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [3, 3]
    assert make.made == [0.0]


def test_on_a_full_disk_items_are_made_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "FREE_BYTES", 1 << 62)
    make, said = fixed(), list[str]()
    items = stored(tmp_path, "train", make, said.append)
    wanted = f"images cannot be kept in {tmp_path}, so each trial decodes them anew: the disk is nearly full"
    assert said == [wanted]
    assert [len(list(items)) for _ in range(2)] == [3, 3]
    assert make.made == [0.0, 0.0]
    assert [path.name for path in tmp_path.iterdir()] == [".train.lock"]


class Mine:
    """What a library of somebody's own puts into targets."""


def test_what_only_a_pickle_holds_is_made_each_time(tmp_path: Path) -> None:
    said: list[str] = []
    items = stored(tmp_path, "train", lambda: (item for item in [(normalised(), [Mine()])]), said.append)
    assert len(said) == 1
    assert [len(list(items)) for _ in range(2)] == [1, 1]


def test_what_is_wrong_with_the_data_is_no_matter_of_files(tmp_path: Path) -> None:
    def make() -> Iterator[Any]:
        yield normalised(), torch.arange(4)
        raise TaskError("example 5 cannot be read")

    with pytest.raises(TaskError, match="example 5"):
        stored(tmp_path, "train", make, silent)
    assert [path.name for path in tmp_path.iterdir()] == [".train.lock"]


def test_answers_are_halved_only_where_they_would_not_fit_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [torch.full((10,), 1 / 3), torch.full((10,), 60000.0)]
    monkeypatch.setattr(kept, "KEPT_BYTES", 80)
    whole = kept_answers(lambda: iter(answers), 20)
    assert whole is not None
    assert all(one.equal(other) for one, other in zip(whole, answers, strict=True))
    monkeypatch.setattr(kept, "KEPT_BYTES", 40)
    halved = kept_answers(lambda: iter(answers), 20)
    assert halved is not None
    for one, other in zip(halved, answers, strict=True):
        assert one.dtype == torch.float32
        assert one.equal(other.half().float())
    too_large = [*answers[:1], torch.full((10,), 70000.0)]
    assert kept_answers(lambda: iter(too_large), 20) is None
    monkeypatch.setattr(kept, "KEPT_BYTES", 39)
    assert kept_answers(lambda: iter(answers), 20) is None


class Counted(Dataset[Any]):
    """The examples of an array one by one, and how many were asked for."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels, self.asked = images, labels, 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        self.asked += 1
        return torch.from_numpy(self.images[index]), int(self.labels[index])


def as_dataset(task: Task, wrong: bool = False) -> Task:
    train, search, test = (Counted(d.images, d.labels.copy()) for d in (task.train, task.search, task.test))
    if wrong:
        train.labels[:] = 10
    return Task(task.model, task.example_input, train, search, test)


def test_a_trial_reads_nothing_and_scores_as_with_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = scorer(small_task(), images=0)
    wanted = arrays.start(policy(arrays)).score(0)
    monkeypatch.setattr(kept, "KEPT_BYTES", 0)
    untrained, trained = (scorer(as_dataset(small_task()), images=images) for images in (0, 32))
    found = untrained.start(policy(untrained)).score(0)
    assert (found.accuracy, found.divergence) == (wanted.accuracy, pytest.approx(wanted.divergence, rel=1e-5))
    trained.start(policy(trained)).score(0)
    asked = [each.dataset.asked for each in (trained.batches.train, trained.batches.search)]  # type: ignore[attr-defined]
    trained.start(policy(trained)).score(0)
    assert [each.dataset.asked for each in (trained.batches.train, trained.batches.search)] == asked  # type: ignore[attr-defined]


def test_numbers_for_a_loss_of_classes_are_found_before_the_night() -> None:
    task = small_task()
    numbers = [replace(data, labels=data.labels / 1.0) for data in (task.train, task.search, task.test)]
    with pytest.raises(TaskError, match=r"loss takes .* failed with .*\(120,\).*; "):
        scorer(Task(task.model, task.example_input, *numbers)).baseline()


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_a_label_that_the_model_has_no_output_for_is_found_before_the_night(
    memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "KEPT_BYTES", memory)
    judge: Scorer = scorer(as_dataset(small_task(), wrong=True))
    with pytest.raises(TaskError, match=r"0 to 9 for this model, but the train data holds 10; correct"):
        judge.baseline()


READ = """

class Read(torch.utils.data.Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return torch.from_numpy(self.data.images[index]), int(self.data.labels[index])
"""


def test_what_a_search_decoded_is_found_by_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "KEPT_BYTES", 0)
    (tmp_path / "task.py").write_text(TASK.replace("*parts)", "*map(Read, parts))") + READ)
    (tmp_path / "search.toml").write_text(CONFIG)
    config = load_config(tmp_path)
    run = make_run(tmp_path / "run", config)
    prepare(load(config), run, run.log)
    made = {path.name: path.stat().st_mtime_ns for path in run.decoded.iterdir() if path.is_dir()}
    assert [name.rpartition("-")[0] for name in sorted(made)] == ["search-250", "train-16-64-0"]
    problem = prepare(load(config), run, run.log, write=False)
    assert isinstance(problem.scorer, Scorer)
    problem.scorer.start(problem.space.seeds()[0]).score(0)
    again = {path.name: path.stat().st_mtime_ns for path in run.decoded.iterdir() if path.is_dir()}
    assert again == made
