"""What is done to each answer before it is sent: a tag that says whether it is the same as before,
and compression.

Each page that updates itself has an ETag. page.js remembers it and asks with If-None-Match, so
nothing is sent again while nothing has changed. The caches of browsers keep nothing of these pages
(no-store), so they never ask so by themselves.

What is compressed: pages that anybody may see who has logged in, the metrics, and static files.
What is not: an answer to a POST, which may show a secret, or what was typed; downloads, which hold
secrets; the login. The length of a compressed answer would tell a secret to whoever can have texts
of theirs put beside it (BREACH). So a page that shows words of its URL is not compressed either,
and the tokens of forms are other ones in each answer.
"""

import gzip
import re
from hashlib import blake2b

from flask import Response, request, session

PAGES = 'index', 'entry', 'history', 'log'  # are asked for again and again
COMPRESSED = *PAGES, 'metrics', 'static'
LEAST_BYTES = 1000  # less fits into a packet anyway
LEVEL = 5  # of 60 kB 10 are left, after a millisecond

# Differs in each answer, and means the same.
_RANDOM = re.compile(rb'(name="(?:token|made_up)" value=")[^"]*')


def finish(response: Response) -> Response:
    """To be called last of all."""
    endpoint, reads = request.endpoint, request.method in ('GET', 'HEAD')
    if not reads or response.status_code != 200:
        return response
    if endpoint in PAGES:
        response.set_etag(_digest(response.get_data()), weak=True)
        response.make_conditional(request)
    if endpoint in COMPRESSED and response.status_code == 200 and 'q' not in request.args:
        _compress(response)
    return response


def _digest(page: bytes) -> str:
    # After another login it is another one: the forms of a page need the token of that.
    key = session.get('id', '').encode()
    return blake2b(_RANDOM.sub(rb'\1', page), key=key, digest_size=12).hexdigest()


def _compress(response: Response) -> None:
    response.vary.add('Accept-Encoding')
    if not request.accept_encodings['gzip']:
        return
    response.direct_passthrough = False  # a file
    page = response.get_data()
    if len(page) < LEAST_BYTES:
        return
    response.set_data(gzip.compress(page, LEVEL, mtime=0))
    response.headers['Content-Encoding'] = 'gzip'
    tag, _ = response.get_etag()
    if tag:
        response.set_etag(tag, weak=True)  # it has the same meaning, and other octets
