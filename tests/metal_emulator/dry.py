"""A GPU whose kernels are built and do nothing: to count anywhere what a model needs."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import mlx.core as mx

from natten_zoo.ops.gpu import kernels
from natten_zoo.ops.gpu.device import machine, use_device

Pipeline = tuple[Any, ...]  # a kernel's name (which has the digest of its text), and its template

_numbers = itertools.count()


@contextlib.contextmanager
def dry(refused: str = "no kernel") -> Iterator[list[Pipeline]]:
    """Lets MLX seem to have a GPU that nothing is known of; yields a list of all launches.

    Kernels return zeros, but those that `refused` is part of the name of, which raise.
    """
    launches: list[Pipeline] = []

    def function(name: str, *of: Any) -> Callable[..., list[mx.array]]:
        text = kernels.text(name, *of)["name"]

        def launch(
            *, template: Sequence[Any], output_shapes: Any, output_dtypes: Any, **_: Any
        ) -> list[mx.array]:
            if refused in name:
                raise RuntimeError("[metal::Device] Unable to build it")
            launches.append((text, *template))
            return [mx.zeros(s, d) for s, d in zip(output_shapes, output_dtypes, strict=True)]

        return launch

    device = replace(machine("fast_metal"), generation=f"dry {next(_numbers)}")
    with (
        mock.patch.object(kernels, "_function", function),
        mock.patch.object(mx.metal, "is_available", lambda: True),
        mock.patch.object(mx, "default_device", lambda: mx.Device(mx.gpu)),
        use_device(device),
    ):
        yield launches
