"""`users_app.py link`: a fresh login link for a page that runs, as a service or in a terminal.

The page listens on a Unix socket in data/, which is closed to other users, and answers each
connection with a link. So no code is ever in a file, in Redis or in the journal: it goes from the
memory of the one process to the terminal of the other, and both must belong to the same user (or
to root). Redis would not do: whoever may write there could let themselves in.
"""

from collections.abc import Callable

from gevent.server import StreamServer


def listen(port: int, make: Callable[[], str]) -> StreamServer:
    """The page's side: `make` gives a link that works once. The caller closes it at the end."""
    raise NotImplementedError


def make_link() -> str:
    """The shell's side: a link for the page that runs here. Raises Unable or Mistake."""
    raise NotImplementedError
