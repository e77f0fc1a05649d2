"""Where this process stands among the ranks of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Place:
    """This process among the ranks that share torch's default process group; alone unless said otherwise.

    Neighbouring ranks of a group share the work of every network (tensor parallelism). They see the same samples.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")  # of this rank's networks and samples
    group_size: int = 1  # neighbouring ranks that share every network's work

    @property
    def data_rank(self) -> int:
        """Which share of the global batch this rank sees."""
        return self.rank // self.group_size

    @property
    def num_data_ranks(self) -> int:
        """How many shares the global batch is cut into."""
        return self.world_size // self.group_size

    @property
    def leads_group(self) -> bool:
        """Whether this rank is the one that speaks for those that see the same samples."""
        return self.rank % self.group_size == 0


def rank_of(environment: Mapping[str, str]) -> int:
    """The rank that the launcher's variables name: torchrun's and deepspeed's, else Slurm's; 0 where there are none.

    What cannot be read counts as 0 too: `parallel.launch` explains it, and this rank may have to print that.
    """
    text = environment.get("RANK", environment.get("SLURM_PROCID", "0"))
    return int(text) if text.isdecimal() else 0
