"""What anybody gets without a search: the uncompressed network rounded after training, as the file that runs.

A search that finds nothing better has found nothing, so every run says it, and no network of the same policy
is handed over that is worse.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from leanfront.compression.graph import Network
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.hw_profiles import HardwareProfile
from leanfront.search.run.run_folder import RunFolder
from leanfront.search.run.significance import save_scores

if TYPE_CHECKING:
    from leanfront.search.trial.scorer import Scorer

KINDS: Mapping[str, tuple[int, int]] = {"int8": (8, 8), "float16": (16, 16)}
"""What it is called -> bits of weights and activations, in all layers."""


def uniform_on(network: Network, profile: HardwareProfile, wanted: LayerPolicy) -> Policy:
    """The same for every layer, as far as each can on a part: layers of weight bits alone keep their floats
    where it does not decode such weights."""
    policy = Policy.uniform(network, wanted)
    kept = () if profile.supports(wanted.weight_bits, 32) else network.weight_only
    return Policy.of({**policy, **{name: replace(policy[name], weight_bits=32) for name in kept}})


def free_policies(network: Network, profile: HardwareProfile) -> dict[str, Policy]:
    """Name -> policy, of those kinds that the part runs."""
    return {
        name: uniform_on(network, profile, LayerPolicy(weight_bits=weights, activation_bits=activations))
        for name, (weights, activations) in KINDS.items()
        if (weights, activations) in profile.supported
    }


def scored_free(
    scorer: "Scorer", policies: Mapping[str, Policy], run: RunFolder | None, log: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Of each policy its name, bits, accuracy on the search split without any training, and what its batch
    norms, ranges and biases were given. ``run`` keeps the score of each example."""
    from leanfront.search.trial.scored import TrialFailed

    found = []
    for name, policy in policies.items():
        log(f"scoring what is free: {name} after training")
        try:
            score = scorer.without_training(policy)
        except TrialFailed as error:
            log(f"{name} could not be scored: {error}")
            continue
        if run is not None:
            save_scores(run.scores_file(f"free-{name}"), {scorer.rungs[-1]: score.scores})
        weights, activations = KINDS[name]
        found.append(
            {
                "name": name,
                "policy_digest": policy.digest,
                "weight_bits": weights,
                "activation_bits": activations,
                "accuracy": float(score.accuracy),
                "accuracy_ci": [float(end) for end in score.accuracy_ci],
                **score.settled,
            }
        )
    return found
