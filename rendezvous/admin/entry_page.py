"""The page of one entry: its state and why, its week, its connections, its files and its secret.

It reads that entry alone, and asks Redis the same number of questions however many others there
are. `changes_page.py` does what its forms say.
"""

from typing import Protocol
from uuid import UUID

from flask import Response
from flask.typing import ResponseReturnValue

from rendezvous.store.entries import Entries
from rendezvous.store.options import Options
from rendezvous.store.state import Server


class Looks(Protocol):
    """What all pages share."""

    def server(self) -> Server:
        """As it was within the last second. Raises StoreDown."""
        ...


class EntryPage:
    """Each public method answers one kind of request, all but `secret` by GET."""

    def __init__(self, entries: Entries, options: Options, looks: Looks):
        self._entries, self._options, self._looks = entries, options, looks

    def entry(self, uuid: UUID, status: int = 200, error: str = '') -> ResponseReturnValue:
        """Everything about one entry, except its secret: /entries/UUID."""
        raise NotImplementedError

    def history(self, uuid: UUID) -> ResponseReturnValue:
        """All rendezvous that are kept, and each hour of the week: /entries/UUID/history."""
        raise NotImplementedError

    def hours(self, uuid: UUID) -> Response:
        """Octets and visits by hours as CSV: /entries/UUID/hours.csv, ?days=7 at most 400."""
        raise NotImplementedError

    def secret(self, uuid: UUID) -> ResponseReturnValue:
        """POST /entries/UUID/secret: as text and as a QR code; no URL shows it a second time."""
        raise NotImplementedError

    def download(self, uuid: UUID, suffix: str) -> Response:
        """/entries/UUID.json and .js: with the entry as it is now."""
        raise NotImplementedError

    def download_pack(self, uuid: UUID) -> Response:
        """/entries/UUID.pyz: the hidden server's end in one file."""
        raise NotImplementedError

    def download_certificate(self) -> Response:
        """/registrar.crt: what clients have to trust. It is not secret."""
        raise NotImplementedError

    def download_authority(self) -> Response:
        """/registrar-ca.crt: phones and browsers import the first certificate of a file."""
        raise NotImplementedError
