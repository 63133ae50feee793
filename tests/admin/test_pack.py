"""The hidden server's end in one file: what is in it, what it needs, what it installs.

A Python without packages has the pip of the tests, and this the wheels that a test made.
"""

import ast
import importlib.metadata
import io
import os
import re
import signal
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, free_port, until
from hiding import asked, hello, until_waiting
from programs import ENDS_SECONDS, Program

from rendezvous.admin import pack

STUB = "import sys\nprint(f'{__file__} {sys.argv[1:]}')\nsys.exit()\n"
# What Debian's python3-zope.event has: `zope` is there, and knows one folder alone.
FOREIGN_ZOPE = "import sys, types; sys.modules['zope'] = types.ModuleType('zope')"
BECOME = 'import os, sys; os.execv(sys.argv[1], sys.argv[1:])'


def contents(octets: bytes) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(octets)) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def wheel(folder: Path, name: str, version: str, tag: str, files: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    name = name.replace('.', '_')
    about = {'METADATA': f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'}
    about |= {'WHEEL': f'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n', 'RECORD': ''}
    with zipfile.ZipFile(folder / f'{name}-{version}-{tag}.whl', 'w') as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        for path, text in about.items():
            archive.writestr(f'{name}-{version}.dist-info/{path}', text)


@pytest.fixture(scope='module')
def stubs(tmp_path_factory):
    """Wheels of all packages, in which gevent.monkey says where it is, and ends the program."""
    folder = tmp_path_factory.mktemp('stubs')
    for package in pack.PACKAGES:
        path = package.replace('.', '/')
        files = {f'{path}/__init__.py': b'', f'{path}/monkey.py': STUB.encode()}
        wheel(folder, package, importlib.metadata.version(package), 'py3-none-any', files)
    return folder


@pytest.fixture(scope='module')
def real_wheels(tmp_path_factory):
    """Wheels made of what is installed here."""
    folder = tmp_path_factory.mktemp('wheels')
    for package in pack.PACKAGES:
        found = importlib.metadata.distribution(package)
        tag = found.read_text('WHEEL').partition('Tag: ')[2].split()[0]
        names = [name for name in map(str, found.files or []) if not name.startswith('..')]
        inside = [name for name in names if not re.search('dist-info/|[.]pyc$', name)]
        files = {name: Path(found.locate_file(name)).read_bytes() for name in inside}
        wheel(folder, package, found.version, tag, files)
    return folder


@pytest.fixture(scope='module')
def bare(tmp_path_factory):
    """A Python that has pip and none of the packages."""
    folder = tmp_path_factory.mktemp('bare') / 'venv'
    venv.create(folder)
    (packages,) = folder.glob('lib/python3*/site-packages')
    (where,) = importlib.import_module('pip').__path__
    (packages / 'pip').symlink_to(where)
    (packages / 'zope.pth').write_text(FOREIGN_ZOPE)
    return folder / 'bin' / 'python'


@pytest.fixture
def packed(tmp_path, entry, monkeypatch):
    made = Packed(tmp_path, entry, monkeypatch)
    yield made
    for program in made.programs:
        program.end(signal.SIGKILL)


class Packed:
    """A .pyz, and who starts it; the cache is empty, and no index is known."""

    def __init__(self, folder: Path, entry: dict, monkeypatch):
        self._entry, self._monkeypatch = entry, monkeypatch
        self.programs: list[Program] = []
        self.file, self.cache = folder / 'a folder' / 'kitchen.pyz', folder / 'cache'
        self._elsewhere = folder / 'elsewhere' / 'here'
        for each in (self.file.parent, self._elsewhere):
            each.mkdir(parents=True)
        self.set(XDG_CACHE_HOME=self.cache, PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX=1)
        self.write()

    def set(self, **variables) -> None:
        for name, value in variables.items():
            self._monkeypatch.setenv(name, str(value))

    def write(self, port: int = 1) -> None:
        self._entry['server']['port'] = port
        self.file.write_bytes(pack.build(self._entry))

    def start(self, python: Path | str, *arguments: str) -> Program:
        command = BECOME, str(python), str(self.file), *arguments
        self.programs.append(Program(self._elsewhere, ('-c', *command)))
        return self.programs[-1]

    def installs(self, python: Path | str) -> None:
        """Runs it, and it installs the stubs."""
        program = self.start(python, '127.0.0.1:8000')
        status, said = program.process.wait(timeout=ENDS_SECONDS), program.said()
        (folder,) = self.installed()
        assert (status, said.count('\n')) == (0, 2), said
        assert f'kitchen.pyz: installing {", ".join(pins())} in {folder}\n' in said
        assert said.endswith(f"{folder}/gevent/monkey.py ['127.0.0.1:8000']\n")

    def sentence(self, python: Path | str, *options: str, status: int = os.EX_CONFIG) -> str:
        """What it says of a mistake, behind the line that it installs something."""
        program = self.start(python, '127.0.0.1:8000', *options)
        assert program.process.wait(timeout=ENDS_SECONDS) == status, program.said()
        *lines, last = program.said().splitlines()
        assert len(lines) < 2, lines
        return last.removeprefix('kitchen.pyz: ')

    def installed(self) -> list[Path]:
        """What is in the cache."""
        return sorted(self.cache.glob('rendezvous/*'))


def pins() -> list[str]:
    return [f'{package}=={importlib.metadata.version(package)}' for package in pack.PACKAGES]


def test_it_is_small_and_the_same_each_time(entry):
    octets = pack.build(entry)
    assert octets == pack.build(entry)
    assert len(octets) < 80_000
    names = contents(octets)
    assert {name.split('/')[1] for name in names if '/' in name} == {
        *('__init__.py', 'hidden', 'wire')
    }
    assert {Path(name).suffix for name in names} == {'.py', '.json', '.txt'}
    versions = contents(octets)['rendezvous/hidden/packages.txt'].split()
    pinned = (ROOT / 'requirements.txt').read_text().split()
    assert {each for each in versions if 'gevent' in each or 'pyotp' in each} <= {*pinned}


def test_it_serves_from_any_folder_where_the_packages_are(server, uuid, packed, listen, connect):
    packed.write(server.port)
    near = listen(hello)
    program = packed.start(sys.executable, near.address, '--registrations', '2')
    program.until_it_says(' registered ')
    until_waiting(server, uuid, 2)
    assert asked(connect, server, uuid).answer().body == b'hello'
    assert program.end() == 0
    assert 'installing' not in program.said()
    assert packed.installed() == []
    said = packed.sentence(sys.executable, '--registrations', '0')
    assert said == '--registrations must be 1 or more'


def test_first_start_installs_and_the_next_needs_no_network(
    server, uuid, packed, bare, real_wheels, listen, connect
):
    packed.write(server.port)
    near = listen(hello)
    packed.set(PIP_FIND_LINKS=real_wheels)
    for is_first in (True, False):
        program = packed.start(bare, near.address)
        program.until_it_says(' registered ')
        assert asked(connect, server, uuid).answer().body == b'hello'
        assert program.end() == 0
        assert ('installing' in program.said()) == is_first
        packed.set(PIP_FIND_LINKS='nowhere')


def test_two_first_starts_at_once_are_harmless(packed, bare, stubs):
    packed.set(PIP_FIND_LINKS=stubs)
    programs = [packed.start(bare, 'x') for _ in range(2)]
    for program in programs:
        assert program.process.wait(timeout=ENDS_SECONDS) == 0
        assert program.said().endswith("gevent/monkey.py ['x']\n")
    (folder,) = packed.installed()
    assert folder.stat().st_mode & 0o022 == 0


def test_what_a_killed_install_left_is_removed(packed, bare, stubs):
    """... and a folder of which somebody removed a part is filled again."""
    packed.set(PIP_FIND_LINKS=stubs)
    program = packed.start(bare, '127.0.0.1:8000')
    (left,) = until(lambda: packed.installed(), 'it installs')
    program.end(signal.SIGKILL)
    os.utime(left, (0, 0))
    (folder,) = re.findall('installing .* in (/.*)', program.said())
    Path(folder, 'gevent').mkdir(parents=True)
    packed.installs(bare)


def test_without_pip_a_virtual_environment_lends_its_own(packed, bare, stubs, tmp_path):
    """The real `venv` takes 8 s for its pip: this one copies an environment that has one."""
    venv.create(tmp_path / 'without pip')
    copied = f'shutil.copytree({str(bare.parent.parent)!r}, sys.argv[1], symlinks=True)'
    (tmp_path / 'venv.py').write_text(f'import shutil, sys\n{copied}\n')
    packed.set(PIP_FIND_LINKS=stubs, PYTHONPATH=tmp_path)
    packed.installs(tmp_path / 'without pip' / 'bin' / 'python')


def test_what_cannot_be_installed_is_one_sentence(packed, bare, tmp_path):
    said = packed.sentence(bare)
    assert said.startswith('pip cannot install what this needs: No matching distribution')
    packed.set(PIP_NO_INDEX=0, PIP_INDEX_URL=f'http://127.0.0.1:{free_port()}')
    said = packed.sentence(bare, status=os.EX_TEMPFAIL)
    assert said == (
        'pip has no connection: [Errno 111] Connection refused; '
        'the first start needs the Internet, and behind a proxy the variable https_proxy'
    )
    assert packed.installed() == []
    venv.create(tmp_path / 'without pip')
    (tmp_path / 'venv.py').write_text('raise SystemExit(1)')  # as Debian without python3-venv
    packed.set(PYTHONPATH=tmp_path)
    said = packed.sentence(tmp_path / 'without pip' / 'bin' / 'python')
    assert said.startswith('this Python has neither gevent and pyotp nor pip: apt install ')


def test_nothing_is_taken_from_a_folder_that_others_can_write(packed, bare):
    ours = packed.cache / 'rendezvous'
    ours.mkdir(parents=True)
    ours.chmod(0o770)
    assert packed.sentence(bare) == (
        f'another user can write in {ours}: set XDG_CACHE_HOME to a folder of your own'
    )
    ours.chmod(0o700)
    if not os.geteuid():
        os.chown(ours, 1, 1)
        assert packed.sentence(bare).startswith(f'another user can write in {ours}: ')
    packed.set(XDG_CACHE_HOME=packed.file)
    assert packed.sentence(bare).startswith(f'cannot make {packed.file}/rendezvous: Not a dir')
    packed.set(XDG_CACHE_HOME='relative')
    assert packed.sentence(bare).startswith('there is no home folder for a cache: set XDG_CACHE')


ELSEWHERE = """
import runpy, sys
sys.platform, file = sys.argv.pop(1), sys.argv.pop(1)
sys.argv[0] = file
runpy.run_path(file, run_name='__main__')
"""


@pytest.mark.parametrize(
    ('system', 'variable', 'folder'),
    [
        ('linux', 'HOME', '.cache'),
        ('darwin', 'HOME', 'Library/Caches'),
        ('win32', 'LOCALAPPDATA', '.'),
    ],
)
def test_cache_is_where_the_system_has_it(packed, bare, tmp_path, system, variable, folder):
    environment = {name: os.environ[name] for name in ('PIP_CONFIG_FILE', 'PIP_NO_INDEX')}
    ran = subprocess.run(
        [bare, '-c', ELSEWHERE, system, packed.file, '127.0.0.1:8000'],
        env=environment | {variable: str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=ENDS_SECONDS,
    )
    assert (tmp_path / folder / 'rendezvous').stat().st_mode & 0o777 == 0o700
    assert f' in {tmp_path / folder / "rendezvous"}/' in ran.stderr
    assert ran.returncode == os.EX_CONFIG


def test_old_python_is_told_what_is_needed(packed):
    program = contents(packed.file.read_bytes())['__main__.py']
    ast.parse(program, feature_version=(3, 0))
    old = f'import runpy, sys; sys.version_info = 3, 10; runpy.run_path({str(packed.file)!r})'
    ran = subprocess.run([sys.executable, '-c', old], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (os.EX_CONFIG, '')
    assert ran.stderr.startswith(f'{packed.file}: Python 3.11 or newer is needed, and this is 3.')


@pytest.mark.parametrize(
    ('label', 'name'),
    [
        ('Küche 2', 'Kuche-2.pyz'),
        ('../../etc/passwd', 'etc-passwd.pyz'),
        ('厨房', 'the-uuid.pyz'),
        ('-o x', 'o-x.pyz'),
        ('con', 'hidden-con.pyz'),
        ('LPT1', 'hidden-LPT1.pyz'),
        ('console', 'console.pyz'),
    ],
)
def test_name_of_the_file_is_one_that_every_machine_takes(label, name):
    assert pack.file_name({'labels': [label], 'uuid': ['the-uuid']}) == name
