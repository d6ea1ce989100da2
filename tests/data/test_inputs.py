import os
import shutil
import tarfile
from unittest.mock import Mock

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

from cfg.data.crop import from_png
from cfg.data.manifest import default_dir
from cfg.data.prepare import tfds_sets
from cfg.data.prepare.folders import folder_path, scan_folder
from cfg.data.prepare.imagenet import ARCHIVES, check_archives
from cfg.data.prepare.job import Job, make_parts
from cfg.data.prepare.parts import Options, read_part
from cfg.data.prepare.run import Folders, open_input
from cfg.data.prepare.tfds_sets import read_tfds
from cfg.features.network import default_cache
from cfg.runtime.errors import UserError
from tests.miniature import encoded, picture, write_tars


def fill(root, *names):
    """Writes an image at each path; a name that ends in / is an empty folder."""
    for name in names:
        path = epath.Path(root) / name
        if name.endswith('/'):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(0)))
    return epath.Path(root)


def test_a_folder_of_class_folders(tmp_path):
    source = scan_folder(fill(tmp_path, 'dog/b.jpg', 'dog/more/a.PNG', 'cat/1.jpeg', 'cat/notes.txt', '.git/x.png'))
    assert source.class_names == ('cat', 'dog')
    assert source.splits == {'train': 3}
    records = list(source.section('train', 0, 3)())
    assert [(r.name, r.label) for r in records] == [('cat/1.jpeg', 0), ('dog/b.jpg', 1), ('dog/more/a.PNG', 1)]
    assert records[0].content == encoded(picture(0))
    assert [r.name for r in source.section('train', 1, 2)()] == ['dog/b.jpg']


def test_a_flat_folder_as_adm_has_it(tmp_path):
    source = scan_folder(fill(tmp_path, 'dog_1.png', 'cat_with_hat.png', '10_a.png', '2_a.png'))
    assert source.class_names == ('10', '2', 'cat', 'dog')  # as text, like ADM
    assert [r.label for r in source.section('train', 0, 4)()] == [0, 1, 2, 3]


def test_train_and_validation_folders(tmp_path):
    source = scan_folder(fill(tmp_path, 'train/a/1.png', 'train/b/2.png', 'val/b/3.png'))
    assert source.splits == {'train': 2, 'validation': 1}
    assert source.class_names == ('a', 'b')
    assert [(r.name, r.label) for r in source.section('validation', 0, 1)()] == [('val/b/3.png', 1)]


@pytest.mark.parametrize(
    ('names', 'splits'),
    [
        (['Train/a/1.png', 'VALID/a/2.png', 'test/a/3.png'], {'train': 1, 'validation': 1, 'test': 1}),
        (['train/1.png', 'bus/2.png'], {'train': 2}),  # two classes
        (['train/a_1.png', 'test/a_2.png'], {'train': 1, 'test': 1}),  # flat
    ],
)
def test_what_is_a_split(tmp_path, names, splits):
    source = scan_folder(fill(tmp_path, *names))
    assert source.splits == splits
    assert source.class_names == (('bus', 'train') if 'bus/2.png' in names else ('a',))


def test_empty_classes_are_told(tmp_path):
    source = scan_folder(fill(tmp_path, 'a/1.png', 'b/', 'c/readme.txt'))
    assert (source.class_names, source.empty_classes) == (('a',), ('b', 'c'))


def test_a_file_that_vanishes_is_told(tmp_path):
    source = scan_folder(fill(tmp_path, 'a/1.png', 'a/2.png'))
    (tmp_path / 'a' / '1.png').unlink()
    first, second = source.section('train', 0, 2)()
    assert first.error
    assert not second.error


def test_linked_folders_are_followed(tmp_path):
    fill(tmp_path / 'elsewhere', '1.png')
    (tmp_path / 'root').mkdir()
    (tmp_path / 'root' / 'a').symlink_to(tmp_path / 'elsewhere')
    source = scan_folder(epath.Path(tmp_path / 'root'))
    assert [record.name for record in source.section('train', 0, 1)()] == ['a/1.png']


def test_a_class_that_cannot_be_written_down(tmp_path):
    fill(tmp_path, 'a/1.png')
    os.rename(tmp_path / 'a', os.fsencode(tmp_path) + b'/caf\xe9')  # noqa: PTH104  pathlib has no bytes
    with pytest.raises(UserError, match='not readable text'):
        scan_folder(epath.Path(tmp_path))


def test_a_folder_that_links_to_itself(tmp_path):
    fill(tmp_path, 'cat/1.png')
    (tmp_path / 'cat' / 'loop').symlink_to(tmp_path / 'cat')
    (tmp_path / 'cat' / 'above').symlink_to(tmp_path)
    assert scan_folder(epath.Path(tmp_path)).splits == {'train': 1}


def test_other_files_are_counted(tmp_path):
    source = scan_folder(fill(tmp_path, 'cat/1.png', 'cat/2.TIFF', 'cat/a.txt', 'cat/b.txt', 'cat/raw', 'cat/.x'))
    assert source.splits == {'train': 2}
    assert source.passed_over == {'.txt': 2, 'none': 1, '.*': 1}


MACHINE_MADE = (
    *('@eaDir', '@Recycle', '@tmp', '#recycle', '#snapshot', '$RECYCLE.BIN', 'RECYCLER', '__MACOSX', 'lost+found'),
    *('System Volume Information', '.Trashes', '.Trash-1000', '.Spotlight-V100', '.snapshot', '.zfs', '.git'),
    *('prepared_images', '~snapshot', '@Transcode', 'FOUND.000', 'TheVolumeSettingsFolder'),
    *('.ipynb_checkpoints', '__pycache__', '.AppleDouble', '.thumbnails', '.fseventsd', 'Network Trash Folder'),
)


@pytest.mark.parametrize('name', MACHINE_MADE)
def test_a_folder_that_no_person_made_is_no_class_and_holds_no_image(tmp_path, name):
    images = ['cat/1.png', 'cat/2.png', 'dog/3.png']
    fill(tmp_path, *images, f'{name}/0.png', f'cat/{name}/1.png/SYNOPHOTO_THUMB_XL.jpg', f'{name.lower()}/x/0.png')
    source = scan_folder(epath.Path(tmp_path))
    assert (source.class_names, source.splits, source.empty_classes) == (('cat', 'dog'), {'train': 3}, ())
    assert sum(source.passed_over.values()) == (2 if name == name.lower() else 3)
    assert source.passed_over[f'{name}/'] >= 2
    shutil.rmtree(tmp_path / name)
    assert scan_folder(epath.Path(tmp_path)).version == source.version


def test_files_that_no_person_made_are_counted(tmp_path):
    made = ['.DS_Store', '._1.png', '._2.png', 'Thumbs.db', 'desktop.ini', '.hidden.png', 'Icon\r']
    source = scan_folder(fill(tmp_path, 'cat/1.png', *(f'cat/{name}' for name in made)))
    assert source.splits == {'train': 1}
    counts = {'.DS_Store': 1, '._*': 2, 'Thumbs.db': 1, 'desktop.ini': 1, '.*': 1, 'Icon': 1}
    assert source.passed_over == counts


IN_PARTS = ['part1/cat_0.png', 'part1/dog_0.png', 'part2/cat_1.png', 'part2/dog_1.png']


@pytest.mark.parametrize('place', ['', 'train/'])
def test_parts_of_adms_layout_are_refused_until_the_user_says_what_they_are(tmp_path, place):
    root = fill(tmp_path, *(f'{place}{name}' for name in IN_PARTS), f'{"val/" if place else ""}part1/cat_2.png')
    with pytest.raises(UserError) as error:
        scan_folder(root)
    message = str(error.value)
    for part in ('2 classes (part1, part2) by its subfolders', '2 classes (cat, dog) by what comes before', '=names'):
        assert part in message
    assert scan_folder(root, 'folders').class_names == ('part1', 'part2')
    source = scan_folder(root, 'names')
    assert source.class_names == ('cat', 'dog')
    count = source.splits['train']
    of_class = {record.name.rpartition('/')[2][:3]: record.label for record in source.section('train', 0, count)()}
    assert of_class == {'cat': 0, 'dog': 1}


@pytest.mark.parametrize(
    'names',
    [
        ['old/cat_0.png', 'old/dog_0.png', 'new/cat_1.png'],
        [f'{part}/{i % 2}_{i}.png' for part in 'ab' for i in range(20)],
        ['0/cat_1.png', '0/dog_1.png', '1/cat_2.png', '1/dog_2.png'],
        ['part1/0_1.png', 'part1/1_2.png', 'part2/0_3.png', 'part2/1_4.png'],
        [f'part{i // 10}/{i // 8:02d}_{i}.png' for i in range(80)],  # sorted, so that few classes are in two parts
    ],
)
def test_other_contradictions(tmp_path, names):
    with pytest.raises(UserError, match='can be read in two ways'):
        scan_folder(fill(tmp_path, *names))


@pytest.mark.parametrize(
    'names',
    [
        ['n01440764/n01440764_10026.JPEG', 'n01440764/n01440764_2.JPEG', 'n01443537/n01443537_2.JPEG'],  # ImageNet
        ['n01443537/art_0.jpg', 'n01443537/toy_1.jpg', 'n01484850/art_0.jpg', 'n01484850/toy_1.jpg'],  # ImageNet-R
        ['cat/flickr_cat_1.jpg', 'cat/pixabay_cat_2.jpg', 'dog/flickr_dog_1.jpg', 'dog/pixabay_dog_2.jpg'],  # AFHQ
        ['a b/web_a-b_1.jpg', 'a b/own_A_B_2.jpg', 'c/web_c_1.jpg', 'c/own_c_2.jpg'],
        ['cat/IMG_1.jpg', 'cat/DSC_2.jpg', 'dog/IMG_3.jpg', 'dog/DSC_4.jpg'],  # cameras
        ['001.Tern/Black_Tern_1.jpg', '002.Swan/Black_Swan_1.jpg', '002.Swan/Black_Swan_2.jpg'],  # CUB
        ['animal/cat_1.jpg', 'animal/mouse_1.jpg', 'device/mouse_2.jpg', 'device/key_1.jpg', 'device/key_2.jpg'],
        ['rose/100_a.jpg', 'rose/101_b.jpg', 'daisy/100_c.jpg', 'daisy/102_d.jpg', 'daisy/103_d.jpg'],  # numbers
        [f'{fruit}/{turn}_100.jpg' for fruit in ('Apple 1', 'Kiwi') for turn in (*range(9), 'r_0')],  # shots
        ['0/10_left.jpeg', '1/10_right.jpeg', '0/11_left.jpeg', '0/11_right.jpeg', '1/12_left.jpeg', '1/12_right.jpeg'],
        [f'{mood}/S{i:03d}_{k}.png' for mood in ('0', '1') for i in range(4) for k in range(20)],  # persons
        ['part1/cat_0.jpg', 'part2/dog_0.jpg'],  # the same classes by other names
        ['cat/1_a.jpg', 'cat/2_b.jpg', 'dog/1_a.jpg', 'dog/plain.jpg'],  # one has no other reading
    ],
)
def test_subfolders_that_nothing_contradicts(tmp_path, names):
    folders = tuple(sorted({name.partition('/')[0] for name in names}))
    assert scan_folder(fill(tmp_path, *names)).class_names == folders


def test_images_without_subfolders_where_they_are_the_classes(tmp_path):
    with pytest.raises(UserError, match=r'holds images without a subfolder \(cat_1\.png\)'):
        scan_folder(fill(tmp_path, 'cat_1.png'), 'folders')


COMPOSED, DECOMPOSED = 'caf\u00e9', 'cafe\u0301'


@pytest.mark.parametrize('training', [[COMPOSED], [DECOMPOSED], [COMPOSED, DECOMPOSED]])
def test_a_class_is_the_same_however_its_letters_are_composed(tmp_path, training):
    names = [f'train/{name}/{i}.png' for i, name in enumerate(training)]
    source = scan_folder(fill(tmp_path, 'train/bar/1.png', *names, f'val/{COMPOSED}/2.png', f'val/{DECOMPOSED}/3.png'))
    assert source.class_names == ('bar', sorted(training)[0])
    assert source.splits == {'train': 1 + len(training), 'validation': 2}
    assert [record.label for record in source.section('validation', 0, 2)()] == [1, 1]


@pytest.mark.parametrize(
    ('training', 'other', 'message'),
    [
        ('Cat', 'cat', "has the class 'cat', which has no image to train on, though 'Cat' has some: put"),
        ('big cat', 'big_cat', "the class 'big_cat', .* though 'big cat' has some: put"),
        ('cat', 'c\u0430t', r"the class 'c\u0430t' \('c\\u0430t'\), which has no image to train on: put"),  # Cyrillic
    ],
)
def test_a_missing_class_is_told_from_one_that_looks_like_it(tmp_path, training, other, message):
    with pytest.raises(UserError, match=message):
        scan_folder(fill(tmp_path, f'train/{training}/1.png', f'val/{other}/2.png'))


def test_versions_tell_folders_apart(tmp_path):
    before = scan_folder(fill(tmp_path, 'a/1.png')).version
    assert scan_folder(epath.Path(tmp_path)).version == before
    (tmp_path / 'a' / '1.png').write_bytes(b'another size')
    assert scan_folder(epath.Path(tmp_path)).version != before
    assert scan_folder(fill(tmp_path, 'a/2.png')).version != before


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (['a/1.png', 'b.png'], 'both subfolders'),
        (['photo.png'], 'no class in its name'),
        (['notes.txt'], 'holds no images'),
        (['pets/cat/1.png', 'pets/dog/2.png'], r'holds folders of folders \(pets\)'),
        (['train_images/cat/1.png', 'val/cat/2.png'], r'holds folders of folders \(train_images, val\)'),
        (['train/a/1.png', 'val/b/1.png'], "has the class 'b'"),
        (['train/a/1.png', 'extra/a/1.png'], 'holds extra, train: beside train'),
        (['train/a/1.png', 'val/a/1.png', 'validation/a/1.png'], 'holds train, val, validation: beside train'),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_folder_laid_out_otherwise_is_refused(tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        scan_folder(fill(tmp_path, *names))


@pytest.mark.parametrize('path', ['~/cats', '$IMAGES/cats', 'file:///data/cats'])
def test_the_folder_of_a_name_is_a_path_as_the_user_means_it(monkeypatch, path):
    monkeypatch.setenv('HOME', '/data')
    monkeypatch.setenv('IMAGES', '/data')
    assert folder_path(f'folder:{path}') == epath.Path('/data/cats')


def test_a_folder_may_be_called_none():
    assert folder_path('folder:None') == epath.Path('None')


@pytest.mark.parametrize('variable', ['TFDS_DATA_DIR', 'XDG_CACHE_HOME'])
def test_the_folders_of_the_environment_are_paths_as_the_user_means_them(monkeypatch, variable):
    monkeypatch.setenv('HOME', '/home/ann')
    monkeypatch.setenv(variable, '~/x')
    found = default_dir('') if variable == 'TFDS_DATA_DIR' else default_cache('').parent
    assert str(found) == '/home/ann/x'


def test_a_missing_folder(tmp_path):
    with pytest.raises(UserError, match='is not a folder'):
        open_input(f'folder:{tmp_path}/nothing', Folders(epath.Path(tmp_path), epath.Path(tmp_path)))


class Shapes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Grey images of two classes, in three splits."""

    VERSION = tfds.core.Version('2.1.0')

    def _info(self):
        features = {
            'picture': tfds.features.Image(shape=(None, None, 1), encoding_format='png'),
            'kind': tfds.features.ClassLabel(names=['circle', 'square']),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples(23), 'test': self._generate_examples(7)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {'picture': np.full((9, 9, 1), i, np.uint8), 'kind': i % 2}


@pytest.mark.parametrize('file_format', ['array_record', 'tfrecord'])
def test_any_data_set_of_tfds_in_any_format(tmp_path, file_format):
    builder = Shapes(data_dir=tmp_path, file_format=file_format)
    builder.download_and_prepare()
    source = read_tfds(builder.data_dir)
    assert source.splits == {'train': 23, 'test': 7}
    assert (source.class_names, source.channels) == (('circle', 'square'), 1)
    assert source.version.startswith('shapes/2.1.0, files ')
    records = list(source.section('train', 0, 23)())
    grey = [int(from_png(record.content)[0, 0, 0]) for record in records]
    assert sorted(grey) == list(range(23))
    assert [value % 2 for value in grey] == [r.label for r in records]
    assert list(source.section('train', 5, 9)()) == records[5:9]  # the same order, from anywhere
    for workers in (1, 2):
        folder = epath.Path(tmp_path / f'parts{workers}')
        job = Job('tfds:shapes', source, folder, Options(4, 'area'), 12)
        make_parts(job, workers=workers)
        _, second, *_ = job.places()
        assert [image.name for image in read_part(second.path).images] == [f'train/{i}' for i in range(12, 23)]


def test_the_features_that_a_data_set_is_meant_for(tmp_path):
    """Of several, as in data sets with masks and coarser classes."""

    class Masked(Shapes, skip_registration=True):
        def _info(self):
            features = {
                'mask': tfds.features.Image(shape=(None, None, 1), encoding_format='png'),
                'picture': tfds.features.Image(shape=(None, None, 1), encoding_format='png'),
                'coarse': tfds.features.ClassLabel(names=['any']),
                'kind': tfds.features.ClassLabel(names=['circle', 'square']),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=('picture', 'kind')
            )

        def _generate_examples(self, count):
            for key, example in super()._generate_examples(count):
                yield key, example | {'mask': np.zeros((9, 9, 1), np.uint8), 'coarse': 0}

    builder = Masked(data_dir=tmp_path, file_format='array_record')
    builder.download_and_prepare()
    source = read_tfds(builder.data_dir)
    assert source.class_names == ('circle', 'square')
    assert sorted(from_png(record.content)[0, 0, 0] for record in source.section('train', 0, 23)()) == list(range(23))


@pytest.mark.parametrize('secret', [range(7), [3]])
def test_an_example_without_a_class_cannot_be_read(tmp_path, secret, caplog):
    """-1 is what TFDS has in test splits whose labels are secret; without any the split is left out."""
    caplog.set_level('INFO', logger='cfg')

    class Secret(Shapes, skip_registration=True):
        def _generate_examples(self, count):
            for key, example in super()._generate_examples(count):
                yield key, example | ({'kind': -1} if count == 7 and key in secret else {})

    builder = Secret(data_dir=tmp_path, file_format='array_record')
    builder.download_and_prepare()
    source = read_tfds(builder.data_dir)
    assert not any(record.error for record in source.section('train', 0, 23)())
    if len(secret) == 1:
        errors = [record.error for record in source.section('test', 0, 7)() if record.error]
        assert errors == ['it has no class']
    else:
        assert source.splits == {'train': 23}
        assert 'The test split of secret/2.1.0 has no classes and is left out.' in caplog.text


def test_a_data_set_without_classes_is_refused(tmp_path):
    class Unlabelled(Shapes, skip_registration=True):
        def _info(self):
            features = {'picture': tfds.features.Image(shape=(None, None, 1), encoding_format='png')}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {'picture': np.zeros((9, 9, 1), np.uint8)}

    builder = Unlabelled(data_dir=tmp_path, file_format='array_record')
    builder.download_and_prepare()
    with pytest.raises(UserError, match='0 features of kind ClassLabel'):
        read_tfds(builder.data_dir)


def test_an_unknown_data_set_of_tfds(tmp_path):
    with pytest.raises(UserError, match="TFDS has no data set 'imagenet2021'"):
        open_input('tfds:imagenet2021', Folders(epath.Path(tmp_path), epath.Path(tmp_path)))


def without_end(content):
    return content.rstrip(b'\0') + bytes(-len(content.rstrip(b'\0')) % 512)


@pytest.mark.parametrize('name', list(ARCHIVES))
@pytest.mark.parametrize(
    ('damage', 'problem'),
    [
        (lambda content: b'', 'is empty'),
        (lambda content: content[: len(content) * 3 // 4], 'is cut short or damaged after'),
        (without_end, 'is cut short or damaged after'),  # between two entries
        (lambda content: content[:512], 'is cut short or damaged after 1 entries'),
        (lambda content: without_end(content) + bytes(2**21), 'is cut short or damaged after'),  # full of holes
        (lambda content: b'<html><body>Please log in</body></html>' * 100, 'is no tar file'),
    ],
)
def test_a_damaged_archive_is_named_with_what_it_should_be(tmp_path, name, damage, problem):
    manual = tmp_path / 'downloads' / 'manual'
    write_tars(manual)
    (manual / name).write_bytes(damage((manual / name).read_bytes()))
    folders = Folders(epath.Path(tmp_path), epath.Path(tmp_path))
    with pytest.raises(UserError) as error:
        open_input('tfds:imagenet2012', folders)
    size, md5, _ = ARCHIVES[name]
    message = str(error.value)
    assert message.startswith(f'{manual / name} {problem}')
    assert (
        f'it has {(manual / name).stat().st_size} bytes, and the published file {size} bytes and MD5 {md5}' in message
    )
    assert 'download it again' in message
    assert not (tmp_path / 'imagenet2012').exists()


@pytest.mark.parametrize(
    ('number', 'entry', 'problem'),
    [
        (3, './ILSVRC2012_val_00000003.JPEG', "as its entry 3 is './ILSVRC2012_val_00000003.JPEG'"),
        (3, 'ILSVRC2012_val_00000030.JPEG', 'as its 5 entries are not numbered from 1 to 5'),
    ],
)
def test_validation_images_that_would_get_the_labels_of_others(tmp_path, number, entry, problem):
    manual = tmp_path / 'downloads' / 'manual'
    write_tars(manual)
    with tarfile.open(manual / 'ILSVRC2012_img_val.tar', 'w') as tar:
        for i in (2, 1, 3, 4, 5):  # in any order, as the published ones are
            tar.addfile(tarfile.TarInfo(entry if i == number else f'ILSVRC2012_val_{i:08d}.JPEG'))
    with pytest.raises(UserError, match=problem):
        check_archives(epath.Path(manual))


def test_whole_archives_pass(tmp_path):
    write_tars(tmp_path)
    check_archives(epath.Path(tmp_path))


def test_what_tfds_cannot_read_of_the_archives_tells_what_they_should_be(tmp_path, capsys):
    """A class in the middle of the archive is damaged, which only TFDS notices."""
    manual = tmp_path / 'downloads' / 'manual'
    write_tars(manual)
    path = manual / 'ILSVRC2012_img_train.tar'
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        place = tar.getmembers()[1].offset_data
    content[place : place + 512] = b'x' * 512
    path.write_bytes(content)
    with pytest.raises(UserError, match=r'could not prepare .*147897477120 bytes and MD5 1d675b47'):
        open_input('tfds:imagenet2012', Folders(epath.Path(tmp_path), epath.Path(tmp_path)))
    assert capsys.readouterr().err.endswith('\n')


@pytest.mark.parametrize('file_format', ['array_record', 'tfrecord'])
def test_damaged_files_of_tfds_are_named(tmp_path, file_format):
    builder = Shapes(data_dir=tmp_path, file_format=file_format)
    builder.download_and_prepare()
    source = read_tfds(builder.data_dir)
    (path,) = builder.data_path.glob('*-train.*')
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b'x' * len(content), b''):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f'{builder.data_dir} cannot be read .* among images 0 to 22 of the train'):
            list(source.section('train', 0, 23)())
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match='away'):
        patch.setattr(tfds_sets, '_examples', Mock(side_effect=OSError(5, 'the server is away')))
        list(source.section('train', 0, 23)())
    (builder.data_path / 'dataset_info.json').write_text('{"name"')
    tfds_sets._builder.cache_clear()
    with pytest.raises(UserError, match=f'{builder.data_dir} cannot be read .*: copy it again'):
        read_tfds(builder.data_dir)


def test_missing_archives_are_named(tmp_path):
    manual = tmp_path / 'downloads' / 'manual'
    manual.mkdir(parents=True)
    (manual / 'ILSVRC2012_img_val.tar').write_bytes(b'')
    with pytest.raises(UserError, match=r'downloads/manual lacks ILSVRC2012_img_train\.tar: register at'):
        open_input('tfds:imagenet2012', Folders(epath.Path(tmp_path), epath.Path(tmp_path)))
