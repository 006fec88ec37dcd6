"""The FPGA models against published measurements, with the numbers that ship: what docs/fpga.md promises."""

import numpy as np
import pytest

pytest.importorskip("scipy")

from benchmarks.calibrate_fpga import ODD_LOGIC, fit_logic, fit_power, logic_designs, mape
from benchmarks.fpga_designs import dataflow_numbers, parts, published, resources
from benchmarks.fpga_overlays import (
    SYSTOLIC,
    dpu_rows,
    overlay_of,
    systolic_cycles,
    systolic_layers,
    systolic_network_ms,
    systolic_networks,
)
from benchmarks.published_rows import network
from compression.policy import LayerPolicy, Policy
from hw_profiles import load_profile
from latency_models.models import model_of

DESIGNS = [design for design in published() if parts(design) is not None]


@pytest.mark.parametrize("device", ["zcu102-dpu", "zcu104-dpu"])
def test_frames_per_second_of_the_dpu(device):
    model = model_of(load_profile(device))
    errors = []
    for row in dpu_rows():
        if row.device == device:
            table = network(row.network)
            cost = model.cost(table, Policy.uniform(table, LayerPolicy(0.0, 8, 8)))
            errors.append(1e3 / cost.latency_ms / row.fps - 1)
    assert mape(errors) < 0.06
    assert max(map(abs, errors)) < 0.15


@pytest.mark.skipif(not systolic_layers(), reason="the measurements may not be copied, and are not here")
@pytest.mark.parametrize("size", SYSTOLIC)
def test_cycles_of_the_systolic_array(size):
    overlay = overlay_of(SYSTOLIC[size])
    rows = [row for row in systolic_layers() if row.size == size]
    assert mape([systolic_cycles(row, overlay) / row.cycles - 1 for row in rows]) < 0.02
    times = [entry for entry in systolic_networks() if entry[0] == size]
    errors = [
        (systolic_network_ms(size, name, overlay) + overlay.call_overhead_ms) / whole - 1
        for _, name, whole, _ in times
    ]
    assert mape(errors) < 0.06


def test_latency_of_published_pipelines():
    numbers, _ = dataflow_numbers()
    errors = []
    for design in DESIGNS:
        made = parts(design)
        assert made is not None
        if design.fps is None or design.clock_mhz is None:
            continue
        ms = made.latency_cycles / design.clock_mhz / 1e3
        ms += numbers.call_overhead_ms if design.tool == "FINN" else 0.0
        errors.append(ms * design.fps / 1e3 - 1)
    assert len(errors) == 10
    assert max(map(abs, errors)) < 0.2
    assert mape(errors) < 0.1


def test_resources_of_published_pipelines():
    dataflow, memory = dataflow_numbers()
    errors: dict[str, list[float]] = {"LUT": [], "DSP": [], "BRAM36": []}
    for design in DESIGNS:
        if design.name in ODD_LOGIC:
            continue
        for block, count in resources(design, dataflow, memory).items():
            if block in design.blocks:
                errors[block].append(count / design.blocks[block] - 1)
    assert {block: len(found) for block, found in errors.items()} == {"LUT": 10, "DSP": 8, "BRAM36": 10}
    for block, found in errors.items():
        assert mape(found) < 0.15, block


def test_the_profile_has_the_calibrated_numbers():
    profile = load_profile("zynq-7020")
    assert profile.dataflow is not None
    assert profile.power is not None
    for name, value in fit_logic(logic_designs()).items():
        assert np.isclose(getattr(profile.dataflow, name), value, rtol=0.01), name
    assert np.allclose([profile.power.idle_w, profile.power.mac_pj], fit_power(), rtol=0.02)
