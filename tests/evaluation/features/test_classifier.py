from __future__ import annotations

import pytest
import torch

from afm_scale.core.errors import DataError
from afm_scale.evaluation.features.classifier import ClassifierFeatures, FeatureClassifier
from afm_scale.models.classifier import ClassifierConfig, DiTClassifier
from tests.models.small import NUM_CLASSES, SHAPE, SIZE, awake, inputs


@pytest.fixture
def classifier() -> DiTClassifier:
    return awake(DiTClassifier(ClassifierConfig(**SIZE), SHAPE, NUM_CLASSES)).float()


def extractor(classifier: FeatureClassifier, time: float = 0.0) -> ClassifierFeatures:
    return ClassifierFeatures(classifier, name="small", shape=SHAPE, device=torch.device("cpu"), time=time)


def test_features_are_what_the_head_sees_and_logits_what_it_says(classifier: DiTClassifier) -> None:
    x, *_ = inputs()
    for time in (0.0, 0.25):
        features = extractor(classifier, time)(x)  # float64 samples of a float64 run
        t = torch.full((4,), time)
        torch.testing.assert_close(features.logits, classifier(x.float(), t).detach(), rtol=0, atol=0)
        head = classifier.final_layer[1]
        torch.testing.assert_close(features.logits, (features.pool @ head.weight.T + head.bias).detach())
        # After its LayerNorm a token has mean 0 and variance 1.
        torch.testing.assert_close(features.pool.mean(dim=1), torch.zeros(4), rtol=0, atol=1e-5)
        torch.testing.assert_close(features.pool.var(dim=1, correction=0), torch.ones(4), rtol=0, atol=1e-4)
        assert (features.pool.dtype, features.pool.requires_grad) == (torch.float32, False)


def test_the_time_it_is_told_matters(classifier: DiTClassifier) -> None:
    x, *_ = inputs()
    assert not torch.allclose(extractor(classifier)(x).pool, extractor(classifier, 0.5)(x).pool)


def test_a_sample_has_the_same_features_in_any_batch(classifier: DiTClassifier) -> None:
    x, *_ = inputs()
    alone = torch.cat([extractor(classifier)(x[i:i + 1]).pool for i in range(4)])
    torch.testing.assert_close(alone, extractor(classifier)(x).pool, rtol=1e-5, atol=1e-5)


def test_samples_of_another_shape_are_refused(classifier: DiTClassifier) -> None:
    with pytest.raises(DataError, match=r"trained on samples of shape \[3, 4, 6\], found \[3, 6, 6\]"):
        extractor(classifier)(torch.zeros(2, 3, 6, 6))
