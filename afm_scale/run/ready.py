"""What a run needs of this machine, looked for before anything is built: packages, files, other runs, shapes.

`check` is arithmetic, the same everywhere; this is about here. Both are asked by `train` and `show`, in this order.
"""

from __future__ import annotations

import torch

from ..checkpoint.manifest import read_manifest, resolve_checkpoint, visible_checkpoints
from ..core.errors import ConfigError
from ..core.packages import require
from ..core.processes import check_processes
from ..core.run_folder import RunFolder
from ..data.table import check_packages
from .beginning import check_beginning, is_foreign
from .config import RunConfig
from .features import check_extractor
from .guides import check_frozen
from .networks import build_networks


def check_ready(config: RunConfig, *, may_be_open: bool = False) -> None:
    """Raises UserError, naming the setting, for what is missing here or does not fit.

    Reads no more than descriptions and cards; networks are built without storage. What only a whole file can say, its
    sums for instance, is for whoever reads it. `may_be_open`: what a recipe leaves to its user need not be named yet.
    """
    _check_packages(config)
    if config.parallel.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "parallel.device is cuda but torch sees no GPU here; set parallel.device=cpu or use a host with GPUs"
        )
    if config.data.starts_processes:
        check_processes()
    config.data.fingerprint()
    for measurement in (config.report, config.hooks.evaluation):
        if measurement is not None:
            measurement.check_ready(check_extractor, may_be_open=may_be_open)
    for network in () if may_be_open else config.model.networks.values():
        network.check_named()
    build_networks(config)
    check_frozen(config, may_be_open=may_be_open)
    _check_beginning(config, may_be_open=may_be_open)


def _check_packages(config: RunConfig) -> None:
    config.parallel.check_packages()
    check_packages(config.data)
    if config.hooks.metrics.wandb is not None:
        require("wandb", "hooks.metrics.wandb", "wandb")


def _check_beginning(config: RunConfig, *, may_be_open: bool) -> None:
    """A new run's first checkpoint; one that goes on begins at its own, whatever these say.

    `may_be_open`: a published file that a recipe names need not be here yet.
    """
    if visible_checkpoints(RunFolder(config.run.folder).checkpoints):
        return
    for path in (config.run.resume_from, config.run.initialise_from):
        if path is not None and path == config.run.initialise_from and is_foreign(config):
            check_beginning(config)
        elif path is not None and not (may_be_open and path.suffix and not path.exists()):
            read_manifest(resolve_checkpoint(path))
