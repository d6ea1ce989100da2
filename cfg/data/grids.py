"""Lays a grid of samples out as one picture."""

import numpy as np


def mosaic(images: np.ndarray, shape: tuple[int, int], *, width: int) -> np.ndarray:
    """Lays images out in rows and columns on white, each enlarged by the same whole factor.

    Args:
      images: uint8 [N, H, W, C], C = 1 or 3; those beyond the last cell are left out.
      shape: rows and columns.
      width: of the picture in pixels, roughly.

    Returns:
      uint8 [height, width, 3].
    """
    rows, columns = shape
    factor, gap = max(1, round(width / (columns * images.shape[2]))), 2
    enlarged = images[: rows * columns].repeat(factor, axis=1).repeat(factor, axis=2)
    _, height, breadth, _ = enlarged.shape
    cells = np.full((rows * columns, height + gap, breadth + gap, 3), 255, np.uint8)
    cells[: len(enlarged), :height, :breadth] = enlarged
    picture = cells.reshape(rows, columns, height + gap, breadth + gap, 3).swapaxes(1, 2)
    return picture.reshape(rows * (height + gap), columns * (breadth + gap), 3)[:-gap, :-gap]
