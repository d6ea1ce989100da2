"""A preparation that dies at any moment goes on to the files of one that did not."""

import json
import shutil

import pytest
from etils import epath

from cfg.data.prepare import run as prepare
from cfg.data.prepare.parts import Options
from tests.kill_points import KillPoints, parts_of_files
from tests.miniature import encoded, picture


def prepared(images, data_dir):
    """Prepares a folder of images; what the manifest says of the result, but for when it was finished."""
    folders = prepare.Folders(epath.Path(data_dir), epath.Path(data_dir))
    prepare.prepare(f'folder:{images}', Options(8, 'area'), folders, workers=1)
    (file,) = data_dir.glob('prepared_images/*/*/manifest.json')
    return json.loads(file.read_text()) | {'finished': ''}


@pytest.fixture(name='images')
def images_fixture(tmp_path):
    for split, name, count in (('train', 'cat', 3), ('train', 'dog', 2), ('val', 'dog', 1)):
        (tmp_path / 'pets' / split / name).mkdir(parents=True)
        for i in range(count):
            (tmp_path / 'pets' / split / name / f'{i}.jpg').write_bytes(encoded(picture(10 * len(split) + i)))
    return tmp_path / 'pets'


def test_a_preparation_killed_at_every_change_of_its_folder(images, tmp_path, monkeypatch):
    """Three parts, which become the files of two splits."""
    monkeypatch.setattr(prepare, 'PART_SIZE', 4)
    folder = tmp_path / 'data'
    folder.mkdir()
    points = KillPoints(folder, tmp_path / 'copies')
    with points.watching():
        expected = prepared(images, folder)
    assert not points.unsafe
    changes = {change.split()[0] for change, _ in points.found}
    assert changes > {'write', 'fsync', 'replace', 'unlink', 'mkdir'}
    assert expected['splits']['train']['images'] == 5
    for change, copy in points.chosen():
        assert prepared(images, copy) == expected, change  # so every file has the digest that it should have
        assert not (copy / '.preparing' / 'pets_8_area').exists(), change
        assert not parts_of_files(copy), change
        shutil.rmtree(copy)
