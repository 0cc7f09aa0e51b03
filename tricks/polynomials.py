"""Polynomials for exp, as lists of coefficients [a0, a1, ...] of 1, x, x², ..."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev, polynomial


def taylor(degree: int) -> list[float]:
    """Around zero."""
    return [1 / math.factorial(power) for power in range(degree + 1)]


def chebyshev_fit(degree: int, low: float, high: float) -> list[float]:
    """Through exp at the Chebyshev points of [low, high]."""
    middle, half = (high + low) / 2, (high - low) / 2
    interpolate: Any = chebyshev.chebinterpolate
    series = interpolate(lambda t: np.exp(middle + half * t), degree)
    return _shifted(chebyshev.cheb2poly(series), middle, half)


def minimax(degree: int, low: float, high: float) -> list[float]:
    """With the least largest error on [low, high], by Remez' exchange."""
    middle, half = (high + low) / 2, (high - low) / 2
    count = degree + 2
    points = -np.cos(np.pi * np.arange(count) / (count - 1))
    grid = np.linspace(-1, 1, 4001)
    target = np.exp(middle + half * grid)
    for _ in range(30):
        system = np.column_stack([np.vander(points, degree + 1, increasing=True), (-1.0) ** np.arange(count)])
        solved = np.linalg.solve(system, np.exp(middle + half * points))
        error = target - polynomial.polyval(grid, solved[:-1])
        # The extreme points of the error, one between each pair of its changes of sign.
        cuts = np.flatnonzero(np.diff(np.sign(error))) + 1
        pieces = np.split(np.arange(len(grid)), cuts)
        if len(pieces) != count:
            break
        points = np.array([grid[piece[np.abs(error[piece]).argmax()]] for piece in pieces])
        if np.abs(error).max() <= abs(solved[-1]) * (1 + 1e-9):
            break
    return _shifted(solved[:-1], middle, half)


def _shifted(coefficients: np.ndarray, middle: float, half: float) -> list[float]:
    """A polynomial in t = (x - middle) / half as one in x."""
    inner = np.array([-middle / half, 1 / half])
    result = np.zeros(1)
    for coefficient in coefficients[::-1]:
        result = polynomial.polyadd(polynomial.polymul(result, inner), [coefficient])
    return [float(value) for value in np.pad(result, (0, max(len(coefficients) - len(result), 0)))]


def coefficients(kind: str, degree: int, low: float, high: float, parts: int) -> list[float]:
    """The polynomial for one of `parts` summands of a dot product that lies in [low, high]."""
    if kind == "taylor":
        return taylor(degree)
    fit = chebyshev_fit if kind == "chebyshev" else minimax
    return fit(degree, low / parts, high / parts)


def state_size(head_dim: int, degree: int, parts: int) -> int:
    """Sums that stand for all older tokens of one key-value head, each of head_dim + 1 numbers."""
    return int(math.comb(head_dim // parts + degree, degree) ** parts)
