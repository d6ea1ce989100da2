"""A part: some hundred images, decoded, resized, and kept in one npz that is written whole or not at all."""

import contextlib
import hashlib
import io
import itertools
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from cfg.data.crop import decode, square, to_png
from cfg.data.prepare.folders import printable
from cfg.data.prepare.inputs import Records
from cfg.runtime.errors import UserError
from cfg.runtime.files import write_whole


@dataclass(frozen=True)
class Options:
    """The options say what is to become of images."""

    size: int  # height and width of the results
    crop: str  # 'area' or 'adm', see `cfg.data.crop`
    # whether an image that cannot be read, or a class without images, is left out; else it ends the preparation
    skip: bool = False
    classes_from: str = 'auto'  # what names the classes of a folder, see `cfg.data.prepare.folders.scan_folder`


class Prepared(NamedTuple):
    """A `Prepared` is one finished image."""

    name: str  # of the file that it comes from
    label: int  # its class
    png: bytes  # uint8 [size, size, C] as PNG
    sha256: bytes  # of label and pixels, 32 bytes


@dataclass
class Part:
    """The finished images of a part, and what the manifest says of them."""

    images: list[Prepared] = field(default_factory=list)  # in the order of the input
    kinds: Counter = field(default_factory=Counter)  # number of images by how they came, 'JPEG CMYK', say
    enlarged: int = 0  # number of images that were smaller than what they became
    # {'split', 'file', 'reason'} of each image that could not be read
    skipped: list[dict[str, str]] = field(default_factory=list)


def make_part(path: epath.Path, split: str, records: Records, channels: int, options: Options) -> None:
    """Reads, decodes, resizes and writes one part of a split, with 3 channels or 1 for grey.

    Raises:
      UserError: names an image that cannot be read, unless those are skipped.
    """
    part = Part()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Pillow's, of odd metadata
        for record in records():
            name = printable(record.name)
            try:
                if record.error:
                    raise ValueError(record.error)
                image, kind = decode(record.content, channels)
            except ValueError as error:
                if not options.skip:
                    raise UserError(
                        f'{name} ({split}) cannot be read ({error}): mend or remove it, or leave such images '
                        'out with --config.prepare.on_error=skip; what is prepared is kept.'
                    ) from error
                part.skipped.append({'split': split, 'file': name, 'reason': str(error)})
                continue
            part.kinds[kind] += 1
            part.enlarged += min(image.size) < options.size
            pixels = square(image, options.size, options.crop)
            digest = hashlib.sha256(np.int32(record.label).tobytes() + pixels.tobytes()).digest()
            part.images.append(Prepared(name, record.label, to_png(pixels), digest))
    write_part(path, part)


def write_part(path: epath.Path, part: Part) -> None:
    """Writes a part, whole or not at all."""
    names, labels, pngs, digests = zip(*part.images, strict=True) if part.images else ((), (), (), ())
    facts = {'names': names, 'kinds': part.kinds, 'enlarged': part.enlarged, 'skipped': part.skipped}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        pngs=np.frombuffer(b''.join(pngs), np.uint8),
        ends=np.cumsum([len(png) for png in pngs], dtype=np.int64),
        labels=np.array(labels, np.int32),
        sha256=np.frombuffer(b''.join(digests), np.uint8).reshape(-1, 32),
        facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
    )
    write_whole(path, buffer.getvalue())


def read_part(path: epath.Path) -> Part:
    """Reads what `write_part` wrote; raises a UserError when the file is damaged."""
    with _opened(path) as file:
        facts = json.loads(file['facts'].tobytes())
        pngs, digests = file['pngs'].tobytes(), [row.tobytes() for row in file['sha256'].reshape(-1, 32)]
        places = itertools.pairwise([0, *file['ends'].tolist()])
        columns = zip(facts['names'], file['labels'].tolist(), places, digests, strict=True)
        images = [Prepared(name, label, pngs[start:end], digest) for name, label, (start, end), digest in columns]
        return Part(images, Counter(facts['kinds']), facts['enlarged'], facts['skipped'])


def read_facts(path: epath.Path) -> dict[str, Any]:
    """Reads what a part says of its images, without the images; raises a UserError when the file is damaged."""
    with _opened(path) as file:
        return json.loads(file['facts'].tobytes())


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[Mapping[str, np.ndarray]]:
    """Opens a part, and turns what a damaged one raises into a sentence."""
    try:
        with path.open('rb') as content, np.load(content, allow_pickle=False) as file:
            yield file
    except MemoryError:
        raise
    except Exception as error:  # zipfile, zlib, json and numpy each raise their own kinds on a damaged file
        raise UserError(
            f'{path} cannot be read ({type(error).__name__}): delete it, and the same command makes it again.'
        ) from error
