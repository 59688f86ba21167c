"""`natten-zoo info`: what is known of a model, and what is counted."""

import json

import pytest

from natten_zoo import create_model, get_record
from natten_zoo.cli import main


def run(capsys, *arguments):
    status = main(["info", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_info(capsys):
    status, out, _ = run(capsys, "dinat_mini")
    assert status == 0
    for part in (
        "parameters     19,984,174",
        "multiply-adds  2,711,119,872 for 224 x 224 pixels",
        "resize the short side to 256 (bicubic), crop the center 224 x 224, divide by 255",
        "license        MIT",
        "0      56 x 56        64      2       3   7 x 7  1 8 1",
        "1      28 x 28       128      4       4   7 x 7  1 4 1 4",
    ):
        assert part in out


def test_info_of_a_folder_for_another_size(capsys, tiny):
    status, out, _ = run(capsys, tiny, "--size", 32, "--json")
    facts = json.loads(out)
    assert status == 0
    assert facts["record"]["classes"] == ["red", "green", "blue"]
    assert [level["map"] for level in facts["levels"]] == ["8 x 8", "4 x 4"]
    half = json.loads(run(capsys, tiny, "--size", 16, "--json")[1])
    assert 3.5 < facts["multiply_adds"] / half["multiply_adds"] < 4


@pytest.mark.parametrize("name", ["nat1d_mnist1d", "harmonix-fold0", "naf"])
def test_info_of_models_whose_input_has_no_side(capsys, tmp_path, name):
    model = create_model(name)
    model.record = None if name == "naf" else model.record.of_other_weights()
    folder = model.save_pretrained(tmp_path / "saved")
    for source in (name, folder):
        status, out, _ = run(capsys, source)
        assert status == 0 and f"{get_record(name).params:,}" in out
        status, _, err = run(capsys, source, "--size", 32)
        assert status == 2 and f"but this model is made for {model.TASK}" in err
