"""The commands of users_app.py that show something and change nothing."""

import sys
import time
from collections.abc import Callable

import click

from rendezvous.admin import about, actions, listing, status, summary
from rendezvous.admin.command import (
    Duration,
    columns,
    command,
    entry_argument,
    find_all,
    is_terminal,
    json_option,
    say,
    say_json,
    some_argument,
    who,
)
from rendezvous.admin.listing import ORDERS
from rendezvous.admin.words import Clock
from rendezvous.store import action_log, state
from rendezvous.store.entries import Entries
from rendezvous.store.options import Options
from rendezvous.store.state import NEVER, STATES
from rendezvous.wire import codes

ACTIONS, COUNT = 20, click.IntRange(1, action_log.KEPT)  # that `log` shows


def state_options(function: Callable) -> Callable:
    """An option for each state; `only` has those that are given."""
    for each in reversed(STATES):
        name, what = f'--{each.replace(" ", "-")}', f'Those that are {each}.'
        if each == NEVER:
            what = 'Those that were never seen.'
        add = click.option(name, 'only', flag_value=each, multiple=True, help=what)
        function = add(function)
    return function


@command
@state_options
@click.option(
    '--sort', 'order', type=click.Choice(list(ORDERS)), default='name', help='[default: name]'
)
@json_option
def list_entries(
    entries: Entries, options: Options, only: tuple[str, ...], order: str, as_json: bool
) -> None:
    """Lists the entries, and which hidden servers are online.

    With options for states it lists those that are in one of them. --sort seen: those that were
    online last come first.
    """
    listed = listing.everything(entries, options, state.server(entries))
    chosen = [each for each in listed if not only or each.known.state in only]
    chosen.sort(key=ORDERS[order])
    if as_json:
        say_json([listing.for_programs(each) for each in chosen])
    elif chosen:
        say(listing.table(chosen, columns(), Clock()))
    elif listed:
        click.echo(f'none of the {len(listed)} entries is {" or ".join(only)}', err=True)
    else:
        click.echo('there are no entries yet: users_app.py add LABEL makes one', err=True)


@command
@entry_argument
@click.option('--secret', is_flag=True, help='Show the secret too.')
@json_option
def show(entries: Entries, options: Options, entry: str, secret: bool, as_json: bool) -> None:
    """Shows all about an entry, and why it is not online."""
    clock = Clock(now=time.time())
    found = actions.find_by(entries, entry)
    known = about.find(entries, options, state.server(entries), found, clock)
    if secret:
        actions.secret_left(entries, actions.SECRET_SHOWN, found['uuid'], who())
    if as_json:
        say_json(about.for_programs(known, secret))
    else:
        say(about.lines(known, options, secret, clock))


@command
@json_option
def status_server(entries: Entries, options: Options, as_json: bool) -> None:
    """Shows how the rendezvous server is."""
    clock, server = Clock(now=time.time()), state.server(entries)
    listed = listing.everything(entries, options, server)
    found = status.find(entries, options, server, listed, clock)
    if as_json:
        say_json(status.for_programs(found))
    else:
        say(status.lines(found, options, clock))


@command
@some_argument
@click.option(
    '--offline-for',
    type=Duration(),
    default='0s',
    help='Be silent of what is offline for less: 90s, 10m, 2h or 1d.',
)
def check(entries: Entries, options: Options, chosen: tuple[str, ...], offline_for: float) -> None:
    """Tells what is not well; for cron, and for programs that watch.

    It prints a line for each entry that is refused or offline, or online while something is wrong
    (two machines use its file, say), or one line where the server is not running, and its exit
    status is 1 then. It is 0, and a program gets no output, where all is well. Disabled entries are
    well. Those that were never seen are, too, unless they are named.
    """
    clock, server = Clock(now=time.time()), state.server(entries)
    if chosen:
        some = find_all(entries, chosen)
        listed = [listing.one(entries, options, server, each) for each in some]
    else:
        listed = listing.everything(entries, options, server)
    found = summary.of(options, server, [], clock)
    beside = listing.beside(entries, listed, clock)
    troubles = list(status.troubles(found, listed, beside, bool(chosen), offline_for, clock))
    say(troubles)
    if troubles:
        raise click.exceptions.Exit(1)
    if is_terminal(sys.stdout):
        click.echo(status.well(listed))


@command
@click.argument('entry', metavar='[ENTRY]', default='')
@click.option('-n', 'count', type=COUNT, default=ACTIONS, show_default=True, help='How many.')
@json_option
def log_server(entries: Entries, options: Options, entry: str, count: int, as_json: bool) -> None:
    """Shows what was done, by whom and when; the last comes first.

    The UUID of an entry that was deleted must be whole.
    """
    uuid = entry.strip().lower()
    if uuid and not codes.UUID.fullmatch(uuid):
        uuid = actions.find_by(entries, entry)['uuid']
    found = action_log.last(entries, count, uuid)
    if as_json:
        say_json([each._asdict() for each in found])
    elif found:
        say(listing.done(found, columns(), Clock()))
    else:
        click.echo('nothing was done yet', err=True)
