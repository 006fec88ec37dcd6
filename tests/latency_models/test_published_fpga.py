"""The FPGA models against published measurements, with the numbers that ship: what docs/fpga.md promises."""

import numpy as np
import pytest

pytest.importorskip("scipy")

from benchmarks.calibrate_fpga import fit_logic, fit_power, logic_designs, mape
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
from benchmarks.published_fpga import logic_errors_of_families
from benchmarks.published_rows import network
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.hw_profiles import load_profile
from leanfront.latency_models.registry import model_of

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
        for block, count in resources(design, dataflow, memory).items():
            if block in design.blocks:
                errors[block].append(count / design.blocks[block] - 1)
    assert {block: len(found) for block, found in errors.items()} == {"LUT": 12, "DSP": 8, "BRAM36": 12}
    for block, found in errors.items():
        assert mape(found) < 0.17, block
        assert max(map(abs, found)) < 0.4, block


def test_logic_of_families_that_were_never_calibrated_on():
    errors = logic_errors_of_families()
    assert {family: len(found) for family, found in errors.items()} == {
        "FINN CNV": 3, "FINN": 4, "fpgaConvNet": 8}  # fmt: skip
    assert mape(errors["FINN CNV"]) < 0.25
    assert mape(errors["FINN"]) < 0.25


def test_the_folding_of_a_design_gives_its_cycles():
    # Xilinx/BNN-PYNQ hw/config.h prints WMEM and "Ext Latency" of each layer: those of w1a2 are those of w1a1
    made = {design.task: parts(design) for design in DESIGNS}
    for task in ("cnv-w1a1", "cnv-w1a2"):
        cycles = [float(s.cycles[0]) for s in made[task].stages]
        assert [c for c in cycles if c in (32400, 28224, 20736, 28800, 18432, 32768, 8192)] == [
            32400, 28224, 20736, 28800, 20736, 18432, 32768, 32768, 8192]  # fmt: skip
    assert max(float(s.cycles[0]) for s in made["cnv-w2a2"].stages) == 115200


def test_the_profile_has_the_calibrated_numbers():
    profile = load_profile("zynq-7020")
    assert profile.dataflow is not None
    assert profile.power is not None
    for name, value in fit_logic(logic_designs()).items():
        assert np.isclose(getattr(profile.dataflow, name), value, rtol=0.01), name
    assert np.allclose([profile.power.idle_w, profile.power.mac_pj], fit_power(), rtol=0.02)
