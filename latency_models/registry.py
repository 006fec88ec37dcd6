"""The cost model of a profile whose costs are computed."""

from leanfront.hw_profiles import HardwareProfile
from leanfront.latency_models.cost import CostModel
from leanfront.latency_models.errors import TableError

COMPUTED = ("roofline", "overlay", "dataflow")
"""Values of a profile's ``model`` that need no measurement."""


def model_of(profile: HardwareProfile) -> CostModel:
    """What computes the costs on a part.

    Raises:
        TableError: the profile's costs are measured, not computed.
    """
    if profile.model == "roofline":
        from leanfront.latency_models.roofline.model import RooflineModel

        return RooflineModel(profile)
    if profile.model == "overlay":
        from leanfront.latency_models.fpga.overlay import OverlayModel

        return OverlayModel(profile)
    if profile.model == "dataflow":
        from leanfront.latency_models.fpga.dataflow import DataflowModel

        return DataflowModel(profile)
    raise TableError(
        f"the costs of profile {profile.name!r} are {profile.model}; computed are {', '.join(COMPUTED)}"
    )
