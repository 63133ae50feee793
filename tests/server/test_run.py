"""The scripts, as somebody uses them who has never seen the project."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import gevent
import pytest
from conftest import ROOT, free_port, until
from programs import command_line, listens, pids_in

PORTS = {'8899': free_port(), '8000': free_port(), '6379': free_port()}


@pytest.fixture
def clone(tmp_path):
    """A clean clone: what is in the repository, and nothing else; other ports."""
    names = subprocess.run(
        ['git', 'ls-files', '-co', '--exclude-standard'],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    for name in names:
        if (ROOT / name).exists():
            (tmp_path / 'clone' / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / 'clone' / name)
    example = tmp_path / 'clone' / 'local.example.py'
    example.write_text(with_free_ports(example.read_text()))
    return tmp_path / 'clone'


@pytest.fixture
def ready(clone):
    """A clone whose set-up is done: it shares the .venv of this one."""
    (clone / '.venv').symlink_to(ROOT / '.venv')
    return clone


def with_free_ports(text: str) -> str:
    return re.sub('|'.join(PORTS), lambda match: str(PORTS[match[0]]), text)


class Program:
    """A process in a group of its own, and what it prints."""

    def __init__(self, command: str, folder: Path, **more):
        self._output = folder / f'output.{time.monotonic_ns()}'
        with open(self._output, 'w') as file:
            self.process = subprocess.Popen(
                ['bash', '-c', f'exec {command}'],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **more,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit status, after this signal."""
        self.process.send_signal(number)
        return self.process.wait(timeout=20)

    def clean_up(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def run():
    programs = []

    def run(command: str, folder: Path, **more) -> Program:
        programs.append(Program(command, folder, **more))
        return programs[-1]

    yield run
    for program in reversed(programs):
        program.clean_up()


def log_of(folder: Path) -> str:
    file = folder / 'server.log'
    return file.read_text() if file.exists() else ''


def servers_in(folder: Path) -> list[int]:
    return [pid for pid in pids_in(folder) if 'server.py' in command_line(pid).split()]


def server_in(folder: Path) -> int | None:
    return next(iter(servers_in(folder)), None)


@pytest.mark.deadline(240)
def test_quick_start_of_the_readme_word_for_word(clone, run):
    section = (clone / 'README.md').read_text().partition('## Quick start')[2].partition('\n## ')[0]
    commands = re.findall(r'^\$ (.+)$', with_free_ports(section), re.M)
    (serve, add, page, local_server, hidden, ask) = commands
    assert serve == 'bin/run.sh'
    serving = run(serve, clone)
    until(lambda: 'listening on port' in log_of(clone), 'the server listens', 200)
    assert 'only this machine can connect' in serving.output

    def shell(command: str) -> str:
        return subprocess.run(
            command, shell=True, cwd=clone, check=True, capture_output=True, text=True, timeout=60
        ).stdout

    made = 'entries/7d4e1a52-3c0b-4f6e-9a81-52c60b8f1d27.json  for: .venv/bin/python hidden.py '
    assert made in shell(add)
    shell(page)
    run(local_server.removesuffix('&'), clone)
    until(lambda: listens(PORTS['8000']), 'the local server listens')
    waiting = run(hidden.removesuffix('&'), clone)
    until(lambda: 'INFO registered at 127.0.0.1' in waiting.output, 'it is registered')
    assert shell(ask) == 'Hello from behind the NAT\n'
    assert waiting.end() == 0
    assert serving.end() == 0


def test_server_is_started_again_and_sigterm_ends_it_all(ready, run):
    serving = run('bin/run.sh', ready)
    first = until(lambda: 'listening' in log_of(ready) and server_in(ready), 'it serves')
    os.kill(first, signal.SIGKILL)
    until(lambda: log_of(ready).count('listening') == 2, 'it serves again')
    second = server_in(ready)
    assert second != first
    assert 'ended with status 137, again in 1 s' in serving.output
    with socket.create_connection(('127.0.0.1', PORTS['8899'])):
        pass
    assert serving.end() == 0
    until(lambda: not pids_in(ready), 'nothing that it started is left')


def test_server_does_not_outlive_a_script_that_is_killed(ready, run):
    serving = run('bin/run.sh', ready)
    until(lambda: 'listening' in log_of(ready), 'it serves')
    serving.process.kill()
    until(lambda: not pids_in(ready), 'nothing that it started is left')
    assert 'stopped' in log_of(ready)


def test_what_kills_the_server_is_in_the_log(ready, run):
    text = (ready / 'server.py').read_text().replace('    stopping.wait()\n', '    1 / 0\n')
    (ready / 'server.py').write_text(text)
    serving = run('bin/run.sh', ready)
    until(lambda: 'again in 2 s' in serving.output, 'two tries')
    assert 'CRITICAL the server dies' in log_of(ready)
    assert 'ZeroDivisionError' in log_of(ready)


def test_pauses_grow_while_the_server_dies_at_once(ready, run):
    (ready / 'server.py').write_text('import sys\nsys.exit(3)\n')
    serving = run('bin/run.sh', ready)
    until(lambda: 'status 3, again in 4 s' in serving.output, 'three tries')
    assert 'again in 1 s' in serving.output
    assert 'again in 2 s' in serving.output
    assert serving.end() == 0
    until(lambda: not pids_in(ready), 'nothing that it started is left')


def test_ctrl_c_ends_it_all(ready, run):
    """A terminal sends SIGINT to the whole group."""
    serving = run('bin/run.sh', ready)
    until(lambda: 'listening' in log_of(ready), 'it serves')
    os.killpg(serving.process.pid, signal.SIGINT)
    assert serving.process.wait(timeout=20) == 0
    until(lambda: not pids_in(ready), 'nothing that it started is left')


def test_mistake_in_local_py_stops_it_with_one_sentence(ready, run):
    (ready / 'local.py').write_text("options = {'rendezvous_prot': 8899}\n")
    serving = run('bin/run.sh', ready)
    assert serving.process.wait(timeout=20) == 78
    (line,) = serving.output.splitlines()
    assert "there is no option 'rendezvous_prot'" in line


def test_port_in_use_stops_it_with_one_sentence(ready, run):
    with socket.create_server(('127.0.0.1', PORTS['8899'])):
        serving = run('bin/run.sh', ready)
        assert serving.process.wait(timeout=20) == 78
    line = serving.output.splitlines()[-1]
    assert f'port {PORTS["8899"]}: Address already in use' in line
    assert 'Traceback' not in serving.output
    until(lambda: not pids_in(ready), 'nothing that it started is left')


def test_log_that_can_not_be_written_stops_it_with_one_sentence(ready, run):
    (ready / 'server.log').mkdir()
    serving = run('bin/run.sh', ready)
    assert serving.process.wait(timeout=20) == 78
    assert serving.output.splitlines()[-1].startswith('server.py: cannot write ')
    assert 'Traceback' not in serving.output


def test_certificate_that_is_a_folder_stops_it_with_one_sentence(ready, run):
    for name in ('registrar.crt', 'registrar.key'):
        (ready / name).mkdir(mode=0o700)
    serving = run('bin/run.sh', ready)
    assert serving.process.wait(timeout=20) == 78
    assert 'cannot read ' in serving.output.splitlines()[-1]
    assert 'Traceback' not in serving.output


def test_missing_venv_names_the_package(clone, run, tmp_path):
    shim = tmp_path / 'bin' / 'python3'
    shim.parent.mkdir()
    real = shutil.which('python3')
    shim.write_text(f'#!/bin/sh\n[ "$1$2" != -mvenv ] || exit 1\nexec {real} "$@"\n')
    shim.chmod(0o755)
    path = f'{shim.parent}:{os.environ["PATH"]}'
    serving = run('bin/run.sh', clone, env=os.environ | {'PATH': path})
    assert serving.process.wait(timeout=20) == 78
    assert serving.output.endswith('does not work: apt install python3-venv\n')


@pytest.mark.parametrize('command', ['bin/run.sh', 'nohup bin/run.sh'])
def test_sighup_reads_the_certificate_again(ready, run, command):
    serving = run(command, ready)
    until(lambda: 'listening' in log_of(ready), 'it serves')
    serving.process.send_signal(signal.SIGHUP)
    until(lambda: 'read key and certificate again' in log_of(ready), 'they are read')
    assert serving.end() == 0


def test_sigusr2_in_a_pause_ends_that(ready, run):
    serving = run('bin/run.sh', ready)
    until(lambda: 'listening' in log_of(ready), 'it serves')
    os.kill(server_in(ready), signal.SIGKILL)
    until(lambda: 'ended with status 137' in serving.output, 'it pauses')
    serving.process.send_signal(signal.SIGUSR2)
    until(lambda: log_of(ready).count('listening') == 2, 'it serves again')
    assert serving.end() == 0
    assert log_of(ready).count('listening') == 2


def test_signals_that_come_early_end_nothing(ready, run):
    serving = run('bin/run.sh', ready)
    pid = until(lambda: server_in(ready), 'there is a server')
    while 'listening' not in log_of(ready):
        os.kill(serving.process.pid, signal.SIGHUP)
        os.kill(pid, signal.SIGHUP)
        gevent.sleep(0.01)
    assert server_in(ready) == pid
    assert serving.end() == 0
    assert 'ended with status' not in serving.output


def test_sigusr2_has_a_new_server_take_over(ready, run):
    serving = run('bin/run.sh', ready)
    until(lambda: 'listening' in log_of(ready), 'it serves')
    old = server_in(ready)
    serving.process.send_signal(signal.SIGUSR2)
    until(lambda: log_of(ready).count('listening') == 2, 'a new one serves')
    new = until(lambda: (pid := server_in(ready)) != old and pid, 'the old one has ended')
    os.kill(new, signal.SIGKILL)
    until(lambda: log_of(ready).count('listening') == 3, 'it is started again as the first was', 20)
    assert serving.end() == 0
    until(lambda: not pids_in(ready), 'nothing is left')


def test_sigusr2_with_a_mistake_in_local_py_leaves_the_old_server_be(ready, run):
    serving = run('bin/run.sh', ready)
    until(lambda: 'listening' in log_of(ready), 'it serves')
    old, good = server_in(ready), (ready / 'local.py').read_text()
    (ready / 'local.py').write_text('options = {"drain": -1}')
    serving.process.send_signal(signal.SIGUSR2)
    until(lambda: 'drain must be' in serving.output, 'it is said')
    assert server_in(ready) == old
    (ready / 'local.py').write_text(good)
    os.kill(old, signal.SIGKILL)
    until(lambda: log_of(ready).count('listening') == 2, 'it is started again', 20)
    assert serving.end() == 0


def test_new_server_stays_when_the_old_one_ends_and_another_could_not_start(ready, run):
    """The old one has somebody to wait for meanwhile; signals are for the new one."""
    serving = run('bin/run.sh', ready)
    until(lambda: 'listening' in log_of(ready), 'it serves')
    old, good = server_in(ready), (ready / 'local.py').read_text()
    with socket.create_connection(('127.0.0.1', PORTS['8899'])):
        serving.process.send_signal(signal.SIGUSR2)
        until(lambda: 'stopping' in log_of(ready), 'a new one has taken over')
        (new,) = set(servers_in(ready)) - {old}
        (ready / 'local.py').write_text('options = {"drain": -1}')
        serving.process.send_signal(signal.SIGUSR2)
        until(lambda: 'drain must be' in serving.output, 'it is said')
        (ready / 'local.py').write_text(good)
        serving.process.send_signal(signal.SIGHUP)
        until(lambda: 'read key and certificate again' in log_of(ready), 'they are read')
        until(lambda: set(servers_in(ready)) == {old, new}, 'no other one is left')
    until(lambda: servers_in(ready) == [new], 'the old one ends')
    os.kill(new, signal.SIGKILL)
    until(lambda: log_of(ready).count('listening') == 3, 'it is started again', 20)
    assert serving.end() == 0


def test_descriptors_are_raised_to_the_hard_limit(ready, run):
    run('bash -c "ulimit -Sn 256; exec bin/run.sh"', ready)
    pid = until(lambda: 'listening' in log_of(ready) and server_in(ready), 'it serves')
    limits = Path(f'/proc/{pid}/limits').read_text()
    soft, hard = re.search(r'Max open files +(\d+) +(\d+)', limits).groups()
    assert soft == hard != '256'


@pytest.mark.skipif(not shutil.which('openssl'), reason='openssl is not installed')
def test_key_exchange_is_that_of_mozilla_s_intermediate(ready, run):
    run('bin/run.sh', ready)
    until(lambda: 'listening' in log_of(ready), 'it serves')
    agreed = {}
    for group in ('X25519', 'P-256', 'P-384', 'P-521', 'X448'):
        ran = subprocess.run(
            ['openssl', 's_client', '-connect', f'127.0.0.1:{PORTS["8899"]}', '-groups', group],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
        )
        agreed[group] = 'Temp Key: ' in ran.stdout  # the server's, or, for OpenSSL 3.5, the peer's
    assert [group for group in agreed if agreed[group]] == ['X25519', 'P-256', 'P-384']


def test_nothing_that_it_writes_is_for_others_to_read(ready, run):
    serving = run('bash -c "umask 022; exec bin/run.sh"', ready)
    until(lambda: 'listening' in log_of(ready), 'it serves')
    made = ['server.log', 'local.py', 'registrar.key', 'data']
    assert all(not (ready / name).stat().st_mode & 0o077 for name in made)
    assert serving.end() == 0
