"""What models do beside their numbers: features, heads, sizes, overrides, configurations."""

import json

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo import create_model
from natten_zoo.models import (
    NAT,
    NAT1D,
    NAT3D,
    NAUNETR,
    DiNAT,
    DiNAT_s,
    DiNATsConfig,
    IsotropicConfig,
    IsotropicNAT,
    NAT1DConfig,
    NAT3DConfig,
    NATConfig,
    NAUNETRConfig,
    UPerNet,
    UPerNetConfig,
)

CONFIGS = {
    NAT: NATConfig(8, (1, 1, 1, 1), (1, 2, 4, 8), kernel_size=3, num_classes=5),
    DiNAT: NATConfig(
        8, (1, 2), (1, 2), kernel_size=3, dilations=((2,), (1, 3)), layer_scale=0.1, num_classes=5
    ),
    DiNAT_s: DiNATsConfig(8, (1, 1, 1, 1), (1, 2, 4, 8), kernel_size=3, num_classes=5),
    IsotropicNAT: IsotropicConfig(16, 2, depth=4, kernel_size=3, dilation=2, num_classes=5),
}
ALL = pytest.mark.parametrize("cls", CONFIGS)


def build(cls, **changes):
    mx.random.seed(0)
    config = cls.Config.from_dict({**CONFIGS[cls].to_dict(), **changes})
    return cls(config).eval()


@ALL
@pytest.mark.parametrize("size", [(32, 32), (61, 45), (17, 100)])
def test_any_input_size(cls, size):
    model = build(cls)
    x = mx.random.normal((2, *size, 3))
    assert model(x).shape == (2, 5)
    assert model.forward_features(x).shape == (2, model.num_features)
    assert mx.isfinite(model(x)).all()


@pytest.mark.parametrize("cls", [NAT, DiNAT_s])
def test_features_are_the_four_stage_maps(cls):
    maps = build(cls).features(mx.zeros((1, 64, 96, 3)))
    assert [m.shape for m in maps] == [
        (1, 16, 24, 8), (1, 8, 12, 16), (1, 4, 6, 32), (1, 2, 3, 64),
    ]  # fmt: skip


def test_features_of_isotropic_models_are_quarters():
    model = build(IsotropicNAT, depth=12)
    x = mx.random.normal((1, 64, 64, 3))
    maps = model.features(x)
    assert [m.shape for m in maps] == [(1, 4, 4, 16)] * 4
    assert mx.array_equal(model.norm(maps[-1]).mean((1, 2)), model.forward_features(x))


@ALL
def test_reset_classifier(cls):
    model = build(cls)
    x = mx.random.normal((1, 32, 32, 3))
    features = model.forward_features(x)
    model.reset_classifier(7)
    assert model(x).shape == (1, 7) and model.config.num_classes == 7
    assert mx.array_equal(model.forward_features(x), features)
    model.reset_classifier(0)
    assert mx.array_equal(model(x), features)
    for wrong in (-1, 2.5, "3", True):
        with pytest.raises(ValueError, match="'num_classes' must be an integer from 0 but got"):
            model.reset_classifier(wrong)
    assert model.config.num_classes == 0 and mx.array_equal(model(x), features)
    model.reset_classifier(np.int64(3))
    assert json.loads(json.dumps(model.config.to_dict()))["num_classes"] == 3


@ALL
def test_samples_do_not_mix(cls):
    model = build(cls)
    x = mx.random.normal((3, 48, 48, 3))
    np.testing.assert_allclose(model(x)[1:2], model(x[1:2]), rtol=1e-4, atol=1e-6)


@ALL
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision(cls, dtype):
    model = build(cls)
    x = mx.random.normal((1, 48, 48, 3))
    full = model(x)
    model.set_dtype(dtype)
    half = model(x.astype(dtype))
    assert half.dtype == dtype
    tolerance = 0.02 if dtype == mx.float16 else 0.08
    assert mx.abs(half - full).max() < tolerance * mx.abs(full).max()


@ALL
def test_configuration_survives_json(cls):
    config = CONFIGS[cls]
    assert cls.Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_and_missing_arguments_are_refused():
    with pytest.raises(ValueError, match=r"\[NATConfig\] .* among embed_dim, .* but got window"):
        NATConfig.from_dict({"embed_dim": 8, "depths": [1], "num_heads": [1], "window": 3})
    with pytest.raises(ValueError, match=r"\[NATConfig\] arguments depths, num_heads are missing"):
        NATConfig.from_dict({"embed_dim": 8})
    with pytest.raises(TypeError, match=r"\[NAT\] 'config' must be a NATConfig but got dict"):
        NAT({"embed_dim": 8})


@pytest.mark.parametrize(
    "wrong",
    [
        {"embed_dim": 0},
        {"in_chans": 0},
        {"mlp_ratio": 0},
        {"mlp_ratio": "3"},
        {"num_classes": "10"},
    ],
    ids=str,
)
@ALL
def test_arguments_out_of_range(cls, wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"\[\w+Config\] '{name}' must be a"):
        build(cls, **wrong)


@pytest.mark.parametrize("config", [NATConfig, DiNATsConfig])
def test_levels_must_agree(config):
    with pytest.raises(ValueError, match="'num_heads' must have one entry per level, 2, but got"):
        config(8, depths=(1, 2), num_heads=(1,))
    for wrong in (1, (1, "2"), (1, -1)):
        with pytest.raises(ValueError, match="'depths' must be integers from 0, one per level,"):
            config(8, depths=wrong, num_heads=(1, 2))
    with pytest.raises(ValueError, match="'dilations' must list one dilation per layer"):
        config(8, depths=(1, 2), num_heads=(1, 2), dilations=((1,), (1,)))


INPUTS = {
    **{cls: (config, (16, 16, 3)) for cls, config in CONFIGS.items()},
    UPerNet: (UPerNetConfig(CONFIGS[NAT], channels=8, aux_channels=8), (16, 16, 3)),
    NAT1D: (NAT1DConfig(8, 1, (1, 2), kernel_size=3), (20, 1)),
    NAT3D: (NAT3DConfig(8, (1,), (1,), kernel_size=(3, 3, 3)), (4, 16, 16, 3)),
    NAUNETR: (NAUNETRConfig(8, (1,), (1,), 3), (8, 8, 8, 1)),
}


@pytest.mark.parametrize("cls", INPUTS)
@pytest.mark.parametrize("wrap", [lambda model: model, mx.compile], ids=["plain", "compiled"])
def test_inputs_that_do_not_fit_are_named(cls, wrap):
    config, shape = INPUTS[cls]
    model = wrap(cls(config).eval())
    name = rf"\[{cls.__name__}\] 'x' must be"
    with pytest.raises(
        ValueError, match=rf"{name} \[batch, .*, {shape[-1]}\] but got \[{shape[0]},"
    ):
        model(mx.zeros(shape))
    with pytest.raises(ValueError, match=rf"{name} \[batch, .* 5\]\."):
        model(mx.zeros((1, *shape[:-1], 5)))
    with pytest.raises(
        TypeError, match=rf"{name} floating point numbers, prepared, but got .*uint8"
    ):
        model(mx.zeros((1, *shape), mx.uint8))
    if wrap is not mx.compile:
        with pytest.raises(TypeError, match=rf"{name} an mlx.core.array but got ndarray"):
            model(np.zeros((1, *shape), np.float32))
    assert model(mx.zeros((1, *shape))).shape[0] == 1


def test_full_attention_says_which_size_it_needs():
    model = build(IsotropicNAT, kernel_size=None, dilation=1, img_size=64)
    assert model.layers[0].attn.rpb.shape == (2, 7, 7)
    assert model(mx.zeros((1, 64, 64, 3))).shape == (1, 5)
    with pytest.raises(ValueError, match=r"images must be 64x64 .* their map is 5x4 tokens"):
        model(mx.zeros((1, 80, 64, 3)))
    with pytest.raises(ValueError, match="'dilation' must be 1 with full attention but got 2"):
        build(IsotropicNAT, kernel_size=None)


def test_drop_path_and_layer_scale_are_where_they_belong():
    small = create_model("nat_small")
    rates = [block.drop_path.rate for level in small.levels for block in level.blocks]
    np.testing.assert_allclose(rates, np.linspace(0, 0.3, 30))
    assert mx.allclose(small.levels[2].blocks[3].gamma2, mx.full((384,), 1e-5))
    assert "gamma1" not in create_model("dinat_small").levels[0].blocks[0]


def test_dilations_reach_the_layers():
    model = create_model("dinat_large_384")
    found = [[b.attn.neighborhood.dilation[0] for b in level.blocks] for level in model.levels]
    assert found == [[1, 13, 1], [1, 6, 1, 6], [1, 3] * 9, [1] * 5]
    isotropic = create_model("dinat_isotropic_small")
    assert [b.attn.neighborhood.dilation[0] for b in isotropic.layers] == [1, 2] * 6


def test_training_is_random_and_evaluation_is_not():
    model = build(NAT, drop_path_rate=0.5, drop_rate=0.1)
    x = mx.random.normal((4, 32, 32, 3))
    assert mx.array_equal(model(x), model(x))
    model.train()
    assert not mx.array_equal(model(x), model(x))


def test_compiled_models_agree_at_two_sizes():
    model = build(NAT, depths=(1,), num_heads=(1,))
    compiled = mx.compile(model)
    for side in (32, 24, 32):
        x = mx.random.normal((1, side, side, 3))
        np.testing.assert_allclose(compiled(x), model(x), rtol=1e-4, atol=1e-6)
