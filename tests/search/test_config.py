import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanfront.search.config import ConfigError, SearchConfig, load_config, parse_config

MINIMAL = '[task]\nfile = "task.py"\n'


@pytest.fixture
def write(tmp_path):
    (tmp_path / "task.py").write_text("")

    def written(text: str) -> Path:
        path = tmp_path / "search.toml"
        path.write_text(text)
        return path

    return written


def test_defaults_and_task_file_beside_the_configuration(write, monkeypatch, tmp_path):
    path = write(MINIMAL)
    monkeypatch.chdir("/")
    config = load_config(path)
    assert config.task.file == tmp_path / "task.py"
    assert config.search.objectives == ("accuracy", "latency_ms")
    assert load_config(tmp_path) == config  # the folder does, too


def test_values_are_sorted_and_named_once(write):
    config = load_config(write(MINIMAL + "[space]\nweight_bits = [32, 4, 8, 4]\nsparsity = [0.5, 0]\n"))
    assert config.space.weight_bits == (4, 8, 32)
    assert config.space.sparsity == (0.0, 0.5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[space]\nsparsty = [0.0]", ["'sparsty'", "'sparsity'", "weight_bits"]),
        ("[serch]\ntrials = 1", ["'serch'", "'search'"]),
        ("[search]\nlatency_ms = 1", ["'latency_ms'", "limits.latency_ms"]),
        ("[search]\nzzz = 1", ["'zzz'", "There are sampler"]),
        ("[space]\nsparsity = [1.0]", ["space.sparsity.0", "less than 1", "1.0"]),
        ("[space]\nsparsity = [-0.1]", ["space.sparsity.0", "-0.1"]),
        ("[space]\nsparsity = []", ["space.sparsity", "[]"]),
        ("[space]\nsparsity = 0.5", ["space.sparsity", "a list", "0.5"]),
        ("[space]\nweight_bits = [9]", ["space.weight_bits.0", "1, 2, 3, 4, 5, 6, 7, 8, 16 or 32", "9"]),
        ("[space]\nactivation_bits = [1]", ["space.activation_bits.0", "2, 3, 4, 5, 6, 7, 8, 16 or 32"]),
        ("[search]\nsampler = 3", ["search.sampler", "text in quotes", "3"]),
        ("[search]\nobjectives = ['latency_ms']", ["search.objectives", "accuracy"]),
        ("[search]\nobjectives = ['latency_ms', 'accuracy']", ["search.objectives", "start with accuracy"]),
        ("[search]\nobjectives = ['accuracy', 'latency_ms', 'latency_ms']", ["each once"]),
        ("[search]\nobjectives = ['accuracy', 'a', 'b', 'c', 'd']", ["one to three of"]),
        ("[search]\ntrials = true", ["search.trials", "integer", "True"]),
        ("[search]\ntrials = 0", ["search.trials", "0"]),
        ("[search]\nhours = nan", ["search.hours", "finite"]),
        ("[limits]\nmax_drop = -0.5", ["limits.max_drop", "-0.5"]),
        ("[hardware]\nprofile = 3", ["hardware.profile", "text in quotes"]),
    ],
)
def test_a_wrong_key_or_value_is_one_sentence(write, text, words):
    with pytest.raises(ConfigError) as error:
        load_config(write(MINIMAL + text))
    message = str(error.value)
    assert "\n" not in message
    assert "search.toml" in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["task is missing"]),
        ("[task]\n", ["task.file is missing"]),
        ("task = 1", ["task", "a section"]),
        ("[task", ["not valid TOML"]),
        ('[task]\nfile = "no.py"', ["'no.py'", "there is no file"]),
    ],
)
def test_a_file_that_is_no_configuration(write, text, words):
    with pytest.raises(ConfigError) as error:
        load_config(write(text))
    for word in words:
        assert word in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"no configuration .*nothere\.toml"):
        load_config(tmp_path / "nothere.toml")


def test_overrides_are_toml_and_bare_words_are_text(write):
    given_ = [
        "search.trials=7",
        "space.weight_bits=[8]",
        "hardware.profile=toy",
        "task.options.size=3",
        "search.hours=0.5",
    ]
    config = load_config(write(MINIMAL), given_)
    assert config.search.trials == 7
    assert config.space.weight_bits == (8,)
    assert config.hardware.profile == "toy"
    assert config.task.options == {"size": 3}
    assert config.search.hours == 0.5


@pytest.mark.parametrize(
    "override", ["trials", "trials=3", "search.=3", "task.file.deep=1", "search.trials=x", "a.b=1"]
)
def test_overrides_that_cannot_be(write, override):
    with pytest.raises(ConfigError):
        load_config(write(MINIMAL), [override])


def test_the_digest_is_what_a_resumed_run_must_share(write):
    config = load_config(write(MINIMAL))

    def digest(*overrides):
        return load_config(write(MINIMAL), overrides).digest

    for same in ("search.hours=1", "search.trials=9", "search.workers=2", "search.seed=3", "pick.epochs=1"):
        assert digest(same) == config.digest, same
    for other in (
        "task.options.a=1",
        "hardware.profile=toy",
        "space.sparsity=[0.0]",
        "finetune.images=1",
        "limits.latency_ms=1",
        'search.objectives=["accuracy","size_bytes"]',
    ):
        assert digest(other) != config.digest, other


toml_values = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=8,
)


@given(
    options=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), toml_values),
    hours=st.none() | st.floats(1e-6, 1e6),
    bits=st.lists(st.sampled_from([2, 4, 8, 32]), min_size=1),
)
def test_to_toml_reads_back_equal(options, hours, bits):
    search = {} if hours is None else {"hours": hours}
    raw = {
        "task": {"file": "/a b/tâsk.py", "options": options},
        "search": search,
        "space": {"weight_bits": bits},
    }
    config = parse_config(raw)
    assert parse_config(tomllib.loads(config.to_toml())) == config


def test_configurations_are_frozen():
    config = parse_config({"task": {"file": "task.py"}})
    with pytest.raises(ValueError, match="frozen"):
        config.search.trials = 3  # type: ignore[misc]
    assert json.dumps(config.shared, default=str)
    assert isinstance(config, SearchConfig)
