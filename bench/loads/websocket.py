"""WebSocket messages over many connections, each answered by the same: how many, how soon.

    python bench/loads/websocket.py URL [--connections 200] [--seconds 3] [--header 'NAME: VALUE']

Behind the URL is echo.py. Each connection sends its next message when the answer has come. Prints
one line of JSON; `bad` counts connections that could not be opened, ended or got a wrong answer.
The certificate is not verified: the tests do that.
"""

import argparse
import asyncio
import json
import ssl
import statistics
import time
from collections import Counter
from urllib.parse import urlsplit

OPENING = 20  # connections at a time
OPEN_SECONDS, ANSWER_SECONDS = 20, 20
TEXT, CLOSE = 0x81, 0x88  # frames that are the last of their message (RFC 6455 section 5.2)
MASKED, MASK = 0x80, bytes(4)  # a mask of zeros costs nothing


class Load:
    """The connections, and what has been seen on them."""

    def __init__(self, arguments: argparse.Namespace):
        self._url, self._fields = urlsplit(arguments.url), arguments.header
        self._count, self._seconds = arguments.connections, arguments.seconds
        self._context = None
        if self._url.scheme in ('https', 'wss'):
            self._context = ssl.create_default_context()
            self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        self._opening = asyncio.Semaphore(OPENING)
        self._to_open, self._all_are_open = self._count, asyncio.Event()
        self.bad: Counter[str] = Counter()
        self.took: list[float] = []  # seconds, of each message
        self.ended = 0.0

    async def run(self) -> dict:
        began = time.monotonic()
        tasks = [asyncio.create_task(self._live(number)) for number in range(self._count)]
        await self._all_are_open.wait()
        opened = time.monotonic()
        await asyncio.gather(*tasks)
        seconds = self.ended - opened
        percentiles = statistics.quantiles(self.took, n=100) if len(self.took) > 1 else [0.0] * 99
        return {
            'connections': self._count,
            'bad': self.bad.total(),
            'why': dict(self.bad),
            'opened_seconds': round(opened - began, 3),
            'from': opened,  # by the clock that all processes share
            'to': self.ended,
            'messages': len(self.took),
            'messages_a_second': round(len(self.took) / seconds) if self.took else 0,
            'p50_ms': round(percentiles[49] * 1000, 2),
            'p99_ms': round(percentiles[98] * 1000, 2),
        }

    async def _live(self, number: int) -> None:
        """A connection's life; what goes wrong is counted."""
        writer = None
        try:
            try:
                async with self._opening, asyncio.timeout(OPEN_SECONDS):
                    reader, writer = await self._open()
            finally:
                self._to_open -= 1
                if not self._to_open:
                    self._all_are_open.set()
            await self._all_are_open.wait()
            await self._talk(number, reader, writer)
        except (OSError, EOFError, ValueError) as error:
            self.bad[str(error) or type(error).__name__] += 1
        finally:
            if writer:
                writer.close()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        port = self._url.port or (443 if self._context else 80)
        reader, writer = await asyncio.open_connection(self._url.hostname, port, ssl=self._context)
        try:
            writer.write(self._request())
            head = await reader.readuntil(b'\r\n\r\n')
            if b' 101 ' not in head.partition(b'\r\n')[0]:
                raise ValueError(head.partition(b'\r\n')[0].decode(errors='replace'))
        except BaseException:
            writer.close()
            raise
        return reader, writer

    def _request(self) -> bytes:
        target = self._url._replace(scheme='', netloc='', fragment='').geturl() or '/'
        fields = [
            'Upgrade: websocket',
            'Connection: Upgrade',
            'Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==',
            'Sec-WebSocket-Version: 13',
            *self._fields,
        ]
        if not any(each.lower().startswith('host:') for each in fields):
            fields.insert(0, f'Host: {self._url.netloc}')
        return '\r\n'.join([f'GET {target} HTTP/1.1', *fields, '', '']).encode()

    async def _talk(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        deadline, sent = time.monotonic() + self._seconds, 0
        while time.monotonic() < deadline:
            text, sent, began = f'{number:06} {sent:025}'.encode(), sent + 1, time.monotonic()
            writer.write(bytes([TEXT, MASKED | len(text)]) + MASK + text)
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await reader.readexactly(2 + len(text))
            if answer != bytes([TEXT, len(text)]) + text:
                raise ValueError('a wrong answer')
            self.ended = time.monotonic()
            self.took.append(self.ended - began)
        writer.write(bytes([CLOSE, MASKED]) + MASK)
        async with asyncio.timeout(ANSWER_SECONDS):
            if await reader.readexactly(2) != bytes([CLOSE, 0]):
                raise ValueError('a wrong answer to a close')


async def main() -> None:
    parser = argparse.ArgumentParser(description='WebSocket messages over many connections.')
    parser.add_argument('url')
    parser.add_argument('--connections', type=int, default=200)
    parser.add_argument('--seconds', type=float, default=3)
    parser.add_argument('--header', action='append', default=[], metavar="'NAME: VALUE'")
    print(json.dumps(await Load(parser.parse_args()).run()))


if __name__ == '__main__':
    asyncio.run(main())
