"""What administrators did, on the page or in the shell: who, when, to which entry.

Redis keeps it in a list of JSON, the newest first. There is no secret in it.
"""

import json
import time
from typing import Any, NamedTuple

from redis import Redis

from rendezvous.store import entry_json
from rendezvous.store.entries import Entries
from rendezvous.store.entry_json import TEXT, number, text_in

LOG = 'log'
KEPT = 2000  # actions, some 400 kB

# Where another program wrote something else under that key, nothing is noted: the action is done,
# and that it cannot be noted is no reason to say otherwise.
_NOTE = """
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'list' or kind == 'none' then
  redis.call('LPUSH', KEYS[1], ARGV[1])
  redis.call('LTRIM', KEYS[1], 0, ARGV[2] - 1)
end
"""


class Action(NamedTuple):
    """What somebody did to an entry."""

    what: str  # 'renamed'
    when: float  # seconds since 1970
    uuid: str
    label: str  # as it was then
    who: str  # 'page, session 3f2a' or 'shell, alice'
    detail: str  # '' where `what` says it all


def note(entries: Entries, what: str, uuid: str, label: str, who: str, detail: str = '') -> None:
    """Writes down that it was done just now. Raises StoreDown."""
    action = Action(what, time.time(), uuid, label[:TEXT], who[:TEXT], detail[:TEXT])
    text = json.dumps(action._asdict())
    entries.ask(lambda redis: redis.eval(_NOTE, 1, LOG, text, KEPT))


def last(entries: Entries, count: int = KEPT, uuid: str = '') -> list[Action]:
    """The last actions, the newest first; `uuid`: those of one entry alone. Raises StoreDown."""

    def read(redis: Redis) -> Any:
        if redis.type(LOG) != 'list':
            return []
        return redis.lrange(LOG, 0, KEPT - 1 if uuid else count - 1)

    actions = map(_action, entries.ask(read))
    return [each for each in actions if each and uuid in ('', each.uuid)][:count]


def _action(text: str) -> Action | None:
    row = entry_json.read(text) or {}
    when = number(row.get('when'))
    if when is None:
        return None
    return Action(
        text_in(row.get('what')),
        when,
        *(text_in(row.get(name)) for name in ('uuid', 'label', 'who', 'detail')),
    )
