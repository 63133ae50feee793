"""What the commands of users_app.py have in common: the store, whom they are about, who asks."""

import functools
import getpass
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

import click

from rendezvous.admin import actions, listing
from rendezvous.admin.actions import Unable, Who
from rendezvous.store import entry_json, state
from rendezvous.store import options as local
from rendezvous.store.entries import Entries
from rendezvous.store.entry_json import Json
from rendezvous.wire.programs import HERE

_UNITS = {'s': 1, 'm': 60, 'h': 3600, 'd': 86_400}  # in seconds
_LONGEST_SECONDS = 400 * 86_400  # no more is kept of the past


def command(function: Callable[..., None]) -> click.Command:
    """Makes a function a command. It is given the entries, the options and its arguments."""

    @functools.wraps(function)
    def run(**arguments: Any) -> None:
        options = local.load()
        entries = Entries(options)
        try:
            entries.open()
            function(entries, options, **arguments)
        finally:
            entries.close()

    name = function.__name__.partition('_')[0]  # as in `list_entries`
    return click.command(name)(run)


class Duration(click.ParamType):
    """`90s`, `10m`, `2h` or `1d`, in seconds."""

    name = 'duration'

    def convert(self, value: Any, param: click.Parameter | None, context: Any) -> float:
        if isinstance(value, int | float):
            return value
        found = re.fullmatch('([0-9]{1,9})([smhd])', value, re.A)
        if not found:
            self.fail(f'{value!r} is not a time like 90s, 10m, 2h or 1d', param, context)
        return min(int(found[1]) * _UNITS[found[2]], _LONGEST_SECONDS)


entry_argument = click.argument('entry', metavar='ENTRY')
entries_argument = click.argument('chosen', metavar='ENTRY...', nargs=-1, required=True)
some_argument = click.argument('chosen', metavar='[ENTRY...]', nargs=-1)
yes_option = click.option('--yes', is_flag=True, help='Do not ask.')
json_option = click.option('--json', 'as_json', is_flag=True, help='Print JSON.')
digits_option = functools.partial(click.option, '--digits', type=click.IntRange(6, 8))


def who() -> Who:
    """Who gives the command, for the log of changes; behind sudo, who called it."""
    try:
        user = os.environ.get('SUDO_USER') or getpass.getuser()
    except (KeyError, OSError):  # the user has no name
        user = str(os.getuid())
    return Who('shell', entry_json.printable(user))


def find_all(entries: Entries, texts: Iterable[str]) -> list[Json]:
    """The entries that are meant, each once. Raises Unable where one of them is not found."""
    found = [actions.find_by(entries, text) for text in texts]
    return list({entry['uuid']: entry for entry in found}.values())


def each_of(found: Sequence[Json], do: Callable[[Json], None]) -> None:
    """Does the same with several entries. Where it cannot be done with one, it is done with the
    others all the same, and the exit status is 1.
    """
    undone = 0
    for entry in found:
        try:
            do(entry)
        except Unable as error:
            if len(found) == 1:
                raise
            error.show()
            undone += 1
    if undone:
        raise Unable(f'{len(found) - undone} of {len(found)} done')


def ask(entries: Entries, texts: Iterable[str], question: tuple[str, str], yes: bool) -> list[Json]:
    """The entries that are meant. Shows what will end, and asks on a terminal.

    `question` is for one, and for several as a format of how many. Raises Unable, UsageError or
    Abort.
    """
    if not yes and not is_terminal(sys.stdin):
        raise click.UsageError('there is no terminal to ask on: confirm with --yes')
    found, server = find_all(entries, texts), state.server(entries)
    for entry in found:
        known = state.known_of(entries, server, entry['uuid'])
        click.echo(listing.ending(entry, known), err=True)
    if not yes:
        one, several = question
        text = one if len(found) == 1 else several.format(len(found))
        click.confirm(text, abort=True, err=True)
    return found


def is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()  # None if it is closed


def columns() -> int | None:
    """How wide the terminal is; None: the output goes to a file or a program."""
    return shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None


def show_files(files: Path) -> None:
    """What the files of an entry are for, and how one is made of them."""
    python, hidden, app = (
        _here(HERE / name) for name in ('.venv/bin/python', 'hidden.py', 'users_app.py')
    )
    json_file = _here(files.with_suffix('.json'))
    click.echo(f'{files}.json  for: {python} {hidden} {json_file} 127.0.0.1:8000')
    click.echo(f"{files}.js  for a program in Node.js beside it: require('./{files.name}').params")
    click.echo(f'One file with all that the hidden server needs: {python} {app} pack {files.name}')
    click.echo('Copy one of the three there. It holds the secret: keep it private.')


def _here(path: Path) -> str:
    """A path as a shell has it that is where this program was started."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def say(lines: Iterable[str]) -> None:
    """Prints lines, if there are any."""
    if text := '\n'.join(lines):
        click.echo(text)


def say_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))
