"""``leanfront new``: what it writes runs as it is, whatever the data; what cannot be is one sentence."""

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from leanfront.search.task import Task, load_task
from tests.extending.walk import command, placed

needs_onnx2torch = pytest.mark.skipif(
    find_spec("onnx2torch") is None, reason="pip install --no-deps onnx2torch"
)
NETWORK = """
from torch import nn


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear({inputs}, {outputs}))
"""


def bright_or_dark(folder: Path, splits: tuple[str, ...], count: int = 20) -> None:
    """Grey images by class, in the splits or, without any, in one folder."""
    rng = np.random.default_rng(0)
    for split in splits or ("",):
        for name, level in (("bright", 200), ("dark", 50)):
            (at := folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.normal(level, 25, (6, 6)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(at / f"{number}.png")


def file(path: Path, size: str = "N, 1, 6, 6") -> Path:
    """A network that knows bright from dark: each channel is the mean of the image, normalised to -1..1."""
    held = {
        "w": np.full((8, 1, 3, 3), 1 / 9), "b": np.full(8, 1.0), "v": np.full((8, 8, 3, 3), 1 / 72),
        "m": np.stack([np.full(8, 1 / 8), np.full(8, -1 / 8)]), "c": np.array([-1.9, 0.0]),
    }  # fmt: skip
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[{size}] x) => (float y) {{
        h = Conv <pads = [1, 1, 1, 1]> (x, w, b) i = Relu (h)
        j = Conv <pads = [1, 1, 1, 1]> (i, v) k = Relu (j)
        p = GlobalAveragePool (k) f = Flatten (p) y = Gemm <transB = 1> (f, m, c) }}"""
    )
    model.graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in held.items()
    )
    onnx.save(model, path)
    return path


@needs_onnx2torch
def test_what_is_written_for_a_file_and_a_folder_is_checked_as_it_is(tmp_path: Path) -> None:
    bright_or_dark(tmp_path / "images", ("train", "test"))
    file(tmp_path / "net.onnx")
    with placed(tmp_path):
        said = command("new", "mine", "--from", "net.onnx", "--data", "images", "--profile", "toy")
        assert "leanfront check mine" in said
        small = ("--set", "finetune.images=16", "--set", "finetune.batch=8", "--trials", "2")
        answer = json.loads(command("check", "mine", *small, "--format", "json"))
        assert answer["passed"]
        assert answer["baseline_accuracy"] > 0.9
        assert [layer["layer"] for layer in answer["layers"]] == ["Conv", "Conv_1", "Gemm"]
        again = command("new", "mine", "--from", "net.onnx", "--data", "images", ends=2)
        assert "task.py is there; give another folder" in again


def medmnist(folder: Path, columns: int) -> Path:
    held: dict[str, Any] = {}
    for split, count in (("train", 6), ("val", 5), ("test", 4)):
        held[f"{split}_images"] = np.zeros((count, 6, 6), np.uint8)
        held[f"{split}_labels"] = (np.arange(count * columns) % 2).reshape(count, columns)
    np.savez(folder / "med.npz", **held)
    return folder / "med.npz"


def table(folder: Path, column: str, labels: list[str], splits: list[str]) -> Path:
    lines = [f"path,{column},split" if splits else f"path,{column}"]
    for number, label in enumerate(labels):
        Image.new("L", (6, 6), number).save(folder / f"{number}.png")
        lines.append(",".join([f"{number}.png", label, *splits[number : number + 1]]))
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder / "table.csv"


def folders(folder: Path, *splits: str) -> Path:
    bright_or_dark(folder / "images", splits, 5)
    return folder / "images"


THIRDS = ["train", "train", "val", "val", "test", "test"]


@pytest.mark.parametrize(
    ("make", "outputs", "counts"),
    [
        (lambda at: folders(at), 2, [6, 2, 2]),
        (lambda at: folders(at, "train", "test"), 2, [10, 5, 5]),
        (lambda at: folders(at, "train", "valid", "test"), 2, [10, 10, 10]),
        (lambda at: medmnist(at, 1), 2, [6, 5, 4]),
        (lambda at: medmnist(at, 3), 3, [6, 5, 4]),
        (lambda at: table(at, "kind", ["cat", "dog"] * 3, THIRDS), 2, [2, 2, 2]),
        (lambda at: table(at, "age", ["0.5", "2", "3", "4", "5", "6"], []), 1, [4, 1, 1]),
    ],
)
def test_a_task_is_written_for_each_kind_of_data(
    make: Callable[[Path], Path], outputs: int, counts: list[int], tmp_path: Path
) -> None:
    data = make(tmp_path)
    (tmp_path / "own_networks.py").write_text(NETWORK.format(inputs=36, outputs=outputs))
    with placed(tmp_path):
        command("new", "mine", "--from", "own_networks:network", "--data", data.name)
        task: Task = load_task(tmp_path / "mine" / "task.py", {})
    sys.modules.pop("own_networks")
    sys.path.remove(str(tmp_path / "mine" / ".."))
    assert [len(split) for split in (task.train, task.search, task.test)] == counts  # type: ignore[arg-type]
    inputs, targets = task.search.batch(torch.arange(1), None)  # type: ignore[union-attr]
    found = task.model(inputs)
    assert torch.isfinite(task.loss(found, targets))
    assert task.score(found, targets).shape == (1,)


@pytest.mark.parametrize(
    ("network", "data", "words"),
    [
        ("none.onnx", "images", "cannot read the network none.onnx"),
        ("large.onnx", "images", "1x9x9 in large.onnx, but those of images are 1x6x6; resize them"),
        ("flat.onnx", "images", "takes images (N, 1 or 3, H, W), but flat.onnx takes (1, 9)"),
        ("networks", "images", "--from is an .onnx file or module:function"),
        ("no_such_networks:made", "images", "no no_such_networks.py here"),
        ("net.onnx", "empty", "one folder a class, but empty has none"),
        ("net.onnx", "notes.txt", "but notes.txt is none of these"),
        ("net.onnx", "table.csv", "but table.csv has none of files that are there"),
    ],
)
def test_what_cannot_be_made_a_task_is_one_sentence(
    network: str, data: str, words: str, tmp_path: Path
) -> None:
    bright_or_dark(tmp_path / "images", (), 2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "table.csv").write_text("file,label\nnone.png,1\n")
    for name, size in (("net", "N, 1, 6, 6"), ("large", "N, 1, 9, 9"), ("flat", "N, 9")):
        file(tmp_path / f"{name}.onnx", size if name != "flat" else "N, 1, 6, 6")
    flat = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 9] x) => (float y) { y = Relu (x) }'
    )
    onnx.save(flat, tmp_path / "flat.onnx")
    with placed(tmp_path):
        said = command("new", "mine", "--from", network, "--data", data, ends=2)
    assert words in " ".join(said.split())
    assert not (tmp_path / "mine").exists()
