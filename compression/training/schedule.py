"""When zeros come during a fine-tune: all at its start, in steps, or ever more slowly. No torch."""

from collections.abc import Callable, Mapping

Schedule = Callable[[float, float], float]
"""(progress of the training, 0 .. 1; share of zeros that there is to be) -> share that there is then."""

STEPS = 4
"""Of the iterative schedule."""
ENDS = 0.5
"""Progress at which all zeros are there; what is left of the training is for the weights that stay."""


def one_shot(progress: float, share: float) -> float:
    """All of them, always."""
    return share


def iterative(progress: float, share: float) -> float:
    """Prune, train, repeat (Han et al. 2015, Learning both Weights and Connections, section 3): each of
    ``STEPS`` steps takes the same share of the weights that the one before has left."""
    step = min(STEPS, 1 + int(STEPS * progress / ENDS))
    return share if step == STEPS else 1.0 - (1.0 - share) ** (step / STEPS)


def gradual(progress: float, share: float) -> float:
    """Zhu and Gupta 2017, To prune, or not to prune, equation 1: s_f + (s_i - s_f) (1 - t)^3, from no zeros
    (s_i = 0) to ``share`` (s_f), t the part of the way to ``ENDS``."""
    return share * (1.0 - (1.0 - min(progress / ENDS, 1.0)) ** 3)


SCHEDULES: Mapping[str, Schedule] = {"one-shot": one_shot, "iterative": iterative, "gradual": gradual}
"""Name -> schedule. All have all zeros from ``ENDS`` on."""
