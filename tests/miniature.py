"""Makes a miniature ILSVRC2012 in the layout of the real one: a tar of a tar a class, a tar of validation images."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ('n01440764', 'n01443537', 'n01739381', 'n02105855')
# TFDS repairs these two by their names: the one PNG and one of the CMYK files of ImageNet.
PNG_NAME = 'n02105855_2933.JPEG'
CMYK_NAME = 'n01739381_1309.JPEG'
TRUNCATED = 'n01443537_3.JPEG'


def picture(seed, size=(90, 70)):
    """Makes a smooth RGB picture, different for each seed."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


def encoded(image, kind='JPEG'):
    """Returns the content of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({'quality': 95} if kind == 'JPEG' else {}))
    return buffer.getvalue()


def training_files(truncated=True, per_class=6):
    """Returns {class: {file name: content}}; one file is cut off if `truncated`."""
    files = {}
    for number, name in enumerate(CLASSES):
        files[name] = {
            f'{name}_{i}.JPEG': encoded(picture(100 * number + i, (90 + 10 * i, 70 + 5 * number)))
            for i in range(per_class)
        }
    first = files[CLASSES[0]]
    first[f'{CLASSES[0]}_0.JPEG'] = encoded(picture(0).convert('L'))  # grey
    first[f'{CLASSES[0]}_1.JPEG'] = encoded(picture(1, (7, 5)))  # smaller than what it becomes
    files[CLASSES[2]][CMYK_NAME] = encoded(picture(7).convert('CMYK'))
    files[CLASSES[3]][PNG_NAME] = encoded(picture(8), 'PNG')
    if truncated:
        files[CLASSES[1]][TRUNCATED] = files[CLASSES[1]][TRUNCATED][:900]
    return files


def write_tars(folder: Path, truncated=True, num_validation=20, per_class=6) -> None:
    """Writes both archives as they are downloaded."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / 'ILSVRC2012_img_train.tar', 'w') as outer:
        for name, files in training_files(truncated, per_class).items():
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode='w') as tar:
                for file, content in files.items():
                    _add(tar, file, content)
            _add(outer, f'{name}.tar', inner.getvalue())
    with tarfile.open(folder / 'ILSVRC2012_img_val.tar', 'w') as tar:
        for i in range(num_validation):
            _add(tar, f'ILSVRC2012_val_{i + 1:08d}.JPEG', encoded(picture(1000 + i)))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
