"""What `users_app.py export` and `backup` write, and how it comes back."""

import hashlib
import json
import re
import shutil
import time
import uuid as uuids
from pathlib import Path

import gevent
import pytest
from conftest import free_port, until
from programs import Folder, Outside
from shells import Shell

SENTENCES = {
    'damaged': '{file} is damaged in line {line}: nothing was imported',
    'changed': '{file} is not as it was when it was made: nothing was imported',
    'form': '{file} was made by another version of this program, which can read it',
}


@pytest.fixture
def folder(shell, shell_folder):
    return shell_folder


@pytest.fixture
def named(folder):
    """Hidden servers have host names."""
    folder.set(names_domain='rendezvous.example.com')
    yield
    folder.set(names_domain=None)


def entry(shell: Shell, label: str) -> str:
    """The UUID of an entry with a past."""
    uuid, now = str(uuids.uuid4()), time.time()
    shell.says('add', '--uuid', uuid, label)
    shell.says('note', uuid, f'of {label}\nand more')
    shell.knows(uuid, state='offline', since=now - 60, first=now - 9e6, address='192.0.2.1')
    redis = shell.folder.redis
    redis('RPUSH', f'changes:{{{uuid}}}', f'{now - 9e6} online', f'{now - 60} offline')
    day = int(now // 86_400)
    redis('HSET', f'hours:{{{uuid}}}', str(day), '0 1 2 3 4\n5 6 7 8 9', str(day - 1), '23 1 1 1 0')
    row = {'at': now, 'address': '198.51.100.7', 'seconds': 1.5, 'sent': 900, 'received': 5}
    for how in 'hidden server closed', 'mobile client closed':
        redis('LPUSH', f'rendezvous:{{{uuid}}}', json.dumps(row | {'how': how}))
    return uuid


def everything(shell: Shell, uuid: str) -> dict:
    """All that Redis holds of an entry, but what is for minutes or days alone."""
    redis = shell.folder.redis
    return {
        'entry': shell.stored(uuid),
        'name': redis('HGET', 'names', uuid),
        'state': json.loads(redis('GET', f'state:{{{uuid}}}')),
        'changes': redis('LRANGE', f'changes:{{{uuid}}}', 0, -1),
        'hours': redis('HGETALL', f'hours:{{{uuid}}}'),
        'rendezvous': redis('LRANGE', f'rendezvous:{{{uuid}}}', 0, -1),
    }


def test_what_is_exported_and_deleted_comes_back_with_its_secret_and_its_past(
    shell, named, tmp_path
):
    file = tmp_path / 'all.jsonl'
    found = {entry(shell, label): label for label in ('kitchen', 'Küche', '厨房')}
    kitchen = next(iter(found))
    shell.says('name', kitchen)
    shell.says('disable', '--yes', 'Küche')
    before = {uuid: everything(shell, uuid) for uuid in found}
    assert shell.says('export', '--out', str(file)).startswith(f'made {file} with 3 entries; ')
    assert logged(shell)[0] == ('exported', '', '3 entries')
    shell.says('delete', '--yes', *found)
    assert shell.listed() == []
    ran = shell.run('import', str(file))
    assert (ran.status, ran.stderr) == (0, '')
    assert ran.stdout.splitlines() == [f'imported {uuid}' for uuid in map(uuid_of, lines(file))]
    assert {uuid: everything(shell, uuid) for uuid in found} == before
    assert [each['name'] for each in shell.listed()] == ['kitchen', '', '']
    (done,) = json.loads(shell.says('log', '--json', '-n', '1'))
    assert (done['what'], done['uuid'], done['detail']) == ('imported', '', '3 entries')


def logged(shell) -> list[tuple[str, str, str]]:
    """What was done, to which entry, the last first."""
    rows = json.loads(shell.says('log', '--json'))
    return [(row['what'], row['uuid'], row['detail']) for row in rows]


def lines(file: Path) -> list[str]:
    """Those of entries."""
    return file.read_text().splitlines()[1:-1]


def uuid_of(line: str) -> str:
    return json.loads(line)['uuid']


def test_entry_that_is_there_stays_as_it_is(shell, tmp_path):
    file = tmp_path / 'some.jsonl'
    kitchen, garage = entry(shell, 'kitchen'), entry(shell, 'garage')
    entry(shell, 'camera')
    said = shell.says('export', '--out', str(file), 'kitchen', garage[:8])
    assert said.startswith(f'made {file} with 2 entries; ')
    assert {uuid_of(line) for line in lines(file)} == {kitchen, garage}
    assert logged(shell)[:2] == [('exported', garage, ''), ('exported', kitchen, '')]
    ran = shell.run('import', str(file))  # all of it is there, and the same
    assert (ran.status, ran.stdout, len(ran.stderr.splitlines())) == (0, '', 2)
    assert logged(shell)[0] == ('exported', garage, '')
    shell.says('rename', 'kitchen', 'new')
    shell.says('rekey', '--yes', 'new')
    before = everything(shell, kitchen)
    shell.says('delete', '--yes', 'garage')
    ran = shell.run('import', str(file))
    assert (ran.status, ran.stdout) == (0, f'imported {garage}\n')
    assert ran.stderr == f'skipped {kitchen}: there is already an entry of that UUID\n'
    assert everything(shell, kitchen) == before
    (done,) = json.loads(shell.says('log', '--json', '-n', '1'))
    assert (done['what'], done['uuid'], done['label']) == ('imported', garage, 'garage')


def test_host_name_that_another_entry_has_by_now_is_not_taken_from_it(shell, named, tmp_path):
    file, kitchen = tmp_path / 'one.jsonl', entry(shell, 'kitchen')
    shell.says('name', kitchen)
    shell.says('export', '--out', str(file), kitchen)
    shell.says('delete', '--yes', kitchen)
    other = entry(shell, 'kitchen')
    shell.says('name', other)
    ran = shell.run('import', str(file))
    assert (ran.status, ran.stdout) == (0, f'imported {kitchen}\n')
    why = 'is without its host name kitchen: another entry has it by now'
    assert ran.stderr == f'{kitchen} {why}\n'
    assert {each['uuid']: each['name'] for each in shell.listed()} == {
        kitchen: '',
        other: 'kitchen',
    }


def test_export_is_for_its_owner_alone_and_written_as_a_whole(folder, shell, tmp_path):
    entry(shell, 'kitchen')
    file, lax = tmp_path / 'all.jsonl', ('sh', '-c', 'umask 0; exec "$@"', 'sh')
    file.write_text('of yesterday')
    file.chmod(0o666)
    assert folder.run('users_app.py', 'export', '--out', str(file), under=lax).status == 0
    assert file.stat().st_mode & 0o777 == 0o600
    before = file.read_text()
    assert shell.stored(shell.listed()[0]['uuid'])['authParams']['base32'] in before
    ran = folder.run('users_app.py', 'export', under=lax)
    name = re.match(r'made (rendezvous-[0-9-]{17}\.jsonl) with 1 entry; ', ran.stdout)[1]
    assert (folder.path / name).stat().st_mode & 0o777 == 0o600
    for wrong, why in (('no/x', 'No such file or directory'), ('/', 'it is no regular file')):
        said = shell.refuses('export', '--out', wrong)
        assert re.fullmatch(f'cannot write {wrong}: {why}', said)
    shell.refuses('export', '--out', str(file), 'kitchen', 'nobody')
    assert file.read_text() == before
    assert list(tmp_path.iterdir()) == [file]


def damage(lines: list[str]) -> dict[str, tuple[str, str]]:
    """What may have become of the lines of a file, and what is said of it."""
    begin, first, second, end = lines
    sound = json.loads(first)
    others = {
        'cut in a line': ('\n'.join(lines)[: len(begin) + 40], 'damaged'),
        'without its end': ('\n'.join(lines[:3]), 'changed'),
        'without an entry': ('\n'.join([begin, second, end]), 'changed'),
        'with one twice': ('\n'.join([begin, first, first, second, end]), 'changed'),
        'with more behind': ('\n'.join([*lines, first]), 'changed'),
        'its beginning alone': (begin, 'changed'),
        'with another label': ('\n'.join(lines).replace('kitchen', 'Kitchen'), 'changed'),
        'of a later form': ('\n'.join([begin.replace('1', '2', 1), *lines[1:]]), 'form'),
        'no object': ('\n'.join([begin, '[1]', second, end]), 'damaged'),
        'deep': ('\n'.join([begin, '[' * 100_000, second, end]), 'damaged'),
        'a number': ('\n'.join([begin, '1' * 100_000, second, end]), 'damaged'),
        'of no UUID': (resealed([begin, json.dumps(sound | {'uuid': 'x'})]), 'damaged'),
        'of letters that are none': (
            resealed([begin, json.dumps(sound | {'entry': '\ud800'}), second]),
            'damaged',
        ),
        'of no entry': (resealed([begin, json.dumps(sound | {'entry': 7})]), 'damaged'),
    }
    return others


def resealed(lines: list[str]) -> str:
    """With an end that fits."""
    text = ''.join(f'{line}\n' for line in lines)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return text + json.dumps({'entries': len(lines) - 1, 'sha256': digest})


def test_name_that_is_none_is_left_out_and_not_said(shell, tmp_path):
    uuid, file = entry(shell, 'kitchen'), tmp_path / 'all.jsonl'
    shell.says('export', '--out', str(file))
    shell.says('delete', '--yes', uuid)
    begin, kept, _ = file.read_text().splitlines()
    file.write_text(resealed([begin, json.dumps(json.loads(kept) | {'name': '\x1b[31m\x07'})]))
    ran = shell.run('import', str(file))
    assert (ran.stdout, ran.stderr) == (f'imported {uuid}\n', '')


def test_of_a_damaged_file_nothing_is_imported(shell, tmp_path):
    file = tmp_path / 'all.jsonl'
    kitchen, garage = entry(shell, 'kitchen'), entry(shell, 'garage')
    shell.says('export', '--out', str(file))
    whole = file.read_text().splitlines()
    shell.says('delete', '--yes', kitchen, garage)
    for what, (text, sentence) in damage(whole).items():
        file.write_text(text + '\n')
        said = shell.refuses('import', str(file))
        assert said == SENTENCES[sentence].format(file=file, line=2), what
        assert shell.listed() == [], what
    file.write_text('\n'.join(whole))
    assert len(shell.says('import', str(file)).splitlines()) == 2


def test_everything_is_in_a_backup_that_is_made_while_others_write(folder, shell, tmp_path):
    kitchen = entry(shell, 'kitchen')
    before, made = everything(shell, kitchen), []

    def write() -> None:
        while True:
            made.append(str(uuids.uuid4()))
            folder.redis('SET', made[-1], json.dumps({'labels': [f'number {len(made)}']}))
            gevent.sleep(0)

    writing = gevent.spawn(write)
    until(lambda: len(made) > 10, 'some are written')
    acknowledged = list(made[:-1])
    said = shell.says('backup', str(tmp_path / 'backup.rdb'))
    writing.kill()
    assert len(made) > len(acknowledged) + 1, 'nothing was written meanwhile'
    backup = tmp_path / 'backup.rdb'
    assert backup.stat().st_mode & 0o777 == 0o600
    with Folder(tmp_path / 'fresh') as fresh:
        shutil.copy(folder.path / 'registrar.crt', fresh.path)
        (fresh.path / 'data').mkdir()
        for command in re.findall('^    (.*)', said, re.M):
            assert fresh.run('-c', SHELL, command).status == 0
        listed = json.loads(fresh.run('users_app.py', 'list', '--json').stdout)
        found = {each['uuid'] for each in listed}
        assert found >= {kitchen, *acknowledged}
        assert found <= {kitchen, *made}
        with_store = fresh.start('users_app.py', '--port', '0')
        with_store.until_it_says('http')
        assert everything(Shell(fresh), kitchen) == before


SHELL = 'import subprocess, sys; subprocess.run(sys.argv[1], shell=True, check=True)'


def test_backup_that_cannot_be_written_is_told_in_a_sentence(folder, shell, tmp_path):
    (tmp_path / 'there').mkdir()
    for wrong, why in {
        'no/x': 'No such file or directory',
        str(tmp_path / 'there'): 'Is a directory',
        '/dev/null': 'it is no regular file',
        '/': 'it is no regular file',
    }.items():
        assert re.fullmatch(f'cannot write {wrong}: {why}', shell.refuses('backup', wrong))
    assert [each.name for each in tmp_path.iterdir()] == ['there']
    assert 'dump.rdb' not in {each.name for each in (folder.path / 'data').iterdir()}


def test_backup_is_not_put_where_the_store_is(folder, shell):
    data = folder.path / 'data'
    before = sorted(data.iterdir())
    for file in data / 'dump.rdb', data / 'appendonlydir' / 'x':
        said = shell.refuses('backup', str(file))
        assert said == f'{file} is in the folder of the store: choose another one'
    assert sorted(data.iterdir()) == before


def test_backup_of_another_redis_is_its_own_matter(tmp_path):
    with Folder(tmp_path / 'ours') as folder, Outside(tmp_path, free_port(), 'secret') as outside:
        folder.set(**outside.options)
        ran = folder.run('users_app.py', 'backup', 'x')
        assert ran.status != 0
        assert len(ran.stderr.splitlines()) == 1
        assert 'redis' in ran.stderr.lower()
        assert not (folder.path / 'x').exists()
