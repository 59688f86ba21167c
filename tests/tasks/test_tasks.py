"""The rows of tasks: every model has one, and every tool finds there what it needs."""

import ast

import pytest

from natten_zoo import create_model, get_record, list_models
from natten_zoo.cli import verbs
from natten_zoo.configs.tasks import DATA_SETS, TASKS, find_task
from natten_zoo.models import ARCHITECTURES, Model
from natten_zoo.models.base import Config
from natten_zoo.pretrained.card import model_card
from natten_zoo.tasks import task_of
from natten_zoo.training.launch import TRAINERS
from natten_zoo.training.sources import DATA, FILES


def test_every_model_has_a_row_and_every_row_a_model():
    assert {cls.TASK for cls in ARCHITECTURES.values()} == set(TASKS)
    assert all(task_of(get_record(name)).name in TASKS for name in list_models())


@pytest.mark.parametrize("task", TASKS.values(), ids=str)
def test_a_row_names_what_there_is(task):
    assert task.verb in ("", *verbs())
    assert not task.learns_from or task.name in TRAINERS
    assert not task.files or task.name in FILES
    assert set(task.data_sets) <= set(DATA) == set(DATA_SETS)
    assert task.use, "its card would not say how it is used"


@pytest.mark.parametrize("name", ["nat_mini", "upernet_nat_mini", "naf", "nat3d_pico",
                                  "na_unetr_pico", "nat1d_mnist1d", "harmonix-fold0"])  # fmt: skip
def test_the_card_shows_the_rows_snippet(name):
    model = create_model(name)
    code = str(model_card(model, "me/mine")).split("```python\n")[1].split("```")[0]
    assert f'{type(model).__name__}.from_pretrained("me/mine")' in code
    ast.parse(code)


def test_the_cards_words_on_preprocessing_are_of_the_models_input():
    assert "## Preprocessing" not in str(model_card(create_model("harmonix-fold0"), "me/mine"))
    assert "Any size, divide by 255" in str(model_card(create_model("naf"), "me/mine"))


def test_a_model_of_another_task_is_saved_and_has_a_card(tmp_path):
    class Teller(Model):
        """Tells fortunes."""

        Config = Config
        TASK = "fortune-telling"

    model = Teller(Config())
    assert find_task("fortune-telling").learns_from == ""
    assert "fortune telling" in str(model_card(model, "me/teller"))
    assert (model.save_pretrained(tmp_path / "teller") / "config.json").exists()
