"""local.py: what it may say, and what the real server says where it says something else."""

import os
import re
import runpy
import socket
import subprocess
import sys
import venv
from typing import NamedTuple

import gevent
import pytest
import self_signed
from conftest import ROOT, until
from gevent.pool import Pool
from programs import Folder, Ran, free_port, listens

from rendezvous.server.listening import listener
from rendezvous.store import options as local
from rendezvous.store.options import DEFAULTS
from rendezvous.wire import addresses
from rendezvous.wire.programs import Mistake

EXAMPLE = ROOT / 'local.example.py'
NOT_ROOT = ('setpriv', '--bounding-set=-dac_override,-dac_read_search')  # reads as others do


def test_example_shows_each_option_with_its_default():
    options = runpy.run_path(str(EXAMPLE))['options']
    assert list(options.items()) == list(vars(DEFAULTS).items())


def test_example_has_a_comment_above_each_option():
    shown = re.findall(r"(.*)\n    '(\w+)': ", EXAMPLE.read_text())
    assert [name for _, name in shown] == local.NAMES
    assert [name for above, name in shown if not re.match('    # .', above)] == []


def test_example_is_accepted():
    assert local.load(EXAMPLE) == DEFAULTS


def test_option_that_is_left_out_keeps_its_default(tmp_path):
    file = tmp_path / 'local.py'
    file.write_text("options = {'drain': 0.5}")
    assert local.load(file) == DEFAULTS | {'drain': 0.5}


@pytest.mark.parametrize('name', ['redis_port', 'redis_auth'])
def test_local_py_of_an_earlier_version_may_leave_out_redis_host(tmp_path, name):
    file = tmp_path / 'local.py'
    file.write_text(f'options = {{{name!r}: {getattr(DEFAULTS, name)!r}}}')
    assert local.load(file).redis_host == '127.0.0.1'


class Case(NamedTuple):
    sentence: str  # what it says, a regular expression
    options: dict = {}  # noqa: RUF012 (nobody changes it)
    text: str | None = None  # of local.py
    prepare: object = None  # is called with the folder


def hide(name: str):
    return lambda folder: (folder.path / name).chmod(0)


def lock_up(folder) -> None:
    locked = folder.path / 'locked'
    locked.mkdir()
    (folder.path / 'registrar.key').rename(locked / 'registrar.key')
    locked.chmod(0)


def lose(name: str):
    return lambda folder: (folder.path / name).unlink()


def fill(name: str, octets: bytes):
    def prepare(folder) -> None:
        (folder.path / name).unlink()
        (folder.path / name).write_bytes(octets)
        (folder.path / name).chmod(0o600)

    return prepare


def swap_key(folder) -> None:
    key, _ = self_signed.pair()
    fill('registrar.key', key)(folder)


def lock_key(folder) -> None:
    from cryptography.hazmat.primitives import serialization as forms

    pem = (folder.path / 'registrar.key').read_bytes()
    key = forms.load_pem_private_key(pem, password=None)
    locked = key.private_bytes(
        forms.Encoding.PEM,
        forms.PrivateFormat.PKCS8,
        forms.BestAvailableEncryption(b'swordfish'),
    )
    fill('registrar.key', locked)(folder)


CASES = {
    'there is no local.py': Case(
        r'^there is no local\.py: cp local\.example\.py local\.py', prepare=lose('local.py')
    ),
    'local.py may not be read': Case(
        r'^cannot read .*/local\.py: Permission denied; let this user read it$',
        prepare=hide('local.py'),
    ),
    'a brace is missing': Case(r"'\{' was never closed \(local.py, line 1\)", text='options = {'),
    'it raises': Case(r'cannot be read: ZeroDivisionError: ', text='1 / 0'),
    'it exits': Case(r'cannot be read: SystemExit: 0; write', text='raise SystemExit(0)'),
    'it sets no options': Case(r'must set options = \{\.\.\.\}', text='Options = {}'),
    'its options are a list': Case(r'must set options = \{\.\.\.\}', text='options = []'),
    'an option that there is not': Case(
        r"no option 'port'; there are rendezvous_host, rendezvous_port, ", {'port': 1}
    ),
    'a number as domain': Case(
        r"names_domain must be a string or None, for example 'rendezvous\.example\.com'$",
        {'names_domain': 5},
    ),
    'a URL as host': Case(
        r"rendezvous_host must be an IP address or a DNS name, for example '127\.0\.0\.1'$",
        {'rendezvous_host': 'https://rendezvous.example/'},
    ),
    'a port too high': Case(r'rendezvous_port must be from 0 to 65535', {'rendezvous_port': 65536}),
    'an empty file name': Case(
        r"key_file must not be empty; for example 'registrar\.key'", {'key_file': ''}
    ),
    'no key': Case(
        r'cannot read .*/registrar\.key: \.venv/bin/python make_cert\.py makes it',
        prepare=lose('registrar.key'),
    ),
    'no certificate': Case(
        r'cannot read .*/registrar\.crt: \.venv/bin/python make_cert\.py makes it',
        prepare=lose('registrar.crt'),
    ),
    'a key that may not be read': Case(
        r'cannot read .*/registrar\.key: let this user read it, or set it in local\.py$',
        prepare=hide('registrar.key'),
    ),
    'a key that everybody may read': Case(
        r'every user of this machine may read (.*/registrar\.key): chmod 400 \1$',
        prepare=lambda folder: (folder.path / 'registrar.key').chmod(0o444),
    ),
    'a key in a folder that may not be entered': Case(
        r'cannot read .*/locked/registrar\.key: let this user read it, or set it in local\.py$',
        {'key_file': 'locked/registrar.key'},
        prepare=lock_up,
    ),
    'a folder for a key': Case(r'cannot read /tmp: .* set it in local\.py$', {'key_file': '/tmp'}),
    'key and certificate the other way round': Case(
        r'registrar\.key is not a certificate in a PEM file: ',
        {'key_file': 'registrar.crt', 'crt_file': 'registrar.key'},
    ),
    'a certificate that may not be read': Case(
        r'cannot read .*/registrar\.crt: ', prepare=hide('registrar.crt')
    ),
    'a key that does not fit': Case(
        r'do not go together \(KEY_VALUES_MISMATCH\): \.venv/bin/python make_cert\.py --force',
        prepare=swap_key,
    ),
    'a key with a password': Case(
        r'the key in .*/registrar\.key cannot be read \(it has a password, or is not in a PEM '
        r'file\): \.venv/bin/python make_cert\.py --force',
        prepare=lock_key,
    ),
    'a key that is garbage': Case(
        r'the key in .*/registrar\.key cannot be read .*: \.venv/bin/python make_cert\.py --force',
        prepare=fill('registrar.key', os.urandom(500)),
    ),
    'a certificate that is garbage': Case(
        r'registrar\.crt is not a certificate .*: \.venv/bin/python make_cert\.py --force',
        prepare=fill(
            'registrar.crt',
            b'-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n',
        ),
    ),
    'a password that everybody may read': Case(
        r'every user of this machine may read redis_auth: chmod 600 local\.py$',
        {'redis_auth': 'secret'},
        prepare=lambda folder: (folder.path / 'local.py').chmod(0o644),
    ),
} | {
    f'{name} is a {type(value).__name__}': Case(
        rf'local\.py: {name} must be {kind}, for example \S+$', {name: value}
    )
    for name, (value, kind) in {
        'rendezvous_host': (127, 'a string'),
        'rendezvous_port': ('8899', 'a whole number'),
        'listen_host': (b'::', 'a string or None'),
        'key_file': (False, 'a string or None'),
        'crt_file': (None, 'a string'),
        'redis_host': (127, 'a string or None'),
        'redis_port': (True, 'a whole number'),
        'redis_auth': (1234, 'a string'),
        'workers': (2.0, 'a whole number or None'),
        'max_waiting': (32.0, 'a whole number'),
        'rendezvous_wait': ('10', 'a number'),
        'drain': (True, 'a number'),
    }.items()
}


@pytest.fixture(scope='module')
def endings(tmp_path_factory) -> dict[str, tuple[Ran, bool]]:
    """How server.py ended in each case, and whether it ever listened: a few run at a time."""

    def run(case: Case) -> tuple[Ran, bool]:
        port = free_port()
        with Folder(tmp_path_factory.mktemp('case'), rendezvous_port=port) as folder:
            folder.pair()
            folder.set(**case.options)
            if case.text is not None:
                (folder.path / 'local.py').write_text(case.text)
            if case.prepare:
                case.prepare(folder)
            heard = []
            listening = gevent.spawn(lambda: heard.append(until(lambda: listens(port), 'it', 60)))
            try:
                ran = folder.run('server.py', under=NOT_ROOT if os.geteuid() == 0 else ())
            except subprocess.TimeoutExpired:
                ran = Ran(0, '', 'it serves')
            listening.kill()
            return ran, bool(heard)

    return dict(zip(CASES, Pool(3).map(run, CASES.values()), strict=True))


@pytest.mark.parametrize('name', CASES)
def test_mistake_is_one_sentence_and_nothing_listens(endings, name):
    ran, listened = endings[name]
    assert re.search(CASES[name].sentence, ran.sentence())
    assert not listened


def test_address_that_may_come_later_is_worth_another_start(folder):
    folder.set(listen_host='192.0.2.1')
    sentence = folder.run('server.py').sentence(os.EX_TEMPFAIL)
    assert re.match(r'cannot listen on 192\.0\.2\.1, port \d+: .*set rendezvous_port', sentence)


@pytest.mark.parametrize(
    ('host', 'status'), [('192.0.2.1', os.EX_TEMPFAIL), ('no-such-name.invalid', None)]
)
def test_node_host_that_is_not_of_this_machine_is_said(folder, redis_options, host, status):
    """Without a name server nobody knows whether the name exists."""
    folder.set(**redis_options, node_host=host, node_port=free_port())
    ran = folder.run('server.py')
    assert ran.status in ([status] if status else [os.EX_TEMPFAIL, os.EX_CONFIG])
    sentence = ran.sentence(ran.status)
    why = '; node_host must be an address of this machine, or a name that leads to one'
    assert re.match(rf'cannot listen on {re.escape(host)}, port \d+: .*{why}$', sentence)


def test_port_in_use_is_one_sentence(folder):
    with socket.create_server(('127.0.0.1', 0)) as other:
        folder.set(rendezvous_port=other.getsockname()[1])
        sentence = folder.run('server.py').sentence()
    assert re.match(r'cannot listen on 127\.0\.0\.1, port \d+: Address already in use', sentence)
    assert 'set rendezvous_port or listen_host in local.py, or end what listens there' in sentence


def test_port_of_a_worker_that_is_about_to_end_is_waited_for():
    other = socket.create_server(('127.0.0.1', 0))
    port = other.getsockname()[1]
    gevent.spawn_later(0.05, other.close)  # as a worker does whose parent was killed
    with listener(DEFAULTS | {'rendezvous_port': port}) as found:
        assert found.getsockname()[1] == port


def mistake(tmp_path, text: str) -> str:
    """What options.load says of it: a sentence, on one line."""
    file = tmp_path / 'local.py'
    file.write_text(text)
    with pytest.raises(Mistake) as raised:
        local.load(file)
    assert str(raised.value).isprintable()
    return str(raised.value)


@pytest.mark.parametrize(
    ('text', 'why'),
    [
        ('options = {}\0', 'null bytes'),
        ('options = {\n"drain": é é}', r'SyntaxError: .* \(local\.py, line 2\)'),
        (r'raise ValueError("a\nb")', 'ValueError: a b'),
        ('import nothing', "No module named 'nothing'"),
        ('def again(): again()\nagain()', 'RecursionError: '),
        ('import sys; sys.exit()', 'SystemExit:'),
    ],
)
def test_local_py_that_can_not_be_read_is_told_why(tmp_path, text, why):
    sentence = mistake(tmp_path, text)
    assert re.match(
        f'local.py cannot be read: .*{why}.*; write it as local.example.py is written$', sentence
    )


TEXTS = 'rendezvous_host', 'listen_host', 'key_file', 'crt_file', 'redis_host', 'redis_auth'
TEXTS += 'page_host', 'names_domain', 'page_url', 'metrics_token'
TEXTS += 'redis_url', 'node_host', 'node_secret'
WHOLE = {
    'rendezvous_port': (0, 65535),
    'redis_port': (1, 65535),
    'node_port': (1, 65471),
    'wrong_codes_per_address': (0, 1000),
    'wrong_codes_per_day': (0, 1000),
    'unknown_per_minute': (0, 100_000),
    'max_connections': (8, 1_000_000),
    'workers': (1, 64),
    'max_connections_per_address': (0, 1_000_000),
    'max_pipes_per_address': (0, 1_000_000),
    'max_waiting': (1, 100_000),
}
NUMBERS = {'rendezvous_wait': (0, 3600), 'drain': (0, 3600)}
SWITCHES = ('proxy_protocol',)


def test_each_option_has_its_row_here():
    assert {*TEXTS, *WHOLE, *NUMBERS, *SWITCHES} == set(local.NAMES)


@pytest.mark.parametrize(
    ('name', 'value'),
    [(name, value) for name in TEXTS for value in (1, 1.5, True, b'x', ['x'])]
    + [(name, value) for name in WHOLE for value in ('1', 1.0, True, b'1', [1])]
    + [(name, None) for name in WHOLE if name != 'workers']
    + [(name, value) for name in NUMBERS for value in ('1', True, False, None, [1])]
    + [(name, value) for name in SWITCHES for value in ('True', 1, 0, 1.0, None)]
    + [
        (name, None) for name in TEXTS if getattr(DEFAULTS, name) is not None and name != 'key_file'
    ],
)
def test_ill_typed_value_is_named_with_an_example(tmp_path, name, value):
    sentence = mistake(tmp_path, f'options = {{{name!r}: {value!r}}}')
    kind = 'a (string|whole number)( or None)?|a number|True or False'
    assert re.match(rf"local\.py: {name} must be ({kind}), for example ('|\d|False)", sentence)


@pytest.mark.parametrize(
    ('name', 'expression'),
    [(n, str(v)) for n, (least, most) in WHOLE.items() for v in (least - 1, most + 1, -(10**30))]
    + [(n, e) for n in NUMBERS for e in ('-1', '3600.1', '1e999', '1e999 - 1e999')],
)
def test_value_out_of_range_is_told_the_range(tmp_path, name, expression):
    least, most = (WHOLE | NUMBERS)[name]
    sentence = mistake(tmp_path, f'options = {{{name!r}: {expression}}}')
    assert sentence == f'local.py: {name} must be from {least} to {most}'


@pytest.mark.parametrize('name', [*WHOLE, *NUMBERS])
def test_both_ends_of_the_range_are_in_it(tmp_path, name):
    for value in (WHOLE | NUMBERS)[name]:
        (tmp_path / 'local.py').write_text(f'options = {{{name!r}: {value}}}')
        assert getattr(local.load(tmp_path / 'local.py'), name) == value


@pytest.mark.parametrize('name', SWITCHES)
@pytest.mark.parametrize('value', [True, False])
def test_switch_is_on_or_off(tmp_path, name, value):
    (tmp_path / 'local.py').write_text(f'options = {{{name!r}: {value}}}')
    assert getattr(local.load(tmp_path / 'local.py'), name) is value


@pytest.mark.parametrize(
    'name',
    ['rendezvous_host', 'listen_host', 'names_domain', 'redis_host', 'page_host', 'node_host'],
)
@pytest.mark.parametrize(
    'host',
    [
        *('', ' ', '*', '127.0.0.1 ', 'a.b:8899', '[::1]', 'http://a.b', 'a..b', 'a.b.', '-a.b'),
        *('1.2.3', '1.2.3.256', 'a_b-.c', 'bücher.example', 'a' * 64, 'a\nb', 'a\0b', '::1%\n'),
        *('\u212aitchen.example', '\u017ferver.example'),  # k and s to a regex that ignores case
    ],
)
def test_host_that_is_none_is_refused(tmp_path, name, host):
    assert name in mistake(tmp_path, f'options = {{{name!r}: {host!r}}}')


@pytest.mark.parametrize(
    'host',
    [
        *('192.0.2.1', '::', 'fd00::2', 'FD00::2'),
        *(
            'localhost',
            'rendezvous.example',
            'RENDEZVOUS.Example',
            'my_redis',
            '3com.com',
            'a' * 63,
        ),
    ],
)
def test_addresses_and_names_are_hosts(tmp_path, host):
    (tmp_path / 'local.py').write_text(f'options = {{"redis_host": {host!r}}}')
    assert local.load(tmp_path / 'local.py').redis_host == host


@pytest.mark.parametrize('domain', ['localhost', '192.0.2.1', '::1', 'com', '*.example.com'])
def test_domain_for_which_no_client_takes_a_wildcard_is_refused(tmp_path, domain):
    sentence = mistake(tmp_path, f'options = {{"names_domain": {domain!r}}}')
    example = "for example 'rendezvous.example.com'"
    assert sentence == f'local.py: names_domain must be a DNS name with a dot in it, {example}'


@pytest.mark.parametrize('name', ['key_file', 'crt_file', 'redis_auth'])
@pytest.mark.parametrize('text', ['secret\n', 'a\0b', '\udcff'])
def test_text_that_was_read_with_its_line_break_is_refused(tmp_path, name, text):
    sentence = mistake(tmp_path, f'options = {{{name!r}: {text!r}}}')
    assert sentence == f'local.py: {name} must be without line breaks and control characters'


@pytest.mark.parametrize(
    ('url', 'origin', 'prefix'),
    [
        ('https://admin.example.com', 'https://admin.example.com', ''),
        ('https://admin.example.com/', 'https://admin.example.com', ''),
        ('https://Admin.Example.com:443/a', 'https://admin.example.com', '/a'),
        (
            'https://admin.example.com:8443/a/b-c_d.e/',
            'https://admin.example.com:8443',
            '/a/b-c_d.e',
        ),
        ('https://192.0.2.1/rendezvous/', 'https://192.0.2.1', '/rendezvous'),
        ('https://[2001:db8::1]:8443/', 'https://[2001:db8::1]:8443', ''),
    ],
)
def test_page_url_is_an_origin_and_perhaps_a_path(tmp_path, url, origin, prefix):
    (tmp_path / 'local.py').write_text(f'options = {{"page_url": {url!r}}}')
    options = local.load(tmp_path / 'local.py')
    assert (options.page_origin, options.page_prefix) == (origin, prefix)


def test_without_page_url_there_is_no_origin_and_no_path():
    assert (DEFAULTS.page_origin, DEFAULTS.page_prefix) == ('', '')


@pytest.mark.parametrize(
    'url',
    [
        *('', 'admin.example.com', 'http://admin.example.com/', 'https:///', 'https://', '//a.b/'),
        *(
            'https://user@a.b/',
            'https://a.b/?q',
            'https://a.b/#f',
            'https://a.b/c d',
            ' https://a.b',
        ),
        *(
            'https://a.b:x/',
            'https://a.b:0/',
            'https://a.b:99999/',
            'https://a.b:/',
            'https://a..b/',
        ),
        *(
            'https://a.b//c',
            'https://a.b/../c',
            'https://a.b/.',
            'https://a.b/%2e',
            'https://a.b/é',
        ),
        *('https://::1/', 'https://a.b/\n', 'https://a.b\\c', 'https://*.b/', 'https://a.b/c;d'),
    ],
)
def test_page_url_that_is_none_is_refused_with_an_example(tmp_path, url):
    sentence = mistake(tmp_path, f'options = {{"page_url": {url!r}}}')
    what = 'must be https://, a host and perhaps a port and a path'
    assert sentence == f"local.py: page_url {what}, for example 'https://admin.example.com/'"


@pytest.mark.parametrize('token', ['', 'x' * 20, 'aZ09-._~+/' * 2, 'x' * 19 + '=', 'x' * 500])
def test_metrics_token_is_long_or_none(tmp_path, token):
    file = tmp_path / 'local.py'
    file.write_text(f'options = {{"metrics_token": {token!r}}}')
    file.chmod(0o640)
    assert local.load(file).metrics_token == token


@pytest.mark.parametrize(
    'token', ['x', 'x' * 19, 'x' * 20 + ' ', 'x' * 20 + '\n', 'é' * 20, '=' * 20, 'x' * 20 + '"']
)
def test_metrics_token_that_is_short_or_no_token_is_refused_and_not_told(tmp_path, token):
    sentence = mistake(tmp_path, f'options = {{"metrics_token": {token!r}}}')
    assert sentence.startswith('local.py: metrics_token must be at least 20 letters, digits and ')
    assert sentence.endswith(f' prints: {local.MAKE_TOKEN}')
    assert token * 5 not in sentence


@pytest.mark.parametrize('name', ['metrics_token', 'redis_auth', 'node_secret'])
def test_secret_that_everybody_may_read_is_refused(tmp_path, name):
    file = tmp_path / 'local.py'
    file.write_text(f'options = {{{name!r}: "{"x" * 32}"}}')
    file.chmod(0o644)
    with pytest.raises(Mistake) as raised:
        local.load(file)
    sentence = f'every user of this machine may read {name}: chmod 600 local.py'
    assert str(raised.value) == sentence


@pytest.mark.parametrize('name', ['key_file', 'crt_file'])
def test_file_name_must_not_be_empty(tmp_path, name):
    assert 'must not be empty' in mistake(tmp_path, f'options = {{{name!r}: ""}}')


@pytest.mark.parametrize(
    ('host', 'domain', 'ends', 'complaint'),
    [
        ('rendezvous.example', None, None, 'rendezvous_host: IP address mismatch'),
        ('127.0.0.1', None, -0.1, 'rendezvous_host: certificate has expired'),
        ('127.0.0.1', 'names.example', None, 'names_domain: Hostname mismatch'),
    ],
)
def test_certificate_that_clients_will_refuse_is_said_loudly_and_served(
    folder, host, domain, ends, complaint
):
    folder.pair(host)
    folder.set(names_domain=domain)
    if ends:
        self_signed.write(folder.path, ends=ends)
    _, port = folder.serve()
    assert re.search(
        rf' ERROR EVERY CLIENT WILL REFUSE .*/registrar\.crt for {complaint}', folder.log()
    )
    assert folder.log().count('EVERY CLIENT WILL REFUSE') == 1  # of all processes, one says it
    assert '.venv/bin/python make_cert.py --force' in folder.log()
    assert listens(port)


def test_certificate_that_is_right_is_not_complained_about(folder):
    folder.serve()
    assert 'ERROR' not in folder.log()


@pytest.mark.parametrize(
    ('rendezvous_host', 'listen_host', 'addresses'),
    [
        ('127.0.0.1', None, ['127.0.0.1']),
        ('127.8.9.1', None, ['127.8.9.1']),
        ('::1', None, ['::1']),
        ('192.0.2.7', None, ['127.0.0.1', '127.8.9.1', '::1']),
        ('rendezvous.example', None, ['127.0.0.1', '127.8.9.1', '::1']),
        ('rendezvous.example', '127.0.0.1', ['127.0.0.1']),
        ('rendezvous.example', '0.0.0.0', ['127.0.0.1', '127.8.9.1']),
        ('127.0.0.1', '::1', ['::1']),
    ],
)
def test_it_listens_where_it_should_and_nowhere_else(rendezvous_host, listen_host, addresses):
    given = {'rendezvous_host': rendezvous_host, 'listen_host': listen_host, 'rendezvous_port': 0}
    with listener(DEFAULTS | given) as sock:
        all_of_them = ['127.0.0.1', '127.8.9.1', '::1']
        assert [each for each in all_of_them if reaches(sock, each)] == addresses


def reaches(sock: socket.socket, address: str) -> bool:
    """Whether a connection to this address arrives at `sock`, not at another program's there."""
    try:
        with socket.create_connection((address, sock.getsockname()[1]), timeout=1) as client:
            sock.settimeout(0)  # on loopback it has arrived
            accepted, peer = sock.accept()
            accepted.close()
            return peer[1] == client.getsockname()[1]
    except OSError:
        return False


@pytest.mark.parametrize('name', ['localhost', 'LocalHost', 'rendezvous.localhost', 'A.LocalHost'])
def test_localhost_is_this_machine_alone(name):
    given = {'rendezvous_host': name, 'rendezvous_port': 0}
    with listener(DEFAULTS | given) as sock:
        assert addresses.is_loopback(sock.getsockname()[0])


@pytest.fixture(scope='module')
def bare(tmp_path_factory):
    """A Python without the packages, as that of the system is."""
    path = tmp_path_factory.mktemp('bare')
    venv.create(path)
    return path / 'bin' / 'python'


@pytest.mark.parametrize('program', ['server.py', 'hidden.py', 'users_app.py', 'make_cert.py'])
def test_python_without_the_packages_goes_on_in_venv_or_says_how_to_make_one(folder, bare, program):
    def helped() -> subprocess.CompletedProcess:
        run = {'cwd': folder.path, 'capture_output': True, 'text': True, 'timeout': 30}
        return subprocess.run([bare, program, '--help'], **run)

    (folder.path / '.venv').unlink()
    without = helped()
    assert (without.returncode, without.stdout) == (os.EX_CONFIG, '')
    sentence = rf'{program}: its packages are not installed: .*pip install .*\n'
    assert re.fullmatch(sentence, without.stderr)
    (folder.path / '.venv').symlink_to(sys.prefix)
    ran = helped()
    assert (ran.returncode, ran.stdout.lower().startswith('usage: ')) == (0, True), ran


def test_server_that_is_asked_for_something_tells_that_it_takes_nothing(folder):
    serving, port = folder.serve()
    ran = folder.run('server.py', '--port', '1')
    assert (ran.status, 'unrecognized arguments' in ran.stderr) == (2, True)
    assert listens(port)
    assert serving.process.poll() is None
