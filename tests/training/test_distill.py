"""Distillation: the two losses by their formulas, who may teach whom, a student that listens."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from natten_zoo.models import NAT, NATConfig
from natten_zoo.training import Recipe, Trainer
from natten_zoo.training.distill import Distillation, dissimilarity, distilled, soften
from natten_zoo.training.launch import make_trainer
from natten_zoo.training.step import soft_cross_entropy


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def test_soft_labels():
    rng = np.random.default_rng(0)
    s, t = rng.normal(size=(2, 5, 7)) * 4
    for temperature in (1.0, 3.0):
        p, q = softmax(t / temperature), softmax(s / temperature)
        wanted = temperature**2 * (p * np.log(p / q)).sum(-1).mean()
        assert soften(mx.array(s), mx.array(t), temperature).item() == pytest.approx(wanted, 1e-4)
    assert soften(mx.array(t), mx.array(t), 2.0).item() == pytest.approx(0, abs=1e-6)
    into_teacher = mx.grad(lambda t: soften(mx.array(s), t, 2.0))(mx.array(t))
    assert not into_teacher.any()


def test_alike():
    rng = np.random.default_rng(0)
    s, t = rng.normal(size=(6, 4, 4, 3)), rng.normal(size=(6, 2, 2, 8))
    grams = [x.reshape(6, -1) @ x.reshape(6, -1).T for x in (s, t)]
    ours, theirs = (g / np.linalg.norm(g, axis=1, keepdims=True) for g in grams)
    wanted = ((ours - theirs) ** 2).sum() / 6
    assert dissimilarity(mx.array(s), mx.array(t)).item() == pytest.approx(wanted, rel=1e-4)
    turned = np.linalg.qr(rng.normal(size=(48, 48)))[0]  # who is like whom stays
    same = (s.reshape(6, -1) @ turned).reshape(6, 48)
    assert dissimilarity(mx.array(s), mx.array(same)).item() == pytest.approx(0, abs=1e-5)
    assert mx.isfinite(
        mx.grad(lambda x: dissimilarity(x, mx.array(t)))(mx.zeros_like(mx.array(s)))
    ).all()


def net(seed, embed_dim=8):
    mx.random.seed(seed)
    config = NATConfig(embed_dim, (1, 1), (1, 2), kernel_size=3, num_classes=4)
    return NAT(config).eval()


@pytest.mark.parametrize(("share", "features"), [(0.0, 0.0), (0.6, 0.0), (0.6, 2.0)])
def test_the_objective_is_their_sum(recipe, share, features):
    student, teacher = net(0), net(1, embed_dim=16)
    x, targets = mx.random.normal((3, 32, 32, 3)), mx.eye(4)[mx.array([0, 3, 1])]
    options = recipe(teacher_share=share, teacher_features=features, teacher_stage=0)
    loss, right = distilled(teacher, options)(student, x, targets)
    logits = student(x)
    wanted = (1 - share) * soft_cross_entropy(logits, targets)
    wanted += share * soften(logits, teacher(x), options.temperature)
    wanted += features * dissimilarity(student.features(x)[0], teacher.features(x)[0])
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert right.item() == (logits.argmax(-1) == mx.array([0, 3, 1])).mean().item()


@pytest.fixture
def teacher(recipe, tmp_path):
    out = tmp_path / "teacher"
    make_trainer(recipe(out=str(out))).fit()
    return str(out / "best")


def test_a_student_listens(recipe, teacher, tmp_path):
    options = {"teacher": teacher, "teacher_share": 1.0, "teacher_features": 1.0}
    trainer = make_trainer(recipe(out=str(tmp_path / "student"), seed=5, epochs=3, **options))
    before = {k: mx.array(v) for k, v in flat(trainer.teacher).items()}
    result = trainer.fit()
    assert result["outcome"].startswith("finished")
    assert all(mx.array_equal(v, before[k]) for k, v in flat(trainer.teacher).items())
    again = make_trainer(recipe(out=str(tmp_path / "student"), seed=5, epochs=3, **options))
    assert again.fit()["outcome"] == "finished before"


def flat(model):
    return dict(tree_flatten(model.parameters()))


def test_who_may_not_teach(recipe, teacher):
    with pytest.raises(ValueError, match="must have the classes of the data"):
        make_trainer(recipe(teacher="nat_pico_fashion"))
    with pytest.raises(ValueError, match="its input_size is 16, not 24"):
        make_trainer(recipe(teacher=teacher, image_size=24))
    with pytest.raises(ValueError, match="7"):
        make_trainer(recipe(teacher=teacher, teacher_features=1.0, teacher_stage=7))
    with pytest.raises(ValueError, match="'temperature' must be positive"):
        recipe(temperature=0.0)
    with pytest.raises(ValueError, match="'teacher' must be left out for"):
        make_trainer(recipe(teacher=teacher, task="semantic", model="upernet_nat_mini"))


def test_the_recipe_compares_the_same_student(tmp_path):
    taught, alone = (
        make_trainer(Recipe.load("student_fashion", {"out": str(tmp_path / name), **options}))
        for name, options in (("taught", {}), ("alone", {"teacher": ""}))
    )
    assert isinstance(taught, Distillation) and type(alone) is Trainer
    student, teacher = (
        sum(v.size for v in flat(m).values()) for m in (alone.model, taught.teacher)
    )
    assert 0.29 < student / teacher < 0.31
    for name, weights in flat(alone.model).items():
        assert mx.array_equal(weights, flat(taught.model)[name]), name
