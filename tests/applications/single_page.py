"""A single-page application and its server: everything of a browser that a way in may break.

Its page asks for a token and shows it as `Authorization: Bearer`; a cookie says who is there.
"""

import base64
import hashlib
import re
from http.server import BaseHTTPRequestHandler

PAGE = """<!DOCTYPE html><title>one page</title><link rel=icon href="data:,"><script>
const text = async (path, more) => (await fetch(path, more)).text()
const first = (target, name) => new Promise((good, bad) => {
  target.addEventListener(name, event => good(event.data)); target.onerror = () => bad('error')
})
const steps = {
  token: async () => (window.token = await text('login', {method: 'POST', body: 'owner'})),
  bearer: async () => {
    const asked = n => text(`api?${n}`, {headers: {Authorization: `Bearer ${token}`}})
    return (await Promise.all([...Array(20).keys()].map(asked))).join()
  },
  upload: () => text('length', {method: 'PUT', body: new Uint8Array(1e6)}),
  events: async () => {
    const source = new EventSource('events')
    const event = await first(source, 'message')
    source.close()
    return event
  },
  socket: async () => {
    const socket = new WebSocket(new URL('socket', location).href.replace('http', 'ws'))
    await first(socket, 'open')
    socket.send('hello')
    const heard = await first(socket, 'message')
    socket.close()
    return heard
  },
  worker: async () => {
    await navigator.serviceWorker.register('worker.js')
    await navigator.serviceWorker.ready
    navigator.serviceWorker.controller || await first(navigator.serviceWorker, 'controllerchange')
    return text('made-by-the-worker')
  },
  storage: async () => {
    localStorage.owner = 'this page'
    return [document.cookie, ...Object.values(localStorage)].join()
  },
}
async function run() {
  const seen = {}
  for (const [name, step] of Object.entries(steps)) {
    try { seen[name] = await step() } catch (error) { seen[name] = String(error) }
  }
  return seen
}
</script>"""
WORKER = """
self.addEventListener('install', () => self.skipWaiting())
self.addEventListener('activate', event => event.waitUntil(clients.claim()))
self.addEventListener('fetch', event => {
  if (event.request.url.endsWith('/made-by-the-worker')) event.respondWith(new Response('made'))
})
"""
TOKEN = 'a-token-of-the-application'
SEEN = {
    'token': TOKEN,
    'bearer': ','.join(['owner'] * 20),
    'upload': '1000000',
    'events': 'an event for the owner',
    'socket': 'hello',
    'worker': 'made',
    'storage': 'shown=1,this page',
}


class SinglePage(BaseHTTPRequestHandler):
    """The server: plain HTTP, with WebSocket (RFC 6455) by hand."""

    protocol_version = 'HTTP/1.1'

    def do_GET(self) -> None:
        self.get()

    def get(self) -> None:
        path = self.path.partition('?')[0]
        if path == '/':
            self.answer(PAGE.encode(), 'text/html', 'shown=1; Path=/')
        elif path == '/worker.js':
            self.answer(WORKER.encode(), 'text/javascript')
        elif path == '/socket':
            self.echo()
        elif path == '/api' and self.headers['Authorization'] == f'Bearer {TOKEN}':
            self.answer(self.owner())
        elif path == '/events':
            self.answer(b'data: an event for the ' + self.owner() + b'\n\n', 'text/event-stream')
        else:
            self.answer(b'no', status=403)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers['Content-Length']))
        self.answer(TOKEN.encode(), 'text/plain', 'owner=owner; HttpOnly; Secure; SameSite=Strict')

    def do_PUT(self) -> None:
        octets = self.rfile.read(int(self.headers['Content-Length']))
        self.answer(b'%d' % len(octets))

    def owner(self) -> bytes:
        found = re.search('owner=([a-z]+)', self.headers['Cookie'] or '')
        return found[1].encode() if found else b'nobody'

    def answer(self, body: bytes, kind='text/plain', cookie='', status: int = 200) -> None:
        self.send_response(status)
        self.send_header('Content-Type', kind)
        self.send_header('Content-Length', str(len(body)))
        if cookie:
            self.send_header('Set-Cookie', cookie)
        self.end_headers()
        self.wfile.write(body)

    def echo(self) -> None:
        """A WebSocket that sends the first message back; it is a short one."""
        key = self.headers['Sec-WebSocket-Key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_response(101)
        self.send_header('Upgrade', 'websocket')
        self.send_header('Connection', 'Upgrade')
        self.send_header('Sec-WebSocket-Accept', accept)
        self.end_headers()
        _, length = self.rfile.read(2)
        mask, octets = self.rfile.read(4), self.rfile.read(length & 127)
        self.wfile.write(b'\x81%c' % len(octets))
        self.wfile.write(bytes(octet ^ mask[n % 4] for n, octet in enumerate(octets)))
        self.rfile.read(6)  # its close
        self.close_connection = True

    def log_message(self, *_) -> None:
        pass
