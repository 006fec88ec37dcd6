"""Sections of one's own: checked like ours, and of use with a cost model alone."""

import pytest

from leanfront.hw_profiles import (
    HardwareProfile,
    ProfileError,
    Section,
    load_profile,
    register_section,
    section,
)
from leanfront.latency_models import registry
from leanfront.latency_models.errors import TableError
from leanfront.latency_models.registry import model_of


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it; ours registers when a cost is first asked for."""
    model_of(load_profile("toy"))
    monkeypatch.setattr(section, "_SECTIONS", dict(section._SECTIONS))
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))


def fields(**more: object) -> dict[str, object]:
    assumed = {"status": "assumed", "from": "invented"}
    plain = {"name": "p", "description": "d", "kind": "cpu", "supported": [[8, 8]], "channel_multiple": 1}
    return {**plain, "power_w": 1.0, "sources": {"supported": assumed, "channel_multiple": assumed,
            "power_w": assumed, "lone": assumed}, **more}  # fmt: skip


def test_sections_are_checked_and_need_a_cost_model() -> None:
    @register_section("lone")
    class Lone(Section):
        wait_ms: float
        turns: float
        pure_numbers = frozenset({"turns"})

        def check(self, part: HardwareProfile) -> None:
            if part.channel_multiple > 1:
                raise ValueError("lone parts know no multiples")

    table = {"wait_ms": 1.0, "turns": 2.0}
    profile = HardwareProfile.of(fields(model="lone", lone=table), "x")
    with pytest.raises(TableError, match=r"costs of profile 'p' are lone; computed are .*roofline"):
        model_of(profile)
    for changes, sentence in (
        ({"lone": table, "channel_multiple": 2}, "lone parts know no multiples"),
        ({"lone": {**table, "wait": 1.0}}, "lone.wait is no field .* did you mean .wait_ms"),
        ({}, r"needs a table \[lone\]"),
        ({"lone": table, "roofline": {}}, r"does not use the table \[roofline\]"),
        ({"lone": table, "model": "loan"}, "model: input should be .*'measured', .* or .*, not 'loan'"),
    ):
        with pytest.raises(ProfileError, match=sentence):
            HardwareProfile.of(fields(**{"model": "lone", **changes}), "x")
    with pytest.raises(ValueError, match=r"model 'lone' is taken by .*Lone"):
        register_section("lone")(Section)
    with pytest.raises(ValueError, match="'name' is a field of every profile"):
        register_section("name")(Lone)
