"""Every endpoint of httpbin answers through a rendezvous as it does directly."""

import http.client
import json
import re
from contextlib import closing
from subprocess import check_output

import pytest
from behind import WSGI, running

CODE = """
from httpbin import app as application

@application.route('/every-endpoint')
def every_endpoint():
    rules = application.url_map.iter_rules()
    return [[str(rule), method] for rule in rules for method in sorted(rule.methods)]
"""
# For the variables in the paths; for queries, so that the answer is the same one each time.
VALUES = {
    'path:filename': 'favicon.ico',
    'path:anything': 'some/thing',
    'int:n': '5',
    'int:numbytes': '10',
    'int:offset': '1',
    'int:value': '60',
    'value': 'dGV4dA==',
    'codes': '418',
    'qop': 'auth',
    'algorithm': 'SHA-256',
    'stale_after': 'never',
    'delay': '0',
}
QUERY = '?seed=1&duration=0&url=/get&more=%C3%A9+%26'
RANDOM = re.compile(  # an ID, a date, the time in gzip's head
    rb'[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}'
    rb'|\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT'
    rb'|(?<=\x1f\x8b\x08\x00).{4}',
    re.S,
)
BODY = {'GET': None, 'HEAD': None, 'OPTIONS': None, 'TRACE': None}  # the others have one


@pytest.fixture(scope='module')
def near(tmp_path_factory):
    """httpbin's port."""
    with running(WSGI.format(CODE), tmp_path_factory.mktemp('httpbin')) as port:
        yield port


@pytest.fixture(scope='module')
def site(stage, near):
    with stage.hide(near, '--forwarded') as site:
        yield site


def endpoints(near: int) -> list[tuple[str, str]]:
    """The rule of its path, and the method, of each."""
    with closing(http.client.HTTPConnection('127.0.0.1', near)) as connection:
        connection.request('GET', '/every-endpoint')
        found = json.loads(connection.getresponse().read())
    assert len(found) > 100
    return found


def answer(connection: http.client.HTTPConnection, method: str, target: str, fields: dict) -> list:
    """All that it says, without what is another one each time."""
    connection.request(method, target, BODY.get(method, 'x=1&y=2'), fields)
    response = connection.getresponse()
    own = 'Date', 'Connection'  # of this moment, of this connection
    names = [f'{name}: {value}' for name, value in response.getheaders() if name not in own]
    said = '\n'.join([str(response.status), *names, '']).encode() + response.read()
    return RANDOM.sub(b'RANDOM', said).split(b'\n')


def filled(rule: str) -> str:
    return re.sub('<(.+?)>', lambda match: VALUES.get(match[1], 'a'), rule) + QUERY


def forwarded(host: str) -> dict[str, str]:
    """What --forwarded adds."""
    return {
        'X-Forwarded-For': '127.0.0.1',
        'X-Forwarded-Host': host,
        'X-Forwarded-Proto': 'https',
        'Forwarded': f'for=127.0.0.1;proto=https;host="{host}"',
    }


@pytest.mark.parametrize('way', ['by name', 'by Digest'])
def test_every_endpoint_answers_as_directly(site, near, way):
    name, who = site.name, {}
    if way == 'by Digest':
        name, who = '127.0.0.1', {'Authorization': f'Digest username="{site.uuid}"'}
    host = f'{name}:{site.port}'
    fields = {'Content-Type': 'application/x-www-form-urlencoded', 'Host': host}
    direct = http.client.HTTPConnection('127.0.0.1', near)
    with closing(site.connection(name)) as through, closing(direct):
        for rule, method in endpoints(near):
            target = filled(rule)
            given = answer(through, method, target, fields | who)
            expected = answer(direct, method, target, fields | forwarded(host))
            assert given == expected, (method, target)


@pytest.mark.parametrize(
    ('path', 'credentials'),
    [
        ('/basic-auth/owner/secret', ('--basic', '-u', 'owner:secret')),
        ('/digest-auth/auth/owner/secret', ('--digest', '-u', 'owner:secret')),
        ('/digest-auth/auth-int/owner/secret/SHA-256', ('--digest', '-u', 'owner:secret')),
        ('/bearer', ('-H', 'Authorization: Bearer a-token')),
    ],
)
def test_credentials_of_the_site_arrive_by_name(site, path, credentials):
    common = 'curl', '-sS', '--noproxy', '*', '--cacert', site.crt_file
    told = json.loads(check_output([*common, *credentials, site.named + path]))
    assert told.pop('authenticated') is True
    assert told in ({'user': 'owner'}, {'token': 'a-token'})
