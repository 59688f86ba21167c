from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from natten_zoo.training import Recipe, add_arguments, overrides_from

ROOT = Path(__file__).resolve().parents[2]
NOT_NEGATIVE = (
    *("lr", "min_lr", "weight_decay", "layer_decay", "clip_norm", "warmup_epochs", "crop_padding"),
    *("jitter", "mixup", "cutmix", "seed", "save_every", "max_minutes"),
)
RECIPES = sorted((ROOT / "configs" / "recipes").glob("*.yaml"))


def test_command_line_wins_over_yaml_wins_over_defaults(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("epochs: 7\nlr: 1e-2\nfreeze: [patch_embed]\n")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    typed = overrides_from(parser.parse_args(["--epochs", "9", "--no-flip", "--betas", ".8", ".9"]))
    recipe = Recipe.load(path, typed)
    assert (recipe.epochs, recipe.lr, recipe.batch_size) == (9, 0.01, Recipe().batch_size)
    assert recipe.freeze == ["patch_embed"] and recipe.flip is False and recipe.betas == [0.8, 0.9]


def test_a_saved_recipe_is_the_same_recipe(tmp_path):
    recipe = Recipe(lr=3e-4, drop_path=None, model_args={"depths": [1, 2]})
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "r.yaml") == recipe
    assert recipe.conflicts(Recipe.load(tmp_path / "r.yaml", {"workers": 9, "lr": 1e-4})) == ["lr"]


def test_places_may_be_written_in_other_ways(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(data="flowers/", model="runs/a/best")
    same = Recipe(data=str(tmp_path / "flowers"), model="./runs/b/../a/best")
    assert recipe.conflicts(same) == []
    assert recipe.conflicts(Recipe(data="trees", model="nat_mini")) == ["data", "model"]


def test_data_sets_are_known_with_hyphens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Recipe(data="fashion-mnist").data == "fashion_mnist"
    assert Recipe(data="my-mnist").data == "my-mnist"
    (tmp_path / "fashion-mnist").mkdir()
    assert Recipe(data="fashion-mnist").data == "fashion-mnist"  # a folder of one's own


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_of_the_library_load_by_name(path):
    assert Recipe.load(path.stem) == Recipe.load(path)


def test_the_guide_names_only_options_and_recipes_that_there_are():
    text = (ROOT / "docs" / "finetuning.md").read_text()
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    known = {flag for action in parser._actions for flag in action.option_strings}
    # Of mlx.launch, of quantize, of the script that fetches emoji, and of evaluate.
    others = {"--hostfile", "--bits", "--mode", "--mixed", "--calibrate", "--group-size"}
    others |= {"--by", "--tones", "--csv"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= known | others
    assert not re.search(r"(^ *|`)scripts/\w+\.py -", text, re.M)  # they are no executables
    table = text.split("## Recipes")[1].split("## What")[0]
    named = set(re.findall(r"^\| `(\w+)`", table, re.M))
    assert named <= {path.stem for path in RECIPES} and len(named) >= 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown option 'epoch'"),
        ({"epochs": 0}, "'epochs' must be at least 1"),
        ({"epochs": "many"}, "'epochs' must be int but got 'many'"),
        ({"epochs": True}, "'epochs' must be int but got True"),
        ({"lr": "high"}, "'lr' must be float but got 'high'"),
        ({"freeze": "levels.0"}, "'freeze' must be list but got 'levels.0'"),
        ({"betas": [0.9, "b"]}, r"'betas\[1\]' must be float but got 'b'"),
        ({"lora_targets": [1]}, r"'lora_targets\[0\]' must be str but got 1"),
        ({"optimizer": "adam"}, "'optimizer' must be one of adamw, sgd, lion"),
        ({"val_fraction": 1.5}, "'val_fraction' must lie in"),
        *(({name: -1}, f"'{name}' must not be negative but got -1") for name in NOT_NEGATIVE),
        ({"lr": float("nan")}, "'lr' must not be negative but got nan"),
        ({"momentum": 1}, r"'momentum' must lie in \[0, 1\) but got 1"),
        ({"crop_scale": 0}, r"'crop_scale' must lie in \(0, 1\] but got 0"),
        ({"rand_augment": 11}, r"'rand_augment' must lie in \[0, 10\] but got 11"),
        ({"workers": 0}, "'workers' must be at least 1 but got 0"),
        ({"image_size": 0}, "'image_size' must be at least 1 but got 0"),
        ({"betas": [0.9]}, r"'betas' must be two numbers in \[0, 1\) but got \[0.9\]"),
        ({"betas": [0.9, 1]}, r"'betas' must be two numbers in \[0, 1\) but got"),
        ({"model": None}, "'model' must be str but got None"),
        ({"batch_size": 10, "accumulate": 3}, "must be a multiple of 'accumulate' 3"),
    ],
)
def test_bad_options_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Recipe.from_dict(values)


def test_a_file_that_is_no_yaml(tmp_path):
    (tmp_path / "r.yaml").write_text("epochs: [3\nlr: 1")
    with pytest.raises(ValueError, match=r"r.yaml must be YAML but is not: .* line 2") as error:
        Recipe.load(tmp_path / "r.yaml")
    assert "\n" not in str(error.value)
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"r.yaml must be YAML but is not"):
        Recipe.load(tmp_path / "r.yaml")
