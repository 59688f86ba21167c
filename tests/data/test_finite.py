"""What is no number becomes no answer, in any task."""

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo.data import ImageError, Preprocess, read_image
from natten_zoo.data.preprocess import SequencePreprocess
from natten_zoo.models import NAT, AllInOne, AllInOneConfig, NATConfig, UPerNet, UPerNetConfig
from natten_zoo.tasks.classification import classify
from natten_zoo.tasks.evaluation import evaluate
from natten_zoo.tasks.music import analyze
from natten_zoo.tasks.segmentation import segment
from natten_zoo.viz.upsampling import before_after

BAD = pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])


@BAD
def test_music(bad):
    x = np.zeros((4, 300, 81), np.float32)
    x[1, 10, 3] = bad
    for spectrograms in (x, mx.array(x)):
        with pytest.raises(ValueError, match=r"'spectrograms' must be finite .* at \(1, 10, 3\)"):
            analyze(AllInOne(AllInOneConfig(depth=1)), spectrograms)


@pytest.mark.parametrize("fps", [0, -1, np.nan, np.inf])
def test_frames_a_second(fps):
    with pytest.raises(ValueError, match="'fps' must be positive and finite"):
        analyze(AllInOne(AllInOneConfig(depth=1)), np.zeros((4, 300, 81)), fps=fps)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, np.nan])
@pytest.mark.parametrize("name", ["beat_threshold", "downbeat_threshold"])
def test_thresholds(name, threshold):
    with pytest.raises(ValueError, match=rf"'{name}' must be in 0\.\.1"):
        model = AllInOne(AllInOneConfig(depth=1))
        analyze(model, np.zeros((4, 300, 81)), **{name: threshold})


@BAD
def test_sequences(bad):
    with pytest.raises(ValueError, match=r"'sequence' must be finite .* at \(2, 0\)"):
        SequencePreprocess()(np.array([0, 1, bad]))


@BAD
def test_images_as_arrays(bad):
    for image in (np.full((4, 4, 3), bad), np.full((4, 4), bad, np.float32)):
        with pytest.raises(ImageError, match="of uint8"):
            read_image(image)
        with pytest.raises(ImageError, match="of uint8"):
            Preprocess()(image)


@BAD
def test_feature_maps(bad):
    image, maps = np.zeros((8, 8, 3), np.uint8), [mx.ones((2, 2, 4)), mx.ones((8, 8, 4))]
    for index, name in enumerate(("features", "upsampled")):
        wrong = [*maps]
        wrong[index] = mx.where(mx.arange(4) == 3, bad, maps[index])
        with pytest.raises(ValueError, match=rf"'{name}' must be finite .* at \(0, 0, 3\)"):
            before_after(image, *wrong)


def test_answers_of_damaged_weights():
    config = NATConfig(8, (1, 1), (1, 2), kernel_size=3, num_classes=3)
    model = NAT(config).eval()
    model.head.bias = mx.array([0, mx.nan, 0])
    image = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match=r"'logits' must be finite but has nan at \(0, 1\)"):
        evaluate(model, [image], [0], Preprocess(size=16), "abc")
    with pytest.raises(ValueError, match=r"'probabilities' must be finite but has nan at \(0, 0\)"):
        classify(model, image)
    body = UPerNet(UPerNetConfig(config, channels=8, num_classes=3)).eval()
    body.decode_head.conv_seg.bias = mx.array([0, mx.nan, 0])
    with pytest.raises(ValueError, match="'probabilities' must be finite"):
        segment(body, image, scales=(0.1,))
