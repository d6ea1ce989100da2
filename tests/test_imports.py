"""The direction of imports, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(ROOT.glob('cfg/**/*.py'))

# The rooms of the house, from the roof to the ground: each imports what is further down, and itself.
FLOORS = (
    {'api', 'modes'},
    {'training', 'evaluation'},
    {'runs', 'features', 'mixture'},
    {'settings', 'report'},
    {'data', 'models'},
    {'diffusion'},
    {'runtime', 'metrics'},
)
FLOOR = {room: place for place, rooms in enumerate(FLOORS) for room in rooms}
# What two rooms of one floor may see of each other, or of the one above.
ALSO = {('features', 'runs')}
# These run where jax, flax, optax and numpy alone are installed.
CORE = ('cfg/diffusion', 'cfg/models', 'cfg/metrics', 'cfg/runtime/parallel.py', 'cfg/runtime/processes.py')
CORE += ('cfg/runs/generate.py', 'cfg/runs/state.py', 'cfg/training/step.py', 'cfg/training/optimizer.py')
HEAVY = {'tensorflow', 'clu', 'tensorflow_datasets', 'matplotlib', 'sklearn', 'ml_collections', 'orbax', 'absl'}


def imports(path: Path) -> set[str]:
    """Full names of everything that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def room_of(name: str) -> str:
    """The room of a module 'cfg.ROOM.FILE'."""
    return name.split('.')[1]


def wrong_imports(path: Path, room: str) -> set[str]:
    """What a file of a room imports from above, or from beside."""
    ours = {name for name in imports(path) if name.split('.')[0] == 'cfg'}
    return {
        name
        for name in ours
        if room_of(name) != room and (room, room_of(name)) not in ALSO and not FLOOR[room_of(name)] > FLOOR[room]
    }


def test_every_file_is_in_a_room():
    rooms = {path.relative_to(ROOT / 'cfg').parts[0] for path in FILES}
    assert rooms == FLOOR.keys() | {'__init__.py', '__main__.py'}


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    place = path.relative_to(ROOT / 'cfg').parts
    if place == ('__init__.py',):  # which passes the API on
        assert {name for name in imports(path) if name.split('.')[0] == 'cfg'} == {'cfg.api.*'}
    elif place != ('__main__.py',):
        assert not wrong_imports(path, place[0])


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_of_the_project_is_imported_from_outside_the_package(path):
    assert not {name for name in imports(path) if name.split('.')[0] in ('main', 'configs', 'tests', 'benchmarks')}


@pytest.mark.parametrize('part', CORE)
def test_the_core_needs_no_heavy_package(part):
    files = [path for path in FILES if str(path.relative_to(ROOT)).startswith(part)]
    assert files
    for path in files:
        assert not {name.split('.')[0] for name in imports(path)} & HEAVY, path


def test_pmap_is_confined():
    users = [path for path in FILES if 'jax.pmap' in path.read_text()]
    assert [path.name for path in users] == ['parallel.py']


def test_the_check_sees_a_wrong_import(tmp_path):
    file = tmp_path / 'x.py'
    file.write_text('def f():\n    from cfg.training import loop\n')
    assert wrong_imports(file, 'data') == {'cfg.training.loop'}
    assert not wrong_imports(file, 'modes')
