"""bin/run.sh, as somebody uses it who has never seen the project: from a clone, at a terminal."""

import fcntl
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT, free_port, until
from programs import Folder, Program, listens

PORTS = {'8899': free_port(), '8000': free_port()}
SHELL_SECONDS = 60


def under_shell(command: str) -> tuple[str, str]:
    """Arguments for Python that become a shell command."""
    return '-c', f'import os; os.execv("/bin/sh", ["sh", "-c", {command!r}])'


RUN_SH = under_shell('exec sh bin/run.sh')


def with_free_ports(text: str) -> str:
    return re.sub('|'.join(PORTS), lambda match: str(PORTS[match[0]]), text)


@pytest.fixture
def clone(tmp_path):
    """A clean clone: what is in the repository, and nothing else; other ports."""
    with Folder(tmp_path) as folder:
        shutil.rmtree(folder.path)
        listed = subprocess.run(
            ['git', 'ls-files', '-co', '--exclude-standard'],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        for name in filter(lambda name: (ROOT / name).exists(), listed.stdout.split()):
            (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder.path / name)
        example = folder.path / 'local.example.py'
        example.write_text(with_free_ports(example.read_text()))
        yield folder


@pytest.mark.deadline(240)
def test_one_machine_of_the_readme_word_for_word(clone):
    readme = (clone.path / 'README.md').read_text()
    section = readme.partition('## Try it on one machine')[2].partition('\n## ')[0]
    commands = re.findall(r'^\$ (.+)$', with_free_ports(section), re.M)
    (serve, add, make_page, local_server, hide, ask) = commands
    assert serve == 'bin/run.sh'

    def start(command: str) -> Program:
        return clone.start(*under_shell(f'exec {command.removesuffix("&")}'))

    def shell(command: str) -> str:
        ran = subprocess.run(
            command,
            shell=True,
            cwd=clone.path,
            check=True,
            capture_output=True,
            text=True,
            timeout=SHELL_SECONDS,
        )
        return ran.stdout

    serving = start(serve)
    until(lambda: 'listening on port' in clone.log(), 'the server listens', 200)
    assert 'only this machine can connect' in serving.said()
    made = 'entries/7d4e1a52-3c0b-4f6e-9a81-52c60b8f1d27.json  for: .venv/bin/python hidden.py '
    assert made in shell(add)
    shell(make_page)
    local = start(local_server)
    until(lambda: listens(PORTS['8000']), 'the local server listens')
    hidden = start(hide)
    hidden.until_it_says('INFO registered at 127.0.0.1')
    assert shell(ask) == 'Hello from behind the NAT\n'
    assert hidden.end() == 0
    assert serving.end() == 0
    local.end()


def test_first_start_closes_what_it_writes_to_others_and_raises_its_limits(tmp_path):
    with Folder(tmp_path) as folder:
        (folder.path / 'local.py').unlink()
        example = folder.path / 'local.example.py'
        example.write_text(with_free_ports(example.read_text()))
        before = set(folder.path.iterdir())
        command = under_shell('umask 022; ulimit -Sn 256; exec sh bin/run.sh')
        program, port = folder.serve(*command)
        assert port == PORTS['8899']
        made = {path.name: path.stat().st_mode for path in {*folder.path.iterdir()} - before}
        assert made.keys() >= {'server.log', 'server.pid', 'local.py', 'registrar.key', 'data'}
        for name in ('registrar.crt', 'registrar-ca.crt'):
            del made[name]  # which is for everybody
        assert not [name for name, mode in made.items() if mode & 0o077]
        for pid in (program.pid, *folder.workers()):
            soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            assert soft == hard != 256
        assert program.end() == 0
        folder.until_nothing_runs()


# Mistakes: one sentence, and the exit status 78, after which systemd does not start it again


def prot(folder: Folder) -> None:
    (folder.path / 'local.py').write_text("options = {'rendezvous_prot': 8899}\n")


def log_is_a_folder(folder: Folder) -> None:
    (folder.path / 'server.log').mkdir()


def certificate_is_a_folder(folder: Folder) -> None:
    for name in ('registrar.crt', 'registrar.key'):
        (folder.path / name).unlink()
        (folder.path / name).mkdir(mode=0o700)


def data_are_a_file(folder: Folder) -> None:
    (folder.path / 'data').write_text('')


@pytest.mark.parametrize(
    ('mistake', 'sentence'),
    [
        (prot, "there is no option 'rendezvous_prot'"),
        (log_is_a_folder, 'cannot write .*/server.log: Is a directory'),
        (certificate_is_a_folder, 'cannot read '),
        (data_are_a_file, 'cannot use .*/data, where the entries are'),
    ],
)
def test_mistake_is_one_sentence(folder, mistake, sentence):
    mistake(folder)
    ran = folder.run(*RUN_SH)
    assert re.search(sentence, ran.sentence())
    folder.until_nothing_runs()


def test_port_in_use_is_one_sentence(folder):
    with socket.create_server(('127.0.0.1', 0)) as other:
        port = other.getsockname()[1]
        folder.set(rendezvous_port=port)
        sentence = folder.run(*RUN_SH).sentence()
        assert f'port {port}: Address already in use' in sentence
        assert sentence in folder.log()
    folder.until_nothing_runs()


# A terminal


SHELL = """
import os, sys
os.login_tty(os.open(sys.argv[1], os.O_RDWR))
os.execvp('bash', ['bash', '--noprofile', '--norc', '-i'])
"""


class Terminal:
    """A terminal with a shell in it, as somebody has one who logs in."""

    def __init__(self, folder: Folder):
        self._descriptor, inner = os.openpty()
        os.set_blocking(self._descriptor, False)
        self.shell = folder.start('-c', SHELL, os.ttyname(inner))
        self._shown = b''
        self.until_it_shows('# ' if os.geteuid() == 0 else '$ ')
        os.close(inner)

    def type(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def until_it_shows(self, text: str) -> None:
        def shown() -> bool:
            with suppress(BlockingIOError):
                self._shown += os.read(self._descriptor, 65536)
            return text.encode() in self._shown

        until(shown, f'the terminal shows {text}')

    def close(self) -> None:
        os.close(self._descriptor)


@pytest.fixture
def terminal(folder):
    return Terminal(folder)


def test_log_is_shown_in_the_terminal_and_ctrl_c_ends_it(folder, terminal):
    terminal.type('sh bin/run.sh; echo "it ended: $?"\n')
    terminal.until_it_shows('INFO listening on port')
    terminal.type('\x03')
    terminal.until_it_shows('it ended: 0')
    until(lambda: folder.pids() == [terminal.shell.pid], 'only the shell is left')
    terminal.close()
    assert 'INFO listening on port' in folder.log()


@pytest.mark.parametrize('command', ['exec sh bin/run.sh', 'sh bin/run.sh', 'sh bin/run.sh &'])
def test_it_ends_with_its_terminal(folder, terminal, command):
    terminal.type(f'{command}\n')
    terminal.until_it_shows('INFO listening on port')
    terminal.close()
    folder.until_nothing_runs()
    assert 'stopping' in folder.log()


def test_it_ends_after_a_shell_that_ended_without_a_word(folder, terminal):
    parent = folder.path / 'rendezvous' / 'server' / 'parent.py'
    parent.write_text(parent.read_text().replace('ROTATE_SECONDS = 60', 'ROTATE_SECONDS = 1'))
    terminal.type('sh bin/run.sh & disown\n')
    terminal.until_it_shows('INFO listening on port')
    terminal.type('exit\n')
    until(lambda: terminal.shell.pid not in folder.pids(), 'the shell ends')
    terminal.close()
    folder.until_nothing_runs()
    assert 'stopping' in folder.log()


def test_under_nohup_it_outlives_its_terminal_and_then_sighup_is_for_the_certificate(
    folder, terminal
):
    terminal.type('nohup sh bin/run.sh >/dev/null 2>&1 &\n')
    until(lambda: 'listening' in folder.log(), 'it serves')
    (pid,) = set(folder.pids()) - {terminal.shell.pid, *folder.workers(), *folder.stores()}
    terminal.close()
    until(lambda: terminal.shell.pid not in folder.pids(), 'the shell ends')
    before = folder.log().count('read key and certificate again')
    os.kill(pid, signal.SIGHUP)
    until(lambda: folder.log().count('read key and certificate again') > before, 'they are read')
    os.kill(pid, signal.SIGTERM)
    folder.until_nothing_runs()


# The log


class Reader:
    """Reads what a program writes to a pipe, as systemd does."""

    def __init__(self, path: Path):
        os.mkfifo(path)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, 16384)  # soon full

        self.octets = b''

    def read(self) -> None:
        with suppress(BlockingIOError):
            self.octets += os.read(self._descriptor, 65536)

    def until_it_reads(self, text: str) -> None:
        until(lambda: self.read() or text.encode() in self.octets, f'it reads {text}')


def test_log_goes_to_a_pipe_too_and_a_reader_that_stops_stops_nobody(folder):
    folder.set(workers=1, key_file=None)
    reader = Reader(folder.path / 'pipe')
    program, port = folder.serve(*under_shell('exec sh bin/run.sh 2>pipe'))
    reader.until_it_reads('listening on port')  # of the parent

    def ask() -> None:
        with socket.create_connection(('127.0.0.1', port)) as sock:
            sock.sendall(b'nothing that HTTP knows\r\n\r\n')
            assert sock.recv(12) == b'HTTP/1.1 400'

    ask()
    reader.until_it_reads('refused: 400')  # of the worker
    for _ in range(400):
        ask()
    until(lambda: folder.log().count('refused: 400') == 401, 'all is in server.log')
    reader.read()
    assert reader.octets.count(b'refused: 400') < 401
    assert program.end() == 0


def test_log_does_not_go_to_a_file_too(folder):
    """It would grow for ever there; and if that is server.log, each line would be there twice."""
    program, _ = folder.serve(*under_shell('exec sh bin/run.sh >>server.log 2>&1'))
    assert program.end() == 0
    assert folder.log().count('listening on port') == 1
    assert program.said() == ''
