"""Energy counters, with a folder that looks like the system's."""

import os
from pathlib import Path

import pytest

from leanfront.hw_profiles import load_profile
from leanfront.latency_models import TableError
from leanfront.latency_models.benchmark.energy import Energy, Meter, fit_power


def counter(folder: Path, name: str, kind: str, energy_uj: int, range_uj: int = 1_000_000) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    (path / "name").write_text(f"{kind}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return path


def test_packages_are_added_and_their_parts_are_not(tmp_path: Path) -> None:
    first = counter(tmp_path, "intel-rapl:0", "package-0", 100)
    counter(tmp_path, "intel-rapl:0:0", "core", 5)
    second = counter(tmp_path, "intel-rapl:1", "package-1", 7000)
    counter(tmp_path, "intel-rapl:2", "psys", 9)
    meter = Meter.find(tmp_path)
    assert isinstance(meter, Meter)
    before = meter.read_uj()
    (first / "energy_uj").write_text("2100")
    (second / "energy_uj").write_text("8000")
    assert meter.between_mj(before, meter.read_uj()) == pytest.approx(3.0)


def test_a_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    path = counter(tmp_path, "intel-rapl:0", "package-0", 999_000)
    meter = Meter.find(tmp_path)
    assert isinstance(meter, Meter)
    before = meter.read_uj()
    (path / "energy_uj").write_text("1000")
    assert meter.between_mj(before, meter.read_uj()) == pytest.approx(2.0)


def test_energy_of_a_call(tmp_path: Path) -> None:
    path = counter(tmp_path, "intel-rapl:0", "package-0", 990_000)
    meter = Meter.find(tmp_path)
    assert isinstance(meter, Meter)
    time_s = 0.0

    def run() -> None:  # 4 ms at 15 W
        nonlocal time_s
        time_s += 0.004
        now = int((path / "energy_uj").read_text()) + 60_000
        (path / "energy_uj").write_text(str(now % 1_000_000))

    energy_mj, latency_ms = meter.measure(run, 0.0399, clock=lambda: time_s)
    assert latency_ms == pytest.approx(4.0)
    assert energy_mj == pytest.approx(60.0)
    assert fit_power([energy_mj], [latency_ms]).power_w == pytest.approx(15.0)


@pytest.mark.parametrize("missing", ["max_energy_range_uj", "energy_uj"])
def test_no_counters_and_broken_ones_are_told_apart(tmp_path: Path, missing: str) -> None:
    assert "no energy counters" in str(Meter.find(tmp_path / "none"))
    path = counter(tmp_path, "intel-rapl:0", "package-0", 1)
    (path / missing).unlink()
    assert "cannot be read" in str(Meter.find(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_counters_for_root_only(tmp_path: Path) -> None:
    (counter(tmp_path, "intel-rapl:0", "package-0", 1) / "energy_uj").chmod(0)
    assert "root only" in str(Meter.find(tmp_path))


def test_counters_that_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter(tmp_path, "intel-rapl:0", "package-0", 1)

    def refuse(self: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("leanfront.latency_models.benchmark.energy.Domain.read_uj", refuse)
    assert "root only" in str(Meter.find(tmp_path))


def test_power_is_energy_over_time() -> None:
    fitted = fit_power([20.0, 40.0, 10.0], [2.0, 4.0, 1.0])
    assert fitted.power_w == pytest.approx(10.0)
    assert fitted.error == pytest.approx(0.0, abs=1e-12)
    assert fit_power([20.0, 44.0], [2.0, 4.0]).power_w == pytest.approx(10.45, abs=0.1)
    for energies, latencies in (([], []), ([0.0], [1.0]), ([1.0], [-1.0])):
        with pytest.raises(TableError):
            fit_power(energies, latencies)


def test_a_profile_with_measured_power_is_no_estimate() -> None:
    profile = load_profile("this-machine")
    assert profile.estimated
    energy = Energy.from_json(fit_power([20.0, 40.0], [2.0, 4.0]).to_json())
    measured = energy.of(profile)
    assert measured.power_w == pytest.approx(10.0)
    assert not measured.estimated
    source = measured.source("power_w")
    assert source is not None
    assert source.status == "measured"
    for text in ("", "{}", '{"power_w": 0, "n": 1, "error": 0}'):
        with pytest.raises(TableError):
            Energy.from_json(text)
