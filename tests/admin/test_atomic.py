"""A file that is written has all of its octets at each moment, whoever else writes it."""

import subprocess
import sys

from conftest import ROOT

from rendezvous.admin import atomic

WRITES = """
import sys
from pathlib import Path
from rendezvous.admin import atomic
for _ in range(500):
    atomic.write(Path(sys.argv[1]), sys.argv[2].encode() * 2000, 0o444)
"""


def test_two_programs_write_one_file(tmp_path):
    path = tmp_path / 'registrar.crt'
    atomic.write(path, b'0' * 2000, 0o444)
    writers = [
        subprocess.Popen([sys.executable, '-c', WRITES, path, letter], cwd=ROOT) for letter in 'ab'
    ]
    read = set()
    while any(writer.poll() is None for writer in writers):
        read.add(path.read_bytes())
    assert [writer.returncode for writer in writers] == [0, 0]
    assert read <= {letter * 2000 for letter in (b'0', b'a', b'b')}
    assert [each.name for each in tmp_path.iterdir()] == ['registrar.crt']
