"""The cost model of a profile whose costs are computed."""

from hw_profiles import HardwareProfile
from latency_models.cost import CostModel
from latency_models.errors import TableError

COMPUTED = ("roofline", "overlay", "dataflow")
"""Values of a profile's ``model`` that need no measurement."""


def model_of(profile: HardwareProfile) -> CostModel:
    """What computes the costs on a part.

    Raises:
        TableError: the profile's costs are measured, not computed.
    """
    if profile.model == "roofline":
        from latency_models.roofline import RooflineModel

        return RooflineModel(profile)
    if profile.model == "overlay":
        from latency_models.overlay import OverlayModel

        return OverlayModel(profile)
    if profile.model == "dataflow":
        from latency_models.dataflow import DataflowModel

        return DataflowModel(profile)
    raise TableError(
        f"the costs of profile {profile.name!r} are {profile.model}; computed are {', '.join(COMPUTED)}"
    )
