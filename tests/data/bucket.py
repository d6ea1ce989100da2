"""Tests data in a bucket; test_bucket.py runs it in a process of its own. fsspec's memory stands in for Google's."""

import json

import fsspec
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from cfg.data import manifest as manifests
from cfg.data.prepare import job as jobs
from cfg.data.prepare.folders import scan_folder
from cfg.data.prepare.parts import Options, read_part
from cfg.runtime.errors import UserError
from cfg.runtime.files import sha256_of_file, write_whole
from cfg.runtime.paths import is_remote
from tests.miniature import encoded, picture

BUCKET = epath.Path('gs://bucket')


def refusal(fn, *args, **kwargs):
    """Returns the message of a UserError."""
    try:
        fn(*args, **kwargs)
    except UserError as error:
        return str(error)
    raise AssertionError('nothing was refused')


def a_folder_of_images():
    """A folder is scanned, prepared in parts that are in the bucket too, and not prepared again."""
    for name in ('dog/1.jpg', 'cat/2.jpg', 'cat/@eaDir/2.jpg/thumb.jpg', '@eaDir/3.jpg'):
        write_whole(BUCKET / 'pets' / name, encoded(picture(0)))
    source = scan_folder(BUCKET / 'pets')
    assert (source.class_names, source.splits) == (('cat', 'dog'), {'train': 2})
    assert source.passed_over == {'@eaDir/': 2}
    job = jobs.Job('folder:gs://bucket/pets', source, BUCKET / 'work', Options(16, 'area'), 1000)
    jobs.make_parts(job, workers=1)
    part = read_part(BUCKET / 'work' / 'train-00000.npz')
    assert [image.name for image in part.images] == ['cat/2.jpg', 'dog/1.jpg']
    assert part.kinds == {'JPEG RGB': 2}
    (BUCKET / 'pets' / 'cat' / '2.jpg').unlink()
    jobs.make_parts(job, workers=1)  # reads nothing again


def a_manifest():
    """A manifest is found, and files that broke off or changed are named."""
    folder = manifests.folder_of(manifests.default_dir('gs://bucket/data'), 'imagenet', 64, 'area')
    assert str(folder) == 'gs://bucket/data/prepared_images/imagenet2012_64_area/1.0.0'
    assert is_remote(folder)
    wanted = {'data_dir': epath.Path('gs://bucket/data'), 'size': 64, 'crop': 'area'}
    assert f'{folder} has no manifest.json' in refusal(manifests.find_manifest, 'imagenet', **wanted)
    write_whole(folder / 'shard', b'1234')
    manifest = dict.fromkeys(('splits', 'class_names', 'image_shape', 'crop'), 0) | {'source': 'tfds:imagenet2012'}
    manifest['files'] = {'shard': {'bytes': 4, 'sha256': sha256_of_file(folder / 'shard')}}
    write_whole(folder / 'manifest.json', json.dumps(manifest).encode())
    assert manifests.find_manifest('imagenet', **wanted) == manifest
    manifests.check_sums(folder, manifest, lambda done: None)
    write_whole(folder / 'shard', b'1235')
    assert 'shard is damaged' in refusal(manifests.check_sums, folder, manifest, lambda done: None)
    write_whole(folder / 'shard', b'123')
    assert 'has 3 bytes, not 4' in refusal(manifests.check_sizes, folder, manifest)


if __name__ == '__main__':
    fsspec.register_implementation('gcs', MemoryFileSystem, clobber=True)
    a_folder_of_images()
    a_manifest()
    print('all is well')
