from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from natten_zoo.layers.checkpointing import checkpoint_layers
from natten_zoo.models import AllInOne, AllInOneConfig, create_model
from natten_zoo.training import Recipe
from natten_zoo.training.augment import Augment
from natten_zoo.training.optim import make_schedule
from natten_zoo.training.step import TrainState, make_evaluate, make_step

PLAIN = {"crop": "none", "flip": False, "smoothing": 0.0, "drop_path": 0.0, "warmup_epochs": 0.0}


def setup(**options):
    recipe = Recipe(**{"compile": "no", "schedule": "constant", "batch_size": 8, **options})
    mx.random.seed(recipe.seed)
    model = create_model(
        "nat_pico_fashion", embed_dim=8, depths=(1, 1), num_heads=(1, 2), kernel_size=3,
        drop_path_rate=recipe.drop_path or 0.0, in_chans=3, num_classes=3,
    )  # fmt: skip
    model.train()
    if recipe.grad_checkpoint:
        checkpoint_layers(model)
    state = TrainState(model, recipe, make_schedule(recipe, 10))
    return state, make_step(state, recipe, Augment(recipe, 3, 16, [0.5] * 3, [0.25] * 3))


def batch(seed: int = 0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
    return mx.array(images), mx.array(rng.integers(0, 3, 8)), mx.ones(8)


def weights(state: TrainState) -> dict[str, np.ndarray]:
    return {n: np.array(v) for n, v in tree_flatten(state.model.trainable_parameters())}


def train(steps: int = 3, **options):
    state, step = setup(**options)
    metrics = [step(*batch(i)) for i in range(steps)]
    mx.eval(metrics, state.captured()[:3])
    return state, [float(m["loss"]) for m in metrics]


def assert_same(a: TrainState, b: TrainState, atol: float) -> None:
    b_weights = weights(b)
    for name, value in weights(a).items():
        np.testing.assert_allclose(value, b_weights[name], atol=atol, err_msg=name)


def test_compiled_is_the_same_as_not():
    # DropPath too: a compiled step that does not capture the random state repeats its masks.
    options = {**PLAIN, "drop_path": 0.5, "ema_decay": 0.9, "lr": 1e-2, "optimizer": "sgd"}
    plain, plain_losses = train(**options)
    fused, losses = train(**options, compile="yes")
    assert losses == pytest.approx(plain_losses, rel=1e-4)
    assert_same(plain, fused, atol=2e-4)


def test_every_step_draws_new_masks():
    # With a learning rate of 0 and one batch, only the random state can change the loss.
    _, step = setup(**{**PLAIN, "drop_path": 0.5}, lr=0.0, min_lr=0.0)
    losses = {round(float(step(*batch())["loss"]), 6) for _ in range(6)}
    assert len(losses) > 3


def test_micro_batches_add_up_to_the_batch():
    whole, losses = train(**PLAIN, lr=1e-3)
    parts, part_losses = train(**PLAIN, lr=1e-3, accumulate=4)
    assert part_losses == pytest.approx(losses, rel=1e-5)
    assert_same(whole, parts, atol=2e-4)


def test_gradient_checkpointing_changes_nothing():
    options = {"drop_path": 0.5, "lr": 1e-3}
    plain, losses = train(**options)
    twice, twice_losses = train(**options, grad_checkpoint=True)
    assert twice_losses == pytest.approx(losses, rel=1e-5)
    assert_same(plain, twice, atol=2e-4)


def test_gradient_checkpointing_is_of_layers_that_say_their_branches():
    rates = {"drop_rate": 0, "attn_drop_rate": 0, "drop_conv_rate": 0, "drop_path_rate": 0.5}
    music = AllInOne(AllInOneConfig(depth=2, **rates))
    x = mx.random.normal((2, 4, 12, 81))

    def gradients(seed: int = 3):
        mx.random.seed(seed)

        def loss(parameters):
            music.update(parameters)
            return sum(logits.square().mean() for logits in music(x))

        return mx.grad(loss)(music.trainable_parameters())

    music.train()
    plain = gradients()
    assert checkpoint_layers(music) == 4
    twice = dict(tree_flatten(gradients()))
    for name, value in tree_flatten(plain):
        np.testing.assert_allclose(value, twice[name], atol=1e-5, err_msg=name)
    with pytest.raises(ValueError, match="a Linear has none"):
        checkpoint_layers(nn.Linear(2, 2))


def test_gradient_checkpointing_needs_less_memory():
    def peak(**options) -> int:
        recipe = Recipe(compile="no", **PLAIN, **options)
        model = create_model("nat_pico_fashion", embed_dim=16, depths=(6,), num_heads=(2,),
                             kernel_size=3, in_chans=3, num_classes=3)  # fmt: skip
        model.train()
        if recipe.grad_checkpoint:
            assert checkpoint_layers(model) == 6
        state = TrainState(model, recipe, make_schedule(recipe, 10))
        step = make_step(state, recipe, Augment(recipe, 3, 16, [0.5] * 3, [0.25] * 3))
        mx.eval(state.captured()[:3])
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(step(*batch()), state.captured()[:3])
        return mx.get_peak_memory() - before

    assert peak(grad_checkpoint=True) < 0.6 * peak()


@pytest.mark.parametrize("schedule", ["cosine", "step"])
@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 1e-2), ("sgd", 1e-1), ("lion", 1e-2)])
def test_every_optimizer_learns_a_batch_by_heart(optimizer, lr, schedule):
    options = {**PLAIN, "optimizer": optimizer, "lr": lr, "schedule": schedule, "epochs": 3}
    _, step = setup(**options)
    losses = [float(step(*batch())["loss"]) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_what_is_frozen_stays_as_it_is_in_bfloat16_too():
    state, _ = setup(**PLAIN, dtype="bfloat16")
    state.model.levels[0].freeze()
    recipe = Recipe(**PLAIN, dtype="bfloat16", compile="no")
    frozen = TrainState(state.model, recipe, make_schedule(recipe, 10))
    before = {n: np.array(v) for n, v in tree_flatten(state.model.parameters())}
    step = make_step(frozen, recipe, Augment(recipe, 3, 16, [0.5] * 3, [0.25] * 3))
    for _ in range(2):
        step(*batch())
    after = {n: np.array(v) for n, v in tree_flatten(state.model.parameters())}
    same = {n for n in before if np.array_equal(before[n], after[n])}
    assert same >= {n for n in before if n.startswith("levels.0.")} and "head.weight" not in same


def test_bfloat16_learns_with_float32_masters():
    state, losses = train(**PLAIN, lr=1e-3, dtype="bfloat16")
    _, exact = train(**PLAIN, lr=1e-3)
    assert {v.dtype for _, v in tree_flatten(state.model.parameters())} == {mx.float32}
    assert losses == pytest.approx(exact, rel=0.03) and losses != exact
    # A step smaller than bfloat16 can resolve still moves the masters.
    still, _ = setup(**PLAIN, lr=1e-5, dtype="bfloat16")
    before = weights(still)
    moved, _ = train(1, **PLAIN, lr=1e-5, dtype="bfloat16")
    change = np.abs(weights(moved)["norm.weight"] - before["norm.weight"])
    assert 0 < change.max() < 1e-4


def test_the_gradient_is_clipped():
    state, step = setup(**PLAIN, optimizer="sgd", momentum=0.0, lr=1.0, clip_norm=0.01,
                        weight_decay=0.0)  # fmt: skip
    before = weights(state)
    norm = float(step(*batch())["grad_norm"])
    after = weights(state)
    moved = np.sqrt(sum(((after[n] - before[n]) ** 2).sum() for n in before))
    assert norm > 0.01 and moved == pytest.approx(0.01, rel=1e-3)


def test_the_average_follows_the_weights():
    state, _ = train(5, **PLAIN, ema_decay=0.5, lr=1e-2)
    now, mean = state.weights["now"], state.weights["mean"]
    assert 0 < mx.abs(now - mean).max() < 0.1
    state.show("mean")
    assert mx.array_equal(state.packing.pack(state.model.trainable_parameters()), mean)


def test_padding_counts_for_nothing_in_validation():
    recipe = Recipe(compile="no")
    state, _ = setup()
    state.model.eval()
    evaluate = make_evaluate(state.model, Augment(recipe, 3, 16, [0.5] * 3, [0.25] * 3))
    images, labels, _ = batch()
    correct, loss = evaluate(images, labels)
    first = mx.arange(8) < 5
    halves = [evaluate(images, mx.where(half, labels, -1)) for half in (first, ~first)]
    assert sum(int(c) for c, _ in halves) == int(correct)
    assert sum(float(x) for _, x in halves) == pytest.approx(float(loss), rel=1e-5)
