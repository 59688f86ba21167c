"""From a photo to segments, and from segments to pictures and COCO's files."""

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from natten_zoo.configs.record import Record
from natten_zoo.data import Preprocess
from natten_zoo.data.reading import ImageError
from natten_zoo.layers.padding import pad_to_multiple
from natten_zoo.models.universal_queries import Masks
from natten_zoo.tasks import mask_rules, universal
from natten_zoo.tasks.mask_rules import Frame, Segment
from natten_zoo.tasks.rle import decompress, runs_of
from natten_zoo.tasks.segmentation import Segmentation
from natten_zoo.tasks.segments import Segments, edges
from natten_zoo.tasks.universal import Wanted, each_image, find_segments

from ..universal import given

RNG = np.random.RandomState(0)
PHOTO = np.asarray(
    Image.fromarray(RNG.randint(0, 256, (6, 8, 3), np.uint8)).resize((90, 70), Image.BICUBIC)
)
LOOSE = {"keep": 0.0, "overlap": 0.0}


def square(top, left, size=4):
    mask = np.zeros((12, 16), bool)
    mask[top : top + size, left : left + size] = True
    return mask


@pytest.fixture
def overlapping():
    """Two things of class 1 that overlap, the better one first, on black."""
    masks = square(1, 2), square(3, 4)
    segments = tuple(
        Segment(i, 1, score, True, int(mask.sum()), runs_of(mask))
        for i, (mask, score) in enumerate(zip(masks, (0.9, 0.6), strict=True), 1)
    )
    image = np.zeros((12, 16, 3), np.uint8)
    return Segments(image, "instance", segments, ("sky", "car"), ((1, 2, 3), (4, 5, 6)))


@pytest.fixture
def flat():
    """A thing and some stuff that share no pixel."""
    numbers = np.where(square(1, 2), 300, 0) + np.where(square(6, 9), 2, 0)
    parts = Segment(300, 1, 0.9, True, 16), Segment(2, 0, 0.7, False, 16)
    image = np.zeros((12, 16), np.uint8)
    return Segments(image, "panoptic", parts, ("sky", "car"), ((1, 2, 3), (4, 5, 6)), numbers)


def test_segments_that_overlap(overlapping):
    np.testing.assert_array_equal(overlapping.map == 1, square(1, 2))
    np.testing.assert_array_equal(overlapping.map == 2, square(3, 4) & ~square(1, 2))
    assert [part.id for part in overlapping.at(x=4, y=3)] == [1, 2]
    assert overlapping.at(x=15, y=11) == []
    first, second = overlapping.to_coco()
    assert (first["bbox"], second["bbox"]) == ([2, 1, 4, 4], [4, 3, 4, 4])
    assert (first["category_id"], first["category"], first["score"]) == (1, "car", 0.9)
    counts = decompress(second["segmentation"]["counts"])
    mask = np.repeat(np.arange(len(counts)) % 2, counts).reshape(16, 12).T
    np.testing.assert_array_equal(mask == 1, square(3, 4))


def test_segments_of_a_map(flat):
    assert [part.id for part in flat.at(x=3, y=2)] == [300]
    facts = flat.to_panoptic("mask.png")
    assert facts["file_name"] == "mask.png"
    thing, stuff = facts["segments_info"]
    assert (thing["id"], thing["isthing"], thing["area"], thing["bbox"]) == (
        300,
        1,
        16,
        [2, 1, 4, 4],
    )
    assert (stuff["category"], stuff["isthing"], stuff["iscrowd"]) == ("sky", 0, 0)
    red, green, blue = np.asarray(flat.mask_image()).astype(int).transpose(2, 0, 1)
    np.testing.assert_array_equal(red + 256 * green + 65536 * blue, flat.map)
    described = flat.describe()
    assert described[0]["share"] == round(16 / 192, 6) and described[1]["color"] == [1, 2, 3]


def test_the_overlay_tints_outlines_and_names_them(flat):
    picture = np.asarray(flat.overlay(opacity=1.0))
    assert picture.shape[0] == 12 and picture.shape[1] > 16
    inside = square(1, 2) & ~edges(flat.map)
    assert len(np.unique(picture[:, :16][inside], axis=0)) == 1
    assert (picture[:, :16][edges(flat.map)] == 255).all()
    assert (picture[:, :16][(flat.map == 0) & ~edges(flat.map)] == 0).all()
    assert (picture[:, :16][square(6, 9) & ~edges(flat.map)] == (1, 2, 3)).all()


def small_record(**changes):
    values = {"num_classes": 6, "input_size": 32, "crop_mode": "whole", "crop_pct": 1.0}
    values |= {"interpolation": "bilinear", "classes": tuple("abcdef"), **changes}
    return Record(name="tiny", architecture="OneFormer", model={}, **values)


@pytest.mark.parametrize("name", ["oneformer", "mask2former"])
@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_a_photo_goes_the_authors_way(name, task, monkeypatch):
    """Resized by its short side, padded to a multiple of 32, masks resized twice."""
    model = given(name).model
    monkeypatch.setattr(model, "record", small_record(input_size=48))
    result = find_segments(model, PHOTO, Wanted(task, **LOOSE))
    prepare = Preprocess(48, crop_mode="whole", interpolation="bilinear")
    x = mx.array(prepare.to_numpy(PHOTO))[None]
    assert x.shape == (1, 48, 62, 3)
    x = pad_to_multiple(x, 32)
    found, frame = model(x, task), Frame((64, 64), (48, 62), (70, 90))
    if task == "semantic":
        assert isinstance(result, Segmentation)
        np.testing.assert_array_equal(result.mask, mask_rules.semantic(found, frame))
    elif task == "panoptic":
        numbers, segments = mask_rules.panoptic(found, frame, range(6), **LOOSE)
        np.testing.assert_array_equal(result.map, numbers)
        assert list(result.segments) == segments and segments
    else:
        segments = mask_rules.instances(found, frame)
        assert [(part.label, part.area) for part in result.segments] == [
            (part.label, part.area) for part in segments if part.area
        ]


@pytest.mark.parametrize("name", ["oneformer", "mask2former"])
@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_hugging_faces_way_pads_nothing(name, task, monkeypatch):
    model, seen = given(name).model, []
    monkeypatch.setattr(model, "record", small_record(input_size=48))
    call = type(model).__call__
    monkeypatch.setattr(
        type(model), "__call__", lambda self, x, task: seen.append(x.shape) or call(self, x, task)
    )
    result = find_segments(model, PHOTO, Wanted(task, rules="huggingface", **LOOSE))
    assert seen == [(1, 48, 62, 3)]
    if task == "semantic":
        assert result.mask.shape == (70, 90)
    else:
        assert result.map.shape == (70, 90) and result.map.min() >= 0
        for part in result.segments:
            assert part.id > 0 and result.mask(part).any()


@pytest.fixture
def model(monkeypatch):
    model = given("oneformer").model
    monkeypatch.setattr(model, "record", small_record())
    return model


def test_images_of_one_size_go_together(model, monkeypatch, tmp_path):
    wide, broken = PHOTO[:, ::-1].copy(), tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    images = [PHOTO, wide, PHOTO.transpose(1, 0, 2), broken, wide]
    batches, call = [], type(model).__call__
    monkeypatch.setattr(
        type(model), "__call__", lambda self, x, task: batches.append(len(x)) or call(self, x, task)
    )
    wanted = Wanted("semantic")
    together = dict(each_image(model, images, wanted, batch_size=8))
    assert batches == [2, 1, 1] and list(together) == [0, 1, 2, 3, 4]
    assert isinstance(together[3], ImageError)
    for index in (0, 1, 2, 4):
        alone = find_segments(model, images[index], wanted)
        assert np.mean(alone.mask == together[index].mask) > 0.999
    with pytest.raises(ImageError, match="not an image"):
        find_segments(model, broken)
    with pytest.raises(ValueError, match="'batch_size' must be positive but got 0"):
        list(each_image(model, images, wanted, batch_size=0))


def test_the_record_tells_things_names_and_tasks(model, monkeypatch):
    classes = mx.zeros((1, 2, 20)) + 9 * mx.eye(20)[mx.array([13, 0])]  # a car and the road
    found = Masks(classes, mx.array([[[[5.0, -5.0], [-5.0, 5.0]]]]))
    frame, pixels = Frame((4, 8), (4, 8), (4, 8)), np.zeros((4, 8, 3), np.uint8)
    config = type(model.config)(model.config.backbone, 64, 64, num_classes=19)
    monkeypatch.setattr(model, "config", config)
    monkeypatch.setattr(model, "record", small_record(classes="cityscapes", num_classes=19))
    result = universal.segments_of(model, found, frame, pixels, Wanted())
    assert [(entry["class"], entry["is_thing"]) for entry in result.describe()] == [
        ("car", True),
        ("road", False),
    ]
    instances = universal.segments_of(model, found, frame, pixels, Wanted("instance"))
    assert [entry["class"] for entry in instances.describe()] == ["car"]
    monkeypatch.setattr(model, "record", small_record(tasks=("semantic",)))
    with pytest.raises(ValueError, match="tiny was trained for, semantic, but got 'instance'"):
        find_segments(model, PHOTO, "instance")


@pytest.mark.parametrize("options, message", [
    ({"task": "depth"}, "'task' must be one of panoptic, instance, semantic but got 'depth'"),
    ({"rules": "mine"}, "'rules' must be one of original, huggingface but got 'mine'"),
    ({"keep": 2.0}, "'keep' must be in 0..1 but got 2.0"),
    ({"overlap": -1.0}, "'overlap' must be in 0..1 but got -1.0"),
    ({"top": 0}, "'top' must be positive but got 0"),
])  # fmt: skip
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Wanted(**options)


def test_without_a_record_the_short_side_is_640_pixels(monkeypatch):
    model, seen = given("oneformer").model, []

    def look(self, x, task):
        seen.append(x.shape)
        return Masks(mx.zeros((1, 1, 7)), mx.zeros((1, 2, 2, 1)))

    monkeypatch.setattr(type(model), "__call__", look)
    find_segments(model, PHOTO)
    assert seen == [(1, 640, 832, 3)]


def test_numbers_that_are_none_are_refused(model, monkeypatch):
    found = Masks(mx.zeros((1, 2, 7)), mx.array([0.0, float("nan")]).reshape(1, 1, 1, 2))
    monkeypatch.setattr(type(model), "__call__", lambda self, x, task: found)
    with pytest.raises(ValueError, match="'mask logits' must be finite but has nan"):
        find_segments(model, PHOTO)
