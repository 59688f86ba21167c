"""The pictures: drawn, whole, and what they show."""

import sys

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from natten_zoo.layers import NeighborhoodAttention3D
from natten_zoo.models import NAT, NATConfig
from natten_zoo.ops import Neighborhood
from natten_zoo.tasks.evaluation import Evaluation
from natten_zoo.viz import LayerView, view_layers
from natten_zoo.viz.figures import (
    Sample,
    confusion_figure,
    demo_figure,
    describe,
    draw_weights,
    draw_window,
    new_figure,
    save_figure,
)
from natten_zoo.viz.inside import inside_figure, layer_figure, layers_figure, most_dilated


@pytest.fixture(scope="module")
def views():
    dilations = ((1, 2, 2), (1,))
    config = NATConfig(8, (3, 1), (1, 2), kernel_size=3, dilations=dilations, num_classes=2)
    model = NAT(config).eval()
    return view_layers(model, mx.random.normal((1, 32, 32, 3), key=mx.random.key(0)))


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def test_weights_are_written_where_they_belong(views, image):
    axes = new_figure(3, 3).add_subplot()
    draw_weights(axes, image, views[1], (0, 7))
    rows, columns = views[1].window((0, 7))  # dilation 2 on 8 x 8 tokens of 4 pixels
    places = {tuple(text.get_position()) for text in axes.texts}
    assert places == {(x * 4 + 1.5, y * 4 + 1.5) for y in rows for x in columns}
    total = sum(int(text.get_text()) for text in axes.texts)
    assert abs(total - 100) <= 5
    outlined = axes.patches[-1]
    assert (outlined.get_x(), outlined.get_y()) == (27.5, -0.5)


def test_uniform_attention_is_pale(views, image):
    """That of an untrained model says nothing; in its own scale all of it would be the largest."""
    axes = new_figure(3, 3).add_subplot()
    draw_weights(axes, image, views[0], (4, 4))
    filled = [patch.get_alpha() for patch in axes.patches if patch.get_fill()]
    assert len(filled) == 9 and max(filled) < 0.45
    figure = layers_figure(image, views, (0.5, 0.5))
    colors = figure.axes[0].images[-1]
    assert colors.norm.vmin == 0 and colors.norm.vmax >= 4 / 9


def test_window(views):
    axes = new_figure(3, 3).add_subplot()
    draw_window(
        axes, Neighborhood.of(2, (3, 2), dilation=(1, 3), is_causal=(True, False)), (5, 7), (1, 3)
    )
    corners = [(patch.get_y() + 0.5, patch.get_x() + 0.5) for patch in axes.patches]
    assert corners == [(0, 0), (0, 3), (1, 0), (1, 3), (1, 3)]  # the query last


def test_titles(views):
    assert most_dilated(views[:3]) is views[2]
    assert describe(views[2]) == "levels.0.blocks.2.attn\n3×3 of 8×8 tokens, dilation 2"
    layer = NeighborhoodAttention3D(8, 2, 3, dilation=(1, 4, 4))
    clip = LayerView("clips", layer, mx.zeros((1, 3, 12, 12, 8)))
    assert describe(clip) == "clips\n3×3×3 of 3×12×12 tokens, dilation 4"
    figure = inside_figure("a title", np.zeros((32, 32), np.uint8), views, (0.5, 0.5))
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 8
    assert titles[2] == "reach\nseen after 0 to 3 layers, light to dark"
    assert titles[7] == "rollout\nthrough 4 layers"


def test_one_layer_and_all_layers(views):
    image = np.zeros((32, 32), np.uint8)
    panels = layer_figure(image, views, 3, (0.5, 0.9)).axes
    assert [axes.get_title().split("\n")[1] for axes in panels] == [
        "3×3 of 4×4 tokens", "seen after 0 to 1 layers, light to dark", "through 4 layers",
    ]  # fmt: skip
    assert "0 to 2 layers" in layer_figure(image, views, 1, (0, 0)).axes[1].get_title()
    panels = layers_figure(image, views, (0.5, 0.9), columns=3).axes
    assert [axes.get_title() for axes in panels] == ["1", "2", "3", "4", "", ""]
    drawn = panels[1].images[1].get_array()  # what lies outside the window stays bare
    assert np.count_nonzero(~np.isnan(drawn.filled(np.nan))) == 9
    np.testing.assert_allclose(np.nansum(drawn.filled(np.nan)), 1, rtol=1e-5)


def test_demo_figure(views, image, tmp_path):
    samples = [Sample(image, "cat", "cat", 0.875), Sample(image, "cat", "dog", 0.5)]
    figure = demo_figure("a title", samples, image, views[:2], (0.25, 0.75))
    texts = {text.get_text(): text for axes in figure.axes for text in axes.texts}
    assert {"cat", "88%", "dog", "50%, is cat"} <= set(texts)
    assert texts["cat"].get_color() != texts["dog"].get_color()
    path = save_figure(figure, tmp_path / "new" / "demo.png")
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > 1000


def test_confusion_figure():
    result = Evaluation(("a", "b", "c"), np.array([0, 0, 2]), np.array([[0], [2], [2]]))
    axes = confusion_figure(result).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "c"]
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown == {(0, 0): "50", (1, 0): "50", (1, 1): "100"}


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "picture.png"
    target.write_text("before")
    figure = new_figure(1, 1)

    def fail(file, **_):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save_figure(figure, target)
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    assert target.read_text() == "before"


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'natten-zoo\[viz\]'"):
        new_figure(1, 1)
