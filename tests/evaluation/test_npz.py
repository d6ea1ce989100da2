"""Files of samples and references: read as a stream, written in ADM's layout, refused with a sentence."""

import numpy as np
import pytest

from cfg.evaluation.npz import File, ImageFile, write_reference
from cfg.metrics.moments import Moments
from cfg.runtime.errors import UserError

WHAT = 'config.eval.samples'


def images(count=11, shape=(4, 5, 3)):
    return np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(np.uint8)


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
@pytest.mark.parametrize('batch_size', [1, 4, 100])
def test_images_stream_in_order(tmp_path, save, batch_size):
    path, x, labels = tmp_path / 'x.npz', images(), np.arange(11)
    save(path, x, labels)
    file = ImageFile(path, WHAT)
    assert (file.count, file.image_shape) == (11, (4, 5, 3))
    batches = list(file.batches(batch_size))
    assert np.array_equal(np.concatenate(batches), x)
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    assert np.array_equal(file.labels(), labels)
    assert len(file.sha256) == 64


def test_a_plain_npy_and_a_file_without_labels(tmp_path):
    np.save(tmp_path / 'x.npy', images())
    file = ImageFile(tmp_path / 'x.npy', WHAT)
    assert file.labels() is None
    assert np.array_equal(next(file.batches(20)), images())
    assert File(tmp_path / 'x.npy', WHAT).moments() is None
    np.savez(tmp_path / 'x.npz', images())
    assert ImageFile(tmp_path / 'x.npz', WHAT).labels() is None


@pytest.mark.parametrize(
    ('array', 'expected'),
    [
        (np.zeros((3, 4, 4, 3), np.float32), 'holds float32, not uint8 images: convert'),
        (np.full((3, 4, 4, 3), np.nan), 'holds float64, not uint8 images: convert them before writing\\.'),
        (np.full((3, 4, 4, 3), 1e9), 'holds float64, .* here are 1e\\+09 to 1e\\+09, to grey levels 0 to 255\\.'),
        (np.array([['a']]), 'holds <U1, not uint8 images: convert them before writing\\.'),
        (np.zeros((3, 3, 8, 8), np.uint8), 'channels first'),
        (np.zeros((3, 8, 8), np.uint8), r'shape \(3, 8, 8\), not images'),
        (np.zeros((0, 8, 8, 3), np.uint8), r'shape \(0, 8, 8, 3\)'),
        (np.array([{}], dtype=object), 'pickled objects'),
    ],
)
def test_what_is_no_images_is_named(tmp_path, array, expected):
    path = tmp_path / 'x.npz'
    np.savez(path, array)
    with pytest.raises(UserError, match=rf'config\.eval\.samples=.*x\.npz.* {expected}'):
        ImageFile(path, WHAT)


GREY = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)


@pytest.mark.parametrize(
    'array',
    [
        *(
            GREY.astype(dtype)
            for dtype in (np.int16, np.int32, np.int64, np.uint16, np.float16, np.float32, np.float64)
        ),
        GREY.astype('>i4'),
        GREY + 0.2,
        GREY / 255,
        (GREY / 255).astype(np.float16),
        GREY / 255 * 1.001 - 5e-4,  # beyond the range, as a network's outputs are
        GREY / 127.5 - 1,
        (GREY / 127.5 - 1).astype(np.float32) * 1.001,
        GREY.astype(np.uint16) * 257,
        GREY.astype(np.int64) * 257,
    ],
    ids=lambda array: f'{array.dtype} {array.min():g} {array.max():g}',
)
@pytest.mark.parametrize('save', [np.savez, np.savez_compressed, np.save])
def test_the_remedy_for_images_of_another_type_gives_the_images(tmp_path, save, array):
    path = tmp_path / ('x.npy' if save is np.save else 'x.npz')
    save(path, array)
    with pytest.raises(UserError, match=f'holds {array.dtype}, not uint8') as error:
        ImageFile(path, WHAT)
    remedy = str(error.value).rpartition(' as ')[2].removesuffix('.')
    assert np.array_equal(eval(remedy, {'np': np, 'x': array}), GREY)
    assert f'{array.min():g} to {array.max():g}' in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / 'x.npz'
    with pytest.raises(UserError, match=r'x\.npz does not exist'):
        ImageFile(path, WHAT)
    path.write_bytes(b'not a zip')
    for read in (ImageFile, File):
        with pytest.raises(UserError, match=r'x\.npz cannot be read as an npz'):
            read(path, WHAT)
    np.savez(path, other=images())
    with pytest.raises(UserError, match=r'holds no images \(arr_0\) but other'):
        ImageFile(path, WHAT)
    np.savez(path, images(), np.zeros(3))
    with pytest.raises(UserError, match=r'labels \(arr_1\) are float64 \(3,\)'):
        ImageFile(path, WHAT).labels()


def test_a_file_that_is_cut_off_is_named(tmp_path):
    path = tmp_path / 'x.npy'
    np.save(path, images())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match='ends before image 11'):
        list(ImageFile(path, WHAT).batches(4))
    path = tmp_path / 'x.npz'
    np.savez(path, images())
    content = bytearray(path.read_bytes())
    content[300] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match='cannot be read as an npz'):
        list(ImageFile(path, WHAT).batches(4))


@pytest.mark.parametrize(
    ('place', 'value'),
    [
        (6, 255),  # the version that is needed
        (8, 1),  # flags: encrypted
        (8, 32),  # patched data
        (8, 64),  # strong encryption
        (10, 14),  # the method: LZMA
        (10, 99),  # none that there is
        (46 + len('mu'), 0),  # the name of the member
    ],
)
def test_a_turned_byte_in_the_list_of_members_is_named(tmp_path, place, value):
    path = tmp_path / 'x.npz'
    for name, array, read in (
        ('arr_0', images(400), ImageFile),
        ('mu', np.zeros(4000), lambda *named: File(*named).moments()),
    ):
        np.savez(path, **{name: array, 'sigma': np.eye(4)})
        content = bytearray(path.read_bytes())
        content[content.index(b'PK\x01\x02') + place] = value  # of the first member
        path.write_bytes(content)
        with pytest.raises(UserError, match=r'config\.eval\.samples=.*x\.npz (cannot be read|holds no images)'):
            read(path, WHAT)


def test_a_reference_is_read_as_it_was_written(tmp_path):
    rng = np.random.default_rng(0)
    pool, spatial = Moments.of(rng.normal(size=(50, 6))), Moments.of(rng.normal(size=(50, 4)))
    path = tmp_path / 'folder' / 'reference.npz'
    options = {'moments': pool, 'shape': (11, 4, 5, 3), 'hashes': {'features_sha256': 'a' * 64}}
    write_reference(path, spatial=spatial, batches=iter((images()[:7], images()[7:])), **options)
    with np.load(path, allow_pickle=False) as file:
        assert set(file.files) == {'arr_0', 'mu', 'sigma', 'mu_s', 'sigma_s', 'features_sha256'}
    found = File(path, WHAT).moments()
    assert np.array_equal(found['mu'], pool.mean)
    assert np.array_equal(found['sigma'], pool.covariance())
    assert np.array_equal(found['sigma_s'], spatial.covariance())
    assert np.array_equal(next(ImageFile(path, WHAT).batches(11)), images())
    write_reference(path, spatial=None, batches=[images()], **options)
    assert set(File(path, WHAT).moments()) == {'mu', 'sigma'}
    assert File(path, WHAT).made_with('features_sha256') == 'a' * 64
    np.savez(path, images())
    assert File(path, WHAT).moments() is None
    assert File(path, WHAT).made_with('features_sha256') is None


@pytest.mark.parametrize(
    'changes',
    [
        {'sigma': np.eye(4)},
        {'mu': np.zeros((5, 1))},
        {'mu': np.full(5, np.nan)},
        {'sigma': np.triu(np.ones((5, 5)))},
        {'mu': np.zeros(5, np.int64)},
    ],
)
def test_moments_that_are_none_are_named(tmp_path, changes):
    np.savez(tmp_path / 'x.npz', **{'mu': np.zeros(5), 'sigma': np.eye(5)} | changes)
    with pytest.raises(UserError, match=r'x\.npz: mu .* and sigma .* are not the mean and the symmetric covariance'):
        File(tmp_path / 'x.npz', WHAT).moments()


def test_a_covariance_has_no_negative_eigenvalues(tmp_path):
    path = tmp_path / 'x.npz'
    np.savez(path, mu=np.zeros(3), sigma=np.diag([4.0, 1.0, -0.01]))
    with pytest.raises(UserError, match=r'x\.npz: sigma is no covariance, .* eigenvalue is -0\.01 and the largest 4: '):
        File(path, WHAT).moments()
    features = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)  # singular, and rounded to float32
    np.savez(path, mu=features.mean(axis=0), sigma=np.cov(features.T).astype(np.float32))
    assert File(path, WHAT).moments()['sigma'].shape == (30, 30)
    np.savez(path, mu=np.zeros(3), sigma=np.zeros((3, 3)))
    assert not File(path, WHAT).moments()['sigma'].any()


def test_half_of_the_moments_is_named(tmp_path):
    np.savez(tmp_path / 'x.npz', mu=np.zeros(5))
    with pytest.raises(UserError, match='holds mu but no sigma'):
        File(tmp_path / 'x.npz', WHAT).moments()
