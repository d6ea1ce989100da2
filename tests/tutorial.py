"""Runs docs/tutorial.ipynb as Jupyter would; `python -m tests.tutorial` puts the outputs into it (make notebook)."""

import hashlib
import os
import tempfile
from pathlib import Path

import nbclient
import nbformat

from tests.command_line import ROOT

NOTEBOOK = ROOT / 'docs' / 'tutorial.ipynb'


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == 'code']


def digest(notebook):
    """Returns what tells one code from another, which the notebook keeps beside its outputs."""
    return hashlib.sha256('\0'.join(cell.source for cell in code_of(notebook)).encode()).hexdigest()


def run(notebook, folder):
    """Runs it in a copy of the project, in which it leaves its run; an error of a cell is raised."""
    docs = Path(folder) / 'docs'
    docs.mkdir()
    for name in ('cfg', 'configs'):
        (docs.parent / name).symlink_to(ROOT / name)
    # Not what the suite's own programs are compiled with, nor what tells a kernel to show no output of other processes.
    environment = {name: os.environ[name] for name in os.environ.keys() - {'XLA_FLAGS', 'PYTEST_CURRENT_TEST'}}
    client = nbclient.NotebookClient(
        notebook, timeout=900, record_timing=False, coalesce_streams=True, resources={'metadata': {'path': str(docs)}}
    )
    client.execute(env=environment)


if __name__ == '__main__':
    notebook = read()
    with tempfile.TemporaryDirectory() as folder:
        run(notebook, folder)
    notebook.metadata['code_sha256'] = digest(notebook)
    nbformat.write(notebook, NOTEBOOK)
