"""Random networks, captured, cut and written, are what they were; 40 for every change, 1,000 to soak."""

import pytest

import leanfront as lf
from leanfront.search.gate.prove import Proof, prove
from tests.compression.capture.random_networks import described, random_network

EACH = 10
QUICK, ALL = 40, 1000


def proved(seed: int) -> tuple[Proof | None, str]:
    """What is proved of a network, and what is wrong with it."""
    model, example = random_network(seed)
    try:
        captured = lf.capture(model, example)
    except Exception as error:  # whatever it is, it is this network's
        return None, f"{described(seed, model)}\n  {type(error).__name__}: {error}"
    proof = prove(model, captured, example)
    failures = "\n".join(f"  {failure}" for failure in proof.failures)
    return proof, f"{described(seed, model)}\n{failures}" if failures else ""


def holds_of_all(first: int, count: int) -> None:
    found = [proved(seed) for seed in range(first, first + count)]
    wrong = [said for _, said in found if said]
    assert not wrong, f"{len(wrong)} of {count} networks\n" + "\n".join(wrong)
    checks = [c for proof, _ in found if proof for c in proof.checks if c.name == "cut: channels out"]
    # of most networks something can be cut, and it can be told what must come out
    assert sum(check.passed is True for check in checks) >= 0.6 * count


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path))


def test_the_same_seed_gives_the_same_network():
    one, other = random_network(7)[0], random_network(7)[0]
    assert described(7, one) == described(7, other)
    assert all(
        (a == b).all() for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )
    assert len({described(0, random_network(seed)[0]) for seed in range(40)}) == 40


@pytest.mark.parametrize("first", range(0, QUICK, EACH))
def test_random_networks(first):
    holds_of_all(first, EACH)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(QUICK, ALL, EACH))
def test_many_random_networks(first):
    holds_of_all(first, EACH)
