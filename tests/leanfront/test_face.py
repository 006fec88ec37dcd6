"""The names of ``import leanfront``: what each promises, and the page that shows them."""

import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import leanfront as lf
from leanfront.compression.capture.trace import TraceError
from leanfront.compression.policy import PolicyError
from leanfront.hw_profiles import ProfileError
from leanfront.search.run.run_folder import COLUMNS
from tests.bright import TASK
from tests.networks import ALL, captured_network, example, inputs
from tests.residual_networks import RESIDUAL
from tests.residual_networks import built as residual

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    ).eval()  # fmt: skip


def test_importing_it_loads_nothing_heavy():
    code = (
        "import sys, leanfront; print([m for m in ('torch', 'optuna', 'pandas', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there_and_on_the_page():
    listed = PAGE[PAGE.index("## All names") :]
    for name in lf.__all__:
        assert getattr(lf, name) is not None
        assert f"`{name}`" in listed
    assert set(re.findall(r"`(\w+)`", listed)) - {"ValueError"} == set(lf.__all__)
    with pytest.raises(AttributeError, match=r"'compres'.*compress"):
        lf.compres  # noqa: B018


def test_search_is_a_package_and_a_function():

    assert lf.search.task.Task is lf.Task
    assert callable(lf.search)


def test_captured_computes_what_the_module_computes_and_leaves_it_alone():
    model = convolutions()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    captured = lf.capture(model, torch.zeros(1, 3, 10, 10))
    images = torch.randn(4, 3, 10, 10)
    assert torch.allclose(captured.module(images), model(images), atol=1e-6)
    assert captured.groups == {"0": 8, "3": 12}
    assert captured.branches == ()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_is_kept_is_what_the_weights_show():
    """The channels that stay are those of the uncut weights, index by index."""
    model = convolutions()
    captured = lf.capture(model, torch.zeros(1, 3, 10, 10))
    compressed = lf.compress(captured, lf.uniform(captured, sparsity=0.5))
    for name in ("0", "3", "7"):
        inputs, outputs = compressed.kept[name]
        whole, cut = model.get_submodule(name).weight, compressed.module.get_submodule(name).weight
        assert torch.equal(whole[list(outputs)][:, list(inputs)], cut), name
    assert compressed.kept["0"][0] == (0, 1, 2)
    assert compressed.kept["7"][1] == tuple(range(5))


def shows_what_is_kept(captured: lf.Captured, compressed: lf.CompressedNetwork) -> None:
    """Every weight of the cut network is that of the uncut one at the indices that are said to stay."""
    assert set(compressed.kept) == {layer.name for layer in compressed.network.layers}
    for layer in compressed.network.layers:
        inputs, outputs = compressed.kept[layer.name]
        assert (len(inputs), len(outputs)) == (layer.shape.in_channels, layer.shape.out_channels)
        whole = captured.module.get_submodule(layer.name)
        first, second = (inputs, outputs) if isinstance(whole, nn.ConvTranspose2d) else (outputs, inputs)
        expected = whole.weight[list(first)]
        inside = captured.network.layer[layer.name].shape
        if not layer.shape.depthwise:  # of a grouped layer those in the first of its groups
            expected = expected[:, [place for place in second if place < expected.shape[1]]]
            assert expected.shape[1] == len(second) // layer.shape.groups, inside
        assert torch.equal(expected, compressed.module.get_submodule(layer.name).weight), layer.name


@pytest.mark.parametrize("name", ALL)
def test_what_is_kept_of_every_kind(name):
    captured = captured_network(name)
    shows_what_is_kept(captured, lf.compress(captured, lf.uniform(captured, sparsity=0.5)))


@pytest.mark.parametrize("name", RESIDUAL)
def test_what_is_kept_beside_branches_that_are_left_out(name):
    """What is left out has no say any more in which channels are worth least."""
    captured = lf.capture(residual(name), example(name))
    for branch in captured.branches:
        shows_what_is_kept(captured, lf.compress(captured, lf.uniform(captured, 0.5, left_out=[branch])))


def test_a_file_gives_what_the_module_gives(tmp_path):
    captured = lf.capture(convolutions(), torch.zeros(1, 3, 10, 10))
    compressed = lf.compress(captured, lf.uniform(captured, sparsity=0.25))
    file = lf.export(compressed, tmp_path / "model.onnx")
    assert file.path.stat().st_size == file.size_bytes
    image = torch.randn(1, 3, 10, 10)
    (answer,) = onnxruntime.InferenceSession(file.path).run(None, {"input": image.numpy()})
    assert np.allclose(answer, compressed.module(image).detach().numpy(), atol=1e-5)


def test_branches_are_left_out_by_name():
    network = next(iter(RESIDUAL))
    captured = lf.capture(residual(network), example(network))
    assert captured.branches
    name = captured.branches[0]
    compressed = lf.compress(captured, lf.uniform(captured, left_out=[name]))
    assert len(compressed.network.layers) < len(captured.network.layers)
    assert set(compressed.kept) == {layer.name for layer in compressed.network.layers}
    with pytest.raises(PolicyError, match=f"must be one of.*{re.escape(name)}.*'nothing'"):
        lf.uniform(captured, left_out=["nothing"])


def test_prices_are_those_of_the_command(tmp_path):
    captured = lf.capture(convolutions(), torch.zeros(1, 3, 10, 10))
    whole = lf.cost(captured, profile="raspberry-pi-4")
    half = lf.cost(
        captured, lf.uniform(captured, 0.5, 8, 8), profile=lf.Profile.of(read("raspberry-pi-4"), "here")
    )
    shapes = lf.cost(captured.network, lf.uniform(captured), profile="raspberry-pi-4")
    assert whole == replace(shapes, size_bytes=whole.size_bytes)
    assert half.latency_ms < whole.latency_ms
    assert half.size_bytes < whole.size_bytes
    with pytest.raises(ProfileError, match="raspberry-pi-9"):
        lf.cost(captured, profile="raspberry-pi-9")


def read(name: str) -> dict:
    from leanfront.hw_profiles import load_profile

    return load_profile(name).model_dump(by_alias=True)


def test_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(TraceError, match="does not take these inputs"):
        lf.capture(convolutions(), (torch.zeros(1, 3, 10, 10), torch.zeros(1)))
    captured = lf.capture(convolutions(), torch.zeros(1, 3, 10, 10))
    with pytest.raises(PolicyError, match="give calibration"):
        lf.compress(captured, lf.uniform(captured, weight_bits=8, activation_bits=8))
    with pytest.raises(ValueError, match="'tflite-9'; there are onnx"):
        lf.export(lf.compress(captured, lf.uniform(captured)), tmp_path / "x", to="tflite-9")


def bright() -> lf.Task:
    place: dict = {}
    exec(TASK, place)
    return place["task"]()


SETTINGS = {
    "search": {"sampler": "random"},
    "finetune": {"images": 64, "batch": 16, "calibration_images": 32},
    "space": {"sparsity": [0.0, 0.5], "weight_bits": [8, 32]},
}


def test_a_task_is_searched_picked_and_found_again(tmp_path):
    threads = torch.get_num_threads()
    run = lf.search(bright(), profile="toy", trials=3, run=tmp_path / "night", settings=SETTINGS)
    assert list(run.trials.columns) == list(COLUMNS)
    assert (run.trials["state"] == "complete").sum() >= 3
    assert set(run.front["trial"]) <= set(run.trials["trial"])
    picked = lf.Run(tmp_path / "night").pick(prefer="accuracy", epochs=0)
    assert (picked.folder / "model.onnx").is_file()
    assert picked.found.test["accuracy"] > 0.5
    assert run.report().stat().st_size > 10_000
    assert torch.get_num_threads() == threads  # the caller's
    kept = pickle.loads((tmp_path / "night" / "task" / "task.pickle").read_bytes())
    assert type(kept).__name__ == "Task"


@pytest.mark.slow
def test_another_task_is_another_file(tmp_path):
    """A baseline that was scored on other data must not be taken over: the hash of the task's file tells."""
    folder = tmp_path / "night"
    texts = set()
    for shift in (0.0, 0.25):
        task = bright()
        task.search.images[0] += shift
        lf.search(task, profile="toy", trials=1, run=folder, settings=SETTINGS)
        texts.add((folder / "task" / "task.py").read_text())
    assert len(texts) == 2


def test_a_task_needs_a_folder_and_must_be_pickled(tmp_path):
    with pytest.raises(lf.TaskError, match="needs a run folder"):
        lf.search(bright(), profile="toy", trials=1)
    task = bright()
    task.model.anything = (number for number in range(3))
    with pytest.raises(lf.TaskError, match="cannot be pickled"):
        lf.search(task, profile="toy", trials=1, run=tmp_path / "night", settings=SETTINGS)


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place: dict = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        code = code.replace("trials=20", "trials=2").replace(
            'profile="raspberry-pi-4", trials', 'profile="toy", trials'
        )
        code = code.replace('{"finetune": {"images": 2048}}', repr(SETTINGS)).replace(
            "max_drop=0.01", "epochs=0, max_drop=1.0"
        )
        exec(code, place)
    assert (tmp_path / "model.onnx").is_file()
    assert (tmp_path / "runs" / "night" / "report.html").is_file()


def test_one_batch_may_stand_by_itself() -> None:
    captured, batch = captured_network("Chain"), inputs("Chain", 16, 0)
    policy = lf.uniform(captured, weight_bits=8, activation_bits=8)
    alone, listed = (lf.compress(captured, policy, given) for given in (batch, [batch]))
    with torch.no_grad():
        assert torch.equal(alone.module(batch), listed.module(batch))
