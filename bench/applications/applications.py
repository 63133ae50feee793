"""Real applications behind a rendezvous, each with its own client: what works, in a line each.

    .venv/bin/python bench/applications/applications.py [NAME ...]

Names: jupyter webdav npm registry nginx starlette. Needs: apt install rclone npm nginx skopeo
docker-registry apache2-utils. What else they need is installed into a folder that is removed at the
end. docs/applications.md says what was seen, and how each application is set.
"""

import hashlib
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import uuid as uuids
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent.parent / 'tests'
sys.path[:0] = [str(TESTS.parent), *(str(TESTS / each) for each in ('', 'admin', 'applications'))]

from behind import Site, Stage
from conftest import Peer, free_port, until
from gevent.server import StreamServer
from programs import Outside, listens
from websockets.sync.client import connect

from rendezvous.wire import pipe

SECONDS = 300
OWNER, SECRET = 'owner', 'secret'


class Bench:
    """What the applications have here: a folder, a rendezvous server, and a way to names."""

    def __init__(self, folder: Path, stage: Stage):
        self.folder, self.stage = folder, stage
        self._server = StreamServer(('127.0.0.1', 0), self._tunnel)
        self._server.start()
        self.proxy = f'http://127.0.0.1:{self._server.server_port}'

    def _tunnel(self, sock, _) -> None:
        """An HTTP proxy: many clients ask it for the host, and not the system, which knows none."""
        authority = Peer(sock).until(b'\r\n\r\n').split()[1].decode()
        with socket.create_connection(('127.0.0.1', int(authority.rpartition(':')[2]))) as near:
            sock.sendall(b'HTTP/1.1 200 OK\r\n\r\n')
            pipe.join(pipe.End(sock), near, b'', drain=1)

    def run(self, *command, site: Site | None = None) -> str:
        """What a command says that ends well."""
        environment = {'PATH': os.environ['PATH'] + ':/usr/sbin', 'HOME': str(self.folder)}
        if site:
            environment |= {'HTTPS_PROXY': self.proxy, 'NO_PROXY': '127.0.0.1'}
            environment |= dict.fromkeys(
                ('SSL_CERT_FILE', 'NODE_EXTRA_CA_CERTS', 'REQUESTS_CA_BUNDLE'), str(site.crt_file)
            )
        ran = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert ran.returncode == 0, (command, ran.stdout[-1000:], ran.stderr[-1000:])
        return ran.stdout

    def python(self, *packages: str) -> Path:
        """The folder of the programs of a new environment that has these packages."""
        folder = self.folder / f'venv-{packages[0]}'
        subprocess.check_call([sys.executable, '-m', 'venv', folder])
        pip = folder / 'bin' / 'pip'
        subprocess.check_call([pip, 'install', '-q', '--disable-pip-version-check', *packages])
        return folder / 'bin'

    @contextmanager
    def serving(self, *command, port: int, **more: str) -> Iterator[None]:
        """While a server runs."""
        log = (self.folder / f'log.{port}').open('wb')
        environment = os.environ | {'HOME': str(self.folder)} | more
        with (
            log,
            subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log
            ) as program,
        ):
            try:
                until(lambda: listens(port) or program.poll() is not None, 'it listens', SECONDS)
                assert program.poll() is None, Path(log.name).read_text()
                yield
            finally:
                program.terminate()


def say(what: str, works: Callable[[], object]) -> None:
    try:
        seen = works()
        print(f'{what}: yes{f" ({seen})" if seen else ""}', flush=True)
    except Exception as error:
        print(f'{what}: no: {" ".join(str(error).split())[-300:]}', flush=True)


def fetched(site: Site, method: str, path: str, data: bytes | None = None, **fields: str) -> bytes:
    """The body of an answer, by name."""
    connection = site.connection(site.name)
    connection.request(method, path, data, {'Host': f'{site.name}:{site.port}', **fields})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status < 400, (answer.status, body[:500])
    return body


def jupyter(bench: Bench) -> None:
    """A kernel counts, over its WebSocket, with the token in Authorization."""
    programs, port = bench.python('jupyter-server', 'ipykernel'), free_port()
    options = '--allow-root', '--no-browser', f'--port={port}', '--ServerApp.ip=127.0.0.1'
    more = '--IdentityProvider.token=a-token', '--ServerApp.allow_remote_access=True'
    path = f'{programs}:{os.environ["PATH"]}'
    server = bench.serving(programs / 'jupyter', 'server', *options, *more, port=port, PATH=path)
    with server, bench.stage.hide(port) as copied, bench.stage.hide(port, '--forwarded') as told:
        for how, site in (('copied', copied), ('--forwarded', told)):
            say(f'jupyter by name, {how}', partial(kernel_counts, site))


def kernel_counts(site: Site) -> str:
    token = {'Authorization': 'token a-token'}
    kernel = json.loads(fetched(site, 'POST', '/api/kernels', b'{}', **token))['id']
    context = ssl.create_default_context(cafile=site.crt_file)
    url = f'{site.named}/api/kernels/{kernel}/channels'.replace('https', 'wss')
    sock = socket.create_connection(('127.0.0.1', site.port))
    header = {'msg_id': str(uuids.uuid4()), 'msg_type': 'execute_request', 'session': 'a'}
    header |= {'username': 'a', 'version': '5.3'}
    content = {'code': '6 * 7', 'silent': False, 'store_history': False}
    message = {'channel': 'shell', 'header': header, 'parent_header': {}, 'metadata': {}}
    with connect(
        url, sock=sock, ssl=context, origin=site.named, additional_headers=token, proxy=None
    ) as socket_:
        socket_.send(json.dumps(message | {'content': content}))
        while (heard := json.loads(socket_.recv(timeout=30)))['msg_type'] != 'execute_result':
            pass
    return f'6 * 7 is {heard["content"]["data"]["text/plain"]}'


def webdav(bench: Bench) -> None:
    """rclone copies and moves on the server, in wsgidav."""
    programs, port = bench.python('wsgidav', 'cheroot'), free_port()
    (bench.folder / 'files').mkdir()
    (bench.folder / 'files' / 'here').write_text('here')
    command = programs / 'wsgidav', '--host=127.0.0.1', f'--port={port}', '--root=files'
    with bench.serving(*command, '--auth=anonymous', port=port):
        for options in ((), ('--forwarded',)):
            with bench.stage.hide(port, *options) as site:
                for name, url, more in (
                    ('by name', site.named, ()),
                    ('by Basic', site.unnamed, ('--webdav-user', site.uuid)),
                ):
                    how = f'webdav with rclone {name}, {" ".join(options) or "copied"}'
                    say(how, partial(rclone, bench, site, url, *more))


def rclone(bench: Bench, site: Site, url: str, *more: str) -> None:
    if more:
        more = *more, '--webdav-pass', bench.run('rclone', 'obscure', 'any').strip()
    common = (
        '--webdav-url',
        url,
        *more,
        '--config',
        '',
        '--ca-cert',
        site.crt_file,
        '--retries=1',
        '--low-level-retries=1',
    )
    bench.run('rclone', 'copyto', ':webdav:here', ':webdav:copy', *common, site=site)
    bench.run('rclone', 'moveto', ':webdav:copy', ':webdav:moved', *common, site=site)
    assert bench.run('rclone', 'cat', ':webdav:moved', *common, site=site) == 'here'


def npm(bench: Bench) -> None:
    """A package is published at verdaccio and installed from there, with its Bearer token."""
    port, folder = free_port(), bench.folder / 'verdaccio'
    folder.mkdir()
    needs = {'overrides': {'node-fetch': '2.7.0'}, 'dependencies': {'verdaccio': '6'}}
    (folder / 'package.json').write_text(json.dumps(needs))
    quiet = '--silent', '--no-audit', '--no-fund'
    subprocess.check_call(['npm', 'install', *quiet], cwd=folder)
    (folder / 'config.yaml').write_text(
        'storage: ./storage\nauth: {htpasswd: {file: ./htpasswd}}\nmax_body_size: 100mb\n'
        'packages: {"**": {access: $authenticated, publish: $authenticated}}\n'
    )
    verdaccio = folder / 'node_modules/.bin/verdaccio'
    server = '--config', folder / 'config.yaml', '--listen', f'127.0.0.1:{port}'
    with bench.serving(verdaccio, *server, port=port):
        for options in ((), ('--forwarded',)):
            with bench.stage.hide(port, *options) as site:
                how = f'npm publish and install by name, {" ".join(options) or "copied"}'
                say(how, partial(published, bench, site))


def published(bench: Bench, site: Site) -> None:
    user = {'name': f'o{site.uuid[:8]}', 'password': SECRET}
    path = f'/-/user/org.couchdb.user:{user["name"]}'
    kind = {'Content-Type': 'application/json'}
    token = json.loads(fetched(site, 'PUT', path, json.dumps(user).encode(), **kind))['token']
    folder = bench.folder / f'package-{site.uuid}'
    folder.mkdir()
    name = f'a-package-{site.uuid[:8]}'
    (folder / 'package.json').write_text(json.dumps({'name': name, 'version': '1.0.0'}))
    (folder / 'large').write_bytes(os.urandom(5_000_000))
    (folder / '.npmrc').write_text(
        f'registry={site.named}/\n//{site.name}:{site.port}/:_authToken={token}\n'
        f'cafile={site.crt_file}\nhttps-proxy={bench.proxy}\n'
    )
    bench.run('npm', 'publish', '--prefix', folder, folder, '--userconfig', folder / '.npmrc')
    to = '--prefix', bench.folder / 'installed', '--userconfig', folder / '.npmrc'
    bench.run('npm', 'install', name, *to)
    found = bench.folder / 'installed' / 'node_modules' / name / 'large'
    assert found.read_bytes() == (folder / 'large').read_bytes()


def registry(bench: Bench) -> None:
    """skopeo copies an image there and back: with the site's own password, and by Basic."""
    image(bench.folder / 'image')
    secret = bench.run('htpasswd', '-nbB', OWNER, SECRET).strip()
    (bench.folder / 'users').write_text(secret + '\n')
    own = 'auth: {htpasswd: {realm: images, path: users}}\n'
    for auth in own, '':
        for options in (), ('--forwarded',):
            port = free_port()
            relative = str(not options).lower()  # its URLs say http, where it is not told better
            (bench.folder / 'registry.yml').write_text(
                f'version: 0.1\nstorage: {{filesystem: {{rootdirectory: {bench.folder}/{port}}}}}\n'
                f'http: {{addr: "127.0.0.1:{port}", relativeurls: {relative}}}\n{auth}'
            )
            server = bench.serving('docker-registry', 'serve', 'registry.yml', port=port)
            with server, bench.stage.hide(port, *options) as site:
                where = f'{site.name if auth else "127.0.0.1"}:{site.port}'
                user = f'{OWNER}:{SECRET}' if auth else f'{site.uuid}:any'
                how = f'registry with skopeo by {"name" if auth else "Basic"}'
                how += f', {"".join(options) or "relativeurls"}'
                say(how, partial(copied, bench, site, where, user))


def copied(bench: Bench, site: Site, where: str, user: str) -> None:
    to = f'docker://{where}/an/image:1'
    back = bench.folder / f'back-{site.uuid}'
    skopeo = 'skopeo', 'copy', '--insecure-policy', '--preserve-digests'
    bench.run(*skopeo, '--dest-creds', user, f'dir:{bench.folder}/image', to, site=site)
    bench.run(*skopeo, '--src-creds', user, to, f'dir:{back}', site=site)
    assert {each.name for each in back.iterdir()} >= {
        each.name for each in (bench.folder / 'image').iterdir()
    }


def image(folder: Path) -> None:
    """An image of one layer, in the form that skopeo calls dir."""
    folder.mkdir()

    def blob(octets: bytes, kind: str) -> dict:
        digest = hashlib.sha256(octets).hexdigest()
        (folder / digest).write_bytes(octets)
        return {'mediaType': kind, 'size': len(octets), 'digest': f'sha256:{digest}'}

    oci = 'application/vnd.oci.image'
    layer = blob(os.urandom(5_000_000), f'{oci}.layer.v1.tar')
    rootfs = {'type': 'layers', 'diff_ids': [layer['digest']]}
    config = {'architecture': 'amd64', 'os': 'linux', 'rootfs': rootfs}
    described = blob(json.dumps(config).encode(), f'{oci}.config.v1+json')
    manifest = {'schemaVersion': 2, 'mediaType': f'{oci}.manifest.v1+json'}
    manifest |= {'config': described, 'layers': [layer]}
    (folder / 'manifest.json').write_text(json.dumps(manifest))
    (folder / 'version').write_text('Directory Transport Version: 1.1\n')


NGINX = """
user root; daemon off; pid nginx.pid; error_log stderr;
events {{}}
http {{
  access_log access.log;
  set_real_ip_from 127.0.0.1;
  server {{
    listen 127.0.0.1:{plain};
    real_ip_header X-Forwarded-For;
    absolute_redirect off;
    root www;
  }}
  server {{
    listen 127.0.0.1:{told} proxy_protocol;
    real_ip_header proxy_protocol;
    absolute_redirect off;
    root www;
  }}
}}
"""


def nginx(bench: Bench) -> None:
    """Its redirects, and who asks in its log, where the client has the address 127.0.0.2."""
    plain, told = free_port(), free_port()
    (bench.folder / 'www' / 'folder').mkdir(parents=True)
    (bench.folder / 'www' / 'folder' / 'index.html').write_text('here')
    (bench.folder / 'nginx.conf').write_text(NGINX.format(plain=plain, told=told))
    command = '/usr/sbin/nginx', '-p', bench.folder, '-c', 'nginx.conf', '-e', 'stderr'
    with bench.serving(*command, port=told):
        for port, option in ((plain, '--forwarded'), (told, '--proxy-protocol')):
            with bench.stage.hide(port, option) as site:
                say(f'nginx {option}, redirect', partial(redirected, bench, site, '/folder'))
                seen = (bench.folder / 'access.log').read_text().splitlines()[-1].split()[0]
                say(f'nginx {option}, who asks', lambda seen=seen: seen)


STARLETTE = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
app = Starlette(routes=[Mount('/folder', routes=[Route('/', lambda _: PlainTextResponse('here'))])])
"""


def starlette(bench: Bench) -> None:
    """Its redirects, behind uvicorn as it is started without options."""
    programs, port = bench.python('uvicorn', 'starlette'), free_port()
    (bench.folder / 'application.py').write_text(STARLETTE)
    command = programs / 'uvicorn', '--port', str(port), 'application:app'
    with bench.serving(*command, port=port), bench.stage.hide(port, '--forwarded') as site:
        say('starlette --forwarded, redirect', partial(redirected, bench, site, '/folder'))


def redirected(bench: Bench, site: Site, path: str) -> str:
    """Where to, if it leads to the page, by name."""
    common = '-sS', '--noproxy', '*', '--cacert', site.crt_file, '--interface', '127.0.0.2'
    told = '-L', '-w', ' %{num_redirects} %{url_effective}', site.named + path
    body, count, url = bench.run('curl', *common, *told).split()
    assert (body, count) == ('here', '1'), (body, count, url)
    assert url == f'{site.named}{path}/', url
    return url.replace(site.uuid, 'NAME')


def main() -> None:
    names = sys.argv[1:] or ['jupyter', 'webdav', 'npm', 'registry', 'nginx', 'starlette']
    with (
        tempfile.TemporaryDirectory() as folder,
        Outside(Path(folder), free_port()) as outside,
        Stage(Path(folder) / 'stage', outside.options) as stage,
    ):
        for name in names:
            here = Path(folder) / name
            here.mkdir()
            globals()[name](Bench(here, stage))


if __name__ == '__main__':
    main()
