"""200 wrong configurations, profiles and policies: exit code 2, one sentence, nothing written."""

import contextlib
import copy
import io
import json
import os
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from leanfront.compression.policy import Policy
from leanfront.hw_profiles import ProfileError, load_profile
from leanfront.hw_profiles.loading import BUILT_IN
from leanfront.search.cli.app import main
from leanfront.search.cli.hardware import read_network
from leanfront.search.config import ConfigError, SearchConfig, load_config

COLUMNS = "in_channels,out_channels,kernel_h,kernel_w,stride_h,stride_w,groups,out_height,out_width,bias"
NETWORK = f"""name,op,{COLUMNS}
a,conv2d,3,16,3,3,1,1,1,8,8,0
b,conv2d,16,16,3,3,1,1,1,8,8,0
c,linear,16,10,1,1,1,1,1,1,1,1
"""
CONFIG = {"task": {"file": "task.py"}, "hardware": {"profile": "toy"}, "search": {"trials": 1}}
POLICY = {
    name: {"sparsity": 0.0, "weight_bits": 8, "activation_bits": 8, "pattern": "channel"} for name in "abc"
}
PROFILES = ("toy", "kv260-dpu", "zynq-7020", "jetson-agx-orin")


def generated(count: int) -> Any:
    """The same examples each time; nothing is a reason to skip them but being right after all."""
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture]
    return settings(
        max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=checks
    )


numbers = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([10**30, -(10**30), float("nan"), float("inf"), -0.0, 1e300, 0.5]),
    st.floats(),
)
texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "~nosuchuser/x.toml",
            "a\0b/x.toml",
            "x" * 5000 + "/y.toml",
            "..",
            "/",
            "\x7f",
            "[red]",
            "32",
            "true",
        ]
    ),
)
values = st.recursive(
    st.one_of(numbers, texts, st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
rubbish = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        [b"", b"[" * 20_000, b"x = " + b"[" * 20_000, b"x = " + b"9" * 5000, b'{"a": ' * 20_000, b"9" * 5000]
    ),
)


@st.composite
def edited(draw: st.DrawFn, document: dict[str, Any]) -> dict[str, Any]:
    """The document with something replaced, added or taken out, anywhere in it."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 2))):
        table = changed
        while True:
            key = draw(st.one_of(st.sampled_from(sorted(table)), texts)) if table else draw(texts)
            if not isinstance(table.get(key), dict) or draw(st.integers(0, 4)) == 0:
                break
            table = table[key]
        if key in table and draw(st.integers(0, 2)) == 0:
            del table[key]
        else:
            table[key] = draw(values)
    return changed


@st.composite
def files(draw: st.DrawFn, documents: list[dict[str, Any]], text: Any) -> bytes:
    """The bytes of a file: mostly a document with a fault in it, else one cut off, else rubbish."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(rubbish)
    document = draw(st.sampled_from(documents))
    if kind == 1:
        whole = text(document).encode()
        return whole[: draw(st.integers(0, len(whole) - 1))]
    return str(text(draw(edited(document)))).encode()


def toml(document: dict[str, Any]) -> str:
    """A document as TOML, each table on one line."""
    return "".join(f"{_text(key)} = {_inline(value)}\n" for key, value in document.items())


def _inline(value: Any) -> str:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(key)} = {_inline(item)}" for key, item in value.items()) + "}"
    return repr(value)


def _text(value: str) -> str:
    return (
        json.dumps(value).replace("\x7f", "\\u007f")
        if value.isascii()
        else json.dumps(value, ensure_ascii=False)
    )


def every_key() -> dict[str, Any]:
    """A configuration that says everything, so that everything can be wrong in it."""
    config = SearchConfig.model_validate({**CONFIG, "limits": {"latency_ms": 1.0, "max_drop": 0.1}})
    whole = config.model_dump(mode="json", exclude_none=True)
    return whole | {"task": {"file": "task.py", "options": {}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "task.py").write_text("raise SystemExit('the task must not be loaded')\n")
    (folder / "net.csv").write_text(NETWORK)
    places = {"LEANFRONT_CACHE": str(folder / "cache"), "LEANFRONT_PROFILES": str(folder / "profiles")}
    before = Path.cwd()
    os.chdir(folder)
    with mock.patch.dict(os.environ, places):
        yield folder
    os.chdir(before)


def run(*words: str) -> tuple[int, str]:
    """The exit code and stderr of a command, in this process."""
    stderr = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["leanfront", *words]),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0), stderr.getvalue()
    return 0, stderr.getvalue()


def refused(folder: Path, *words: str) -> None:
    """Assert that a command is refused as wrong input is."""
    before = _state(folder)
    code, said = run(*words)
    assert code == 2, said[-2000:]
    assert said.startswith("error: "), said
    assert said.count("\n") == 1, said
    assert "Traceback" not in said
    assert 15 < len(said) < 12_000, len(said)
    assert _state(folder) == before


def _state(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in folder.rglob("*")}


def test_wrong_configurations(folder: Path) -> None:
    seen = []

    @generated(80)
    @given(files([every_key(), CONFIG], toml), st.booleans())
    def each(content: bytes, check: bool) -> None:
        path = folder / "search.toml"
        path.write_bytes(content)
        assume(not _good_config(path))
        refused(folder, *(["check", str(path)] if check else ["search", str(path), "--run", "run"]))
        seen.append(content)

    each()
    assert len(set(seen)) >= 60


def _good_config(path: Path) -> bool:
    try:
        load_profile(load_config(path).hardware.profile)
    except (ConfigError, ProfileError):
        return False
    except Exception:
        return False  # whatever it is, the command must say it in a sentence
    return True


def test_wrong_profiles(folder: Path) -> None:
    known = [tomllib.loads((BUILT_IN / f"{name}.toml").read_text()) | {"name": "mine"} for name in PROFILES]
    path = folder / "mine.toml"
    seen = []

    @generated(60)
    @given(files(known, toml), st.booleans())
    def each(content: bytes, check: bool) -> None:
        path.write_bytes(content)
        assume(not _good_profile(path))
        refused(folder, *(["profile", "check"] if check else ["cost", "net.csv", "--profile"]), str(path))
        seen.append(content)

    each()
    path.unlink()
    assert len(set(seen)) >= 45


def _good_profile(path: Path) -> bool:
    try:
        load_profile(str(path))
    except Exception:
        return False
    return True


def test_wrong_policies(folder: Path) -> None:
    network, _ = read_network(folder / "net.csv")
    path = folder / "policy.json"
    seen = []

    @generated(60)
    @given(files([POLICY], json.dumps))
    def each(content: bytes) -> None:
        path.write_bytes(content)
        assume(not _good_policy(content, network))
        refused(folder, "cost", "net.csv", "--profile", "toy", "--policy", str(path))
        seen.append(content)

    each()
    assert len(set(seen)) >= 45


def _good_policy(content: bytes, network: Any) -> bool:
    toy = load_profile("toy")
    try:
        policy = Policy.from_json(content.decode())
        policy.check(network)
    except Exception:
        return False
    return all(toy.supports(layer.weight_bits, layer.activation_bits) for layer in policy.values())
