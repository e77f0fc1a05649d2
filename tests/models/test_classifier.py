from __future__ import annotations

import torch

from afm_scale.models.classifier import ClassifierConfig, DiTClassifier
from tests.models.small import NUM_CLASSES, SHAPE, SIZE, at_start, awake, inputs


def classifier() -> DiTClassifier:
    return DiTClassifier(ClassifierConfig(**SIZE, weights=None), SHAPE, NUM_CLASSES)


def test_the_classes_are_read_from_a_learnt_token_conditioned_on_the_time_alone() -> None:
    network = awake(classifier())
    x, _, t, _ = inputs()
    tokens = torch.cat((network.cls_embed.expand(4, 1, -1), network.x_embedder(x) + network.pos_embed), dim=1)
    for block in network.blocks:
        tokens = block(tokens, network.t_embedder(t))
    normed = torch.nn.functional.layer_norm(tokens[:, 0], (16,), eps=1e-6)
    head = network.final_layer[1]
    torch.testing.assert_close(network(x, t), normed @ head.weight.T + head.bias, rtol=1e-11, atol=1e-12)


def test_it_knows_nothing_of_the_sample_at_the_start() -> None:
    x, _, t, _ = inputs()
    logits = at_start(classifier())(x, t)
    assert logits.shape == (4, NUM_CLASSES)
    assert (logits == logits[0]).all()


def test_it_has_no_label_embedder() -> None:
    assert not [name for name in classifier().state_dict() if name.startswith("y_embedder")]
