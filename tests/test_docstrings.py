"""Checks the docstrings of cfg/: a function's begins with a verb, a class's or a module's with no fragment."""

import ast
import re

import pytest

from tests.command_line import ROOT

FILES = sorted((ROOT / 'cfg').rglob('*.py'))
# Words that begin a clause or a phrase without its subject.
FRAGMENT = re.compile(r'(All|As|Both|For|From|How|If|In|Of|Some|That|Those|What|Where|Whether|Which|With)\b')
# A verb in the third person, but for words that only end like one; and the reference 'See `Class`'.
VERB = re.compile(
    r'See `|(?!(Arrays|As|Batches|Bytes|Costs|Endless|Files|Fractions|Images|Its|Labels|Places|Points|Rows|Settings|'
    r'Tables|This|Values)\b)[A-Z][a-z]+s\b'
)


def fault(node):
    """Returns what is wrong with a docstring, or None."""
    text = ast.get_docstring(node)
    if isinstance(node, ast.FunctionDef):
        return None if VERB.match(text) else 'does not begin with a verb, such as Returns'
    return 'begins with a fragment' if FRAGMENT.match(text) else None


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_docstrings_are_sentences(file):
    nodes = [ast.parse(file.read_text())]
    nodes += [node for node in ast.walk(nodes[0]) if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    documented = [node for node in nodes if ast.get_docstring(node)]
    faults = [f'{getattr(node, "name", "the module")} {fault(node)}' for node in documented if fault(node)]
    assert not faults
