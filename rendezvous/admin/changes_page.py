"""What the forms of the page do, with one entry and with several, and the log of what was done."""

from uuid import UUID

from flask.typing import ResponseReturnValue

from rendezvous.admin.look import Looks
from rendezvous.store.entries import Entries
from rendezvous.store.options import Options

WHATS = 'save', 'disable', 'enable', 'rekey', 'delete', 'clear', 'end'  # with one entry
SEVERAL = 'disable', 'enable', 'rekey', 'delete', 'name', 'pack'  # with several at once

DONE = {}  # what the next page says, by the `done` of its address


class Changes:
    """Each public method answers one kind of request."""

    def __init__(self, entries: Entries, options: Options, looks: Looks):
        self._entries, self._options, self._looks = entries, options, looks

    def create(self) -> ResponseReturnValue:
        """POST /entries."""
        raise NotImplementedError

    def change(self, uuid: UUID, what: str) -> ResponseReturnValue:
        """POST /entries/UUID/WHAT: does what one of the forms of an entry says."""
        raise NotImplementedError

    def several(self) -> ResponseReturnValue:
        """POST /several: asks whether it shall be done, and then does it."""
        raise NotImplementedError

    def log(self) -> ResponseReturnValue:
        """GET /log: what was done, the newest first; of one entry with ?uuid=."""
        raise NotImplementedError
