"""Apache: git with the site's own user name and password, WebDAV, and redirects."""

import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from behind import Site, need
from conftest import free_port, until
from programs import listens

MODULES = 'mpm_prefork authn_core authn_file authz_core authz_user auth_basic cgi env alias dav'
MODULES += ' dav_fs dir remoteip'
BACKEND = Path('/usr/lib/git-core/git-http-backend')
CONFIGURATION = """
ServerRoot "%(folder)s"
ServerName https://application
UseCanonicalName Off
Listen 127.0.0.1:%(port)s
PidFile pid
ErrorLog error.log
LogFormat "%%a %%r" short
CustomLog access.log short
RemoteIPHeader X-Forwarded-For
RemoteIPInternalProxy 127.0.0.1
DocumentRoot "%(folder)s/www"
DavLockDB "%(folder)s/locks/all"
Alias /dav "%(folder)s/dav"
<Directory "%(folder)s/dav">
  Dav On
</Directory>
SetEnv GIT_PROJECT_ROOT "%(folder)s"
SetEnv GIT_HTTP_EXPORT_ALL
ScriptAlias /git/ %(backend)s/
<Location /git>
  AuthType Basic
  AuthName "the repositories"
  AuthUserFile users
  Require valid-user
</Location>
"""


@contextmanager
def apache(folder: Path):
    """Its port. Root runs it as another user, which it wants."""
    root = os.getuid() == 0
    for name in ('www/folder', 'dav', 'locks'):
        (folder / name).mkdir(parents=True)
    subprocess.run(['git', 'init', '-qb', 'main', '--bare', folder / 'site.git'], check=True)
    (folder / 'www' / 'folder' / 'index.html').write_text('here')
    with (folder / 'site.git' / 'config').open('a') as file:
        file.write('[http]\n  receivepack = true\n')
    (folder / 'users').write_text('owner:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n')  # secret
    port = free_port()
    names = {'folder': folder, 'port': port, 'backend': BACKEND}
    path = '/usr/lib/apache2/modules'
    load = [f'LoadModule {name}_module {path}/mod_{name}.so\n' for name in MODULES.split()]
    (folder / 'apache.conf').write_text(''.join(load) + CONFIGURATION % names)
    if root:
        for each in (folder, *folder.rglob('*')):
            shutil.chown(each, 'nobody')
    command = 'apache2', '-d', folder, '-f', 'apache.conf', '-D', 'FOREGROUND'
    user = pwd.getpwnam('nobody') if root else None
    process = subprocess.Popen(
        command, user=user and user.pw_uid, group=user and user.pw_gid, stderr=subprocess.PIPE
    )
    try:
        until(lambda: listens(port) or process.poll() is not None, 'Apache listens')
        assert process.poll() is None, process.stderr.read()
        yield port
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


@pytest.fixture(scope='module')
def folder():
    """One that every user can reach."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope='module')
def site(stage, folder):
    for program, package in (('apache2', 'apache2'), ('git', 'git'), ('curl', 'curl')):
        need(shutil.which(program), package)
    with apache(folder) as port, stage.hide(port, '--forwarded') as site:
        yield site


def curl(site: Site, *arguments: str) -> str:
    """Status and Location."""
    told = '-o', os.devnull, '-w', '%{http_code} %header{location}'
    common = 'curl', '-sS', '--noproxy', '*', '--cacert', site.crt_file
    return subprocess.check_output([*common, *told, *arguments], text=True).strip()


@pytest.fixture(params=['by name', 'by Digest'])
def way(request, site):
    """A URL, and the arguments for curl that say whom it is for."""
    if request.param == 'by name':
        return site.named, ()
    return site.unnamed, ('--digest', '-u', f'{site.uuid}:any')


def test_redirects_lead_back_by_https(site, way):
    url, who = way
    assert curl(site, *who, f'{url}/folder') == f'301 {url}/folder/'
    assert curl(site, '-L', *who, f'{url}/folder') == '200'


def test_webdav_copies_and_moves(site, way, folder):
    url, who = way
    assert curl(site, *who, '-T', __file__, f'{url}/dav/here')[:3] == '201'
    for method, target in (('COPY', 'copy'), ('MOVE', 'moved')):
        to = '-X', method, '-H', f'Destination: {url}/dav/{target}'
        assert curl(site, *who, *to, f'{url}/dav/here')[:3] in (
            '201',
            '204',
        )  # 204: in place of another
    found = {each.name for each in (folder / 'dav').iterdir() if each.is_file()}
    assert found == {'copy', 'moved'}


def test_git_pushes_and_clones_with_the_sites_own_password(site, tmp_path):
    """By Digest there is one Authorization, and it names the hidden server."""
    url = site.named.replace('https://', 'https://owner:secret@') + '/git/site.git'
    settings = {
        'http.sslCAInfo': str(site.crt_file),
        'http.proxy': '',
        'user.name': 'a',
        'user.email': 'a@example.com',
        'init.defaultBranch': 'main',
    }
    git = 'git', *(part for pair in settings.items() for part in ('-c', '='.join(pair)))
    environment = {'PATH': os.environ['PATH'], 'HOME': str(tmp_path), 'GIT_TERMINAL_PROMPT': '0'}

    def run(*arguments: str) -> None:
        ran = subprocess.run([*git, *arguments], env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr

    work = tmp_path / 'work'
    run('init', '-q', str(work))
    (work / 'large').write_bytes(octets := os.urandom(3_000_000))  # over http.postBuffer: chunks
    run('-C', str(work), 'add', 'large')
    run('-C', str(work), 'commit', '-qm', 'all')
    run('-C', str(work), 'push', '-q', url, 'HEAD')
    run('clone', '-q', url, str(tmp_path / 'clone'))
    assert (tmp_path / 'clone' / 'large').read_bytes() == octets


def test_it_knows_who_asks(site, way, folder):
    url, who = way
    assert curl(site, *who, '-H', 'X-Forwarded-For: 192.0.2.1', f'{url}/whoever') == '404'
    assert '192.0.2.1' not in (folder / 'access.log').read_text()
