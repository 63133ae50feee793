"""The commands of users_app.py, the files that it writes and what it keeps in Redis."""

import datetime
import json
import re
import uuid as uuids

import click
import gevent
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from programs import Folder

import files as hidden_files
import make_cert
import users_app
from options import DEFAULTS


@pytest.fixture(scope='module')
def running(tmp_path_factory):
    with Folder(tmp_path_factory.mktemp('shell')) as folder:
        folder.pair()
        folder.start('users_app.py', '--port', '0').until_it_says('http')  # keeps the store up
        yield folder


@pytest.fixture
def folder(running):
    """One for all tests, without entries at the start of each."""
    yield running
    running.redis('FLUSHALL')


@pytest.fixture
def uuid():
    return str(uuids.uuid4())


def files(folder, uuid: str) -> dict[str, str]:
    return {file.name: file.read_text() for file in (folder.path / 'entries').glob(f'*{uuid}*')}


def test_entry_is_made_listed_and_deleted(folder, uuid):
    ran = folder.run('users_app.py', 'add', '--uuid', uuid.upper(), 'garden shed')
    assert (ran.status, ran.stderr) == (0, '')
    for suffix in ('json', 'js'):
        assert f'{folder.path}/entries/{uuid}.{suffix}  for' in ran.stdout
    assert len(files(folder, uuid)) == 2
    assert json.loads(files(folder, uuid)[f'{uuid}.json'])['labels'] == ['garden shed']
    assert folder.listed() == {uuid: 'garden shed'}
    ran = folder.run('users_app.py', 'delete', '--yes', uuid.upper())
    assert (ran.status, ran.stdout) == (0, f'deleted {uuid}\n')
    assert files(folder, uuid) == {}


def test_what_is_refused_is_one_sentence(folder, uuid):
    folder.add('--uuid', uuid)
    before = folder.redis('GET', uuid), files(folder, uuid)
    said = {
        ('add', '--uuid', 'kitchen'): r"'kitchen' is no UUID, like .*; left out, one is made up",
        ('add', b'\xff'): 'a label has at most 100 characters, all of them printable',
        ('add', '--uuid', uuid.upper()): f'{uuid} has an entry already: .*',
    }
    running = [gevent.spawn(folder.run, 'users_app.py', *arguments) for arguments in said]
    for each, sentence in zip(running, said.values(), strict=True):
        ran = each.get()
        assert (ran.status, ran.stdout) == (1, '')
        assert re.fullmatch(f'Error: {sentence}\n', ran.stderr)
    assert (folder.redis('GET', uuid), files(folder, uuid)) == before


@pytest.mark.parametrize('port', ['65536', '-1', 'x'])
def test_port_that_is_none_is_refused(port):
    with pytest.raises(click.BadParameter):
        users_app.cli.main([f'--port={port}'], standalone_mode=False)


def test_public_certificate_is_not_handed_out(tmp_path):
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject, issuer = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        for name in ('rendezvous.example', 'an authority')
    )
    certificate = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), 1, now, now + make_cert.VALID)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    crt_file = tmp_path / 'public.crt'
    crt_file.write_bytes(certificate.public_bytes(make_cert.Encoding.PEM))
    options = DEFAULTS | {'crt_file': str(crt_file), 'rendezvous_host': 'rendezvous.example'}
    assert hidden_files.how_to_reach(options) == {'hostname': 'rendezvous.example', 'port': 8899}


def test_plain_http_has_no_certificate():
    server = {'hostname': '127.0.0.1', 'port': 8899}
    assert hidden_files.how_to_reach(DEFAULTS | {'key_file': None, 'crt_file': 'none'}) == server
