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

from leanfront.search.config import SearchSection

if TYPE_CHECKING:
    import optuna

    from leanfront.compression.policy import Policy
    from leanfront.search.samplers.cascade.warm_start import Knowledge

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
            from leanfront.search.samplers.cascade.sampler import CascadeSampler

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


def given_up(sampler: BaseSampler, policy: "Policy", reached: Mapping[str, Any]) -> str:
    """Why a sampler gives up a policy that stands like this after a rung, or ""; only cascade ever does."""
    judge = getattr(sampler, "given_up", None)
    return str(judge(policy, reached)) if judge is not None else ""


def heirs(sampler: BaseSampler, study: "optuna.Study", policy: "Policy", accuracy: float) -> list["Policy"]:
    """What to make from the weights of a network that was just trained; only cascade ever wants anything."""
    chooser = getattr(sampler, "heirs", None)
    return list(chooser(study, policy, accuracy)) if chooser is not None else []


def expected_accuracy(sampler: BaseSampler, policy: "Policy") -> float | None:
    """What a sampler expects of a policy if it has just proposed it; None where it does not say."""
    expected = getattr(sampler, "expected_accuracy", None)
    return expected(policy) if expected is not None else None
