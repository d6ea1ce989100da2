"""The JSON Schema of the lines of results says what the dataclasses say, and takes the rows that they take."""

import dataclasses
import json
import types
import typing

import pytest

from cfg.report import rows
from cfg.report.results import Results
from cfg.report.rows import LATER, FileRow, Given, Row
from tests.report.rows import SCHEMA, VALIDATOR, row_of

NAMES = {int: 'integer', float: 'number', bool: 'boolean', str: 'string'}
TEXT = {'type': 'string'}


def type_of(kind):
    """Returns what a schema says of the type of a field."""
    if isinstance(kind, types.UnionType):
        return {'type': [NAMES[typing.get_args(kind)[0]], 'null']}
    if dataclasses.is_dataclass(kind):
        return {'$ref': f'#/$defs/{kind.__name__}'}
    several = {tuple: {'type': 'array', 'items': TEXT}, dict: {'type': 'object', 'additionalProperties': TEXT}}
    return several.get(typing.get_origin(kind)) or {'type': NAMES[kind]}


def file_row():
    row = row_of()
    parts = {name: getattr(row, name) for name in ('method', 'scores', 'beside', 'origin')}
    return FileRow(source=Given(samples_sha256='1'), samples='x.npz', **parts)


@pytest.mark.parametrize('kind', [getattr(rows, name) for name in SCHEMA['$defs']])
def test_it_says_what_the_dataclasses_say(kind):
    found, fields = SCHEMA['$defs'][kind.__name__], {field.name: field.type for field in dataclasses.fields(kind)}
    if issubclass(kind, rows._Measured):  # whose parts stand side by side
        parts = [fields.pop(name) for name, of in list(fields.items()) if dataclasses.is_dataclass(of)]
        assert found['allOf'] == [type_of(part) for part in parts]
        assert found['unevaluatedProperties'] is False
        fields = {'identity': str} | fields
    else:
        assert 'allOf' not in found
    assert found['required'] == [name for name in fields if name not in LATER]
    described = {name: dict(of) for name, of in found['properties'].items()}
    assert all(of.pop('description') for of in described.values())
    assert list(described.items()) == [(name, type_of(of)) for name, of in fields.items()]


def test_it_is_a_schema_of_all_that_a_row_is_made_of():
    VALIDATOR.check_schema(SCHEMA)
    own = {it.__name__ for it in vars(rows).values() if dataclasses.is_dataclass(it) and it.__name__[0] != '_'}
    assert SCHEMA['$defs'].keys() == own


@pytest.mark.parametrize('row', [row_of(samples='samples/x.npz', kid=1e-300), file_row()])
def test_lines_fit_it_and_older_ones_too(row, tmp_path):
    results = Results(tmp_path, type(row))
    results.write(row)
    (line,) = results.folder.with_suffix('.jsonl').read_text().splitlines()
    values = json.loads(line, parse_constant=pytest.fail)  # there is no NaN in it
    VALIDATOR.validate(values)
    VALIDATOR.validate({name: value for name, value in values.items() if name not in LATER})


OTHERS = [None, 1, 1.5, 'x', True, [], ['x'], [1], {}, {'a': 'x'}, {'a': 1}, ...]  # ... for a field that is not there


@pytest.mark.parametrize('row', [row_of(), file_row()])
def test_it_takes_the_values_that_the_dataclasses_take(row):
    flat = json.loads(row.to_json())
    for place in (flat, *([flat['sampling']] if isinstance(row, Row) else [])):
        for name, before in list(place.items()):
            for value in OTHERS:
                place[name] = value
                if value is ...:
                    del place[name]
                try:
                    type(row).from_flat(flat)
                    taken = isinstance(flat.get('identity'), str)
                except ValueError:
                    taken = False
                assert VALIDATOR.is_valid(flat) == taken, (name, value)
                place[name] = before
        place['extra'] = 1
        assert not VALIDATOR.is_valid(flat)
        del place['extra']
