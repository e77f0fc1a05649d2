"""The objectives a recipe may choose by `objective.kind`: adding one is a file and a line here."""

from __future__ import annotations

from .afm import AdversarialFlow, AFMConfig
from .classification import Classification, ClassificationConfig
from .flow_matching import FlowMatching, FlowMatchingConfig

OBJECTIVES = {AFMConfig: AdversarialFlow, FlowMatchingConfig: FlowMatching, ClassificationConfig: Classification}
