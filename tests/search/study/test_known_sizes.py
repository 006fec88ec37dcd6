"""Sizes of operations are measured once for each network."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from leanfront.compression.capture.trace import trace
from leanfront.compression.export import measured_sizes
from leanfront.compression.export.dialects import QDQ
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.search.study.known_sizes import sized


def test_they_are_measured_once_and_the_same_after(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    traced = trace(model, torch.zeros(1, 3, 2, 2))
    first = sized(traced, QDQ)
    measured = measured_sizes.measured
    asked = []
    monkeypatch.setattr(
        measured_sizes, "measured", lambda again, kind: asked.append(again) or measured(again, kind)
    )
    again = sized(trace(model, torch.zeros(1, 3, 2, 2)), QDQ)
    assert not asked
    assert again == first
    assert all(node.written is not None for node in again.nodes)
    policy = Policy.uniform(first, LayerPolicy(0.0, 8, 8))
    batches = [PolicyBatch.of(network, [policy]).size_bytes()[0] for network in (first, again)]
    assert batches[0] == batches[1] != PolicyBatch.of(traced.network, [policy]).size_bytes()[0]
    sized(trace(model, torch.zeros(1, 3, 2, 2)), QDQ)
    wider = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    sized(trace(wider, torch.zeros(1, 3, 4, 4)), QDQ)
    assert len(asked) == 1
    (tmp_path / "sizes").rename(tmp_path / "away")
    for path in (tmp_path / "away").iterdir():
        path.write_text("{")
    (tmp_path / "away").rename(tmp_path / "sizes")
    assert sized(traced, QDQ) == replace(first)
    assert len(asked) == 2
