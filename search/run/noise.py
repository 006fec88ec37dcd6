"""Which members of a front are no better than a cheaper one but for noise."""

from collections.abc import Callable, Sequence

from leanfront.search.objectives import costs_among, oriented
from leanfront.search.run.run_folder import RunFolder, TrialRow
from leanfront.search.run.significance import Scores, load_scores, paired_interval, unpaired_interval


def alike(run: RunFolder, front: Sequence[TrialRow], objectives: Sequence[str]) -> dict[int, int]:
    """Trial -> a trial that costs no more in any objective and is as accurate within noise.

    Within noise: the 95 % interval of the difference holds 0, paired where the scores of both were kept. Of
    several such trials the first in ``front``.
    """
    kept: dict[int, Scores | None] = {}

    def scores_of(row: TrialRow) -> Scores | None:
        if row.trial not in kept:
            kept[row.trial] = load_scores(run.scores_file(row.trial))
        return kept[row.trial]

    costs = costs_among(objectives)
    price = {row.trial: oriented(row.values, costs) for row in front}
    found = {}
    for row in front:
        cheaper = (
            other
            for other in front
            if other is not row
            and all(theirs <= own for theirs, own in zip(price[other.trial], price[row.trial], strict=True))
        )
        near = next((other for other in cheaper if within_noise(row, other, scores_of)), None)
        if near is not None:
            found[row.trial] = near.trial
    return found


def within_noise(one: TrialRow, other: TrialRow, scores_of: Callable[[TrialRow], Scores | None]) -> bool:
    """Whether two trials may be equally accurate; False where nothing is known of one of them."""
    known = (one.accuracy, one.accuracy_low, one.accuracy_high)
    others = (other.accuracy, other.accuracy_low, other.accuracy_high)
    if None in known or None in others:
        return False
    first, second = scores_of(one), scores_of(other)
    if first is not None and second is not None and first.shape == second.shape:
        low, high = paired_interval(first, second)
    else:
        low, high = unpaired_interval(known, others)  # type: ignore[arg-type]
    return low <= 0.0 <= high
