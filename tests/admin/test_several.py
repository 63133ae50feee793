"""What the forms do: one entry, several at once, twice by an impatient click; and the log of it."""

import io
import json
import re
import subprocess
import sys
import time
import uuid as uuids
import zipfile
from html import unescape

import gevent
import pytest
from conftest import free_port, until
from programs import Folder, Outside
from visitor import Visitor, files

from rendezvous.admin import changes_page
from rendezvous.admin.changes_page import Once
from rendezvous.store import action_log, rations

MADE_UP = re.compile('name="made_up" value="(.*?)"')


@pytest.fixture(scope='module')
def named(tmp_path_factory):
    """A page with host names, for all tests of a module."""
    with Folder(tmp_path_factory.mktemp('named'), names_domain='names.example') as folder:
        folder.pair()
        page = Visitor(folder)
        yield page
        assert 'Traceback' not in page.program.said()


@pytest.fixture
def names(named):
    """The same, without entries at the start of each test."""
    yield named
    named.folder.redis('FLUSHALL')
    named.read_again()


def text(response) -> str:
    """What can be read of an answer, less the white space."""
    main = re.search('<main.*?</main>', response.text, re.S)[0]
    return ' '.join(unescape(re.sub(r'<[^>]*>', ' ', main)).split())


def several(page, what: str, uuids: list[str], **more):
    """Sends the form of the index, or with `sure` that of the question."""
    fields = [('token', page.token), ('what', what), *(('uuid', uuid) for uuid in uuids)]
    return page.ask('POST', '/several', data=[*fields, *more.items()])


def do(page, what: str, uuids: list[str]):
    """Presses the button of the question."""
    question = several(page, what, uuids)
    assert question.status_code == 200, question.text
    fields = re.findall('<input type="hidden" name="(.*?)" value="(.*?)">', question.text)
    form = dict(fields)
    assert (form['what'], form['sure']) == (what, '1')
    assert [value for name, value in fields if name == 'uuid'] == uuids
    return page.ask('POST', '/several', data=fields[1:])  # the first token is that of Log out


def entry(page, uuid: str) -> dict:
    return json.loads(page.folder.redis('GET', uuid))


def log(page) -> list[tuple[str, str, str]]:
    """What was done, the oldest first, but logins."""
    rows = [json.loads(row) for row in reversed(page.folder.redis('LRANGE', 'log', 0, -1))]
    return [(row['what'], row['uuid'], row['who']) for row in rows if row['uuid']]


# One entry


def test_label_notes_and_host_name_are_saved_by_one_form(names):
    uuid = names.made(label='kitchen')
    response = names.send(f'/entries/{uuid}/save', label='Attic', note='a\r\nb', named='1')
    assert response.url == f'{names.url}/entries/{uuid}?done=name'
    assert 'It is saved. Its label is its host name: who guesses it reaches the' in text(response)
    assert (entry(names, uuid)['labels'], entry(names, uuid)['note']) == (['Attic'], 'a\nb')
    assert names.folder.redis('HGET', 'names', 'attic') == uuid
    assert '"Attic"' in files(names.folder, uuid)[f'{uuid}.json']
    response = names.send(f'/entries/{uuid}/save', label='loft')
    assert response.url.endswith('?done=address')
    assert entry(names, uuid)['note'] == 'a\nb'  # what a form does not have stays
    assert names.folder.redis('HGET', 'names', 'loft') == uuid
    both = [('token', names.token), ('named', '0'), ('named', '1')]  # a checkbox that is on
    assert names.ask('POST', f'/entries/{uuid}/save', data=both).url.endswith('?done=save')
    assert names.send(f'/entries/{uuid}/save', named='0').url.endswith('?done=unname')
    assert not names.folder.redis('EXISTS', 'names')
    assert {who for *_, who in log(names)} == {log(names)[0][2]}


def test_nothing_is_saved_where_one_of_the_three_cannot_be_and_what_was_typed_stays(names):
    uuid = names.made(label='kitchen')
    before = names.folder.redis('GET', uuid)
    for fields in (
        {'label': 'in the attic', 'note': 'a note', 'named': '1'},
        {'label': 'x' * 101, 'note': 'a note'},
        {'label': 'attic', 'note': 'x' * 401},
        {'label': 'a\x1bb', 'note': 'a note'},
        {'label': '', 'note': 'a note', 'named': '1'},
    ):
        response = names.send(f'/entries/{uuid}/save', **fields)
        assert len(names.refusal(response)) > 20
        assert fields['note'] in response.text
        assert names.folder.redis('GET', uuid) == before
        assert not names.folder.redis('EXISTS', 'names')


def form(page, uuid: str, shown: str = '') -> dict[str, str]:
    """The fields of the form of an entry, as a browser sends them where nothing was typed."""
    shown = shown or page.ask('GET', f'/entries/{uuid}').text
    (fields,) = re.findall(f'action="/entries/{uuid}/save".*?</form>', shown, re.S)
    inputs = re.findall('<input (?:type="hidden" )?name="(.*?)"[^>]* value="([^"]*)">', fields)
    note = re.search('<textarea[^>]*>\n(.*?)</textarea>', fields, re.S)[1]
    box = {'named': '1'} if ' checked>' in fields else {}
    every = dict(inputs) | {'note': note} | box
    return {name: unescape(text).replace('\n', '\r\n') for name, text in every.items()}


def test_fields_that_were_not_touched_undo_nothing_that_others_changed(names):
    uuid = names.made(label='kitchen')
    names.change(uuid, 'save', note='first\nsecond')
    shown = form(names, uuid)
    assert (shown['label'], shown['note'], shown['named']) == ('kitchen', 'first\r\nsecond', '0')
    names.change(uuid, 'save', label='cellar', named='1')  # in another tab, or by the shell
    assert names.change(uuid, 'save', **shown | {'note': 'third'}).ok
    assert (entry(names, uuid)['labels'], entry(names, uuid)['note']) == (['cellar'], 'third')
    assert names.folder.redis('HGET', 'names', uuid) == 'cellar'
    lines = len(log(names))
    assert names.change(uuid, 'save', **shown).ok  # nothing was typed
    assert (entry(names, uuid)['note'], len(log(names))) == ('third', lines)


def test_what_two_have_changed_is_not_saved_but_told_and_what_was_typed_stays(names):
    uuid = names.made(label='kitchen')
    typed = form(names, uuid) | {'label': 'attic', 'named': '1'}
    names.change(uuid, 'save', label='cellar', note='beside the\ndoor')
    before = names.folder.redis('GET', uuid)
    answer = names.change(uuid, 'save', **typed)
    sentence = 'the label was changed meanwhile to cellar: look, and save again'
    assert names.refusal(answer) == sentence
    assert names.folder.redis('GET', uuid) == before
    again = form(names, uuid, answer.text)
    assert (again['label'], again['was_label'], again['named']) == ('attic', 'cellar', '1')
    assert again['note'] == again['was_note'] == 'beside the\r\ndoor'  # they did not touch it
    assert names.change(uuid, 'save', **again).url.endswith('?done=name')
    assert (entry(names, uuid)['labels'], entry(names, uuid)['note']) == (
        ['attic'],
        'beside the\ndoor',
    )


def test_each_field_that_two_have_changed_is_named(names):
    uuid = names.made(label='kitchen')
    names.change(uuid, 'save', note='old')
    typed = form(names, uuid) | {'label': 'attic', 'note': 'mine'}
    names.change(uuid, 'save', label='', note='theirs')
    sentence = 'the label was removed meanwhile, the notes were changed meanwhile as is shown '
    sentence += 'above: look, and save again'
    assert names.refusal(names.change(uuid, 'save', **typed)) == sentence
    names.change(uuid, 'save', label='attic', note='mine')
    assert names.change(uuid, 'save', **typed).ok  # both wanted the same; or it was sent twice


def test_label_that_was_never_seen_is_made_no_host_name(names):
    uuid = names.made(label='kitchen')
    typed = form(names, uuid) | {'named': '1'}
    names.change(uuid, 'save', label='cellar')
    answer = names.change(uuid, 'save', **typed)
    assert names.refusal(answer).startswith('the label was changed meanwhile to cellar: ')
    assert not names.folder.redis('EXISTS', 'names')
    again = form(names, uuid, answer.text)
    assert (again['label'], again['named']) == ('cellar', '1')
    assert names.change(uuid, 'save', **again).ok
    assert names.folder.redis('HGET', 'names', uuid) == 'cellar'


@pytest.mark.parametrize('what', ['disable', 'enable', 'rekey', 'clear'])
def test_what_is_done_is_said_on_the_page_of_the_entry(page, what):
    uuid = page.made(label='kitchen')
    response = page.change(uuid, what)
    assert response.url == f'{page.url}/entries/{uuid}?done={what}'
    assert changes_page.DONE[what] in text(response)


def test_connection_that_is_over_cannot_be_ended(page):
    uuid = page.made(label='kitchen')
    for fields in ({}, {'worker': 'x', 'pipe': '1'}, {'worker': '\r\n', 'pipe': '\0'}):
        sentence = page.refusal(page.change(uuid, 'end', **fields))
        assert sentence == 'that connection is over already'


def test_wrong_codes_that_were_tried_are_forgotten(page):
    uuid = page.made(label='kitchen')
    record = rations.record(uuid)
    page.folder.redis('HSET', record, 'used_up', time.time())
    assert page.change(uuid, 'clear').ok
    assert not page.folder.redis('HEXISTS', record, 'used_up')


@pytest.mark.parametrize('what', [*changes_page.WHATS])
def test_entry_that_was_deleted_meanwhile_is_a_page_that_says_so(page, what):
    uuid = str(uuids.uuid4())
    sentence = page.refusal(page.change(uuid, what, label='x'), 404)
    assert sentence == f'There is no entry {uuid}.'
    assert page.folder.redis('DBSIZE') in (0, 1)  # the log, of logins


# Twice


def test_impatient_double_click_makes_one_entry(page):
    made_up = MADE_UP.search(page.ask('GET').text)[1]
    fields = {'label': 'kitchen', 'made_up': made_up}
    clicks = [gevent.spawn(page.create, **fields) for _ in range(5)]
    answers = [click.get() for click in clicks]
    assert len({answer.url for answer in answers}) == 1
    assert list(page.listed().values()) == ['kitchen']
    assert [what for what, *_ in log(page)] == ['made']
    assert page.create(**fields).url == answers[0].url  # who goes back and sends it again
    assert page.create(**fields | {'label': 'attic'}).url != answers[0].url
    assert sorted(page.listed().values()) == ['attic', 'kitchen']


def test_double_click_with_a_typed_uuid_makes_one_entry_and_no_error(page):
    uuid = str(uuids.uuid4())
    made_up = MADE_UP.search(page.ask('GET').text)[1]
    clicks = [gevent.spawn(page.create, uuid, 'x', made_up=made_up) for _ in range(3)]
    assert {click.get().url for click in clicks} == {f'{page.url}/entries/{uuid}?done=create'}
    assert page.create(uuid, 'x', made_up='other').status_code == 400
    assert page.create(uuid, 'x').status_code == 400


@pytest.mark.parametrize('what', ['rekey', 'delete'])
def test_double_click_on_what_cannot_be_undone_does_it_once(page, what):
    uuid = page.made()
    shown = page.ask('GET', f'/entries/{uuid}').text
    form = re.search(f'<form[^>]*/{uuid}/{what}".*?</form>', shown, re.S)[0]
    (made_up,) = MADE_UP.findall(form)
    clicks = [gevent.spawn(page.change, uuid, what, made_up=made_up) for _ in range(3)]
    answers = [click.get() for click in clicks]
    assert [answer.status_code for answer in answers] == [200] * 3, answers[-1].text
    assert len({answer.url for answer in answers}) == 1
    assert len(log(page)) == 2  # it was made, and that


def test_form_that_was_refused_may_be_sent_again(page):
    made_up = MADE_UP.search(page.ask('GET').text)[1]
    response = page.create('malformed', 'kitchen', made_up=made_up)
    assert 'is not a UUID' in page.refusal(response)
    assert 'value="malformed"' in response.text
    assert 'value="kitchen"' in response.text
    again = MADE_UP.search(response.text)[1]
    assert page.create('', 'kitchen', made_up=made_up).ok
    assert page.create('', 'kitchen', made_up=again).ok
    assert sorted(page.listed().values()) == ['kitchen', 'kitchen']


def test_who_waits_for_the_first_of_two_gets_its_error_too():
    once, started = Once(), []

    def fail() -> None:
        started.append(1)
        gevent.sleep(0.01)
        raise ValueError('why')

    clicks = [gevent.spawn(once, 'form', 'asked', fail) for _ in range(3)]
    gevent.joinall(clicks)
    assert [str(click.exception) for click in clicks] == ['why'] * 3
    assert len(started) == 1
    assert once('form', 'asked', lambda: 'done') == 'done'
    assert once('form', 'asked', lambda: 'twice') == 'done'
    assert once('', 'asked', lambda: 1) + once('', 'asked', lambda: 1) == 2


def test_forms_that_are_remembered_are_bounded():
    once = Once()
    for number in range(2 * changes_page.REMEMBERED):
        once(str(number), 'asked', lambda: 'done')
    assert len(once._answers) == changes_page.REMEMBERED


# Several


def test_several_are_asked_for_first_and_nothing_is_done_before(page):
    made = [page.made(label=label) for label in ('kitchen', 'attic', '')]
    before = [page.folder.redis('GET', uuid) for uuid in made]
    for what in ('disable', 'rekey', 'delete'):
        question = several(page, what, made)
        words = changes_page.SEVERAL[what]
        assert f'{words.question} 3 hidden servers?' in text(question)
        assert words.sentence in text(question)
        assert all(each in question.text for each in (*made, 'kitchen', 'attic'))
    assert [page.folder.redis('GET', uuid) for uuid in made] == before


def test_several_are_disabled_enabled_rekeyed_and_deleted(page):
    made = [page.made(label=str(number)) for number in range(3)]
    others = page.made(label='other')
    assert '3 are disabled.' in text(do(page, 'disable', made))
    assert all(entry(page, uuid)['disabled'] for uuid in made)
    assert '2 are enabled.' in text(several(page, 'enable', made[:2]))
    assert [bool(entry(page, uuid).get('disabled')) for uuid in made] == [False, False, True]
    before = [entry(page, uuid)['authParams']['base32'] for uuid in made]
    answer = do(page, 'rekey', made)
    assert '3 are given a new secret.' in text(answer)
    secrets = [entry(page, uuid)['authParams']['base32'] for uuid in made]
    assert not set(before) & set(secrets)
    assert not [secret for secret in secrets if secret in answer.text]
    assert '1 is deleted.' in text(do(page, 'delete', made[:1]))
    assert '2 are deleted.' in text(do(page, 'delete', made[1:]))
    assert page.listed() == {others: 'other'}
    assert [what for what, *_ in log(page)].count('deleted') == 3


def test_question_tells_which_labels_cannot_be_host_names(names):
    labels = 'kitchen', 'Kitchen', 'attic', 'in the loft', '', 'garden'
    uuids = [names.made(label=label) for label in labels]
    other, gone = (names.made(label=label) for label in ('attic', 'garden'))
    for uuid in other, gone:
        assert names.send(f'/entries/{uuid}/save', named='1').ok
    names.folder.redis('DEL', gone)  # by another program; its name is free
    question = several(names, 'name', uuids)
    cells = re.findall('<td data-name="host name">(.*)', question.text)
    first, second, third, fourth, fifth, sixth = (re.sub('<.*?>', '', cell) for cell in cells)
    assert (first, sixth) == ('kitchen.names.example', 'garden.names.example')
    assert second == 'none: another one of these has the host name kitchen'
    assert third == 'none: another entry has the host name attic'
    assert fourth.startswith('none: a name has 1 to 63 characters')
    assert fifth == 'none: it has no label'
    assert text(question).endswith('Make 2 of 6 labels host names Leave it')
    done = do(names, 'name', uuids)
    assert text(done).startswith('Host names 2 are given a host name, 4 are not.')


def test_button_makes_as_many_host_names_as_there_can_be(names):
    kitchen, attic, none = [names.made(label=label) for label in ('kitchen', 'in the attic', '')]
    question = several(names, 'name', [kitchen])
    assert text(question).endswith('Make the labels host names Leave it')
    question = several(names, 'name', [kitchen, none])
    assert text(question).endswith('Make 1 of 2 labels a host name Leave it')
    question = several(names, 'name', [attic, none])
    assert 'none: it has no label' in text(question)
    assert text(question).endswith('None of these can have a host name. Leave it')
    assert 'name="sure"' not in question.text


def test_page_says_that_other_entries_have_the_label(page):
    assert 'this label' not in page.create(label='Kitchen').text
    said = '1 other entry has this label: commands need the UUID then.'
    assert said in text(page.create(label='kitchen'))
    assert '2 other entries have this label: commands' in text(page.create(label=' kitchen '))
    assert 'this label' not in page.create(label='').text
    assert 'this label' not in page.create(label='').text
    for nonsense in ('x', '-1', '<b>', '9' * 5000):
        assert page.ask('GET', f'/?done=save&others={nonsense}').ok
    assert 'this label' not in page.ask('GET', '/?others=3').text


def test_one_that_cannot_be_is_told_with_why_and_the_others_are_done(names):
    kitchen, attic, none, gone = [
        names.made(label=label) for label in ('Kitchen', 'in the <b>attic</b>', '', 'gone')
    ]
    names.folder.redis('HSET', 'names', 'gone', kitchen, kitchen, 'gone')
    answer = do(names, 'name', [kitchen, attic, none])
    told = text(answer)
    assert told.startswith('Host names 1 is given a host name, 2 are not.')
    assert "'in the <b>attic</b>' cannot be a host name: a name has 1 to 63 characters" in told
    assert '<b>' not in answer.text
    assert 'an entry without a label has no host name: give it a label' in told
    assert names.folder.redis('HGET', 'names', kitchen) == 'gone'  # it has one, and keeps it
    question = several(names, 'delete', [gone, kitchen])
    names.change(gone, 'delete')
    fields = re.findall('<input type="hidden" name="(.*?)" value="(.*?)">', question.text)
    answer = names.ask('POST', '/several', data=fields[1:])
    assert text(answer).startswith('Delete 1 is deleted, 1 is not.')
    assert f'there is no entry {gone}' in text(answer)


def test_answer_that_is_loaded_again_does_nothing_again(page):
    uuid = page.made(label='kitchen')
    question = several(page, 'rekey', [uuid])
    fields = re.findall('<input type="hidden" name="(.*?)" value="(.*?)">', question.text)[1:]
    first = page.ask('POST', '/several', data=fields)
    secret = entry(page, uuid)['authParams']['base32']
    second = page.ask('POST', '/several', data=fields)
    assert text(first) == text(second)
    assert entry(page, uuid)['authParams']['base32'] == secret
    assert [what for what, *_ in log(page)] == ['made', 'new secret']


def test_log_has_each_file_with_a_secret_that_was_given_out(page):
    kitchen, attic = (page.made(label=label) for label in ('kitchen', 'attic'))
    for name in (f'{kitchen}.pyz', f'{kitchen}.json', f'{attic}.js'):
        assert page.ask('HEAD', f'/entries/{name}').ok
        assert page.ask('GET', f'/entries/{name}').ok
    assert several(page, 'pack', [kitchen, attic]).ok
    page.change(attic, 'secret')
    rows = [json.loads(row) for row in page.folder.redis('LRANGE', 'log', 0, 5)]
    assert len({row['who'] for row in rows}) == 1
    assert [(row['what'], row['uuid'], row['label'], row['detail']) for row in rows] == [
        ('secret shown', attic, 'attic', ''),
        ('file given out', attic, 'attic', 'attic.pyz'),
        ('file given out', kitchen, 'kitchen', 'kitchen.pyz'),
        ('file given out', attic, 'attic', f'{attic}.js'),
        ('file given out', kitchen, 'kitchen', f'{kitchen}.json'),
        ('file given out', kitchen, 'kitchen', 'kitchen.pyz'),
    ]


def test_packs_of_several_come_as_one_zip_and_run(page, tmp_path):
    made = [page.made(label=label) for label in ('kitchen', 'Kitchen', 'attic')]
    response = several(page, 'pack', made)
    assert response.headers['Content-Type'] == 'application/zip'
    assert 'hidden-servers.zip' in response.headers['Content-Disposition']
    assert response.headers['Cache-Control'] == 'no-store'
    assert response.headers['Referrer-Policy'] == 'no-referrer'
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.namelist() == ['kitchen.pyz', f'Kitchen-{made[1]}.pyz', 'attic.pyz']
        assert {info.external_attr >> 16 for info in archive.infolist()} == {0o600}
        for uuid, name in zip(made, archive.namelist(), strict=True):
            with zipfile.ZipFile(io.BytesIO(archive.read(name))) as packed:
                document = json.loads(packed.read('rendezvous/hidden/entry.json'))
            assert document['uuid'] == [uuid]
            assert document['authParams'] == entry(page, uuid)['authParams']
        archive.extractall(tmp_path)
    ran = subprocess.run(
        [sys.executable, tmp_path / 'kitchen.pyz', '--help'], capture_output=True, timeout=30
    )
    assert ran.returncode == 0, ran.stderr


def test_pack_that_cannot_be_made_is_told_and_the_others_can_be_had(page):
    good, other, bad = [page.made(label=label) for label in ('good', 'other', 'bad')]
    page.folder.redis('SET', bad, json.dumps({'labels': ['bad']}))
    gone = str(uuids.uuid4())
    answer = several(page, 'pack', [good, other, bad, gone])
    assert text(answer).startswith('Download 2 are ready, 2 are not.')
    assert f'the entry {bad} has no usable secret: give it a new one' in text(answer)
    assert f'there is no entry {gone}' in text(answer)
    fields = re.findall('<input type="hidden" name="(.*?)" value="(.*?)">', answer.text)[1:]
    assert [value for name, value in fields if name == 'uuid'] == [good, other]
    zipped = page.ask('POST', '/several', data=[*fields, ('what', 'pack')])
    assert zipfile.ZipFile(io.BytesIO(zipped.content)).namelist() == ['good.pyz', 'other.pyz']
    alone = several(page, 'pack', [good])
    assert alone.url == f'{page.url}/entries/{good}.pyz'
    assert 'good.pyz' in alone.headers['Content-Disposition']


def test_new_files_of_several_can_be_had_after_their_new_secrets(page):
    made = [page.made(label=label) for label in ('kitchen', 'attic')]
    answer = do(page, 'rekey', made)
    assert 'Download their files, as a zip' in text(answer)


@pytest.mark.parametrize(
    ('fields', 'sentence'),
    [
        ({'what': 'delete'}, 'choose at least one hidden server'),
        ({'what': 'delete', 'uuid': 'x'}, 'choose at least one hidden server'),
        ({'what': 'evil', 'uuid': str(uuids.uuid4())}, 'this page does not know what to do '),
        ({'uuid': str(uuids.uuid4())}, 'this page does not know what to do with several '),
        ({'what': 'name', 'uuid': str(uuids.uuid4())}, 'there are no host names yet: set names'),
        ({'what': 'delete', 'uuid': str(uuids.uuid4())}, 'these hidden servers have no entries'),
    ],
)
def test_what_cannot_be_done_with_several_is_one_sentence(page, fields, sentence):
    assert page.refusal(page.send('/several', **fields)).startswith(sentence)


def test_at_most_so_many_at_once(page):
    many = [str(uuids.uuid4()) for _ in range(changes_page.MOST + 1)]
    sentence = page.refusal(several(page, 'delete', many))
    assert sentence == f'choose at most {changes_page.MOST} hidden servers at once, not 201'


def test_redis_that_is_down_is_told_and_the_form_may_be_sent_again(folder, tmp_path):
    with Outside(tmp_path, free_port()) as redis:
        folder.set(**redis.options)
        page = Visitor(folder)
        made = [page.made(label=str(number)) for number in range(3)]
        question = several(page, 'disable', made)
        fields = re.findall('<input type="hidden" name="(.*?)" value="(.*?)">', question.text)
        redis.stop()
        before = time.monotonic()
        answer = page.ask('POST', '/several', data=fields[1:])
        assert page.refusal(answer, 503).startswith('Redis does not answer')
        assert time.monotonic() - before < 20
        redis.start()  # empty
        answer = until(lambda: page.ask('POST', '/several', data=fields[1:]), 'it is back')
        assert '0 are disabled, 3 are not.' in text(answer)


# The log


def test_log_shows_what_was_done_the_newest_first_with_links(page):
    kitchen, attic = page.made(label='kitchen'), page.made(label='<i>attic</i>')
    page.change(attic, 'disable')
    page.change(kitchen, 'delete')
    answer = page.ask('GET', '/log')
    shown = text(answer)
    places = [shown.index(word) for word in ('Deleted', 'Disabled', 'Made')]
    assert places == sorted(places)
    assert '<i>' not in answer.text
    assert f'<a href="/entries/{attic}"><bdi>&lt;i&gt;attic' in answer.text
    assert f'href="/entries/{kitchen}"' not in answer.text  # it is there no more
    session = re.search('This is (session [0-9a-f]{4}).', shown)[1]
    assert shown.count(f'page, {session}') == 4
    one = page.ask('GET', f'/log?uuid={attic.upper()}')
    assert 'kitchen' not in one.text
    assert 'Log of <i>attic</i>' in text(one)
    gone = text(page.ask('GET', f'/log?uuid={kitchen}'))
    assert gone.startswith(f'Log of {kitchen}')
    assert 'Deleted' in gone


def test_log_has_pages_and_junk_in_its_address_is_harmless(page):
    for number in range(150):
        row = action_log.Action('renamed', time.time(), '', str(number), 'shell, bob', '')
        page.folder.redis('LPUSH', 'log', json.dumps(row._asdict()))
    first = page.ask('GET', '/log')
    assert 'Page 1 of 2' in text(first)
    assert 'href="/log?page=2"' in first.text
    assert 'Page 2 of 2' in text(page.ask('GET', '/log?page=2'))
    for query in (
        'page=-1',
        'page=x',
        'page=999',
        'page=' + '9' * 5000,
        'uuid=x',
        'uuid="><script>',
    ):
        answer = page.ask('GET', f'/log?{query}')
        assert answer.ok
        assert '<script>' not in answer.text


def test_empty_log_and_one_of_another_program(page):
    page.folder.redis('DEL', 'log')
    assert 'Nothing was done yet.' in text(page.ask('GET', '/log'))
    page.folder.redis('SET', 'log', 'mine')
    assert 'Nothing was done yet.' in text(page.ask('GET', '/log'))
    assert page.made(label='kitchen')
    assert page.folder.redis('GET', 'log') == 'mine'
    page.folder.redis('DEL', 'log')


def test_error_page_has_its_heading_before_the_reason(page):
    shown = text(page.ask('GET', '/nothing'))
    assert shown.startswith('That did not work There is no page at this address. To the hidden')


def test_new_entry_has_uuid_and_digits_under_more(page):
    form = re.search('<form[^>]*action="/entries".*?</form>', page.ask('GET').text, re.S)[0]
    before, _, more = form.partition('<details')
    assert 'name="label"' in before
    assert 'name="uuid"' not in before
    assert 'name="uuid"' in more
    assert 'name="digits"' in more
    assert not more.startswith(' class="more" open')
