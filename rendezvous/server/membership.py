"""Who is a node: whoever knows the secret. Both ends of a link prove it by TLS 1.3.

From the secret each worker has the same key and the same certificate, presents it, and trusts it
alone. The signature (RFC 8446 section 4.4.3) is the proof: it is made anew for each connection and
covers its key exchange, so that nothing can be replayed or passed on. A resumed session proves that
its first one was proved (section 2.2), and costs half as much.

A process of its own makes key and certificate: its library takes 20 MB, and they are needed once.
"""

import logging
import os
import secrets
import ssl
import subprocess
import sys
from typing import NamedTuple

from redis import Redis

from rendezvous.store import keys
from rendezvous.store.entries import Entries
from rendezvous.store.options import TOKENS
from rendezvous.wire.programs import HERE

log = logging.getLogger('nodes')

NAME = 'rendezvous-node'  # in the certificate
MAKE_SECONDS = 30  # it takes half a second; a machine that starts is busy
SECRET_BYTES = 32


class Contexts(NamedTuple):
    """Of TLS, for the two ends of a link."""

    asks: ssl.SSLContext
    answers: ssl.SSLContext


class Membership:
    """The secret, as it is now, and what follows from it."""

    def __init__(self, entries: Entries, secret: str):
        """`secret`: that of local.py, or '': that in Redis, where the first node puts one."""
        self._entries, self._is_given, self._secret = entries, bool(secret), secret
        self.contexts: Contexts | None = None  # None: it is not known yet, and there are no links

    def look(self) -> None:
        """Takes the secret that is in Redis, and puts it back where that has lost it.

        Raises StoreDown, OSError and ValueError.
        """
        secret = self._secret if self._is_given else self._entries.ask(self._shared)
        if secret == self._secret and self.contexts:
            return
        if len(secret) < TOKENS['node_secret']:
            raise ValueError(f'the secret in Redis is too short: DEL {keys.NODE_SECRET}')
        made = contexts(secret)
        if self.contexts:
            log.warning('Redis has another secret of the nodes now: this node has it, too')
        self._secret, self.contexts = secret, made

    def _shared(self, redis: Redis) -> str:
        found = redis.get(keys.NODE_SECRET)
        if found is None:
            mine = self._secret or secrets.token_urlsafe(SECRET_BYTES)
            redis.set(keys.NODE_SECRET, mine, nx=True)
            found = redis.get(keys.NODE_SECRET)
        return str(found or '')


def contexts(secret: str) -> Contexts:
    """Raises OSError and ValueError."""
    command = [sys.executable, str(HERE / 'make_cert.py'), '--node']
    try:
        made = subprocess.run(  # neither a file nor an argument has the secret or the key
            command, input=secret.encode(), capture_output=True, timeout=MAKE_SECONDS
        )
    except subprocess.TimeoutExpired:  # its text may hold what it was given
        raise TimeoutError(f'make_cert.py took over {MAKE_SECONDS} s') from None
    if made.returncode:
        said = made.stderr.decode(errors='replace').strip().splitlines()
        raise ValueError(f'make_cert.py failed: {said[-1] if said else made.returncode}')
    return Contexts(
        _context(ssl.PROTOCOL_TLS_CLIENT, made.stdout),
        _context(ssl.PROTOCOL_TLS_SERVER, made.stdout),
    )


def _context(side: int, pem: bytes) -> ssl.SSLContext:
    """That trusts this certificate and no other one."""
    made = ssl.SSLContext(side)
    made.minimum_version = made.maximum_version = ssl.TLSVersion.TLSv1_3
    made.verify_mode = ssl.CERT_REQUIRED
    made.options &= ~ssl.OP_NO_TICKET
    if side == ssl.PROTOCOL_TLS_SERVER:
        # In TLS 1.3 it says that sessions are kept here, and a ticket is a number of one: a ticket
        # that holds a session costs as much to read as the rest of the handshake.
        made.options |= ssl.OP_NO_TICKET
        made.num_tickets = 1
    memory = os.memfd_create('node')  # OpenSSL takes a key from a file alone
    try:
        os.write(memory, pem)
        made.load_cert_chain(f'/proc/self/fd/{memory}')
    finally:
        os.close(memory)
    made.load_verify_locations(cadata=pem[pem.index(b'-----BEGIN CERT') :].decode())
    return made
