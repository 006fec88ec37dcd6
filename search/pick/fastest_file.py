"""An exported network stored as it was priced: what runs faster around another zero point is stored so."""

from collections.abc import Callable

import onnx

from leanfront.compression.export.dialects import QDQ, Dialect
from leanfront.compression.export.zero_points import shifted
from leanfront.latency_models.benchmark.optimised_graph import fused_nodes
from leanfront.latency_models.benchmark.zero_points import layers_to_shift
from leanfront.latency_models.errors import TableError
from leanfront.latency_models.kernel_table.table import load_table, this_device
from leanfront.latency_models.providers import provider_of
from leanfront.search.pick.verify import at_hand
from leanfront.search.run.run_folder import RunFolder
from leanfront.search.study.prepare import Loaded


def fastest_file(
    model: onnx.ModelProto,
    loaded: Loaded,
    run: RunFolder,
    log: Callable[[str], None] = lambda line: None,
    dialect: Dialect = QDQ,
) -> bytes:
    """The exported network, serialized, with the zero points that are fastest by the run's latency table; as
    it is where that table is not of this machine and its onnxruntime, or not of this kind of file."""
    plain = bytes(model.SerializeToString())
    hardware = loaded.config.hardware
    if not dialect.priced or not at_hand(loaded.profile, hardware.threads, hardware.provider):
        return plain
    device = this_device(hardware.threads, provider_of(hardware.provider))
    try:
        table = load_table(run.path / "latency_table.csv", device, loaded.profile.name)
    except TableError as error:
        log(f"the network is stored without regard to which kernels are faster here: {error}")
        return plain
    names = {layer.name: layer.name for layer in loaded.traced.network.layers}
    layers = layers_to_shift(fused_nodes(plain, names, device.threads, device.provider), table)
    return bytes(shifted(model, layers).SerializeToString()) if layers else plain
