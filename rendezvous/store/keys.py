"""The keys in Redis. In a Redis Cluster all keys of one UUID are in one slot, and so are those that
a script uses together: the part in braces decides (Redis Cluster specification, "Hash tags").

An entry's key is its UUID alone, without braces: it has the same slot as the others of that UUID.
state.py and rations.py say what the other keys hold.
"""

HISTORY_OF = 'changes', 'hours', 'rendezvous', 'refusals'  # what is kept of an entry, see `of`
STATE, PLACES, GUESSES = 'state', 'at', 'guesses'  # see `of`, too
SERVERS, HEARD, OUTAGES = 'servers', 'heard:{servers}', 'outages:{servers}'
ADDRESSES, LATEST = 'guesses:{addresses}', 'latest:{addresses}'  # of wrong codes
GONE = 'gone:{servers}'
CLEARED = 'cleared:{addresses}'  # of those that no longer count
NAMES = 'names'
NODE_SECRET = 'node-secret'
ALL = 'all'  # in place of a UUID: all hidden servers together


def of(kind: str, uuid: str) -> str:
    """The key of that kind of a UUID, or of ALL."""
    return f'{kind}:{{{uuid}}}'


def live(worker: str) -> str:
    """The hash of a worker."""
    return f'live:{{{worker}}}'


def batch(worker: str) -> str:
    """The number of its last batch."""
    return f'batch:{{{worker}}}'
