"""Reads a nedis.db: the file of Redis commands in which node-rendezvous kept its entries.

Commands were only ever appended to it: a later SET of a key replaces an earlier one, a DEL deletes
it. A command is an array of the Redis protocol, or a line of words. What is said of the file names
its lines, never their content: it holds secrets.
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
# A word of a line as Redis reads it: a closing quote ends the word.
_WORD = re.compile(
    rb"""[ \t]*(?: "((?:[^"\\]|\\.)*)" | '((?:[^'\\]|\\.)*)' | ([^\s"']+) )(?=\s|$)""", re.S | re.X
)
_ESCAPE = re.compile(rb'\\(?:x([0-9a-fA-F]{2})|(.))', re.S)
_ESCAPED = {b'n': b'\n', b'r': b'\r', b't': b'\t', b'b': b'\b', b'a': b'\a'}

_Parsed = tuple[list[bytes], int] | None  # the words and where they end; None: no command


class Unreadable(Exception):
    """From the line in `args` on, the file holds no Redis commands."""


class Found(NamedTuple):
    entries: dict[str, tuple[int, dict]]  # by UUID: the line, and the entry
    skipped: list[tuple[int, str]]  # the lines of everything else, and why
    unreadable: int | None  # the line from which on nothing could be read


def read(file: Path) -> Found:
    """The entries that the file ends with, and what else is in it. Raises Unable."""
    try:
        with file.open('rb') as opened:
            octets = opened.read(FILE_BYTES + 1)
    except OSError as error:
        raise Unable(f'cannot read {file}: {error.strerror}') from None
    if len(octets) > FILE_BYTES:
        raise Unable(f'{file} is larger than {FILE_BYTES >> 20} MiB: it is not a nedis.db')
    return find(octets)


def find(octets: bytes) -> Found:
    values: dict[bytes, tuple[int, bytes]] = {}
    skipped: list[tuple[int, str]] = []
    unreadable = None
    try:
        for line, words in commands(octets):
            skipped += _replay(values, line, words)
    except Unreadable as error:
        (unreadable,) = error.args
    entries = {}
    for key, (line, value) in values.items():
        uuid, entry = key.decode(), entry_json.read(value)
        if entry is None or not entry_json.is_sound(entry):
            skipped.append((line, f'the value of {uuid} is not an entry'))
        else:
            entries[uuid] = line, entry
    return Found(entries, sorted(skipped), unreadable)


def _replay(
    values: dict[bytes, tuple[int, bytes]], line: int, words: list[bytes]
) -> Iterator[tuple[int, str]]:
    """Does to `values` what a command did. Yields the lines that have no effect, and why."""
    name, *arguments = words
    is_set = name.upper() == b'SET' and len(arguments) == 2
    if not is_set and name.upper() != b'DEL':
        yield line, 'it is neither SET KEY VALUE nor DEL'
        return
    for key in arguments[:1] if is_set else arguments:
        before = values.pop(key, None)
        if before:
            yield before[0], f'line {line} {"replaces" if is_set else "deletes"} it'
    if is_set and _UUID.fullmatch(arguments[0]):
        values[arguments[0]] = line, arguments[1]
    elif is_set:
        yield line, 'its key is not a UUID in lower case'


def commands(octets: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """The line and the words of each command. Raises Unreadable."""
    at, line = 0, 1
    while at < len(octets):
        parsed = _array(octets, at) if octets.startswith(b'*', at) else _line(octets, at)
        if not parsed:
            raise Unreadable(line)
        words, end = parsed
        if words:
            yield line, words
        line += octets.count(b'\n', at, end)
        at = end


def _array(octets: bytes, at: int) -> _Parsed:
    head = _ARRAY.match(octets, at)
    if not head:
        return None
    words, at = [], head.end()
    for _ in range(int(head[1])):
        bulk = _BULK.match(octets, at)
        if not bulk:
            return None
        end = bulk.end() + int(bulk[1])
        if octets[end : end + 2] != b'\r\n':
            return None
        words.append(octets[bulk.end() : end])
        at = end + 2
    return words, at


def _line(octets: bytes, at: int) -> _Parsed:
    end = octets.find(b'\n', at) + 1 or len(octets)
    line, words, at = octets[at:end].rstrip(), [], 0
    while at < len(line):
        word = _WORD.match(line, at)
        if not word:
            return None  # a quote is not closed
        double, single, bare = word.groups()
        if double is not None:
            words.append(_ESCAPE.sub(_unescaped, double))
        else:
            words.append(bare or single.replace(b"\\'", b"'"))
        at = word.end()
    return words, end


def _unescaped(escape: re.Match[bytes]) -> bytes:
    digits, letter = escape.groups()
    return bytes.fromhex(digits.decode()) if digits else _ESCAPED.get(letter, letter)
