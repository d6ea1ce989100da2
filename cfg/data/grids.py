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
    height, breadth, channels = images.shape[1:]
    factor = max(1, round(width / (columns * breadth)))
    gap = 2
    cell_height, cell_width = height * factor + gap, breadth * factor + gap
    canvas = np.full((rows * cell_height - gap, columns * cell_width - gap, 3), 255, np.uint8)
    for i, image in enumerate(images[: rows * columns]):
        enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
        top, left = (i // columns) * cell_height, (i % columns) * cell_width
        canvas[top : top + height * factor, left : left + breadth * factor] = np.broadcast_to(
            enlarged, (*enlarged.shape[:2], 3) if channels == 1 else enlarged.shape
        )
    return canvas
