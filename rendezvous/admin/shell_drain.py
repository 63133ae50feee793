"""The command of users_app.py that has a node of the server drained, and shows how far it is."""

import sys
import time
from collections.abc import Iterator

import click

from rendezvous.admin import actions, nodes
from rendezvous.admin.actions import Unable
from rendezvous.admin.command import command, is_terminal, who
from rendezvous.admin.words import plural
from rendezvous.store import questions, state
from rendezvous.store.entries import Entries
from rendezvous.store.entry_json import printable
from rendezvous.store.options import Options
from rendezvous.store.state import Server, Worker

LOOK_SECONDS = 1
OTHERS = 'mobile client or other connection', 'mobile clients and other connections'
ALONE = 'no other node lives: nobody can register or visit until one is started'


@command
@click.argument('node', metavar='NODE')
@click.option('--yes', is_flag=True, help='Do not ask, where no other node lives.')
def drain_node(entries: Entries, options: Options, node: str, yes: bool) -> None:
    """Has a node leave, so that no request is lost.

    New connections go to other nodes then, and it ends with its last connection, however long that
    takes. The command shows how many are left; Ctrl-C ends the command, and not the drain. NODE is
    its name, as `status` shows it. SIGUSR1 to its process does the same.
    """
    server = state.server(entries)
    parents = {_parent(each) for each in _workers(server, node)}
    if len(parents) == len({_parent(each) for each in server.workers}) and not yes:
        _ask_alone()
    actions.noted(entries, actions.DRAINED, '', '', who(), node)
    click.echo(f'{node} is being drained; Ctrl-C ends this command, and not the drain', err=True)
    for line in _left(entries, parents):
        click.echo(f'{node}: {line}')


def _workers(server: Server, node: str) -> list[Worker]:
    """Raises Unable where there are none."""
    found = nodes.by_name(server.workers)
    if node not in found:
        known = ', '.join(sorted(map(printable, found)))
        lives = f'these live: {known}' if known else 'none lives'
        raise Unable(f'there is no node {node}; {lives}')
    return found[node]


def _parent(worker: Worker) -> tuple[str, int, float]:
    """Of one that was started again it is another one, and of a new version the same."""
    return worker.node, worker.pid, worker.since


def _ask_alone() -> None:
    """Raises UsageError or Abort."""
    if not is_terminal(sys.stdin):
        raise click.UsageError(f'{ALONE}: confirm with --yes')
    click.confirm(f'{ALONE}. Drain it?', abort=True, err=True)


def _left(entries: Entries, parents: set[tuple[str, int, float]]) -> Iterator[str]:
    """What is left, as often as that changes, until nothing is. Raises StoreDown."""
    before = ''
    while names := [
        each.name for each in state.server(entries).workers if _parent(each) in parents
    ]:
        registrations, others = questions.drain(entries, names)
        line = f'{plural(registrations, "registration")}, {plural(others, *OTHERS)} left'
        if line != before:
            yield line
        before = line
        time.sleep(LOOK_SECONDS)
    yield 'it has ended'
