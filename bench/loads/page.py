"""A web page as a browser loads it: sixty requests over six connections; how many of them fail.

    python bench/loads/page.py URL [--requests 60] [--connections 6] [--pages 5]
                                   [--header 'NAME: VALUE']

Each connection makes one request after the other, and is made anew where the server closes it after
an answer. A request fails if its answer is not a 200 with the same body as the others, or does not
come in time. Prints one line of JSON. The certificate is not verified: the tests do that.
"""

import argparse
import http.client
import json
import ssl
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from urllib.parse import urlsplit

SECONDS = 20  # for each read
PAUSE_SECONDS = 0.5  # between two pages


class Browser:
    """The connections of a browser to one server, and what was seen on them."""

    def __init__(self, arguments: argparse.Namespace):
        self._url, self._connections = urlsplit(arguments.url), arguments.connections
        self._fields = dict(each.split(': ', 1) for each in arguments.header)
        self._context = ssl.create_default_context()
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        self._bodies: Counter[bytes] = Counter()
        self.bad: Counter[str] = Counter()
        self.made = 0  # connections
        self.took: list[float] = []  # seconds, of each request
        self.pages: list[float] = []  # seconds, of each page

    def load(self, requests: int) -> None:
        """The whole page; all its connections are closed at the end."""
        began, left = time.monotonic(), iter(range(requests))
        with ThreadPoolExecutor(self._connections) as pool:
            list(pool.map(self._ask_on, repeat(left, self._connections)))
        self.pages.append(time.monotonic() - began)

    def _ask_on(self, left: Iterator[int]) -> None:
        """One connection: takes the next request of the page until none is left."""
        connection = self._connection()
        for _ in left:
            began = time.monotonic()
            self.made += connection.sock is None
            try:
                self._ask(connection)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.bad[str(error) or type(error).__name__] += 1
                connection.close()
            self.took.append(time.monotonic() - began)
        connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or '', self._url.port
        if self._url.scheme == 'http':
            return http.client.HTTPConnection(host, port, timeout=SECONDS)
        return http.client.HTTPSConnection(host, port, timeout=SECONDS, context=self._context)

    def _ask(self, connection: http.client.HTTPConnection) -> None:
        target = self._url._replace(scheme='', netloc='', fragment='').geturl() or '/'
        connection.request('GET', target, headers=self._fields)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise ValueError(f'{answer.status} {answer.reason}')
        self._bodies[body] += 1

    def report(self) -> dict:
        other = self._bodies.total() - max(self._bodies.values(), default=0)
        if other:
            self.bad['another body'] = other
        return {
            'requests': len(self.took),
            'failed': self.bad.total(),
            'why': dict(self.bad),
            'connections': self.made,
            'page_ms': round(statistics.median(self.pages) * 1000, 1),
            'p50_ms': round(statistics.median(self.took) * 1000, 2),
            'worst_ms': round(max(self.took) * 1000, 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description='A web page as a browser loads it.')
    parser.add_argument('url')
    parser.add_argument('--requests', type=int, default=60)
    parser.add_argument('--connections', type=int, default=6)
    parser.add_argument('--pages', type=int, default=5)
    parser.add_argument('--header', action='append', default=[], metavar="'NAME: VALUE'")
    arguments = parser.parse_args()
    browser = Browser(arguments)
    for page in range(arguments.pages):
        time.sleep(PAUSE_SECONDS if page else 0)
        browser.load(arguments.requests)
    print(json.dumps(browser.report()))


if __name__ == '__main__':
    main()
