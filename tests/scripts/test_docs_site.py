"""What `make docs` makes of the code, and that it notices what its site lacks."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

import natten_zoo

pytest.importorskip("mkdocstrings", reason="needs the extra `docs`")
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import docs_site


def names():
    """Every public name, in full."""
    for package in docs_site.PACKAGES:
        for module, found in docs_site.reference(package).items():
            yield from (f"{module}.{name}" for name in found)


def test_every_package_has_a_page():
    public = {getattr(natten_zoo, name) for name in natten_zoo.__all__}
    packages = {m.__name__ for m in public if isinstance(m, ModuleType)} - {"natten_zoo.cli"}
    assert packages == {f"natten_zoo.{name}" for name in docs_site.PACKAGES}


def test_what_the_package_hands_on_is_on_a_page():
    last = {name.rpartition(".")[2] for name in names()}
    functions = {n for n in natten_zoo.__all__ if f"natten_zoo.{n}" not in sys.modules}
    assert {"NAT", "create_model"} <= functions <= last


def test_a_missing_name_is_noticed(tmp_path):
    wanted = sorted(names())
    assert len(wanted) > 300 and len(wanted) == len(set(wanted))
    page = tmp_path / "api" / "all.html"
    page.parent.mkdir()
    page.write_text("".join(f'<h2 id="{name}">' for name in wanted if not name.endswith(".na2d")))
    lacking = list(docs_site.missing(tmp_path))
    assert "natten_zoo.ops.na2d" in lacking
    assert all(name.endswith(".na2d") for name in lacking)


def test_names_assigned_together_are_seen():
    import griffe

    source = "a, b = c, d = f(), g()\ne = 1\n\ndef h():\n    i, j = 1, 2\n"
    extensions = griffe.Extensions(docs_site.TupleTargets())
    module = griffe.visit("m", Path("m.py"), source, extensions=extensions)
    assert {*module.members} == {"a", "b", "c", "d", "e", "h"}


def test_formulas_become_mathml():
    page = (
        r'<p><span class="arithmatex">\(a_i &lt; 1\)</span></p><div class="arithmatex">\[x\]</div>'
    )
    drawn = docs_site.on_page_content(page)
    assert drawn.count("<math") == 2 and "arithmatex" not in drawn
    assert 'display="inline"' in drawn and 'display="block"' in drawn


def test_links_lead_to_the_site_or_nowhere():
    page = "[guide](docs/finetuning.md#data), [rules](CONTRIBUTING.md), ![one](docs/images/a.png)"
    wanted = "[guide](finetuning.md#data), [rules](contributing.md), ![one](images/a.png)"
    assert docs_site.moved(page) == wanted
    assert docs_site.on_page_markdown("[`step`](../natten_zoo/step.py).") == "`step`."


def test_the_command_line_page_has_every_verb():
    page = docs_site.command_page()
    for verb in natten_zoo.cli.verbs():
        assert f"usage: natten-zoo {verb}" in page
