"""What people are told: in the words of the command line, of their files, and before it is late."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from PIL import Image

from natten_zoo.cli import main
from natten_zoo.cli._diagnosis import blas_in_words, loaded_libraries
from natten_zoo.cli._text import typed
from natten_zoo.files import write_whole
from natten_zoo.training.config import recipe_names
from tests.training.runs import TINY, write_images

SAMPLE = "natten_zoo/assets/samples/00_t-shirt-top_00019.png"


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def photo(tmp_path):
    Image.new("RGB", (28, 28), (9, 9, 9)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_words_of_the_command_line():
    options = {"batch_size": "--batch-size", "train": "--train"}
    assert typed("[a.b] [c d] 'batch_size' 'other'.", options) == "--batch-size 'other'."
    assert typed("folders 'x', 'train' and 'train', 'y'; see list_models()", options) == (
        "folders 'x', 'train' and 'train', 'y'; see `natten-zoo list`"
    )


def test_no_python_names(capsys, tmp_path):
    status, _, err = run(capsys, "classify", tmp_path / "none.jpg", "-m", "nat_pico_fashion")
    assert status == 2 and err.startswith(f"{tmp_path / 'none.jpg'}: no such file")
    status, out, _ = run(capsys, "classify", tmp_path / "none.jpg", "--json")
    assert json.loads(out)["error"].startswith(f"{tmp_path}")
    _, _, err = run(capsys, "info", "qqqqqqqqq")
    assert err.endswith("see `natten-zoo list`.\n") and "[" not in err
    _, _, err = run(capsys, "finetune", tmp_path, "--out", tmp_path / "o", "--batch-size", 0)
    assert err == "natten-zoo finetune: --batch-size must be at least 1 but got 0.\n"


def test_without_model_it_is_said_what_the_packaged_one_knows(capsys, photo):
    _, _, err = run(capsys, "classify", photo)
    assert err.count("\n") == 1 and "ten kinds of clothes" in err and "--model nat_mini" in err
    assert run(capsys, "classify", photo, "--model", "nat_pico_fashion")[2] == ""


def test_labels_that_are_a_photo(capsys, photo):
    status, _, err = run(capsys, "classify", photo, "-m", "nat_pico_fashion", "--labels", photo)
    assert status == 2 and "photo.png must hold class names as text in UTF-8" in err


def test_a_recipe_that_there_is_not(capsys, tmp_path):
    status, _, err = run(capsys, "finetune", tmp_path, "-c", "nope", "-o", tmp_path / "run")
    assert status == 2 and "nope: no such file or recipe; recipes are diffusion, finetune, " in err
    assert {"finetune", "lora", "linear_probe"} <= set(recipe_names())
    _, _, err = run(capsys, "finetune", tmp_path, "-c", tmp_path, "-o", tmp_path / "run")
    assert "a folder, not a recipe" in err


def test_what_cannot_be_written_is_named(capsys, photo, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "x.png", "/proc/none/x.png"):
        status, _, err = run(capsys, "visualize", photo, "-m", "nat_pico_fashion", "-o", out)
        assert status == 2 and "partial" not in err and "Errno" not in err
        assert str(out).removesuffix("/x.png") in err
    with pytest.raises(OSError) as error:
        write_whole("/proc/x.png", lambda file: None)
    assert error.value.filename == "/proc/x.png"


def test_warnings_are_lines(capsys, photo):
    with warnings.catch_warnings(record=True) as before:
        folder = photo.parent / "data"
        for number in range(10):
            (folder / str(number)).mkdir(parents=True)
            Image.new("L", (28, 28), 20 * number).save(folder / str(number) / "0.png")
        status, _, err = run(capsys, "evaluate", folder)
    assert status == 0 and not before
    assert err.startswith(f"natten-zoo evaluate: the folders of {folder} are numbers and were")
    assert ".py" not in err


def test_names_that_do_not_match_are_no_success(capsys, photo):
    folder = photo.parent / "data"
    for number in range(10):
        (folder / f"thing {number}").mkdir(parents=True)
        Image.new("L", (28, 28), 20 * number).save(folder / f"thing {number}" / "0.png")
    status, out, err = run(capsys, "evaluate", folder)
    assert status == 2 and not out
    assert "'thing 0', 'thing 1'" in err and "'T-shirt/top', 'Trouser'" in err
    assert "choose --by-order" in err
    assert run(capsys, "evaluate", folder, "--by-order")[0] == 0


def test_fashion_mnist_from_a_folder(capsys, tmp_path):
    """As it is published, or as browsers unpack it."""
    from tests.data.test_image_files import idx

    images = np.random.default_rng(0).integers(0, 255, (20, 28, 28), dtype=np.uint8)
    labels = np.arange(20, dtype=np.uint8) % 10
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        (tmp_path / f"t10k-{kind}-ubyte.gz").write_bytes(idx(array))
    status, out, _ = run(capsys, "evaluate", tmp_path, "--json")
    assert status == 0 and json.loads(out)["images"] == 20


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "delay", [pytest.param(0.05, marks=SLOW), 0.3, pytest.param(1.0, marks=SLOW)]
)
def test_an_interrupt_is_no_traceback(delay):
    command = [sys.executable, "-m", "natten_zoo", "doctor"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    # Python itself, before it comes to us, may take longer: until then a signal is not ours.
    deadline = time.monotonic() + 60
    while "natten_zoo" not in _opened(process.pid) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode in (130, -signal.SIGINT, 0) and "Traceback" not in err


def _opened(pid):
    try:
        with open(f"/proc/{pid}/maps") as file:
            return "natten_zoo" if "libmlx" in file.read() else ""
    except OSError:
        return "natten_zoo"


def test_doctor_names_the_blas():
    assert blas_in_words(["/l/libopenblasp-r0.so", "/x/libblas-1.so"]).startswith("OpenBLAS")
    own = blas_in_words(["/p/numpy.libs/libscipy_openblas.so", "/x/mlx_cpu.libs/libblas-1.so"])
    assert own.startswith("the reference BLAS (libblas-1.so)") and "LD_PRELOAD" in own
    assert blas_in_words([]) == "unknown"
    assert sys.platform != "linux" or any("libc" in path for path in loaded_libraries())


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    """A run of four updates, as a process of its own whose streams are files."""
    folder = tmp_path_factory.mktemp("short")
    write_images(folder / "data", 10)
    recipe = folder / "tiny.yaml"
    recipe.write_text(json.dumps({"model_args": TINY, "image_size": 16, "pretrained": False}))
    options = "--epochs 2 --batch-size 12 --lr 0.005 --warmup-epochs 0 --compile no --workers 2"
    command = [sys.executable, "-m", "natten_zoo", "finetune", "data", "-c", str(recipe)]
    command += ["-m", "nat_mini", "-o", "out", *options.split()]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "out", done


def test_a_log_file_has_lines(finetuned):
    _, done = finetuned
    assert "\r" not in done.stderr and "update 2/4: epoch 1/2 loss" in done.stderr
    assert "val_accuracy=" in done.stdout
    digits = done.stdout.split("val_accuracy=")[1].split()[0]
    assert len(digits) <= 6


def test_a_short_run_has_a_curve(finetuned):
    out, _ = finetuned
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4]


def test_info_of_a_finetuned_model(finetuned, capsys):
    out, _ = finetuned
    best = json.loads((out / "best" / "config.json").read_text())["training"]["val_accuracy"]
    status, text, _ = run(capsys, "info", out / "best")
    assert status == 0
    first, second, third = text.splitlines()[:3]
    assert f"{out / 'best'}, trained from scratch as nat_mini" in first
    assert "data: update" in second and f"accuracy {best:.2%}" in third


def test_a_stopped_run_says_how_it_goes_on(finetuned, capsys, monkeypatch):
    stopped = {"outcome": "stopped by SIGINT", "step": 1, "steps": 4, "val_accuracy": 0.58333333313}
    monkeypatch.setattr("natten_zoo.training.run", lambda recipe: stopped)
    status, printed, err = run(capsys, "finetune", "data", "-o", "out")
    assert status == 1 and printed.endswith("val_accuracy=0.5833\n")
    assert "the same command resumes the run" in err


def test_finetune_help_tells_the_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for part in ("-m STR, --model STR", "-o STR, --out STR", "(default: 20)", "(default: yes)"):
        assert part in text
