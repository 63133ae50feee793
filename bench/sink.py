"""Takes uploads behind the local web server, and answers with how many octets came: sink.py PORT"""

import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

READ_BYTES = 1024 * 1024


class Sink(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_PUT(self) -> None:
        length = self.headers['Content-Length']
        count = self._read(int(length)) if length else sum(iter(self._chunk, 0))
        answer = b'%d\n' % count
        self.send_response(200)
        self.send_header('Content-Length', str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _read(self, count: int) -> int:
        left = count
        while left and (octets := self.rfile.read1(min(left, READ_BYTES))):
            left -= len(octets)
        return count - left

    def _chunk(self) -> int:
        """The length of a chunk, which is read, with the line end behind it."""
        size = int(re.split(b'[;\r]', self.rfile.readline())[0], 16)
        count = self._read(size)
        self.rfile.readline()
        return count

    def log_message(self, *_) -> None:
        pass


if __name__ == '__main__':
    ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Sink).serve_forever()
