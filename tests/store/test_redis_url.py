"""redis_url and the options of nodes, as local.py gives them."""

import re

import pytest

from rendezvous.store import options as local
from rendezvous.store import redis_url
from rendezvous.store.redis_url import CLUSTER, SENTINEL, UNIX, Place
from rendezvous.wire.programs import Mistake

SECRET = 'swordfish'
REDIS = {'redis_url': 'redis://192.0.2.1'}
TOKEN = 'x' * 32

GOOD = {
    'redis://a.b': Place('', [('a.b', 6379)]),
    'redis://a.b/': Place('', [('a.b', 6379)]),
    'redis://127.0.0.1:1/2': Place('', [('127.0.0.1', 1)], database=2),
    'redis://[::1]:7/0': Place('', [('::1', 7)]),
    'redis://:secret@a.b': Place('', [('a.b', 6379)], password='secret'),
    'redis://user:p%40s%2Fs%23%3A%3F%25@a.b:1': Place(
        '', [('a.b', 1)], user='user', password='p@s/s#:?%'
    ),
    'rediss://a.b': Place('', [('a.b', 6379)], has_tls=True),
    'unix:///run/redis.sock': Place(UNIX, [], '/run/redis.sock'),
    'unix://user:secret@/run/a%20redis.sock?db=3': Place(
        UNIX, [], '/run/a redis.sock', database=3, user='user', password='secret'
    ),
    'redis+sentinel://a.b,c.d:1/mymaster': Place(
        SENTINEL, [('a.b', 26379), ('c.d', 1)], service='mymaster'
    ),
    'redis+sentinel://:secret@a.b/mymaster/4?sentinel_password=a+%26': Place(
        SENTINEL,
        [('a.b', 26379)],
        service='mymaster',
        database=4,
        password='secret',
        more={'sentinel_password': 'a+&'},
    ),
    'rediss+cluster://[fd00::1],a.b:1': Place(
        CLUSTER, [('fd00::1', 6379), ('a.b', 1)], has_tls=True
    ),
}


@pytest.mark.parametrize('url', GOOD)
def test_url_says_where_redis_is(url):
    assert redis_url.place(url) == GOOD[url]


@pytest.mark.parametrize(
    'url',
    [
        *('192.0.2.1', 'a.b:6379', 'http://a.b', 'redis:a.b', 'redis://', 'redis:///0', 'redis'),
        *('redis://:swordfish@', 'redis://a.b:x', 'redis://a.b:0', 'redis://a.b:99999'),
        *('redis://a..b', 'redis://a.b,c.d', 'redis://a.b/x', 'redis://a.b/-1', 'redis://a.b/0/1'),
        *(
            'redis://a.b/\u0661',
            'redis://a.b/123456',
            'redis://[a.b]',
            'redis://[::1',
            'redis://a b',
        ),
        *('redis://a.b?ssl_ca_certs=x', 'redis://a.b?db=1', 'redis://a.b?socket_timeout=1'),
        *('rediss://a.b?ssl_cert_reqs=none', 'rediss://a.b?ssl_ca_certs=', 'rediss://a.b?x'),
        *('unix://run/redis.sock', 'unix://', 'unix:///run/x?db=a', 'unix+cluster:///x'),
        *('redis+unix:///x', 'redis+sentinel://a.b', 'redis+sentinel://a.b/', 'redis+x://a.b'),
        *('redis+sentinel:///mymaster', 'redis+sentinel://a.b/mymaster/x', 'redis+sentinel://,/m'),
        *('redis+cluster://a.b/1', 'redis+cluster://a.b,,', 'redis+sentinel://a.b/mymaster/0/1'),
        # A password with a character that should have been encoded is not shown
        *(f'redis://user:{SECRET}{each}1@a.b/0' for each in '/?#@'),
        *(f'redis://{SECRET}{each}1@a.b/0' for each in '/?#'),
        *(f'redis+sentinel://:{SECRET}{each}{SECRET}@a.b/m' for each in '/?#@'),
        *(f'rediss://:{SECRET}?{SECRET}@a.b', f'rediss://a.b?{SECRET}=1', f'unix://{SECRET}'),
    ],
)
def test_url_that_is_none_is_one_sentence_with_an_example_and_without_a_secret(tmp_path, url):
    sentence = mistake(tmp_path, redis_url=url)
    assert re.match('local.py: redis_url .*; for example .*', sentence)
    assert SECRET not in sentence
    example = re.search("for example '(.*)'", sentence)[1]
    assert redis_url.place(example)


@pytest.mark.parametrize(
    ('url', 'why'),
    [
        ('redis://a.b:639000', 'must have a port that is at most 65535'),
        ('redis+cluster://a.b,[::1]:70000', 'must have a port that is at most 65535'),
        (
            'redis://a.b?foo=1',
            r'must have no \? \(ssl_ca_certs, ssl_certfile, ssl_keyfile: with TLS',
        ),
    ],
)
def test_what_is_wrong_with_a_url_is_said(tmp_path, url, why):
    assert re.match(f'local.py: redis_url {why}', mistake(tmp_path, redis_url=url))


def test_place_is_named_without_user_and_password():
    for place in GOOD.values():
        text = str(place._replace(user=SECRET, password=SECRET, more={'sentinel_password': SECRET}))
        assert 'Redis' in text
        assert SECRET not in text


def write(tmp_path, **options):
    file = tmp_path / 'local.py'
    file.write_text(f'options = {options!r}')
    file.chmod(0o600)
    return file


def mistake(tmp_path, **options) -> str:
    with pytest.raises(Mistake) as raised:
        local.load(write(tmp_path, **options))
    assert str(raised.value).isprintable()
    return str(raised.value)


@pytest.mark.parametrize(
    ('name', 'value'), [('redis_host', 'a.b'), ('redis_port', 1), ('redis_auth', SECRET)]
)
def test_two_ways_to_say_where_redis_is_are_a_mistake(tmp_path, name, value):
    sentence = mistake(tmp_path, **REDIS, **{name: value})
    assert sentence == f'local.py: redis_url says where Redis is: remove {name}'


def test_copy_of_the_example_may_keep_the_defaults_beside_a_url(tmp_path):
    options = local.load(write(tmp_path, **vars(local.DEFAULTS) | REDIS))
    assert options == local.DEFAULTS | REDIS
    assert not options.has_embedded_store


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('redis_url', f'redis://:{SECRET}@a.b'),
        ('redis_url', f'redis+sentinel://a.b/m?sentinel_password={SECRET}'),
        ('node_secret', TOKEN),
    ],
)
def test_secret_in_a_file_that_everybody_may_read_is_refused(tmp_path, name, value):
    file = write(tmp_path, **{name: value})
    assert getattr(local.load(file), name) == value
    file.chmod(0o644)
    with pytest.raises(Mistake, match=rf'every user .* may read {name}: chmod 600 local\.py$'):
        local.load(file)


def test_url_without_a_password_is_no_secret(tmp_path):
    file = write(tmp_path, **REDIS)
    file.chmod(0o644)
    assert local.load(file) == local.DEFAULTS | REDIS


@pytest.mark.parametrize('name', redis_url.TLS_FILES)
def test_file_of_tls_that_cannot_be_read_is_named(tmp_path, name):
    url = f'rediss://a.b?{name}={tmp_path}/missing.pem'
    sentence = mistake(tmp_path, redis_url=url)
    assert sentence.startswith(f'cannot read {tmp_path}/missing.pem: ')
    assert f'as {name} in redis_url' in sentence
    (tmp_path / 'missing.pem').touch()
    assert local.load(write(tmp_path, redis_url=url)).redis_url == url


def test_node_needs_a_redis_that_all_nodes_share(tmp_path):
    assert re.match('.*a node needs a Redis .*set redis_url', mistake(tmp_path, node_host='a.b'))
    assert local.load(write(tmp_path, node_host='a.b', **REDIS)).node_host == 'a.b'
    assert local.load(write(tmp_path, node_host='a.b', redis_host='c.d')).node_host == 'a.b'


@pytest.mark.parametrize('host', ['0.0.0.0', '::', '0:0::0'])
def test_node_is_reached_by_an_address(tmp_path, host):
    sentence = mistake(tmp_path, node_host=host, **REDIS)
    assert 'node_host must be an address by which the other nodes reach this one' in sentence


@pytest.mark.parametrize('token', ['x', 'x' * 31, TOKEN + ' ', 'é' * 32, TOKEN + '"'])
def test_secret_of_nodes_that_can_be_guessed_is_refused_and_not_told(tmp_path, token):
    sentence = mistake(tmp_path, node_secret=token)
    assert sentence.startswith('local.py: node_secret must be at least 32 letters, digits and ')
    assert sentence.endswith(f' prints: {local.MAKE_TOKEN}')
    assert token * 3 not in sentence
