"""The last block of a network that reads one token computes that token alone, and nothing changes but the work."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from afm_scale.estimate.flops import FlopCounter
from afm_scale.models.discriminator import DiscriminatorConfig, DiTDiscriminator
from tests.models.small import NUM_CLASSES, SHAPE, SIZE, awake, inputs


def discriminator(**changes: object) -> DiTDiscriminator:
    return DiTDiscriminator(DiscriminatorConfig(**{**SIZE, "target_time": True, **changes}), SHAPE, NUM_CLASSES)


def of_all_tokens(network: DiTDiscriminator, tokens: Tensor, condition: Tensor, precise: bool) -> Tensor:
    return network.run_blocks(tokens, condition)[:, 0]


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_logits_and_all_gradients_are_those_of_whole_blocks(
    monkeypatch: pytest.MonkeyPatch, depth: int, qk_norm: bool
) -> None:
    network = awake(discriminator(depth=depth, qk_norm=qk_norm))
    x, _, t, y = inputs()
    x.requires_grad_()
    wanted = [x, *network.parameters()]

    def judged() -> tuple[Tensor, ...]:
        logits = network(x, t, y)
        return logits, *torch.autograd.grad(logits.square().sum(), wanted)

    short = judged()
    monkeypatch.setattr(DiTDiscriminator, "read_first", of_all_tokens)
    for found, expected in zip(short, judged(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("size", "share"), [
    ({"depth": 28, "hidden_size": 1152, "num_heads": 16}, 0.03),
    ({"depth": 12, "hidden_size": 768, "num_heads": 12}, 0.07),
])
def test_it_saves_three_percent_at_xl_and_seven_at_b(
    monkeypatch: pytest.MonkeyPatch, size: dict[str, int], share: float
) -> None:
    def work() -> int:
        with torch.device("meta"):
            network = DiTDiscriminator(
                DiscriminatorConfig(patch_size=2, target_time=False, **size), (4, 32, 32), 1000
            )
            x, t, y = torch.empty(2, 4, 32, 32), torch.empty(2), torch.empty(2, dtype=torch.int64)
            with FlopCounter() as counter, torch.no_grad():
                network(x, t, y)
        return counter.total

    short = work()
    monkeypatch.setattr(DiTDiscriminator, "read_first", of_all_tokens)
    assert 1 - short / work() == pytest.approx(share, abs=0.005)
