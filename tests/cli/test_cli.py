"""The command as people use it: what it prints, and how it exits."""

import dataclasses
import json
import subprocess
import sys

import pytest
from PIL import Image

from natten_zoo import __version__, create_model, get_record, ops
from natten_zoo.cli import demo, main, verbs
from natten_zoo.cli._text import table


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def usage_error(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_help_lists_every_verb(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert {"classify", "demo", "evaluate", "info", "list", "visualize"} <= set(verbs())
    assert all(f"\n    {verb}" in text for verb in verbs())


@pytest.mark.parametrize("verb", sorted(verbs()))
def test_every_verb_has_help_without_heavy_imports(verb):
    code = (
        "import sys; from natten_zoo.cli import main\n"
        f"try: main(['{verb}', '--help'])\n"
        "except SystemExit as stop: print(stop.code)\n"
        "print([m for m in ('huggingface_hub', 'matplotlib', 'mlx.data') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-2:] == ["0", "[]"], result.stdout + result.stderr
    assert len(result.stdout) > 400


@pytest.mark.parametrize(
    "arguments",
    [[], ["clasify"], ["classify"], ["classify", "x", "--top=0"], ["doctor", "--rounds=0"]],
)
def test_usage_errors(capsys, arguments):
    assert "usage: natten-zoo" in usage_error(capsys, *arguments)


def test_python_m_and_version():
    command = [sys.executable, "-m", "natten_zoo", "--version"]
    assert subprocess.check_output(command, text=True) == f"natten-zoo {__version__}\n"


def test_classify(capsys, tiny, photos):
    status, out, err = run(capsys, "classify", photos, "--model", tiny, "--top", 2)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[::3] == [
        str(photos / color / f"{i}.png") for color in ("blue", "green", "red") for i in (0, 1)
    ]
    best = [line.split()[-1] for line in lines[1::3]]
    assert best == ["blue", "blue", "green", "green", "red", "red"]


def test_classify_json_in_batches(capsys, tiny, photos):
    arguments = ["classify", f"{photos}/*/1.png", "--model", tiny, "--json", "--batch-size", 2]
    status, out, _ = run(capsys, *arguments)
    results = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [result["classes"][0]["class"] for result in results] == ["blue", "green", "red"]
    assert [result["classes"][0]["index"] for result in results] == [2, 1, 0]
    for result in results:
        assert abs(sum(entry["probability"] for entry in result["classes"]) - 1) < 1e-5


def test_classify_goes_on_after_failures(capsys, tiny, photos):
    (photos / "red" / "0.png").write_text("damaged")
    status, out, err = run(capsys, "classify", photos, "nowhere.png", "--model", tiny, "--json")
    results = [json.loads(line) for line in out.splitlines()]
    assert status == 1
    assert ["error" in result for result in results] == [False] * 4 + [True, False, True]
    assert "no such file" in results[-1]["error"]
    assert err == "2 of 7 images could not be read\n"
    status, out, err = run(capsys, "classify", photos, "--model", tiny)
    assert (status, out.count("%")) == (1, 15)
    assert "red/0.png: not an image" in err


def test_classify_nothing_readable(capsys, tiny, tmp_path):
    status, out, err = run(capsys, "classify", tmp_path, "*.nothing", "--model", tiny)
    assert (status, out) == (2, "")
    assert "a folder without images" in err and "2 of 2 images" in err


def test_classify_with_labels(capsys, tiny, photos, tmp_path):
    (tmp_path / "names.txt").write_text("rouge\nvert\nbleu\n")
    image = photos / "red" / "0.png"
    arguments = ["classify", image, "--model", tiny, "--labels", tmp_path / "names.txt"]
    _, out, _ = run(capsys, *arguments)
    assert "rouge" in out and "red\n" not in out
    (tmp_path / "names.txt").write_text("rouge\n")
    status, _, err = run(capsys, *arguments)
    assert status == 2 and "must name 3 classes but names 1" in err


def test_models_of_other_inputs(capsys, photos, tmp_path):
    """A record without an input size: information without costs, and no classifying."""
    model = create_model("nat_pico_fashion")
    model.record = dataclasses.replace(model.record, input_size=0)
    body = json.loads((model.save_pretrained(tmp_path / "sound") / "config.json").read_text())
    assert body["record"]["input_size"] == 0
    status, out, _ = run(capsys, "info", tmp_path / "sound")
    count = f"{get_record('nat_pico_fashion').params:,}"
    assert status == 0 and count in out and "pixels" not in out
    status, _, err = run(capsys, "classify", photos, "--model", tmp_path / "sound")
    assert status == 2 and "is no classifier of images" in err


def test_classify_refuses_a_model_without_classifier(capsys, photos, tmp_path):
    create_model("nat_pico_fashion", num_classes=0).save_pretrained(tmp_path / "body")
    status, _, err = run(capsys, "classify", photos, "--model", tmp_path / "body")
    assert status == 2 and "is no classifier of images" in err


def test_classify_reads_gray_and_transparent_images(capsys, tiny, tmp_path):
    Image.new("LA", (9, 9), (128, 0)).save(tmp_path / "clear.png")
    status, out, _ = run(capsys, "classify", tmp_path, "--model", tiny)
    assert status == 0 and "clear.png" in out


@pytest.mark.parametrize("verb", ["classify x.png --model", "info", "list", "evaluate x --model"])
def test_unknown_models_get_the_nearest_names(capsys, verb):
    status, _, err = run(capsys, *verb.split(), "dinat_tny")
    assert status == 2
    assert err.startswith(f"natten-zoo {verb.split()[0]}: ") and "dinat_tiny" in err


def test_list(capsys):
    status, out, _ = run(capsys, "list", "nat_[mt]*")
    header, *rows = out.splitlines()
    assert status == 0
    assert header.split() == [
        "name", "task", "params", "GMACs", "published", "parity", "license", "weights",
    ]  # fmt: skip
    assert rows[0].split() == [
        *("nat_mini", "image", "19.98", "M", "2.71", "81.8", "%", "top-1"),
        *("generated", "MIT", "Hugging", "Face"),
    ]
    assert [row.split()[0] for row in rows] == ["nat_mini", "nat_tiny"]


def test_list_fits_a_terminal(capsys):
    _, out, _ = run(capsys, "list")
    assert max(map(len, out.splitlines())) <= 100
    _, out, _ = run(capsys, "list", "oneformer_coco*")
    _, name, row = out.splitlines()  # a long name has a line of its own
    assert name == "oneformer_coco_dinat_large"
    assert row.split()[:6] == ["segments", "223.19", "M", "539.33", "58.0", "%"]


def test_list_json(capsys):
    _, out, _ = run(capsys, "list", "--json")
    records = {record["name"]: record for record in json.loads(out)}
    assert len(records) >= 26
    assert records["dinat_large_384"]["input_size"] == 384
    assert records["upernet_nat_mini"]["task"] == "image-segmentation"
    assert records["harmonix-fold0"]["parity"] == "trained"
    published = [record for record in records.values() if record["hub"] or record["url"]]
    assert len(published) > 40 and all(
        r["params"] and r["gmacs"] and r["parity"] for r in published
    )


def test_evaluate(capsys, tiny, photos):
    (photos / "red" / "2.png").write_bytes((photos / "blue" / "0.png").read_bytes())
    status, out, _ = run(capsys, "evaluate", photos, "--model", tiny)
    assert status == 0
    assert "7 images: top-1 85.71 %" in out and "top-5" not in out  # all of three classes
    red = next(line for line in out.splitlines() if line.startswith("red"))
    assert red.split() == ["red", "3", "66.67", "%", "blue", "(1)"]


def test_evaluate_json_and_confusion(capsys, tiny, photos, tmp_path):
    (photos / "red" / "broken.png").write_text("damaged")
    picture = tmp_path / "new" / "confusion.png"
    arguments = ["evaluate", photos, "--model", tiny, "--json", "--confusion", picture]
    status, out, err = run(capsys, *arguments)
    result = json.loads(out)
    assert status == 1
    assert result["images"] == 6 and result["top1"] == 100.0
    assert [c["class"] for c in result["classes"]] == ["red", "green", "blue"]
    assert len(result["failures"]) == 1 and "broken.png" in err
    assert min(Image.open(picture).size) > 300


def test_evaluate_a_part(capsys, tiny, photos):
    _, out, _ = run(capsys, "evaluate", photos, "--model", tiny, "--limit", 3, "--json")
    result = json.loads(out)
    assert [c["images"] for c in result["classes"]] == [1, 1, 1]  # evenly spread


def test_evaluate_refuses_other_classes(capsys, tiny, photos):
    (photos / "red").rename(photos / "crimson")
    (photos / "more").mkdir()
    (photos / "more" / "0.png").write_bytes((photos / "blue" / "0.png").read_bytes())
    status, _, err = run(capsys, "evaluate", photos, "--model", tiny)
    assert status == 2 and "of 4 folders 'crimson', 'more'" in err
    assert "3 classes: 'red', 'green', 'blue'" in err
    (photos / "more" / "0.png").unlink()
    (photos / "more").rmdir()
    status, _, err = run(capsys, "evaluate", photos, "--model", tiny, "--by-order")
    assert status == 0  # blue, crimson, green for red, green, blue
    for color in ("blue", "green"):
        (photos / color).rename(photos / f"{color}s")
    status, _, err = run(capsys, "evaluate", photos, "--model", tiny)
    assert status == 2 and "'blues', 'crimson', 'greens'" in err and "choose --by-order" in err
    status, _, err = run(capsys, "evaluate", "fashion-mnist", "--model", tiny)
    assert status == 2 and "10 classes but the model has 3" in err


def test_table_aligns():
    assert table(["a", "b"], [["xyz", "1"]], "<>") == "a    b\nxyz  1"


def test_a_closed_pipe_is_no_error(tiny, photos):
    command = f"{sys.executable} -m natten_zoo classify {photos} --model {tiny} | head -n 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert result.stdout.count("\n") == 1 and result.stderr == ""


def test_visualize(capsys, tiny, photos, tmp_path):
    out = tmp_path / "looks.png"
    arguments = ["visualize", photos / "red" / "1.png", "--model", tiny, "--out", out]
    status, printed, _ = run(capsys, *arguments, "--query", "3,12")
    assert (status, printed) == (0, f"{out}\n")
    assert Image.open(out).format == "PNG"
    status, _, err = run(capsys, *arguments, "--query", "3,16")
    assert status == 2 and "must lie in 16 x 16 pixels but got (3, 16)" in err
    assert "invalid point value" in usage_error(capsys, *arguments, "--query", "3")
    image = photos / "red" / "1.png"
    status, _, err = run(capsys, "visualize", image, "--model", tiny, "--out", image)
    assert status == 2 and "1.png would overwrite the input" in err
    assert Image.open(image).size == (30, 30)


@pytest.mark.parametrize(
    "arguments",
    [
        "visualize x.png --out", "demo --out", "segment x.png --out", "evaluate x --confusion",
        "analyze-music x.npz --plot",
    ],
)  # fmt: skip
def test_pictures_are_png(capsys, arguments):
    assert "must end in .png but got looks.jpg" in usage_error(
        capsys, *arguments.split(), "looks.jpg"
    )


def test_demo(capsys, monkeypatch, tmp_path):
    """With an untrained model: the table and the picture are there, the answers do not matter."""
    create_model("nat_pico_fashion").save_pretrained(tmp_path / "pico")
    monkeypatch.setattr(demo, "DEFAULT_MODEL", str(tmp_path / "pico"))
    status, out, _ = run(capsys, "demo", "--out", tmp_path / "demo.png")
    lines = out.splitlines()
    assert status == 0
    assert lines[7].split()[:2] == ["03_dress_00013.png", "Dress"]
    right = sum("wrong" not in line for line in lines[1:21])
    assert f"{right} of 20 images right" in lines[22]
    assert Image.open(tmp_path / "demo.png").width > 1000


def test_demo_without_matplotlib_still_prints_the_table(capsys, monkeypatch, tmp_path):
    create_model("nat_pico_fashion").save_pretrained(tmp_path / "pico")
    monkeypatch.setattr(demo, "DEFAULT_MODEL", str(tmp_path / "pico"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, err = run(capsys, "demo", "--out", tmp_path / "demo.png")
    assert status == 1
    assert "images right" in out and "pip install 'natten-zoo[viz]'" in err


def test_the_embedded_model(capsys, tmp_path):
    """It is the default, works offline, and knows its samples."""
    status, out, _ = run(capsys, "demo", "--out", tmp_path / "demo.png")
    right = sum("wrong" not in line for line in out.splitlines()[1:21])
    assert status == 0 and right >= 18
    assert f"{get_record('nat_pico_fashion').top1:.2f} % of the 10,000 test images" in out
    status, out, _ = run(capsys, "evaluate", "fashion-mnist", "--limit", 100, "--json")
    assert status == 0 and json.loads(out)["top1"] >= 88


@pytest.mark.slow
def test_evaluate_reproduces_the_recorded_accuracy(capsys):
    result = json.loads(run(capsys, "evaluate", "fashion-mnist", "--json")[1])
    assert result["images"] == 10_000
    # Sums of another order on another device may turn an image or two.
    assert abs(result["top1"] - get_record("nat_pico_fashion").top1) <= 0.03


def test_errors_of_the_machine_are_a_line(capsys, monkeypatch, tiny, photos):
    """A forced tier that cannot run; a disk that is full, of which MLX says so."""
    wrong = "fast_metal" if ops.has_cuda() else "cuda"
    with ops.use_backend(wrong):
        status, _, err = run(capsys, "classify", photos, "--model", tiny)
    assert status == 2 and f"backend '{wrong}' cannot run this" in err and err.count("\n") == 1

    def full(*arguments, **options):
        raise RuntimeError("[save_safetensors] Unable to write 8 bytes to file.")

    monkeypatch.setattr("mlx.core.save_safetensors", full)
    status, _, err = run(capsys, "convert", tiny, photos / "out")
    assert status == 2 and err.endswith("convert: Unable to write 8 bytes to file.\n")


def test_a_recipe_of_wrong_types_is_a_line(capsys, tmp_path):
    (tmp_path / "r.yaml").write_text("epochs: three")
    status, _, err = run(capsys, "finetune", "-c", tmp_path / "r.yaml", "--out", tmp_path / "run")
    assert status == 2 and err == "natten-zoo finetune: --epochs must be int but got 'three'.\n"
