"""LTX-2.5's video decoder against diffusers' outputs; its files; slabs and parts of the heads."""

import gzip
import json
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from natten_zoo import cli, create_model, get_record, load_pretrained
from natten_zoo.models import LTXDecoder, LTXDecoderConfig
from natten_zoo.models.clip import WHOLE, Clip, Cut
from natten_zoo.models.cost import count_cost
from natten_zoo.models.ltx_blocks import patchify
from natten_zoo.pretrained import load_weights
from natten_zoo.pretrained.card import model_card
from natten_zoo.pretrained.infer import infer
from natten_zoo.pretrained.quantize import quantize
from natten_zoo.pretrained.readers import CheckpointError
from natten_zoo.pretrained.readers.reader import Checkpoint

from . import ltx

KEYS = json.loads(gzip.decompress((ltx.DATA / "keys.json.gz").read_bytes()))
PIXELS = (1, 3, 17, 64, 80)
# What diffusers calls our arguments.
THEIRS = {
    "latent_channels": "in_chans", "out_channels": "out_chans", "patch_size": "patch_size",
    "decoder_head_dim": "head_dim", "decoder_stage_channels": "widths",
    "decoder_stage_depths": "depths", "decoder_upsample_strides": "strides",
    "decoder_upsample_channel_reductions": "reductions", "decoder_t_emb_dim": "time_dim",
}  # fmt: skip


def parameters(model):
    return dict(tree_flatten(model.parameters()))


def test_parity_of_the_stages():
    model, cut = ltx.small(), WHOLE
    x = ltx.latent()
    clip = model._entered(x)
    assert ltx.error(clip.whole(), "conv_in") < 1e-5
    block = model.det_stages[0][0]
    attended = block.attn.proj(block.attn(block.norm1(clip.whole())))
    assert ltx.error(attended, "stage0.block0.attn") < 1e-5
    for stage in range(4):
        clip = model.stage(stage, clip, cut)
        assert ltx.error(clip.whole(), f"stage{stage}.blocks") < 1e-5
        clip = model.upsamples[stage](clip)
        assert ltx.error(clip.whole(), f"stage{stage}.upsample") < 1e-5
    assert mx.array_equal(model.features(x)[-1], clip.whole())
    clip = clip.recut(None, 17)
    assert ltx.error(clip.whole(), "context") < 1e-5


def test_parity_of_the_diffusion():
    model = ltx.small()
    time = model.t_embedder(1.0)
    modulation = model.shared_adaln(time)
    assert ltx.error(time, "t_emb") < 1e-5 and ltx.error(modulation, "modulation") < 1e-5
    context = Clip([model.features(ltx.latent())[-1][:, :17]])
    x = model.conv_in_x_t(patchify(*ltx.noise(5, PIXELS), 2))
    assert ltx.error(x, "conv_in_x_t") < 1e-5
    clip = Clip([x])
    for index, block in enumerate(model.diff_blocks):
        clip = block(clip, context, modulation)
        assert ltx.error(clip.whole(), f"diff{index}") < 1e-5


@pytest.mark.parametrize(
    ("name", "steps", "prediction"),
    [("pixels_1step", 1, "x0"), ("pixels_3step", 3, "x0"), ("pixels_3step_v", 3, "v")],
)
def test_parity_of_the_pixels(name, steps, prediction):
    model = ltx.small(prediction=prediction)
    out = model(ltx.latent(), *ltx.noise(5, PIXELS), steps=steps)
    assert ltx.error(out, name) < 1e-4


def test_names_and_shapes_are_the_published():
    model, record = create_model("ltx_2_5_decoder"), get_record("ltx_2_5_decoder")
    statistics = {f"per_channel_statistics.{kind}-of-means": [128] for kind in ("mean", "std")}
    zeros = {name: mx.zeros(shape) for name, shape in (KEYS | statistics).items()}
    ours = {name: value.shape for name, value in parameters(model).items()}
    assert ours == {name: value.shape for name, value in model.sanitize(zeros).items()}
    assert ours.keys() - {"latents_mean", "latents_std"} == {k.removeprefix("decoder.")
                                                            for k in KEYS}  # fmt: skip
    cost = count_cost(model, mx.zeros((1, 16, 16, 24, 128)))
    assert cost.params == record.params == 417_133_616
    assert cost.macs == round(record.gmacs * 1e9)
    assert infer(Checkpoint(Path("x"), zeros, "torch"), None).name == "ltx_2_5_decoder"
    header = str(model_card(model, "me/mine")).split("---")[1]
    assert "license: other" in header and "license_name: ltx-2.x" in header


def foreign(tmp_path, change):
    """A file of the small decoder's weights, changed."""
    weights = dict(mx.load(str(ltx.FILE)))
    change(weights)
    mx.save_safetensors(str(tmp_path / "x.safetensors"), weights, metadata={"format": "pt"})
    return tmp_path / "x.safetensors"


def test_what_lies_beside_the_decoder_is_left_out(tmp_path):
    def change(weights):
        for name in ("encoder.conv_in.conv.weight", "decoder.type_emb", "decoder.coarse_head.bias",
                     "decoder.det_stages.3.coarse_norm.weight",
                     "per_channel_statistics.channel"):  # fmt: skip
            weights[name] = mx.ones(8)

    model = ltx.small()
    found = model.sanitize(mx.load(str(foreign(tmp_path, change))))
    assert found.keys() == parameters(model).keys()
    assert mx.allclose(model.denormalize(mx.ones(8)), model.latents_std + model.latents_mean)


def test_a_decoder_inside_of_a_larger_file(tmp_path):
    """As in the files that have the whole of LTX."""

    def change(weights):
        for name in list(weights):
            weights[f"vae.{name}"] = weights.pop(name)
        weights["model.diffusion_model.proj_in.weight"] = mx.ones((2, 2))

    model = LTXDecoder(ltx.config())
    load_weights(model, foreign(tmp_path, change))
    ours = parameters(ltx.small())
    assert all(mx.array_equal(value, ours[name]) for name, value in parameters(model).items())


def test_gates_are_folded_in(tmp_path):
    mx.random.seed(0)
    drawn = {}

    def change(weights):
        for gate in ("det_stages.1.0.gate_msa", "det_stages.2.0.gate_mlp",
                     "diff_blocks.1.gate_ctx", "diff_blocks.0.gate_msa"):  # fmt: skip
            name = f"decoder.{gate}"
            width = weights[f"{name.rpartition('.')[0]}.norm1.weight"].size
            weights[name] = drawn[name] = mx.random.normal((width,))

    plain = ltx.small()
    gated = LTXDecoder(plain.config)
    gated.load_weights(list(gated.sanitize(mx.load(str(foreign(tmp_path, change)))).items()))
    for *place, kind, layer in (
        ("det_stages", 1, 0, "gate_msa", ("attn", "proj")),
        ("det_stages", 2, 0, "gate_mlp", ("mlp",)),
        ("diff_blocks", 1, "gate_ctx", ("context_proj",)),
        ("diff_blocks", 0, "gate_msa", ("attn", "proj")),
    ):
        mine, other = plain, gated
        for name in (*place, *layer):
            mine, other = mine[name], other[name]
        gate = drawn[".".join(map(str, ("decoder", *place, kind)))]
        x = mx.random.normal((5, other.weight.shape[-1] if "weight" in other else gate.size))
        np.testing.assert_allclose(other(x), mine(x) * gate, atol=1e-5)


def diffusers_folder(tmp_path, **changes):
    """The small decoder as diffusers saves it."""
    weights = {}
    for name, value in mx.load(str(ltx.FILE)).items():
        name = re.sub(r"per_channel_statistics\.(\w+)-of-means", r"latents_\1", name)
        name = re.sub(r"\.([qk])_norm\.", r".norm_\1.", name).replace(
            "attn.proj.", "attn.to_out.0."
        )
        for index, linear in (("0", "1"), ("2", "2")):
            name = name.replace(f"t_embedder.mlp.{index}.",
                                f"t_embedder.timestep_embedder.linear_{linear}.")  # fmt: skip
        parts = mx.split(value, 3) if ".qkv." in name else [value]
        for part, array in zip("qkv", parts, strict=False):
            weights[name.replace(".qkv.", f".to_{part}.")] = array
    mx.save_safetensors(str(tmp_path / "diffusion_pytorch_model.safetensors"), weights,
                        metadata={"format": "pt"})  # fmt: skip
    values = ltx.config().to_dict()
    stages = values["kernel_sizes"]
    config = {
        "_class_name": "LTX2VideoDiffusionDecoderModel", "scaling_factor": 1.0,
        **{theirs: values[ours] for theirs, ours in THEIRS.items()},
        "decoder_stage_kernels": stages[:-1], "decoder_stage5_kernel": stages[-1],
        "spatial_compression_ratio": 16, "temporal_compression_ratio": 8, **changes,
    }  # fmt: skip
    kept = {name: value for name, value in config.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    return tmp_path


def test_a_folder_of_diffusers(tmp_path):
    model = load_pretrained(None, diffusers_folder(tmp_path))
    assert isinstance(model, LTXDecoder) and model.config == ltx.config()
    ours, theirs = parameters(ltx.small()), parameters(model)
    assert ours.keys() == theirs.keys()
    assert all(mx.array_equal(value, theirs[name]) for name, value in ours.items())
    again = load_pretrained(None, model.save_pretrained(tmp_path / "saved"))
    assert again.config == model.config


def test_a_gated_file_is_converted(tmp_path, capsys):
    folder = diffusers_folder(tmp_path)
    file = folder / "diffusion_pytorch_model.safetensors"
    weights = dict(mx.load(str(file)))
    gate = weights["decoder.diff_blocks.1.gate_ctx"] = mx.arange(16.0)
    mx.save_safetensors(str(file), weights, metadata={"format": "pt"})
    assert cli.main(["convert", str(folder), str(tmp_path / "ours")]) == 0
    layer = "diff_blocks.*.context_proj"
    said = capsys.readouterr().out
    for kind in ("weight", "bias"):
        assert re.search(
            rf"{re.escape(layer)}\.{kind} .*decoder\.diff_blocks\.\*\.gate_ctx", said
        ), said
    bias = ltx.small().diff_blocks[1].context_proj.bias
    ours = load_pretrained(None, tmp_path / "ours").diff_blocks[1].context_proj.bias
    np.testing.assert_allclose(ours, bias * gate, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spatial_compression_ratio": 32}, "'spatial_compression_ratio' must be 16 but got 32"),
        ({"decoder_stage5_kernel": None}, "must both be there or neither"),
        (
            {"decoder_model_output_type": "noise"},
            "'prediction' must be 'x0' or 'v' but got 'noise'",
        ),
        ({"_class_name": "AutoencoderKL"}, "it is a 'AutoencoderKL'; those of diffusers read here"),
        ({"decoder_stage_channels": [64, 32, 16, 16, 8]}, "'widths' must be multiples of"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_configurations_that_ask_for_something_else(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(None, diffusers_folder(tmp_path, **changes))


def test_the_default_configuration_is_the_published():
    config = LTXDecoderConfig()
    assert LTXDecoderConfig.from_diffusers({}) == config
    assert (config.ratio, config.ghosts, config.smallest) == ((8, 32, 32), 2, (3, 7, 7))
    assert config.size_of((16, 16, 24)) == (121, 512, 768)
    assert config.tokens((16, 16, 24)) == [(18, 16, 24), (18, 32, 48), (35, 32, 48), (69, 64, 96),
                                           (121, 128, 192)]  # fmt: skip


def test_clips_that_are_too_small_are_refused():
    model = ltx.small()
    least = model.config.smallest
    assert model(mx.zeros((1, *least, 8))).shape == (1, *model.config.size_of(least), 3)
    for axis in range(3):
        size = [n - (axis == other) for other, n in enumerate(least)]
        if min(size) > 0:
            with pytest.raises(ValueError, match=r"\[LTXDecoder\] 'x' must have at least"):
                model(mx.zeros((1, *size, 8)))
    with pytest.raises(ValueError, match=r"'x' must be \[batch, frames, height, width, 8\]"):
        model(mx.zeros((1, 3, 3, 3, 7)))


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(n, marks=pytest.mark.slow) for n in range(3, 16))]
)
def test_slabs_and_parts_of_the_heads_change_nothing(seed):
    """Whatever the size, each stage cut in its own way, with kernels that windows move in."""
    random = np.random.default_rng(seed)
    kernels = [[int(random.choice([3, 5])), 3, 3] for _ in range(4)]
    model = ltx.small(kernel_sizes=[*kernels, [int(random.choice([5, 7])), 5, 3]])
    least = model.config.smallest
    size = [n + int(random.integers(0, 2)) for n in least]
    batch, steps = (1, 2) if seed % 2 else (2, 1)
    x = mx.array(random.normal(size=(batch, *size, 8)), mx.float32)
    noise = mx.array(random.normal(size=(batch, *model.config.size_of(size), 3)), mx.float32)
    cuts = [
        Cut(
            int(random.integers(1, 12)),
            int(random.choice([n for n in (1, 2, 4) if heads % n == 0])),
        )
        for heads in (4, 2, 1, 1, 1)
    ]
    whole = model(x, noise, steps=steps)
    cut = model(x, noise, steps=steps, cuts=cuts)
    assert mx.abs(whole - cut).max() < 1e-5 * mx.abs(whole).max()


def test_a_quantized_decoder_is_cut_in_the_same_way():
    model = ltx.small()
    quantize(model, bits=8, group_size=32)
    x = ltx.latent()
    (noise,) = ltx.noise(5, PIXELS)
    whole = model(x, noise)
    cut = model(x, noise, cuts=[Cut(4, parts) for parts in (4, 2, 1, 1, 1)])
    assert mx.abs(whole - cut).max() < 1e-4 * mx.abs(whole).max()
    assert 0 < mx.abs(whole - ltx.small()(x, noise)).max() < 0.2 * mx.abs(whole).max()


def test_bfloat16_and_gradients():
    model = ltx.small()
    (noise,) = ltx.noise(5, PIXELS)
    whole = model(ltx.latent(), noise)
    grad = mx.grad(lambda x: model(x, noise).square().mean())(ltx.latent())
    assert mx.isfinite(grad).all() and mx.abs(grad).max() > 0
    model.set_dtype(mx.bfloat16)
    half = model(ltx.latent(), noise)
    assert half.dtype == mx.bfloat16
    assert mx.abs(half - whole).max() < 0.1 * mx.abs(whole).max()


def test_frames_that_were_let_go_are_not_to_be_had():
    clip = Clip([mx.zeros((1, 3, 2, 2, 1)), mx.ones((1, 2, 2, 2, 1))])
    assert clip.frames == 5 and clip.between(2, 4).sum().item() == 4
    clip.release(4)
    assert clip.between(3, 5).shape == (1, 2, 2, 2, 1)
    with pytest.raises(ValueError, match=r"\[Clip\] frames 0 to 3 were let go"):
        clip.between(2, 4)
