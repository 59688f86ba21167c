"""The structure of a track: when its beats are, where its sections begin, and what they are.

Times are peaks of the models' activations, no more. Upstream decodes beats with a dynamic Bayesian
network, which also keeps the tempo steady; where that matters, feed it `activations`. Sections
are upstream's: maxima over 12 s each way, labeled with the function that is likeliest on average.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from ..data.finite import check_finite
from ..data.labels import output_names
from ..models.allin1 import AllInOne, MusicLogits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Frames a second of the published models' spectrograms: 441 samples of 44,100 per frame.
FPS = 100
# Those chosen for the published models' first fold.
BEAT_THRESHOLD = 0.19
DOWNBEAT_THRESHOLD = 0.22
# Beats are further apart than this: 240 beats a minute.
BEAT_SECONDS = 0.24
# A downbeat further than this from every beat is none.
SNAP_SECONDS = 0.07
SECTION_SECONDS = 12.0


@dataclass(frozen=True)
class Section:
    """A part of a track.

    Attributes:
        start: Its first moment in seconds.
        end: Its last moment in seconds.
        label: Its function, such as `"chorus"`.
    """

    start: float
    end: float
    label: str


@dataclass(frozen=True)
class MusicAnalysis:
    """What was found in a track.

    Attributes:
        duration: Of the track in seconds.
        beats: Times in seconds.
        downbeats: Those beats that begin a bar.
        sections: They follow each other without gaps.
        activations: `beat`, `downbeat` and `section`, probabilities `[frames]`, and
            `function`, `[frames, labels]`.
    """

    duration: float
    beats: tuple[float, ...]
    downbeats: tuple[float, ...]
    sections: tuple[Section, ...]
    activations: dict[str, np.ndarray] = dataclasses.field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """All but the activations as plain data, ready for JSON."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del values["activations"]
        return {**values, "sections": [dataclasses.asdict(section) for section in self.sections]}


def analyze(
    models: AllInOne | Sequence[AllInOne],
    spectrograms: np.ndarray | mx.array,
    *,
    fps: float = FPS,
    beat_threshold: float = BEAT_THRESHOLD,
    downbeat_threshold: float = DOWNBEAT_THRESHOLD,
) -> MusicAnalysis:
    """Find beats, downbeats and sections.

    Args:
        models: A model, or several whose logits are averaged: the published eight folds.
        spectrograms: `[stems, frames, bands]`, as the models take them.
        fps: Frames a second.
        beat_threshold: Least probability of a beat.
        downbeat_threshold: Least probability of a downbeat.

    Raises:
        ValueError: There are no models or no frames, the spectrograms are of another shape or not
            finite, `fps` is not positive, or a threshold is no probability.

    Examples:
        >>> from natten_zoo.models import AllInOneConfig
        >>> models = [AllInOne(AllInOneConfig(depth=1)).eval() for _ in range(2)]
        >>> analyze(models, np.zeros((4, 300, 81))).duration
        3.0
    """
    models = [models] if isinstance(models, AllInOne) else list(models)
    x = mx.array(spectrograms, dtype=mx.float32)
    if not models or x.ndim != 3 or x.shape[1] == 0:
        raise ValueError(
            "[analyze] there must be models, and spectrograms [stems, frames, bands], but got "
            f"{len(models)} models and {x.shape}."
        )
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"[analyze] 'fps' must be positive and finite but got {fps}.")
    for name, threshold in (("beat", beat_threshold), ("downbeat", downbeat_threshold)):
        if not 0 <= threshold <= 1:
            raise ValueError(f"[analyze] '{name}_threshold' must be in 0..1 but got {threshold}.")
    check_finite("analyze", "spectrograms", np.array(x))
    logits = average(models, x[None])
    beat, downbeat, section = (np.array(mx.sigmoid(row[0])) for row in logits[:3])
    function = np.array(mx.softmax(logits.function[0], axis=-1))
    beats = peaks(beat, beat_threshold, round(BEAT_SECONDS * fps / 2))
    downbeats = peaks(downbeat, downbeat_threshold, round(BEAT_SECONDS * fps))
    starts = peaks(section, 0.0, round(SECTION_SECONDS * fps))
    record = models[0].record
    labels = output_names(record.classes if record else None, function.shape[-1])
    return MusicAnalysis(
        duration=len(beat) / fps,
        beats=_seconds(beats, fps),
        downbeats=_seconds(_snap(downbeats, beats, SNAP_SECONDS * fps), fps),
        sections=_sections(starts, function, labels, fps),
        activations={
            "beat": beat, "downbeat": downbeat, "section": section, "function": function,
        },
    )  # fmt: skip


def average(models: Sequence[AllInOne], x: mx.array) -> MusicLogits:
    """The mean of several models' logits, one model at a time."""
    total = models[0](x)
    for model in models[1:]:
        total = MusicLogits(*(a + b for a, b in zip(total, model(x), strict=True)))
        mx.eval(total)
    return MusicLogits(*(value / len(models) for value in total))


def peaks(activation: np.ndarray, threshold: float, radius: int) -> np.ndarray:
    """Frames that exceed a threshold and all frames up to `radius` before and after.

    Of equal frames the first counts.

    Examples:
        >>> peaks(np.array([0.1, 0.9, 0.9, 0.2, 0.5, 0.8]), 0.3, 2).tolist()
        [1, 5]
    """
    padded = np.pad(activation, radius, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1)
    return np.flatnonzero((windows.argmax(axis=-1) == radius) & (activation > threshold))


def _snap(frames: np.ndarray, beats: np.ndarray, tolerance: float) -> np.ndarray:
    """The beat nearest to each frame, of those that have one near enough."""
    if not len(beats):
        return beats
    distance = np.abs(frames[:, None] - beats)
    return np.unique(beats[distance.argmin(axis=1)[distance.min(axis=1) <= tolerance]])


def _sections(
    starts: np.ndarray, function: np.ndarray, labels: Sequence[str], fps: float
) -> tuple[Section, ...]:
    edges = [0, *starts[starts > 0].tolist(), len(function)]
    return tuple(
        Section(start / fps, end / fps, labels[int(function[start:end].mean(axis=0).argmax())])
        for start, end in pairwise(edges)
    )


def _seconds(frames: np.ndarray, fps: float) -> tuple[float, ...]:
    return tuple(float(frame) / fps for frame in frames)


def plot(analysis: MusicAnalysis) -> Figure:
    """Activations over time with beats, downbeats and labeled sections (extra `viz`)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    rows = figure.subplots(3, sharex=True)
    time = np.arange(len(analysis.activations["beat"])) * (
        analysis.duration / len(analysis.activations["beat"])
    )
    marks = {
        "beat": analysis.beats,
        "downbeat": analysis.downbeats,
        "section": [section.start for section in analysis.sections],
    }
    for axes, (name, found) in zip(rows, marks.items(), strict=True):
        axes.plot(time, analysis.activations[name], linewidth=0.8)
        axes.vlines(found, 0, 1, color="tab:red", linewidth=0.6)
        axes.set(ylabel=name, ylim=(0, 1), xlim=(0, analysis.duration))
    for section in analysis.sections:
        middle = (section.start + section.end) / 2
        rows[-1].text(middle, 0.9, section.label, ha="center", va="top", clip_on=True)
    rows[-1].set_xlabel("seconds")
    return figure
