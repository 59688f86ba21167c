"""What a recipe may ask for: models that the trainer can train, on data that they take."""

import pytest

from natten_zoo.training.launch import make_trainer


@pytest.mark.parametrize("model", ["naf", "harmonix-fold0"])
def test_models_of_other_tasks_are_refused(recipe, model):
    with pytest.raises(ValueError, match=rf"'model' must be made for image-.* but got '{model}'"):
        make_trainer(recipe(model=model, model_args={}))


def test_models_of_clips_do_not_learn_from_images(recipe):
    with pytest.raises(ValueError, match="a model of clips learns from moving_fashion but got"):
        make_trainer(recipe(model="nat3d_pico", model_args={}))
