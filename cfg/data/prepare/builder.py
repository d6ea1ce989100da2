"""Packs prepared images as a data set of TFDS: ArrayRecord files of PNG, in the order of the input."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from cfg.data.prepare.parts import Prepared


class PreparedImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builds square images of one size with their classes, in the folder that `name` names below TFDS's `data_dir`.

    `splits` are {name: (number of images, a function that gives them)}.
    """

    VERSION = tfds.core.Version('1.0.0')

    def __init__(
        self,
        *,
        name: str,
        image_shape: tuple[int, int, int],
        class_names: Sequence[str],
        splits: Mapping[str, tuple[int, Callable[[], Iterator[Prepared]]]],
        data_dir: Any,
    ):
        self._image_shape, self._class_names, self._splits = image_shape, class_names, splits
        config = tfds.core.BuilderConfig(name=name, description='Prepared images; see manifest.json.')
        super().__init__(config=config, data_dir=data_dir, file_format='array_record')

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description='Square images for training a diffusion model; see manifest.json.',
            features=tfds.features.FeaturesDict(
                {
                    'image': tfds.features.Image(shape=self._image_shape, encoding_format='png'),
                    'label': tfds.features.ClassLabel(names=self._class_names),
                    'file_name': tfds.features.Text(),
                }
            ),
            supervised_keys=('image', 'label'),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {name: self._generate_examples(*split) for name, split in self._splits.items()}

    def _generate_examples(
        self, count: int, images: Callable[[], Iterator[Prepared]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        # TFDS sorts by key in buckets that divide the range of its 128-bit hashes. Keys 0, 1, 2, ... would all fall
        # into the first of them, which is sorted in memory.
        for number, image in enumerate(images()):
            yield number * (2**128 // count), {'image': image.png, 'label': image.label, 'file_name': image.name}
