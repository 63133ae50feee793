"""The rendezvous server: the process. Options, log, TLS, the listening socket, signals."""

import argparse
import ctypes
import gc
import logging
import os
import resource
import signal
import socket
import ssl
import sys
from contextlib import suppress

import gevent
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer

from rendezvous.server import takeover
from rendezvous.server.connection import Rendezvous
from rendezvous.server.limits import ThrottledWarning
from rendezvous.store import options as local
from rendezvous.store.entries import Entries, StoreDown
from rendezvous.store.options import Options
from rendezvous.wire import addresses, logs
from rendezvous.wire.background_log import Background
from rendezvous.wire.programs import HERE, Mistake
from rendezvous.wire.sockets import Ended, keep_watch

log = logging.getLogger('server')

BACKLOG = 1024  # connections that may wait to be accepted; the kernel's own bound is 4096
DESCRIPTORS = 64  # for what is no connection: the log, Redis, files
AGAIN_SECONDS = 1
TRIM_SECONDS = 2  # it takes half a millisecond, and five where there is much to give back
ACCEPTS = 8  # in a turn: each may begin with a handshake, half a millisecond of work
COLLECT_SECONDS = 60  # between two looks for garbage: 40 ms where thousands wait
FINISH_SECONDS = 30  # what pipes may take to finish after SIGTERM
MOVE_SECONDS = 60  # more for registrations that are not with a successor yet
GOODBYE_SECONDS = 2

# What Mozilla calls intermediate: TLS 1.2 with forward secrecy and authenticated encryption, 1.3.
CIPHERS = 'ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL'


class Server:
    """A listening socket and the rendezvous behind it."""

    def __init__(self, options: Options, inherited: socket.socket | None = None):
        self._options = options | {'max_connections': room(options.max_connections)}
        self._inherits = inherited is not None
        self._connections = Pool(None)  # without a bound: those who wait would fill it
        self._entries = Entries(options)
        self._tls = bool(options.key_file)
        context = self._tls and tls_context(options)
        self.rendezvous = Rendezvous(self._options, self._entries, context)
        self._server = Listener(listener(options, inherited), self.rendezvous, self._connections)
        self._greenlets = Pool()
        self.door: takeover.Door | None = None

    @property
    def port(self) -> int:
        return self._server.socket.getsockname()[1]

    def start(self) -> None:
        """Brings up the store where that is ours to do, and serves. Raises Mistake."""
        try:
            self._entries.open()
        except StoreDown as error:
            if self._inherits:  # who runs goes on
                raise
            log.error('%s; until it does, nobody can register', error)
        if not self._tls:
            log.warning('plain HTTP: all seem to have one address, so none has a ration of codes')
        runs = keep_watch, self.rendezvous.follow, self.rendezvous.live.run
        runs += give_memory_back, collect_garbage
        for run in runs:
            self._greenlets.spawn(for_ever, run)
        self._server.start()

    def open_door(self) -> Event:
        """Lets a successor take over; what is set when it has."""
        try:
            told = self.rendezvous.move_next, self.rendezvous.moved
            self.door = takeover.Door(self._server.socket, self._brought, *told)
            return self.door.taken_over
        except OSError as error:
            log.warning('no new server can take over: %s: %s', takeover.PATH, error.strerror)
            return Event()

    def _brought(self, *connection) -> None:
        """A mobile client of our predecessor's: `stop` waits for it as for all."""
        self._connections.spawn(self.rendezvous.handle, *connection).join()

    def reload(self) -> None:
        """Key and certificate are read again, for connections from now on."""
        try:
            self.rendezvous.context = self._tls and tls_context(self._options)
            log.info('read key and certificate again')
        except Exception as error:  # whatever it is, it is no reason to end
            log.error('the old key and certificate stay: %s', error)

    def stop(self, seconds: float = FINISH_SECONDS) -> None:
        """No new connections; pipes may finish for so many seconds; then goodbye on each."""
        if self.door:
            self.door.close()
        self._server.close()
        if self.door and self.door.taken_over.is_set():
            moving = gevent.spawn(self.rendezvous.move)
        else:
            moving = None
            self.rendezvous.stop()
        self._connections.join(timeout=seconds)
        if moving:
            moving.join(timeout=MOVE_SECONDS)
        for greenlet in list(self._connections):
            greenlet.kill(Ended, block=False)
        self._connections.join(timeout=GOODBYE_SECONDS)
        self._greenlets.kill()
        with suppress(StoreDown):
            self.rendezvous.live.write({})
        self._entries.close()


def for_ever(run) -> None:
    """Begins again where it ends for a reason that nobody thought of: nobody would notice."""
    while True:
        try:
            run()
        except Exception:
            log.exception('%s ended, and begins again', run.__qualname__)
        gevent.sleep(AGAIN_SECONDS)


def give_memory_back() -> None:
    """glibc keeps what a crowd has left behind, unless it is told; other libcs do not."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    gevent.sleep(TRIM_SECONDS)


def collect_garbage() -> None:
    """In cycles of references, of all ages: when we choose, and not whenever many have come."""
    gevent.sleep(COLLECT_SECONDS)
    gc.collect()


def room(max_connections: int) -> int:
    """As many connections, or as many as there are descriptors for; raises our limit for them."""
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if max_connections + DESCRIPTORS <= most:
        return max_connections
    log.warning('max_connections is %d, for %d descriptors', most - DESCRIPTORS, most)
    log.warning('ulimit -n, or LimitNOFILE= in the unit, is how many descriptors there may be')
    return most - DESCRIPTORS


class Listener(StreamServer):
    """Accepts connections; where descriptors are used up it makes room and tries again soon."""

    max_delay = 0.1  # seconds between two tries; the first are sooner
    max_accept = ACCEPTS

    def __init__(self, sock, rendezvous: Rendezvous, connections: Pool):
        super().__init__(sock, rendezvous.handle, spawn=connections)
        self._rendezvous, self._complain = rendezvous, ThrottledWarning()

    def do_read(self):
        try:
            return super().do_read()
        except OSError as error:
            if self.is_fatal_error(error):
                raise
            self._rendezvous.limits.evict()
            self._complain('cannot accept a connection: %s', error.strerror)
            # The one exception for which gevent prints no traceback; it pauses as for any.
            raise gevent.GreenletExit from None


def listener(options: Options, inherited: socket.socket | None = None) -> socket.socket:
    """The listening socket: the inherited one where it is the same. Raises Mistake."""
    host, port = options.listen_host, options.rendezvous_port
    if host is None:
        loopback = addresses.is_loopback(options.rendezvous_host)
        host = options.rendezvous_host if loopback else '::'
    dual = host == '::' and socket.has_dualstack_ipv6()
    if host == '::' and not dual:
        host = '0.0.0.0'  # this machine has no IPv6
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if inherited and _is_at(inherited, *address[:2]):
            return inherited
        if inherited:
            inherited.close()
        return socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=dual)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno > 0 else error.strerror
        raise Mistake(
            f'cannot listen on {host}, port {port}: {why}; '
            'set rendezvous_port or listen_host in local.py, or end what listens there'
        ) from None


def _is_at(sock: socket.socket, host: str, port: int) -> bool:
    at_host, at_port = sock.getsockname()[:2]
    return at_host == host and port in (at_port, 0)


def tls_context(options: Options) -> ssl.SSLContext:
    """The context for key_file and crt_file; the log says what clients will refuse it for.

    Raises Mistake.
    """
    key_file, crt_file = map(local.path_of, (options.key_file, options.crt_file))
    for file in (key_file, crt_file):
        if not (os.access(file, os.R_OK) and file.is_file()):
            raise Mistake(f'cannot read {file}: {local.MAKE_CERT} makes it, or set it in local.py')
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(['http/1.1'])
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
    # A client that only sends never reads its tickets: its close() is an RST then, and what it sent
    # is lost. A full handshake costs hardly more than a resumed one with a P-256 key.
    context.num_tickets = 0
    try:
        context.load_cert_chain(crt_file, key_file, password='')  # nobody is here to type one in
        pem = crt_file.read_text('ascii', 'ignore')  # what stands between the PEM may be any text
    except (OSError, ValueError) as error:
        reason = getattr(error, 'reason', None) or 'it has a password, or is no PEM file'
        sentence = f'{key_file} and {crt_file} do not go together ({reason})'
        raise Mistake(f'{sentence}: {local.MAKE_CERT} --force makes a new pair') from None
    if key_file.stat().st_mode & 0o007:
        raise Mistake(f'every user of this machine may read {key_file}: chmod 400 {key_file}')
    complaint = what_clients_say(context, pem, options.rendezvous_host)
    if complaint:
        log.error('EVERY CLIENT WILL REFUSE %s: %s', crt_file, complaint)
        log.error('%s --force makes one for rendezvous_host', local.MAKE_CERT)
    return context


def what_clients_say(context: ssl.SSLContext, pem: str, host: str) -> str | None:
    """What a client that trusts this certificate finds wrong with it: a handshake in memory."""
    client_context = ssl.create_default_context(cadata=pem)
    client_context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=host)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
    return None


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()  # there are none: any is a mistake
    os.umask(0o077)
    os.chdir(HERE)
    options = local.load()
    handlers = [logs.file(HERE / 'server.log')]
    if sys.stderr.isatty():
        handlers.append(logging.StreamHandler())
    logs.to(*map(Background, handlers))
    sys.excepthook = lambda *error: log.critical('the server dies', exc_info=error)
    try:
        serve(options)
    except Mistake as mistake:
        if not sys.stderr.isatty():  # there it is said anyhow
            log.critical('%s', mistake)
        raise


def serve(options: Options) -> None:
    """Until a signal ends it, or a successor has taken over. Raises Mistake."""
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, 1_000_000_000)  # collect_garbage looks at the old
    gc.freeze()  # what is there now stays
    predecessor = takeover.predecessor()
    server, stopping = Server(options, predecessor and predecessor.listener), Event()

    def stop(number: int) -> None:
        if stopping.is_set() and number == signal.SIGINT:
            os._exit(1)  # Ctrl-C, and again: somebody does not want to wait
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, stop, number)
    gevent.signal_handler(signal.SIGHUP, server.reload)
    server.rendezvous.predecessor = predecessor
    server.start()
    # bin/run.sh waits for that. It can fail, so it comes before the predecessor's door is replaced.
    (HERE / 'server.pid').write_text(f'{os.getpid()}\n')
    server.open_door().rawlink(lambda _: stopping.set())
    if predecessor:
        predecessor.let_go()
    log.info('listening on port %d of %s', server.port, options.rendezvous_host)
    stopping.wait()
    log.info('stopping: pipes may take %d seconds to finish', FINISH_SECONDS)
    server.stop()
    log.info('stopped')
