"""The direction of imports, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(ROOT.glob('cfg/**/*.py'))

# What each part may import of the project; a part may always import itself and the two small files at the bottom.
BOTTOM = {'cfg.errors', 'cfg.files', 'cfg.progress', 'cfg.stopping'}
ALLOWED = {
    'cfg.diffusion': set(),
    'cfg.models': set(),
    'cfg.data': set(),
    'cfg.parallel': set(),
    'cfg.processes': set(),
    'cfg.watch': set(),
    'cfg.launching': {'cfg.processes', 'cfg.watch'},
    'cfg.generate': {'cfg.diffusion', 'cfg.data', 'cfg.parallel', 'cfg.processes'},
    'cfg.setup': {'cfg.diffusion', 'cfg.data', 'cfg.models', 'cfg.generate'},
    'cfg.training': {
        'cfg.diffusion',
        'cfg.data',
        'cfg.models',
        'cfg.parallel',
        'cfg.processes',
        'cfg.generate',
        'cfg.setup',
    },
    'cfg.evaluation': {
        'cfg.diffusion',
        'cfg.data',
        'cfg.models',
        'cfg.parallel',
        'cfg.processes',
        'cfg.generate',
        'cfg.setup',
        'cfg.training.checkpoints',
        'cfg.training.state',
    },
    'cfg.describe': {'cfg.setup', 'cfg.models', 'cfg.data', 'cfg.parallel', 'cfg.training.build'},
    'cfg.preparing': {'cfg.data'},
    'cfg.importing': {'cfg.setup', 'cfg.models', 'cfg.data', 'cfg.training.checkpoints'},
    'cfg.status': {'cfg.evaluation', 'cfg.training', 'cfg.watch'},
    'cfg.errors': set(),
    'cfg.files': set(),
    'cfg.stopping': set(),
    'cfg.progress': set(),
    'cfg.xla_flags': set(),
    'cfg.command_line': {'cfg.xla_flags'},
}
# The core runs where only these (and numpy) are installed.
CORE = (
    'cfg/diffusion',
    'cfg/models',
    'cfg/parallel.py',
    'cfg/processes.py',
    'cfg/generate.py',
    'cfg/training/step.py',
    'cfg/training/state.py',
)
HEAVY = {'tensorflow', 'clu', 'tensorflow_datasets', 'matplotlib', 'sklearn', 'ml_collections', 'orbax', 'absl'}


def imports(path: Path) -> set[str]:
    """Full names of everything that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def within(name: str, part: str) -> bool:
    return name == part or name.startswith(part + '.')


def part_of(path: Path) -> str:
    return '.'.join(path.relative_to(ROOT).with_suffix('').parts[:2])


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    part = part_of(path)
    if part == 'cfg.__init__':
        assert not {name for name in imports(path) if within(name, 'cfg')}
        return
    allowed = ALLOWED[part] | BOTTOM | {part}
    ours = {name for name in imports(path) if within(name, 'cfg') and name != 'cfg'}
    # `from cfg import parallel` counts as cfg.parallel; `from cfg.x import y` must be inside an allowed part.
    wrong = {name for name in ours if not any(within(name, a) or within(a, name) for a in allowed)}
    assert not wrong, f'{path} imports {wrong}'


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_needs_no_heavy_package(path):
    if str(path.relative_to(ROOT)).startswith(CORE):
        assert not {name.split('.')[0] for name in imports(path)} & HEAVY


def test_pmap_is_confined():
    users = [path for path in FILES if 'jax.pmap' in path.read_text()]
    assert [path.name for path in users] == ['parallel.py']


def test_the_check_sees_a_wrong_import(tmp_path):
    file = tmp_path / 'x.py'
    file.write_text('def f():\n    from cfg.training import loop\n')
    assert 'cfg.training.loop' in imports(file)
