"""The colored data set, from packages made here: two emoji, one with a tone of skin, one a part."""

import hashlib
import io
import json
import tarfile

import pytest
from PIL import Image

from natten_zoo.data.image_folder import ImageFolder
from scripts import fetch_emoji

EMOJI = [
    {"image": "a.png", "category": "Food & Drink", "subcategory": "food-fruit"},
    {
        "image": "b.png",
        "category": "People & Body",
        "subcategory": "hands",
        "skin_variations": {"1F3FB": {"image": "b-1f3fb.png"}},
    },
    {"image": "c.png", "category": "Component", "subcategory": "skin-tone"},
]


def tgz(vendor: str) -> bytes:
    has = {"has_img_google": True, "has_img_twitter": True}
    rows = [{**row, **has} for row in EMOJI]
    for row in rows:
        row["skin_variations"] = {
            k: {**v, **has} for k, v in row.get("skin_variations", {}).items()
        }
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        add("emoji.json", json.dumps(rows).encode())
        for name in ("a.png", "b.png", "b-1f3fb.png", "c.png"):
            png = io.BytesIO()
            Image.new("RGBA", (64, 64), (200, 0, 0, 0)).save(png, "PNG")
            add(f"img/{vendor}/64/{name}", png.getvalue())
    return data.getvalue()


@pytest.fixture
def packages(tmp_path, monkeypatch):
    parts = {}
    for part, (vendor, _) in fetch_emoji.PARTS.items():
        data = tgz(vendor)
        name = f"emoji-datasource-{vendor}-{fetch_emoji.VERSION}.tgz"
        (tmp_path / name).write_bytes(data)
        parts[part] = vendor, hashlib.sha256(data).hexdigest()
    monkeypatch.setattr(fetch_emoji, "PARTS", parts)
    return tmp_path


@pytest.mark.parametrize("tones", [False, True])
def test_writes_a_labeled_folder(packages, tones):
    out = packages / "emoji"
    options = ["--tones"] if tones else []
    assert fetch_emoji.main([str(out), "--packages", str(packages), *options]) == 0
    for part in ("train", "val"):
        images = ImageFolder.open(out / part)
        assert images.classes == ("food-drink", "people-body")
        assert len(images.files) == 2 + tones
        picture = Image.open(images.files[0])
        assert picture.mode == "RGB" and picture.getpixel((5, 5)) == (255, 255, 255)


def test_by_subcategory(packages):
    out = packages / "emoji"
    options = ["--packages", str(packages), "--by", "subcategory"]
    assert fetch_emoji.main([str(out), *options]) == 0
    assert ImageFolder.open(out / "val").classes == ("food-fruit", "hands")


def test_another_file_is_refused_and_nothing_is_written(packages, capsys):
    for file in packages.glob("*twitter*"):
        file.write_bytes(tgz("google"))
    out = packages / "emoji"
    assert fetch_emoji.main([str(out), "--packages", str(packages)]) == 1
    assert "must have the SHA-256 digest" in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_that_is_there_is_kept(packages):
    with pytest.raises(SystemExit):
        fetch_emoji.main([str(packages), "--packages", str(packages)])
