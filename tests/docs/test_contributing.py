"""CONTRIBUTING.md: what its recipes name is there, and a core has what they ask of one."""

import re
from pathlib import Path

import pytest

from natten_zoo import metal

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
RECIPE = PAGE[PAGE.index("## Recipe: a core") :]
CORES = (metal.MATRIX, metal.SCALAR_4, metal.TENSOR_16, metal.NAX)


def test_files_exist():
    paths = re.findall(
        r"`((?:configs|docs|metal|natten_zoo|ops|scripts|tests)/[\w/]*(?:\.\w+)?)", PAGE
    )
    paths += re.findall(r"\]\((?!http)([^)#]+)\)", PAGE)
    # Names with a gap to fill, and what `make editor` makes.
    paths = [path for path in paths if not re.search("NAME|core_$|test_$|^natten_zoo/ops$", path)]
    assert len(paths) > 20
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_targets_of_make_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"^    make ([\w-]+)", PAGE, re.M))
    assert named and named <= targets


def test_markers_are_those_of_pytest():
    table = PAGE[PAGE.index("| marker |") :].partition("\n\n")[0]
    listed = set(re.findall(r"^\| `(\w+)` \|", table, re.M))
    project = (ROOT / "pyproject.toml").read_text()
    assert listed == set(re.findall(r'^    "(\w+): ', project, re.M)) - {"script"}


@pytest.mark.parametrize("core", CORES, ids=lambda core: core.name)
def test_a_core_defines_what_the_recipe_says(core):
    text = "".join(map(metal.source, core.headers))
    names = set(re.findall(r"`(na_\w+)`", RECIPE))
    assert len(names) >= 12
    assert not [name for name in names if not re.search(rf"\b{name}\b(?: =|\()", text)]


def test_the_recipe_names_all_that_cores_share():
    """What a kernel or a header calls and no file but those of cores defines."""

    def defined(texts):
        return set(re.findall(r"\b(na_\w+)\(", " ".join(re.findall(r"_F[NU]\w* .*?\(", texts))))

    own = [metal.source(n) for n in metal.HEADERS] + [metal.source("fragment.h")]
    kernels = [p.read_text() for p in (ROOT / "metal").glob("*.metal")]
    cores = set.intersection(*(defined("".join(map(metal.source, c.headers))) for c in CORES))
    called = set(re.findall(r"\b(na_\w+)\b", "".join(own + kernels))) & cores
    assert called and called <= set(re.findall(r"`(na_\w+)`", RECIPE))
