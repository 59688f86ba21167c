"""A page that shows what is under the pointer: one file, for any browser, nothing fetched."""

from __future__ import annotations

import base64
import html
import io
import json
from typing import Any

import numpy as np
from PIL import Image

from .segmentation import Segmentation
from .segments import Segments, number_image

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>%(title)s</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; color: #22262b;
         margin: 24px auto; max-width: 1180px }
  #what { min-height: 1.5em }
  canvas { max-width: 100%%; cursor: crosshair }
</style>
<p id="what">Point at the picture.</p>
<canvas id="picture" width="%(width)d" height="%(height)d"></canvas>
<script>
const names = %(names)s, pixels = %(width)d * %(height)d;
const picture = document.getElementById("picture").getContext("2d");
const what = document.getElementById("what");
const load = source => new Promise(done => {
  const image = new Image(); image.onload = () => done(image); image.src = source });
Promise.all([load("%(image)s"), load("%(map)s")]).then(([image, map]) => {
  const hidden = document.createElement("canvas");
  hidden.width = map.width; hidden.height = map.height;
  const reader = hidden.getContext("2d", { willReadFrequently: true });
  reader.drawImage(map, 0, 0);
  const bytes = reader.getImageData(0, 0, map.width, map.height).data;
  const numbers = new Uint32Array(pixels);
  for (let i = 0; i < pixels; i++)
    numbers[i] = bytes[4 * i] + 256 * bytes[4 * i + 1] + 65536 * bytes[4 * i + 2];
  let shown = -1;
  const show = number => {
    if (number === shown) return;
    shown = number;
    picture.drawImage(image, 0, 0);
    what.textContent = names[number] ?? "Nothing was found here.";
    if (!(number in names)) return;
    const lit = picture.getImageData(0, 0, map.width, map.height);
    for (let i = 0; i < pixels; i++)
      if (numbers[i] !== number)
        for (let c = 0; c < 3; c++) lit.data[4 * i + c] = 255 - (255 - lit.data[4 * i + c]) * 0.35;
    picture.putImageData(lit, 0, 0);
  };
  picture.drawImage(image, 0, 0);
  document.body.dataset.ready = "yes";
  picture.canvas.onpointermove = event => {
    const box = picture.canvas.getBoundingClientRect();
    const x = Math.min(map.width - 1, (event.clientX - box.left) / box.width * map.width | 0);
    const y = Math.min(map.height - 1, (event.clientY - box.top) / box.height * map.height | 0);
    show(numbers[y * map.width + x]);
  };
  picture.canvas.onpointerleave = () => {
    shown = -1; picture.drawImage(image, 0, 0); what.textContent = "Point at the picture." };
});
</script>
"""


def segment_page(result: Segments | Segmentation, title: str) -> str:
    """An HTML page with the image; what the pointer is on is lit up and named.

    Args:
        result: Of an image.
        title: Of the page.

    Examples:
        >>> image = np.zeros((2, 3), np.uint8)
        >>> found = Segmentation(image, np.zeros((2, 3), int), ("sea",), ((0, 0, 9),))
        >>> "sea, 100.0%" in segment_page(found, "photo.jpg")
        True
    """
    if isinstance(result, Segments):
        numbers, rows = result.map, result.describe()
        names = {r["id"]: f"{r['class']}, {r['score']:.0%} sure, {r['share']:.1%}" for r in rows}
    else:
        numbers, classes = result.mask + 1, result.classes()  # 0 is nothing
        names = {entry["index"] + 1: f"{entry['class']}, {entry['share']:.1%}" for entry in classes}
    height, width = result.image.shape[:2]
    return _PAGE % {
        "title": html.escape(title),
        "width": width,
        "height": height,
        "names": _script(names),
        "image": _data(Image.fromarray(result.image).convert("RGB")),
        "map": _data(number_image(np.asarray(numbers))),
    }


def _script(values: dict[int, Any]) -> str:
    """JSON that cannot end the script that it is in."""
    return json.dumps(values, ensure_ascii=False).replace("<", "\\u003c")


def _data(image: Image.Image) -> str:
    """An image as an address that holds it."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
