r"""Ways from noise to an image: steps along a schedule of noise that falls to zero.

Each takes a *denoiser*, a function of the noisy images and the standard deviation of their noise
that guesses what is below it, and follows $dx/d\sigma = (x - D(x; \sigma)) / \sigma$. Sources:
Karras et al., https://arxiv.org/abs/2206.00364 (Euler, Heun, the schedule); Lu et al., DPM-Solver,
https://arxiv.org/abs/2206.00927, and DPM-Solver++, https://arxiv.org/abs/2211.01095. The samplers
are those of k-diffusion without added noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import mlx.core as mx

Denoiser = Callable[[mx.array, float], mx.array]
# Images after each step.
Steps = Iterator[mx.array]


def karras_schedule(
    steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0
) -> tuple[float, ...]:
    r"""Standard deviations of the noise before each step, and the 0 after the last.

    $$
    \sigma_i = \left(\sigma_{max}^{1 / \rho} + \frac{i}{n - 1}
    \left(\sigma_{min}^{1 / \rho} - \sigma_{max}^{1 / \rho}\right)\right)^\rho
    $$

    Examples:
        >>> [round(sigma, 2) for sigma in karras_schedule(4, 0.02, 20.0)]
        [20.0, 3.87, 0.45, 0.02, 0.0]
    """
    if steps < 1:
        raise ValueError(f"[karras_schedule] 'steps' must be positive but got {steps}.")
    most, least = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    ramp = (step / max(1, steps - 1) for step in range(steps))
    return (*((most + at * (least - most)) ** rho for at in ramp), 0.0)


def euler(denoise: Denoiser, x: mx.array, sigmas: Sequence[float]) -> Steps:
    """Euler's method: one call of the network a step."""
    for now, then in pairwise(sigmas):
        x = x + (then - now) * _slope(denoise, x, now)
        yield x


def heun(denoise: Denoiser, x: mx.array, sigmas: Sequence[float]) -> Steps:
    """Heun's method: the mean of the slopes at both ends; two calls but in the last step."""
    for now, then in pairwise(sigmas):
        slope = _slope(denoise, x, now)
        guess = x + (then - now) * slope
        if then:
            guess = x + (then - now) * (slope + _slope(denoise, guess, then)) / 2
        x = guess
        yield x


def dpm_2(denoise: Denoiser, x: mx.array, sigmas: Sequence[float]) -> Steps:
    """DPM-Solver-2: the slope halfway, as logarithms go; two calls but in the last step."""
    for now, then in pairwise(sigmas):
        slope = _slope(denoise, x, now)
        if then:
            halfway = math.sqrt(now * then)
            slope = _slope(denoise, x + (halfway - now) * slope, halfway)
        x = x + (then - now) * slope
        yield x


def dpmpp_2m(denoise: Denoiser, x: mx.array, sigmas: Sequence[float]) -> Steps:
    """DPM-Solver++(2M): extrapolates from this guess and the last one; one call a step."""
    last: tuple[mx.array, float] | None = None  # the guess, and the step before it
    for now, then in pairwise(sigmas):
        guess = mixed = denoise(x, now)
        if then:
            step = math.log(now / then)
            if last is not None:
                ratio = last[1] / step
                mixed = guess + (guess - last[0]) / (2 * ratio)
            x = (then / now) * x - math.expm1(-step) * mixed
            last = guess, step
        else:
            x = guess
        yield x


def flow(velocity: Denoiser, x: mx.array, steps: int) -> Steps:
    """Euler's method for a flow, whose velocity the network tells: time goes from 0 to 1."""
    for step in range(steps):
        x = x + velocity(x, step / steps) / steps
        yield x


SAMPLERS: dict[str, Callable[[Denoiser, mx.array, Sequence[float]], Steps]] = {
    "euler": euler,
    "heun": heun,
    "dpm_2": dpm_2,
    "dpmpp_2m": dpmpp_2m,
}


def _slope(denoise: Denoiser, x: mx.array, sigma: float) -> mx.array:
    return (x - denoise(x, sigma)) / sigma
