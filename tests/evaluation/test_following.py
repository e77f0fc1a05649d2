"""Scores of prompts, in closed form."""

from __future__ import annotations

import torch

from afm_scale.evaluation.following import following


class Shapes:
    """Samples [N, 1, 1, 2] whose two numbers are a colour and a count; a prompt "red 2" asks for both, "red" for one.
    """

    def asked(self, prompt: str) -> tuple[str, ...]:
        return ("colour", "count") if " " in prompt else ("colour",)

    def held(self, samples, prompts):
        words = [f"{prompt} 0".split()[:2] for prompt in prompts]
        found = samples.flatten(1)
        return {
            "colour": found[:, 0] == torch.tensor([float(word == "red") for word, _ in words]),
            "count": found[:, 1] == torch.tensor([float(count) for _, count in words]),
        }


def test_a_sample_is_right_if_all_that_is_asked_holds_and_tasks_count_alike():
    prompts = ["red 2", "red 2", "blue 1", "red", "blue", "blue", "red", "red"]
    shown = torch.tensor([[1, 2], [1, 3], [1, 1], [1, 7], [0, 9], [1, 0], [1, 4], [0, 0]]).float()
    assert following(Shapes(), shown.view(8, 1, 1, 2), prompts) == {
        "following": (1 / 3 + 3 / 5) / 2, "following_colour": 5 / 8, "following_count": 2 / 3,
        "following_colour_count": 1 / 3,
    }


def test_an_attribute_that_nobody_asks_for_is_not_scored():
    shown = torch.tensor([[1.0, 2.0], [1.0, 2.0]]).view(2, 1, 1, 2)
    assert following(Shapes(), shown, ["red", "blue"]) == {"following": 0.5, "following_colour": 0.5}
