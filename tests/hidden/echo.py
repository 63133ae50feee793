"""What a Python server reads of a request goes back in a header, for test_gateway_servers.py."""

import json


def read(method: str, target: str, fields: list, body: bytes) -> str:
    return json.dumps([method, target, fields, body.hex()]).encode('latin-1').hex()


def wsgi(environ, start_response):
    """For gunicorn."""
    fields = [
        (name.removeprefix('HTTP_').replace('_', '-'), value)
        for name, value in environ.items()
        if name.startswith('HTTP_') or name in ('CONTENT_LENGTH', 'CONTENT_TYPE')
    ]
    body = environ['wsgi.input'].read()
    what = read(environ['REQUEST_METHOD'], environ['RAW_URI'], fields, body)
    start_response('200 OK', [('X-Read', what), ('Content-Length', '0')])
    return []


async def asgi(scope, receive, send):
    """For uvicorn."""
    if scope['type'] == 'websocket':
        await receive()
        await send({'type': 'websocket.accept'})
        while 'text' in (message := await receive()):
            await send({'type': 'websocket.send', 'text': message['text']})
        return
    body, more = b'', True
    while more:
        message = await receive()
        body += message.get('body', b'')
        more = message.get('more_body')
    fields = [[each.decode('latin-1') for each in field] for field in scope['headers']]
    target = scope['raw_path'] + (b'?' + scope['query_string'] if scope['query_string'] else b'')
    what = read(scope['method'], target.decode('latin-1'), fields, body).encode()
    headers = [(b'x-read', what), (b'content-length', b'0')]
    await send({'type': 'http.response.start', 'status': 200, 'headers': headers})
    await send({'type': 'http.response.body'})
