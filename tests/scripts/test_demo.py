"""The page, as people use it: in a browser."""

import base64
import io
import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from natten_zoo.data import read_image
from natten_zoo.models import (
    Mask2Former,
    Mask2FormerConfig,
    NATConfig,
    UPerNet,
    UPerNetConfig,
    load_pretrained,
)
from natten_zoo.pretrained import Record
from natten_zoo.tasks import find_segments, segment
from natten_zoo.tasks.classification import open_classifier
from natten_zoo.viz import view_layers
from natten_zoo.viz.inside import layer_figure

pytest.importorskip("gradio", reason="needs Gradio: pip install 'natten-zoo[demo]'")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/demo.py"
SANDAL = ROOT / "natten_zoo/assets/samples/05_sandal_00008.png"


@pytest.fixture(scope="module")
def address():
    """A server of the page on a free port."""
    with served() as at:
        yield at


@contextmanager
def served(*options):
    """The address of the page, while it is served."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(
        [sys.executable, SCRIPT, "--port", str(port), *options],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    said = []
    for line in server.stdout:
        said.append(line)
        if f"http://127.0.0.1:{port}" in line:
            break
    assert server.poll() is None, "".join(said)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait(30)


@pytest.fixture(scope="module")
def browser():
    # A BLAS that is preloaded for the tests closes the browser.
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    with playwright.sync_playwright() as engine:
        try:  # Debian's, or what `playwright install chromium` brought
            opened = engine.chromium.launch(
                executable_path=shutil.which("chromium"), env=environment
            )
        except playwright.Error as error:
            pytest.skip(f"needs Chromium: {error}")
        yield opened
        opened.close()


@pytest.fixture
def page(browser, address):
    opened = browser.new_page(viewport={"width": 1200, "height": 1300})
    opened.set_default_timeout(30_000)
    opened.asked = []
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.goto(address)
    playwright.expect(opened.locator("#label")).to_contain_text("T-shirt", timeout=30_000)
    opened.wait_for_selector("#one img")
    yield opened
    opened.close()


def upload(page, path):
    page.set_input_files("#image input[type=file]", path)


def change(page, act):
    """The one layer's picture after something was done that changes it."""
    before = page.get_attribute("#one img", "src")
    act()
    page.wait_for_function(
        "before => { const found = document.querySelector('#one img');"
        " return found && found.src != before; }",
        arg=before,
    )
    data = page.get_attribute("#one img", "src").partition("base64,")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def expected(layer, point):
    """The picture of the sandal."""
    model, preprocess = open_classifier("nat_pico_fashion")
    views = view_layers(model, preprocess(SANDAL)[None])
    image = np.asarray(preprocess.crop(read_image(SANDAL, 1)))
    file = io.BytesIO()
    layer_figure(image, views, layer, point).savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))


def test_upload_read_click_and_step_through_the_layers(page, address):
    change(page, lambda: upload(page, SANDAL))
    playwright.expect(page.locator("#label")).to_contain_text("Sandal", timeout=30_000)
    seen = page.locator("#seen img")
    page.wait_for_function("document.querySelector('#seen img').naturalWidth == 448")
    box = seen.bounding_box()
    y, x = 18.5 / 28, 6.5 / 28  # a pixel's center, and inside a token of every layer
    place = {"x": x * box["width"], "y": y * box["height"]}
    picture = change(page, lambda: seen.click(position=place))
    np.testing.assert_array_equal(picture, expected(0, (y, x)))
    number = page.locator("#layer input[type=number]")
    picture = change(page, lambda: (number.fill("6"), number.press("Enter")))
    np.testing.assert_array_equal(picture, expected(5, (y, x)))
    strip = page.locator("#every img")
    assert strip.evaluate("image => image.naturalWidth / image.naturalHeight") > 2
    assert {url.split("/")[2] for url in page.asked if url.startswith("http")} == {address[7:]}


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"damaged", "cannot identify image"), (SANDAL.read_bytes()[:200], "[read_image]")],
)
def test_damaged_files(page, tmp_path, content, message):
    broken = tmp_path / "broken.png"
    broken.write_bytes(content)
    upload(page, broken)
    page.get_by_text(message).first.wait_for()
    change(page, lambda: upload(page, SANDAL))  # and it goes on


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A UPerNet and a Mask2Former, small and untrained, in folders of their names."""
    folder = tmp_path_factory.mktemp("models")
    mx.random.seed(0)
    body = NATConfig(8, (1, 1, 1, 1), (1, 1, 2, 4), kernel_size=3)
    classes = tuple(f"kind {n}" for n in range(4))
    for model, tasks in (
        (UPerNet(UPerNetConfig(body, channels=8, aux_channels=8, num_classes=4)), ()),
        (
            Mask2Former(Mask2FormerConfig(body, 32, 32, num_queries=5, num_classes=4, depth=1)),
            ("panoptic", "semantic"),
        ),
    ):
        name = type(model).__name__
        model.record = Record(
            name, name, model.config.to_dict(), input_size=64, crop_mode="whole", crop_pct=1.0,
            classes=classes, num_classes=4, tasks=tasks,
        )  # fmt: skip
        model.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("name", ["UPerNet", "Mask2Former"])
def test_what_the_pointer_is_on_is_lit_and_named(browser, models, name):
    """The classes of pixels are the task semantic, which the Mask2Former is asked for, too."""
    with served("--model", str(models / name)) as at:
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(30_000)
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(at)
        page.wait_for_selector("#image input[type=file]", state="attached")
        if name == "Mask2Former":
            page.get_by_label("semantic").check()
        else:
            assert not page.locator("#task").is_visible()
        upload(page, SANDAL)
        frame = page.frame_locator("#found iframe")
        frame.locator("body[data-ready]").wait_for()
        box = frame.locator("canvas").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        playwright.expect(frame.locator("#what")).to_contain_text("kind ")
        words = frame.locator("#what").inner_text()
        model = load_pretrained(None, models / name)
        image = read_image(SANDAL)
        is_upernet = name == "UPerNet"
        found = segment(model, image) if is_upernet else find_segments(model, image, "semantic")
        at_center = found.mask[image.height // 2, image.width // 2]
        [entry] = [e for e in found.classes() if e["index"] == at_center]
        assert words == f"{entry['class']}, {entry['share']:.1%}"
        assert {u.split("/")[2] for u in asked if u.startswith("http")} == {at[7:]}
        page.close()


def test_an_unknown_model_gets_the_nearest_names():
    command = [sys.executable, SCRIPT, "--model", "dinat_tny"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "dinat_tiny" in done.stderr
