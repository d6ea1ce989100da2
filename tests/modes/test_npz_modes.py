"""`--mode=stats` and `--mode=evaluate_npz`, with Inception (random weights), the small classifier and a fake."""

import dataclasses
import json
import math
import pickle

import numpy as np
import pytest

from cfg.data.digits import digits
from cfg.data.source import ArraySource
from cfg.evaluation import files, references
from cfg.features.network import FeatureNetwork, Features, with_second
from cfg.features.weights import PYTORCH_FID
from cfg.metrics.distances import frechet_distance
from cfg.modes import evaluate_npz, stats
from cfg.report.rows import Scores
from cfg.runtime.errors import UserError
from tests.conftest import small_config
from tests.inception_file import write_torch
from tests.report.rows import VALIDATOR


@pytest.fixture(scope='module', name='cache')
def cache_fixture(tmp_path_factory):
    """A cache with weights."""
    cache = tmp_path_factory.mktemp('cache')
    write_torch(cache / PYTORCH_FID)
    return cache


def config_of(cache, **changes):
    config = small_config()
    config.eval.cache_dir = str(cache)
    config.eval.batch_size = 8
    config.eval.kid_subsets = 3
    config.eval.kid_subset_size = 5
    config.stats.num_images = 10
    for name, value in changes.items():
        part, _, field = name.rpartition('__')
        config[part or 'eval'][field] = value
    return config


def colours(count, seed=0, size=24):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 3, 3, 3)).repeat(size // 3, axis=1).repeat(size // 3, axis=2)
    return np.clip(images + rng.normal(0, 5, images.shape), 0, 255).astype(np.uint8)


@pytest.fixture(name='source')
def source_fixture(monkeypatch):
    """A data set of coloured squares in the place of the digits."""
    images = colours(20)
    source = ArraySource('squares/train', images, np.arange(20, dtype=np.int32) % 2, ['a', 'b'])
    for module in ('modes.stats', 'features.opening', 'evaluation.references'):
        monkeypatch.setattr(f'cfg.{module}.open_source', lambda *_, **__: source)
    return source


@pytest.mark.usefixtures('narrow')
def test_a_reference_of_inception(source, cache, tmp_path):
    """The whole way: --mode=stats, then --mode=evaluate_npz of other images."""
    config = config_of(cache, features='inception', stats__path=str(tmp_path / 'stats' / 'reference.npz'))
    path = stats.run(config, None)
    with np.load(path, allow_pickle=False) as file:
        assert {name: file[name].shape for name in file.files} == {
            'arr_0': (10, 24, 24, 3),
            'features_sha256': (),
            'mu': (2048,),
            'sigma': (2048, 2048),
            'mu_s': (2023,),
            'sigma_s': (2023, 2023),
        }
        assert np.array_equal(file['arr_0'], source.images[references.chosen(20, 10)])
    np.savez(tmp_path / 'other.npz', colours(16, seed=5))
    options = {'samples': str(tmp_path / 'other.npz'), 'reference': str(path), 'features': 'inception'}
    evaluate_npz.run(config_of(cache, **options), tmp_path)
    other = json.loads((tmp_path / 'evaluate_npz.jsonl').read_text())
    VALIDATOR.validate(other)
    assert other['fid'] > 0
    assert other['sfid'] > 0
    assert other['num_samples'] == 16
    assert any(text.startswith('16 samples are no more than the 2048 features') for text in other['warnings'])
    for name in ('samples_sha256', 'features_sha256', 'features_file_sha256', 'reference_file_sha256'):
        assert len(other[name]) == 64
    assert other['accuracy'] is None


def test_the_default_path_names_data_and_weights(source, cache):
    path = stats.run(config_of(cache, features='inception'), None)
    assert path.parent == cache
    assert path.name.startswith(f'squares_train_{source.fingerprint[:8]}_')


def test_the_small_classifier_scores_digits(cache, digits_classifier, tmp_path):
    digits_classifier(cache)
    images, labels = digits('test').images, digits('test').labels
    np.savez(tmp_path / 'samples.npz', images[:300], labels[:300])
    np.savez(tmp_path / 'reference.npz', images[300:])
    options = {'samples': str(tmp_path / 'samples.npz'), 'reference': str(tmp_path / 'reference.npz')}
    table = evaluate_npz.run(config_of(cache, features='small_classifier', **options), tmp_path)
    row = json.loads((tmp_path / 'evaluate_npz.jsonl').read_text())
    assert row['accuracy'] > 0.97
    assert row['sfid'] is None
    assert f'{row["fid"]:.4f}' in table
    assert 'reference.npz' in table


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({}, 'config.eval.samples is missing'),
        ({'samples': 'images.npz'}, 'config.eval.reference is missing'),
        ({'samples': 'nothing.npz', 'reference': 'images.npz'}, r'config\.eval\.samples=.*nothing\.npz does not exist'),
        ({'samples': 'images.npz', 'reference': 'nothing.npz'}, r'config\.eval\.reference=.*nothing\.npz does not'),
        ({'samples': 'grey.npz', 'reference': 'images.npz'}, r'grey\.npz has images of 24x24x1, but Inception'),
        ({'samples': 'images.npz', 'reference': 'grey.npz'}, r'grey\.npz has images of 24x24x1, but Inception'),
        ({'samples': 'floats.npz', 'reference': 'images.npz'}, r'floats\.npz holds float64, not uint8'),
        ({'samples': 'one.npz', 'reference': 'images.npz'}, r'one\.npz holds 1 images: give at least 2'),
        ({'samples': 'images.npz', 'reference': 'wide.npz'}, r'wide\.npz holds moments of 64 features \(mu\), but Inc'),
        ({'samples': 'images.npz', 'reference': 'one.npz'}, r'reference=.*one\.npz holds 1 image and no moments: give'),
    ],
)
def test_input_that_does_not_fit_is_named(cache, tmp_path, changes, expected):
    np.savez(tmp_path / 'images.npz', colours(4))
    np.savez(tmp_path / 'grey.npz', colours(4)[..., :1])
    np.savez(tmp_path / 'floats.npz', colours(4) / 255)
    np.savez(tmp_path / 'one.npz', colours(1))
    np.savez(tmp_path / 'wide.npz', mu=np.zeros(64), sigma=np.eye(64))
    paths = {name: str(tmp_path / file) for name, file in changes.items()}
    with pytest.raises(UserError, match=expected):
        evaluate_npz.run(config_of(cache, features='inception', **paths), None)


@pytest.mark.parametrize('first', [5, 1, -1, 2**32])
def test_labels_that_are_no_classes_are_refused_before_anything_is_measured(cache, tmp_path, first, monkeypatch):
    monkeypatch.setattr('cfg.features.opening.open_features', lambda *_: pytest.fail('opened'))
    np.savez(tmp_path / 'x.npz', np.zeros((10, 8, 8, 1), np.uint8), first + np.arange(10))
    config = config_of(cache, samples=str(tmp_path / 'x.npz'), reference=str(tmp_path / 'x.npz'))
    message = rf'samples=.*x\.npz: its labels \(arr_1\) are {first} to {first + 9}, and the classes 0 to 9: number'
    with pytest.raises(UserError, match=message):
        evaluate_npz.run(config, None)


def test_labels_that_nothing_reads_may_be_any(fake, tmp_path):
    """Inception alone does not know the classes of the data set."""
    np.savez(tmp_path / 'samples.npz', colours(30), np.arange(30) - 1)
    assert scored(tmp_path, 'samples.npz', 'samples.npz', features='inception')['accuracy'] is None


def test_a_path_that_is_no_npz_is_refused(source, cache):
    with pytest.raises(UserError, match=r'config\.stats\.path=x\.txt must end in \.npz'):
        stats.run(config_of(cache, features='inception', stats__path='x.txt'), None)


def fake_features(images):
    flat = images.reshape(len(images), -1).astype(np.float32) / 256
    logits = flat[:, :3].astype(np.float64)
    return Features(flat[:, :6], flat[:, -4:], logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), None)


@pytest.fixture(name='fake')
def fake_fixture(monkeypatch, tmp_path):
    """A network that costs nothing, in the place of the config's; its cache is `tmp_path`/cache."""
    network = FeatureNetwork('fake', 'f' * 64, None, 6, 4, (None, None, 3), fake_features, None, tmp_path / 'cache')
    monkeypatch.setattr('cfg.features.opening.open_features', lambda *_: network)
    return network


def replace_features(monkeypatch, network, **changes):
    changed = dataclasses.replace(network, **changes)
    monkeypatch.setattr('cfg.features.opening.open_features', lambda *_: changed)


def scored(tmp_path, samples, reference, **changes):
    """The row of --mode=evaluate_npz, read as strictly as JSON is defined."""
    paths = {'samples': str(tmp_path / samples), 'reference': str(tmp_path / reference)}
    evaluate_npz.run(config_of(tmp_path, **paths, **changes), tmp_path)

    def refuse(name):
        raise AssertionError(f'{name} is no JSON')

    newest = max((tmp_path / 'evaluate_npz').iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(newest.read_text(), parse_constant=refuse)


def moments_of(images):
    features = fake_features(images)
    parts = {'': features.pool, '_s': features.spatial}
    return {
        f'{name}{end}': value
        for end, x in parts.items()
        for name, value in (('mu', x.mean(axis=0, dtype=np.float64)), ('sigma', np.cov(x.T.astype(np.float64))))
    }


def folders(path):
    return sorted(entry for entry in path.glob('*') if entry.is_dir())


def test_what_was_measured_of_samples_goes_and_of_the_reference_stays(fake, tmp_path, monkeypatch):
    np.savez(tmp_path / 'samples.npz', colours(30))
    np.savez(tmp_path / 'reference.npz', colours(40, seed=1))
    first = scored(tmp_path, 'samples.npz', 'reference.npz')
    (kept,) = folders(tmp_path / 'cache' / 'measured')
    assert not folders(tmp_path / 'cache' / 'scored')
    same = scored(tmp_path, 'reference.npz', 'reference.npz')  # one file as both
    assert same['fid'] == pytest.approx(0, abs=1e-9)
    assert folders(tmp_path / 'cache' / 'measured') == [kept]
    assert not folders(tmp_path / 'cache' / 'scored')
    # What was measured of samples stays until the row is written.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluate_npz.Results, 'write', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        scored(tmp_path, 'samples.npz', 'reference.npz')
    assert len(folders(tmp_path / 'cache' / 'scored')) == 1
    replace_features(monkeypatch, fake, extract=lambda _: pytest.fail('measured again'))
    assert scored(tmp_path, 'samples.npz', 'reference.npz')['kid'] == first['kid']
    assert not folders(tmp_path / 'cache' / 'scored')


@pytest.fixture(name='classified')
def classified_fixture(fake, tmp_path, monkeypatch):
    """A classifier of images of 24x24x3 beside the fake; the field that names it."""

    class Dark:
        logsnr_max, imported, sha256 = 20.0, False, 'd' * 64

        @classmethod
        def beside(cls, config, workdir, *, what, kind):
            assert (workdir, what, kind) == (str(tmp_path), 'config.eval.classifier_workdir', 'classifier')
            return cls()

        def check_images(self, config, image_shape, num_classes):
            assert (image_shape, num_classes) == ((24, 24, 3), 10)

        def params(self):
            return {'bias': np.zeros(2, np.float32)}

        def bind(self, params):
            def logits(z, logsnr):
                assert z.shape[1:] == (24, 24, 3)
                return z[:, 0, 0, :2] + params['bias']

            return logits

    monkeypatch.undo()  # the fake takes the place of Inception alone, not of what is put beside it
    monkeypatch.setattr('cfg.features.opening.inception', lambda *_, **__: fake)
    monkeypatch.setattr('cfg.features.opening.TrainedRun', Dark)
    return {'features': 'inception', 'classifier_workdir': str(tmp_path)}


def test_a_reference_is_measured_once_however_samples_are_classified_and_split(fake, classified, tmp_path):
    np.savez(tmp_path / 'samples.npz', colours(30), np.zeros(30, np.int32))
    np.savez(tmp_path / 'reference.npz', colours(40, seed=1))
    first = scored(tmp_path, 'samples.npz', 'reference.npz', features='inception')
    (kept,) = folders(tmp_path / 'cache' / 'measured')
    other = scored(tmp_path, 'samples.npz', 'reference.npz', is_split_size=10, **classified)
    assert folders(tmp_path / 'cache' / 'measured') == [kept]
    assert other['fid'] == first['fid']
    assert other['inception_score'] != first['inception_score']
    assert (first['accuracy'], first['classifier']) == (None, None)
    assert other['classifier'] == f'noise-aware classifier {"d" * 16}'
    assert 0 < other['accuracy'] < 1


def test_a_classifier_of_the_samples_does_not_see_the_images_of_the_reference(classified, tmp_path):
    np.savez(tmp_path / 'samples.npz', colours(30), np.zeros(30, np.int32))
    np.savez(tmp_path / 'reference.npz', colours(40, seed=1, size=36))
    row = scored(tmp_path, 'samples.npz', 'reference.npz', **classified)
    assert row['accuracy'] is not None
    assert 'The samples are 24x24x3, the images of the reference 36x36x3.' in row['warnings']


@pytest.mark.parametrize('count', [1, 2, 3, 4])
def test_few_reference_images_are_warnings_and_the_row_is_json(fake, tmp_path, count, capsys):
    np.savez(tmp_path / 'samples.npz', colours(30))
    np.savez(tmp_path / 'reference.npz', colours(count, seed=1), **moments_of(colours(40, seed=1)))
    row = scored(tmp_path, 'samples.npz', 'reference.npz')
    assert row['fid'] > 0
    assert (row['kid'] is None) == (count < 2)
    assert (row['precision'] is None) == (row['recall'] is None) == (count < 4)
    texts = ' '.join(row['warnings'])
    assert ('KID needs at least 2 real images' in texts) == (count < 2)
    assert ('Precision and recall need more than 3 samples and real images' in texts) == (count < 4)
    assert (f'KID is of subsets of {count}' in texts) == (count >= 2)


@pytest.mark.parametrize(
    ('count', 'stored', 'expected'), [(6, False, True), (7, False, False), (4, True, False), (40, False, False)]
)
def test_a_reference_of_few_images_is_a_warning(fake, tmp_path, count, stored, expected):
    images = colours(count, seed=1)
    np.savez(tmp_path / 'samples.npz', colours(30))
    np.savez(tmp_path / 'reference.npz', images, **(moments_of(images) if stored else {}))
    texts = scored(tmp_path, 'samples.npz', 'reference.npz')['warnings']
    words = f'The moments of the reference are of {count} images, no more than the 6 features'
    assert any(text.startswith(words) for text in texts) == expected


@pytest.mark.parametrize(('size', 'last'), [(29, 1), (25, 5), (15, None), (10, None), (30, None), (31, None)])
def test_an_uneven_last_split_of_the_inception_score_is_a_warning(fake, tmp_path, size, last):
    np.savez(tmp_path / 'samples.npz', colours(30))
    np.savez(tmp_path / 'reference.npz', colours(40, seed=1))
    texts = scored(tmp_path, 'samples.npz', 'reference.npz', is_split_size=size)['warnings']
    found = [text for text in texts if 'inception score' in text]
    assert len(found) == (last is not None)
    assert all(f'The last split of the inception score holds {last} of {size} samples' in text for text in found)


def test_a_number_that_is_not_finite_is_no_row(fake, tmp_path, monkeypatch):
    np.savez(tmp_path / 'samples.npz', colours(30))
    np.savez(tmp_path / 'reference.npz', colours(40, seed=1))
    monkeypatch.setattr(
        files.Scoring,
        'scores',
        lambda *_: Scores(fid=1.0, inception_score=1.0, inception_score_std=0.0, kid=math.nan),
    )
    with pytest.raises(UserError, match=r'evaluate_npz/\w+\.json is not written: kid is nan; see'):
        scored(tmp_path, 'samples.npz', 'reference.npz')
    assert not list(tmp_path.glob('evaluate_npz*'))


def test_the_same_samples_again_are_the_same_row(fake, tmp_path):
    np.savez(tmp_path / 'samples.npz', colours(30))
    first = scored(tmp_path, 'samples.npz', 'samples.npz')
    again = scored(tmp_path, 'samples.npz', 'samples.npz')
    assert again == first | {'finished': again['finished']}
    (line,) = (tmp_path / 'evaluate_npz.jsonl').read_text().splitlines()
    assert json.loads(line) == again


def test_rows_of_an_older_version_are_refused_first(fake, tmp_path, monkeypatch):
    np.savez(tmp_path / 'samples.npz', colours(30))
    (tmp_path / 'evaluate_npz.jsonl').write_text('{"fid": 1.0}')
    replace_features(monkeypatch, fake, extract=lambda _: pytest.fail('images were measured'))
    with pytest.raises(UserError, match=r'evaluate_npz\.jsonl is of an older version.* --mode=evaluate_npz measures'):
        scored(tmp_path, 'samples.npz', 'samples.npz')


@pytest.mark.parametrize('classifier', [None, 'noise-aware classifier 0123'])
def test_a_row_says_what_gave_the_classes(fake, tmp_path, monkeypatch, classifier):
    np.savez(tmp_path / 'samples.npz', colours(30))
    replace_features(monkeypatch, fake, classifier=classifier)
    assert scored(tmp_path, 'samples.npz', 'samples.npz')['classifier'] == classifier


@pytest.mark.parametrize(
    ('path', 'expected'),
    [
        ('folder.npz', r'config\.stats\.path=.*folder\.npz is a folder: give the path of a file'),
        ('file/reference.npz', r'config\.stats\.path=.*file/reference\.npz cannot be written \(.*\): choose another'),
        ('reference.txt', r'config\.stats\.path=.*reference\.txt must end in \.npz'),
    ],
)
def test_a_path_of_stats_that_cannot_be_written_is_named_first(source, fake, tmp_path, monkeypatch, path, expected):
    (tmp_path / 'folder.npz').mkdir()
    (tmp_path / 'file').touch()
    replace_features(monkeypatch, fake, extract=lambda _: pytest.fail('images were measured'))
    with pytest.raises(UserError, match=expected):
        stats.run(config_of(tmp_path, stats__path=str(tmp_path / path)), None)


def test_a_cache_that_stats_cannot_write_is_named_first(source, fake, tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    replace_features(monkeypatch, fake, extract=lambda _: pytest.fail('images were measured'))
    with pytest.raises(UserError, match=r'config\.eval\.cache_dir=.*file cannot be written'):
        stats.run(config_of(tmp_path / 'file'), None)


def test_a_reference_without_images_is_moments_alone(source, fake, tmp_path):
    path = tmp_path / 'reference.npz'
    stats.run(config_of(tmp_path, stats__path=str(path), stats__num_images=0), None)
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    assert set(arrays) == {'mu', 'sigma', 'mu_s', 'sigma_s', 'features_sha256'}
    np.savez(tmp_path / 'samples.npz', colours(30))
    row = scored(tmp_path, 'samples.npz', 'reference.npz')
    assert row['reference'] == 'reference.npz (moments)'
    assert (row['kid'], row['precision'], row['num_reference_features']) == (None, None, 0)
    np.savez(path, np.zeros((0, 24, 24, 3), np.uint8), **arrays)  # as older versions wrote it
    again = scored(tmp_path, 'samples.npz', 'reference.npz')
    assert again['reference'] == 'reference.npz (moments)'
    assert again['fid'] == row['fid']


def test_labels_that_are_none_are_named_before_the_reference_is_measured(fake, tmp_path, monkeypatch):
    np.savez(tmp_path / 'samples.npz', colours(30), np.zeros(29, np.int32))
    np.savez(tmp_path / 'reference.npz', colours(40, seed=1))
    replace_features(monkeypatch, fake, extract=lambda _: pytest.fail('images were measured'))
    with pytest.raises(UserError, match=r'samples\.npz: its labels \(arr_1\) are int32 \(29,\)'):
        scored(tmp_path, 'samples.npz', 'reference.npz')


def test_the_images_of_a_reference_are_read_and_written_by_batches(source, fake, tmp_path, monkeypatch):
    asked, fetch = [], ArraySource.fetch
    monkeypatch.setattr(references, 'BATCH', 8)
    monkeypatch.setattr(ArraySource, 'fetch', lambda self, where: asked.append(len(where)) or fetch(self, where))
    path = stats.run(config_of(tmp_path, stats__path=str(tmp_path / 'r.npz'), stats__num_images=18), None)
    assert asked == [8, 8, 4, 8, 8, 2]  # measured, and written
    with np.load(path, allow_pickle=False) as file:
        assert np.array_equal(file['arr_0'], source.images[references.chosen(20, 18)])


def test_a_reference_of_other_features_is_refused_before_its_images_are_measured(fake, tmp_path, monkeypatch):
    np.savez(tmp_path / 'samples.npz', colours(30))
    moments = moments_of(colours(40))
    replace_features(monkeypatch, fake, extract=lambda _: pytest.fail('images were measured'))
    np.savez(tmp_path / 'r.npz', colours(4), mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(UserError, match=r'r\.npz holds moments of 5 features \(mu\), but fake has 6'):
        scored(tmp_path, 'samples.npz', 'r.npz')
    np.savez(tmp_path / 'r.npz', colours(4), **moments | {'mu_s': np.zeros(3), 'sigma_s': np.eye(3)})
    with pytest.raises(UserError, match=r'r\.npz holds moments of 3 features \(mu_s\), but fake has 4'):
        scored(tmp_path, 'samples.npz', 'r.npz')
    np.savez(tmp_path / 'r.npz', colours(4), **moments, features_sha256='e' * 64)
    with pytest.raises(UserError, match=r'r\.npz was made with another network \(features_sha256 eeeeeeee.*ffffffff'):
        scored(tmp_path, 'samples.npz', 'r.npz')


def test_a_reference_scores_its_own_images_as_real_and_others_as_the_images_do(source, fake, tmp_path):
    stats.run(config_of(tmp_path, stats__path=str(tmp_path / 'r.npz')), None)
    np.savez(tmp_path / 'same.npz', source.images)
    np.savez(tmp_path / 'other.npz', colours(16, seed=5))
    same, other, raw = (
        scored(tmp_path, *names)
        for names in (
            ('same.npz', 'r.npz'),
            ('other.npz', 'r.npz'),
            ('other.npz', 'same.npz'),
        )
    )
    assert other['fid'] > 0
    assert same['recall'] == 1.0
    for name in ('fid', 'sfid'):
        assert same[name] == pytest.approx(0, abs=1e-6 * other[name])
        assert raw[name] == pytest.approx(other[name], rel=1e-6)  # stored moments are those of the images


def test_a_reference_says_which_network_made_it(source, fake, tmp_path):
    path = stats.run(config_of(tmp_path, stats__path=str(tmp_path / 'r.npz')), None)
    with np.load(path, allow_pickle=False) as file:
        assert str(file['features_sha256']) == fake.sha256
    np.savez(tmp_path / 'samples.npz', colours(30))
    assert scored(tmp_path, 'samples.npz', 'r.npz')['fid'] > 0


def second_features(images):
    return Features(images.reshape(len(images), -1)[:, 10:15].astype(np.float32) / 256, None, None, None)


@pytest.fixture(name='two')
def two_fixture(fake, monkeypatch):
    """A second network beside the fake, in the place of DINOv2."""
    second = FeatureNetwork('DINOv2', 'd' * 64, 'b' * 64, 5, 0, (None, None, 3), second_features, None, fake.cache)
    network = with_second(fake, second)
    monkeypatch.setattr('cfg.features.opening.open_features', lambda *_: network)
    return network


def fd(samples, reference):
    parts = [second_features(images).pool.astype(np.float64) for images in (samples, reference)]
    return frechet_distance(*(part for x in parts for part in (x.mean(axis=0), np.cov(x.T))))


def test_one_pass_gives_both_distances(two, fake, source, tmp_path, monkeypatch):
    """Against moments that --mode=stats wrote, against EDM2's statistics, and against images."""
    samples, real = colours(30), source.images
    np.savez(tmp_path / 'samples.npz', samples)
    path = stats.run(config_of(tmp_path, stats__path=str(tmp_path / 'r.npz')), None)
    with np.load(path, allow_pickle=False) as file:
        assert {'mu_dinov2', 'sigma_dinov2', 'dinov2_sha256'} < {*file.files}
        assert file['mu_dinov2'].shape == (5,)
        assert str(file['dinov2_sha256']) == two.second.sha256
        named = {'fid': ('mu', 'sigma'), 'fd_dinov2': ('mu_dinov2', 'sigma_dinov2')}
        edm2 = {name: {'mu': file[mean], 'sigma': file[cov]} for name, (mean, cov) in named.items()}
    (tmp_path / 'edm2.pkl').write_bytes(pickle.dumps(edm2, 4))
    np.savez(tmp_path / 'images.npz', real)
    rows = [scored(tmp_path, 'samples.npz', name) for name in ('r.npz', 'edm2.pkl', 'images.npz')]
    replace_features(monkeypatch, fake)
    alone = scored(tmp_path, 'samples.npz', 'r.npz')
    for row in rows:
        assert row['fd_dinov2'] == pytest.approx(fd(samples, real), rel=1e-6)
        assert row['fid'] == pytest.approx(alone['fid'], rel=1e-9)
        assert (row['dinov2'], row['dinov2_sha256'], row['dinov2_file_sha256']) == ('DINOv2', 'd' * 64, 'b' * 64)
    assert rows[0]['fid'] == alone['fid']
    assert alone['fd_dinov2'] is alone['dinov2'] is alone['dinov2_sha256'] is None
    assert [any('holds no images' in text for text in row['warnings']) for row in rows] == [False, True, False]


def test_a_reference_without_dinov2s_moments_gives_no_distance(two, tmp_path):
    np.savez(tmp_path / 'samples.npz', colours(30))
    np.savez(tmp_path / 'r.npz', colours(40, seed=1), **moments_of(colours(40, seed=1)))
    row = scored(tmp_path, 'samples.npz', 'r.npz')
    assert row['fd_dinov2'] is None
    assert 'The reference holds no moments of DINOv2, so there is no FD-DINOv2.' in row['warnings']


def test_few_samples_for_dinov2_are_a_warning(two, tmp_path):
    np.savez(tmp_path / 'samples.npz', colours(5))
    np.savez(tmp_path / 'r.npz', colours(40, seed=1))
    texts = ' '.join(scored(tmp_path, 'samples.npz', 'r.npz')['warnings'])
    assert '5 samples are no more than the 5 features of DINOv2, so their covariance is singular and FD-DINOv2' in texts


@pytest.mark.parametrize(
    ('changes', 'words'),
    [({'sha256': '0' * 64}, 'made with another network'), ({'width': 4}, r'moments of 5 features \(mu_dinov2\)')],
)
def test_a_reference_of_another_dinov2_is_refused(two, source, fake, tmp_path, monkeypatch, changes, words):
    stats.run(config_of(tmp_path, stats__path=str(tmp_path / 'r.npz')), None)
    np.savez(tmp_path / 'samples.npz', colours(30))
    other = with_second(fake, dataclasses.replace(two.second, **changes))
    replace_features(monkeypatch, other)
    with pytest.raises(UserError, match=words):
        scored(tmp_path, 'samples.npz', 'r.npz')


def test_references_of_the_networks_are_measured_apart(two, fake, tmp_path, monkeypatch):
    """So that DINOv2 may come later, and what was measured with the first network stays."""
    np.savez(tmp_path / 'samples.npz', colours(30))
    np.savez(tmp_path / 'r.npz', colours(40, seed=1))
    replace_features(monkeypatch, fake)
    scored(tmp_path, 'samples.npz', 'r.npz')
    (first,) = folders(tmp_path / 'cache' / 'measured')
    seen = []

    def extract(images):
        seen.append(len(images))
        return fake_features(images)

    replace_features(monkeypatch, with_second(dataclasses.replace(fake, extract=extract), two.second))
    scored(tmp_path, 'samples.npz', 'r.npz')
    assert sum(seen) == 30  # the samples alone
    assert first in folders(tmp_path / 'cache' / 'measured')
    assert len(folders(tmp_path / 'cache' / 'measured')) == 2
