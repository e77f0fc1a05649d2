"""The objectives a recipe may choose by `objective.kind`: adding one is a file and a line here."""

from __future__ import annotations

from .afm import AFMConfig
from .alpha_flow import AlphaFlow, AlphaFlowConfig
from .classification import Classification, ClassificationConfig
from .flow_matching import FlowMatching, FlowMatchingConfig
from .mean_flow import MeanFlow, MeanFlowConfig
from .one_pass import adversarial_flow
from .twin_flow import TwinFlow, TwinFlowConfig

OBJECTIVES = {
    AFMConfig: adversarial_flow, FlowMatchingConfig: FlowMatching, MeanFlowConfig: MeanFlow, AlphaFlowConfig: AlphaFlow,
    TwinFlowConfig: TwinFlow, ClassificationConfig: Classification,
}
