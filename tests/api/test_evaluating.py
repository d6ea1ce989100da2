"""`cfg.evaluate` on the digits, by their classifier, beside the command that measures files."""

import json

import numpy as np
import pytest

import cfg
from cfg.data.digits import digits
from cfg.modes import evaluate_npz
from tests.conftest import small_config


def test_arrays_score_what_files_score(digits_classifier, tmp_path):
    digits_classifier(tmp_path)
    images = digits('test').images
    how = {'features': 'small_classifier', 'cache_dir': str(tmp_path), 'batch_size': 100}
    scores = cfg.evaluate(images[:300], images[300:], **how)
    config = small_config()
    config.eval.update(how)
    for name, part in (('samples', images[:300]), ('reference', images[300:])):
        np.savez(tmp_path / f'{name}.npz', part)
        config.eval[name] = str(tmp_path / f'{name}.npz')
    for name in ('is_split_size', 'kid_subsets', 'kid_subset_size'):
        how[name] = config.eval[name]
    assert cfg.evaluate(tmp_path / 'samples.npz', images[300:], **how).keys() == scores.keys()
    evaluate_npz.run(config, tmp_path)
    row = json.loads((tmp_path / 'evaluate_npz.jsonl').read_text())
    assert {'fid', 'fid_standard_error', 'inception_score', 'precision', 'coverage'} <= scores.keys()
    for name in ('fid', 'fid_standard_error', 'precision', 'coverage'):
        assert scores[name] == pytest.approx(row[name], rel=1e-6), name
    assert 0 < scores['fid'] < 5


@pytest.mark.parametrize(
    ('images', 'options', 'sentence'),
    [
        (np.zeros((4, 8, 8), np.uint8), {}, r'^images holds an array of shape \(4, 8, 8\), not images \[N, H, W, C\]'),
        (np.zeros((4, 8, 8, 1)), {}, r'^images holds float64, not uint8 images: .*np\.round\(x \* 255\)'),
        (np.zeros((1, 8, 8, 1), np.uint8), {}, '^images holds 1 images: give at least 2'),
        (np.zeros((4, 8, 8, 1), np.uint8), {'batch_size': 'many'}, "^Could not override field 'batch_size'"),
        (np.zeros((4, 8, 8, 1), np.uint8), {'features': 'vgg'}, "^features='vgg' must be one of"),
        (np.zeros((4, 8, 8, 1), np.uint8), {'bach_size': 3}, 'bach_size is no field of config.eval'),
        (np.zeros((4, 8, 8, 1), np.uint8), {}, r'Inception'),  # which needs colour
        ('none.npz', {}, '^images=none.npz does not exist'),
        ('.', {}, r'^images=\. is a folder: write its images as an npz'),
    ],
)
def test_what_cannot_be_is_named(images, options, sentence):
    with pytest.raises(cfg.UserError, match=sentence):
        cfg.evaluate(images, np.zeros((4, 8, 8, 1), np.uint8), **options)
