"""make_cert.py: its files, what is in the certificates, who accepts them, and their renewal."""

import datetime
import ipaddress
import json
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
import self_signed
from browser import Browser
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from programs import Folder

from rendezvous.admin import authority, entry_files
from rendezvous.admin import certificate as certificate_files
from rendezvous.admin.certificate import pem_of, renew
from rendezvous.store import options as local
from rendezvous.wire.programs import Mistake

SUBJECTS = {
    '127.0.0.1': [x509.IPAddress(ipaddress.ip_address('127.0.0.1'))],
    'fd00::1:2': [x509.IPAddress(ipaddress.ip_address('fd00::1:2'))],
    'rendezvous.example': [x509.DNSName('rendezvous.example')],
    'localhost': [],
    f'{"long." * 20}example': [x509.DNSName(f'{"long." * 20}example')],
}
NAMES = {'key_file': 'registrar.key', 'crt_file': 'registrar.crt'}
FILES = [*NAMES.values(), 'registrar-ca.key', 'registrar-ca.crt']
DAY = datetime.timedelta(days=1)

needs_node = pytest.mark.skipif(not shutil.which('node'), reason='there is no Node.js here')
needs_faketime = pytest.mark.skipif(
    not shutil.which('faketime'), reason='there is no faketime here'
)


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
    return {name: (folder.path / name).read_bytes() for name in FILES if there(folder, name)}


def there(folder, name: str) -> bool:
    return (folder.path / name).exists()


def mode(folder, name: str) -> int:
    return (folder.path / name).stat().st_mode & 0o7777


def certificates(folder) -> list[x509.Certificate]:
    """That of the server, and of the authority."""
    return x509.load_pem_x509_certificates((folder.path / 'registrar.crt').read_bytes())


def certificate(folder) -> x509.Certificate:
    return certificates(folder)[0]


def test_certificate_is_for_rendezvous_host_and_localhost(made):
    folder, host, _ = made
    names = certificate(folder).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert list(names.value) == [*SUBJECTS[host], x509.DNSName('localhost')]


def test_keys_are_p_256_and_the_authority_has_signed_both(made):
    folder, *_ = made
    leaf, authority = certificates(folder)
    for name, found in (('registrar.key', leaf), ('registrar-ca.key', authority)):
        key = load_pem_private_key((folder.path / name).read_bytes(), password=None)
        assert isinstance(key.curve, ec.SECP256R1)
        assert found.public_key() == key.public_key()
        assert isinstance(found.signature_hash_algorithm, hashes.SHA256)
        found.verify_directly_issued_by(authority)
    alone = (folder.path / 'registrar-ca.crt').read_bytes()
    assert (folder.path / 'registrar.crt').read_bytes().endswith(alone)
    assert x509.load_pem_x509_certificates(alone) == [authority]


def test_certificate_is_for_a_server_and_the_authority_for_nothing_below_it(made):
    leaf, authority = (each.extensions for each in certificates(made[0]))
    constraints = [
        each.get_extension_for_class(x509.BasicConstraints) for each in (leaf, authority)
    ]
    assert [(each.value.ca, each.value.path_length) for each in constraints] == [
        (False, None),
        (True, 0),
    ]
    assert all(each.critical for each in constraints)
    usages = [each.get_extension_for_class(x509.KeyUsage).value for each in (leaf, authority)]
    assert [(each.digital_signature, each.key_cert_sign) for each in usages] == [
        (True, False),
        (False, True),
    ]
    extended = leaf.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(extended) == [ExtendedKeyUsageOID.SERVER_AUTH]
    signer = authority.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    named = leaf.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert named == signer


def test_authority_is_valid_for_ten_years_and_the_certificate_for_397_days(made):
    leaf, authority = certificates(made[0])
    now = datetime.datetime.now(datetime.UTC)
    ten_years = now.replace(year=now.year + 10, day=min(now.day, 28))
    assert abs(authority.not_valid_after_utc - ten_years) < 5 * DAY
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == 397 * DAY
    for each in (leaf, authority):
        assert now - 2 * DAY < each.not_valid_before_utc < now - DAY / 2


def test_it_says_what_it_made_and_for_whom(made):
    folder, host, said = made
    leaf, authority = certificates(folder)
    ends = [f'{each.not_valid_after_utc:%Y-%m-%d}' for each in (leaf, authority)]
    assert f'{folder.path}/registrar.crt for {host}, valid until {ends[0]}\n' in said
    assert f'registrar-ca.crt, the authority that signs it, valid until {ends[1]}\n' in said
    fingerprint = re.search(r'^SHA-256 fingerprint of the authority: ([0-9A-F:]{95})$', said, re.M)
    known = authority.fingerprint(hashes.SHA256())
    assert bytes.fromhex(fingerprint[1].replace(':', '')) == known
    assert 'For phones, browsers and Java: registrar-ca.crt.\n' in said


@pytest.mark.parametrize('umask', ['000', '777'])
def test_modes_are_the_same_whatever_the_umask(folder, umask):
    under = 'sh', '-c', f'umask {umask}; exec "$@"', 'sh'
    assert folder.run('make_cert.py', under=under).status == 0
    assert [oct(mode(folder, name)) for name in FILES] == ['0o400', '0o444'] * 2
    assert not list(folder.path.glob('*.new'))


@pytest.mark.parametrize('present', [FILES[:1], FILES[1:2], FILES[:2], FILES[2:3], FILES])
@pytest.mark.parametrize('arguments', [[], ['--if-missing']])
def test_without_force_it_overwrites_nothing(folder, present, arguments):
    for name in present:
        (folder.path / name).write_text('mine')
    ran = folder.run('make_cert.py', *arguments)
    if arguments and len(present) > 1:
        assert ran == (0, '', '')
    else:
        sentence = ran.sentence()
        existing = ' and '.join(str(folder.path / name) for name in present)
        lost = ' and '.join(str(folder.path / name) for name in FILES[:2] if name not in present)
        but = f', but {lost} is missing: bring it back, or' if lost else ':'
        ways = 'set key_file and crt_file in local.py, or --force makes new ones, which'
        assert sentence == f'there is already {existing}{but} {ways} all clients need'
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
    assert all(after[name] != before[name] for name in FILES)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder.path / 'registrar.crt', folder.path / 'registrar.key')


def test_if_missing_makes_what_is_missing(folder):
    assert folder.run('make_cert.py', '--if-missing').status == 0
    assert set(read(folder)) == set(FILES)


def test_files_are_where_local_py_says(folder, tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    key_file, crt_file = tmp_path / 'elsewhere' / 'a.pem', 'b.pem'
    folder.set(key_file=str(key_file), crt_file=crt_file)
    assert folder.run('make_cert.py').status == 0
    assert key_file.read_bytes().startswith(b'-----BEGIN PRIVATE KEY-----')
    assert (folder.path / crt_file).read_bytes().startswith(b'-----BEGIN CERTIFICATE-----')
    assert (tmp_path / 'elsewhere' / 'a-ca.pem').stat().st_mode & 0o777 == 0o400
    assert there(folder, 'b-ca.pem')
    assert not read(folder)


def test_missing_folder_is_one_sentence(folder):
    folder.set(key_file='nowhere/registrar.key')
    sentence = folder.run('make_cert.py').sentence()
    assert re.match(r'cannot write .*/nowhere/registrar-ca\.key\S*: No such file', sentence)


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
    assert node(port, file, *names) == names


def node(port: int, file: str, *hosts: str) -> dict[str, str]:
    """For each host whether Node.js trusts the server, or what it says."""
    ran = subprocess.run(
        ['node', '-e', NODE, str(port), file, *hosts], capture_output=True, text=True, timeout=15
    )
    return dict(line.split() for line in ran.stdout.splitlines())


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


def verify(trusted: Path, shown: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        ['openssl', 'verify', '-x509_strict', '-purpose', 'sslserver', '-CAfile', trusted, shown],
        capture_output=True,
        text=True,
        env=os.environ | {'LC_ALL': 'C'},
        timeout=30,
    )


def test_openssl_finds_nothing_wrong_with_it(made):
    file = made[0].path / 'registrar.crt'
    for trusted in (file, file.with_name('registrar-ca.crt')):
        ran = verify(trusted, file)
        assert (ran.returncode, ran.stdout) == (0, f'{file}: OK\n')


# The next certificate


def aged(folder, monkeypatch, days: int, host: str = '127.0.0.1', **options) -> None:
    """A certificate that was made so many days ago."""
    with monkeypatch.context() as patch:
        patch.setattr(authority, 'BACKDATED', (days + 1) * DAY)
        folder.pair(host)
    folder.set(rendezvous_host=host, **options)


def options(folder) -> local.Options:
    files = {name: str(folder.path / file) for name, file in NAMES.items()}
    return local.DEFAULTS | folder.options | files


@pytest.mark.parametrize('days', [0, 263])
def test_certificate_that_is_not_due_stays(folder, monkeypatch, days):
    aged(folder, monkeypatch, days)
    before = read(folder)
    assert renew(options(folder)) is None
    assert read(folder) == before


def test_renewal_writes_the_certificate_and_nothing_else(folder, monkeypatch):
    for days, argument in ((265, '--renew'), (500, '--if-missing')):
        aged(folder, monkeypatch, days)
        before, (old, signer) = read(folder), certificates(folder)
        ran = folder.run('make_cert.py', argument)
        new, same = certificates(folder)
        end = f'{new.not_valid_after_utc:%Y-%m-%d}'
        assert ran == (0, f'made the next certificate in registrar.crt, valid until {end}\n', '')
        assert same == signer
        assert new.public_key() == old.public_key()
        assert new.serial_number != old.serial_number
        assert new.not_valid_after_utc - datetime.datetime.now(datetime.UTC) > 395 * DAY
        after = read(folder)
        assert {name for name in FILES if after[name] != before[name]} == {'registrar.crt'}
        assert mode(folder, 'registrar.crt') == 0o444
        assert folder.run('make_cert.py', argument) == (0, '', '')


def test_last_certificate_ends_with_its_authority(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(authority, 'AUTHORITY_VALID', 20 * DAY)
        aged(folder, monkeypatch, 300)
    (leaf, signer), before = certificates(folder), read(folder)
    assert leaf.not_valid_after_utc == signer.not_valid_after_utc
    said = folder.run('make_cert.py', '--renew').sentence()
    assert said.startswith(
        f'The authority of the certificate ends on {leaf.not_valid_after_utc:%F}'
    )
    assert '--force makes a new one, which hidden servers and clients need too' in said
    assert read(folder) == before


@pytest.mark.parametrize(
    ('host', 'changed', 'name'),
    [
        ('rendezvous.example', {'names_domain': 'rendezvous.example'}, '*.rendezvous.example'),
        ('rendezvous.example', {'rendezvous_host': 'a.rendezvous.example'}, 'a.rendezvous.example'),
        ('127.0.0.1', {'names_domain': 'rendezvous.localhost'}, '*.rendezvous.localhost'),
        ('127.0.0.1', {'rendezvous_host': 'b.localhost'}, 'b.localhost'),
    ],
)
def test_other_names_that_the_authority_may_sign_get_a_certificate(folder, host, changed, name):
    folder.pair(host)
    folder.set(**{'rendezvous_host': host, **changed})
    before = certificates(folder)
    assert renew(options(folder))
    leaf, signer = certificates(folder)
    assert signer == before[1]
    assert x509.DNSName(name) in authority.names_in(leaf) - authority.names_in(before[0])
    assert renew(options(folder)) is None


def foreign_host(folder) -> str:
    folder.set(rendezvous_host='192.0.2.1')
    return r'the authority in .*registrar.crt may not sign for 192\.0\.2\.1: '


def foreign_domain(folder) -> str:
    folder.set(names_domain='names.example')
    return r'the authority in .*registrar.crt may not sign for \*.names.example and names.example: '


def no_key(folder) -> str:
    (folder.path / 'registrar-ca.key').unlink()
    return r'cannot renew the certificate with .*/registrar-ca.key \(No such file or directory\): '


def other_key(folder) -> str:
    shutil.copy(folder.path / 'registrar.key', folder.path / 'registrar-ca.key')
    return r'cannot renew .* \(it is not the key of the authority in .*registrar.crt\): '


def no_key_in_it(folder) -> str:
    (folder.path / 'registrar-ca.key').unlink()
    (folder.path / 'registrar-ca.key').write_text('')
    return r'cannot renew .* \(it holds no key\): '


def in_the_way(folder) -> str:
    name = f'registrar.crt.{os.getpid()}.new'
    (folder.path / name).mkdir()
    return f'cannot write .*/{name}: Is a directory: let this user write there'


@pytest.mark.parametrize(
    'prepare', [foreign_host, foreign_domain, no_key, other_key, no_key_in_it, in_the_way]
)
def test_what_prevents_it_is_one_sentence(folder, monkeypatch, prepare):
    aged(folder, monkeypatch, 300)
    sentence = prepare(folder)
    before = read(folder)
    with pytest.raises(Mistake, match=sentence) as caught:
        renew(options(folder))
    assert prepare == in_the_way or '.py --force makes a new one, which ' in str(caught.value)
    assert read(folder) == before


def test_key_of_the_authority_that_everybody_may_read_is_told(folder):
    folder.pair()
    (folder.path / 'registrar-ca.key').chmod(0o444)
    assert re.match(
        r'Every user of this machine may read (.*/registrar-ca\.key): chmod 400 \1$',
        folder.run('make_cert.py', '--renew').sentence(),
    )


def test_what_prevents_it_keeps_no_server_from_its_start(folder):
    folder.pair()
    folder.set(rendezvous_host='192.0.2.1')
    sentence = folder.run('make_cert.py', '--renew').sentence()
    assert folder.run('make_cert.py', '--if-missing') == (0, '', f'make_cert.py: {sentence}\n')


@needs_faketime
@pytest.mark.parametrize('date', ['1971-01-01', '2099-01-01'])
def test_clock_that_is_wrong_makes_no_certificate(folder, date):
    folder.pair()
    before = read(folder)
    said = folder.run('make_cert.py', '--renew', under=('faketime', date)).sentence()
    assert f'and the clock of this machine says {date}: set the clock' in said
    assert read(folder) == before


@needs_faketime
def test_certificate_that_was_made_while_the_clock_was_ahead_is_replaced(folder):
    folder.pair()
    before, ahead = certificate(folder), ('faketime', '+300 days')
    assert folder.run('make_cert.py', '--renew', under=ahead).status == 0
    between = certificate(folder)
    assert folder.run('make_cert.py', '--renew').status == 0
    begins = [each.not_valid_before_utc for each in (before, between, certificate(folder))]
    assert begins[1] - begins[0] > 299 * DAY
    assert begins[2] - begins[0] < DAY


@pytest.mark.parametrize('issuer', ['127.0.0.1', "Let's Encrypt"])
@pytest.mark.parametrize('ends', [3000, -1])
def test_what_it_has_not_made_it_never_replaces_unless_by_force(folder, issuer, ends):
    self_signed.write(folder.path, begins=-300, ends=ends, issuer=issuer)
    before = read(folder)
    folder.set(names_domain='rendezvous.example')
    assert renew(options(folder)) is None
    assert read(folder) == before
    if ends < 0 and issuer != '127.0.0.1':
        for argument, status in (('--if-missing', 0), ('--renew', os.EX_CONFIG), ('--force', 0)):
            assert folder.run('make_cert.py', argument).status == status
        assert certificates(folder)[1].subject == certificate(folder).issuer


# Who trusts which file


TRUSTED = 'registrar.crt', 'registrar-ca.crt', 'last-year.crt'


@pytest.fixture(params=['127.0.0.1', 'rendezvous.example'])
def renewed(request, folder, monkeypatch, start):
    """A server with a renewed certificate: its folder, its port, and for whom it is."""
    aged(folder, monkeypatch, 500, request.param, names_domain='rendezvous.localhost')
    shutil.copy(folder.path / 'registrar.crt', folder.path / 'last-year.crt')
    assert renew(options(folder))
    files = {name: str(folder.path / file) for name, file in NAMES.items()}
    return folder.path, start(rendezvous_host=request.param, **files).port, request.param


@pytest.mark.parametrize('trusted', TRUSTED)
def test_clients_trust_the_next_certificate(renewed, trusted):
    path, port, host = renewed
    file = str(path / trusted)
    for name in (host, 'any.rendezvous.localhost', 'localhost'):
        assert curl(port, name, '--cacert', file) == (0, '401')
        for flags in (0, ssl.VERIFY_X509_STRICT):
            handshake(port, name, file, flags)
    if shutil.which('node'):
        names = host, 'any.rendezvous.localhost', 'localhost'
        assert node(port, file, *names) == dict.fromkeys(names, 'true')


def test_hidden_servers_trust_the_next_certificate(folder, monkeypatch, start):
    aged(folder, monkeypatch, 300)
    ca = entry_files.how_to_reach(options(folder))['ca']
    assert ca == (folder.path / 'registrar.crt').read_text()
    assert renew(options(folder))
    context = ssl.create_default_context(cadata=ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    files = {name: str(folder.path / file) for name, file in NAMES.items()}
    with (
        socket.create_connection(('127.0.0.1', start(**files).port)) as sock,
        context.wrap_socket(sock, server_hostname='127.0.0.1') as tls,
    ):
        shown = tls.getpeercert(binary_form=True)
    assert x509.load_der_x509_certificate(shown) == certificate(folder)


@pytest.fixture
def abused(folder):
    """Signs with a stolen key of the authority for rendezvous.example, for others."""
    folder.pair('rendezvous.example')
    key = load_pem_private_key((folder.path / 'registrar-ca.key').read_bytes(), password=None)
    thief = authority.Authority(certificates(folder)[1], key)

    def abused(host: str) -> None:
        own = load_pem_private_key((folder.path / 'registrar.key').read_bytes(), password=None)
        leaf = thief.sign(host, authority.names_for(host), own.public_key())
        (folder.path / 'registrar.crt').unlink()
        (folder.path / 'registrar.crt').write_bytes(pem_of(leaf, thief.certificate))

    return abused


FOREIGN = {
    'other.example': 'permitted subtree violation',
    'rendezvous.example.other': 'permitted subtree violation',
    'my-rendezvous.example': 'permitted subtree violation',
    '127.0.0.1': 'excluded subtree violation',
    '::1': 'excluded subtree violation',
}


@pytest.mark.parametrize('host', FOREIGN)
def test_authority_is_not_believed_for_others(folder, abused, start, host):
    abused(host)
    ran = verify(folder.path / 'registrar-ca.crt', folder.path / 'registrar.crt')
    assert ran.returncode
    assert FOREIGN[host] in ran.stderr
    if host == 'other.example':
        files = {name: str(folder.path / file) for name, file in NAMES.items()}
        port, file = start(**files).port, str(folder.path / 'registrar-ca.crt')
        assert curl(port, host, '--cacert', file) == (60, '000')
        assert not shutil.which('node') or node(port, file, host) == {host: 'UNSPECIFIED'}


def test_authority_for_an_address_is_not_believed_for_other_addresses():
    constraints = authority.Authority.made('192.0.2.1', authority.names_for('192.0.2.1'))
    for host, permitted in {
        '192.0.2.1': True,
        '192.0.2.2': False,
        '::ffff:192.0.2.1': False,
        'localhost': True,
        'any.LOCALHOST': True,
        'other.example': False,
    }.items():
        (name, *_) = authority.names_for(host)
        assert authority.permits(constraints.certificate, name) == permitted


@pytest.fixture
def browser(tmp_path):
    """Starts a Chromium with an authority that somebody has imported."""
    browsers = []

    def browser(file: Path) -> Browser:
        store = tmp_path / '.pki' / 'nssdb'
        store.mkdir(parents=True)
        for arguments in ('-N --empty-password', f'-A -t C,, -n rendezvous -i "{file}"'):
            command = ['certutil', '-d', f'sql:{store}', *shlex.split(arguments)]
            subprocess.run(command, check=True, capture_output=True, timeout=30)
        browsers.append(Browser(tmp_path, 'MAP * 127.0.0.1'))
        return browsers[-1]

    yield browser
    for each in browsers:
        each.close()


needs_certutil = pytest.mark.skipif(
    not shutil.which('certutil'), reason='there is no certutil here: apt install libnss3-tools'
)


@needs_certutil
def test_chromium_trusts_the_authority_once_it_is_imported(folder, start, browser, uuid):
    host = 'rendezvous.example'
    certificate_files.write_pair(host, *(folder.path / each for each in FILES[:2]), host)
    files = {name: str(folder.path / file) for name, file in NAMES.items()}
    port = start(rendezvous_host=host, **files).port
    chromium = browser(folder.path / 'registrar-ca.crt')
    for name in (host, f'any.{host}'):
        chromium.visit(f'https://{name}:{port}/?rendezvous={uuid}')
        assert 'is not connected' in chromium.text
    chromium.visit(f'https://other.example:{port}/')
    assert 'ERR_CERT_COMMON_NAME_INVALID' in chromium.text


@needs_certutil
def test_chromium_does_not_believe_it_for_others(folder, abused, start, browser):
    abused('other.example')
    files = {name: str(folder.path / file) for name, file in NAMES.items()}
    chromium = browser(folder.path / 'registrar-ca.crt')
    chromium.visit(f'https://other.example:{start(**files).port}/')
    assert 'ERR_CERT_INVALID' in chromium.text
