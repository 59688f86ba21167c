"""natten-zoo doctor: the reference is exact, what is wrong is said, the report is a file."""

from __future__ import annotations

import json
from contextlib import contextmanager

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo import create_model, ops
from natten_zoo.cli import _diagnosis, _expected, main
from natten_zoo.cli.doctor import examine, in_words
from natten_zoo.metal import MATRIX
from natten_zoo.ops import known
from natten_zoo.ops.gpu.device import platform, use_core
from tests.metal_emulator.dry import dry

needs_native = pytest.mark.skipif(not ops.has_nanobind(), reason="only the pure tier runs here")


@pytest.fixture
def one_sample(monkeypatch):
    name = "2-D, K 13"
    monkeypatch.setattr(_diagnosis, "SAMPLES", {name: _diagnosis.SAMPLES[name]})
    monkeypatch.setattr(_diagnosis, "TIMED", (name,))
    published = _diagnosis.PUBLISHED["1-D 1024, K 7"]
    monkeypatch.setattr(_diagnosis, "PUBLISHED", {"1-D 1024, K 7": published})
    return name


@needs_native
def test_the_report_as_text_as_json_and_as_a_file(one_sample, tmp_path, capsys):
    out = tmp_path / "doctor.json"
    assert main(["doctor", "--rounds", "1", "-o", str(out)]) == 0
    text = capsys.readouterr().out
    assert text.endswith("All well.\n") and "nanobind" in text and "0.27, 0.26" in text
    report = json.loads(out.read_text())
    assert [row["problem"] for row in report["parity"]] == [one_sample] * 3 + ["nat_pico_fashion"]
    assert {row["way"] for row in report["milliseconds"]} == {"nanobind", "pure", "dense mask"}
    assert report["tiers"]["pure"] == "runs" and report["machine"]["mlx"]
    assert main(["doctor", "--quick", "--json"]) == 0
    quick = json.loads(capsys.readouterr().out)
    assert quick["well"] and quick["milliseconds"] == [] and len(quick["parity"]) == 2


@needs_native
@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_tier_that_fails_or_is_wrong_is_said(one_sample, monkeypatch, error):
    from natten_zoo.ops import native

    def refuse(*args: object) -> None:
        raise error("threadgroup too large")

    monkeypatch.setattr(native, "differentiable", lambda *_: None)
    monkeypatch.setattr(native, "forward", refuse)
    monkeypatch.setattr(known, "_known", {})
    report = examine(quick=True, rounds=1)
    assert not report["well"] and "WRONG: threadgroup too large" in in_words(report)
    forward = ops.pure.forward
    monkeypatch.setattr(native, "forward", lambda *a: tuple(1.001 * x for x in forward(*a)))
    monkeypatch.setattr(known, "_known", {})
    report = examine(quick=True, rounds=1)
    assert not report["well"] and "Something is wrong" in in_words(report)
    assert not any(row["right"] for row in report["parity"] if row["problem"] == one_sample)


def test_the_reference_does_not_depend_on_the_default_device():
    before = mx.default_device()
    with _diagnosis.on_cpu():
        assert mx.default_device() == mx.Device(mx.cpu)
    assert mx.default_device() == before


@needs_native
def test_a_device_of_imprecise_products_is_not_what_tiers_are_held_against(one_sample, monkeypatch):
    """On a GPU with TF32 the pure tier is off, and a tier that is right is called so."""
    forward, on_cpu, exact = ops.pure.forward, _diagnosis.on_cpu, []

    @contextmanager
    def noted():
        with on_cpu():
            exact.append(True)
            yield
            exact.pop()

    monkeypatch.setattr(_diagnosis, "on_cpu", noted)
    monkeypatch.setattr(
        ops.pure, "forward", lambda *a: tuple(x if exact else 2 * x for x in forward(*a))
    )
    monkeypatch.setattr(known, "_known", {})
    assert examine(quick=True, rounds=1)["well"]
    assert not _diagnosis.compare("pure", one_sample, "float32")["right"]
    assert not _diagnosis.compare_model("pure")["right"]


@pytest.mark.skipif(platform() == "cuda", reason="plays a Metal device")
def test_the_kernels_that_a_mac_builds_and_the_time_that_it_may_take():
    samples = [(s, dtype) for s in _diagnosis.SAMPLES.values() for dtype in _diagnosis.TOLERANCE]
    timed = [(_diagnosis.SAMPLES[name], "float16", 32) for name in _diagnosis.TIMED]
    small = [(sample, "float32") for sample, _ in _diagnosis.PUBLISHED.values()]
    built = 0
    with dry():
        for core in (None, MATRIX):
            for one in (*samples, *timed, *small):
                function, arrays = _diagnosis.problem(*one)
                with use_core(core):
                    built += ops.prepare(function, *arrays, gradients=True).built
        model = create_model(_diagnosis.MODEL)
        built += ops.prepare(model, mx.zeros((10, 28, 28, 1))).built
    assert _expected.KERNELS - 20 < built <= _expected.KERNELS
    assert _expected.KERNELS * _expected.BUILD < _expected.seconds(10) < 120
    report = {"machine": {}, "tiers": {}, "milliseconds": [], "milliseconds, small": [],
              "float32 product error": 0.0, "seconds": 61.0, "well": True,
              "seconds, an M1 by the model, at most": 110.0,
              "parity": [{"tier": "fast_metal", "problem": "x", "dtype": "float32", "right": True,
                          "error": 0.0, "built": 3, "build seconds": 1.5}]}  # fmt: skip
    text = in_words(report)
    assert "3 kernels built in 1.5 s" in text
    assert "This took 61 s; an M1 should take 110 s at most, by the model." in text


def test_products_in_tf32_are_told():
    report = {"machine": {}, "tiers": {}, "parity": [], "milliseconds": [], "well": True,
              "milliseconds, small": [], "seconds": 3.0,
              "float32 product error": 7.7e-4}  # fmt: skip
    assert "off by 8e-04 on this device, as with TF32 (MLX_ENABLE_TF32=0" in in_words(report)
    assert _diagnosis.product_error() < (1e-5 if mx.default_device() == mx.cpu else 1e-2)


def test_the_dense_mask_is_the_neighborhood():
    sample = _diagnosis.SAMPLES["2-D, K 13"]
    function, arrays = _diagnosis.problem(sample, "float32")
    wanted = np.array(function(*arrays))  # [batch, height, width, heads, channels]
    ours = np.array(_diagnosis.dense(sample)(*arrays)).swapaxes(1, 2).reshape(wanted.shape)
    assert np.abs(ours - wanted).max() < 1e-5
