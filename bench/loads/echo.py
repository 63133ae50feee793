"""The local server of websocket.py: answers each WebSocket message with the same (RFC 6455).

    python bench/loads/echo.py PORT

It takes what websocket.py sends: messages of up to 125 octets, each in one frame.
"""

import asyncio
import base64
import hashlib
import re
import sys
from asyncio import StreamReader, StreamWriter
from itertools import cycle

GUID = b'258EAFA5-E914-47DA-95CA-C5AB0DC85B11'  # section 1.3
CLOSE, OPCODE, LENGTH = 8, 0x0F, 0x7F  # section 5.2
SWITCHING = (
    'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n'
    'Sec-WebSocket-Accept: {}\r\n\r\n'
)


async def serve(reader: StreamReader, writer: StreamWriter) -> None:
    try:
        head = await reader.readuntil(b'\r\n\r\n')
        key = re.search(rb'\r\nsec-websocket-key: *([A-Za-z0-9+/=]+)', head, re.I)
        if not key:
            return writer.write(b'HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n')
        accept = base64.b64encode(hashlib.sha1(key[1] + GUID).digest())
        writer.write(SWITCHING.format(accept.decode()).encode())
        first = 0
        while first & OPCODE != CLOSE:
            first, length = await reader.readexactly(2)
            octets = await reader.readexactly(4 + (length & LENGTH))
            writer.write(bytes([first, length & LENGTH]) + unmasked(octets[:4], octets[4:]))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # it has gone
    finally:
        writer.close()


def unmasked(mask: bytes, octets: bytes) -> bytes:
    return bytes(each ^ key for each, key in zip(octets, cycle(mask)))


async def main() -> None:
    server = await asyncio.start_server(serve, '127.0.0.1', int(sys.argv[1]))
    await server.serve_forever()


if __name__ == '__main__':
    asyncio.run(main())
