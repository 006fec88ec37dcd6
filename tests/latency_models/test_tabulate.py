"""Tables that models write, in the form of measured ones."""

from pathlib import Path

import pytest

from leanfront.compression.graph import Network
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.hw_profiles import load_profile, profile_names
from leanfront.latency_models.errors import TableError
from leanfront.latency_models.kernel_table.table import load_table
from leanfront.latency_models.layer_table import COLUMNS, read_layer_table
from leanfront.latency_models.registry import COMPUTED
from leanfront.latency_models.roofline.model import RooflineModel
from leanfront.latency_models.tabulate import modelled_device, tabulated

LAYERS = f"""{",".join(COLUMNS)}
a,conv2d,3,16,3,3,1,1,1,16,16,1
b,conv2d,16,32,1,1,1,1,1,16,16,1
c,conv2d,32,16,3,3,1,1,1,16,16,1
"""

MODELS = [name for name in profile_names() if load_profile(name).model in COMPUTED]


@pytest.fixture
def network(tmp_path: Path) -> Network:
    path = tmp_path / "layers.csv"
    path.write_text(LAYERS)
    return read_layer_table(path)


@pytest.mark.parametrize("name", MODELS)
def test_every_computed_profile_writes_a_table_that_is_read_back(
    name: str, network: Network, tmp_path: Path
) -> None:
    profile = load_profile(name)
    pair = profile.supported[0]
    table = tabulated(profile, network, [Policy.uniform(network, LayerPolicy(0.0, *pair))])
    assert len(table) >= 3
    assert {entry.source for entry in table.values()} <= {"modelled", "calibrated"}
    table.save(tmp_path / "table.csv")
    again = load_table(tmp_path / "table.csv", modelled_device(profile), name)
    assert list(again) == list(table)
    assert all(again[key].median_ms == pytest.approx(table[key].median_ms, rel=1e-5) for key in table)


def test_entries_add_up_to_the_network(network: Network) -> None:
    profile = load_profile("toy")
    policy = Policy.uniform(network, LayerPolicy(0.5, 8, 8))
    resized = network.resized(policy.channels(network, profile.channel_multiple))
    table = tabulated(profile, network, [policy])
    total = RooflineModel(profile).cost(resized, policy).latency_ms
    assert sum(entry.median_ms for entry in table.values()) == pytest.approx(total)
    assert any(key.startswith("conv2d 1x1 8->16 @16x16 bias w8 a8") for key in table)


def test_a_table_of_another_version_of_the_profile_is_refused(network: Network, tmp_path: Path) -> None:
    profile = load_profile("toy")
    table = tabulated(profile, network, [Policy.uniform(network, LayerPolicy(0.0, 8, 8))])
    table.save(tmp_path / "table.csv")
    other = profile.model_copy(update={"power_w": 2.0})
    with pytest.raises(TableError, match="table of another device"):
        load_table(tmp_path / "table.csv", modelled_device(other))
