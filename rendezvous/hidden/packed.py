"""The hidden server's end in one file: a .pyz has this as its __main__.py."""

import sys

# Any Python understands this file, so it has no annotations and no f-strings.
if sys.version_info < (3, 11):  # noqa: UP036
    this = sys.version.split()[0]
    sys.stderr.write(sys.argv[0] + ': Python 3.11 or newer is needed, and this is ' + this + '\n')
    sys.exit(78)

import functools
import json
import pkgutil

from rendezvous.hidden import packages
from rendezvous.wire import programs


def resource(name):
    """A file that `users_app.py pack` has put beside the modules."""
    return (pkgutil.get_data('rendezvous.hidden', name) or b'').decode()


with programs.ending_by_mistakes():
    packages.find(resource('packages.txt').split())

from gevent import monkey

monkey.patch_all()

from rendezvous.hidden import command

if __name__ == '__main__':
    programs.main(functools.partial(command.main, json.loads(resource('entry.json'))))
