"""Beats and sections of music from what a model says of each frame."""

import json

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo import get_record
from natten_zoo.models import AllInOne, AllInOneConfig
from natten_zoo.tasks.music import MusicAnalysis, Section, analyze, peaks, plot


class Scripted(AllInOne):
    """A model that says what it is told to."""

    def __init__(self, **logits):
        super().__init__(AllInOneConfig(depth=1))
        self._logits = logits
        self.record = get_record("harmonix-fold0")

    def __call__(self, x):
        frames = x.shape[2]
        logits = {name: np.full((1, frames), -5.0) for name in ("beat", "downbeat", "section")}
        logits["function"] = np.zeros((1, frames, 10))
        for name, (where, what) in self._logits.items():
            logits[name][0, where] = what
        return type(super().__call__(x[:, :, :1]))(**{k: mx.array(v) for k, v in logits.items()})


def test_analysis():
    """120 beats a minute in fours; a chorus from 15 s on; a second one from 40 s."""
    function = np.eye(10)[[2] * 1500 + [9] * 2500 + [8] * 1000] * 9
    model = Scripted(
        beat=(slice(10, None, 50), 2.0),
        downbeat=([12, 210, 410, 635], 2.0),  # 20 ms late, on time, on time, on no beat
        section=([1500, 1900, 4000], [3.0, 1.0, 3.0]),  # the second is too near to the first
        function=(slice(None), function),
    )
    found = analyze(model, np.zeros((4, 5000, 81)))
    assert found.duration == 50.0
    np.testing.assert_allclose(found.beats, np.arange(100) * 0.5 + 0.1)
    assert found.downbeats == (0.1, 2.1, 4.1)
    assert found.sections == (
        Section(0.0, 15.0, "intro"), Section(15.0, 40.0, "chorus"), Section(40.0, 50.0, "verse"),
    )  # fmt: skip
    assert json.loads(json.dumps(found.to_dict()))["sections"][1]["label"] == "chorus"
    assert analyze(model, np.zeros((4, 5000, 81)), beat_threshold=0.9).beats == ()


def test_peaks():
    assert peaks(np.array([0.0, 1, 0, 2, 0]), 0.5, 1).tolist() == [1, 3]
    assert peaks(np.array([0.0, 1, 0, 2, 0]), 0.5, 2).tolist() == [3]
    assert peaks(np.full(9, 0.7), 0.5, 2).tolist() == [0]
    assert peaks(np.array([3.0]), 3.0, 50).tolist() == []


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    found: MusicAnalysis = analyze(AllInOne(AllInOneConfig(depth=2)).eval(), np.zeros((4, 120, 81)))
    plot(found).savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
