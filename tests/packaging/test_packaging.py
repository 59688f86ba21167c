"""The package as users get it: a wheel in a fresh environment, a source archive, a bare clone."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import natten_zoo

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
IMPORT_ALL = """
import importlib, pkgutil, sys
import natten_zoo
for module in pkgutil.walk_packages(natten_zoo.__path__, "natten_zoo."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(natten_zoo.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_wheel_is_pure_and_holds_every_source_file(wheel):
    assert wheel.name.endswith("py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    for path in tracked.stdout.split():
        top = path.split("/")[0]
        compiled = path.startswith("ops/native/") and not path.endswith(".py")
        if top in ("natten_zoo", "ops", "metal", "configs") and not compiled:
            installed = path if top == "natten_zoo" else f"natten_zoo/{path}"
            assert installed in names, f"{path} is missing from the wheel"


def test_wheel_installs_and_imports_from_elsewhere(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=False, system_site_packages=False)
    python = tmp_path / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    run = subprocess.run([python, "-c", IMPORT_ALL], cwd="/", capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert str(tmp_path) in run.stdout
    version = subprocess.run([tmp_path / "env/bin/natten-zoo", "--version"], cwd="/", check=True)
    assert version.returncode == 0


def test_a_wheel_is_not_imported_as_an_archive(wheel):
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    run = subprocess.run(
        [sys.executable, "-S", "-c", "import natten_zoo"],  # without what is installed
        cwd=wheel.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert f"natten_zoo can't be imported from an archive: pip install {wheel}" in run.stderr


def test_bare_clone_and_archive_import(tmp_path):
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", tmp_path], input=archive.stdout, check=True)
    code = "import natten_zoo.ops, sys; print(natten_zoo.ops.__file__)"
    # Without the site module no editable installation of this project gets in first.
    paths = [str(tmp_path), sysconfig.get_path("purelib")]
    run = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": os.pathsep.join(paths), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(tmp_path / "ops" / "__init__.py")


def test_importing_the_package_is_cheap():
    code = "import sys, natten_zoo; print('mlx.core' in sys.modules, 'PIL' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.split() == ["False", "False"], run.stderr


def test_public_names_are_there_after_a_plain_import():
    code = """
import natten_zoo, types
assert {*natten_zoo.__all__} <= {*dir(natten_zoo)}
for name in natten_zoo.__all__:
    found = getattr(natten_zoo, name)
    assert not isinstance(found, types.ModuleType) or found.__name__ == f"natten_zoo.{name}"
print(natten_zoo.viz.view_layers.__name__, natten_zoo.tasks.segmentation.segment.__name__)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.split() == ["view_layers", "segment"], run.stderr
    with pytest.raises(AttributeError, match="'natten_zoo' has no attribute 'nat'"):
        natten_zoo.nat  # noqa: B018


def test_pyproject_says_what_the_package_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == natten_zoo.__version__
    # mlx-data has no wheel for Python 3.14 or Linux on arm64: it must stay an extra.
    assert not any("mlx-data" in d for d in project["dependencies"])
