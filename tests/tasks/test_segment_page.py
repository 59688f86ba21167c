"""The page that shows what is under the pointer, in a browser and as a file."""

import os
import shutil

import numpy as np
import pytest

from natten_zoo.tasks.mask_rules import Segment
from natten_zoo.tasks.segment_page import segment_page
from natten_zoo.tasks.segmentation import Segmentation
from natten_zoo.tasks.segments import Segments

IMAGE = np.full((40, 60, 3), 90, np.uint8)


def found():
    numbers = np.zeros((40, 60), np.int32)
    numbers[5:20, 10:30] = 300
    parts = (Segment(300, 1, 0.9, True, 300),)
    return Segments(IMAGE, "panoptic", parts, ("sky", "</script>car"), ((1,) * 3,) * 2, numbers)


def test_it_fetches_nothing_and_names_end_no_script():
    page = segment_page(found(), "<b>.jpg")
    assert "http" not in page.replace("http-equiv", "") and page.count("</script>") == 1
    assert "&lt;b&gt;.jpg" in page and "\\u003c/script>car, 90% sure, 12.5%" in page


def test_classes_of_pixels():
    result = Segmentation(IMAGE[..., 0], np.zeros((40, 60), int), ("sea",), ((0, 0, 9),))
    assert '{"1": "sea, 100.0%"}' in segment_page(result, "photo")


def test_in_a_browser(tmp_path):
    engine = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    (tmp_path / "page.html").write_text(segment_page(found(), "photo"))
    # A BLAS that is preloaded for the tests closes the browser.
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    with engine.sync_playwright() as running:
        try:
            browser = running.chromium.launch(
                executable_path=shutil.which("chromium"), env=environment
            )
        except engine.Error as error:
            pytest.skip(f"no browser: {error}")
        page = browser.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        page.wait_for_selector("body[data-ready]")

        def at(x, y):
            box = page.locator("canvas").bounding_box()
            page.mouse.move(box["x"] + x, box["y"] + y)
            pixels = "p => [...document.querySelector('canvas').getContext('2d')" + (
                ".getImageData(p[0], p[1], 1, 1).data].slice(0, 3)"
            )
            return (
                page.inner_text("#what"),
                page.evaluate(pixels, [20, 10]),
                page.evaluate(pixels, [50, 30]),
            )

        words, inside, outside = at(20, 10)
        assert words == "</script>car, 90% sure, 12.5%"
        assert inside == [90] * 3 and outside[0] > 150  # the others grow pale
        words, _, outside = at(50, 30)
        assert words == "Nothing was found here." and outside == [90] * 3
        browser.close()
