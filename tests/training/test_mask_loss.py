"""The loss of Mask2Former and OneFormer: matching, its three parts, a step of training of each."""

from itertools import permutations

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest

from natten_zoo.models import Mask2Former, NATConfig, OneFormer
from natten_zoo.models.universal_queries import Masks
from natten_zoo.training import mask_loss
from natten_zoo.training.mask_loss import (
    MaskLoss,
    MaskTargets,
    assign,
    at_points,
    dice_loss,
    mask_cross_entropy,
)

pytest.importorskip("scipy")
BODY = NATConfig(8, (1, 1, 1, 1), (1, 1, 2, 4), kernel_size=3, drop_path_rate=0.0)


@pytest.fixture(autouse=True)
def seeded():
    mx.random.seed(0)


def test_assignment_costs_least():
    rng = np.random.default_rng(0)
    for _ in range(20):
        cost = rng.normal(size=(5, 3))
        pairs = assign(cost)
        ours = cost[np.array(pairs.queries), np.array(pairs.targets)].sum()
        best = min(cost[list(rows), range(3)].sum() for rows in permutations(range(5), 3))
        assert ours == pytest.approx(best) and sorted(pairs.targets.tolist()) == [0, 1, 2]


def test_parts_of_the_loss():
    logits, truth = mx.random.normal((3, 50)), (mx.random.uniform(shape=(3, 50)) > 0.6) * 1.0
    p, t = 1 / (1 + np.exp(-np.array(logits, np.float64))), np.array(truth)
    entropy = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(-1)
    np.testing.assert_allclose(mask_cross_entropy(logits, truth), entropy, rtol=1e-5)
    dice = 1 - (2 * (p * t).sum(-1) + 1) / (p.sum(-1) + t.sum(-1) + 1)
    np.testing.assert_allclose(dice_loss(logits, truth), dice, rtol=1e-5)


def test_points_lie_between_pixels():
    masks = mx.random.normal((2, 4, 6))
    centers = [((x + 0.5) / 6, (y + 0.5) / 4) for y in range(4) for x in range(6)]
    values = at_points(masks, mx.array([centers]))
    np.testing.assert_allclose(values, masks.flatten(1), atol=1e-5)


def scene():
    """Two images: a square and the rest, and nothing at all."""
    square = np.zeros((64, 64), np.float32)
    square[16:48, 16:48] = 1
    first = MaskTargets(mx.array([2, 0]), mx.array(np.stack([square, 1 - square])))
    return [first, MaskTargets(mx.zeros(0, mx.int32), mx.zeros((0, 64, 64)))]


def test_a_perfect_answer_costs_next_to_nothing():
    first = scene()[0]
    masks = (first.masks[:, ::4, ::4].transpose(1, 2, 0)[None] - 0.5) * 60
    masks = mx.concatenate([masks, mx.full((1, 16, 16, 1), -30.0)], axis=-1)  # a third, for nothing
    classes = 30 * mx.eye(4)[mx.array([[2, 0, 3]])]
    right = MaskLoss(points=2000)([Masks(classes, masks)], [first])
    assert right.item() < 2.5  # borders between pixels remain, where most points lie
    swapped = Masks(classes[:, mx.array([1, 0, 2])], masks[..., mx.array([1, 0, 2])])
    mx.random.seed(0)
    again = MaskLoss(points=2000)([swapped], [first])
    assert again.item() == pytest.approx(right.item(), rel=0.1)  # the order of queries is free
    wrong = Masks(classes[:, mx.array([1, 0, 2])], masks)
    assert MaskLoss(points=2000)([wrong], [first]).item() > 10


def test_queries_without_a_target_should_say_nothing():
    nothing = [MaskTargets(mx.zeros(0, mx.int32), mx.zeros((0, 8, 8)))]
    classes = mx.zeros((1, 3, 4)) + mx.array([0.0, 0.0, 0.0, 2.0])
    loss = MaskLoss()([Masks(classes, mx.zeros((1, 2, 2, 3)))], nothing)
    probability = np.exp(2) / (np.exp(2) + 3)
    assert loss.item() == pytest.approx(-2 * np.log(probability), rel=1e-5)


def test_doubtful_points_are_preferred():
    ramp = mx.broadcast_to(mx.linspace(-8, 8, 64), (1, 64, 64))  # in doubt in the middle
    places = MaskLoss(points=1000).places_in_doubt(ramp)
    assert places.shape == (1, 1000, 2)
    away = np.abs(np.array(places[0, :, 0]) - 0.5)
    assert np.mean(away[:750] < 0.15) > 0.9  # but for some at the border, beyond which there is 0
    assert 0.2 < np.mean(away[750:] < 0.15) < 0.4


@pytest.mark.parametrize("cls", [Mask2Former, OneFormer])
def test_a_few_steps_of_training(cls):
    mx.random.seed(0)
    config = cls.Config(
        BODY, 32, 32, num_queries=6, num_classes=3, depth=1, pixel_depth=1, hidden=64
    )
    model, criterion = cls(config), MaskLoss(points=256)
    model.train()
    images, targets = mx.random.normal((2, 64, 64, 3)), scene()

    def loss_fn(model):
        return criterion(model.all_masks(images, "panoptic"), targets)

    step, optimizer = nn.value_and_grad(model, loss_fn), optim.AdamW(1e-3)
    losses = []
    for _ in range(12):
        loss, gradients = step(model)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state, loss)
        losses.append(loss.item())
    assert np.isfinite(losses).all() and losses[-1] < 0.8 * losses[0]


def test_what_is_refused(monkeypatch):
    found = Masks(mx.zeros((1, 1, 3)), mx.zeros((1, 2, 2, 1)))
    with pytest.raises(ValueError, match=r"those of 1 images, 1 or fewer each, but got \[2, 0\]"):
        MaskLoss()([found], scene())
    monkeypatch.setitem(__import__("sys").modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"natten-zoo\[segmentation\]"):
        mask_loss.assign(np.zeros((2, 1)))
