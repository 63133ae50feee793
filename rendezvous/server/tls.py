"""The server's side of TLS: versions, ciphers, key and certificate, and what clients say to it."""

import logging
import ssl
from contextlib import suppress
from pathlib import Path

from rendezvous.store import options as local
from rendezvous.store.options import Options
from rendezvous.wire.programs import Mistake

log = logging.getLogger('tls')

# What Mozilla calls intermediate: TLS 1.2 with forward secrecy and authenticated encryption, 1.3.
# Python 3.11 can set no list of groups for the key exchange, nor of ciphers of TLS 1.3: openssl.cnf
# has them.
CIPHERS = 'ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL'


def context(options: Options) -> ssl.SSLContext | None:
    """The context for key_file and crt_file; None where key_file is None, for plain HTTP.

    Raises Mistake.
    """
    if options.key_file is None:
        return None
    key_file, crt_file = map(local.path_of, (options.key_file, options.crt_file))
    for file in (key_file, crt_file):
        local.check_readable(file)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers(CIPHERS)
    made.set_alpn_protocols(['http/1.1'])
    made.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
    # A client that only sends never reads its tickets: its close() is an RST then, and what it sent
    # is lost. A full handshake costs hardly more than a resumed one with a P-256 key.
    made.num_tickets = 0
    try:
        made.load_cert_chain(crt_file, key_file, password='')  # nobody is here to type one in
    except (OSError, ValueError) as error:
        sentence = _what_is_wrong(error, key_file, crt_file)
        raise Mistake(f'{sentence}: {local.MAKE_CERT} --force makes a new pair') from None
    if key_file.stat().st_mode & 0o007:
        raise Mistake(f'every user of this machine may read {key_file}: chmod 400 {key_file}')
    return made


def _what_is_wrong(error: Exception, key_file: Path, crt_file: Path) -> str:
    """OpenSSL gives a reason for a pair that it can read, and none for what it cannot."""
    if reason := getattr(error, 'reason', None):
        return f'{key_file} and {crt_file} do not go together ({reason})'
    try:
        ssl.create_default_context(cafile=crt_file)
    except OSError:
        return f'{crt_file} is not a certificate in a PEM file'
    return f'the key in {key_file} cannot be read (it has a password, or is not in a PEM file)'


def check(options: Options) -> None:
    """Tries key and certificate in a handshake; the log says what clients will refuse them for.

    Raises Mistake.
    """
    made = context(options)
    if made is None:
        return
    key_file, crt_file = map(local.path_of, (str(options.key_file), options.crt_file))
    pem = crt_file.read_text('ascii', 'ignore')  # what stands between the PEM may be any text
    hosts = {'rendezvous_host': options.rendezvous_host}
    if options.names_domain:
        hosts['names_domain'] = f'any-name.{options.names_domain}'
    for option, host in hosts.items():
        try:
            complaint = _what_clients_say(made, pem, host)
        except ssl.SSLError as error:
            sentence = f'no client can use the key in {key_file} ({error.reason or error})'
            raise Mistake(f'{sentence}: {local.MAKE_CERT} --force makes a new pair') from None
        if complaint:
            log.error('EVERY CLIENT WILL REFUSE %s for %s: %s', crt_file, option, complaint)
            return log.error('%s --force makes one for it, which all clients need', local.MAKE_CERT)


def _what_clients_say(context: ssl.SSLContext, pem: str, host: str) -> str | None:
    """What a client that trusts this certificate finds wrong with it: a handshake in memory.

    Raises ssl.SSLError where the two find no way to talk.
    """
    client_context = ssl.create_default_context(cadata=pem)
    client_context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=host)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client):
        with suppress(ssl.SSLWantReadError):
            try:
                side.do_handshake()
            except ssl.SSLCertVerificationError as error:
                return error.verify_message
    return None
