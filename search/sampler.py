"""The samplers that a search can be run with: our own, and Optuna's."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)

from search.config import SearchSection

if TYPE_CHECKING:
    from compression.policy import Policy
    from search.cascade.knowledge import Knowledge

_POPULATION = 20


def sampler(settings: SearchSection, offset: int = 0, knowledge: "Knowledge | None" = None) -> BaseSampler:
    """The sampler of the configuration; ``offset`` gives each worker and each resumption its own draws.

    ``knowledge``: what cascade starts from; the others take none. TPE is multivariate: all decisions of a
    policy are drawn together, once. ``constant_liar`` keeps parallel workers from proposing what another is
    trying.
    """
    seed = (settings.seed + offset) % 2**32
    match settings.sampler:
        case "cascade":
            from search.cascade.sampler import CascadeSampler

            # without knowledge a study is only looked at
            return RandomSampler(seed=seed) if knowledge is None else CascadeSampler(knowledge, seed)
        case "random":
            return RandomSampler(seed=seed)
        case "nsga2":
            return NSGAIISampler(population_size=_POPULATION, seed=seed)
        case "nsga3":
            return NSGAIIISampler(population_size=_POPULATION, seed=seed)
        case "gp":
            return GPSampler(seed=seed)
        case "tpe":
            return TPESampler(multivariate=True, constant_liar=True, n_startup_trials=10, seed=seed)


def hopeless(sampler: BaseSampler, policy: "Policy", reached: Mapping[str, Any]) -> bool:
    """Whether a sampler gives up a policy that stands like this after a rung; only cascade ever does."""
    judge = getattr(sampler, "hopeless", None)
    return bool(judge(policy, reached)) if judge is not None else False


def expected_accuracy(sampler: BaseSampler) -> float | None:
    """What a sampler expects of the policy that it proposed last; None where it does not say."""
    expected: float | None = getattr(sampler, "expected_accuracy", None)
    return expected
