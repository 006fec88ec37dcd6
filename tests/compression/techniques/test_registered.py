"""A technique of a task's own in a space: counted, encoded, priced, refused where it is not registered."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from leanfront.compression.policy import LayerPolicy, Policy, PolicyError
from leanfront.compression.policy.space import Space
from leanfront.compression.policy.technique import _REGISTERED, SpaceError
from leanfront.search.config import load_config
from leanfront.search.samplers.cascade.encoding import Encoding
from leanfront.search.study.prepare import load
from tests.bright import CONFIG, TASK
from tests.extending.test_technique import ADDED


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "task.py").write_text(TASK + ADDED)
    config = CONFIG.replace("trials = 4", 'trials = 6\nobjectives = ["accuracy", "size_bytes"]')
    (tmp_path / "search.toml").write_text(config)
    yield tmp_path
    _REGISTERED.pop("zeros", None)


def space_of(folder: Path) -> Space:
    return load(load_config(folder / "search.toml")).space


def test_a_space_with_it_counts_encodes_and_prices(folder: Path) -> None:
    space = space_of(folder)
    names = [decision.name for decision in space.decisions]
    assert names[-3:] == ["zeros/0", "zeros/2", "zeros/6"]
    _REGISTERED.pop("zeros")
    assert space.size == 27 * space_of_plain(space).size
    load(load_config(folder / "search.toml"))  # registered again
    encoding, rng = Encoding(space), np.random.default_rng(0)
    codes = encoding.random(50, rng)
    batch = space.batch(codes)
    canonical = encoding.canonical(codes)
    assert (canonical[-3:] == codes[-3:]).all()
    for column in range(50):
        policy = batch.policy(column)
        assert Policy.from_json(policy.to_json()) == policy
        assert space.params_of(policy) == encoding.params(encoding.of(policy))
        assert [policy[name].value("zeros") for name in ("0", "2", "6")] == [
            (0.0, 0.5, 0.9)[code] for code in codes[-3:, column]
        ]
    without = codes.copy()
    without[-3:] = 0
    saved = space.batch(without).size_bytes() - batch.size_bytes()
    expected = (batch.more["zeros"] * batch.weight_counts * batch.weight_bits / 8).sum(axis=0)
    assert saved == pytest.approx(expected, abs=1)
    changed = space.mutated(space.reference, rng, 40)
    assert any(layer.more for layer in changed.values())


def space_of_plain(space: Space) -> Space:
    """The same without any technique from outside."""
    from leanfront.hw_profiles import load_profile

    plain = Space(space.network, load_profile("toy"), (0.0, 0.25, 0.5), (4, 8, 32), (8, 32))
    assert not plain.others
    return plain


def test_without_it_a_policy_that_wants_it_is_refused(folder: Path) -> None:
    from leanfront.compression.techniques.compress import compress

    traced = load(load_config(folder / "search.toml")).traced
    policy = Policy.uniform(traced.network, LayerPolicy(more=(("zeros", 0.5),)))
    weight = compress(traced, policy).module.get_submodule("2").weight
    assert int((weight == 0).sum()) == weight.numel() // 2
    _REGISTERED.pop("zeros")
    with pytest.raises(PolicyError, match=r"'zeros', which is not registered.*task.*sparsity, branch, bits"):
        compress(traced, policy)


def test_it_must_offer_to_leave_a_layer_as_it_is(folder: Path) -> None:
    (folder / "task.py").write_text(TASK + ADDED.replace("(0.0, 0.5, 0.9)", "(0.5, 0.9)"))
    with pytest.raises(ValueError, match="must offer 0") as error:
        space_of(folder)
    assert isinstance(error.value.__cause__, SpaceError)


def test_what_it_adds_to_a_policy_is_said_once() -> None:
    plain = Policy.of({"a": LayerPolicy(0.5, 8)})
    other = Policy.of({"a": LayerPolicy(0.5, 8, more=(("z", 0),))})
    assert plain == other
    assert "more" not in other.to_json()
    both = LayerPolicy(more={"b": 1, "a": 0.5})
    assert both == LayerPolicy(more=(("a", 0.5), ("b", 1.0)))
    assert Policy.of({"a": both}).digest != Policy.of({"a": LayerPolicy()}).digest
    with pytest.raises(PolicyError, match="wrong type"):
        Policy.from_json('{"a": {"more": {"z": "much"}}}')
    with pytest.raises(PolicyError, match="finite"):
        LayerPolicy(more={"z": float("inf")})
