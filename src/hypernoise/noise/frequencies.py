"""The low frequencies of a residual: what composition hangs on, and all that a noise network need change.

LENS (arXiv 2605.07253) changes no others. A residual that is drawn cell by cell spends part of its length, and so of
its KL, on details of the noise that the picture hardly depends on; left out, the same gain costs fewer nats.
"""

from __future__ import annotations

from torch import Tensor

from hypernoise.noise.transfer import cosine_basis


def low_frequencies(residual: Tensor, kept: int) -> Tensor:
    """The residual [B, C, H, W] in its `kept` lowest frequencies each way: kept² of each channel's H · W DCT-II terms.

    A projection: what it gives is no longer than what it is given, and giving it that changes nothing.
    """
    rows, columns = (cosine_basis(size)[:kept].to(residual) for size in residual.shape[-2:])
    return rows.T @ (rows @ residual @ columns.T) @ columns
