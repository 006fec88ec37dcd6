"""Tasks of many kinds from check to the picked file, on the real command line; no line of the source knows
them."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.bright import CONFIG
from tests.extending.walk import command, placed

TASK = '''
import math

import torch
import torch.nn.functional as F
from torch import nn

from leanfront import Metric, Task
from leanfront.metrics import AUC


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


def trained(model, inputs, targets, loss, steps=150):
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(**inputs) if len(inputs) > 1 else model(next(iter(inputs.values()))), targets).backward()
        optimizer.step()
    return model.eval()
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
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(120):
        optimizer.zero_grad()
        model(list(images), places)["place"].backward()
        optimizer.step()
    parts = [Images(each.inputs, each.targets) for each in thirds({"images": images}, places)]
    return Task(
        model.eval(), ([torch.zeros(1, 6, 6)],), *parts, part="backbone",
        score=lambda found, places: (torch.tensor([each["place"] for each in found]) == places).float(),
        training_loss=lambda model, inputs, places: model(*inputs, places)["place"],
    )
'''

REGRESSION = """
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 16), nn.Linear(3, 16), nn.Linear(32, 2)

    def forward(self, signal, settings):
        return {"level": self.out(torch.cat([self.a(signal).relu(), self.b(settings).relu()], 1))}


def error(outputs, targets):
    return (outputs["level"][:, 1] - targets[:, 1]).abs().mean()


def task():
    torch.manual_seed(0)
    inputs = {"signal": torch.randn(240, 6), "settings": torch.randn(240, 3)}
    targets = torch.stack([inputs["signal"].sum(1), 100 * inputs["settings"][:, 0].abs()], 1)
    loss = lambda outputs, targets: F.mse_loss(outputs["level"] / 50, targets / 50)
    return Task(
        trained(Two(), inputs, targets, loss, 400), {n: each[:1] for n, each in inputs.items()},
        *thirds(inputs, targets), loss=loss, metric=Metric(error, "level error", "hPa", False, (0, math.inf)),
    )
"""

BINARY = """
def task():
    torch.manual_seed(0)
    inputs = {"x": torch.randn(240, 4, 12)}
    targets = (inputs["x"][:, 0].mean(1) > 0).float()
    model = nn.Sequential(
        nn.Conv1d(4, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 1),
        nn.Flatten(0))
    loss = F.binary_cross_entropy_with_logits
    return Task(
        trained(model, inputs, targets, loss), torch.zeros(1, 4, 12), *thirds(inputs, targets), loss=loss,
        metric=AUC, report={"hits": lambda o, t: ((o > 0) == (t > 0.5)).float().mean()},
    )
"""


METRICS = {"part": ("accuracy", 1, 0.8), "regression": ("level error", -1, 0.0), "binary": ("AUC", 1, 0.8)}
"""Kind -> what it is scored by, with which sign that is kept, and what it is more than."""


def found_in(folder: Path) -> dict[str, Any]:
    """What was verified of the one network that was picked."""
    (file,) = folder.glob("run/exported/*/verification.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def without_sources(page: str) -> str:
    """What people read of a report, but for where it came from, which has keys and columns as they are."""
    shown = page.partition("<h2>Provenance")[0]
    return re.sub(r"<(script|style)\b.*?</\1>", "", shown, flags=re.S)


@pytest.mark.parametrize("kind", ["part", "regression", "binary"])
def test_a_task_of_any_kind_goes_from_check_to_the_picked_file(kind: str, tmp_path: Path) -> None:
    text = {"part": PART, "regression": REGRESSION, "binary": BINARY}[kind]
    (tmp_path / "task.py").write_text(TASK + text)
    (tmp_path / "search.toml").write_text(CONFIG)
    with placed(tmp_path):
        checked = json.loads(command("check", ".", "--format", "json"))
        command("search", ".", "--run", "run", "--trials", "3")
        front = json.loads(command("front", "run", "--format", "json"))
        said = [command("front", "run"), command("status", "run")]
        if kind == "binary":
            said.append(command("check", "."))
        picked = command("pick", "run", "--max-drop", "20" if kind == "regression" else "1", "--epochs", "1")
        command("report", "run")
    assert checked["passed"]
    metric, sign, least = METRICS[kind]
    assert checked["metric"]["name"] == metric
    assert sign * checked["baseline_accuracy"] > least  # kept so that more is better
    assert front["metric"] == checked["metric"]
    assert front["front"]
    page = (tmp_path / "run" / "report.html").read_text()
    card = next((tmp_path / "run" / "exported").glob("*/card.md")).read_text()
    for text in (*said, picked, page, card):
        assert metric in text
        assert kind == "part" or "ccuracy" not in without_sources(text)
    if kind == "binary":
        assert found_in(tmp_path)["test"]["report"]["hits"]["uncompressed"] > 0.8
        assert "| hits |" in card
    if kind == "regression":
        assert " hPa" in said[0]
        assert re.search(r"-\d+\.\d* hPa", said[0]) is None  # an error is shown as it is, not as it is kept
        assert "| lost, with its 95 % interval" in card
    (folder,) = (tmp_path / "run" / "exported").iterdir()
    found = found_in(tmp_path)
    assert found["failures"] == []
    assert found["test"]["steps"] < 3
    decides = kind == "binary"
    assert (found["test"]["agreement"] is not None) is decides
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    feed = {each.name: np.zeros(each.shape, np.float32) for each in session.get_inputs()}
    assert len(feed) == (2 if kind == "regression" else 1)
    assert len(session.run(None, feed)) == 1
