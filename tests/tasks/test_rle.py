"""Runs of masks: what COCO's tools read."""

import numpy as np
import pytest

from natten_zoo.tasks.rle import Runs, compress, decompress, mask_box, runs_of


@pytest.mark.parametrize("density", [0, 0.02, 0.5, 0.98, 1])
def test_a_mask_in_parts_is_the_whole_mask(density):
    rng = np.random.default_rng(0)
    for _ in range(20):
        height, width = rng.integers(1, 40, 2)
        mask = rng.random((height, width)) < density
        runs, start = Runs(int(height)), 0
        while start < width:
            stop = start + int(rng.integers(1, 9))
            runs.add(mask[:, start:stop])
            start = stop
        assert runs.counts == runs_of(mask).counts and sum(runs.counts) == mask.size
        assert runs.width == width and runs.area == mask.sum()
        np.testing.assert_array_equal(runs.mask(), mask)
        assert decompress(compress(runs.counts)) == runs.counts
        left, top, box_width, box_height = runs.box()
        assert mask[top : top + box_height, left : left + box_width].sum() == mask.sum()


def test_the_text_is_that_of_pycocotools():
    """Encoded once by pycocotools 2.0."""
    mask = np.zeros((7, 40), bool)
    mask[2:5, 3:30] = True
    mask[0, 39] = True
    assert runs_of(mask).to_coco() == {
        "size": [7, 40],
        "counts": "g034000000000000000000000000000000000000000000000000000m1NUN",
    }


def test_an_empty_box():
    assert mask_box(np.zeros((3, 4), bool)) == (0, 0, 0, 0)
