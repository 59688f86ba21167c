"""docs/glossary.md speaks of what is in metal/: names that a rewriting takes away must leave it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "glossary.md").read_text()
SOURCES = "".join(p.read_text() for p in (ROOT / "metal").iterdir() if p.suffix in {".h", ".metal"})


def test_names_of_the_kernels_exist():
    names = re.findall(r"`(na_\w+)`", PAGE)
    assert len(names) >= 3
    assert not [name for name in names if not re.search(rf"\b{name}\b", SOURCES)]


def test_words_are_explained_once():
    words = [w.strip() for row in re.findall(r"^\| ([^|]+) \|", PAGE, re.M) for w in row.split(",")]
    words = [word for word in words if word not in {"word", "---"}]
    assert len(words) > 40 and len(words) == len(set(words))
