"""The result of a kit, read and checked."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from leanfront.compression.policy import Policy
from leanfront.latency_models.errors import TableError
from leanfront.latency_models.kernel_table.table import CALL, Device, Entry
from leanfront.latency_models.kit.rows import Row, read_rows
from leanfront.latency_models.providers import PROVIDERS

NEEDED = ("kit", "profile", "cpu", "cores", "threads", "provider", "onnxruntime", "near_cache_bytes", "sets")
FAR_OFF = 8.0
"""A whole network is never so much faster or slower than its kernels added up."""


@dataclass(frozen=True)
class SeenNetwork:
    """What a network became on the device. ``set_digest``: of the uncut network. ``policy``: as JSON.
    ``parts``: kernel -> keys of its optimised nodes, "" for those of no kernel. ``whole``: the whole network,
    if it was timed."""

    set_digest: str
    policy: str
    parts: Mapping[str, tuple[str, ...]]
    whole: Entry | None


@dataclass(frozen=True)
class KitResult:
    """Everything that a kit found out on its device.

    titles: digest of an uncut network -> what it is. about: whatever the device said of itself.
    """

    path: Path
    device: Device
    profile: str
    kit: str
    titles: Mapping[str, str]
    exporter: str
    near_cache_bytes: int
    kernels: Mapping[str, Entry]
    networks: tuple[SeenNetwork, ...]
    noise: str | None
    about: Mapping[str, str]


def read_result(path: Path) -> KitResult:
    """Read a finished result.

    Raises:
        TableError: it cannot be read, is damaged, or is not finished (says how much is missing).
    """
    rows = read_rows(path)
    about = {row.name: row.text for row in rows if row.kind == "about"}
    if missing := [name for name in NEEDED if name not in about]:
        raise TableError(f"{path} does not say its {missing[0]}: take the file as measure.py wrote it")
    kernels = {row.name: row.entry for row in rows if row.kind == "kernel" and row.entry is not None}
    seen = {row.name: row for row in rows if row.kind == "network"}
    wholes = {row.name: row.entry for row in rows if row.kind == "whole" and row.entry is not None}
    _check_finished(path, rows, about, seen, kernels)
    source = f"measured on {about['cpu']}"
    try:
        device = Device(
            about["cpu"], int(about["cores"]), int(about["threads"]), about["provider"], about["onnxruntime"]
        )
        sets = json.loads(about["sets"])
        titles = {str(one["digest"]): str(one["title"]) for one in sets}
        networks = []
        for name, row in seen.items():
            content = json.loads(row.text)
            parts = {owner: tuple(map(str, keys)) for owner, keys in content["parts"].items()}
            digest = str(sets[content["set"]]["digest"])
            networks.append(SeenNetwork(digest, json.dumps(content["policy"]), parts, wholes.get(name)))
            Policy.from_json(networks[-1].policy)
        near_cache = int(about["near_cache_bytes"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise TableError(f"{path} is damaged ({error}): copy it from the device again") from error
    result = KitResult(
        path, device, about["profile"], about["kit"], titles, about.get("exporter", ""), near_cache,
        {key: replace(entry, source=source) for key, entry in kernels.items()}, tuple(networks),
        next((row.text for row in reversed(rows) if row.kind == "noise"), None), about,
    )  # fmt: skip
    _check_identity(result)
    _check_plausible(result)
    return result


def _check_finished(
    path: Path,
    rows: list[Row],
    about: Mapping[str, str],
    seen: Mapping[str, Row],
    kernels: Mapping[str, Entry],
) -> None:
    """The last line says how many there are before it; a file without it is not finished."""
    go_on = "run `python measure.py` on the device again, it goes on where it was"
    if rows and rows[-1].kind == "end":
        if rows[-1].text == str(len(rows) - 1):
            return
        raise TableError(
            f"{path} should have {rows[-1].text} lines before its last, but has {len(rows) - 1}: lines are"
            " lost; copy it from the device again"
        )
    wanted = int(about["networks"]) if about.get("networks", "").isdigit() else len(seen)
    if len(seen) < wanted:
        raise TableError(f"{path} is not finished: {len(seen)} of {wanted} networks were read; {go_on}")
    try:
        keys = {
            key for row in seen.values() for part in json.loads(row.text)["parts"].values() for key in part
        }
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise TableError(f"{path} is damaged ({error}): copy it from the device again") from error
    if lacking := keys - set(kernels):
        raise TableError(
            f"{path} is not finished: {len(lacking)} of {len(keys)} kernels are missing; {go_on}"
        )
    raise TableError(f"{path} is not finished: whole networks are missing; {go_on}")


def _check_identity(result: KitResult) -> None:
    """What the device and the kit are called becomes the name of a file when it is imported."""
    device = result.device
    for name, value, good in (
        ("kit", result.kit, re.fullmatch("[0-9a-f]{16}", result.kit) is not None),
        ("provider", device.provider, device.provider in PROVIDERS.values()),
        ("threads", device.threads, device.threads >= 1),
        ("cores", device.cores, device.cores >= 1),
        ("near_cache_bytes", result.near_cache_bytes, result.near_cache_bytes >= 1),
    ):
        if not good:
            raise TableError(
                f"{result.path}: its {name} cannot be {value!r}; take the file as measure.py wrote it"
            )


def _check_plausible(result: KitResult) -> None:
    """Every kernel of a network has its time, and whole networks take about as long as their kernels."""
    for network in result.networks:
        keys = [key for part in network.parts.values() for key in part]
        if lacking := [key for key in [CALL, *keys] if key not in result.kernels]:
            raise TableError(
                f"{result.path} has no time for {lacking[0]!r}, which profile {result.profile!r} needs; run"
                " `python measure.py` on the device again"
            )
        if network.whole is None:
            continue
        whole_ms = network.whole.median_ms
        plain_ms = sum(result.kernels[key].median_ms for key in [CALL, *keys])
        if not 1 / FAR_OFF < whole_ms / plain_ms < FAR_OFF:
            raise TableError(
                f"{result.path}: a network takes {whole_ms:g} ms and its kernels {plain_ms:g} ms in"
                " all, which cannot both be: are all times in milliseconds?"
            )
