"""A client that floods: it makes beforehand what it sends, so it sends as fast as it can.

python blast.py PORT CAFILE STREAM UUID CODE: registers UUID where STREAM needs that, sends it,
reads whatever comes meanwhile, and ends by itself when all is served, or after some seconds.
"""

import ctypes
import socket
import ssl
import sys
import threading
import time
from contextlib import suppress

SECONDS = 2  # for all to be sent, and again for it to be served, at the most
KEY_UPDATES = 20_000


class Client:
    """A TLS connection, as octets in memory and a socket."""

    def __init__(self, port: int, cafile: str):
        self.sock = socket.create_connection(('127.0.0.1', port))
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=cafile)
        self._tls = context.wrap_bio(self._in, self._out, server_hostname='127.0.0.1')
        while self._wants(self._tls.do_handshake):
            self.sock.sendall(self._out.read())
            self._in.write(self.sock.recv(65536))
        self.sock.sendall(self._out.read())

    def _wants(self, step) -> bool:
        try:
            step()
            return False
        except ssl.SSLWantReadError:
            return True

    def records(self, octets: bytes, size: int = 1) -> bytes:
        """As records of so many octets each."""
        for start in range(0, len(octets), size):
            self._tls.write(octets[start : start + size])
        return self._out.read()

    def key_updates(self, requested: int) -> bytes:
        """Python has no name for them; behind its object's head and one pointer is OpenSSL's."""
        with open('/proc/self/maps') as maps:
            (path,) = {line.split()[-1] for line in maps if 'libssl' in line}
        library, pointer = ctypes.CDLL(path), ctypes.sizeof(ctypes.c_void_p)
        tls = ctypes.c_void_p.from_address(id(self._tls._sslobj) + 3 * pointer)
        for _ in range(KEY_UPDATES):
            library.SSL_key_update(tls, requested)
            library.SSL_do_handshake(tls)
        return self._out.read()

    def read_off(self) -> threading.Thread:
        """Up to the end, in a thread."""

        def read() -> None:
            with suppress(OSError):
                while self.sock.recv(65536):
                    pass

        reading = threading.Thread(target=read, daemon=True)
        reading.start()
        return reading

    def blast(self, octets: bytes) -> None:
        end = time.monotonic() + SECONDS
        with suppress(OSError):  # it may have had enough
            for start in range(0, len(octets), 65536):
                self.sock.sendall(octets[start : start + 65536])
                if time.monotonic() > end:
                    break
            self.sock.shutdown(socket.SHUT_WR)


def main(port: str, cafile: str, stream: str, uuid: str, code: str) -> None:
    client = Client(int(port), cafile)
    ask = f'GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Digest username="{uuid}"\r\n\r\n'.encode()
    if stream in ('pipe up', 'pipe down'):
        hidden = Client(int(port), cafile)
        hidden.sock.sendall(
            hidden.records(f'CONNECT uuid:{uuid}?response={code} HTTP/1.1\r\n\r\n'.encode(), 9999)
        )
        hidden.sock.recv(65536)  # the 200, which is one segment
        client.sock.sendall(client.records(ask, 9999))
        hidden.sock.recv(65536)  # the head
        if stream == 'pipe down':
            client, hidden = hidden, client
        hidden.read_off()
    reading = client.read_off()
    head = b'POST / HTTP/1.1\r\nHost: x\r\n'
    plain = b'GET / HTTP/1.1\r\nHost: x\r\n\r\n'
    made = {
        'pipelined': lambda: client.records(plain * 100_000, 16384),
        'head': lambda: client.records(head + b'X: ' + b'x' * 65000),
        'body': lambda: client.records(
            (head + b'Content-Length: 65536\r\n\r\n' + b'x' * 65536) * 2
        ),
        'body behind its 401': lambda: client.records(
            head + b'Content-Length: 9999999\r\n\r\n' + b'x' * 150_000
        ),
        'pipe up': lambda: client.records(b'x' * 150_000),
        'pipe down': lambda: client.records(b'x' * 150_000),
        'key updates': lambda: client.key_updates(0),
        'key updates that ask for one': lambda: client.key_updates(1),
        'fields': lambda: client.records((plain[:-2] + b'a:\r\n' * 499 + b'\r\n') * 500, 16384),
        'parameters': lambda: client.records(
            (plain[:-2] + b'Authorization: Digest ' + b'a=b,' * 16_000 + b'\r\n\r\n') * 100, 16384
        ),
        'query': lambda: client.records(
            plain.replace(b'/ ', b'/?' + b'a&' * 8000 + b' ') * 500, 16384
        ),
    }
    client.blast(made[stream]())
    reading.join(SECONDS)


if __name__ == '__main__':
    main(*sys.argv[1:])
