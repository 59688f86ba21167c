"""Every model as a file: what it computes, what stands beside it, what is refused."""

import json
import threading

import mlx.core as mx
import pytest

from natten_zoo import create_model, list_models, ops
from natten_zoo.cli import main
from natten_zoo.export import export_model, load_exported
from natten_zoo.export.graph import kernels, operations
from natten_zoo.export.inputs import example_inputs, function_of
from natten_zoo.files import sha256_of
from natten_zoo.models import ARCHITECTURES
from scripts.export_table import SIZES, WITHOUT_KERNELS, usual_size

NATS = {"embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2), "kernel_size": 3}
BODY = {"embed_dim": 8, "depths": (1,) * 4, "num_heads": (1, 1, 2, 4), "kernel_size": 3}
FINDER = {
    "backbone": BODY, "channels": 32, "mask_channels": 32, "pixel_depth": 1, "depth": 2,
    "num_classes": 4, "num_queries": 6,
}  # fmt: skip
# Of each architecture a small model, and the size of what it looks at.
SMALL = {
    "NAT": (NATS, (32, 45)),
    "DiNAT": (NATS | {"dilations": ((2,), (1, 3))}, 40),
    "DiNAT_s": (NATS, 33),
    "IsotropicNAT": ({"embed_dim": 16, "num_heads": 2, "depth": 2, "kernel_size": 3}, 64),
    "UPerNet": (
        {"backbone": BODY | {"architecture": "NAT"}, "channels": 8, "aux_channels": 8},
        64,
    ),
    "NAT1D": (
        {"embed_dim": 8, "num_heads": 2, "dilations": (1, 3), "kernel_size": 3, "in_chans": 2},
        40,
    ),
    "NAT3D": (NATS | {"kernel_size": (2, 3, 3)}, (4, 32, 32)),
    "DiNAT3D": (NATS | {"kernel_size": (2, 3, 3), "dilations": ((2,), (1, 2))}, (6, 32, 32)),
    "AllInOne": ({"depth": 2}, 60),
    "NAF": ({"embed_dim": 32, "depth": 1, "kernel_size": 3}, 64),
    "HDiT": (
        {"widths": (16, 32), "depths": (1, 1), "head_dims": 8, "kernel_sizes": 3,
         "mapping_dim": 32, "num_labels": 3, "cond_dim": 5},
        32,
    ),
    "PMRF": (
        {"flow": {"widths": (16, 32), "depths": (1, 1), "head_dims": 16, "mapping_dim": 16},
         "embed_dim": 12, "depths": (1,), "num_heads": 2},
        64,
    ),
    "NAUNETR": (NATS | {"num_classes": 3}, 32),
    "Mask2Former": (FINDER, 64),
    "OneFormer": (FINDER, 64),
    "DINOv2": (
        {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 70, "num_registers": 2},
        (42, 70),
    ),
    "LTXDecoder": (
        {"in_chans": 8, "head_dim": 16, "widths": (64, 32, 16, 16, 16), "depths": (1,) * 5,
         "kernel_sizes": ((3, 3, 3),) * 5, "reductions": (2, 2, 1, 1), "time_dim": 24},
        None,
    ),
}  # fmt: skip


def small(name):
    cls = ARCHITECTURES[name]
    mx.random.seed(0)
    arguments, size = SMALL[name]
    return cls(cls.Config.from_dict(arguments)).eval(), size


@pytest.fixture
def fashion():
    return create_model("nat_pico_fashion", pretrained=True)


def test_every_architecture_is_tried():
    assert set(SMALL) == set(ARCHITECTURES)


@pytest.mark.parametrize("name", SMALL)
def test_the_same_bits(name, tmp_path):
    model, size = small(name)
    exported = export_model(model, tmp_path / "model.mlxfn", sizes=[size])
    inputs = example_inputs(model, size, 1)
    inputs |= {k: mx.random.normal(x.shape) for k, x in inputs.items() if x.ndim > 1}
    function, inputs = function_of(model, list(inputs)), list(inputs.values())
    with ops.use_backend("pure"):
        wanted = function(*inputs)
        mx.eval(wanted)
    for ours, theirs in zip(exported(*inputs), wanted, strict=True):
        assert mx.array_equal(ours, theirs)
    assert len(exported.facts["outputs"]) == len(wanted)


@pytest.mark.parametrize("name", SMALL)
def test_for_metal_without_a_gpu(name, tmp_path):
    model, size = small(name)
    facts = export_model(model, tmp_path / "model.mlxfn", target="metal", sizes=[size]).facts
    assert all("natten_zoo_" in kernel for kernel in facts["kernels"])
    assert bool(facts["kernels"]) == (name not in WITHOUT_KERNELS)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_every_published_model(name):
    mx.random.seed(0)  # else the weights of all models before would be drawn, too
    model = create_model(name).eval()
    inputs = example_inputs(model, None, 1)
    shape = next(iter(inputs.values())).shape
    sides = shape[2:3] if type(model).__name__ == "AllInOne" else shape[1:-1]
    assert usual_size(name) == " x ".join(map(str, sides))
    has_kernels = type(model).__name__ not in WITHOUT_KERNELS
    for target in ("cpu", "metal"):
        with ops.exporting(target):
            trace = operations(function_of(model, list(inputs)), list(inputs.values()))
        assert trace and bool(kernels([trace])) == (target == "metal" and has_kernels)


# Of what does not take any size: one that it takes, and one that it doesn't.
LIMITS = {
    "DINOv2": (14, 13),
    "HDiT": (24, 28),  # two levels of patches of 4
    "LTXDecoder": ((2, 3, 4), (2, 2, 3)),
    "NAF": (48, 47),
    "PMRF": (128, 96),
}


@pytest.mark.parametrize("name", SMALL)
def test_sizes_are_those_of_the_table(name):
    model, _ = small(name)
    assert set(LIMITS) == set(SIZES)
    takes, refuses = LIMITS.get(name, (5, None))
    function_of(model, list(inputs := example_inputs(model, takes, 1)))(*inputs.values())
    if refuses is not None:
        with pytest.raises(ValueError, match=f"{name}.*must"):
            function_of(model, list(inputs := example_inputs(model, refuses, 1)))(*inputs.values())


def test_any_batch_and_several_sizes(fashion, tmp_path):
    path = tmp_path / "fashion.mlxfn"
    exported = export_model(fashion, path, batches=[1, 2], sizes=[28, (30, 41)])
    for shape in ((1, 28, 28, 1), (5, 30, 41, 1)):
        x = mx.random.normal(shape)
        assert mx.allclose(exported(x)[0], fashion(x), atol=1e-4)
    with pytest.raises(ValueError, match="No imported function found"):
        exported(mx.zeros((1, 29, 28, 1)))
    one = export_model(fashion, tmp_path / "four.mlxfn", batches=4)
    with pytest.raises(ValueError, match="a batch of 6 is no sum"):
        one(mx.zeros((6, 28, 28, 1)))
    assert path.stat().st_size < 3 * (tmp_path / "four.mlxfn").stat().st_size  # weights are shared


def test_with_preprocessing_it_takes_pixels(fashion, tmp_path):
    exported = export_model(fashion, tmp_path / "fashion.mlxfn", preprocessing=True)
    pixels = mx.random.randint(0, 256, (1, 28, 28, 1), key=mx.random.key(0)).astype(mx.uint8)
    mean, std = fashion.record.mean[0], fashion.record.std[0]
    assert mx.allclose(exported(pixels)[0], fashion((pixels / 255 - mean) / std), atol=1e-4)
    assert exported.facts["normalizes"] and exported.facts["inputs"][0]["dtype"] == "uint8"


def test_half_precision_inside(fashion, tmp_path):
    fashion.set_dtype(mx.float16)
    exported = export_model(fashion, tmp_path / "fashion.mlxfn")
    assert exported(mx.zeros((1, 28, 28, 1)))[0].dtype == mx.float32
    assert (tmp_path / "fashion.mlxfn").stat().st_size < 3 << 20


def test_what_stands_beside_it(fashion, tmp_path):
    path = tmp_path / "fashion.mlxfn"
    export_model(fashion, path)
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["sha256"] == sha256_of(path)
    assert facts["classes"][:2] == ["T-shirt/top", "Trouser"] and facts["license"] == "MIT"
    assert facts["preprocessing"]["mean"] == list(fashion.record.mean)
    assert facts["versions"]["mlx"] == mx.__version__
    assert facts["largest_difference"] < 1e-5
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fashion.json", "fashion.mlxfn"]
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ValueError, match="is not the file that"):
        load_exported(path)


def test_refusals(fashion, tmp_path):
    path = tmp_path / "fashion.mlxfn"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        export_model(fashion, path)
    assert path.read_text() == "mine"
    for wrong, message in (
        ({"path": tmp_path / "fashion.bin"}, "must end in .mlxfn"),
        ({"batches": 0}, "'batches'"),
        ({"batches": "all"}, "'batches'"),
        ({"sizes": [(28, 28, 28)]}, "'size' must be"),
        ({"target": "cuda"}, "'target'"),
    ):
        with pytest.raises(ValueError, match=message):
            export_model(fashion, **{"path": tmp_path / "new.mlxfn", **wrong})
    with pytest.raises(ValueError, match="'preprocessing'"):
        export_model(small("NAT1D")[0], tmp_path / "new.mlxfn", preprocessing=True)
    with pytest.raises(ValueError, match="evaluation mode"):
        export_model(fashion.train(), tmp_path / "new.mlxfn")
    assert [file.name for file in tmp_path.iterdir()] == ["fashion.mlxfn"]


@pytest.mark.skipif(mx.metal.is_available(), reason="there is Metal")
def test_a_file_for_metal_says_what_it_needs(fashion, tmp_path):
    exported = export_model(fashion, tmp_path / "fashion.mlxfn", target="metal")
    with pytest.raises(RuntimeError, match="is for Metal"):
        exported(mx.zeros((1, 28, 28, 1)))


def test_command_line(tmp_path, capsys):
    path = tmp_path / "fashion.mlxfn"
    command = ["export", "nat_pico_fashion", "-o", str(path), "--batch", "1", "--batch", "2"]
    assert main([*command, "--with-preprocessing", "--size", "28", "--size", "28x35"]) == 0
    said = capsys.readouterr().out
    assert "takes x, uint8: 1 x 28 x 28 x 1, 2 x 28 x 28 x 1, 1 x 28 x 35 x 1" in said
    assert "read back and run" in said
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--for", "metal", "--dtype", "float16"]) == 0
    assert load_exported(path).facts["target"] == "metal"


def test_a_thread_that_came_later_is_told(tmp_path):
    """MLX reads a file only where its stream is: what it says itself comes at evaluation."""
    model, size = small("NAT")
    file = tmp_path / "model.mlxfn"
    export_model(model, file, target="cpu", sizes=[size])
    told = []

    def read():
        with pytest.raises(RuntimeError, match=r"\[load_exported\] must be called in the thread"):
            load_exported(file)
        told.append(True)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert told
