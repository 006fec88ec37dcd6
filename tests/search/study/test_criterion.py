"""The criterion of a search: chosen once, kept with the run, and refused where it cannot be."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from leanfront.compression.capture.program import Arguments
from leanfront.compression.techniques import criteria
from leanfront.search.config import ConfigError, load_config, parse_config
from leanfront.search.run.run_folder import RunFolder
from leanfront.search.study.criterion import importances, judged_by, untrained_scorer
from leanfront.search.study.prepare import Loaded, load

TASK = """
import torch
from tests.search.trial.test_score import MADE
from dataclasses import replace

def task(senseless: bool = False):
    return replace(MADE, loss=lambda outputs, targets: (outputs - targets).mean()) if senseless else MADE
"""


def loaded(folder: Path, *settings: str) -> Loaded:
    (folder / "task.py").write_text(TASK)
    (folder / "search.toml").write_text(
        '[task]\nfile = "task.py"\n[finetune]\nbatch = 32\nimages = 64\ncalibration_images = 64\n'
    )
    return load(load_config(folder, settings))


def run_in(folder: Path) -> RunFolder:
    (folder / "run" / "locks").mkdir(parents=True)
    return RunFolder(folder / "run")


def test_the_usual_one_leaves_everything_as_it_is(tmp_path: Path) -> None:
    made = loaded(tmp_path)
    assert judged_by(made, run_in(tmp_path), print) is made
    assert not (tmp_path / "run" / "environment.json").exists()


def test_of_several_the_nearest_is_kept_with_the_run(tmp_path: Path) -> None:
    made, run = (
        loaded(tmp_path, 'space.criterion=["l2", "taylor", "second-order", "random"]'),
        run_in(tmp_path),
    )
    said: list[str] = []
    judged = judged_by(made, run, said.append)
    told = run.environment()["criterion"]
    apart = told["divergences"]
    assert set(apart) == {"l2", "taylor", "second-order", "random"}
    assert told["name"] == min(apart, key=apart.get) != "random"
    assert said[-1] == f"channels are cut by criterion {told['name']}"
    again = judged_by(made, run, said.append, write=False)
    one, other = again.traced.importance, judged.traced.importance
    assert (one is None and other is None) or np.array_equal(one, other, equal_nan=True)


def test_criteria_look_at_evidence_where_the_uncompressed_network_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, told = untrained_scorer(loaded(tmp_path), print), []
    monkeypatch.setattr(criteria, "importance", lambda traced, name, evidence: told.append(evidence))
    with FakeTensorMode(allow_non_fake_inputs=True):  # a GPU that need not be there
        far = torch.empty(2, 3, device="cuda")
        scorer.batches.__dict__["fitted_inputs"] = Arguments.of(far)
        monkeypatch.setattr(scorer, "gradients", lambda images: [{"weight": far}])
        importances(scorer, ["taylor", "second-order"])
    for evidence in told:
        assert {tensor.device.type for tensor in evidence.inputs.tensors} == {"cpu"}
        assert [gradients["weight"].device.type for gradients in evidence.gradients] == ["cpu"]
    assert len(told) == 2


def test_one_of_the_weights_is_not_tried(tmp_path: Path) -> None:
    made, run = loaded(tmp_path, "space.criterion=random"), run_in(tmp_path)
    with pytest.raises(ConfigError, match=r"was not prepared: .* start the search"):
        judged_by(made, run, print, write=False)
    judged = judged_by(made, run, print)
    assert run.environment()["criterion"].items() >= {"name": "random", "asked": ["random"]}.items()
    assert judged.traced.importance is not None
    run.importance_file.unlink()
    with pytest.raises(ConfigError, match=r"importance.npy must be there: .* copy it"):
        judged_by(made, run, print, write=False)


def test_gradients_need_a_loss(tmp_path: Path) -> None:
    made = loaded(tmp_path, "space.criterion=taylor", "task.options.senseless=true")
    with pytest.raises(ConfigError, match=r"'taylor' needs gradients of the task's loss, but .*'l2'"):
        judged_by(made, run_in(tmp_path), print)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nni.l3", r"space.criterion must name what .* not 'nni.l3'; there are l2, l1"),
        ("[]", r"space.criterion must name at least one criterion, each once, not \[\]"),
        ('["l1", "l1"]', r"each once, not \['l1', 'l1'\]"),
        ("3", r"space.criterion must be a list, not 3"),
    ],
)
def test_what_is_no_criterion_is_refused(tmp_path: Path, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        loaded(tmp_path, f"space.criterion={value}")


def test_a_configuration_is_written_as_it_is_read() -> None:
    for criterion in ("l1", ["l2", "taylor"]):
        config = parse_config({"task": {"file": "task.py"}, "space": {"criterion": criterion}})
        assert config.space.criterion == ((criterion,) if isinstance(criterion, str) else tuple(criterion))
        assert 'criterion = ["l' in config.to_toml()
