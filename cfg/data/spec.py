"""Shapes and classes of a data set, which is all that a network must know of it. No pixel is read here."""

from dataclasses import dataclass

from cfg.data.built_in import BUILT_IN
from cfg.data.manifest import ALIASES, default_dir, find_manifest, is_preparable
from cfg.runtime.errors import UserError


@dataclass(frozen=True)
class DataSpec:
    """Shapes and classes of a data set."""

    name: str  # what the user calls it
    image_shape: tuple[int, int, int]  # (H, W, C)
    num_classes: int  # labels are 0..num_classes - 1


def data_spec(name: str, image_size: int, *, data_dir: str, crop: str) -> DataSpec:
    """Returns the shapes and classes of the data set of a config.

    Those of ImageNet and of `cfg.data.built_in` are known, those of others are read from their manifests.

    Raises:
      UserError: when the name is not that of a data set with images, it has no images of that size, or it is not
        prepared.
    """
    if name in BUILT_IN:
        shape = BUILT_IN[name].image_shape
        if image_size != shape[0]:
            raise UserError(
                f'config.data.image_size={image_size} must be {shape[0]}: data.name={name!r} has '
                f'{shape[0]}x{shape[1]} images only.'
            )
        return DataSpec(name, shape, BUILT_IN[name].num_classes)
    if ALIASES.get(name, name) == ALIASES['imagenet']:
        return DataSpec(name, (image_size, image_size, 3), 1000)
    if is_preparable(name):
        manifest = find_manifest(name, data_dir=default_dir(data_dir), size=image_size, crop=crop)
        return DataSpec(name, tuple(manifest['image_shape']), len(manifest['class_names']))
    raise UserError(
        f'config.data.name={name!r} has no images to train on or to compare with: its scores are exact, '
        'so --mode=report is all there is to run.'
    )
