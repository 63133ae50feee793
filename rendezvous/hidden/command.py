"""The command line of hidden.py: reads its arguments and the entry, and runs until a signal."""

import argparse
import json
import logging
import os
import signal
from pathlib import Path

import gevent
from gevent.event import Event

from rendezvous.hidden.hidden_server import HiddenServer
from rendezvous.hidden.target import EXAMPLES, target
from rendezvous.wire import logs
from rendezvous.wire.background_log import Background
from rendezvous.wire.programs import Mistake

DESCRIPTION = 'Registers at the rendezvous server and pipes to a local HTTP server.'
FINISH_SECONDS = 30  # for pipes to finish after SIGTERM; the rendezvous server gives them as many


def main() -> None:
    """Raises Mistake."""
    parser = argparse.ArgumentParser(description=DESCRIPTION)
    parser.add_argument('entry', type=Path, help='entries/ID.json, as users_app.py made it')
    parser.add_argument('local_server', help=f'where it listens: {EXAMPLES}')
    parser.add_argument(
        '--insecure',
        action='store_true',
        help='take any certificate of an https:// local server, like a self-signed one',
    )
    parser.add_argument(
        '--registrations',
        type=int,
        default=4,
        help='how many connections wait for mobile clients (default: 4)',
    )
    parser.add_argument(
        '--proxy-protocol',
        action='store_true',
        help='tell the local server who asks, by the PROXY protocol version 1; it must expect that',
    )
    arguments = parser.parse_args()
    if arguments.registrations < 1:
        raise Mistake('--registrations must be 1 or more')
    local_server = target(arguments.local_server)._replace(
        is_insecure=arguments.insecure, wants_proxy_line=arguments.proxy_protocol
    )
    if arguments.insecure and not local_server.is_tls:
        raise Mistake('--insecure is for a local server with https://')
    try:
        entry = json.loads(arguments.entry.read_text())
        hidden_server = HiddenServer(entry, local_server, arguments.registrations)
    except Exception as error:  # the file may hold anything
        why = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise Mistake(f'{arguments.entry} is no ID.json of users_app.py: {why}') from None
    logs.to(Background(logging.StreamHandler()))
    run(hidden_server)


def run(hidden_server: HiddenServer) -> None:
    """Returns after a signal, when the pipes are finished."""
    stopping = Event()

    def stop(number: int) -> None:
        if stopping.is_set() and number == signal.SIGINT:
            os._exit(1)  # a second Ctrl-C: somebody does not want to wait
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, stop, number)
    hidden_server.start()
    stopping.wait()
    hidden_server.stop(FINISH_SECONDS)
