"""Classes of images: the model's own probabilities, of whatever an image comes as."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from natten_zoo import create_model
from natten_zoo.data import ImageError, Preprocess
from natten_zoo.models import NAT, NATConfig
from natten_zoo.tasks import Classification, classify
from natten_zoo.tasks.classification import classify_each, open_classifier

SAMPLES = sorted((Path(__file__).parents[2] / "natten_zoo/assets/samples").glob("*.png"))


@pytest.fixture(scope="module")
def model():
    return create_model("nat_pico_fashion", pretrained=True)


def test_a_label_and_the_models_own_probabilities(model):
    answer = classify(model, SAMPLES[0], top=3)
    inputs = Preprocess.from_record(model.record)(SAMPLES[0])[None]
    expected = np.array(mx.softmax(model(inputs)[0]))
    assert isinstance(answer, Classification)
    assert (answer.label, answer.index) == ("T-shirt/top", 0) and answer.label == answer.best[
        0
    ].label
    assert [guess.index for guess in answer.best] == (-expected).argsort()[:3].tolist()
    np.testing.assert_allclose([g.probability for g in answer.best], sorted(expected)[:-4:-1], 1e-4)


def test_paths_pictures_and_arrays_are_the_same(model):
    path = SAMPLES[4]
    picture = Image.open(path)
    pixels = np.asarray(picture)
    answers = classify(model, [path, str(path), picture, pixels])
    assert len(answers) == 4
    batch = np.stack([pixels, pixels])[..., None]
    alone = [classify(model, path), classify(model, str(path)), classify(model, pixels)]
    for answer in [*answers, *alone, *classify(model, batch)]:
        assert [guess.label for guess in answer.best] == [g.label for g in answers[0].best]
        # Rows of a batch, and batches of another size, are rounded in another order.
        found = [guess.probability for guess in answer.best]
        assert found == pytest.approx([g.probability for g in answers[0].best], rel=1e-4)
    assert classify(model, []) == []


def test_batches_keep_the_order(model):
    labels = [answer.index for answer in classify(model, SAMPLES, batch_size=3)]
    assert labels == [answer.index for answer in classify(model, SAMPLES, batch_size=64)]
    right = [int(path.name[:2]) for path in SAMPLES]
    assert np.mean(np.equal(labels, right)) > 0.8


def test_more_classes_than_there_are_give_all(model):
    assert len(classify(model, SAMPLES[0], top=99).best) == 10
    four = NAT(NATConfig(8, (1,), (1,), kernel_size=3, num_classes=4)).eval()
    guesses = classify(four, np.zeros((32, 32, 3), np.uint8)).best
    assert len(guesses) == 4 and {g.label for g in guesses} == {f"class {i}" for i in range(4)}
    assert sum(guess.probability for guess in guesses) == pytest.approx(1)


def test_what_cannot_be_read_is_an_error_or_a_gap(model, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ImageError, match=r"text\.png"):
        classify(model, [SAMPLES[0], tmp_path / "text.png"])
    answers = list(classify_each(model, [SAMPLES[0], tmp_path / "text.png", SAMPLES[1]]))
    assert [type(answer).__name__ for answer in answers] == [
        "Classification", "ImageError", "Classification",
    ]  # fmt: skip


def test_what_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="'top' must be positive but got 0"):
        classify(model, SAMPLES[0], top=0)
    with pytest.raises(ValueError, match="'batch_size' must be positive but got 0"):
        classify(model, SAMPLES, batch_size=0)
    with pytest.raises(ValueError, match="'names' must name 10 classes but names 1"):
        list(classify_each(model, SAMPLES, names=["shoe"]))
    with pytest.raises(ValueError, match="must classify images but is made for sequence-class"):
        classify(create_model("nat1d_mnist1d"), SAMPLES[0])
    with pytest.raises(ValueError, match="must classify images but is made for image-feature"):
        classify(create_model("naf"), SAMPLES[0])
    with pytest.raises(ValueError, match="is no classifier of images"):
        classify(create_model("nat_pico_fashion", num_classes=0), SAMPLES[0])
    gray = create_model("nat_pico_fashion")
    gray.record = None
    with pytest.raises(ValueError, match="takes images of 1 channels but its mean and"):
        classify(gray, SAMPLES[0])
    folder = create_model("nat1d_mnist1d").save_pretrained(tmp_path / "sequences")
    with pytest.raises(ValueError, match="must classify images but is made for sequence-class"):
        open_classifier(str(folder))
