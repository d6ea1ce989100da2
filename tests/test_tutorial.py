"""The tutorial runs as it stands, and what it shows comes from its code."""

import pytest
from nbformat.v4 import new_code_cell

from tests import tutorial

# Run in the kernel, after the tutorial's own cells.
CHECKS = """
slider.value = 4.0
assert picture.value == pictures[4.0] != pictures[0.0]

fids = {w: score['fid'] for w, score in scores.items()}
assert min(fids, key=fids.get) in (0.25, 0.5, 1.0, 2.0), fids
assert scores[0.0]['inception_score'] < scores[0.5]['inception_score'] < scores[4.0]['inception_score']

unlimited = cfg.sample(model, labels[:10], w=4.0, guidance=Limited(r=1e6), **fast)
assert np.abs(unlimited.astype(int) - samples[4.0][:10]).max() <= 2  # the terms of Eq. 6 are added in another order
assert (limited != samples[4.0]).mean() > 0.5
assert limited_score['fid'] < fids[4.0]
"""


def kinds(notebook):
    """Returns what each cell puts out, whatever is in it."""
    return [
        [each.get('name', sorted(each.get('data', ''))) for each in cell.outputs] for cell in tutorial.code_of(notebook)
    ]


def test_its_outputs_are_of_its_code():
    notebook = tutorial.read()
    assert notebook.metadata['code_sha256'] == tutorial.digest(notebook), '`make notebook` runs it again'
    cells = tutorial.code_of(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert {each.output_type for cell in cells for each in cell.outputs} == {'stream', 'display_data', 'execute_result'}
    assert tutorial.NOTEBOOK.stat().st_size < 400_000


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_it_runs_as_it_stands(tmp_path):
    notebook = tutorial.read()
    shown = kinds(notebook)
    notebook.cells.append(new_code_cell(CHECKS))
    tutorial.run(notebook, tmp_path)
    assert kinds(notebook) == [*shown, []]
