"""OneFormer and Mask2Former: every stage against the published code, names, sizes, refusals."""

import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from natten_zoo import create_model, get_record, list_models
from natten_zoo.models import (
    DiNATsConfig,
    Mask2Former,
    Mask2FormerConfig,
    NATConfig,
    OneFormer,
    OneFormerConfig,
)
from natten_zoo.models.cost import count_cost
from natten_zoo.models.oneformer import TASK_IDS, task_ids
from natten_zoo.models.universal import TASKS
from natten_zoo.models.universal_queries import visible
from natten_zoo.pretrained.strict import mismatches

from ..universal import (
    CLASSES,
    DATA,
    empty_arrays,
    given,
    hub_shapes,
    read_json,
    upstream_names,
)

BOTH = pytest.mark.parametrize("name", ["oneformer", "mask2former"])
ROOM = 1e-5
# Millions of parameters, as published.
SIZES = {"oneformer": 223.2, "mask2former": 219.9}
BODY = NATConfig(8, (1, 1, 1, 1), (1, 1, 2, 4), kernel_size=3, drop_path_rate=0.0)
TINY = {"channels": 32, "mask_channels": 32, "pixel_depth": 1, "depth": 2, "num_classes": 4}


def tiny(cls, **changes):
    mx.random.seed(0)
    return cls(cls.Config(BODY, **{**TINY, "num_queries": 6, **changes})).eval()


@BOTH
def test_body_and_pixel_decoder(name):
    case = given(name)
    maps = case.model.features(case.image)
    for i, ours in enumerate(maps):
        assert case.error(ours, f"backbone.{i}") < ROOM
    decoder = case.model.pixel_decoder
    inputs = {}

    class Probe:
        def __init__(self, layer):
            self.layer = layer

        def __call__(self, x, positions, sizes):
            inputs["attn"] = self.layer.attn(x, positions, sizes)
            inputs["layer"] = self.layer(x, positions, sizes)
            return inputs["layer"]

    first, *others = decoder.layers
    decoder.layers = [Probe(first), *others]
    try:
        pixels = decoder(maps)
    finally:
        decoder.layers = [first, *others]
    assert case.error(inputs["attn"], "deform0_out") < ROOM
    assert case.error(inputs["layer"], "pixel_encoder0_out") < ROOM
    for i, ours in enumerate(pixels.scales):
        assert case.error(ours, f"multi_scale.{i}") < ROOM
    sample = (slice(None), slice(None, None, 4))
    assert case.error(pixels.mask_features, "mask_features_sample", chosen=sample) < ROOM


def test_task_token_and_object_queries():
    case = given("oneformer")
    pixels = case.model.pixel_decoder(case.model.features(case.image))
    ids = mx.array(case.arrays["task_inputs"][0])
    assert case.error(case.model.task_mlp(ids[None]), "task_token") < ROOM
    queries = case.model.start(ids, pixels)
    assert case.error(queries[:, :-1], "object_queries") < ROOM
    np.testing.assert_array_equal(queries[:, -1:], case.model.task_token(ids))


@BOTH
def test_decoder(name):
    case, model = given(name), given(name).model
    pixels = model.pixel_decoder(model.features(case.image))
    if name == "oneformer":
        queries = model.start(mx.array(case.arrays["task_inputs"][0]), pixels)
    else:
        queries = model.query_features[None]
    passed = []
    call = type(model.decoder.head).__call__

    def recording(head, x, mask_features):
        passed.append(x)
        return call(head, x, mask_features)

    type(model.decoder.head).__call__ = recording
    try:
        found = model.decoder(queries, pixels)
    finally:
        type(model.decoder.head).__call__ = call
    for i, ours in enumerate(passed[1:]):
        assert case.error(ours, f"decoder.{i}") < ROOM
    assert case.error(mx.stack([each.classes for each in found]), "layer_class_logits") < ROOM
    assert case.error(found[0].masks, "layer_mask_logits") < ROOM
    assert case.error(found[-1].classes, "class_logits") < ROOM
    assert case.error(found[-1].masks, "mask_logits") < ROOM
    blocked = case.arrays["layer_rows_fully_masked"]
    for i, rows in enumerate(blocked):
        seen = visible(found[i].masks, pixels.scales[i % 3])
        assert np.array(seen.all(-1))[:, 0][rows].all()
    assert blocked.any() == (name == "mask2former")  # whose rows all are


def test_the_task_changes_what_a_oneformer_finds():
    with open(DATA / "task_ids.json") as file:
        published = json.load(file)
    assert {task: task_ids(task).tolist() for task in TASKS} == published
    assert set(TASK_IDS) == set(TASKS)
    x = given("oneformer").image
    found = [given("oneformer").model(x, task).classes for task in TASKS]
    assert not np.allclose(found[0], found[1]) and not np.allclose(found[1], found[2])
    same = given("mask2former")
    assert mx.array_equal(same.model(x, "semantic").masks, same.model(x, "instance").masks)
    for case in (given("oneformer"), same):
        with pytest.raises(ValueError, match="'task' must be one of panoptic, instance, semantic"):
            case.model(x, "depth")


@BOTH
def test_any_size_and_batch(name):
    model = given(name).model
    x = mx.random.normal((2, 57, 83, 3))
    found = model(x)
    assert found.masks.shape == (2, 15, 21, 10) and found.classes.shape == (2, 10, 7)
    for image in range(2):
        alone = model(x[image : image + 1])
        np.testing.assert_allclose(alone.masks[0], found.masks[image], atol=2e-3)


@BOTH
@pytest.mark.parametrize("dtype, room", [(mx.float16, 0.03), (mx.bfloat16, 0.25)])
def test_half_precision(name, dtype, room):
    case = given(name)
    model = case.cls(case.model.config).eval()
    model.update(case.model.parameters())
    model.set_dtype(dtype)
    pixels = model.pixel_decoder(model.features(case.image.astype(dtype)))
    assert pixels.mask_features.dtype == dtype
    sample = (slice(None), slice(None, None, 4))
    features = pixels.mask_features.astype(mx.float32)
    assert case.error(features, "mask_features_sample", chosen=sample) < room
    found = model(case.image.astype(dtype), "semantic")
    assert found.classes.dtype == found.masks.dtype == dtype
    assert mx.isfinite(found.masks).all()


def test_the_words_of_a_task_are_not_rounded():
    model = tiny(OneFormer)
    token = model.task_token(task_ids("panoptic"))
    model.set_dtype(mx.bfloat16)
    half = model.task_token(task_ids("panoptic"))
    assert half.dtype == mx.bfloat16
    np.testing.assert_allclose(half.astype(mx.float32), token, atol=0.05)


# Names and sizes of the published files.


@pytest.mark.parametrize("name", list_models("oneformer*") + list_models("mask2former*"))
def test_files_of_every_variant_fit(name):
    model, shapes = create_model(name), hub_shapes(name)
    family = type(model).__name__.lower()
    own = {key: value.shape for key, value in tree_flatten(model.parameters())}
    empty = {key: mx.zeros(shape) for key, shape in shapes.items()}
    assert {key: value.shape for key, value in model.sanitize(empty).items()} == own
    upstream = upstream_names(family, empty_arrays(shapes))
    assert len(upstream) < len(shapes)  # of queries, keys and values it has one weight
    empty = {key: mx.zeros(value.shape) for key, value in upstream.items()}
    assert {key: value.shape for key, value in model.sanitize(empty).items()} == own


def test_every_published_variant_is_there():
    records = [get_record(n) for n in list_models("oneformer*") + list_models("mask2former*")]
    assert len({record.url for record in records}) == 15
    assert len([record for record in records if record.hub]) == 3
    for record in records:
        assert record.has_weights and record.license == "MIT" and record.parity == "generated"
        figures = {"panoptic": record.pq, "instance": record.ap}
        figures["semantic"] = record.miou or record.miou_multi_scale
        if record.name != "oneformer_mapillary_dinat_large":  # no average precision is published
            assert {task for task, value in figures.items() if value} == set(record.tasks)


@pytest.mark.parametrize("name", list_models("oneformer*") + list_models("mask2former*"))
def test_figures(name):
    record, model = get_record(name), create_model(name).eval()
    side = record.input_size
    cost = count_cost(model, mx.zeros((1, side, side, 3)))
    assert (cost.params, cost.macs) == (record.params, round(record.gmacs * 1e9))
    assert cost.params / 1e6 == pytest.approx(SIZES[record.architecture.lower()], abs=0.3)
    if "mask2former" in name and "coco" in name:
        assert cost.macs / 1e9 == pytest.approx(522, abs=0.5)  # as published


def test_what_only_training_uses_is_left_out_and_nothing_else():
    case = given("oneformer")
    training = read_json("keys_oneformer_training.json.gz")
    weights = {key: mx.array(value) for key, value in case.weights.items()}
    extra = {key: mx.zeros(shape) for key, shape in training.items()}
    upstream = ("text_encoder.ln.weight", "text_projector.layers.0.weight", "prompt_ctx.weight")
    extra |= {key: mx.zeros(3) for key in (*upstream, "criterion.logit_scale")}
    assert not mismatches(case.model, case.model.sanitize({**weights, **extra}))
    for key in ("model.text_head.weight", "sem_seg_head.predictor.extra.weight", "ema.criterion"):
        lines = mismatches(case.model, case.model.sanitize({**weights, key: mx.zeros(3)}))
        assert len(lines) == 1 and "unexpected" in lines[0]


def test_an_old_name_of_upstream():
    case = given("mask2former")
    weights = upstream_names("mask2former", case.weights)
    old = "sem_seg_head.predictor.query_feat.weight"
    weights["sem_seg_head.predictor.static_query.weight"] = weights.pop(old)
    arrays = {key: mx.array(value) for key, value in weights.items()}
    assert not mismatches(case.model, case.model.sanitize(arrays))


# Configurations.


@BOTH
@pytest.mark.parametrize("change, message", [
    ({"conv_dim": 48, "feature_size": 48}, "lacks its weights"),
    ({"enforce_input_proj": True, "enforce_input_projection": True}, "lacks its weights"),
    ({"pre_norm": True}, "pre_norm must be false: that branch of the code forgets the masks"),
    ({"is_training": True, "dropout": 0.1}, "is_training must be false"),
    ({"common_stride": 8}, "common_stride must be 4 but is 8"),
    ({"activation_function": "gelu"}, "activation_function must be relu but is gelu"),
    ({"use_task_norm": False}, "use_task_norm must be True but is False"),
    ({"backbone_config": {"model_type": "swin"}}, "must be a nat or a dinat but is 'swin'"),
])  # fmt: skip
def test_what_hugging_face_cannot_compute_is_refused(name, change, message):
    case = given(name)
    with pytest.raises(ValueError, match=message):
        case.cls.Config.from_huggingface({**case.hub_config, **change})


def test_configuration_of_hugging_face():
    config = OneFormerConfig.from_huggingface(
        {"backbone_config": {"model_type": "dinat", "embed_dim": 192, "depths": [3, 4, 18, 5],
                             "num_heads": [6, 12, 24, 48], "kernel_size": 11,
                             "dilations": [[1] * depth for depth in (3, 4, 18, 5)]}}
    )  # fmt: skip
    assert (config.num_queries, config.depth, config.query_depth) == (150, 9, 2)
    assert (config.channels, config.hidden, config.pixel_hidden) == (256, 2048, 1024)
    assert Mask2FormerConfig(BODY).num_queries == 100


@pytest.mark.parametrize("cls", CLASSES.values())
def test_configuration(cls):
    config = tiny(cls).config
    assert cls.Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    values = config.to_dict()
    assert cls.Config.from_dict({**values, "in_chans": 1}).backbone.in_chans == 1
    with pytest.raises(ValueError, match=r"\[NATConfig\] arguments must be among .* got chanels"):
        cls.Config.from_dict({**values, "chanels": 8})
    with pytest.raises(ValueError, match="'backbone' must be a NATConfig of four levels"):
        cls.Config(NATConfig(8, (1, 1), (1, 1)))
    with pytest.raises(ValueError, match="'backbone' must be a NATConfig of four levels"):
        cls.Config(DiNATsConfig(8, (1, 1, 1, 1), (1, 1, 1, 1)))
    with pytest.raises(ValueError, match="'channels' must be a multiple of 32"):
        cls.Config(BODY, channels=40, mask_channels=40)
    with pytest.raises(ValueError, match="'num_queries' must be positive but got 0"):
        cls.Config(BODY, num_queries=0)


def test_a_oneformer_needs_masks_as_wide_as_queries():
    with pytest.raises(ValueError, match="'mask_channels' must be 'channels'"):
        OneFormerConfig(BODY, channels=32, mask_channels=64)
    assert tiny(Mask2Former, mask_channels=48)(mx.zeros((1, 32, 32, 3))).masks.shape[-1] == 6


@pytest.mark.parametrize("cls", CLASSES.values())
def test_classifier(cls):
    model = tiny(cls)
    x = mx.random.normal((1, 40, 56, 3))
    model.reset_classifier(9)
    assert model(x).classes.shape == (1, 6, 10) and model.config.num_classes == 9
    model.reset_classifier(0)
    assert model(x).classes.shape == (1, 6, 32)
