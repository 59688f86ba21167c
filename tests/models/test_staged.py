"""Backbones: the maps of every family's stages in timm's words, frozen stages, named dilations."""

import logging

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from natten_zoo import attention_maps, create_model
from natten_zoo.configs import load_page, named_dilations
from natten_zoo.models import (
    NAT,
    NAT1D,
    NAT3D,
    DiNAT,
    DiNAT_s,
    DiNATsConfig,
    IsotropicConfig,
    IsotropicNAT,
    NAT1DConfig,
    NAT3DConfig,
    NATConfig,
    UPerNet,
    UPerNetConfig,
    get_record,
)
from natten_zoo.models.staged import Backbone, FeatureInfo

LEVELS = {"depths": (1, 2, 1), "num_heads": (1, 2, 4), "drop_path_rate": 0.3, "num_classes": 5}
FAMILIES = {
    "NAT": lambda: NAT(NATConfig(8, kernel_size=3, **LEVELS)),
    "DiNAT": lambda: DiNAT(NATConfig(8, kernel_size=3, dilations=((2,), (1, 4), (1,)), **LEVELS)),
    "DiNAT_s": lambda: DiNAT_s(DiNATsConfig(8, kernel_size=3, **LEVELS)),
    "NAT3D": lambda: NAT3D(NAT3DConfig(8, kernel_size=(3, 3, 3), **LEVELS)),
    "isotropic": lambda: IsotropicNAT(IsotropicConfig(16, depth=5, num_heads=2, num_classes=5)),
    "NAT1D": lambda: NAT1D(NAT1DConfig(8, 2, (1, 2, 1), 3, num_classes=5)),
}
SHAPES = {"NAT3D": (2, 8, 37, 50, 3), "NAT1D": (2, 61, 1)}
EVERY = pytest.mark.parametrize("family", FAMILIES)


def make(family):
    mx.random.seed(0)
    model = FAMILIES[family]().eval()
    return model, mx.random.normal(SHAPES.get(family, (2, 37, 50, 3)))


@EVERY
def test_feature_info_is_true(family):
    model, x = make(family)
    maps = model.features(x)
    assert len(maps) == len(model.feature_info) == len(model.stage_parts())
    modules = dict(model.named_modules())
    for y, info in zip(maps, model.feature_info, strict=True):
        assert y.shape[-1] == info.channels and info.name in modules
        assert y.shape[-2] == -(-x.shape[-2] // info.reduction)
    assert model.num_classes == 5 and model.num_features == model.feature_info[-1].channels


@EVERY
def test_intermediates(family):
    model, x = make(family)
    last, maps = model.forward_intermediates(x)
    for ours, theirs in zip(maps, model.features(x), strict=True):
        assert mx.array_equal(ours, theirs)
    np.testing.assert_allclose(model.forward_head(last), model(x), atol=1e-5)
    pooled = model.forward_head(last, pre_logits=True)
    np.testing.assert_allclose(pooled, model.forward_features(x), atol=1e-5)
    assert mx.array_equal(model.forward_head(pooled), model.forward_head(last))
    first, final = model.forward_intermediates(x, (0, -1), intermediates_only=True)
    assert mx.array_equal(first, maps[0]) and mx.array_equal(final, maps[-1])
    two = model.get_intermediate_layers(x, 2)
    assert len(two) == 2 and mx.array_equal(two[0], maps[-2])
    (normed,) = model.get_intermediate_layers(x, norm=True)
    assert mx.array_equal(normed, last)
    if model.feature_info[0].channels != model.num_features:
        with pytest.raises(ValueError, match="'norm' must be False for maps of other channels"):
            model.forward_intermediates(x, (0,), norm=True)
    for wrong in (9, (9,), 0):
        with pytest.raises(ValueError, match=r"must be in"):
            model.forward_intermediates(x, wrong)


@EVERY
def test_backbone(family):
    model, x = make(family)
    maps, info = model.features(x), model.feature_info
    backbone = model.as_backbone((0, -1))
    assert backbone is model and isinstance(model, Backbone) and backbone.num_classes == 0
    assert isinstance(backbone, FAMILIES[family]().__class__)
    assert backbone.feature_info == [info[0], info[-1]]
    for ours, theirs in zip(backbone(x), [maps[0], maps[-1]], strict=True):
        assert mx.array_equal(ours, theirs)
    names = [name for name, _ in tree_flatten(backbone.parameters())]
    assert not any(name.startswith(("norm.", "head.")) for name in names)
    last, (only,) = backbone.forward_intermediates(x, (0,))
    assert mx.array_equal(only, maps[0]) and mx.array_equal(last, maps[-1])
    with pytest.raises(ValueError, match="has no classifier"):
        backbone.forward_head(last)
    with pytest.raises(ValueError, match="has no classifier"):
        backbone.reset_classifier(3)
    with pytest.raises(ValueError, match="must be called on a whole model"):
        backbone.save_pretrained("nowhere")


@EVERY
def test_a_backbone_has_a_norm_per_stage(family):
    model, x = make(family)
    maps = model.features(x)
    backbone = model.as_backbone(norms=True)
    assert {f"norm{i}.weight" for i in range(len(maps))} < dict(
        tree_flatten(backbone.parameters())
    ).keys()
    for ours, theirs in zip(backbone(x), maps, strict=True):
        np.testing.assert_allclose(ours, mx.fast.layer_norm(theirs, None, None, 1e-5), atol=1e-5)
    _, normed = backbone.forward_intermediates(x, norm=True)
    assert mx.array_equal(normed[0], backbone(x)[0])


@EVERY
def test_frozen_stages(family):
    model, x = make(family)
    model.train()
    every = dict(tree_flatten(model.trainable_parameters()))
    model.freeze_stages(2)
    trained = dict(tree_flatten(model.trainable_parameters())).keys()
    frozen = [f"{info.name}." for info in model.feature_info[:2]]
    assert not any(name.startswith(("patch_embed.", *frozen)) for name in trained)
    assert any(name.startswith(f"{model.feature_info[-1].name}.") for name in trained)
    first, free = (model.stage_parts()[index][0] for index in (0, -1))
    for mode in (True, False):
        model.train(mode)
        assert not first.training and free.training == mode and model.training == mode
    gradients = nn.value_and_grad(model, lambda x: model(x).sum())(x)[1]
    assert dict(tree_flatten(gradients)).keys() == trained
    model.freeze_stages(0)
    model.train()
    assert dict(tree_flatten(model.trainable_parameters())).keys() == every.keys()
    assert model.stage_parts()[0][0].training
    with pytest.raises(ValueError, match=r"'count' must be in 0\.\."):
        model.freeze_stages(9)


@EVERY
def test_gradient_checkpointing_per_stage(family):
    model, x = make(family)
    model.train()

    def gradient():
        mx.random.seed(1)
        return nn.value_and_grad(model, lambda x: (model(x) ** 2).sum())(x)

    loss, expected = gradient()
    layers = model.set_grad_checkpointing([-1])
    assert layers == 1 + (family == "isotropic")
    again, gradients = gradient()
    assert again.item() == pytest.approx(loss.item(), rel=1e-5)
    for (_, ours), (_, theirs) in zip(tree_flatten(gradients), tree_flatten(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(1, mx.abs(theirs).max().item()))
    with pytest.raises(ValueError, match="stages must be in"):
        model.set_grad_checkpointing([9])


def test_create_model(tmp_path, caplog):
    backbone = create_model("nat_mini", features_only=True, out_indices=(1, 3))
    assert backbone.feature_info == [
        FeatureInfo(128, 8, "levels.1"),
        FeatureInfo(512, 32, "levels.3"),
    ]
    classifier = create_model("nat_pico_fashion", pretrained=True)
    with caplog.at_level(logging.WARNING, "natten_zoo"):
        backbone = create_model("nat_pico_fashion", pretrained=True, features_only=True)
    assert "its classifier of 10 classes are dropped for a backbone" in caplog.text
    x = mx.random.normal((1, 28, 28, 1))
    assert mx.array_equal(backbone(x)[-1], classifier.features(x)[-1]) and not backbone.training
    with pytest.raises(ValueError, match="'features_only' must be False: a UPerNet is no backbone"):
        create_model("upernet_nat_mini", features_only=True)
    with pytest.raises(ValueError, match="'out_indices' must be None without 'features_only'"):
        create_model("nat_mini", out_indices=(1,))


def test_upernet_stands_on_a_backbone():
    model = UPerNet(UPerNetConfig(NATConfig(8, (1, 1), (1, 2), kernel_size=3), channels=8))
    assert isinstance(model.backbone, Backbone) and model.backbone.out_indices == (0, 1)


# Dilations by name.


def test_dilations_are_those_of_the_published_configurations():
    def published(name):
        dilations = get_record(name).model["backbone"]["dilations"]
        return tuple(map(tuple, dilations))

    large, mini = (3, 4, 18, 5), (3, 4, 6, 5)
    assert named_dilations("segmentation-512", mini) == published("upernet_dinat_mini")
    assert named_dilations("segmentation-512", large) == published("upernet_dinat_tiny")
    assert named_dilations("segmentation-640", large) == published("upernet_dinat_large")
    tiny_s, large_s = (2, 2, 6, 2), (2, 2, 18, 2)
    assert named_dilations("dinat_s-segmentation-512", tiny_s) == published("upernet_dinat_s_tiny")
    assert named_dilations("dinat_s-segmentation-640", large_s) == published(
        "upernet_dinat_s_large"
    )
    for name, model in (
        ("oneformer-640", "oneformer_ade20k_dinat_large"),
        ("oneformer-1280", "oneformer_ade20k_dinat_large_1280"),
        ("oneformer-cityscapes", "oneformer_cityscapes_dinat_large"),
        ("mask2former", "mask2former_dinat_large_coco_panoptic"),
    ):
        assert named_dilations(name, large) == published(model)
    for name in load_page("dilations"):
        # 800 pixels are 200 tokens: seven times 28 of them, and so on.
        if name == "detection-800":
            for level, dilations in enumerate(named_dilations(name, large)):
                assert 7 * max(dilations) <= 200 // 2**level


def test_dilations_by_name():
    model = create_model("dinat_mini", features_only=True, dilations="detection-800")
    assert model.levels[0].blocks[1].attn.neighborhood.dilation == (28, 28)
    assert model.config.to_dict()["dilations"][0] == [1, 28, 1]
    with pytest.raises(ValueError, match=r"must be lists or one of segmentation-512, .* got 'x'"):
        create_model("dinat_mini", dilations="x")
    with pytest.raises(ValueError, match="'depths' must be those that 'segmentation-640' is for"):
        create_model("dinat_mini", dilations="segmentation-640")


# Attention weights.


@EVERY
def test_attention_maps(family):
    model, x = make(family)
    maps = attention_maps(model, x)
    layers = [m for stage in model.stage_parts() for part in stage for m in part.modules()]
    assert len(maps) == sum(hasattr(m, "project_qkv") for m in layers)
    for weights in maps.values():
        assert weights.shape[0] == 2 and weights.dtype == mx.float32
        np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)


def test_attention_maps_are_what_the_layer_does():
    model = NAT(NATConfig(8, (1,), (2,), kernel_size=3)).eval()
    x = mx.random.normal((2, 40, 40, 3))
    (weights,) = attention_maps(model, x).values()
    block = model.levels[0].blocks[0]
    seen = block.norm1(model.patch_embed(x))
    value = block.attn.project_qkv(seen)[2]  # [B, 10, 10, heads, head_dim]
    window = mx.stack(
        [value[:, 3 + i : 6 + i, 3 + j : 6 + j] for i in (0, 1) for j in (0, 1)], axis=0
    )
    for index, (row, column) in enumerate([(4, 4), (4, 5), (5, 4), (5, 5)]):
        keys = window[index].flatten(1, 2)  # [B, 9, heads, head_dim]
        out = mx.einsum("bhk,bkhd->bhd", weights[:, row, column], keys).flatten(1)
        ours = block.attn(seen)[:, row, column]
        np.testing.assert_allclose(block.attn.proj(out), ours, atol=1e-5)
