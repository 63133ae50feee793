"""What a nedis.db holds, the file of Redis commands in which node-rendezvous kept its entries.

It was written to its end only: a later SET of a key stands for an earlier one, a DEL takes it away.
The commands are in the form that Redis programs speak, or each a line of words. Nothing here is
told of what the file holds, but numbers of lines: there are secrets in it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rendezvous.admin.actions import Unable
from rendezvous.store import entry_json

FILE_BYTES = 16 * 1024 * 1024  # over 20,000 changes; it is read into memory

# https://redis.io/docs/latest/develop/reference/protocol-spec/ : an array of bulk strings
_ARRAY = re.compile(rb'\*([0-9]{1,6})\r\n')
_BULK = re.compile(rb'\$([0-9]{1,9})\r\n')
_UUID = re.compile(rb'[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}')
# What Redis takes for a word of a line; a quote ends with the word.
_WORD = re.compile(
    rb"""[ \t]*(?: "((?:[^"\\]|\\.)*)" | '((?:[^'\\]|\\.)*)' | ([^\s"']+) )(?=\s|$)""", re.S | re.X
)
_ESCAPE = re.compile(rb'\\(?:x([0-9a-fA-F]{2})|(.))', re.S)
_ESCAPED = {b'n': b'\n', b'r': b'\r', b't': b'\t', b'b': b'\b', b'a': b'\a'}


class Unreadable(Exception):
    """From this line on it holds no Redis commands."""

    def __init__(self, line: int):
        self.line = line


class Found(NamedTuple):
    entries: dict[str, tuple[int, dict]]  # by UUID: the line, and the entry
    left: list[tuple[int, str]]  # the lines of everything else, and why
    unreadable: int | None  # the line from which on it was


def read(file: Path) -> Found:
    """The entries that are in a file in the end, and what else there is. Raises Unable."""
    try:
        with file.open('rb') as opened:
            octets = opened.read(FILE_BYTES + 1)
    except OSError as error:
        raise Unable(f'cannot read {file}: {error.strerror}') from None
    if len(octets) > FILE_BYTES:
        raise Unable(f'{file} is larger than {FILE_BYTES >> 20} MiB: that is no nedis.db')
    return find(octets)


def find(octets: bytes) -> Found:
    values: dict[bytes, tuple[int, bytes]] = {}
    left: list[tuple[int, str]] = []
    unreadable = None
    try:
        for line, words in commands(octets):
            left += _replay(values, line, words)
    except Unreadable as error:
        unreadable = error.line
    entries = {}
    for key, (line, value) in values.items():
        uuid, entry = key.decode(), entry_json.read(value)
        if entry is None or not entry_json.is_sound(entry):
            left.append((line, f'what it sets {uuid} to is no entry'))
        else:
            entries[uuid] = line, entry
    return Found(entries, sorted(left), unreadable)


def _replay(values: dict, line: int, words: list[bytes]) -> Iterator[tuple[int, str]]:
    """What a command leaves of the entries so far; yields what is to be left, and why."""
    name, *arguments = words
    is_set = name.upper() == b'SET' and len(arguments) == 2
    if not is_set and name.upper() != b'DEL':
        yield line, 'it is neither SET KEY VALUE nor DEL'
        return
    for key in arguments[:1] if is_set else arguments:
        before = values.pop(key, None)
        if before:
            yield before[0], f'line {line} {"sets it anew" if is_set else "deletes it"}'
    if is_set and _UUID.fullmatch(arguments[0]):
        values[arguments[0]] = line, arguments[1]
    elif is_set:
        yield line, 'its key is no UUID in lower case'


def commands(octets: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Each command's line and words; raises Unreadable."""
    at, line = 0, 1
    while at < len(octets):
        parse = _array if octets.startswith(b'*', at) else _line
        words, end = parse(octets, at)
        if end is None:
            raise Unreadable(line)
        if words:
            yield line, words
        line += octets.count(b'\n', at, end)
        at = end


def _array(octets: bytes, at: int) -> tuple[list[bytes], int | None]:
    """The words of the array that begins here and where it ends, or None: it is none."""
    head, words = _ARRAY.match(octets, at), []
    if not head:
        return [], None
    at = head.end()
    for _ in range(int(head[1])):
        bulk = _BULK.match(octets, at)
        if not bulk:
            return [], None
        end = bulk.end() + int(bulk[1])
        if octets[end : end + 2] != b'\r\n':
            return [], None
        words.append(octets[bulk.end() : end])
        at = end + 2
    return words, at


def _line(octets: bytes, at: int) -> tuple[list[bytes], int | None]:
    """The words of the line that begins here and where it ends, or None: a quote does not end."""
    end = octets.find(b'\n', at) + 1 or len(octets)
    line, words, at = octets[at:end].rstrip(), [], 0
    while at < len(line):
        word = _WORD.match(line, at)
        if not word:
            return [], None
        double, single, bare = word.groups()
        if double is not None:
            words.append(_ESCAPE.sub(_unescaped, double))
        else:
            words.append(bare or single.replace(b"\\'", b"'"))
        at = word.end()
    return words, end


def _unescaped(escape: re.Match) -> bytes:
    digits, letter = escape.groups()
    return bytes.fromhex(digits.decode()) if digits else _ESCAPED.get(letter, letter)
