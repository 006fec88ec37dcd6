import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanfront.compression.policy import policy as policy_module
from leanfront.hw_profiles import (
    HardwareProfile,
    ProfileError,
    load_profile,
    profile_names,
    profile_paths,
    read_profile,
    to_toml,
)
from leanfront.hw_profiles.sections import Roofline
from leanfront.hw_profiles.units import ACTIVATION_BITS, WEIGHT_BITS, unit_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEANFRONT_PROFILES", str(tmp_path))
    return tmp_path


def toy_fields() -> dict:
    return tomllib.loads(profile_paths()["toy"].read_text())


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_is_valid_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    profile = load_profile(name)
    assert profile.name == name
    copy = tmp_path / f"{name}.toml"
    copy.write_text(to_toml(profile))
    assert read_profile(copy) == profile
    assert read_profile(copy).digest == profile.digest


@pytest.mark.parametrize("name", profile_names())
def test_every_number_of_every_profile_has_a_source(name: str) -> None:
    profile = load_profile(name)
    for path in profile.numbers:
        source = profile.source(path)
        assert source is not None
        assert source.from_, path


@pytest.mark.parametrize("name", profile_names())
def test_every_number_of_every_profile_has_a_unit(name: str) -> None:
    assert all(unit_of(path) for path in load_profile(name).numbers)


def test_a_name_says_its_unit() -> None:
    assert unit_of("power_w") == "w"
    assert unit_of("roofline.macs_per_ms.8") == "ms"  # of a table by bits: per ms
    assert unit_of("specs.sm_count") == unit_of("roofline.overlap") == unit_of("channel_multiple") == "1"
    assert unit_of("specs.clock") is None
    assert unit_of("specs.w") is None


def test_the_readme_has_every_field() -> None:
    text = (Path(__file__).parents[2] / "hw_profiles" / "README.md").read_text()
    fields = [*HardwareProfile.model_fields, *Roofline.model_fields]
    missing = [field for field in fields if f"`{field}`" not in text and f"{field}]" not in text]
    missing = [field for field in missing if f"[{field}." not in text]
    assert not missing


@pytest.mark.parametrize("name", profile_names())
def test_a_part_with_assumed_numbers_says_so(name: str) -> None:
    profile = load_profile(name)
    assert bool(profile.estimate_sentence) == profile.estimated
    begins = "Energy is" if profile.model == "measured" else "Latency and energy are"
    assert profile.estimate_sentence.startswith(begins) or not profile.estimated


def test_bits_are_those_of_policies() -> None:
    assert WEIGHT_BITS == policy_module.WEIGHT_BITS
    assert ACTIVATION_BITS == policy_module.ACTIVATION_BITS


def test_this_machine_runs_integers_and_decoded_weights() -> None:
    profile = load_profile("this-machine")
    assert profile.model == "measured"
    assert all(profile.supports(bits, 8) and profile.supports(bits, 32) for bits in range(1, 9))
    assert profile.supports(16, 32)
    assert profile.supports(32, 32)
    assert not profile.supports(32, 8)
    assert not profile.supports(16, 16)
    assert not profile.supports(4, 4)
    assert profile.estimated  # power_w is assumed


@given(st.sampled_from(WEIGHT_BITS), st.sampled_from(ACTIVATION_BITS))
def test_supports_is_membership(weight_bits: int, activation_bits: int) -> None:
    toy = load_profile("toy")
    assert toy.supports(weight_bits, activation_bits) == ((weight_bits, activation_bits) in toy.supported)


def test_rate_is_that_of_the_narrowest_unit_that_is_wide_enough() -> None:
    roofline = load_profile("toy").roofline
    assert roofline is not None
    assert [roofline.unit(bits) for bits in (2, 4, 5, 8, 16, 32)] == [4, 4, 8, 8, 16, 32]
    assert roofline.unit(64) is None


def test_unknown_name_lists_the_near_ones(folder: Path) -> None:
    with pytest.raises(ProfileError, match=r"'tpy'; did you mean .toy.* there are .*this-machine, toy"):
        load_profile("tpy")


def test_user_folder_joins_and_goes_first(folder: Path) -> None:
    (folder / "mine.toml").write_text(profile_paths()["toy"].read_text().replace('"toy"', '"mine"'))
    (folder / "toy.toml").write_text(
        profile_paths()["toy"].read_text().replace("power_w = 1.0", "power_w = 9.0")
    )
    assert {"mine", "this-machine", "toy"} <= set(profile_names())
    assert list(profile_names()) == sorted(profile_names())
    assert load_profile("mine").power_w == 1.0
    assert load_profile("toy").power_w == 9.0
    assert load_profile(folder / "mine.toml") == load_profile("mine")


def test_estimated_is_any_assumed_number() -> None:
    fields = toy_fields()
    for source in fields["sources"].values():
        source["status"] = "measured"
    assert not HardwareProfile.of(fields, "x").estimated
    fields["sources"]["power_w"]["status"] = "assumed"
    assert HardwareProfile.of(fields, "x").estimated


def test_a_table_may_share_one_source_and_a_field_may_have_its_own() -> None:
    fields = toy_fields()
    fields["sources"]["roofline.macs_per_ms.8"] = {"status": "measured", "from": "a bench"}
    profile = HardwareProfile.of(fields, "x")
    assert profile.source("roofline.macs_per_ms.8").from_ == "a bench"
    assert profile.source("roofline.macs_per_ms.4").status == "assumed"


def _set(fields: dict, path: str, value: object) -> None:
    *tables, last = path.split("/")
    for table in tables:
        fields = fields[table]
    if value is None:
        del fields[last]
    else:
        fields[last] = value


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("power_w", -1.0, "power_w: input should be greater than 0, not -1.0"),
        ("power_w", "10", "power_w: input should be a valid number, not '10'"),
        ("power_w", float("inf"), "power_w: .*finite"),
        ("power_w", None, "power_w is missing"),
        ("memory_bytes", 0, "memory_bytes: .*greater than or equal to 1"),
        ("channel_multiple", 0, "channel_multiple: .*greater than or equal to 1"),
        ("channel_multiple", True, "channel_multiple: .*valid integer"),
        ("roofline/bandwidth_bytes_per_ms", 0.0, "roofline.bandwidth_bytes_per_ms: .*greater than 0"),
        ("roofline/overhead_ms", -0.1, "roofline.overhead_ms: .*greater than or equal to 0"),
        ("roofline/macs_per_ms/8", 0.0, "roofline.macs_per_ms.8: .*greater than 0"),
        ("roofline/macs_per_ms/9", 1.0, "roofline.macs_per_ms: the bits must be among"),
        ("roofline/macs_per_ms/32", None, "supported lists weights of 32 .* ends at 16 bits"),
        ("supported", [[9, 8]], "supported: weight bits must be among .* not 9"),
        ("supported", [[8, 9]], "supported: activation bits must be among .* not 9"),
        ("supported", [], "supported: .*at least 1"),
        (
            "supported",
            [[8, 8], [4, 8], [8, 8]],
            "supported: weights of 8 with activations of 8 bits are listed twice",
        ),
        ("kind", "dsp", "kind: .*'cpu', 'gpu', 'npu' or 'fpga'"),
        ("pattern", "rows", "pattern: "),
        ("name", "My Part", "name: "),
        ("powerw", 3.0, "powerw is no field of a profile; did you mean 'power_w'?"),
        ("roofline/overhead", 3.0, "roofline.overhead is no field .* did you mean 'overhead_ms'?"),
        ("roofline/efficiency", {"8": 1.5}, "roofline.efficiency.8: .*less than or equal to 1, not 1.5"),
        (
            "roofline/efficiency",
            {"7": 0.5},
            "efficiency is given at 7 bits, but macs_per_ms has no unit of 7",
        ),
        ("roofline/overlap", -0.5, "roofline.overlap: .*greater than or equal to 0"),
        ("roofline/alignment", {"8": [0, 4]}, "roofline.alignment.8.0: .*greater than or equal to 1"),
        ("roofline/two_four_gain", 0.9, "roofline.two_four_gain: .*greater than or equal to 1"),
        ("roofline/unstructured_break_even", 0.5, "give both unstructured_break_even and unstructured_floor"),
        ("roofline/fused_activations", ["swish"], "an activation is one of .*, not 'swish'"),
        ("roofline/value_ns", 0.1, "roofline.value_ns has no source"),
        ("specs", {"clock": 1000.0}, "specs.clock has no unit: the end of a number's name says it"),
        ("specs", {"clock_mhz": 0.0}, "specs.clock_mhz: .*greater than 0, not 0.0"),
        ("specs", {"clock_mhz": 1000.0}, "specs.clock_mhz has no source"),
        ("roofline", None, r"needs a table \[roofline\]"),
        ("model", "measured", r"does not use the table \[roofline\]"),
        ("sources/power_w", None, "power_w has no source"),
        ("sources/roofline.macs_per_ms", None, "roofline.macs_per_ms.32 has no source"),
        ("sources/power_w", {"status": "guessed", "from": "x"}, "sources.power_w.status: .*'measured'"),
        ("sources/power_w", {"status": "assumed", "from": ""}, "sources.power_w.from: "),
        (
            "sources/power_w",
            {"status": "assumed", "from": " \t"},
            "sources.power_w.from: .* names where .* blank",
        ),
        (
            "sources/powr_w",
            {"status": "assumed", "from": "x"},
            "names powr_w.* did you mean 'power_w'",
        ),
    ],
)
def test_bad_profiles_are_refused_with_field_and_rule(path: str, value: object, sentence: str) -> None:
    fields = toy_fields()
    _set(fields, path, value)
    with pytest.raises(ProfileError, match=sentence) as caught:
        HardwareProfile.of(fields, "here.toml")
    assert str(caught.value).startswith("here.toml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("name = ", "is not TOML"), ("", "is missing"), (None, "cannot read the profile")],
)
def test_files_that_are_no_profiles(text: str | None, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "part.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ProfileError, match=sentence):
        load_profile(path)


def test_name_and_file_agree(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text(profile_paths()["toy"].read_text())
    with pytest.raises(ProfileError, match='the name must be that of the file, "other", not "toy"'):
        load_profile(path)
