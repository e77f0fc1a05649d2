from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from afm_scale.core.errors import UserError
from afm_scale.core.types import Role
from afm_scale.models.classifier import ClassifierConfig, DiTClassifier
from afm_scale.models.discriminator import DiscriminatorConfig, DiTDiscriminator
from afm_scale.models.generator import DiTGenerator, GeneratorConfig
from afm_scale.models.layers import Attention, Mlp, PatchEmbed, TimestepEmbedder, initial_weights, sincos_positions
from afm_scale.models.mlp import MLPConfig, MLPDiscriminator, MLPGenerator
from afm_scale.run.replay import replay  # noqa: F401  (the golden files are read directly here)
from tests.models.small import NUM_CLASSES, SHAPE, SIZE, awake
