"""What is said of a network that was picked and verified, for the command, its card and the report alike."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from leanfront.search.objectives import objective, quantity

CLASSES = 10
"""So many have a row each; of more only MOST_LOST do."""
MOST_LOST = 3


class Row(NamedTuple):
    """A figure of a verified network, as text."""

    what: str
    uncompressed: str
    picked: str
    gain: str


def verified(found: Mapping[str, Any]) -> list[Row]:
    """What verification.json says, for whoever shows it: what, uncompressed beside picked, what was gained.

    What it does not say has no row: the measured latency without the hardware, for one.
    """
    parts = ("test", "latency", "size", "search", "memory", "engine", "also")
    given = (found.get(name) for name in parts)
    test, latency, size, search, memory, engine, also = (
        part if isinstance(part, Mapping) else {} for part in given
    )
    rows = []
    if test:
        row = objective("accuracy")
        uncompressed, picked = test["baseline_accuracy"], test["accuracy"]
        gain = row.change(picked - uncompressed)
        rows.append(
            Row(f"{row.label} (test split, read once)", row.shown(uncompressed), row.shown(picked), gain)
        )
        rows.append(Row("its 95 % interval", "", row.interval(test["accuracy_ci"]), ""))
        if test.get("drop_ci"):
            rows.append(Row("lost, with its 95 % interval", "", _lost(test), _held(test, found.get("limit"))))
        rows += [*_reported(test.get("report") or {}), *_classes(test.get("classes") or [])]
    if latency:
        gain = f"{latency['measured_ms'] / latency['baseline_ms']:.3f}x"
        rows.append(_costs("latency, measured", "latency_ms", latency, "baseline_ms", "measured_ms", gain))
        gain = f"{100 * latency['error']:+.1f} %"
        if "predicted_baseline_ms" in latency:
            gain = f"{latency['predicted_ms'] / latency['predicted_baseline_ms']:.3f}x, {gain}"
        names = ("predicted_baseline_ms", "predicted_ms")
        rows.append(_costs("as the search predicted", "latency_ms", latency, *names, gain))
    else:
        estimated, _, _ = str(search.get("estimates") or "").lower().partition(":")
        for name in ("latency_ms", "energy_mj"):
            if search.get(name) is not None:
                what = objective(name).label
                text = f"{what}, predicted{', estimated' if what in estimated else ''}"
                base = search.get(f"baseline_{name}")
                gain = f"{search[name] / base:.3f}x" if base else ""
                rows.append(_costs(text, name, search, f"baseline_{name}", name, gain))
    for name, pair in (search.get("objectives") or {}).items():
        rows.append(_costs(objective(name).label, name, pair, "uncompressed", "picked", _share(pair)))
    if size:
        gain = f"1/{size['baseline_bytes'] / size['bytes']:.1f}"
        what = f"model file, kind {size['kind']}" if "kind" in size else "model file"
        rows.append(_costs(what, "size_bytes", size, "baseline_bytes", "bytes", gain))
        if size.get("zipped_bytes"):
            gain = f"1/{size['baseline_zipped_bytes'] / size['zipped_bytes']:.1f}"
            rows.append(
                _costs("the file zipped", "size_bytes", size, "baseline_zipped_bytes", "zipped_bytes", gain)
            )
        if size.get("promised_zeros"):
            text = f"{size['zeros']} of {size['weights']}, {size['zeros'] / size['weights']:.1%}"
            rows.append(Row("weights that are 0, counted in the file", "", text, ""))
    if memory:
        rows += _memory(memory)
    if test:
        share = test["agreement"]  # None: the file was not run here
        text = "not run here" if share is None else f"{share:.2%}"
        rows.append(Row("same answers as the torch network", "", text, ""))
        if (steps := test.get("largest_steps")) is not None:
            text = f"{steps:.1f} quantization steps"
            rows.append(Row("largest difference of an output from it", "", text, ""))
    if engine.get("here_ms"):
        rows.append(_here(engine))
    for name, each in also.items():
        rows += _also(name, each, (test.get("also") or {}).get(name))
    return rows


def _here(engine: Mapping[str, Any]) -> Row:
    """How long a file takes in its engine on this machine."""
    what = f"latency on this machine, {engine['ran']}"
    gain = f"{engine['here_ms'] / engine['baseline_here_ms']:.3f}x"
    return _costs(what, "latency_ms", engine, "baseline_here_ms", "here_ms", gain)


def _also(name: str, each: Mapping[str, Any], test: Mapping[str, Any] | None) -> list[Row]:
    """What a file of a further kind is, and does."""
    gain = f"1/{each['baseline_bytes'] / each['bytes']:.1f}"
    rows = [_costs(f"also as {name}: model file", "size_bytes", each, "baseline_bytes", "bytes", gain)]
    if test:
        score = objective("accuracy")
        rows.append(Row(f"also as {name}: {score.label}", "", score.shown(test["accuracy"]), ""))
        if test["agreement"] is not None:
            text = f"{test['agreement']:.2%}"
            rows.append(Row(f"also as {name}: same answers as the torch network", "", text, ""))
        text = f"{test['largest_steps']:.1f} quantization steps"
        rows.append(Row(f"also as {name}: largest difference from it", "", text, ""))
    if each.get("here_ms"):
        rows.append(_here(each)._replace(what=f"also as {name}: latency on this machine, {each['ran']}"))
    if each.get("not_run"):
        rows.append(Row(f"also as {name}: not run", "", each["not_run"], ""))
    return rows


def broken_sentence(test: Mapping[str, Any], limit: Mapping[str, Any]) -> str:
    """That more was lost than was allowed."""
    most = objective("accuracy").amount(limit["max_drop"])
    return f"the test split loses {_lost(test)}, more than the limit of {most}"


def _lost(test: Mapping[str, Any]) -> str:
    score = objective("accuracy")
    drop, low, high = map(score.number, (test["drop"], *test["drop_ci"]))
    return f"{drop} ({low} .. {high}) {score.unit}".rstrip()


def _held(test: Mapping[str, Any], limit: Mapping[str, Any] | None) -> str:
    """How a drop stands to its limit, as far as its interval tells; "" where there is none."""
    if not limit:
        return ""
    most, said = limit["max_drop"], objective("accuracy").amount(limit["max_drop"])
    low, high = test["drop_ci"]
    if low > most:
        return f"BEYOND the limit {said}"
    if test["drop"] > most:
        return f"beyond the limit {said}, perhaps by noise"
    return f"within the limit {said}" + (", not for sure" if high > most else "")


def _reported(report: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """The metrics that the task reports beside its score."""
    rows = []
    for name, each in report.items():
        before, now = each["uncompressed"], each["picked"]
        texts = (
            f"{value:{sign}.4g} {each['unit']}".rstrip()
            for value, sign in ((before, ""), (now, ""), (now - before, "+"))
        )
        rows.append(Row(name, *texts))
    return rows


def _classes(classes: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The share of each class that is right; of many classes those that lost most."""
    shown = classes
    if len(classes) > CLASSES:
        shown = sorted(classes, key=lambda each: (each["picked"] - each["uncompressed"], each["class"]))[
            :MOST_LOST
        ]
    among = f" (of {MOST_LOST} that lost most)" if len(classes) > CLASSES else ""
    return [
        Row(
            f"right of class {each['class']}, {each['examples']} in all{among}",
            f"{each['uncompressed']:.4f}",
            f"{each['picked']:.4f}",
            f"{100 * (each['picked'] - each['uncompressed']):+.2f} points",
        )
        for each in shown
    ]


def _memory(memory: Mapping[str, Any]) -> list[Row]:
    """Peak memory as it was counted, beside the live tensors that the search went by."""
    names = ("baseline_peak_memory_bytes", "peak_memory_bytes", "predicted_peak_memory_bytes")
    before, now, predicted = (quantity("size_bytes", memory[name]) if memory[name] else "" for name in names)
    return [Row("peak memory, measured", before, now, ""), Row("peak memory, predicted", "", predicted, "")]


def _costs(what: str, name: str, values: Mapping[str, Any], base: str, picked: str, gain: str) -> Row:
    uncompressed = quantity(name, values[base]) if values.get(base) is not None else ""
    return Row(what, uncompressed, quantity(name, values[picked]), gain)


def _share(pair: Mapping[str, float]) -> str:
    return f"{pair['picked'] / pair['uncompressed']:.3f}x" if pair.get("uncompressed") else ""
