import os
from pathlib import Path

import pytest

from cfg.runtime.errors import UserError
from cfg.runtime.paths import user_path


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setenv('HOME', '/home/ann')
    monkeypatch.setenv('DATA', '/data')
    monkeypatch.setenv('MINE', '~/mine')
    monkeypatch.setenv('EMPTY', '')
    monkeypatch.delenv('NOWHERE', raising=False)


@pytest.mark.parametrize(
    ('value', 'expected'),
    [
        ('~', '/home/ann'),
        ('~/run', '/home/ann/run'),
        ('~root/run', f'{os.path.expanduser("~root")}/run'),  # noqa: PTH111
        ('$DATA/run', '/data/run'),
        ('${DATA}2/run', '/data2/run'),
        ('$MINE/run', '/home/ann/mine/run'),
        ('file:///data/a%20b', '/data/a b'),
        ('file://localhost/data', '/data'),
        ('gs://bucket/~/$DATA', 'gs://bucket/~//data'),
        ('s3://bucket/x', 's3://bucket/x'),
        ('runs/x/', 'runs/x/'),
        ('./~', './~'),
        ('a$/b', 'a$/b'),
        ('cost$5.npz', 'cost$5.npz'),
        ('', ''),
        ('None', ''),
        (None, ''),
        (Path('x'), 'x'),
        (3, 3),
    ],
)
def test_what_is_typed_and_what_is_meant(value, expected):
    assert user_path(value, '--workdir') == expected


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        ('~nobody.here/x', r'~nobody\.here/x.*no home folder is known for ~nobody\.here'),
        ('$NOWHERE/x', 'the variable NOWHERE is not set'),
        ('$EMPTY/x', 'the variable EMPTY is not set'),
        ('$EMPTY/etc', 'the variable EMPTY is not set'),
        ('${NOWHERE:-x}', 'the variable NOWHERE:-x is not set'),
        ('run\r', 'has a control character'),
        ('file://server/x', "on another machine, 'server'"),
    ],
)
def test_what_cannot_be_meant(value, message):
    with pytest.raises(UserError, match=message) as error:
        user_path(value, '--workdir')
    assert str(error.value).startswith(f'--workdir={value!r}')


def test_a_name_with_a_dollar(tmp_path, monkeypatch):
    (tmp_path / '$RECYCLE').mkdir()
    monkeypatch.setenv('HOME', str(tmp_path))
    for path in (f'{tmp_path}/$RECYCLE', '~/$RECYCLE', '$HOME/$RECYCLE/new.npz'):
        assert user_path(path, '--workdir') == f'{tmp_path}/{path[path.index("$R") :]}'
