"""Segments of synthetic masks against the published code: the authors' rules, Hugging Face's."""

import json

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo.models.universal_queries import Masks
from natten_zoo.tasks import mask_rules, mask_rules_huggingface
from natten_zoo.tasks.mask_rules import Frame

from ..universal import DATA, given

EQUAL = 0.999  # near ties may fall to the other side
with np.load(DATA / "post_given.npz") as file:
    POST = dict(file)
META = json.loads(str(POST["meta"]))
IMAGES = pytest.mark.parametrize("image", [0, 1])
THRESHOLDS = pytest.mark.parametrize("case", META["post"], ids=lambda case: case["name"])


def found(image: int) -> Masks:
    masks = POST["mask_logits"][image : image + 1].transpose(0, 2, 3, 1)
    return Masks(mx.array(POST["class_logits"][image : image + 1]), mx.array(masks))


def frame(image: int) -> Frame:
    """What the published code was given: a padded image of four times the masks' size."""
    height, width = (4 * n for n in POST["mask_logits"].shape[2:])
    return Frame((height, width), (height - 5, width - 9), tuple(META["target_sizes"][image]))


def share(ours, theirs) -> float:
    assert ours.shape == theirs.shape
    return float(np.mean(ours == theirs))


@pytest.fixture(params=[mask_rules.BAND, 5000], ids=["whole", "bands"], autouse=True)
def bands(request, monkeypatch):
    monkeypatch.setattr(mask_rules, "BAND", request.param)


@IMAGES
def test_original_semantic(image):
    ours = mask_rules.semantic(found(image), frame(image))
    assert share(ours, POST[f"original.{image}.semantic"]) > EQUAL


@IMAGES
def test_original_panoptic(image):
    numbers, segments = mask_rules.panoptic(found(image), frame(image), META["thing_ids"])
    key = f"original.{image}.panoptic."
    assert share(numbers, POST[key + "segmentation"]) > EQUAL
    rows = [[part.id, part.label, int(part.is_thing)] for part in segments]
    assert rows == POST[key + "id_label_isthing"].tolist()
    for part in segments:
        assert part.area == (numbers == part.id).sum() and 0.5 < part.score <= 1


@IMAGES
@pytest.mark.parametrize("name, options", [
    ("original", {}),
    ("original_demo", {"keep": 0.5}),
    ("original_things", {"things": META["thing_ids"]}),
])  # fmt: skip
def test_original_instances(image, name, options):
    segments = mask_rules.instances(found(image), frame(image), **options)
    key = f"{name}.{image}.instance."
    order = np.argsort(-POST[key + "score"], kind="stable")
    np.testing.assert_allclose([part.score for part in segments], POST[key + "score"][order], 1e-5)
    assert [part.label for part in segments] == POST[key + "label"][order].tolist()
    ours = np.stack([part.runs.mask() for part in segments])
    assert share(ours, POST[key + "masks"][order] == 1) > EQUAL
    assert [part.area for part in segments] == ours.sum(axis=(1, 2)).tolist()
    assert [part.id for part in segments] == list(range(1, len(segments) + 1))


def test_top_counts_pairs():
    segments = mask_rules.instances(found(0), frame(0), top=3)
    assert len(segments) == 3 and len(mask_rules.instances(found(0), frame(0), top=30)) == 30


@IMAGES
@pytest.mark.parametrize("name", ["oneformer", "mask2former"])
def test_huggingface_semantic(image, name):
    square, size = name == "mask2former", tuple(META["target_sizes"][image])
    ours = mask_rules_huggingface.semantic(found(image), size, square=square)
    assert share(ours, POST[f"{name}.semantic.{image}"]) > EQUAL
    ours = mask_rules_huggingface.semantic(found(image), square=square)
    assert share(ours, POST[f"{name}.semantic_native.{image}"]) > EQUAL


def check(numbers, segments, key, fused):
    assert share(numbers, POST[key + "segmentation"]) > EQUAL
    rows = [[part.id, part.label, int(part.label in fused)] for part in segments]
    assert rows == POST[key + "id_label_fused"].tolist()
    np.testing.assert_allclose([part.score for part in segments], POST[key + "score"], atol=1e-5)


@IMAGES
@THRESHOLDS
@pytest.mark.parametrize("name", ["oneformer", "mask2former"])
def test_huggingface_panoptic(image, name, case):
    numbers, segments = mask_rules_huggingface.panoptic(
        found(image),
        tuple(META["target_sizes"][image]),
        square=name == "mask2former",
        stuff=case["fuse"],
        keep=case["threshold"],
        inside=case["mask_threshold"],
        overlap=case["overlap"],
    )
    check(numbers, segments, f"{name}.{case['name']}.panoptic.{image}.", case["fuse"])


@IMAGES
@THRESHOLDS
@pytest.mark.parametrize("kind, things", [
    ("instance_sorted", None), ("instance_things_sorted", META["thing_ids"])
])  # fmt: skip
def test_huggingface_instances_of_a_oneformer(image, case, kind, things):
    numbers, segments = mask_rules_huggingface.instances(
        found(image),
        tuple(META["target_sizes"][image]),
        things=things,
        keep=case["threshold"],
        inside=case["mask_threshold"],
        overlap=case["overlap"],
    )
    check(numbers, segments, f"oneformer.{case['name']}.{kind}.{image}.", ())


@IMAGES
@THRESHOLDS
def test_huggingface_instances_of_a_mask2former(image, case):
    size = tuple(META["target_sizes"][image])
    numbers, segments = mask_rules_huggingface.square_instances(
        found(image), size, keep=case["threshold"]
    )
    check(numbers, segments, f"mask2former.{case['name']}.instance_sorted.{image}.", ())


@pytest.mark.parametrize("name", ["oneformer", "mask2former"])
def test_from_a_models_own_output(name):
    """The tiny model's masks, whose scores are low: nothing is found, then something."""
    arrays, square = given(name).arrays, name == "mask2former"
    masks = Masks(
        mx.array(arrays["class_logits"]), mx.array(arrays["mask_logits"].transpose(0, 2, 3, 1))
    )
    size = (96, 120)
    ours = mask_rules_huggingface.semantic(masks, size, square=square)
    assert share(ours, arrays["semantic.0"]) > EQUAL
    numbers, segments = mask_rules_huggingface.panoptic(masks, size, square=square)
    assert share(numbers, arrays["default.panoptic.0.segmentation"]) == 1 and not segments
    assert (numbers == -1).all()
    numbers, segments = mask_rules_huggingface.panoptic(
        masks, size, square=square, stuff=[0, 2, 5], keep=0.2, inside=0.1, overlap=0.2
    )
    assert share(numbers, arrays["low.panoptic.0.segmentation"]) > EQUAL
    assert len(segments) == len(arrays["low.panoptic.0.score"])


def test_nothing_found():
    classes, sizes = mx.zeros((1, 4, 3)) + mx.array([0.0, 0.0, 9.0]), Frame((8, 8), (8, 8), (5, 6))
    nothing = Masks(classes, mx.ones((1, 2, 2, 4)))
    numbers, segments = mask_rules.panoptic(nothing, sizes, [0])
    assert numbers.shape == (5, 6) and not numbers.any() and not segments
    assert mask_rules.instances(nothing, sizes, keep=0.5) == []


def test_equal_scores_fall_to_the_earlier_query():
    """Two queries that found the same: all pixels are the first one's, and it is listed first."""
    classes = mx.array([[[9.0, 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, 9.0, 0.0]]])
    masks = mx.broadcast_to(mx.array([5.0, 5.0, -5.0]), (1, 2, 2, 3))
    numbers, segments = mask_rules.panoptic(
        Masks(classes, masks), Frame((8, 8), (8, 8), (4, 4)), [0, 1]
    )
    assert (numbers == 1).all() and [part.label for part in segments] == [0]
    pairs = mask_rules.best_pairs(classes)
    assert pairs[0].tolist() == [0, 1, 2] and pairs[1].tolist() == [0, 0, 1]


def test_memory_does_not_grow_with_the_queries(monkeypatch):
    size = Frame((128, 128), (120, 128), (150, 130))

    def peak(queries: int, band: int) -> float:
        """MiB beside the masks, as they came and turned."""
        monkeypatch.setattr(mask_rules, "BAND", band)
        masks = mx.broadcast_to(mx.arange(queries) - 3.0, (1, 32, 32, queries)) + 0.0
        classes = mx.zeros((1, queries, 8)) + mx.array([3.0, *[0.0] * 7])
        mx.eval(masks, classes)
        mx.reset_peak_memory()
        before = mx.get_active_memory() + 3 * masks.nbytes
        mask_rules.panoptic(Masks(classes, masks), size, range(7), keep=0.0, overlap=0.0)
        mask_rules.instances(Masks(classes, masks), size)
        mask_rules.semantic(Masks(classes, masks), size)
        return (mx.get_peak_memory() - before) / 2**20

    few, many, at_once = peak(10, 2**15), peak(200, 2**15), peak(200, 2**40)
    assert many < few + 2 and many < at_once / 4
