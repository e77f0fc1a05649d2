"""Whether samples show what their prompts ask for, counted as GenEval does (Ghosh et al., arXiv 2310.11513).

A prompt asks for some attributes, and belongs to a task: those prompts that ask for the same ones. A checker, of what a
picture shows, says of every sample which attributes hold. A sample is right if all that its prompt asks for do; a task
scores the share of its samples that are right, and the whole scores the mean over tasks, so that a task with more
prompts counts no more than another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Checker(Protocol):
    """Knows what prompts ask for, and sees whether it is there: a detector, a classifier, or a measurement."""

    def asked(self, prompt: str) -> Sequence[str]:
        """Names of the attributes that a prompt asks for, at least one; together they are its task."""
        ...

    def held(self, samples: Tensor, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        """By the name of an attribute, [N] bool: whether samples [N, C, H, W] have the one that is asked for.

        Of samples whose prompts do not ask for an attribute it may say anything.
        """
        ...


def following(checker: Checker, samples: Tensor, prompts: Sequence[str]) -> dict[str, float]:
    """Shares from 0 to 1 of samples [N, C, H, W] drawn for prompts.

    `following`: the score of the whole; `following_x`: of the samples that are asked for attribute x, those that have
    it; `following_x_y`: of the task that asks for x and y, all of it right.
    """
    asked = [tuple(checker.asked(prompt)) for prompt in prompts]
    held = checker.held(samples, prompts)
    is_asked = {name: torch.tensor([name in names for names in asked]) for name in held}
    right = torch.ones(len(prompts), dtype=torch.bool)
    for name, has in held.items():
        right &= has.cpu() | ~is_asked[name]
    found = {
        f"following_{name}": float(has.cpu()[is_asked[name]].double().mean())
        for name, has in held.items() if bool(is_asked[name].any())
    }
    tasks = {
        names: float(right[torch.tensor([one == names for one in asked])].double().mean())
        for names in sorted(set(asked))
    }
    found |= {f"following_{'_'.join(names)}": score for names, score in tasks.items() if len(names) > 1}
    return {"following": sum(tasks.values()) / len(tasks), **found}
