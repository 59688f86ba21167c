"""Which entries are the weights: wrappers come off in any order and format; one set is chosen."""

import gzip
import json
import logging
import random
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from natten_zoo import create_model, load_pretrained
from natten_zoo.cli import main
from natten_zoo.models import ARCHITECTURES, NAT
from natten_zoo.pretrained.load import load_weights
from natten_zoo.pretrained.readers import CheckpointError, read_checkpoint
from natten_zoo.pretrained.readers.weight_sets import WRAPPERS, Entry, known_sets, without_wrappers
from natten_zoo.pretrained.registry import build_model, records

from ..conftest import Tensor, save_torch

FIXTURES = Path(__file__).parents[2] / "fixtures"
NAME = "nat_pico_fashion"


def save(folder, kind, value):
    """Nested dicts as a torch file; in other formats their names are joined by dots."""
    path = folder / f"{NAME}.{kind}"
    if kind in ("pth", "ckpt"):
        return save_torch(path, value)
    arrays = {name: tensor.array for name, tensor in tree_flatten(value)}
    if kind == "npz":
        np.savez(path, **arrays)
    else:
        mx.save_safetensors(str(path), {n: mx.array(a) for n, a in arrays.items()})
    return path


def put(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


def is_pico(model, pico):
    return isinstance(model, NAT) and all(
        mx.array_equal(a, b)
        for (_, a), (_, b) in zip(
            tree_flatten(model.parameters()), tree_flatten(pico.parameters()), strict=True
        )
    )


PREFIXES = [
    *("module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.module.", "model.", "net."),
    *("model._orig_mod.", "ema.", "ema_model.module.", "model_ema.module.", "student.", "teacher."),
    *("encoder.", "backbone.", "classifier.", "head.", "nat.", "dinat.", "network.model."),
    *("_fsdp_wrapped_module.", "module._fsdp_wrapped_module.", "_forward_module.model."),
    *("student.module.backbone.", "model.model.model.", "online_encoder.0.", "my_own_name."),
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", ["pth", "safetensors", "npz"])
def test_any_prefix_in_any_format(tmp_path, pico, pico_state, kind, prefix):
    weights = read_checkpoint(save(tmp_path, kind, put(prefix, pico_state))).weights
    assert weights.keys() == pico_state.keys()
    assert np.array_equal(weights["head.weight"], pico_state["head.weight"].array)


@pytest.mark.parametrize("around", ["state_dict", "model", "module", "net", "checkpoint", "a.b.c"])
def test_dicts_around(tmp_path, pico, pico_state, around):
    value = put("module.", pico_state)
    for name in around.split("."):
        value = {name: value, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": Tensor([1])}}}}
    assert is_pico(load_pretrained(NAT, save(tmp_path, "ckpt", value)), pico)


def test_wrappers_on_the_way(tmp_path, pico, pico_state):
    weights = {
        name.replace("blocks.0.", "blocks.0._orig_mod.").replace(
            "attn.", "_checkpoint_wrapped_module.attn."
        ): value
        for name, value in pico_state.items()
    }
    weights = put("_fsdp_wrapped_module.", weights)
    weights = {n.replace("patch_embed.", "patch_embed.module."): v for n, v in weights.items()}
    assert is_pico(load_pretrained(NAT, save(tmp_path, "safetensors", weights)), pico)


def test_names_that_would_become_one_stay_two(tmp_path, pico_state):
    weights = {**pico_state, "_orig_mod.norm.bias": Tensor([1])}
    names = read_checkpoint(save(tmp_path, "pth", weights)).weights
    assert {"norm.bias", "_orig_mod.norm.bias"} <= set(names)


def test_what_is_beside_a_set_is_said(tmp_path, pico, pico_state, caplog):
    value = put("model.", pico_state)
    value |= {"criterion.weight": Tensor([1]), "n_averaged": Tensor([2])}
    with caplog.at_level(logging.WARNING, "natten_zoo"):
        model = load_pretrained(NAT, save(tmp_path, "pth", {"state_dict": value}))
    assert is_pico(model, pico)
    assert "not used, beside the weights: state_dict.criterion.weight, state_dict.n_averaged" in (
        caplog.text
    )


def test_several_sets(tmp_path, pico, pico_state):
    other = {name: Tensor(tensor.array + 1) for name, tensor in pico_state.items()}
    value = {**put("student.", other), **put("teacher.module.", pico_state)}
    for kind in ("pth", "safetensors", "npz"):
        path = save(tmp_path, kind, value)
        with pytest.raises(CheckpointError) as caught:
            load_pretrained(NAT, path)
        message = str(caught.value)
        assert f"'student' ({len(other)} entries), 'teacher' ({len(other)} entries)" in message
        assert "weights='student', or --weights student" in message
        for key in ("teacher", "teacher.module"):
            assert is_pico(load_pretrained(NAT, path, weights=key), pico)
        assert not is_pico(load_pretrained(NAT, path, weights="student"), pico)
        with pytest.raises(CheckpointError, match="no weights called 'stud'; it holds 'student'"):
            load_pretrained(NAT, path, weights="stud")
        assert is_pico(load_pretrained(NAT, path, skip="student.*"), pico)


def test_so_they_are_chosen_where_a_model_is_built_first(tmp_path, pico, pico_state):
    other = {name: Tensor(tensor.array + 1) for name, tensor in pico_state.items()}
    path = save(tmp_path, "pth", {**put("student.", other), **put("teacher.", pico_state)})
    name, has = "nat_pico_fashion", {"num_classes": pico.config.num_classes}
    for chosen in ({"weights": "teacher"}, {"skip": "student.*"}, {"skip": ["student.*"]}):
        assert is_pico(create_model(name, path, **has, **chosen), pico)
        model = create_model(name, **has)
        load_weights(model, path, **chosen)
        assert is_pico(model, pico)
    with pytest.raises(CheckpointError, match=r"'student' .*'teacher'"):
        create_model(name, path)
    for chosen in ({"weights": "teacher"}, {"skip": "student.*"}, {"ema": False}):
        with pytest.raises(ValueError, match=r"\[create_model\] 'pretrained' must name weights"):
            create_model(name, **chosen)


def test_one_set_among_all_of_a_file(tmp_path, pico, pico_state):
    other = {name: Tensor(tensor.array + 1) for name, tensor in pico_state.items()}
    path = save(tmp_path, "pth", {**pico_state, **put("old.", other)})
    with pytest.raises(CheckpointError, match=r"'\.' \(.*--weights \."):
        load_pretrained(NAT, path)
    assert is_pico(load_pretrained(NAT, path, weights="."), pico)


@pytest.mark.parametrize(
    "averaged", ["model_ema", "ema", "state_dict_ema", "ema_state_dict", "params_ema", "swa_model"]
)
def test_averaged_weights_are_preferred(tmp_path, pico, pico_state, averaged):
    other = {name: Tensor(tensor.array + 1) for name, tensor in pico_state.items()}
    path = save(tmp_path, "pth", {"model": other, averaged: put("module.", pico_state)})
    assert is_pico(load_pretrained(NAT, path), pico)
    assert not is_pico(load_pretrained(NAT, path, ema=False), pico)
    joined = {**put("model.", other), **put(f"{averaged}.", pico_state)}  # as Lightning has them
    assert is_pico(load_pretrained(NAT, save(tmp_path, "pth", {"state_dict": joined})), pico)
    alone = save(tmp_path, "pth", {averaged: pico_state})
    assert is_pico(load_pretrained(NAT, alone), pico)
    with pytest.raises(CheckpointError, match="averaged weights only"):
        load_pretrained(NAT, alone, ema=False)


def test_mmengine_puts_the_averaged_weights_in_place_of_the_others(tmp_path, pico, pico_state):
    other = put("module.", {n: Tensor(tensor.array + 1) for n, tensor in pico_state.items()})
    value = {"state_dict": pico_state, "ema_state_dict": {**other, "steps": Tensor([3])}}
    path = save(tmp_path, "pth", {**value, "message_hub": {}})
    assert is_pico(load_pretrained(NAT, path), pico)
    assert not is_pico(load_pretrained(NAT, path, ema=False), pico)


def test_one_set_by_two_names(tmp_path, pico, pico_state):
    path = save(tmp_path, "pth", {"model": pico_state, "network": pico_state})
    assert is_pico(load_pretrained(NAT, path), pico)


def test_an_optimizer_has_the_names_of_weights(tmp_path, pico, pico_state):
    moments = {"exp_avg": put("module.", pico_state), "exp_avg_sq": put("module.", pico_state)}
    path = save(tmp_path, "pth", {"optimizer": moments, "model": pico_state})
    assert is_pico(load_pretrained(NAT, path), pico)


def test_extra_state_of_modules(tmp_path, pico, pico_state):
    value = {**pico_state, "levels.0._extra_state": None, "_extra_state": {"a": 1}}
    assert is_pico(load_pretrained(NAT, save(tmp_path, "pth", value)), pico)


def test_wrappers_in_any_order():
    rng = random.Random(0)
    for _ in range(200):
        prefix = ".".join(rng.choices(WRAPPERS, k=rng.randint(1, 6))) + "."
        assert without_wrappers(prefix + "levels.0.norm") == "levels.0.norm"
        (found,) = known_sets(
            [Entry("", f"{prefix}{name}", 0, True) for name in ("patch_embed.weight", "norm.bias")]
        )
        assert set(found.entries) == {"patch_embed.weight", "norm.bias"} and found.part == ""


def keys(path):
    return list(json.loads(gzip.decompress(path.read_bytes())))


def names_of_every_model():
    for record in records().values():
        yield record.name, [n for n, _ in tree_flatten(build_model(record).parameters())]
    for file in ("allin1", "naf"):
        yield file, keys(FIXTURES / file / "keys.json.gz")
    yield "Swin UNETR", keys(FIXTURES / "na_unetr" / "keys_swin_unetr.json.gz")
    for file in ("nat-tiny-random", "dinat-ls-tiny-random", "vitrpb_64.pth"):
        yield file, list(read_checkpoint(FIXTURES / "pretrained" / file).weights)


def test_every_model_is_known_by_its_first_layer():
    assert {r.architecture for r in records().values()} == set(ARCHITECTURES)
    for model, names in names_of_every_model():
        for prefix in ("", "student.module."):
            found = known_sets([Entry("", prefix + name, 0, True) for name in names])
            assert [list(s.entries) for s in found] == [names], model
            assert found[0].part == prefix.partition(".")[0] and not found[0].beside


def test_on_the_command_line(tmp_path, pico_state, capsys):
    value = {**put("student.", pico_state), **put("teacher.", pico_state), "epoch": 3}
    value["teacher.extra"] = Tensor([1])
    path = str(save(tmp_path, "pth", value))
    assert main(["convert", path, str(tmp_path / "out")]) == 2
    assert "--weights student" in capsys.readouterr().err
    assert main(["info", path, "--weights", "student"]) == 0
    assert main(["convert", path, str(tmp_path / "out"), "--weights", "teacher"]) == 2
    assert "extra: unexpected" in (error := capsys.readouterr().err) and "--skip" in error
    arguments = ["--weights", "teacher", "--skip", "extra", "--model", NAME]
    assert main(["convert", path, str(tmp_path / "out"), *arguments]) == 0
    assert "its 'teacher'" in capsys.readouterr().out
