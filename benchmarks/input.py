"""Times the input pipeline: what prepares images, and what reads them for training (benchmarks/README.md).

python benchmarks/input.py --config=configs/imagenet64.py [--workers=0,1,2,4] [--images=FOLDER]
"""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from benchmarks import common
from cfg.runtime import command_line
from cfg.runtime.errors import UserError

FLAGS = flags.FLAGS
PHOTO = (500, 375)  # about the median ImageNet photograph
QUALITY = 95  # of JPEG
STAND_INS = 4096  # images of the data set that is made when the config's own is not prepared


def photograph(seed: int):
    """Makes noise at every scale, as a Pillow image: its JPEG has as many bytes as ImageNet's (110 kB)."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    width, height = PHOTO
    total = np.zeros((height, width, 3))
    for octave in range(1, 10):
        cells = rng.integers(0, 256, (2**octave, 2**octave, 3), dtype=np.uint8)
        scale = np.asarray(Image.fromarray(cells).resize(PHOTO, Image.Resampling.BICUBIC), float)
        total += (scale - 127.5) * 0.8**octave
    return Image.fromarray(np.clip(127.5 + 60 * total / total.std(), 0, 255).astype(np.uint8))


def photographs(folder: str | None, count: int) -> list[bytes]:
    """Returns encoded images: from a folder as --mode=prepare_data reads it, or made.

    Raises:
      UserError: when the folder holds none.
    """
    import io

    if folder:
        from cfg.data.prepare.folders import scan_folder

        source = scan_folder(epath.Path(folder))
        return [record.content for record in source.section('train', 0, count)()]
    contents = []
    for seed in range(count):
        buffer = io.BytesIO()
        photograph(seed).save(buffer, 'JPEG', quality=QUALITY)
        contents.append(buffer.getvalue())
    return contents


def rate(fn: Callable, items: list, *, seconds: float) -> float:
    """Counts calls a second of a function over items again and again, in this process, after an untimed one."""
    fn(items[0])
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        fn(items[done % len(items)])
        done += 1
    return done / (time.perf_counter() - start)


def prepare_rates(contents: list[bytes], config: ConfigDict, seconds: float) -> list[tuple[str, float]]:
    """Returns (stage, images/s of a core) of each stage of preparation, alone."""
    from cfg.data.crop import decode, square, to_png

    size = config.data.image_size
    try:
        decoded = [decode(content, 3)[0] for content in contents]
    except ValueError as error:
        raise UserError(f'An image of --images cannot be read ({error}): take it out.') from error
    small = [square(image, size, config.data.crop) for image in decoded]
    rows = [('decode', rate(lambda content: decode(content, 3), contents, seconds=seconds))]
    for crop in ('area', 'adm'):
        name = f'crop {crop} to {size}x{size}'
        rows.append((name, rate(lambda image, crop=crop: square(image, size, crop), decoded, seconds=seconds)))
    rows.append(('encode PNG', rate(to_png, small, seconds=seconds)))
    used = [r for name, r in rows if 'crop' not in name or f'crop {config.data.crop} ' in name]
    return [*rows, (f'all with crop {config.data.crop}', 1 / sum(1 / r for r in used))]


@contextlib.contextmanager
def open_data(config: ConfigDict) -> Iterator[tuple]:
    """Returns (the data set of the config or a stand-in for it, what it is)."""
    from cfg.data.disk import PreparedSource
    from cfg.data.manifest import default_dir, folder_of, is_preparable, read_manifest
    from cfg.data.prepare.parts import Options
    from cfg.data.prepare.run import Folders, prepare
    from cfg.settings.data import open_source

    data = config.data
    here = default_dir(data.dir)
    stand_in = is_preparable(data.name) and not data.dir
    if not stand_in or read_manifest(folder_of(here, data.name, data.image_size, data.crop)) is not None:
        source = open_source(config)
        yield source, source.name
        return
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / 'images'
        images.mkdir()
        size = config.data.image_size
        for i in range(64):
            photograph(i).resize((2 * size, 2 * size)).save(images / f'{i % 10}_{i}.png')
        for i in range(64, STAND_INS):
            (images / f'{i % 10}_{i}.png').symlink_to(images / f'{i % 64 % 10}_{i % 64}.png')
        name, data_dir = f'folder:{images}', epath.Path(folder)
        prepare(name, Options(size, 'area'), Folders(data_dir, here), workers=0)
        source = PreparedSource(name, data_dir=data_dir, size=size, crop='area', split='train')
        yield source, f'{STAND_INS} stand-ins (the data set of the config is not prepared here)'


def read_rate(source, config: ConfigDict, *, workers: int, batches: int) -> tuple[float, float]:
    """Returns (images/s of the training pipeline to host memory, seconds until its first batch)."""
    from cfg.data.pipeline import train_batches

    batch_size = config.train.batch_size
    reader = train_batches(
        source, batch_size=batch_size, seed=0, start_step=0, flip=config.data.random_flip, workers=workers
    )
    with contextlib.closing(reader):
        begin = time.perf_counter()
        next(reader)
        first = time.perf_counter() - begin
        for _ in range(2 * max(workers, 1)):  # what was read ahead meanwhile says nothing of the rate
            next(reader)
        begin = time.perf_counter()
        for _ in range(batches):
            next(reader)
        return batches * batch_size / (time.perf_counter() - begin), first


class Training(NamedTuple):
    """A `Training` is what the pipeline must keep up with.

    Attributes:
      tflops: the peak of a device, in 1e12 FLOP/s.
      utilisation: the part of it that training reaches.
      devices: that one host feeds.
    """

    tflops: float
    utilisation: float
    devices: int


def needed_rate(config: ConfigDict, source, training: Training) -> float:
    """Returns images/s that training takes: FLOP/s of the devices over those of an image (three forward passes)."""
    from cfg.models.flops import forward_flops
    from cfg.settings.networks import build_network

    flops = 3 * forward_flops(build_network(config, source), source.image_shape)
    return training.devices * training.tflops * 1e12 * training.utilisation / flops


def worker_counts(text: str) -> list[int]:
    """Reads '0,1,2' as [0, 1, 2], and '' as 0 and powers of two up to the number of cores.

    Raises:
      UserError: when it is no such list.
    """
    from cfg.data.workers import cores

    if not text:
        return [0, *(2**i for i in range(cores().bit_length()))]
    try:
        counts = [int(part) for part in text.split(',')]
    except ValueError:
        counts = [-1]
    if min(counts) < 0:
        raise UserError(f'--workers={text} must be numbers of processes, such as 0,1,2,4.')
    return counts


def describe(
    config: ConfigDict, *, counts: list[int], batches: int, seconds: float, images: str | None, training: Training
) -> str:
    """Returns everything that is measured, a line a number."""
    from cfg.data.workers import cores

    what = images or f'made of noise, {PHOTO[0]}x{PHOTO[1]}'
    lines = [f'{cores()} cores', '', f'preparation, images/s of one core (JPEG photographs: {what}):']
    rows = prepare_rates(photographs(images, 32), config, seconds)
    lines += [f'  {name:<24}{value:10.0f}' for name, value in rows]
    whole = 1_331_167 / (rows[-1][1] * cores()) / 3600
    lines.append(f'  ImageNet (1,331,167 images) on these cores: {whole:.2g} h, reading and writing not counted')
    with open_data(config) as (source, name):
        needed = needed_rate(config, source, training)
        lines += ['', f'training pipeline to host memory, batches of {config.train.batch_size}, {name}:']
        lines.append(f'  {"workers":<10}{"images/s":>10}{"of needed":>11}{"first batch":>13}')
        for workers in counts:
            got, first = read_rate(source, config, workers=workers, batches=batches)
            lines.append(f'  {workers:<10}{got:10.0f}{got / needed:11.2f}{first:11.1f} s')
    lines.append(
        f'  needed: {needed:.0f} images/s by {training.devices} device(s) at {100 * training.utilisation:.0f} % of '
        f'{training.tflops:g} TFLOP/s'
    )
    return '\n'.join(lines)


def main() -> None:
    """Prints what the flags ask for."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    config = common.read_config()
    counts = worker_counts(FLAGS.workers)
    training = Training(FLAGS.tflops, FLAGS.utilisation, FLAGS.devices)
    options = {'batches': FLAGS.batches, 'seconds': FLAGS.seconds, 'images': FLAGS.images}
    print(describe(config, counts=counts, training=training, **options))


if __name__ == '__main__':
    command_line.define_config('--config.data.dir=/data')
    flags.DEFINE_string('workers', '', 'Numbers of reading processes to time; empty = 0, 1, 2, 4, ... cores.')
    flags.DEFINE_integer('batches', 20, 'Timed batches of each number of workers.', lower_bound=1)
    flags.DEFINE_float('seconds', 3.0, 'Of timing, for each stage of preparation.', lower_bound=0.01)
    command_line.define_path('images', 'A folder of photographs for the preparation; made of noise unless given.')
    flags.DEFINE_float('tflops', common.PEAKS['H100'] / 1e12, 'Peak of one training device.', lower_bound=1e-9)
    flags.DEFINE_float('utilisation', 0.45, 'The part of the peak that training reaches.', lower_bound=1e-9)
    flags.DEFINE_integer('devices', 8, 'Training devices that one host feeds.', lower_bound=1)
    command_line.run(main, memory=lambda: 'take a smaller batch')
