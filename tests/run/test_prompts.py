from __future__ import annotations

from types import SimpleNamespace

import pytest

from afm_scale.core.errors import ConfigError
from afm_scale.data.toys.synthetic import SyntheticLatentsConfig, SyntheticPromptsConfig
from afm_scale.run.prompts import check_told

LABELS = SyntheticLatentsConfig(global_batch=8)
PROMPTS = SyntheticLatentsConfig(global_batch=8, text=SyntheticPromptsConfig(length=3, width=4, pooled=2))


def network(prompt_width: int | None = None, pooled_width: int | None = None) -> SimpleNamespace:
    return SimpleNamespace(kind="some", prompt_width=prompt_width, pooled_width=pooled_width)


def model(generator: SimpleNamespace | None, discriminator: SimpleNamespace | None = None,
          classifier: object = None) -> SimpleNamespace:
    return SimpleNamespace(generator=generator, discriminator=discriminator, classifier=classifier)


def test_classes_are_for_networks_of_classes_and_prompts_for_networks_of_their_widths() -> None:
    check_told(LABELS, model(network(), network()))
    check_told(PROMPTS, model(network(4), network(None, 2)))
    check_told(PROMPTS, model(network(4, 2)))


@pytest.mark.parametrize("data, wrong, reason", [
    (LABELS, model(network(4)), "model.generator of kind 'some' is told prompts, but data.kind 'synthetic' has"),
    (PROMPTS, model(network()), "is told classes, but data.kind 'synthetic' has prompts"),
    (PROMPTS, model(network(4), network()), "model.discriminator of kind 'some' is told classes"),
    (PROMPTS, model(network(5)), "told 5 numbers for each token, of which the data have 4: .* another text encoder"),
    (PROMPTS, model(network(4), network(None, 3)), "told 3 numbers for a whole prompt, of which the data have 2"),
    (PROMPTS, model(network(4), None, object()), "set model.classifier=null"),
])
def test_what_does_not_go_together_is_refused(data, wrong, reason) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_told(data, wrong)
