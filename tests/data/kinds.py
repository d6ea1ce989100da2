"""Makes image files that Pillow reads and does not write: of many bits a channel, with transparency without alpha."""

import struct
import zlib

import numpy as np

COLOURS = {'grey': 0, 'rgb': 2, 'palette': 3, 'grey alpha': 4, 'rgba': 6}  # of PNG
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def png(colour, depth, *, transparency=b'', size=(6, 5)):
    """A PNG of zeros with so many bits a channel."""
    width, height = size
    row = bytes(1 + -(-width * CHANNELS[COLOURS[colour]] * depth // 8))
    chunks = [(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, COLOURS[colour], 0, 0, 0))]
    chunks += [(b'PLTE', bytes(range(12)))] if colour == 'palette' else []
    chunks += [(b'tRNS', transparency)] if transparency else []
    chunks += [(b'IDAT', zlib.compress(row * height)), (b'IEND', b'')]
    packed = (struct.pack('>I', len(x)) + name + x + struct.pack('>I', zlib.crc32(name + x)) for name, x in chunks)
    return b'\x89PNG\r\n\x1a\n' + b''.join(packed)


def tiff(array, *, photometric):
    """A TIFF of an array [H, W, C]; its photometric is 1 for grey, 2 for RGB, 5 for CMYK."""
    height, width, channels = array.shape
    content = array.astype(array.dtype.newbyteorder('<')).tobytes()
    bits, kind = array.dtype.itemsize * 8, {'u': 1, 'i': 2, 'f': 3}[array.dtype.kind]
    fields = {256: [width], 257: [height], 258: [bits] * channels, 259: [1], 262: [photometric], 273: [0]}
    fields |= {277: [channels], 278: [height], 279: [len(content)], 339: [kind] * channels}
    if channels in (2, 4) and photometric != 5:
        fields[338] = [2]  # the last channel is alpha
    place = 8 + 2 + 12 * len(fields) + 4
    longer = {tag: struct.pack(f'<{len(values)}I', *values) for tag, values in fields.items() if len(values) > 1}
    fields[273] = [place + sum(map(len, longer.values()))]
    entries = b''
    for tag, values in sorted(fields.items()):
        value = place if tag in longer else values[0]
        entries += struct.pack('<HHII', tag, 4, len(values), value)
        place += len(longer.get(tag, b''))
    rest = b''.join(longer[tag] for tag in sorted(longer))
    return b'II*\0' + struct.pack('<IH', 8, len(fields)) + entries + bytes(4) + rest + content


def zeros(channels, dtype):
    """An array for `tiff`."""
    return np.zeros((5, 6, channels), dtype)
