"""The public files, the cache, and the download."""

import dataclasses
import functools
import http.server
import threading

import jax
import numpy as np
import pytest
import torch

from cfg.features import weights
from cfg.features.inception import resize_tf1
from cfg.features.network import inception
from cfg.features.weights import INCEPTION_FILES, dinov2_files, fetch_weights, load_weights
from cfg.runtime.errors import UserError
from tests.inception_file import random_state, write_graph, write_torch
from tests.peers import pytorch_fid_inception, torch_fidelity_inception


@pytest.fixture(scope='module', name='files')
def files_fixture(tmp_path_factory):
    """Each public file by its name, all of the same numbers."""
    folder = tmp_path_factory.mktemp('files')
    state = random_state(0)
    write_graph(folder / weights.GRAPH, state=state)
    write_torch(folder / weights.PYTORCH_FID, state=state)
    torch.save(state, folder / weights.TORCH_FIDELITY, _use_new_zipfile_serialization=False)
    return folder


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture(scope='module', name='loaded')
def loaded_fixture(files, tmp_path_factory):
    cache = tmp_path_factory.mktemp('cache')
    return cache, {name: load_weights(INCEPTION_FILES, str(files / name), cache) for name in INCEPTION_FILES.names}


def test_all_three_files_are_the_same_network(loaded):
    _, found = loaded
    first = found[weights.GRAPH]
    for name, other in found.items():
        assert same(other.params, first.params)
        assert other.params_sha256 == first.params_sha256
        assert other.file == name
    assert len({other.file_sha256 for other in found.values()}) == 3


def test_a_file_gives_the_features_that_its_own_readers_give(files, tmp_path, monkeypatch):
    """One file through our loader, and through the networks of pytorch-fid and torch-fidelity."""
    path = files / weights.PYTORCH_FID
    images = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3)).repeat(16, axis=1).repeat(16, axis=2)
    images = images.astype(np.uint8)
    ours = inception(str(path), tmp_path, batch_size=4).extract(images)
    module = torch_fidelity_inception
    theirs = module.FeatureExtractorInceptionV3('x', ['2048', 'logits_unbiased'], feature_extractor_weights_path=path)
    seen = {}
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda _, __, output: seen.update(spatial=output))
    pool, logits = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    close(ours.pool, pool)
    close(ours.log_p, torch.log_softmax(logits, dim=1))
    close(ours.spatial, seen['spatial'][:, :7].permute(0, 2, 3, 1).flatten(1))
    module = pytorch_fid_inception
    monkeypatch.setattr(module, 'load_state_dict_from_url', lambda *_, **__: torch.load(path, weights_only=True))
    theirs = module.InceptionV3([3], resize_input=False, normalize_input=False).eval()
    resized = (np.array(resize_tf1(images, (299, 299))) - 128) / 128  # its own resize is another one
    with torch.no_grad():
        (pool,) = theirs(torch.from_numpy(resized.transpose(0, 3, 1, 2).copy()))
    close(ours.pool, pool[:, :, 0, 0])


def close(ours, theirs):
    """To 1e-4 of how much the images differ."""
    theirs = theirs.numpy()
    scale = np.abs(theirs - theirs.mean(axis=0)).max()
    assert scale > 0.01 * np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * scale)


def test_a_file_is_converted_once(files, loaded, caplog):
    cache, found = loaded
    path = str(files / weights.PYTORCH_FID)
    unwilling = dataclasses.replace(INCEPTION_FILES, convert=lambda _: pytest.fail('converted again'))
    again = load_weights(unwilling, path, cache)
    assert again.params_sha256 == found[weights.PYTORCH_FID].params_sha256
    (converted,) = cache.glob(f'inception_{again.file_sha256[:16]}.npz')
    converted.write_bytes(converted.read_bytes()[:1000])
    with caplog.at_level('WARNING', 'cfg'):
        mended = load_weights(INCEPTION_FILES, path, cache)
    assert 'is damaged' in caplog.text
    assert same(mended.params, again.params)


def test_a_file_in_the_cache_is_found(files, tmp_path):
    (tmp_path / weights.TORCH_FIDELITY).symlink_to(files / weights.TORCH_FIDELITY)
    assert load_weights(INCEPTION_FILES, '', tmp_path).file == weights.TORCH_FIDELITY


def test_missing_files_say_what_to_put_where(tmp_path):
    with pytest.raises(UserError) as caught:
        load_weights(INCEPTION_FILES, '', tmp_path / 'cache')
    for part in (*INCEPTION_FILES.names, str(tmp_path / 'cache'), '--mode=fetch_weights', '--config.eval.weights=PATH'):
        assert part in str(caught.value)
    with pytest.raises(UserError, match=r'config\.eval\.weights=/nowhere/x\.pth does not exist'):
        load_weights(INCEPTION_FILES, '/nowhere/x.pth', tmp_path)


@pytest.mark.parametrize('name', INCEPTION_FILES.names)
def test_a_truncated_file_is_one_sentence(files, tmp_path, name):
    content = (files / name).read_bytes()
    path = tmp_path / name
    for size in (len(content) - 1000, len(content) // 3, 40):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=rf'{name}.*(damaged|cut short|lack)'):
            load_weights(INCEPTION_FILES, str(path), tmp_path)
    assert not list(tmp_path.glob('*.npz'))


def test_a_pickle_that_names_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ('run',))

    path = tmp_path / 'evil.pth'
    torch.save({'fc.weight': Evil()}, path)
    with pytest.raises(UserError, match=r'evil\.pth'):
        load_weights(INCEPTION_FILES, str(path), tmp_path)


def test_a_file_of_other_weights_is_named(tmp_path):
    path = tmp_path / 'other.pth'
    torch.save({'fc.weight': torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r'other\.pth: The Inception weights lack Conv2d_1a_3x3\.conv\.weight: give'):
        load_weights(INCEPTION_FILES, str(path), tmp_path)


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / 'notes.txt'
    path.write_text('hello, this is no network at all')
    with pytest.raises(UserError, match=r'three public files|cannot be read as weights'):
        load_weights(INCEPTION_FILES, str(path), tmp_path)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `content` under any name."""

    content, ranges, cut = b'', True, None

    def do_GET(self):
        start = int((self.headers.get('Range') or 'bytes=0-').removeprefix('bytes=').rstrip('-')) if self.ranges else 0
        self.seen.append(start)
        if start and start >= len(self.content):
            self.send_error(416)
            return
        body = self.content[start:]
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.cut is None else body[: self.cut])

    def log_message(self, *_):
        """Is quiet."""


@pytest.fixture(name='serve')
def serve_fixture():
    servers = []

    def serve(content, **changes):
        seen = []
        handler = type('Handler', (Server,), {'content': content, 'seen': seen, **changes})
        server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f'http://127.0.0.1:{server.server_address[1]}/{weights.PYTORCH_FID}', seen

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


CONTENT = np.random.default_rng(0).bytes(3_000_000)


@functools.cache
def prefix():
    import hashlib

    return hashlib.sha256(CONTENT).hexdigest()[:8]


def fetched(cache, url, expected=None):
    expected = prefix() if expected is None else expected
    return fetch_weights(cache, dataclasses.replace(INCEPTION_FILES, url=url, sha256_prefix=expected))


def test_a_download_is_checked_and_kept(serve, tmp_path):
    url, seen = serve(CONTENT)
    path = fetched(tmp_path / 'new', url)
    assert path == tmp_path / 'new' / weights.PYTORCH_FID
    assert path.read_bytes() == CONTENT
    assert fetched(tmp_path / 'new', url) == path
    assert seen == [0]


def test_a_broken_download_goes_on(serve, tmp_path):
    url, _ = serve(CONTENT, cut=1_000_000)
    with pytest.raises(UserError, match=r'cannot be downloaded .*goes on where it broke off'):
        fetched(tmp_path, url)
    (part,) = tmp_path.glob('*.part')
    assert part.stat().st_size == 1_000_000
    url, seen = serve(CONTENT)
    assert fetched(tmp_path, url).read_bytes() == CONTENT
    assert seen == [1_000_000]


def test_a_server_without_ranges_starts_over(serve, tmp_path):
    (tmp_path / f'{weights.PYTORCH_FID}.part').write_bytes(b'something else')
    url, _ = serve(CONTENT, ranges=False)
    assert fetched(tmp_path, url).read_bytes() == CONTENT


def test_a_finished_part_is_not_downloaded_again(serve, tmp_path):
    (tmp_path / f'{weights.PYTORCH_FID}.part').write_bytes(CONTENT)
    url, _ = serve(CONTENT)
    assert fetched(tmp_path, url).read_bytes() == CONTENT


def test_a_wrong_file_is_not_kept(serve, tmp_path):
    url, _ = serve(b'an error page')
    with pytest.raises(UserError, match=r'gave a file with SHA-256 .*, not 6726825d\.\.\.'):
        fetched(tmp_path, url, INCEPTION_FILES.sha256_prefix)
    assert not list(tmp_path.glob('*.p*'))


def test_no_network_says_which_file_to_put_where(tmp_path):
    with pytest.raises(UserError) as caught:
        fetched(tmp_path, f'http://127.0.0.1:9/{weights.PYTORCH_FID}')
    assert all(name in str(caught.value) for name in (*INCEPTION_FILES.names, str(tmp_path)))


def test_a_damaged_file_is_downloaded_again(serve, tmp_path):
    (tmp_path / weights.PYTORCH_FID).write_bytes(b'half')
    url, _ = serve(CONTENT)
    assert fetched(tmp_path, url).read_bytes() == CONTENT


def test_a_download_whose_hash_nobody_publishes_says_it(serve, tmp_path, caplog):
    url, _ = serve(CONTENT)
    public = dataclasses.replace(dinov2_files(), url=url)
    with caplog.at_level('INFO', 'cfg'):
        path = fetch_weights(tmp_path, public)
    assert path.read_bytes() == CONTENT
    assert f'{path} has the SHA-256 {prefix()}' in caplog.text
