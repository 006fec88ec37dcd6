"""A part of a network that as a whole decides on values of tensors."""

import pytest
import torch
from torch import Tensor, nn

import leanfront as lf
from leanfront.compression.capture.program import TraceError
from leanfront.search.gate.prove import prove


class Finder(nn.Module):
    """Looks at as many peaks as there are: nothing that torch.export can capture as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.ReLU(),
        )
        self.regions = nn.Sequential(nn.Flatten(), nn.Linear(12 * 4, 16), nn.ReLU(), nn.Linear(16, 2))
        self.levels = nn.Conv2d(12, 4, 1)
        self.unused = nn.Linear(3, 3)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        features = self.backbone(torch.stack(images))
        self.levels(features)
        self.levels(features[:, :, ::2, ::2])
        found = []
        for each in features:
            peak = int(each.sum(0).argmax())  # decides on a value
            row, column = min(peak // each.shape[2], 4), min(peak % each.shape[2], 4)
            crops = torch.stack(
                [each[:, row : row + 2, column : column + 2], each[:, :2, :2], each[:, 2:4, 2:4]]
            )
            found.append({"scores": self.regions(crops)})
        return found


@pytest.fixture(scope="module")
def model() -> Finder:
    torch.manual_seed(0)
    return Finder().eval()


def images(count: int, seed: int = 0) -> tuple[list[Tensor]]:
    drawn = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return (list(drawn),)


def test_the_whole_names_the_line_and_the_way_out(model: Finder) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.finder = model

        def forward(self, image: Tensor) -> Tensor:
            return self.finder(list(image))[0]["scores"]

    with pytest.raises(TraceError, match=r'(?s)line \d+ of .*test_part.py.*part="backbone"'):
        lf.capture(One(), images(1)[0][0][None])
    with pytest.raises(TraceError, match=r'lists of images compress a part: part="backbone"'):
        lf.capture(model, images(1))


def test_a_part_is_captured_with_what_it_gets_and_proved(model: Finder) -> None:
    captured = lf.capture(model, images(1), part="backbone")
    assert captured.part == "backbone"
    assert captured.groups == {"3": 12, "0": 8} or set(captured.groups) == {"0"}
    calls = captured.gets(images(5))
    assert [tuple(call.tensors[0].shape) for call in calls] == [(5, 3, 6, 6)]
    proof = prove(model.backbone, captured, captured.traced.example, calls)
    assert proof.passed, proof.failures


def test_a_compressed_part_works_inside_of_the_whole(model: Finder, tmp_path) -> None:
    captured = lf.capture(model, images(1), part="backbone")
    same = lf.compress(captured, lf.uniform(captured))
    batch = images(4, 1)
    for ours, theirs in zip(same.whole(*batch), model(*batch), strict=True):
        torch.testing.assert_close(ours["scores"], theirs["scores"])
    policy = lf.uniform(captured, sparsity=0.5, weight_bits=8, activation_bits=8)
    small = lf.compress(captured, policy, calibration=[images(8, 2), images(8, 3)])
    whole = small.whole
    assert len(whole(*batch)) == 4
    assert whole.backbone is small.module
    assert whole.regions[1].weight is model.regions[1].weight  # shared, not copied
    assert isinstance(model.backbone, nn.Sequential)  # the user's own is as it was
    lf.export(small, tmp_path / "part.onnx")


def test_a_part_with_several_rows_for_an_example_takes_one(model: Finder) -> None:
    captured = lf.capture(model, images(1), part="regions")
    assert captured.traced.example_input.shape == (1, 12, 2, 2)
    assert [tuple(call.tensors[0].shape) for call in captured.gets(images(2))] == [(3, 12, 2, 2)] * 2
    small = lf.compress(captured, lf.uniform(captured, 0.5, 8, 8), calibration=[images(4)])
    assert small.whole(*images(2))[0]["scores"].shape == (3, 2)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("backbon", r"has no 'backbon'; there is backbone"),
        ("unused", r"'unused' is never called while Finder computes"),
        ("levels", r"called 2 times in one pass, with tensors of different shapes"),
    ],
)
def test_parts_that_there_are_not(model: Finder, part: str, words: str) -> None:
    with pytest.raises(TraceError, match=words):
        lf.capture(model, images(1), part=part)


def test_rows_that_are_not_apart_are_no_batch() -> None:
    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 4), Mixed())

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.reshape(-1, 4))

    with pytest.raises(TraceError, match="with 3 rows for one example, which it does not compute apart"):
        lf.capture(Whole(), torch.randn(1, 12), part="inner")
