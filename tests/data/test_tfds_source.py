"""Data sets that are read straight from TFDS, through its own stand-in for tests."""

import copy
import sys
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

from cfg.data import disk
from cfg.data.built_in import BUILT_IN
from cfg.data.disk import TfdsSource
from cfg.data.pipeline import train_batches
from cfg.runtime.errors import UserError

FROM_TFDS = ('cifar10', 'imagenet_resized32', 'imagenet_resized64')


@pytest.fixture(autouse=True)
def mocked():
    with tfds.testing.mock_data(num_examples=40):
        yield


@pytest.mark.parametrize('name', FROM_TFDS)
def test_the_table_says_what_tfds_has(name, tmp_path):
    built_in = BUILT_IN[name]
    for split in built_in.splits:
        source = built_in.open(split, str(tmp_path))
        assert (source.image_shape, source.num_classes) == (built_in.image_shape, built_in.num_classes)
        assert (source.name, len(source)) == (f'{name}/{split}', 40)
        batch = source.fetch([3, 0, 39])
        assert (batch['image'].shape, batch['image'].dtype) == ((3, *built_in.image_shape), np.uint8)
        assert batch['label'].dtype == np.int32
        again = BUILT_IN[name].open(split, str(tmp_path)).fetch(np.array([39]))
        np.testing.assert_array_equal(again['image'][0], batch['image'][2])
    assert built_in.held_out in built_in.splits


def test_batches_go_on_at_any_step(tmp_path):
    source = BUILT_IN['cifar10'].open('train', str(tmp_path))
    options = {'batch_size': 16, 'seed': 3, 'flip': True}
    whole = train_batches(source, start_step=0, **options)
    batches = [next(whole) for _ in range(5)]
    later = next(train_batches(source, start_step=4, **options))
    for name, values in batches[4].items():
        np.testing.assert_array_equal(later[name], values)


def test_a_source_goes_to_other_processes_without_its_files(tmp_path):
    source = BUILT_IN['cifar10'].open('train', str(tmp_path))
    assert '_records' not in source.__getstate__()
    other = copy.copy(source)  # which takes and gives what a process would
    np.testing.assert_array_equal(other.fetch([5])['image'], source.fetch([5])['image'])
    assert other.fingerprint == source.fingerprint


def test_other_files_have_another_fingerprint(tmp_path):
    def fingerprint(split, num_bytes):
        files = mock.Mock(num_bytes=num_bytes, shard_lengths=[40])
        with mock.patch.object(tfds.core.DatasetInfo, 'splits', {'train': files, 'test': files}):
            return BUILT_IN['cifar10'].open(split, str(tmp_path)).fingerprint

    assert len({fingerprint('train', 100), fingerprint('train', 101), fingerprint('test', 100)}) == 3
    assert fingerprint('train', 100) == fingerprint('train', 100)


def test_a_download_that_fails_is_one_sentence(tmp_path, monkeypatch):
    failed = mock.Mock(side_effect=ConnectionError('no route to www.cs.toronto.edu\nmore'))
    monkeypatch.setattr(tfds.core.DatasetBuilder, 'download_and_prepare', failed)
    with pytest.raises(UserError, match=r"could not prepare 'cifar10' \(ConnectionError\): no route to [\w.]+$"):
        BUILT_IN['cifar10'].open('train', str(tmp_path))


def test_without_tfds_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
    with pytest.raises(UserError, match=r'which has cifar10, cannot be imported .*: install requirements'):
        BUILT_IN['cifar10'].open('train', str(tmp_path))


def test_files_that_cannot_be_read_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, 'RETRY_AFTER', ())
    source = TfdsSource('cifar10', 'cifar10', data_dir=epath.Path(tmp_path), split='train')
    monkeypatch.setattr(source, '_read', mock.Mock(side_effect=OSError('cut off')))
    with pytest.raises(UserError, match=r'cifar10/3.* cannot be read .*cut off.*delete it, and TFDS downloads it anew'):
        source.fetch([0])
