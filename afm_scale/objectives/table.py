"""The objectives a recipe may choose by `objective.kind`: adding one is a file and a line here."""

from __future__ import annotations

from .afm import AdversarialFlow, AFMConfig
from .alpha_flow import AlphaFlow, AlphaFlowConfig
from .classification import Classification, ClassificationConfig
from .flow_matching import FlowMatching, FlowMatchingConfig
from .mean_flow import MeanFlow, MeanFlowConfig
from .twin_flow import TwinFlow, TwinFlowConfig

OBJECTIVES = {
    AFMConfig: AdversarialFlow, FlowMatchingConfig: FlowMatching, MeanFlowConfig: MeanFlow, AlphaFlowConfig: AlphaFlow,
    TwinFlowConfig: TwinFlow, ClassificationConfig: Classification,
}
