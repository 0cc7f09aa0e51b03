"""Which columns of a wide matrix make a well-conditioned square one."""

from __future__ import annotations

import torch


def pivots(matrix: torch.Tensor) -> list[int]:
    """The first n pivots of QR with column pivoting of `matrix` [n, m] (n <= m), in float64.

    Each step takes the column of which most is left after projecting out those taken before (Businger and
    Golub, 1965); the Gram-Schmidt step is done twice, which keeps it orthogonal to rounding.
    """
    left = matrix.double().clone()
    basis = torch.zeros(len(matrix), 0, dtype=torch.float64)
    chosen: list[int] = []
    for _ in range(len(matrix)):
        sizes = left.square().sum(0)
        sizes[chosen] = -1.0
        best = int(sizes.argmax())
        chosen.append(best)
        column = left[:, best]
        column = column - basis @ (basis.T @ column)
        size = column.norm()
        if size == 0:
            continue
        unit = (column / size).unsqueeze(1)
        basis = torch.cat([basis, unit], 1)
        left = left - unit @ (unit.T @ left)
    return chosen
