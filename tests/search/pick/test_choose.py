import pytest

from leanfront.search.pick.choose import Wish, choose
from leanfront.search.run.run_folder import RunError, TrialRow

BASELINE = 0.90
FRONT = [
    TrialRow(1, "complete", accuracy=0.902, latency_ms=0.9, size_bytes=900_000.0, energy_mj=9.0),
    TrialRow(2, "complete", accuracy=0.895, latency_ms=0.5, size_bytes=300_000.0, energy_mj=5.0),
    TrialRow(3, "complete", accuracy=0.891, latency_ms=0.4, size_bytes=400_000.0, energy_mj=6.0),
    TrialRow(4, "complete", accuracy=0.860, latency_ms=0.2, size_bytes=100_000.0, energy_mj=2.0),
]


@pytest.mark.parametrize(
    ("wish", "trial"),
    [
        (Wish(), 3),  # a point of accuracy for the lowest latency
        (Wish(max_drop=0.006), 2),
        (Wish(max_drop=0.05), 4),
        (Wish(max_drop=0.0), 1),
        (Wish(max_drop=0.01, prefer="accuracy"), 1),
        (Wish(max_drop=0.01, prefer="size_bytes"), 2),
        (Wish(max_drop=0.01, prefer="energy_mj"), 2),
        (Wish(max_latency_ms=0.45), 3),  # only costs are limited: the most accurate
        (Wish(max_latency_ms=0.5), 2),
        (Wish(max_size_bytes=350_000), 2),
        (Wish(max_energy_mj=5.5, prefer="latency_ms"), 4),
        (Wish(max_latency_ms=0.95, max_drop=0.05), 4),
        (Wish(max_latency_ms=0.95, max_drop=0.05, prefer="accuracy"), 1),
        (Wish(max_latency_ms=0.45, max_size_bytes=350_000), 4),
    ],
)
def test_the_choice(wish: Wish, trial: int) -> None:
    assert choose(FRONT, BASELINE, wish).trial == trial
    assert choose(FRONT[::-1], BASELINE, wish).trial == trial


def test_a_drop_of_exactly_the_limit_is_allowed() -> None:
    row = TrialRow(0, "complete", accuracy=0.89, latency_ms=1.0)
    assert choose([row], BASELINE, Wish(max_drop=0.01)) is row


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (Wish(max_latency_ms=0.1), r"keeps latency_ms to 100 us; the nearest is trial 4 with 200 us"),
        (Wish(max_size_bytes=50_000), r"size_bytes to 50.0 kB; the nearest is trial 4 with 100 kB"),
        (
            Wish(max_latency_ms=0.3, max_drop=0.02),
            r"the nearest is trial 4; allow it with --max-drop 0.040[01]",
        ),
        (Wish(prefer="speed"), r"--prefer must be one of accuracy, .*, not 'speed'"),
    ],
)
def test_nothing_fits(wish: Wish, said: str) -> None:
    with pytest.raises(RunError, match=said):
        choose(FRONT, BASELINE, wish)


def test_an_empty_front_and_a_missing_cost() -> None:
    with pytest.raises(RunError, match="the front is empty"):
        choose([], BASELINE, Wish())
    with pytest.raises(RunError, match="trial 7 has no energy_mj"):
        choose([TrialRow(7, "complete", accuracy=0.9, latency_ms=1.0)], BASELINE, Wish(max_energy_mj=1.0))


def test_what_the_message_proposes_works() -> None:
    with pytest.raises(RunError) as failure:
        choose(FRONT, 0.98, Wish(max_drop=0.0))
    drop = float(str(failure.value).split("--max-drop ")[1].split()[0])
    assert choose(FRONT, 0.98, Wish(max_drop=drop)).trial == 1
