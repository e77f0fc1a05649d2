"""The networks a recipe may choose under `model`: adding one is a file and a line here.

Each is built from its configuration, the shape of a sample and the number of classes.
"""

from __future__ import annotations

from torch import nn

from ..core.packages import require
from .classifier import ClassifierConfig, DiTClassifier
from .diffusion import DiffusionConfig, DiffusionGenerator
from .discriminator import DiscriminatorConfig, DiTDiscriminator
from .generator import DiTGenerator, GeneratorConfig
from .large.config import DiffusersConfig
from .mlp import MLPClassifier, MLPClassifierConfig, MLPConfig, MLPDiscriminator, MLPGenerator


def _diffusers(config: DiffusersConfig, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    require("diffusers", "model.generator.kind 'diffusers'", "latents")
    from .large.network import DiffusersGenerator  # needs its package, imported only when the configuration names it

    return DiffusersGenerator(config, shape, num_classes)


GENERATORS = {
    GeneratorConfig: DiTGenerator, DiffusionConfig: DiffusionGenerator, MLPConfig: MLPGenerator,
    DiffusersConfig: _diffusers,
}
DISCRIMINATORS = {DiscriminatorConfig: DiTDiscriminator, MLPConfig: MLPDiscriminator}
CLASSIFIERS = {ClassifierConfig: DiTClassifier, MLPClassifierConfig: MLPClassifier}
