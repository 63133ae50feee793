"""What the bench knows of a peer: how it starts in a lab, and then where it serves and as whom.

Each peer has a class with the attributes of `Peer`, in a file of this folder; `bench/__main__.py`
lists them. All serve the same local web server, `lab.http` (plain) and `lab.https` (TLS):

    /         a small file
    /large    1 GB              /eighth, /part    an eighth, a 64th of that
    /sink     takes uploads     /echo             a WebSocket that echoes
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from bench.lab import Lab


@dataclass
class Running:
    """A peer that serves."""

    url: str  # 'https://127.0.0.1:4711/'; http: where its mobile clients have no TLS
    server: list[int]  # pids of what runs on the public machine; their children count, too
    hidden: list[int] = field(default_factory=list)  # and of what runs beside the web server
    headers: list[str] = field(default_factory=list)  # 'Host: abc.t.lab', of each request
    legs: str = 'TLS, TLS'  # what protects the mobile client's leg, and the tunnel's
    digest: str = ''  # the user name for Digest, where there is a 401 first
    # Starts the server's part again, which the bench has killed; returns the new `server` when the
    # tunnel's clients can connect. (Its mobile clients may have no port before one has.)
    again: Callable[[], list[int]] | None = None
    # Starts one more client of the tunnel, which waits: for the memory of one at the server.
    another: Callable[[], object] | None = None


class Peer(Protocol):
    @property
    def name(self) -> str: ...  # in the table: 'OpenSSH -R'
    @property
    def kind(self) -> Literal['ours', 'floor', 'tunnel']: ...
    @property
    def cannot(self) -> dict[str, str]: ...  # a piece of work, 'a' to 'i', and why it has a dash

    def start(self, lab: 'Lab') -> Running: ...
