"""Heads: any octets give a head, "more" or a refusal, and how they are split changes nothing."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from http_head import HEAD_BYTES, REQUEST_LINE_BYTES, HeadReader, Refusal


def read(*chunks: bytes):
    """What the chunks give: (head, rest), None for more, or the status of a refusal."""
    reader = HeadReader()
    try:
        for index, chunk in enumerate(chunks):
            found = reader.feed(chunk)
            if found:
                head, rest = found
                return head, rest + b''.join(chunks[index + 1 :])
    except Refusal as refusal:
        return refusal.status
    return None


def octet_by_octet(octets: bytes):
    return read(*(octets[i : i + 1] for i in range(len(octets))))


GOOD = {
    'plain': b'GET / HTTP/1.1\r\nHost: x\r\n\r\n',
    'one empty line before it': b'\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n',
    'http/1.0 without host': b'GET / HTTP/1.0\r\n\r\n',
    'any method': b"M-SEARCH!#$%&'*+.^_`|~ / HTTP/1.1\r\nHost: x\r\n\r\n",
    'asterisk': b'OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n',
    'absolute target': b'GET https://x/y?z HTTP/1.1\r\nHost: x\r\n\r\n',
    'empty host': b'GET / HTTP/1.1\r\nHost:\r\n\r\n',
    'ipv6 host': b'GET / HTTP/1.1\r\nHost: [::1]:8899\r\n\r\n',
    'spaces round a value': b'GET / HTTP/1.1\r\nHost: \t x \t\r\n\r\n',
    'obs-text and tabs in a value': b'GET / HTTP/1.1\r\nHost: x\r\nX: a\t\xe9\xff\r\n\r\n',
    'empty value': b'GET / HTTP/1.1\r\nHost: x\r\nX:\r\n\r\n',
    'length': b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n',
    'chunked': b'POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n',
    'connect without host': b'CONNECT uuid:x HTTP/1.1\r\n\r\n',
    'connect with host': b'CONNECT uuid:x HTTP/1.1\r\nHost: x:1\r\n\r\n',
}

HEAD = b'GET / HTTP/1.1\r\nHost: x\r\n'
BAD = {
    'bare LF in the request line': (b'GET / HTTP/1.1\nHost: x\r\n\r\n', 400),
    'bare LF behind a field': (HEAD + b'A: b\nC: d\r\n\r\n', 400),
    'bare CR': (HEAD + b'A: b\rC: d\r\n\r\n', 400),
    'CR CR LF': (HEAD + b'A: b\r\r\n\r\n', 400),
    'NUL': (HEAD + b'A: b\0\r\n\r\n', 400),
    'escape': (HEAD + b'A: \x1b[2J\r\n\r\n', 400),
    'delete': (HEAD + b'A: \x7f\r\n\r\n', 400),
    'obs-fold': (HEAD + b'A: b\r\n c\r\n\r\n', 400),
    'fold before the first field': (b'GET / HTTP/1.1\r\n Host: x\r\n\r\n', 400),
    'space before the colon': (HEAD + b'A : b\r\n\r\n', 400),
    'no colon': (HEAD + b'A\r\n\r\n', 400),
    'no name': (HEAD + b': b\r\n\r\n', 400),
    'name that is no token': (HEAD + b'A(: b\r\n\r\n', 400),
    'name with a letter of no token': (HEAD + b'\xc3\xa4: b\r\n\r\n', 400),
    'two empty lines before it': (b'\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n', 400),
    'HTTP/0.9': (b'GET /\r\n', 400),
    'two spaces': (b'GET  / HTTP/1.1\r\n', 400),
    'space at the end': (b'GET / HTTP/1.1 \r\n', 400),
    'space at the start': (b' GET / HTTP/1.1\r\n', 400),
    'tab between': (b'GET\t/\tHTTP/1.1\r\n', 400),
    'space in the target': (b'GET /a b HTTP/1.1\r\n', 400),
    'target not in ASCII': (b'GET /\xc3\xa4 HTTP/1.1\r\n', 400),
    'method that is no token': (b'G(T / HTTP/1.1\r\n', 400),
    'version in lower case': (b'GET / http/1.1\r\n', 400),
    'version of two digits': (b'GET / HTTP/1.10\r\n', 400),
    'version without minor': (b'GET / HTTP/2\r\n', 400),
    'HTTP/2 preface': (b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 505),
    'HTTP/1.2': (b'GET / HTTP/1.2\r\n', 505),
    'HTTP/0.9 written out': (b'GET / HTTP/0.9\r\n', 505),
    'TLS record': (b'\x16\x03\x01\x02\x00\x01\x00', 400),
    'no host': (b'GET / HTTP/1.1\r\n\r\n', 400),
    'two hosts': (HEAD + b'Host: x\r\n\r\n', 400),
    'two hosts in HTTP/1.0': (b'GET / HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n', 400),
    'host with a space': (b'GET / HTTP/1.1\r\nHost: x y\r\n\r\n', 400),
    'host with a path': (b'GET / HTTP/1.1\r\nHost: x/y\r\n\r\n', 400),
    'two lengths': (HEAD + b'Content-Length: 5\r\nContent-Length: 5\r\n\r\n', 400),
    'list of lengths': (HEAD + b'Content-Length: 5, 5\r\n\r\n', 400),
    'signed length': (HEAD + b'Content-Length: +5\r\n\r\n', 400),
    'negative length': (HEAD + b'Content-Length: -5\r\n\r\n', 400),
    'hexadecimal length': (HEAD + b'Content-Length: 0x5\r\n\r\n', 400),
    'length with an underscore': (HEAD + b'Content-Length: 1_0\r\n\r\n', 400),
    'length in other digits': (HEAD + b'Content-Length: \xd9\xa5\r\n\r\n', 400),
    'empty length': (HEAD + b'Content-Length:\r\n\r\n', 400),
    'huge length': (HEAD + b'Content-Length: ' + b'9' * 19 + b'\r\n\r\n', 400),
    'length and chunked': (HEAD + b'Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n', 400),
    'two codings': (HEAD + b'Transfer-Encoding: gzip, chunked\r\n\r\n', 400),
    'chunked twice': (HEAD + b'Transfer-Encoding: chunked\r\n' * 2 + b'\r\n', 400),
    'other coding': (HEAD + b'Transfer-Encoding: identity\r\n\r\n', 400),
    'vertical tab before chunked': (HEAD + b'Transfer-Encoding: \x0bchunked\r\n\r\n', 400),
    'chunked in HTTP/1.0': (b'POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n', 400),
    'request line too long': (b'GET /' + b'a' * REQUEST_LINE_BYTES, 414),
    'request line without end and too long': (b'a' * (REQUEST_LINE_BYTES + 1), 414),
    'field too long': (HEAD + b'A: ' + b'b' * HEAD_BYTES, 431),
    'too many fields': (HEAD + b'A: b\r\n' * 3000, 431),
}


@pytest.mark.parametrize('octets', GOOD.values(), ids=GOOD)
@pytest.mark.parametrize('behind', [b'', b'\r\n', b'behind\0'])
def test_good_head_comes_out_as_it_went_in(octets, behind):
    head, rest = read(octets + behind)
    assert head.octets() == octets.removeprefix(b'\r\n')
    assert rest == behind
    assert octet_by_octet(octets + behind) == (head, rest)


@pytest.mark.parametrize(('octets', 'status'), BAD.values(), ids=BAD)
@pytest.mark.parametrize('behind', [b'', b'behind\r\n\r\n'])
def test_bad_head_is_refused(octets, status, behind):
    assert read(octets + behind) == status
    assert octet_by_octet(octets + behind) == status


@pytest.mark.parametrize('octets', GOOD.values(), ids=GOOD)
def test_head_that_is_cut_short_needs_more(octets):
    for end in range(len(octets)):
        assert read(octets[:end]) is None


def test_longest_request_line_and_longest_head_are_taken():
    line = b'GET /%s HTTP/1.1' % (b'a' * (REQUEST_LINE_BYTES - 14))
    assert len(line) == REQUEST_LINE_BYTES
    octets = line + b'\r\nHost: x\r\nA: '
    octets += b'b' * (HEAD_BYTES - len(octets) - 4) + b'\r\n\r\n'
    assert len(octets) == HEAD_BYTES
    head, rest = read(octets)
    assert (head.octets(), rest) == (octets, b'')
    assert read(octets.replace(b'A: ', b'A: b')) == 431
    assert read(octets.replace(b'/', b'/a', 1)) == 414


@pytest.mark.parametrize(
    ('lines', 'count'),
    [(b'', 0), (b'Content-Length: 007\r\n', 7), (b'Transfer-Encoding: chunked\r\n', None)],
)
def test_how_long_the_body_is(lines, count):
    head, _ = read(HEAD + lines + b'\r\n')
    assert head.body_bytes == count


PIECES = st.sampled_from(
    [
        b'GET',
        b'CONNECT',
        b' ',
        b'/',
        b'*',
        b'HTTP/1.1',
        b'HTTP/1.0',
        b'HTTP/2.0',
        b'\r\n',
        b'\r',
        b'\n',
        b'\0',
        b'\t',
        b':',
        b': 5',
        b'Host: x',
        b'Host: x\r\n\r\n',
        b'Content-Length',
        b'Transfer-Encoding: chunked',
        b'Authorization: Digest username=x',
        b'GET / HTTP/1.1\r\n',
        b'CONNECT uuid:x HTTP/1.1\r\n',
        b'a',
        b'\xff',
        b'a' * 8000,
    ]
)
OCTETS = st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=12).map(b''.join))


@given(OCTETS, st.data())
@example(b'GET / HTTP/1.1\r\r\n', None)
def test_any_octets_in_any_split_give_the_same(octets, data):
    whole = read(octets)
    assert octet_by_octet(octets) == whole
    if data:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=5)))
        ends = [*cuts, len(octets)]
        starts = [0, *cuts]
        assert read(*(octets[a:b] for a, b in zip(starts, ends, strict=True))) == whole
    if isinstance(whole, tuple):
        head, rest = whole
        assert (head.octets() + rest) == octets.removeprefix(b'\r\n')
    else:
        assert whole in (None, 400, 414, 431, 505)


TOKENS = st.text("!#$%&'*+-.^_`|~0129azAZ", min_size=1, max_size=8).map(str.encode)
VALUES = st.binary(max_size=20).map(
    lambda octets: bytes(o for o in octets if o == 9 or (o >= 32 and o != 127))
)
NAMES = TOKENS.filter(lambda name: name.lower() not in (b'host', b'authorization'))


@given(TOKENS, st.lists(st.tuples(NAMES, VALUES), max_size=5), st.integers(0, 5), st.binary())
def test_what_is_passed_on_differs_by_the_one_line(method, fields, index, behind):
    lines = [name + b':' + value + b'\r\n' for name, value in fields]
    named = b'aUthorization:\t DIGEST username=x \r\n'
    start, host = method + b' /x HTTP/1.1\r\n', b'hOST:x\r\n'
    with_it = [*lines[:index], named, *lines[index:]]
    head, rest = read(b''.join([start, host, *with_it, b'\r\n', behind]))
    (field,) = (field for field in head.fields if field.name == 'authorization')
    assert head.octets(less=field) == b''.join([start, host, *lines, b'\r\n'])
    assert rest == behind
