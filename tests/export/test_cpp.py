"""The C++ program of examples/: built against MLX's wheel, it says what Python says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from natten_zoo import create_model
from natten_zoo.export import export_model
from natten_zoo.tasks import classify

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = sorted((ROOT / "natten_zoo/assets/samples").glob("*.png"))


def program(name: str) -> str | None:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    cmake, ninja = program("cmake"), program("ninja")
    if not (cmake and ninja and any(map(shutil.which, ("c++", "g++", "clang++")))):
        pytest.skip("needs a C++20 compiler, cmake and ninja")
    build = tmp_path_factory.mktemp("cpp")
    mlx = subprocess.check_output([sys.executable, "-m", "mlx", "--cmake-dir"], text=True).strip()
    options = [f"-DMLX_ROOT={mlx}", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DCMAKE_BUILD_TYPE=Debug"]
    source = str(ROOT / "examples/cpp")
    subprocess.run([cmake, "-S", source, "-B", build, "-G", "Ninja", *options], check=True)
    subprocess.run([cmake, "--build", build], check=True)
    return build / "classify"


def run(*command) -> subprocess.CompletedProcess:
    return subprocess.run([*map(os.fspath, command)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    model = create_model("nat_pico_fashion", pretrained=True)
    path = tmp_path_factory.mktemp("exported") / "fashion.mlxfn"
    return export_model(model, path, preprocessing=True).path


def test_the_labels_are_pythons(classifier, exported, tmp_path):
    files = [tmp_path / f"{sample.stem}.pgm" for sample in SAMPLES]
    for sample, file in zip(SAMPLES, files, strict=True):
        Image.open(sample).save(file)
    done = run(classifier, exported, *files)
    assert done.returncode == 0, done.stderr
    wanted = classify(create_model("nat_pico_fashion", pretrained=True), list(map(str, SAMPLES)))
    lines = done.stdout.splitlines()
    assert len(lines) == len(wanted) == len(SAMPLES) > 5
    for line, file, answer in zip(lines, files, wanted, strict=True):
        path, label, probability = line.split("\t")
        assert (path, label) == (str(file), answer.label)
        assert float(probability) == pytest.approx(answer.probability, abs=1e-4)


def test_what_it_refuses(classifier, exported, tmp_path):
    short, small = tmp_path / "short.pgm", tmp_path / "small.pgm"
    short.write_bytes(b"P5 28 28 255\n123")
    small.write_bytes(b"P5 2 2 255\n1234")
    for image, message in (
        (SAMPLES[0], "is no binary PGM or PPM"),
        (short, "ends before its last pixel"),
        (small, "No imported function found"),
        (tmp_path / "none.pgm", "is no binary PGM or PPM"),
    ):
        done = run(classifier, exported, image)
        assert done.returncode == 1 and message in done.stderr and not done.stdout
