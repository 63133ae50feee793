"""What real clients get that are asked for a user name, and know the UUID.

    .venv/bin/python bench/applications/clients.py [WORD ...]

Each fetches a page and sends a body of 100 kB; `yes` where both arrived. With words, those clients
alone that have one in their name. Needs: apt install curl wget nodejs npm default-jdk-headless. The
packages of Python and of Node.js are installed into a folder that is removed at the end.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from http.server import BaseHTTPRequestHandler
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent.parent / 'tests'
sys.path[:0] = [str(TESTS.parent), *(str(TESTS / each) for each in ('', 'admin', 'applications'))]

from behind import Stage, serving
from conftest import free_port
from programs import Outside

SECONDS = 60
PYTHON_PACKAGES = 'aiohttp', 'httpx', 'requests'
NODE_PACKAGES = {
    'urllib': '4',
    'digest-fetch': '3',
    'digest-fetch-0.1': 'npm:digest-fetch@0.1.6',
    'crypto-js': '3',
    'node-fetch': '2.7.0',
    'indigestion': '0.1.4',
    '@mhoc/axios-digest-auth': '0.8.0',
}
OVERRIDES = {'node-fetch': '2.7.0'}  # digest-fetch asks for a tag that not every registry has
CURL = '-sS --noproxy "*" --cacert $CA -u $UUID:any'
WGET = 'wget -qO- --no-config --no-proxy --ca-certificate=$CA --user=$UUID --password=any'
SHELL = {
    **{
        f'curl --{how}': f'curl {CURL} --{how} $URL --next {CURL} --{how} -T $BODY $URL'
        for how in ('digest', 'basic', 'anyauth')
    },
    'curl -L from http:': f'for body in "" "-d @$BODY"; do '
    f'curl {CURL} --digest -L --location-trusted $body "http${{URL#https}}"; done',
    'wget': f'{WGET} $URL; {WGET} --post-file=$BODY $URL',
}


class Echo(BaseHTTPRequestHandler):
    """Answers with the length of the body."""

    protocol_version = 'HTTP/1.1'

    def do_GET(self) -> None:
        length = int(self.headers['Content-Length'] or 0)
        if self.headers['Transfer-Encoding']:
            while size := int(self.rfile.readline(), 16):
                length += len(self.rfile.read(size + 2)) - 2
            self.rfile.readline()
        else:
            self.rfile.read(length)
        body = f'came {length}\n'.encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()

    def log_message(self, *_) -> None:
        pass


def commands(folder: Path) -> dict[str, list]:
    """Of each client; what they need is in the folder then."""
    subprocess.check_call([sys.executable, '-m', 'venv', folder / 'venv'])
    subprocess.check_call([folder / 'venv/bin/pip', 'install', '-q', *PYTHON_PACKAGES])
    (folder / 'package.json').write_text(
        json.dumps({'dependencies': NODE_PACKAGES, 'overrides': OVERRIDES})
    )
    subprocess.check_call(['npm', 'install', '--silent', '--no-audit', '--no-fund'], cwd=folder)
    found = {name: ['sh', '-c', command] for name, command in SHELL.items()}
    for language, program, file in (
        ('Python', folder / 'venv/bin/python', 'client.py'),
        ('Node.js', 'node', 'client.js'),
    ):
        (folder / file).write_text(text := (HERE / file).read_text())
        for name in re.findall("^ +'(.+)': ", text, re.M):
            found[f'{language} {name}'] = [program, file, name]
    for name in 'HttpClient', 'HttpURLConnection':
        found[f'Java {name}'] = ['java', HERE / 'Client.java', name]
    return found


def main() -> None:
    words = sys.argv[1:]
    with (
        tempfile.TemporaryDirectory() as name,
        Outside(Path(name), free_port()) as outside,
        Stage(Path(name) / 'stage', outside.options) as stage,
        serving(Echo) as port,
        stage.hide(port) as site,
    ):
        folder = Path(name)
        (folder / 'body').write_text('b' * 100_000)
        environment = {each: os.environ[each] for each in ('PATH', 'HOME')} | {
            'URL': f'{site.unnamed}/',
            'UUID': site.uuid,
            'CA': str(site.crt_file),
            'NODE_EXTRA_CA_CERTS': str(site.crt_file),
            'BODY': str(folder / 'body'),
        }
        for client, command in commands(folder).items():
            if any(word in client for word in words or ['']):
                print(f'{client:26} {seen(command, folder, environment)}', flush=True)


def seen(command: list, folder: Path, environment: dict[str, str]) -> str:
    try:
        ran = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
    except (subprocess.TimeoutExpired, FileNotFoundError) as error:
        return f'no: {error}'
    if re.findall('came [0-9]+', ran.stdout) == ['came 0', 'came 100000']:
        return 'yes'
    return f'no: {ran.stdout[-200:]!r} {ran.stderr[-500:]!r}'


main()
