"""A sampler of one's own, with rungs: what it gives up after the first is not trained to the last.

What to write, in the task's file: a ``Sampler`` with ``register("mine")``, chosen by ``sampler = "mine"``.
``proposer`` is one of Optuna's samplers; ``rungs`` says after how many images trials are scored, and
``given_up`` which of them are not trained further. More hooks are described in search/trial/trial.py.
"""

import re
from pathlib import Path

from leanfront.compression.policy import Policy
from tests.extending.walk import walked

ADDED = """
from optuna.samplers import RandomSampler

from leanfront.search.samplers import Sampler, register


@register("mine")
class Mine(Sampler):
    def rungs(self, images):
        return images

    def proposer(self, seed):
        return RandomSampler(seed=seed)

    def given_up(self, policy, reached):
        return "its first layer has 4 bits" if policy["0"].weight_bits == 4 else ""
"""


def test_it_proposes_and_gives_up(tmp_path: Path) -> None:
    walk = walked(tmp_path, ADDED, "search.sampler=mine", "finetune.rungs=[0.0, 0.5, 1.0]", "search.trials=5")
    given_up = [
        row for row in walk.trials if row.reason == "not promoted from rung 0: its first layer has 4 bits"
    ]
    assert given_up
    assert {Policy.from_json(row.policy)["0"].weight_bits for row in given_up} == {4}
    assert {row.rung for row in walk.trials if row.state == "complete"} == {2}
    assert {row.state for row in walk.trials} == {"complete", "pruned"}
    shown = {point["trial"] for point in walk.front["front"]}
    assert shown
    assert not shown & {row.trial for row in given_up}
    assert not any(re.search(rf"^ +{row.trial} ", walk.table, re.M) for row in given_up)
    assert "sampler = &#34;mine&#34;" in walk.page
    for images in (0, 32, 64):
        assert f", {images} images" in walk.page
    assert int(walk.exported.name) in shown
    assert f"# Trial {walk.exported.name}\n\nVerified in onnxruntime" in walk.card
