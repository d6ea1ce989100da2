"""What a network must know of a data set: no pixel is read for it."""

from dataclasses import dataclass

from cfg.errors import UserError


@dataclass(frozen=True)
class DataSpec:
    """Shapes and classes of a data set.

    Attributes:
      name: what the user calls it.
      image_shape: (H, W, C).
      num_classes: labels are 0..num_classes - 1.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int


def data_spec(name: str, image_size: int) -> DataSpec:
    """The data set of a config.

    Raises:
      UserError: when the name is not that of a data set with images, or it has no images of that size.
    """
    if name == 'digits':
        if image_size != 8:
            raise UserError(f"config.data.image_size={image_size} must be 8: data.name='digits' has 8x8 images only.")
        return DataSpec(name, (8, 8, 1), 10)
    if name == 'imagenet':
        return DataSpec(name, (image_size, image_size, 3), 1000)
    raise UserError(
        f'config.data.name={name!r} has no images to train on or to compare with: its scores are exact, '
        'so --mode=report is all there is to run.'
    )
