"""Inception features through torch-fidelity's network. Imported only when they are named."""

from __future__ import annotations

import io
import pickle
import sys
import textwrap
import warnings
from importlib.util import find_spec, module_from_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...core.arithmetic import full_float32
from ...core.errors import ConfigError
from ...core.weights import first_misfit
from .extractor import PUBLISHED, Features, InceptionConfig, check_uint8, with_channels
from .weights_file import WeightsFile, read_published_file

# The package's __init__ imports torchvision, for networks that are not used here. So the network's module is imported
# under a package that has the folder but has not run its __init__; whoever wants the whole package can still import it.
_whole_package_is_there = "torch_fidelity" in sys.modules
if not _whole_package_is_there:
    sys.modules["torch_fidelity"] = module_from_spec(find_spec("torch_fidelity"))
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # noqa: E402

if not _whole_package_is_there:
    del sys.modules["torch_fidelity"]

NUM_SPATIAL_CHANNELS = 7  # as ADM's evaluator takes them


class Inception:
    """The features of ADM's evaluation suite, from the weights in torch-fidelity's form.

    pool [B, 2048] is TensorFlow's pool_3. spatial [B, 2023] is the first 7 channels of its mixed_6/conv, row by row
    with the channels innermost: torch's Mixed_6d.branch1x1 after the ReLU, 17 x 17. logits [B, 1008] are pool times
    the softmax's weights without its bias, as the inception score of that suite takes them. Images of any size are
    resized to 299 x 299 as TensorFlow 1 does it; grey ones are repeated to three channels.
    """

    reads: Literal["images"] = "images"

    def __init__(self, config: InceptionConfig, device: torch.device) -> None:
        """Raises ConfigError if the file is missing, has another SHA-256 than wanted, or is of another network."""
        file = read_published_file(config.weights, PUBLISHED["torch-fidelity"], config.expected_sha256)
        self.name = f"inception via torch-fidelity, weights {file.short_sha256}, TF1 resize to 299"
        self._network = _network(file).to(device)
        self._branch: Tensor | None = None
        self._network.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def __call__(self, x: Tensor) -> Features:
        """x uint8 [B, 1 or 3, H, W]. Raises DataError for other numbers of channels."""
        check_uint8(x)
        images = with_channels(x, 3, "the Inception network")
        with full_float32(x.device):
            pool, logits = self._network(images)
        assert self._branch is not None  # [B, 192, 17, 17]
        spatial = self._branch[:, :NUM_SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        self._branch = None
        return Features(pool, spatial, logits)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._branch = output


def _network(file: WeightsFile) -> FeatureExtractorInceptionV3:
    weights = _read_weights(file)
    # The constructor unpickles the file it is given. It is given one that was written here, of plain tensors.
    own = io.BytesIO()
    torch.save(weights, own)
    own.seek(0)
    try:
        return FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=own
        )
    except RuntimeError as error:  # of load_state_dict: other names or shapes
        raise ConfigError(
            f"{file.path} holds the weights of another network ({textwrap.shorten(str(error), 200)}); wanted those of "
            f"{PUBLISHED['torch-fidelity'].name}"
        ) from error


def _read_weights(file: WeightsFile) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's, of a protocol that it did not write: it is an error
            weights: Any = torch.load(io.BytesIO(file.content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's text has advice to load it all the same
        raise ConfigError(
            f"{file.path} cannot be read as weights: it holds something else than tensors, which is never loaded, or "
            "is torn; fetch it again"
        ) from error
    except Exception as error:  # a parser of foreign bytes may raise anything
        raise ConfigError(
            f"{file.path} cannot be read as weights ({textwrap.shorten(str(error), 200)}); is it torn? Fetch it again"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ConfigError(f"{file.path} holds something else than named tensors; wanted the network's state dict")
    unusable = first_misfit({name: value for name, value in weights.items() if value.dtype != torch.int64}, None)
    if unusable is not None:
        raise ConfigError(f"{file.path} cannot be used as weights: {unusable}; fetch it again")
    return dict(weights)
