"""The page in a real Chromium: what an administrator does there, and what other pages try."""

import json
import shutil
from urllib.parse import unquote, urlsplit

import gevent
import pytest
from browser import Browser
from conftest import get, until
from gevent.pywsgi import WSGIServer
from visitor import LINK

TITLES = 'return document.querySelector("time").title'
ICON = 'return document.querySelector("link[rel=icon]").href'
CLIPBOARD = ['clipboardReadWrite', 'clipboardSanitizedWrite']

pytestmark = pytest.mark.deadline(120)


@pytest.fixture
def browser(story):
    return story.browser


def test_create_copy_and_download(story, browser):
    uuid = story.create('kitchen')
    assert 'The entry is made.' in browser.text
    browser.cdp('Browser.grantPermissions', permissions=CLIPBOARD)
    copies = {
        'the UUID': uuid,
        'the curl command': 'curl --cacert registrar.crt '
        f'https://{uuid}.rendezvous.localhost:{story.port}/',
    }
    for what, text in copies.items():
        browser.press(f'//button[@aria-label="Copy {what}"]')
        browser.until_it_says(f'Copied {text}')
        assert browser.run('return navigator.clipboard.readText()') == text
    browser.run('document.getElementById("copied").textContent = ""')
    browser.press('//code')  # a part of a text can be selected: only its button copies it
    assert browser.run('return document.getElementById("copied").textContent') == ''
    browser.click('Download kitchen.pyz')
    file = browser.downloads / 'kitchen.pyz'
    until(file.exists, 'the file is there')
    hidden = story.folder.start(str(file), '127.0.0.1:8000')
    hidden.until_it_says('registered at')
    hidden.end()
    browser.click('As a service, with hidden.py, or in Node.js')
    for suffix in ('json', 'js'):
        browser.click(f'Download ID.{suffix}')
        file = browser.downloads / f'{uuid}.{suffix}'
        until(file.exists, 'the file is there')
        assert file.read_text() == (story.folder.path / 'entries' / file.name).read_text()


def test_link_to_the_hidden_server_opens_a_tab_and_copies_nothing(story, browser):
    uuid = story.create('kitchen')
    ours = browser.driver.current_window_handle
    browser.click(f'https://{uuid}.rendezvous.localhost:{story.port}/')
    (other,) = until(lambda: set(browser.driver.window_handles) - {ours}, 'there is another tab')
    browser.driver.switch_to.window(other)
    assert browser.run('return window.opener') is None
    browser.driver.close()
    browser.driver.switch_to.window(ours)
    assert browser.run('return document.getElementById("copied").textContent') == ''


def test_it_comes_online_and_goes_offline_by_itself(story, browser, download):
    uuid = story.create('kitchen')
    browser.visit(story.url)
    assert story.state('kitchen') == 'never seen'
    assert browser.run('return document.title') == '0 of 1 online · rendezvous'
    icon = browser.run(ICON)
    browser.run('window.link = document.querySelector("a.label"); link.focus()')
    hidden = story.hidden(uuid, download)
    story.until_it_is('kitchen', 'online')
    assert browser.run('return document.title') == '1 of 1 online · rendezvous'
    assert browser.run(ICON) != icon
    hidden.end(9)
    story.until_it_is('kitchen', 'offline')
    assert browser.run('return document.title') == '(1 offline) 0 of 1 online · rendezvous'
    assert '>1</text>' in unquote(browser.run(ICON)), 'the icon says how many'
    assert browser.run('return document.activeElement === window.link')  # nothing else changed


def test_focus_and_ticks_stay_while_rows_come_and_go(story, browser):
    story.create('garage')
    browser.visit(story.url)
    browser.press('//input[@type = "checkbox"]')
    browser.run('document.activeElement.blur(); document.querySelector("a.label").focus()')
    first = story.folder.add('barn')['uuid'][0]
    browser.until_it_says('barn')
    assert browser.run('return document.activeElement.textContent') == 'garage'
    ticked = 'return [...document.querySelectorAll("input:checked")].map(each => each.ariaLabel)'
    assert browser.run(ticked) == ['Choose garage']
    story.folder.run('users_app.py', 'delete', '--yes', first)
    until(lambda: 'barn' not in browser.text, 'it is gone')
    assert browser.run('return document.activeElement.textContent') == 'garage'
    assert browser.run(ticked) == ['Choose garage']


def test_it_waits_for_one_that_is_new(story, browser, download):
    uuid = story.create('kitchen')
    assert 'Waiting for it…' in browser.text
    story.hidden(uuid, download)
    browser.until_it_says('Online ✓')
    browser.until_it_says('Online since')


def test_what_is_folded_out_and_selected_stays(story, browser, download):
    uuid = story.create('kitchen')
    story.hidden(uuid, download)
    browser.until_it_says('This week')
    browser.click('The same as tables')
    browser.run('getSelection().selectAllChildren(document.querySelector("#facts bdi"))')
    story.folder.run('users_app.py', 'disable', '--yes', uuid)
    browser.until_it_says('This hidden server is disabled')
    assert browser.run('return document.getElementById("numbers").open')
    assert browser.run('return String(getSelection())') == '127.0.0.1'


def test_times_are_said_in_the_zone_of_the_reader(story, browser):
    uuid = story.create('kitchen')
    browser.cdp('Emulation.setTimezoneOverride', timezoneId='Asia/Kolkata')
    try:
        story.visit(uuid)
        until(lambda: '+0530' in browser.run(TITLES), 'times are those of India', 1)
        title, words = (
            browser.run(TITLES),
            browser.run('return document.querySelector("time").innerText'),
        )
        assert words in title
        browser.visit(f'{story.url}/log')  # a page that does not ask again knows it already
        assert '+0530' in browser.run(TITLES)
    finally:
        browser.cdp('Emulation.setTimezoneOverride', timezoneId='')
        story.visit(uuid)


def test_page_of_an_entry_updates_its_buttons_and_says_once_what_was_done(story, browser):
    uuid = story.create('kitchen')
    assert 'The entry is made.' in browser.text
    story.folder.run('users_app.py', 'disable', '--yes', uuid)
    browser.find('//button[text() = "Enable"]')
    assert not browser.driver.find_elements('id', 'act-disable')
    story.folder.run('users_app.py', 'name', uuid)
    browser.until_it_says('https://kitchen.rendezvous.localhost')
    browser.visit(browser.url)
    assert 'The entry is made.' not in browser.text


def test_what_is_typed_stays_while_the_page_changes(story, browser):
    uuid = story.create('kitchen')
    browser.visit(f'{story.url}/entries/{uuid}')
    browser.run('document.querySelector("[name=label]").removeAttribute("maxlength")')
    browser.type('Label', 'x' * 101)
    browser.click('Save')
    browser.until_it_says('a label has at most 100 characters, not 101')
    browser.click('Disable…')
    browser.run('document.querySelector("#act-disable .danger").focus()')
    story.folder.run('users_app.py', 'disable', '--yes', uuid)
    browser.find('//button[text() = "Enable"]')
    assert browser.run('return document.querySelector("[name=label]").value') == 'x' * 101
    assert browser.run('return document.activeElement.nodeName') == 'BODY'  # no other deed has it
    browser.complaints()


def test_new_secret_shuts_out_the_hidden_server_that_has_the_old_one(story, browser, download):
    uuid = story.create('kitchen')
    hidden = story.hidden(uuid, download)
    browser.until_it_says('Online since')
    browser.click('New secret…')
    browser.until_it_says('The old secret and its files stop working at once')
    browser.click('Give it a new secret')
    browser.until_it_says('The entry has a new secret')
    hidden.until_it_says('not registered at .* 401')
    hidden.end()
    story.hidden(uuid, download).end()


def test_disable_ends_an_open_download_and_enable_lets_it_begin_again(story, browser, download):
    uuid = story.create('kitchen')
    hidden = story.hidden(uuid, download)
    mobile_client = story.mobile_client()
    mobile_client.send(get(uuid))
    mobile_client.receive(10_000)
    browser.until_it_says('Open connections 1')
    browser.until_it_says('4 waiting, 1 open')
    browser.click('Disable…')
    browser.click('Disable it')
    with gevent.Timeout(5, AssertionError('the download goes on')):
        mobile_client.rest()
    mobile_client.close()
    browser.until_it_says('This hidden server is disabled')
    browser.until_it_says('ended: disabled or new secret')  # how the rendezvous ended
    hidden.end()
    browser.click('Enable')
    browser.until_it_says('The entry is enabled')
    story.hidden(uuid, download).end()


def test_delete(story, browser):
    uuid = story.create('kitchen')
    browser.click('Delete…')
    browser.click('Delete it')
    browser.until_it_says('The entry is deleted.')
    browser.until_it_says('Add your first hidden server')
    assert not list((story.folder.path / 'entries').glob(f'{uuid}*'))
    for complaint in browser.complaints():  # the page may look after it once more, till it is left
        assert f'/entries/{uuid} ' in complaint
        assert '404' in complaint


def test_qr_code_is_drawn_and_the_secret_is_hidden_again(story, browser):
    uuid = story.create('kitchen')
    secret = json.loads(story.folder.redis('GET', uuid))['authParams']['base32']
    assert secret not in browser.run('return document.documentElement.outerHTML')
    browser.click('Show secret')
    browser.until_it_says(secret)
    box = browser.run('return document.querySelector(".code svg").getBoundingClientRect()')
    assert box['width'] == box['height'] > 200
    browser.click('Hide it')
    browser.until_it_says('On the hidden machine')
    assert secret not in browser.run('return document.documentElement.outerHTML')


def test_everything_works_without_javascript(story, browser):
    browser.cdp('Emulation.setScriptExecutionDisabled', value=True)
    try:
        uuid = story.create('kitchen')
        browser.type('Label', 'garage')
        browser.click('Save')
        browser.until_it_says('It is saved.')
        browser.type('Label', 'loft')
        story.folder.run('users_app.py', 'note', uuid, 'two\nlines')
        story.folder.run('users_app.py', 'rename', uuid, 'shed')
        browser.click('Save')
        browser.until_it_says('the label was changed meanwhile to shed: look, and save again')
        browser.complaints()  # of the 400
        story.folder.run('users_app.py', 'note', uuid, 'three\nother\nlines')
        browser.click('Save')
        browser.until_it_says('It is saved.')
        entry = json.loads(story.folder.redis('GET', uuid))
        assert (entry['labels'], entry['note']) == (['loft'], 'three\nother\nlines')
        browser.type('Label', 'garage')
        browser.click('Save')
        browser.until_it_says('It is saved.')
        browser.click('Show secret')
        browser.click('Hide it')
        browser.until_it_says('On the hidden machine')
        for address in 'garage', uuid:
            browser.press('//input[@type = "checkbox"]')
            browser.click('Save')
            browser.until_it_says(f'https://{address}.rendezvous.localhost')
        for what, sure, done in [
            ('Disable…', 'Disable it', 'The entry is disabled'),
            ('New secret…', 'Give it a new secret', 'The entry has a new secret'),
            ('Delete…', 'Delete it', 'The entry is deleted.'),
        ]:
            browser.click(what)
            browser.click(sure)
            browser.until_it_says(done)
        assert not story.folder.redis('EXISTS', uuid)
    finally:
        browser.cdp('Emulation.setScriptExecutionDisabled', value=False)


HOSTILE = """<!doctype html><title>hostile</title>
<iframe src="{url}/"></iframe>
<form action="{url}/entries" method="post" target="{target}">
<input name="label" value="attack"><input name="token" value="x"><button>Attack</button></form>
<script>
window.tried = Promise.allSettled([
  fetch('{url}/entries', {{method: 'POST', mode: 'no-cors', credentials: 'include',
    headers: {{'Content-Type': 'application/x-www-form-urlencoded'}}, body: 'label=attack'}}),
  fetch('{url}/', {{credentials: 'include'}}).then(response => response.text()),
  fetch('{url}/', {{mode: 'no-cors', credentials: 'include'}}),
  new Promise((good, bad) => {{
    const script = document.createElement('script');
    Object.assign(script, {{src: '{url}/static/page.js', onload: good, onerror: bad}});
    document.head.append(script);
  }}),
]).then(all => all.map(each => each.status));
</script>"""


@pytest.mark.parametrize('host', ['evil.example', '127.0.0.1'])
def test_page_of_another_origin_neither_posts_nor_reads_nor_frames(story, browser, host):
    """One of another site, and one at another port of this host, whose requests have the cookie."""
    story.create('kitchen')
    asked = []

    def hostile(environ, start_response):
        asked.append(environ['PATH_INFO'])
        start_response('200 OK', [('Content-Type', 'text/html')])
        return [HOSTILE.format(url=story.url, target='_self').encode()]

    with_page = WSGIServer(('127.0.0.1', 0), hostile, log=None)
    with_page.start()
    try:
        browser.visit(f'http://{host}:{with_page.server_port}/')
        assert browser.run('return window.tried') == ['rejected'] * 4
        browser.driver.switch_to.frame(0)
        assert 'kitchen' not in browser.text
        assert 'Log in' not in browser.text
        browser.driver.switch_to.default_content()
        browser.click('Attack')
        browser.until_it_says('This came from another web page: nothing was done.')
        assert story.labels() == ['kitchen']
        browser.complaints()  # Chromium tells what it did not let through
    finally:
        with_page.stop()


def test_foreign_host_name_that_leads_here_shows_nothing(story, browser):
    story.create('kitchen')
    url = story.url.replace('127.0.0.1', 'rebound.example')
    for path in ('/', '/login'):
        browser.visit(url + path)
        browser.until_it_says("This page is not called 'rebound.example'")
        assert 'kitchen' not in browser.text
    browser.complaints()


def test_html_in_a_label_does_nothing(story, browser):
    label = '<script>document.title="run"</script><img src=x onerror="document.title=\'run\'">'
    story.create(label)
    for text in (browser.text, browser.visit(story.url) or browser.text):
        assert label in text
    assert browser.run('return document.title') == '0 of 1 online · rendezvous'


STATUSES = """return performance.getEntriesByType('resource').filter(
  each => each.initiatorType === 'fetch').map(
  each => [each.responseStatus, each.decodedBodySize])"""


def test_nothing_is_sent_while_nothing_changes(story, browser):
    story.create('kitchen')
    until(lambda: browser.run(STATUSES)[-3:] == [[304, 0]] * 3, 'three times nothing')
    shown = browser.run('return document.body.outerHTML')
    assert 'kitchen' in shown
    assert not browser.run('return document.body.matches(".stale")')


# The parts that are updated, and as the server sends them now. A token is another one each time.
PARTS = """
const [url, done] = [location.href, arguments[0]];
const parts = of => [...of.querySelectorAll('[data-live]')].map(
  each => each.outerHTML.replace(/(name="(token|made_up)" value=")[^"]*/g, '$1')
    .replace(/ open=""/g, ''));
fetch(url).then(answer => answer.text()).then(text => done(
  [parts(document), parts(new DOMParser().parseFromString(text, 'text/html'))]));"""


def test_updated_page_is_as_the_server_sends_it(story, browser, download):
    def is_the_same() -> bool:
        shown, sent = browser.driver.execute_async_script(PARTS)
        return shown == sent

    uuid = story.create('kitchen')
    hidden = story.hidden(uuid, download)
    browser.until_it_says('Online since')  # from now on the page has another order
    mobile_client = story.mobile_client()
    mobile_client.send(get(uuid))
    for url in f'{story.url}/entries/{uuid}', story.url:
        browser.visit(url)
        until(lambda: len(browser.run(STATUSES)) > 2, 'it has asked')
        until(is_the_same, 'both are the same')
    hidden.end(9)
    mobile_client.close()
    story.until_it_is('kitchen', 'offline')
    until(is_the_same, 'both are the same')


def test_page_says_when_it_is_out_of_date(story, browser):
    story.create('kitchen')
    browser.visit(story.url)
    has_script = 'return document.documentElement.matches(".js")'
    until(lambda: browser.run(has_script), 'the script of the page is there')
    story.program.end()
    browser.until_it_says('The page does not answer since')
    assert 'kitchen' in browser.text
    browser.run('document.querySelector("main").style.minHeight = "9000px"; scrollTo(0, 5000)')
    is_seen = 'return document.getElementById("trouble").getBoundingClientRect().top >= 0'
    assert browser.run(is_seen)
    assert browser.run('return document.body.matches(".stale")')
    browser.complaints()
    port = str(urlsplit(story.url).port)
    story.program = story.folder.start('users_app.py', '--port', port)
    story.program.until_it_says(LINK.pattern)
    browser.until_it_says('Your session has ended')  # it is another one, that knows no session
    browser.visit(story.url)
    story.log_in()
    browser.complaints()


def test_whoever_logs_in_in_another_tab_goes_on_with_what_was_typed(story, browser):
    story.create('kitchen')
    browser.type('Label', 'garage')
    ours = browser.driver.current_window_handle
    browser.cdp('Network.clearBrowserCookies')
    browser.until_it_says('Your session has ended')
    browser.click('Log in again, in a new tab')
    (other,) = until(lambda: set(browser.driver.window_handles) - {ours}, 'there is another tab')
    browser.driver.switch_to.window(other)
    story.log_in()
    browser.driver.close()
    browser.driver.switch_to.window(ours)
    until(lambda: 'Your session has ended' not in browser.text, 'it goes on')
    browser.click('Save')
    browser.until_it_says('It is saved.')
    assert story.labels() == ['garage']
    browser.complaints()  # of the 403


def test_missing_browser_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    for value, outcome in {'true': pytest.fail.Exception, '': pytest.skip.Exception}.items():
        monkeypatch.setenv('CI', value)
        with pytest.raises(outcome, match='apt install chromium chromium-driver'):
            Browser(tmp_path)
