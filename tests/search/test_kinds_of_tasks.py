"""A detector of which a part is compressed, from check to the picked file; examples/tasks has other kinds."""

import json
from pathlib import Path

import numpy as np
import onnxruntime

from tests.bright import CONFIG
from tests.extending.walk import command, placed

TASK = '''
import torch
import torch.nn.functional as F
from torch import nn

from leanfront import Task


class Made:
    """Examples that are made at once: inputs and targets in whatever they come in."""

    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __len__(self):
        return len(self.targets)

    def batch(self, indices, generator):
        taken = {name: each[indices] for name, each in self.inputs.items()}
        return (taken if len(taken) > 1 else next(iter(taken.values()))), self.targets[indices]


def thirds(inputs, targets):
    return [Made({n: each[i::3] for n, each in inputs.items()}, targets[i::3]) for i in range(3)]

'''

PART = '''
class Detector(nn.Module):
    """One box an image, where its backbone answers most: decided on values, and its own loss in training."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, images, places=None):
        heat = self.head(self.backbone(torch.stack(list(images)))).flatten(1)
        if self.training:
            return {"place": F.cross_entropy(heat, places)}
        return [{"place": int(each.argmax()), "score": each.max()} for each in heat]


class Images(Made):
    def batch(self, indices, generator):
        inputs, targets = super().batch(indices, generator)
        return (list(inputs),), targets


def task():
    torch.manual_seed(0)
    places = torch.arange(240) % 36
    images = 0.3 * torch.rand(240, 1, 6, 6)
    images.reshape(240, 36)[torch.arange(240), places] += 1.0
    model = Detector()
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(25):
        optimizer.zero_grad()
        model(list(images[:96]), places[:96])["place"].backward()
        optimizer.step()
    parts = [Images(each.inputs, each.targets) for each in thirds({"images": images}, places)]
    return Task(
        model.eval(), ([torch.zeros(1, 6, 6)],), *parts, part="backbone",
        score=lambda found, places: (torch.tensor([each["place"] for each in found]) == places).float(),
        training_loss=lambda model, inputs, places: model(*inputs, places)["place"],
    )
'''


def test_a_task_whose_part_is_compressed_goes_from_check_to_the_picked_file(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(TASK + PART)
    (tmp_path / "search.toml").write_text(CONFIG)
    with placed(tmp_path):
        checked = json.loads(command("check", ".", "--format", "json"))
        command("search", ".", "--run", "run", "--trials", "3")
        front = json.loads(command("front", "run", "--format", "json"))
        picked = command("pick", "run", "--max-drop", "1", "--epochs", "1")
    assert checked["passed"]
    assert checked["metric"]["name"] == "accuracy"
    assert checked["baseline_accuracy"] > 0.8
    assert checked["guessing"] is None  # what a part puts out is no answer
    assert front["metric"] == checked["metric"]
    assert front["front"]
    assert "accuracy" in picked
    (folder,) = (tmp_path / "run" / "exported").iterdir()
    found = json.loads((folder / "verification.json").read_text())
    assert found["failures"] == []
    assert found["test"]["steps"] < 3
    assert found["test"]["agreement"] is None
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (given,) = session.get_inputs()
    assert len(session.run(None, {given.name: np.zeros(given.shape, np.float32)})) == 1
