"""The layout of the code: imports run one way and in no circle, functions are short.

Nothing is run: the files are read by `ast`.
"""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from conftest import ROOT

# The modules of a room may import those of the same room, and of these.
ROOMS = {
    'programs': {'server', 'admin', 'hidden', 'store', 'wire'},
    'server': {'store', 'wire'},
    'admin': {'store', 'wire'},
    'hidden': {'wire'},
    'store': {'wire'},
    'wire': set(),
}
# The hidden machine has these rooms alone, and installs these packages alone.
HIDDEN_MACHINE = {'hidden', 'wire'}
HIDDEN_PACKAGES = {'gevent', 'pyotp'}
# The server's parent process needs the standard library alone, and no gevent.
PARENT = 'rendezvous.server.parent'
FUNCTION_LINES, PROGRAM_LINES = 40, 100


class House:
    """All modules by name: `rendezvous.wire.pipe`, and `hidden` for the program hidden.py."""

    def __init__(self, root: Path):
        files = [file for file in root.glob('*.py') if not file.name.startswith('local')]
        self.modules: dict[str, ast.Module] = {}
        for file in [*files, *root.glob('rendezvous/**/*.py')]:
            name = '.'.join(file.relative_to(root).with_suffix('').parts)
            self.modules[name.removesuffix('.__init__')] = ast.parse(file.read_text())
        self.programs = {file.stem: len(file.read_text().splitlines()) for file in files}
        self.graph = {name: set(self.imports(name)) for name in self.modules}

    def imports(self, name: str) -> Iterator[str]:
        """The modules of ours that a module imports, and the packages of others."""
        for node in ast.walk(self.modules[name]):
            if isinstance(node, ast.Import):
                yield from (self.module(alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from (self.module(f'{node.module}.{alias.name}') for alias in node.names)

    def module(self, imported: str) -> str:
        """The module in which the imported name is found."""
        parts = imported.split('.')
        names = ['.'.join(parts[:count]) for count in range(len(parts), 0, -1)]
        return next((name for name in names if name in self.modules), parts[0])

    def needs(self, name: str) -> set[str]:
        """What a module imports, and what those import, and so on."""
        found, new = {name}, self.graph[name]
        while new := new - found:
            found |= new
            new = set().union(*(self.graph.get(each, set()) for each in new))
        return found - {name}

    def functions(self) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for name, tree in self.modules.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f'{name}.{node.name}', node


def room(name: str) -> str:
    package, *inner = name.split('.')
    return inner[0] if package == 'rendezvous' and inner else 'programs'


def wrong_imports(house: House) -> Iterator[str]:
    for name, imports in house.graph.items():
        for imported in imports & set(house.modules):
            own = {room(name)} - {'programs'}  # a program is nobody's module
            if room(imported) not in own | ROOMS[room(name)]:
                yield f'{name} imports {imported}'
        if room(name) in HIDDEN_MACHINE:
            for package in imports - set(house.modules) - HIDDEN_PACKAGES:
                if package not in sys.stdlib_module_names:
                    yield f'{name} imports {package}'
    for package in house.needs(PARENT) - set(house.modules) - sys.stdlib_module_names:
        yield f'{PARENT} needs {package}'
    try:
        TopologicalSorter(house.graph).prepare()
    except CycleError as error:
        yield f'circle: {" <- ".join(error.args[1])}'


def late_imports(house: House) -> Iterator[str]:
    for name, function in house.functions():
        if any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(function)):
            yield f'{name} imports inside a function'


def what_is_long(house: House) -> Iterator[str]:
    for name, function in house.functions():
        lines = (function.end_lineno or 0) - function.lineno + 1
        if lines > FUNCTION_LINES:
            yield f'{name} has {lines} lines'
    for program, lines in house.programs.items():
        if lines >= PROGRAM_LINES:
            yield f'{program}.py has {lines} lines'


def test_imports_run_one_way_and_in_no_circle():
    assert list(wrong_imports(House(ROOT))) == []


def test_nothing_is_imported_inside_a_function():
    assert list(late_imports(House(ROOT))) == []


def test_functions_and_programs_are_short():
    assert list(what_is_long(House(ROOT))) == []


def test_what_is_wrong_is_found(tmp_path):
    long = 'def long():\n' + '    pass\n' * 40
    tree = {
        'server.py': 'import gevent\nfrom rendezvous.server import worker\n' + '\n' * 98,
        'local.py': 'import nothing\n' * 100,
        'rendezvous/__init__.py': '',
        'rendezvous/wire/__init__.py': '',
        'rendezvous/wire/logs.py': 'from rendezvous.wire import pipe\n',
        'rendezvous/wire/pipe.py': 'from gevent import event\nimport rendezvous.wire.late\n',
        'rendezvous/wire/late.py': 'def a():\n    if True:\n        import os\n' + long,
        'rendezvous/server/parent.py': 'from rendezvous.wire import logs, programs\n',
        'rendezvous/server/worker.py': 'import redis\n',
        'rendezvous/wire/programs.py': 'import os\nimport local\n',
        'rendezvous/store/entries.py': 'import redis\nfrom rendezvous.admin.page import page\n',
        'rendezvous/admin/page.py': 'import flask\nfrom rendezvous.store import entries\n',
        'rendezvous/hidden/dial.py': 'from rendezvous.wire.pipe import a\nimport server\n',
    }
    for name, text in tree.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    house = House(tmp_path)
    *imports, circle = wrong_imports(house)
    assert sorted(imports) == [
        'rendezvous.hidden.dial imports server',
        'rendezvous.server.parent needs gevent',
        'rendezvous.server.parent needs local',
        'rendezvous.store.entries imports rendezvous.admin.page',
        'rendezvous.wire.programs imports local',
    ]
    assert circle.startswith('circle: ')
    assert set(circle.split()[1::2]) == {'rendezvous.store.entries', 'rendezvous.admin.page'}
    assert list(late_imports(house)) == ['rendezvous.wire.late.a imports inside a function']
    assert sorted(what_is_long(house)) == [
        'rendezvous.wire.late.long has 41 lines',
        'server.py has 100 lines',
    ]
