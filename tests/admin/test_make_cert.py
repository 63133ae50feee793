"""make_cert.py: its files, what is in the certificate, and who accepts it, for whom."""

import datetime
import ipaddress
import json
import os
import re
import shutil
import socket
import ssl
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from programs import Folder

SUBJECTS = {
    '127.0.0.1': [x509.IPAddress(ipaddress.ip_address('127.0.0.1'))],
    'fd00::1:2': [x509.IPAddress(ipaddress.ip_address('fd00::1:2'))],
    'rendezvous.example': [x509.DNSName('rendezvous.example')],
    'localhost': [],
    f'{"long." * 20}example': [x509.DNSName(f'{"long." * 20}example')],
}
NAMES = {'key_file': 'registrar.key', 'crt_file': 'registrar.crt'}

needs_node = pytest.mark.skipif(not shutil.which('node'), reason='there is no Node.js here')


@pytest.fixture(scope='module', params=SUBJECTS)
def made(request, tmp_path_factory):
    """A folder in which the real program made a pair, and for whom."""
    host = request.param
    with Folder(tmp_path_factory.mktemp('made'), rendezvous_host=host) as folder:
        ran = folder.run('make_cert.py')
        assert (ran.status, ran.stderr) == (0, '')
        yield folder, host, ran.stdout


@pytest.fixture
def folder(tmp_path):
    with Folder(tmp_path) as folder:
        yield folder


@pytest.fixture
def served(made, start):
    """The port of a server with the pair, its certificate's file, and for whom that is."""
    folder, host, _ = made
    files = {name: str(folder.path / file) for name, file in NAMES.items()}
    return start(rendezvous_host=host, **files).port, files['crt_file'], host


def read(folder) -> dict[str, bytes]:
    return {
        name: (folder.path / name).read_bytes() for name in NAMES.values() if there(folder, name)
    }


def there(folder, name: str) -> bool:
    return (folder.path / name).exists()


def mode(folder, name: str) -> int:
    return (folder.path / name).stat().st_mode & 0o7777


def certificate(folder) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder.path / 'registrar.crt').read_bytes())


def test_certificate_is_for_rendezvous_host_and_localhost(made):
    folder, host, _ = made
    names = certificate(folder).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert list(names.value) == [*SUBJECTS[host], x509.DNSName('localhost')]


def test_key_is_p_256_and_signed_the_certificate_itself(made):
    folder, *_ = made
    key = load_pem_private_key((folder.path / 'registrar.key').read_bytes(), password=None)
    found = certificate(folder)
    assert isinstance(key.curve, ec.SECP256R1)
    assert found.public_key() == key.public_key()
    assert isinstance(found.signature_hash_algorithm, hashes.SHA256)
    found.verify_directly_issued_by(found)


def test_certificate_is_for_a_server_and_not_an_authority(made):
    extensions = certificate(made[0]).extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    extended = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(extended) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_certificate_is_valid_for_ten_years(made):
    found, now = certificate(made[0]), datetime.datetime.now(datetime.UTC)
    ten_years = now.replace(year=now.year + 10, day=min(now.day, 28))
    assert found.not_valid_before_utc < now - datetime.timedelta(hours=12)
    assert abs(found.not_valid_after_utc - ten_years) < datetime.timedelta(days=5)


def test_it_says_what_it_made(made):
    folder, host, said = made
    found = certificate(folder)
    end = f'{found.not_valid_after_utc:%Y-%m-%d}'
    assert f'{folder.path}/registrar.crt for {host}, valid until {end}\n' in said
    fingerprint = re.search(r'^SHA-256 fingerprint: ([0-9A-F:]{95})$', said, re.M)[1]
    assert bytes.fromhex(fingerprint.replace(':', '')) == found.fingerprint(hashes.SHA256())


@pytest.mark.parametrize('umask', ['000', '777'])
def test_modes_are_the_same_whatever_the_umask(folder, umask):
    under = 'sh', '-c', f'umask {umask}; exec "$@"', 'sh'
    assert folder.run('make_cert.py', under=under).status == 0
    assert mode(folder, 'registrar.key') == 0o400
    assert mode(folder, 'registrar.crt') == 0o444
    assert not list(folder.path.glob('*.new'))


@pytest.mark.parametrize('present', [['registrar.key'], ['registrar.crt'], [*NAMES.values()]])
@pytest.mark.parametrize('arguments', [[], ['--if-missing']])
def test_without_force_it_overwrites_nothing(folder, present, arguments):
    for name in present:
        (folder.path / name).write_text('mine')
    ran = folder.run('make_cert.py', *arguments)
    if arguments and len(present) == 2:
        assert ran == (0, '', '')
    else:
        sentence = ran.sentence()
        existing = ' and '.join(str(folder.path / name) for name in present)
        known = f'{existing} exists already: set key_file and crt_file in local.py'
        assert sentence == f'{known}, or --force makes a new pair, which all clients need'
    assert read(folder) == dict.fromkeys(present, b'mine')


def test_force_brings_the_new_certificate_into_the_entries_files(folder):
    folder.pair()
    before = folder.add()
    ran = folder.run('make_cert.py', '--force')
    assert 'entry files that hold the new certificate: 1\n' in ran.stdout
    (json_file,) = (folder.path / 'entries').glob('*.json')
    written = json.loads(json_file.read_text())
    new = (folder.path / 'registrar.crt').read_text()
    assert written == before | {'server': before['server'] | {'ca': new}}
    assert (
        json_file.with_suffix('.js').read_text()
        == f'exports.params = {json_file.read_text()[:-1]};\n'
    )
    assert before['server']['ca'] != new
    json_file.write_text('no json')
    assert re.match(
        'cannot read .*: delete it',
        folder.run('make_cert.py', '--force').stderr.partition(': ')[2],
    )


def test_force_replaces_both(folder):
    folder.pair()
    before = read(folder)
    assert folder.run('make_cert.py', '--force').status == 0
    after = read(folder)
    assert all(after[name] != before[name] for name in NAMES.values())
    assert mode(folder, 'registrar.key') == 0o400
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder.path / 'registrar.crt', folder.path / 'registrar.key')


def test_if_missing_makes_what_is_missing(folder):
    assert folder.run('make_cert.py', '--if-missing').status == 0
    assert set(read(folder)) == set(NAMES.values())


def test_files_are_where_local_py_says(folder, tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    key_file, crt_file = tmp_path / 'elsewhere' / 'a.pem', 'b.pem'
    folder.set(key_file=str(key_file), crt_file=crt_file)
    assert folder.run('make_cert.py').status == 0
    assert key_file.read_bytes().startswith(b'-----BEGIN PRIVATE KEY-----')
    assert (folder.path / crt_file).read_bytes().startswith(b'-----BEGIN CERTIFICATE-----')
    assert not read(folder)


def test_missing_folder_is_one_sentence(folder):
    folder.set(key_file='nowhere/registrar.key')
    sentence = folder.run('make_cert.py').sentence()
    assert re.match(r'cannot write .*/nowhere/registrar\.key\S*: No such file', sentence)


def test_plain_http_needs_none(folder):
    folder.set(key_file=None)
    assert 'plain HTTP needs no certificate' in folder.run('make_cert.py').sentence()
    assert folder.run('make_cert.py', '--if-missing') == (0, '', '')
    assert not read(folder)


def test_mistake_in_local_py_is_one_sentence(folder):
    folder.set(rendezvous_host='https://rendezvous.example')
    assert 'rendezvous_host must be' in folder.run('make_cert.py').sentence()


def curl(port: int, host: str, *arguments: str) -> tuple[int, str]:
    """Its exit status, and the status of the answer that it got for https://host."""
    host = f'[{host}]' if ':' in host else host
    ran = subprocess.run(
        [
            *('curl', '--silent', '--noproxy', '*', '--max-time', '10'),
            *('--output', os.devnull, '--write-out', '%{http_code}'),
            *('--connect-to', f'{host}:{port}:127.0.0.1:{port}'),
            *arguments,
            f'https://{host}:{port}/',
        ],
        capture_output=True,
        text=True,
        timeout=15,
    )
    return ran.returncode, ran.stdout


def test_curl_accepts_it_for_its_names_only(served):
    port, file, host = served
    for name in (host, 'localhost'):
        assert curl(port, name, '--cacert', file) == (0, '401')
    assert curl(port, 'other.example', '--cacert', file) == (60, '000')
    assert curl(port, host) == (60, '000')


NODE = """
const fs = require('fs'), tls = require('tls')
const [port, file, ...hosts] = process.argv.slice(1)
for (const host of hosts) {
  const say = what => { console.log(host, what); socket.destroy() }
  const socket = tls.connect({
    host: '127.0.0.1', port, ca: fs.readFileSync(file),
    servername: require('net').isIP(host) ? '' : host,
    checkServerIdentity: (_, certificate) => tls.checkServerIdentity(host, certificate),
  }, () => say(socket.authorized))
  socket.on('error', error => say(error.code))
}
"""


@needs_node
def test_node_accepts_it_for_its_names_only(served):
    port, file, host = served
    names = {host: 'true', 'localhost': 'true', 'other.example': 'ERR_TLS_CERT_ALTNAME_INVALID'}
    if ':' in host:
        del names[host]  # Debian 13's Node.js, 20.19, accepts no certificate for an IPv6 address
    ran = subprocess.run(
        ['node', '-e', NODE, str(port), file, *names], capture_output=True, text=True, timeout=15
    )
    assert dict(line.split() for line in ran.stdout.splitlines()) == names


def handshake(port: int, host: str, file: str, flags: ssl.VerifyFlags) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(file)
    context.verify_flags |= flags
    with (
        socket.create_connection(('127.0.0.1', port)) as sock,
        context.wrap_socket(sock, server_hostname=host),
    ):
        pass


@pytest.mark.parametrize('flags', [0, ssl.VERIFY_X509_STRICT])
def test_python_accepts_it_for_its_names_only(served, flags):
    port, file, host = served
    handshake(port, host, file, flags)
    handshake(port, 'localhost', file, flags)
    for name in ('other.example', '127.0.0.2', f'www.{host}' if host[-1].isalpha() else '::2'):
        with pytest.raises(ssl.SSLCertVerificationError, match='mismatch'):
            handshake(port, name, file, flags)


def test_openssl_finds_nothing_wrong_with_it(made):
    file = made[0].path / 'registrar.crt'
    ran = subprocess.run(
        ['openssl', 'verify', '-x509_strict', '-purpose', 'sslserver', '-CAfile', file, file],
        capture_output=True,
        text=True,
        env=os.environ | {'LC_ALL': 'C'},
    )
    assert (ran.returncode, ran.stdout) == (0, f'{file}: OK\n')
