"""The networks a recipe may choose under `model`: adding one is a file and a line here.

Each is built from its configuration, the shape of a sample and the number of classes.
"""

from __future__ import annotations

from .classifier import ClassifierConfig, DiTClassifier
from .diffusion import DiffusionConfig, DiffusionGenerator
from .discriminator import DiscriminatorConfig, DiTDiscriminator
from .generator import DiTGenerator, GeneratorConfig
from .mlp import MLPClassifier, MLPClassifierConfig, MLPConfig, MLPDiscriminator, MLPGenerator

GENERATORS = {GeneratorConfig: DiTGenerator, DiffusionConfig: DiffusionGenerator, MLPConfig: MLPGenerator}
DISCRIMINATORS = {DiscriminatorConfig: DiTDiscriminator, MLPConfig: MLPDiscriminator}
CLASSIFIERS = {ClassifierConfig: DiTClassifier, MLPClassifierConfig: MLPClassifier}
