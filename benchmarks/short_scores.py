"""Which short score ranks policies as a long fine-tune does? Prints the table of docs/search.md.

    python -m benchmarks.short_scores examples/cifar10_resnet20 [--policies 40] [--images 1536] [--long 16000]

For each of some policies that cover the space of a configuration: its scores untrained and after a short
fine-tune, on parts of the search split, against the accuracy on the test split after a long fine-tune of its
own, on other images. One JSON line a policy is kept under benchmarks/results; the same command again goes on
where it stopped. A policy takes 35 to 60 s on ResNet-20 and one core, so 40 take half an hour.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr

from leanfront.compression.export.deployed_form import fold
from leanfront.compression.policy import Policy
from leanfront.compression.training.finetune import Batch
from leanfront.latency_models.measured.policy_draws import draw
from leanfront.search.config import SearchConfig, load_config
from leanfront.search.samplers.cascade.encoding import Encoding
from leanfront.search.samplers.cascade.surrogate import Observation, Prior, Surrogate, log_divergence
from leanfront.search.study.prepare import Loaded, load
from leanfront.search.task import as_data
from leanfront.search.trial import sensitivity
from leanfront.search.trial.batches import SCORING_BATCH
from leanfront.search.trial.in_task import InTask
from leanfront.search.trial.scorer import Scorer, evaluate

RESULTS = Path(__file__).parent / "results"
PARTS = (500, 1000, 2000, 5000)
UNTRAINED = "1000"
"""Search images that the short scores are taken on."""
Line = Mapping[str, Any]


def main() -> None:
    """Score the policies that have no line yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--policies", type=int, default=40)
    parser.add_argument("--images", type=int, default=1536, help="of the short fine-tune")
    parser.add_argument("--long", type=int, default=16_000, help="images of the long fine-tune")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = load_config(options.config)
    name = f"short_scores_{config.task.file.parent.name}_{options.images}_{options.long}.jsonl"
    path = RESULTS / name
    path.parent.mkdir(exist_ok=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if len(lines) < options.policies:
        loaded = load(config)
        with path.open("a") as file:
            for line in scored(loaded, lines, options.policies, options.images, options.long):
                file.write(json.dumps(line) + "\n")
                file.flush()
                lines.append(line)
                print(f"{len(lines)} of {options.policies}, {line['seconds']:.0f} s", flush=True)
    loaded = load(config)
    chosen = lines[: options.policies]
    for line in table(chosen, predicted(loaded, _scorer(loaded, options.images, (0.0, 1.0), seed=0), chosen)):
        print(line)


def predicted(loaded: Loaded, scorer: Scorer, lines: Sequence[Line]) -> dict[str, Any]:
    """What cascade's surrogate expects of each policy before any is trained: from its sensitivities and the
    untrained scores of the others, and with its own untrained score, too."""
    encoding = Encoding(loaded.space)
    alone = sensitivity.measure(scorer, loaded.space, print)
    sizes = zip(encoding.names, encoding.sizes, strict=True)
    prior = Prior([alone.divergence.get(name, (0.0,) * int(size)) for name, size in sizes])
    seen = []
    for line in lines:
        codes = encoding.of(Policy.from_json(json.dumps(line["policy"])))
        score = float(log_divergence(line["untrained"][UNTRAINED]["divergence"]))
        seen.append(Observation(codes, {0: score}, np.zeros(1)))
    names = ("surrogate, from others' untrained scores", "surrogate, from its own, too")
    found: dict[str, Any] = {name: np.zeros(len(seen)) for name in names}
    for index, one in enumerate(seen):
        others = Surrogate(prior, [*seen[:index], *seen[index + 1 :]], rungs=2)
        found[names[0]][index] = -others.predict(one.codes[:, None], 1)[0][0]
        found[names[1]][index] = -Surrogate(prior, seen, rungs=2).after(one.codes, 0, one.scores[0])[0]
    return found


def scored(
    loaded: Loaded, known: Sequence[Line], policies: int, images: int, long_images: int
) -> Iterator[dict[str, Any]]:
    """A line for each policy that has none, in the order in which they are drawn."""
    rng = np.random.default_rng(0)
    drawn = list(dict.fromkeys(draw(loaded.space, rng) for _ in range(2 * policies)))[:policies]
    there = {line["digest"] for line in known}
    short = _scorer(loaded, images, (0.0, 1.0), seed=0)
    long = _scorer(loaded, long_images, (1.0,), seed=1)
    alone = sensitivity.measure(short, loaded.space, print)
    test = list(_test_batches(long))
    for policy in drawn:
        if policy.digest in there:
            continue
        started = time.perf_counter()
        candidate = short.start(policy)
        candidate.score(0)
        untrained = _parts(short, short.in_task(fold(candidate.compressed).module))
        candidate.score(1)
        trained = _parts(short, short.in_task(fold(candidate.compressed).module))
        last = long.start(policy)
        own = last.score(0)
        scores, _ = evaluate(long.in_task(fold(last.compressed).module), test, long.comparison)
        params = loaded.space.params_of(policy)
        yield {
            "digest": policy.digest,
            "policy": policy.to_dict(),
            "untrained": untrained,
            "short": trained,
            "summed": sum(alone.divergence[name][_code(loaded, name, params)] for name in alone.divergence),
            "own": own.accuracy,
            "test": float(scores.mean()),
            "seconds": time.perf_counter() - started,
        }


def _scorer(loaded: Loaded, images: int, rungs: tuple[float, ...], seed: int) -> Scorer:
    config: SearchConfig = loaded.config
    finetune = config.finetune.model_copy(update={"images": images, "rungs": rungs})
    search = config.search.model_copy(update={"sampler": "cascade", "seed": seed})
    return Scorer(
        loaded.traced, loaded.task, config.model_copy(update={"finetune": finetune, "search": search})
    )


def _code(loaded: Loaded, name: str, params: Mapping[str, Any]) -> int:
    """The code of a decision; one without a choice is no parameter of the study."""
    value = params.get(name, 0)
    if isinstance(value, str):
        return [f"w{weights}a{activations}" for weights, activations in loaded.space.pairs].index(value)
    return int(value)


def _test_batches(scorer: Scorer) -> Iterator[Batch]:
    """The test split with the teacher's outputs."""
    data = as_data(scorer.task.test)
    with torch.no_grad():
        for part in torch.split(torch.arange(len(data)), SCORING_BATCH):
            inputs, targets = data.batch(part, None)
            yield inputs, targets, scorer.teacher.both(inputs)[1]


def _parts(scorer: Scorer, network: InTask) -> dict[str, dict[str, float]]:
    """Images -> accuracy and divergence on so many search images, each part holding those before."""
    found = {}
    scores = divergence = np.zeros(0)
    batches = iter(scorer.batches.searched)
    for images in PARTS:
        more = list(itertools.islice(batches, max(0, (images - len(scores)) // SCORING_BATCH)))
        if more:
            right, apart = evaluate(network, more, scorer.batches.comparison)
            scores = np.concatenate([scores, right])
            divergence = np.concatenate([divergence, np.full(len(right), apart)])
        found[str(images)] = {"accuracy": float(scores.mean()), "divergence": float(divergence.mean())}
    return found


def table(lines: Sequence[Line], surrogate: Mapping[str, Any]) -> Iterable[str]:
    """Spearman's correlation of each score with the long fine-tune's test accuracy."""
    truth = np.array([line["test"] for line in lines])
    order = np.argsort(-truth)
    yield f"{len(lines)} policies, {truth.min():.4f} to {truth.max():.4f}; all / best half / best third"
    for name, values in {**columns(lines), **surrogate}.items():
        found = [
            spearmanr(values[order[: len(lines) // share]], truth[order[: len(lines) // share]]).statistic
            for share in (1, 2, 3)
        ]
        yield f"{name:44}" + "  ".join(f"{value:5.2f}" for value in found)


def columns(lines: Sequence[Line]) -> dict[str, Any]:
    """Name of a score -> one number a policy, higher is better."""
    found: dict[str, Any] = {"- summed sensitivities": -np.array([line["summed"] for line in lines])}
    for stage, images in itertools.product(("untrained", "short"), PARTS):
        accuracy, divergence = (
            np.array([line[stage][str(images)][key] for line in lines]) for key in ("accuracy", "divergence")
        )
        where = f"{stage}, {images} images"
        found[f"{where}: accuracy"] = accuracy
        found[f"{where}: - divergence"] = -divergence
        for weight in (0.1, 0.3, 1.0):
            found[f"{where}: accuracy - {weight:g} divergence"] = accuracy - weight * divergence
        found[f"{where}: mean of both ranks"] = _mean_rank([accuracy, -divergence])
    most = str(PARTS[-1])
    found["mean of four ranks, untrained and short"] = _mean_rank(
        [
            sign * np.array([line[stage][most][key] for line in lines])
            for stage in ("untrained", "short")
            for sign, key in ((1, "accuracy"), (-1, "divergence"))
        ]
    )
    found["the long fine-tune's own, on the search split"] = np.array([line["own"] for line in lines])
    return found


def _mean_rank(scores: Sequence[Any]) -> Any:
    return np.mean([rankdata(score) for score in scores], axis=0)


if __name__ == "__main__":
    main()
