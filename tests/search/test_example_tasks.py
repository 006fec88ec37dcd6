"""The examples of kinds of tasks: each is a trained network that can be searched. make soak walks them."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from leanfront.compression.capture.trace import trace
from leanfront.search.config import load_config
from leanfront.search.objectives import objective, scored_by
from leanfront.search.scores import described
from leanfront.search.task import load_task
from leanfront.search.trial.scorer import Scorer
from tests.extending.walk import as_delivered, command, placed
from tests.variants import some

EXAMPLES = Path(__file__).parents[2] / "examples" / "tasks"
LEAST = {
    "anomaly": 0.7,
    "detection": 0.5,
    "image_and_numbers": 0.8,
    "keywords": 0.6,
    "rare_class": 0.9,
    "regression": -60.0,
    "segmentation": 0.5,
    "sensor": 0.7,
    "several_labels": 0.7,
    "text": 0.65,
}
"""What each is better than, with the sign with which more is better; guessing is worse by far."""
SHOWN = {
    "anomaly": "AUC",
    "rare_class": "AUC",
    "regression": "mean absolute error",
    "segmentation": "mIoU",
    "several_labels": "F1",
}
"""What people read instead of accuracy."""


def test_each_example_is_here() -> None:
    assert sorted(LEAST) == sorted(file.parent.name for file in EXAMPLES.glob("*/task.py"))


@pytest.mark.parametrize("name", some(LEAST, 4))
def test_a_network_that_was_trained_in_seconds_beats_guessing(name: str) -> None:
    config = load_config(EXAMPLES / name, [])
    task = load_task(EXAMPLES / name / "task.py", {})
    traced = trace(task.model, task.example_input)
    with as_delivered():
        scored_by(described(task.metric))
        score = Scorer(traced, task, config).baseline()
        assert score.accuracy > LEAST[name]
        assert objective("accuracy").label == SHOWN.get(name, "accuracy")


def without_sources(page: str) -> str:
    """What people read of a report, but for where it came from: keys and columns are there as they are."""
    shown = page.partition("<h2>Provenance")[0]
    return re.sub(r"<(script|style)\b.*?</\1>", "", shown, flags=re.S)


def walked(name: str, folder: Path, *settings: str) -> tuple[dict[str, Any], dict[str, str], Path]:
    """From check to report. Returns what check found, what each command said, and the exported folder."""
    config, said = str(EXAMPLES / name), {}
    drop = "30" if name == "regression" else "0.5"
    with placed(folder):
        checked = json.loads(command("check", config, "--format", "json"))
        said["check"] = command("check", config)
        said["search"] = command("search", config, "--run", "run", *settings)
        said["status"], said["front"] = command("status", "run"), command("front", "run")
        said["pick"] = command("pick", "run", "--max-drop", drop, "--epochs", "1")
        command("report", "run")
    (exported,) = (folder / "run" / "exported").iterdir()
    said["report"] = without_sources((folder / "run" / "report.html").read_text())
    said["card"] = (exported / "card.md").read_text()
    return checked, said, exported


def hold(name: str, folder: Path, *settings: str) -> None:
    checked, said, exported = walked(name, folder, *settings)
    metric = SHOWN.get(name, "accuracy")
    assert checked["passed"]
    assert checked["metric"]["name"] == metric
    assert checked["baseline_accuracy"] > LEAST[name]
    for where in ("search", "status", "front", "pick", "report", "card"):
        assert metric in said[where], where
        assert metric == "accuracy" or "ccuracy" not in said[where], where
    found = json.loads((exported / "verification.json").read_text())
    assert found["failures"] == []
    assert found["test"]["steps"] < 3
    assert (found["test"]["agreement"] is None) is (name in ("anomaly", "regression"))
    interpreter = Interpreter(str(exported / "model.tflite"))
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()
    for each in given:
        interpreter.set_tensor(each["index"], np.ones(each["shape"], each["dtype"]))
    interpreter.invoke()
    assert len(given) == (2 if name in ("text", "image_and_numbers") else 1)
    assert len(interpreter.get_output_details()) == (3 if name == "detection" else 1)
    if name not in ("anomaly", "detection"):  # no answer of these is the same for all
        assert checked["guessing"]["accuracy"] < checked["baseline_accuracy"]
    if name == "regression":
        assert checked["guessing"]["answer"] in ("the mean", "the median")
        assert re.search(r"\nguessing +\d\d\.\d+ points of progression, always the me", said["check"])
        assert "points of progression" in said["front"]
        assert re.search(r"-\d+\.\d* points of", said["search"]) is None  # as it is, not as it is kept
        assert found["test"]["report"]["correlation"]["uncompressed"] > 0.5
        assert "| correlation |" in said["card"]
        assert "| lost, with its 95 % interval" in said["card"]


@pytest.mark.slow
def test_one_whose_error_has_a_unit_goes_from_check_to_the_picked_file(tmp_path: Path) -> None:
    few = ("search.sampler=tpe", "finetune.images=64", "finetune.calibration_images=32")
    hold("regression", tmp_path, "--trials", "3", *(f"--set={one}" for one in few))


@pytest.mark.slow
@pytest.mark.parametrize("name", LEAST)
def test_each_goes_from_check_to_the_picked_file(name: str, tmp_path: Path) -> None:
    hold(name, tmp_path, "--trials", "8")
