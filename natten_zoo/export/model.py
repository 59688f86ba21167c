"""From a model to a file with its function, and another with what a program has to know of it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx

from .. import ops
from ..configs.tasks import find_task
from ..data import labels
from ..data.preprocess import Preprocess
from ..files import sha256_of
from ..models import Model
from ..version import __version__
from . import graph
from .exported import Exported, load_exported, sidecar
from .graph import Trace
from .inputs import Inputs, Size, call, example_inputs, function_of

SUFFIX = ".mlxfn"
ANY = (1, 2, 4, 8, 16, 32)  # batches that all others are sums of


def export_model(
    model: Model,
    path: str | os.PathLike[str],
    *,
    target: str = "cpu",
    sizes: Size | Sequence[Size] | None = None,
    batches: int | Sequence[int] | str = 1,
    preprocessing: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Write a model as a function that MLX runs without this library, in Python, C++ or Swift.

    A file has one trace for each size and batch; they share the weights. MLX's shapeless traces are
    not used: of MLX 0.32.4 they give wrong results for indexing, slices and paddings, silently or
    not. Floats are float32 on the way in and out, whatever the model computes in.

    Args:
        model: Any model, in evaluation mode.
        path: The file, `*.mlxfn`. Beside it `*.json` gets what a program has to know: names of
            inputs, outputs and classes, preprocessing, license, versions, digest.
        target: `"cpu"`, or `"metal"`: with the Metal kernels, also from a machine without a
            GPU. See [`exporting`][natten_zoo.ops.exporting].
        sizes: Sides of the input, the record's by default: a number, or a list of numbers and of
            tuples with one number per axis.
        batches: Inputs at a time: a number, several, or `"any"`, which is 1, 2, 4, 8, 16 and 32.
            A program cuts other batches into these, as [`Exported`][natten_zoo.export.Exported]
            does.
        preprocessing: Have the function take pixels of the right size, uint8, and normalize them.
        overwrite: Replace files that are there.

    Returns:
        The function, read back. Where it can run here, its first trace was compared with the model.

    Raises:
        FileExistsError: There is a file at `path` or beside it.
        ValueError: An argument is out of range, or the model is in training mode.
        RuntimeError: What was read back is not what was written; or another thread used MLX first.

    Examples:
        >>> import tempfile
        >>> from natten_zoo import create_model
        >>> from natten_zoo.export import export_model
        >>> model = create_model("nat_pico_fashion", pretrained=True)
        >>> exported = export_model(model, f"{tempfile.mkdtemp()}/fashion.mlxfn", batches=[1, 2])
        >>> exported(mx.zeros((3, 28, 28, 1)))[0].shape
        (3, 10)
    """
    graph.check_stream("export_model")
    target_path = _checked(model, Path(path), overwrite)
    prepare = _preprocess(model) if preprocessing else None
    batches = _batches(batches)
    named = [example_inputs(model, size, n) for size in _sizes(sizes) for n in batches]
    function = function_of(model, list(named[0]), prepare)
    examples = [list(inputs.values()) for inputs in named]
    if prepare is not None:
        examples = [[x.astype(mx.uint8) for x in inputs] for inputs in examples]
    mx.eval(model.parameters())
    target_path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target_path.parent, prefix=".export-") as folder:
        draft = Path(folder) / target_path.name
        traces = _write(draft, function, examples, target)
        facts = _facts(model, named, target, prepare) | {
            "batches": list(batches),
            "kernels": sorted({call.name for call in graph.kernels(traces)}),
            "largest_difference": None,
            "sha256": sha256_of(draft),
        }
        _write_json(sidecar(draft), facts)
        if target == "cpu" or mx.metal.is_available():
            facts["largest_difference"] = _compare(load_exported(draft), function, examples[0])
            _write_json(sidecar(draft), facts)
        else:
            _hold(draft, examples, traces)
        for file in (draft, sidecar(draft)):
            os.replace(file, target_path.parent / file.name)
    return load_exported(target_path)


def _write(
    path: Path,
    function: Callable[..., Any],
    examples: Sequence[Sequence[mx.array]],
    target: str,
) -> list[Trace]:
    """Writes all traces, and returns them."""
    with ops.exporting(target):
        traces = [graph.operations(function, inputs) for inputs in examples]
        with mx.exporter(str(path), function) as exporter:
            for inputs in examples:
                exporter(*inputs)
    if target == "metal" and not mx.metal.is_available():
        graph.place_on_gpu(path, traces)
    return traces


def _compare(
    exported: Exported, function: Callable[..., Any], example: Sequence[mx.array]
) -> float:
    """The largest difference of the outputs, as a part of the largest output.

    Raises:
        RuntimeError: They differ by more than rounding.
    """
    inputs = [_noise(x, seed) for seed, x in enumerate(example)]
    ours, theirs = function(*inputs), exported(*inputs)
    largest: float = 0.0
    for name, a, b in zip(exported.facts["outputs"], ours, theirs, strict=True):
        scale = mx.maximum(mx.abs(a).max(), 1e-6)
        difference = float((mx.abs(a - b).max() / scale).item())  # type: ignore[arg-type]
        if not difference < 2e-2:  # float16 rounds otherwise on another tier; NaN is no number
            raise RuntimeError(f"[export_model] {name} of the file differs by {difference:.1e}.")
        largest = max(largest, difference)
    return largest


def _hold(path: Path, examples: Sequence[Sequence[mx.array]], traces: Sequence[Trace]) -> None:
    """Holds a file that can't run here against what was recorded: its kernels, its outputs' shapes.

    Raises:
        RuntimeError: They differ.
    """
    if graph.read_kernels(path) != graph.kernels(traces):
        raise RuntimeError("[export_model] the file has other kernels than were recorded.")
    twin = path.with_name("twin.mlxfn")
    twin.write_bytes(path.read_bytes())
    graph.place_on_cpu(twin, traces)
    read: Any = mx.import_function(str(twin))
    for inputs, trace in zip(examples, traces, strict=True):
        shapes = [y.shape for y in read(*inputs)]
        made = {name: shape for entry in trace for name, shape, _ in entry["outputs"]}
        if not set(shapes) <= set(made.values()):
            raise RuntimeError(f"[export_model] the file gives {shapes}.")
    twin.unlink()


def _noise(x: mx.array, seed: int) -> mx.array:
    """Random numbers in place of an example."""
    key = mx.random.key(seed)
    if x.dtype == mx.int32:
        return x  # a label
    if x.dtype == mx.uint8:
        return mx.random.randint(0, 256, x.shape, key=key).astype(mx.uint8)
    return mx.random.normal(x.shape, key=key) if x.ndim > 1 else x


def _facts(
    model: Model,
    examples: Sequence[Inputs],
    target: str,
    prepare: Preprocess | None,
) -> dict[str, Any]:
    """What a program has to know of a function."""
    record = model.current_record()
    facts: dict[str, Any] = {
        "model": record.name if record else type(model).__name__,
        "architecture": type(model).__name__,
        "task": model.TASK,
        "target": target,
        "inputs": [
            {
                "name": name,
                "dtype": str(mx.uint8 if prepare else x.dtype).removeprefix("mlx.core."),
                "shapes": [list(inputs[name].shape) for inputs in examples],
            }
            for name, x in examples[0].items()
        ],
        "outputs": list(call(model, examples[0])),
        "classes": None,
        "preprocessing": None,
        "normalizes": prepare is not None,
        "license": record.license if record else None,
        "source": record.source if record else None,
        "versions": {"natten_zoo": __version__, "mlx": mx.__version__},  # type: ignore[attr-defined]
    }
    count = getattr(model.config, "num_classes", 0)
    if count and model.CLASSIFIERS:
        facts["classes"] = list(labels.output_names(record.classes if record else None, count))
    if record and record.input_size and find_task(model.TASK).of_pictures:
        facts["preprocessing"] = dataclasses.asdict(Preprocess.from_record(record))
    return facts


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _checked(model: Model, path: Path, overwrite: bool) -> Path:
    if path.suffix != SUFFIX:
        raise ValueError(f"[export_model] 'path' must end in {SUFFIX} but got {path}.")
    if model.training:
        raise ValueError("[export_model] 'model' must be in evaluation mode: call model.eval().")
    for file in (path, sidecar(path)):
        if file.exists() and not overwrite:
            raise FileExistsError(f"{file} exists already.")
    return path


def _preprocess(model: Model) -> Preprocess:
    if not find_task(model.TASK).of_pictures or model.record is None:
        raise ValueError(
            "[export_model] 'preprocessing' must be False: the model has no record of how pixels "
            "are prepared."
        )
    return Preprocess.from_record(model.record)


def _batches(batches: int | Sequence[int] | str) -> tuple[int, ...]:
    some = ANY if batches == "any" else (batches,) if isinstance(batches, int) else batches
    if isinstance(some, str) or not some or any(type(n) is not int or n < 1 for n in some):
        raise ValueError(
            f"[export_model] 'batches' must be positive integers or 'any' but got {batches!r}."
        )
    return tuple(sorted(set(some)))


def _sizes(sizes: Size | Sequence[Size] | None) -> Iterator[Size | None]:
    if sizes is None or isinstance(sizes, int):
        yield sizes
    else:
        yield from sizes
