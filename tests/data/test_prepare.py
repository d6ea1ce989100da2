import errno
import itertools
import json
import os
import shutil
from collections import Counter
from unittest.mock import Mock

import numpy as np
import pytest
from etils import epath
from PIL import Image
from tensorflow_datasets.core import shuffle

from cfg.data import disk
from cfg.data.crop import area, decode
from cfg.data.disk import PreparedSource
from cfg.data.manifest import folder_of, short_name
from cfg.data.prepare import parts
from cfg.data.prepare import run as prepare
from cfg.runtime.errors import UserError
from cfg.runtime.files import lock
from tests.miniature import encoded, picture


@pytest.fixture(name='images')
def images_fixture(tmp_path):
    """A folder of 5 + 4 training and 3 validation images."""
    root = tmp_path / 'pets'
    for split, name, count in (('train', 'cat', 5), ('train', 'dog', 4), ('val', 'dog', 3)):
        (root / split / name).mkdir(parents=True)
        for i in range(count):
            (root / split / name / f'{i}.jpg').write_bytes(encoded(picture(len(split) + 10 * i + (name == 'dog'))))
    return root


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of four images, so that there are several."""
    monkeypatch.setattr(prepare, 'PART_SIZE', 4)


def run(images, data_dir, *, size=16, crop='area', skip=False, classes_from='auto', workers=1):
    return prepare.prepare(
        f'folder:{images}',
        parts.Options(size, crop, skip=skip, classes_from=classes_from),
        prepare.Folders(epath.Path(data_dir), epath.Path(data_dir)),
        workers=workers,
    )


def opened(images, data_dir, split='train', size=16, crop='area'):
    return PreparedSource(f'folder:{images}', data_dir=epath.Path(data_dir), size=size, crop=crop, split=split)


def manifest_of(images, data_dir, size=16, crop='area'):
    folder = folder_of(epath.Path(data_dir), f'folder:{images}', size, crop)
    return folder, json.loads((folder / 'manifest.json').read_text())


def test_what_is_read_is_what_was_given(images, tmp_path):
    report = run(images, tmp_path / 'data')
    assert 'train: 9 images (9 JPEG RGB)' in report
    assert 'classes: 2 (cat, dog)' in report
    source = opened(images, tmp_path / 'data')
    assert (len(source), source.num_classes, source.class_names) == (9, 2, ('cat', 'dog'))
    assert (source.image_shape, source.name) == ((16, 16, 3), 'pets_16_area/train')
    batch = source.fetch([0, 8, 3])
    assert np.array_equal(batch['label'], [0, 1, 0])
    for image, name in zip(batch['image'], ('cat/0', 'dog/3', 'cat/3'), strict=True):
        original, _ = decode((images / 'train' / f'{name}.jpg').read_bytes(), 3)
        assert np.array_equal(image, area(np.asarray(original), 16))
    assert len(opened(images, tmp_path / 'data', 'validation')) == 3
    assert not (tmp_path / 'data' / '.preparing' / 'pets_16_area').exists()


def test_prepared_images_without_a_class_are_refused(images, tmp_path, monkeypatch):
    run(images, tmp_path / 'data')
    source = opened(images, tmp_path / 'data')
    records = source._records
    monkeypatch.setattr(disk.PreparedSource, '_records', Mock())
    for label in (-1, 2):
        source._records.__getitems__ = lambda places, label=label: [records[i] | {'label': label} for i in places]
        with pytest.raises(UserError, match='holds images of the train split without a class of 0 to 1: delete it'):
            source.fetch([0])


def test_what_names_the_classes_is_asked_for_where_a_folder_can_be_read_in_two_ways(tmp_path):
    root = tmp_path / 'parts'
    for place, name in itertools.product(('part1', 'part2'), ('cat', 'dog')):
        (root / place).mkdir(parents=True, exist_ok=True)
        (root / place / f'{name}_{place}.png').write_bytes(encoded(picture(len(name + place)), 'PNG'))
    with pytest.raises(UserError, match='can be read in two ways'):
        run(root, tmp_path / 'data')
    for _ in range(2):  # it is prepared, and then checked
        assert 'classes: 2 (cat, dog)' in run(root, tmp_path / 'data', classes_from='names')
    with pytest.raises(UserError, match='delete it to prepare it anew'):
        run(root, tmp_path / 'data', classes_from='folders')


def test_what_machines_made_is_counted_in_the_manifest(images, tmp_path):
    (images / 'train' / 'cat' / '@eaDir' / '1.jpg').mkdir(parents=True)
    (images / '@eaDir').mkdir()
    (images / 'Thumbs.db').write_bytes(b'')
    report = run(images, tmp_path / 'data')
    assert 'passed over: 2 @eaDir/, 1 Thumbs.db' in report
    assert 'classes: 2 (cat, dog)' in report
    _, manifest = manifest_of(images, tmp_path / 'data')
    assert manifest['passed_over'] == {'@eaDir/': 2, 'Thumbs.db': 1}


def test_crops_lie_beside_each_other_and_differ(images, tmp_path):
    for crop in ('area', 'adm'):
        run(images, tmp_path / 'data', crop=crop)
    area_crop, adm_crop = (opened(images, tmp_path / 'data', crop=crop) for crop in ('area', 'adm'))
    assert area_crop.fingerprint != adm_crop.fingerprint
    assert not np.array_equal(area_crop.fetch([0])['image'], adm_crop.fetch([0])['image'])


def test_workers_change_nothing(images, tmp_path):
    contents = []
    for workers in (1, 2):
        run(images, tmp_path / str(workers), workers=workers)
        _, manifest = manifest_of(images, tmp_path / str(workers))
        contents.append({name: manifest[name] for name in ('splits', 'class_names', 'files')})
    assert contents[0] == contents[1]


def test_a_second_start_does_only_what_is_missing(images, tmp_path, monkeypatch):
    """An image that cannot be read stops it; what was finished is not made again."""
    bad = images / 'train' / 'dog' / '2.jpg'
    bad.write_bytes(bad.read_bytes()[:-300])
    with pytest.raises(UserError, match=r'train/dog/2\.jpg \(train\) cannot be read \(image file is truncated'):
        run(images, tmp_path / 'data')
    made, make_part = [], parts.make_part
    monkeypatch.setattr(parts, 'make_part', lambda path, *how: (made.append(path.name), make_part(path, *how)))
    report = run(images, tmp_path / 'data', skip=True)
    assert made == ['train-00001.npz', 'train-00002.npz', 'validation-00000.npz']  # the first was there
    assert 'skipped: train/dog/2.jpg (train): image file is truncated' in report
    _, manifest = manifest_of(images, tmp_path / 'data')
    (entry,) = manifest['skipped']
    assert (entry['split'], entry['file']) == ('train', 'train/dog/2.jpg')
    assert manifest['splits']['train']['images'] == 8


def stop_before_writing(images, data_dir, **options):
    """Leaves all parts behind, as a preparation that is stopped between its halves."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare, 'write_data_set', Mock(side_effect=KeyboardInterrupt))
        run(images, data_dir, **options)


def test_other_images_begin_again(images, tmp_path):
    stop_before_writing(images, tmp_path / 'data')
    (images / 'train' / 'cat' / '00.jpg').write_bytes(encoded(picture(77)))
    run(images, tmp_path / 'data')
    source = opened(images, tmp_path / 'data')
    original, _ = decode((images / 'train' / 'cat' / '00.jpg').read_bytes(), 3)
    assert np.array_equal(source.fetch([1])['image'][0], area(np.asarray(original), 16))


def test_what_was_prepared_is_not_taken_for_other_images(images, tmp_path):
    run(images, tmp_path / 'data')
    other = tmp_path / 'elsewhere' / 'pets'
    shutil.copytree(images, other)
    for use in (run, opened):
        with pytest.raises(UserError, match=rf'was prepared as folder:{images}, not folder:{other}'):
            use(other, tmp_path / 'data')
    (images / 'train' / 'cat' / 'new.jpg').write_bytes(encoded(picture(5)))
    with pytest.raises(UserError, match=r'was prepared from folder:.* with 12 files.*has 13 files.*delete it'):
        run(images, tmp_path / 'data')


def test_parts_are_not_taken_for_those_of_other_images(images, tmp_path):
    stop_before_writing(images, tmp_path / 'data')
    other = tmp_path / 'elsewhere' / 'pets'
    shutil.copytree(images, other)
    with pytest.raises(UserError, match=rf'holds the parts of folder:{images}, which ends like folder:{other}'):
        run(other, tmp_path / 'data')


def test_a_mended_image_is_read_again(images, tmp_path):
    """Also when the first start was to leave it out."""
    bad = images / 'train' / 'dog' / '2.jpg'
    good = bad.read_bytes()
    bad.write_bytes(bytes(len(good)))
    stop_before_writing(images, tmp_path / 'data', skip=True)
    with pytest.raises(UserError, match='not an image'):
        run(images, tmp_path / 'data')  # this one is not to leave it out
    bad.write_bytes(good)
    assert 'train: 9 images' in run(images, tmp_path / 'data')


def test_one_process_at_a_time(images, tmp_path):
    work = tmp_path / 'data' / '.preparing'
    work.mkdir(parents=True)
    with lock(work, 'prepare_data', part='pets_16_area'), pytest.raises(UserError, match='Another process runs'):
        run(images, tmp_path / 'data')


def test_a_folder_that_cannot_be_written(images, tmp_path):
    (tmp_path / 'data').write_text('')
    with pytest.raises(UserError, match=r'config\.data\.dir=.*data cannot be written'):
        run(images, tmp_path / 'data')


def test_a_full_disk_is_one_sentence(images, tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, 'No space left on device', 'part.npz')
    monkeypatch.setattr(parts, 'write_whole', Mock(side_effect=full))
    with pytest.raises(UserError, match=r'part\.npz: No space left on device: make room'):
        run(images, tmp_path / 'data')


def test_what_a_killed_assembly_left_goes(images, tmp_path):
    left = tmp_path / 'data' / 'prepared_images' / 'pets_16_area' / 'incomplete.ABC_1.0.0'
    left.mkdir(parents=True)
    (left / 'shard').write_bytes(b'x')
    run(images, tmp_path / 'data')
    assert not left.exists()


def test_a_name_that_is_not_utf8(images, tmp_path):
    name = os.fsencode(images / 'train' / 'cat') + b'/caf\xe9.jpg'
    with open(name, 'wb') as file:  # noqa: PTH123  pathlib has no bytes
        file.write(encoded(picture(3)))
    assert 'train: 10 images' in run(images, tmp_path / 'data')


def test_a_split_is_packed_in_pieces(images, tmp_path, monkeypatch):
    """TFDS sorts what it packs in memory, bucket by bucket: no bucket may hold everything, as small keys would."""
    monkeypatch.setattr(shuffle, 'MAX_MEM_BUFFER_SIZE', 1)
    used, bucket_of = [], shuffle.get_bucket_number

    def spy(**kwargs):
        used.append(bucket_of(**kwargs))
        return used[-1]

    monkeypatch.setattr(shuffle, 'get_bucket_number', spy)
    run(images, tmp_path / 'data')
    assert len(set(used[:9])) == 9  # of the training split
    assert used[:9] == sorted(used[:9])
    assert opened(images, tmp_path / 'data').fetch(range(9))['label'].tolist() == [0] * 5 + [1] * 4


def test_parts_without_a_plan_are_not_used(images, tmp_path):
    stop_before_writing(images, tmp_path / 'data')
    work = tmp_path / 'data' / '.preparing' / 'pets_16_area'
    (work / 'plan.json').unlink()
    for path in work.glob('*.npz'):
        path.write_bytes(b'of something else')
    assert 'train: 9 images' in run(images, tmp_path / 'data')


def test_parts_that_were_left_behind_go(images, tmp_path):
    run(images, tmp_path / 'data')
    left = tmp_path / 'data' / '.preparing' / 'pets_16_area'
    left.mkdir()
    (left / 'train-00000.npz').write_bytes(b'x')
    run(images, tmp_path / 'data')
    assert not left.exists()


def test_a_read_that_fails_once_is_tried_again(images, tmp_path, monkeypatch):
    run(images, tmp_path / 'data')
    monkeypatch.setattr(disk, 'RETRY_AFTER', (0.0, 0.0))
    source = opened(images, tmp_path / 'data')
    expected = source.fetch([4])
    calls, from_png = [], disk.from_png

    def hiccup(content):
        calls.append(content)
        if len(calls) < 3:
            raise RuntimeError('the network is away')
        return from_png(content)

    monkeypatch.setattr(disk, 'from_png', hiccup)
    assert np.array_equal(source.fetch([4])['image'], expected['image'])
    calls.clear()
    monkeypatch.setattr(disk, 'RETRY_AFTER', (0.0,))
    with pytest.raises(UserError, match='the network is away'):
        source.fetch([4])


def test_a_rotation_that_is_not_applied_is_told(images, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0).save(images / 'train' / 'cat' / '0.jpg', exif=exif)
    assert '8 JPEG RGB, 1 JPEG RGB with EXIF rotation' in run(images, tmp_path / 'data')


def test_an_empty_class_stops_or_is_left_out(images, tmp_path):
    (images / 'train' / 'ferret').mkdir()
    with pytest.raises(UserError, match=r'1 class has no image to train on \(ferret\).*on_error=skip'):
        run(images, tmp_path / 'data')
    report = run(images, tmp_path / 'data', skip=True)
    assert 'classes without training images: 1' in report
    assert manifest_of(images, tmp_path / 'data')[1]['empty_classes'] == ['ferret']
    assert opened(images, tmp_path / 'data').class_names == ('cat', 'dog')


def test_a_class_whose_images_are_all_damaged(images, tmp_path):
    for path in (images / 'train' / 'dog').iterdir():
        path.write_bytes(b'x')
    with pytest.raises(UserError, match='cannot be read'):
        run(images, tmp_path / 'data')
    run(images, tmp_path / 'data', skip=True)
    _, manifest = manifest_of(images, tmp_path / 'data')
    assert manifest['empty_classes'] == ['dog']
    assert len(manifest['skipped']) == 4


def test_nothing_that_can_be_read(images, tmp_path):
    for path in (images / 'train').glob('*/*'):
        path.write_bytes(b'x')
    with pytest.raises(UserError, match='None of the 9 training images'):
        run(images, tmp_path / 'data', skip=True)


def test_a_finished_data_set_is_checked_without_its_source(images, tmp_path):
    run(images, tmp_path / 'data')
    shutil.rmtree(images)
    assert 'every file has its SHA-256' in run(images, tmp_path / 'data')
    folder, manifest = manifest_of(images, tmp_path / 'data')
    name = next(name for name in manifest['files'] if 'train' in name)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(UserError, match=rf'{name} is damaged'):
        run(images, tmp_path / 'data')


@pytest.mark.parametrize('cut', [True, False])
def test_a_broken_copy_is_named_before_training(images, tmp_path, cut):
    run(images, tmp_path / 'data')
    folder, manifest = manifest_of(images, tmp_path / 'data')
    name = next(name for name in manifest['files'] if 'train' in name)
    if cut:
        (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    else:
        (folder / name).unlink()
    with pytest.raises(UserError, match=f'{name} (has|is missing)'):
        opened(images, tmp_path / 'data')


def test_damage_that_sizes_do_not_show_is_one_sentence(images, tmp_path):
    run(images, tmp_path / 'data')
    folder, manifest = manifest_of(images, tmp_path / 'data')
    name = next(name for name in manifest['files'] if 'train' in name)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(bytes(len(content)))
    with pytest.raises(UserError, match=r'cannot be read .*--mode=prepare_data'):
        opened(images, tmp_path / 'data').fetch(range(9))


def test_a_damaged_manifest(images, tmp_path):
    run(images, tmp_path / 'data')
    folder, _ = manifest_of(images, tmp_path / 'data')
    for content in ('{"splits": {', '{}', '[]'):
        (folder / 'manifest.json').write_text(content)
        with pytest.raises(UserError, match=r'manifest\.json is damaged'):
            opened(images, tmp_path / 'data')


def test_a_damaged_part(images, tmp_path):
    stop_before_writing(images, tmp_path / 'data')
    path = tmp_path / 'data' / '.preparing' / 'pets_16_area' / 'train-00001.npz'
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r'train-00001\.npz cannot be read .*delete it'):
        run(images, tmp_path / 'data')
    path.unlink()
    run(images, tmp_path / 'data')


def test_parts_keep_everything(tmp_path):
    images = [parts.Prepared(f'ü{i}', i, bytes([i] * i), bytes([i] * 32)) for i in range(1, 4)]
    for kept in (images, []):
        part = parts.Part(kept, Counter({'JPEG RGB': 3}), 2, [{'split': 'train', 'file': 'x', 'reason': 'y'}])
        parts.write_part(epath.Path(tmp_path / 'part.npz'), part)
        assert parts.read_part(epath.Path(tmp_path / 'part.npz')) == part


def test_a_missing_split_and_an_unprepared_size(images, tmp_path):
    run(images, tmp_path / 'data')
    with pytest.raises(UserError, match=r"config\.data\.split='test' must be one of train, validation"):
        opened(images, tmp_path / 'data', 'test')
    with pytest.raises(UserError, match='not prepared at 32 pixels'):
        opened(images, tmp_path / 'data', size=32)


def test_grey_and_odd_files_in_one_folder(tmp_path):
    root = tmp_path / 'odd' / 'a'
    root.mkdir(parents=True)
    Image.new('L', (30, 20), 100).save(root / '1.png')
    Image.new('CMYK', (30, 20)).save(root / '2.jpg')
    (root / '3.jpg').write_bytes(encoded(picture(0), 'PNG'))
    report = run(tmp_path / 'odd', tmp_path / 'data')
    assert all(kind in report for kind in ('1 PNG L', '1 JPEG CMYK', '1 PNG RGB'))
    assert (opened(tmp_path / 'odd', tmp_path / 'data').fetch([0])['image'] == 100).all()


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('imagenet', 'imagenet2012'),
        ('tfds:imagenet_resized/64x64', 'imagenet_resized-64x64'),
        ('folder:/data/my cats/', 'my-cats'),
        ('digits', 'digits'),
    ],
)
def test_short_names(name, expected):
    assert short_name(name) == expected
