"""Fetch a colored data set: emoji as two vendors draw them, 64 x 64 pixels.

    python scripts/fetch_emoji.py emoji            # emoji/train: Google's, emoji/val: Twitter's
    natten-zoo finetune emoji -c nat_pico_emoji --out runs/emoji

1,906 emoji in folders by category (nine of them) or by subcategory (98, `--by subcategory`); with
`--tones` 1,875 more, the same people and hands in other tones of skin. Training sees one vendor's
drawings and validation the other's of the same emoji: whether a model knows things or pictures.
Transparency becomes white.

The pictures are those of the npm packages emoji-datasource-google (Noto Emoji, Apache License 2.0)
and emoji-datasource-twitter (Twemoji, CC-BY 4.0), about 65 MB each, fetched from the npm registry
(`--registry`) or read where they lie (`--packages`), and checked against their digests.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs from a bare clone, too

from PIL import Image

from natten_zoo.files import remove

VERSION = "16.0.0"
REGISTRY = "https://registry.npmjs.org"
# Part of the data set, vendor, and the SHA-256 digest of its package.
PARTS = {
    "train": ("google", "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"),
    "val": ("twitter", "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"),
}
# Tones of skin and styles of hair: parts of other emoji, drawn as such.
LEFT_OUT = "Component"


def main(argv: list[str] | None = None) -> int:
    """Writes the folders; the exit status tells whether both packages could be had."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="where to write train/CLASS and val/CLASS")
    parser.add_argument("--by", choices=("category", "subcategory"), default="category")
    parser.add_argument("--tones", action="store_true", help="people in every tone of skin, too")
    parser.add_argument("--packages", type=Path, help="a folder that holds the two .tgz files")
    parser.add_argument("--registry", default=REGISTRY)
    args = parser.parse_args(argv)
    if args.out.exists():
        parser.error(f"'out' must not exist yet but there is {args.out}.")
    try:
        packages = {
            part: package(vendor, digest, args.packages, args.registry)
            for part, (vendor, digest) in PARTS.items()
        }
    except (OSError, ValueError) as error:
        print(f"fetch_emoji: error: {error}", file=sys.stderr)
        return 1
    partial = args.out.with_name(f".{args.out.name}.partial")
    remove(partial)  # of one that was killed
    for part, data in packages.items():
        count = write(data, PARTS[part][0], args.by, args.tones, partial / part)
        print(f"{args.out / part}: {count} pictures", flush=True)
    partial.rename(args.out)
    return 0


def package(vendor: str, digest: str, folder: Path | None, registry: str) -> bytes:
    """An npm package, verified.

    Raises:
        OSError: If it cannot be had.
        ValueError: If it is not what was published.
    """
    name = f"emoji-datasource-{vendor}"
    file = f"{name}-{VERSION}.tgz"
    if folder:
        data = (folder / file).read_bytes()
    else:
        url = f"{registry.rstrip('/')}/{name}/-/{file}"
        print(f"fetching {url}", flush=True)
        with urllib.request.urlopen(url, timeout=60) as response:
            data = response.read()
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise ValueError(f"{file} must have the SHA-256 digest {digest} but got {found}.")
    return data


def write(data: bytes, vendor: str, by: str, tones: bool, folder: Path) -> int:
    """Writes a package's pictures, flattened, into folders by class; their number."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = json.loads(_content(archive, "package/emoji.json"))
        classes = {
            image: slug(emoji[by])
            for emoji in names
            if emoji["category"] != LEFT_OUT
            for image in _images(emoji, vendor, tones)
        }
        for image, name in sorted(classes.items()):
            content = _content(archive, f"package/img/{vendor}/64/{image}")
            picture = Image.open(io.BytesIO(content)).convert("RGBA")
            paper = Image.new("RGBA", picture.size, "white")
            paper.alpha_composite(picture)
            (folder / name).mkdir(parents=True, exist_ok=True)
            paper.convert("RGB").save(folder / name / image)
    return len(classes)


def slug(name: str) -> str:
    """A folder's name: `Smileys & Emotion` is `smileys-emotion`."""
    return re.sub(r"\W+", "-", name.lower()).strip("-")


def _images(emoji: dict[str, Any], vendor: str, tones: bool) -> Iterator[str]:
    others = emoji.get("skin_variations", {}) if tones else {}
    for one in (emoji, *others.values()):
        if one[f"has_img_{vendor}"]:
            yield one["image"]


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    if member is None:
        raise ValueError(f"{name} must be a file.")
    return member.read()


if __name__ == "__main__":
    sys.exit(main())
