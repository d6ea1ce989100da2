"""Reference statistics as EDM2 publishes them: read as NumPy's own pickles are, and no code in them is run."""

import pickle

import numpy as np
import pytest

from cfg.evaluation.edm2 import reference_file
from cfg.runtime.errors import UserError

WHAT = 'config.eval.reference'


def statistics(width):
    x = np.random.default_rng(width).normal(size=(3 * width, width))
    return {'mu': x.mean(axis=0), 'sigma': np.cov(x.T)}


def written(path, content, protocol=4):
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize('old', [False, True], ids=['numpy 2', 'numpy 1'])
@pytest.mark.parametrize('protocol', [3, 4, 5])
def test_moments_are_those_that_were_pickled(tmp_path, protocol, old):
    given = {'num_images': 1000, 'fid': statistics(6), 'fd_dinov2': statistics(4)}
    given['fid']['sigma'] = np.asfortranarray(given['fid']['sigma'])
    given['fd_dinov2'] = {name: value.astype(np.float32) for name, value in given['fd_dinov2'].items()}
    content = pickle.dumps(given, protocol)
    if old and protocol < 4:  # later protocols write how long a name is
        content = content.replace(b'numpy._core', b'numpy.core')
    file = reference_file(written(tmp_path / 'x.pkl', content), WHAT)
    moments = file.moments()
    assert {name: value.dtype for name, value in moments.items()} == dict.fromkeys(moments, np.float64)
    assert np.array_equal(moments['mu'], given['fid']['mu'])
    assert np.array_equal(moments['sigma'], given['fid']['sigma'])
    assert np.array_equal(moments['mu_dinov2'], given['fd_dinov2']['mu'])
    assert np.array_equal(moments['sigma_dinov2'], given['fd_dinov2']['sigma'])
    assert not file.has_images
    assert file.made_with('features_sha256') is None
    assert len(file.sha256) == 64


def test_dinov2_may_be_missing(tmp_path):
    moments = reference_file(written(tmp_path / 'x.pkl', {'fid': statistics(6)}), WHAT).moments()
    assert sorted(moments) == ['mu', 'sigma']


class Evil:
    def __reduce__(self):
        return (print, ('run',))


class EvilState:
    """Pickles as an array whose state names code."""

    def __reduce__(self):
        return (np._core.multiarray._reconstruct, (np.ndarray, (0,), b'b'), (1, (1,), np.dtype('O'), False, [Evil()]))


@pytest.mark.parametrize('evil', [Evil(), EvilState()])
def test_code_is_not_run(tmp_path, capsys, evil):
    path = written(tmp_path / 'x.pkl', {'fid': {'mu': evil, 'sigma': np.eye(2)}})
    with pytest.raises(UserError, match=r'reference=.*x\.pkl (wants to run|cannot be read)'):
        reference_file(path, WHAT)
    assert not capsys.readouterr().out


def test_names_of_code_are_said(tmp_path):
    path = written(tmp_path / 'x.pkl', Evil())
    with pytest.raises(
        UserError, match=r"x\.pkl wants to run '(__builtin__|builtins)\.print', which .* was not run: give"
    ):
        reference_file(path, WHAT)


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (pickle.dumps({'fid': statistics(6)}, 4)[:-200], 'cannot be read as statistics of EDM2'),
        ([1, 2], 'cannot be read as statistics of EDM2'),
        ({'fd_dinov2': statistics(4)}, r"cannot be read as statistics of EDM2 \(KeyError: 'fid'\)"),
        ({'fid': {'mu': np.zeros(3)}}, r"cannot be read as statistics of EDM2 \(KeyError: 'sigma'\)"),
        ({'fid': {'mu': 1, 'sigma': 2}}, 'cannot be read as statistics of EDM2'),
        (
            {'fid': {'mu': np.zeros(3, int), 'sigma': np.eye(3)}},
            r"cannot be read as statistics of EDM2 \(KeyError: 'i8'",
        ),
        ({'fid': {'mu': np.zeros(3, '>f8'), 'sigma': np.eye(3)}}, 'numbers of another machine'),
        ({'fid': {'mu': np.zeros(3), 'sigma': np.eye(4)}}, 'are not the mean and the symmetric covariance'),
        (
            {'fid': statistics(3), 'fd_dinov2': {'mu': np.zeros(2), 'sigma': -np.eye(2)}},
            'sigma_dinov2 is no covariance',
        ),
        ({'fid': {'mu': np.full(3, np.nan), 'sigma': np.eye(3)}}, 'all finite'),
    ],
)
def test_a_file_that_does_not_fit_is_one_sentence(tmp_path, content, words):
    with pytest.raises(UserError, match=words):
        reference_file(written(tmp_path / 'x.pkl', content), WHAT)


def test_a_missing_file_and_an_npz_are_as_before(tmp_path):
    with pytest.raises(UserError, match=r'config\.eval\.reference=.*x\.pkl does not exist'):
        reference_file(tmp_path / 'x.pkl', WHAT)
    np.savez(tmp_path / 'x.npz', **statistics(5))
    assert sorted(reference_file(tmp_path / 'x.npz', WHAT).moments()) == ['mu', 'sigma']
