"""The arithmetic of accuracies."""

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo.data import Preprocess
from natten_zoo.tasks.evaluation import Evaluation, evaluate

NAMES = ("a", "b", "c", "d", "e", "f", "g")


@pytest.fixture
def result():
    labels = np.array([0, 0, 1, 6])
    ranked = np.array([[0, 1, 2, 3, 4], [1, 2, 3, 4, 0], [2, 3, 4, 5, 6], [6, 0, 1, 2, 3]])
    return Evaluation(NAMES, labels, ranked)


def test_top1_and_top5(result):
    assert (result.top1, result.top5) == (50.0, 75.0)
    assert (result.of_class(0).top1, result.of_class(0).top5) == (50.0, 100.0)
    assert result.of_class(1).top5 == 0.0


def test_confusion_holds_only_what_occurs(result):
    present, counts = result.confusion()
    assert present == [0, 1, 2, 6]
    assert counts.tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_to_dict(result):
    facts = result.to_dict()
    assert facts["images"] == 4
    assert [c["class"] for c in facts["classes"]] == ["a", "b", "g"]


def test_evaluate_pairs_answers_with_labels(tmp_path):
    """A model that answers with the image's brightness, an unreadable image in between."""
    gray = Preprocess(size=2, crop_pct=1.0, mean=(0.0,), std=(1.0,))
    sources = [np.full((2, 2), value, np.uint8) for value in (0, 3, 1)]
    sources.insert(1, tmp_path / "missing.png")

    def model(x):
        return -mx.abs(x[:, 0, 0] * 255 - mx.arange(7))

    seen = []
    result = evaluate(model, sources, [0, 5, 3, 4], gray, NAMES, batch_size=2, on_batch=seen.append)
    assert result.labels.tolist() == [0, 3, 4]
    assert result.ranked[:, 0].tolist() == [0, 3, 1]
    assert result.top1 == pytest.approx(200 / 3, abs=1e-3)
    assert len(result.failures) == 1 and seen == [2, 2]
