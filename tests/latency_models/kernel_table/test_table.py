from pathlib import Path

import pytest

from leanfront.latency_models import TableError
from leanfront.latency_models.kernel_table.table import (
    CALL,
    Device,
    Entry,
    LatencyTable,
    cache_folder,
    load_table,
    table_path,
    this_device,
)
from leanfront.latency_models.measured.nearest import Nearest

DEVICE = Device("cpu x", 2, 1, "CPUExecutionProvider", "1.31.1")


def entry(median_ms: float, reference_ms: float = 0.05) -> Entry:
    return Entry(median_ms, 0.01, 50, 1.0, reference_ms, 1000, "2025-01-01")


def test_round_trip_keeps_every_field(tmp_path: Path) -> None:
    key = "com.microsoft.QLinearConv(u8[1x8x8x16], =f32[]) kernel_shape=3|3"
    table = LatencyTable(DEVICE, {key: entry(0.0123), CALL: entry(0.005)})
    path = tmp_path / "deep" / "table.csv"
    table.save(path)
    assert dict(load_table(path, DEVICE)) == dict(table)
    assert list(path.parent.iterdir()) == [path]  # nothing is left beside it


def test_a_missing_key_is_an_error_that_says_what_to_do() -> None:
    table = LatencyTable(DEVICE, {}, profile="this-machine")
    with pytest.raises(TableError, match=r"'this-machine' has no entry for 'Relu\(f32\[1x8\]\)'.*measures"):
        table["Relu(f32[1x8])"]


def test_a_table_without_a_file_is_empty(tmp_path: Path) -> None:
    assert len(load_table(tmp_path / "none.csv", DEVICE)) == 0


@pytest.mark.parametrize(
    "other",
    [
        Device("cpu y", 2, 1, "CPUExecutionProvider", "1.31.1"),
        Device("cpu x", 2, 2, "CPUExecutionProvider", "1.31.1"),
        Device("cpu x", 2, 1, "CPUExecutionProvider", "1.30.0"),
    ],
)
def test_a_table_of_another_device_is_refused(tmp_path: Path, other: Device) -> None:
    path = tmp_path / "table.csv"
    LatencyTable(other, {"a": entry(1.0)}).save(path)
    with pytest.raises(TableError, match="this table is of"):
        load_table(path, DEVICE)
    assert other.digest != DEVICE.digest


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.0123", "0", "median_ms must be above 0"),
        ("0.0123", "-0.5", "median_ms must be above 0"),
        ("0.0123", "nan", "median_ms must be above 0"),
        ("0.0123", "12 us", "could not convert"),
        (",measured\r\n", "", "cut short"),
        ("median_ms", "median_us", "no column 'median_ms', its times are in column 'median_us'"),
        ("spread", "scatter", "no column 'spread'"),
        ("0.05,", "-0.05,", "reference_ms must be above 0"),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "table.csv"
    LatencyTable(DEVICE, {"a": entry(0.0123)}).save(path)
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode())
    with pytest.raises(TableError, match=message) as caught:
        load_table(path, DEVICE)
    assert "table.csv" in str(caught.value)


def test_entries_measured_on_a_slower_machine_are_stale() -> None:
    table = LatencyTable(DEVICE, {"a": entry(1.0, 0.050), "b": entry(1.0, 0.051), "c": entry(1.0, 0.075)})
    assert table.reference_ms == 0.050
    assert table.stale() == ["c"]


def test_tables_do_not_change() -> None:
    table = LatencyTable(DEVICE, {"a": entry(1.0)})
    more = table.with_entries({"b": entry(2.0)})
    assert table.missing(["a", "b", "b"]) == ["b"]
    assert more.missing(["a", "b"]) == []


def test_nearest_interpolates_between_shapes_of_the_same_kind() -> None:
    def conv(channels: int) -> str:
        return f"Conv(f32[1x{channels}x8x8], =f32[{channels}x{channels}x3x3]) group=1"

    table = LatencyTable(
        DEVICE, {conv(16): entry(0.010), conv(32): entry(0.040), "Relu(f32[1x8])": entry(9.0)}
    )
    nearest = Nearest(table)
    assert nearest.estimate(conv(16)) == pytest.approx(0.010, rel=1e-3)
    assert 0.012 < nearest.estimate(conv(24)) < 0.035
    with pytest.raises(TableError, match="nor for any of its kind"):
        nearest.estimate("ConvTranspose(f32[1x8x4x4], =f32[8x8x2x2])")


def test_what_is_no_layer_and_of_no_kind_that_was_measured_takes_what_as_many_bytes_take() -> None:
    table = LatencyTable(
        DEVICE,
        {
            "Relu(f32[1x1000])": entry(1.0),
            "Relu(f32[1x4000])": entry(4.0),
            "Conv(f32[1x8x9x9], =f32[8x8x1x1])": entry(9.0),
        },
    )
    nearest = Nearest(table)
    assert nearest.estimate("CumSum(f32[1x2000], =0)") == pytest.approx(2.0, rel=0.05)
    assert nearest.estimate("Tanh(u8[1x4000])") == pytest.approx(1.0, rel=0.05)


def test_the_cache_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("LEANFRONT_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "leanfront"
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path / "own"))
    assert table_path(DEVICE).is_relative_to(tmp_path / "own")


def test_this_device_tells_threads_and_version_apart() -> None:
    assert this_device(1).digest != this_device(2).digest
    assert this_device().cpu
