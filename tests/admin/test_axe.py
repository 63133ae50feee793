"""Whether everybody can use the page: axe-core's opinion of each screen, in each look."""

import json
import time

import pytest
from conftest import connect_request, get
from story import NEW, Story

pytestmark = pytest.mark.deadline(120)

# Each width and each scheme, and what differs most: not all pairs, or it would take minutes.
LOOKS = [(390, 'light'), (390, 'forced'), (768, 'dark'), (1280, 'light'), (1920, 'dark')]
WIDTHS = 320, 720, 833, 1030, 1440  # where nothing may stick out, either
UNFOLD = 'document.querySelectorAll("details").forEach(each => each.open = true)'
LONG = 'averyveryverylonglabelwithoutanyspace' * 3
HOUR = 3600


@pytest.fixture
def browser(story):
    return story.browser


class Screens:
    """Looks at one screen after the other, and gathers what is wrong with them."""

    def __init__(self, story: Story):
        self._story, self._browser, self.barriers = story, story.browser, []

    def check(self, what: str) -> None:
        for width, scheme in LOOKS:
            self._browser.look(width, 800, scheme)
            found = self._browser.barriers()
            self.barriers += [f'{what}, {width} px, {scheme}: {each}' for each in found]
        for width in WIDTHS:
            self._browser.look(width, 800)
            found = self._browser.what_sticks_out()
            self.barriers += [f'{what}, {width} px: {each}' for each in found]
        self._browser.look(1000, 800)

    def visit(self, path: str, says: str, unfold: bool = True) -> None:
        self._browser.visit(self._story.url + path)
        self._browser.until_it_says(says)
        if unfold:
            self._browser.run(UNFOLD)
        self.check(path)


def fill(story: Story, download: int) -> dict[str, str]:
    """An entry in each state, brought about; UUID by state."""
    labels = {'online': 'kitchen', 'refused': '<b>Camera</b>, garden', 'offline': LONG[:100]}
    labels |= {'disabled': 'Pi-hole', 'never-seen': 'شبكة 🏠'}
    made = {state: story.folder.add(label)['uuid'][0] for state, label in labels.items()}
    story.folder.run('users_app.py', 'disable', '--yes', made['disabled'])
    hidden = story.hidden(made['offline'], download)
    story.hidden(made['online'], download)
    refused = story.mobile_client()
    refused.send(connect_request(made['refused'], '0' * 8))
    assert refused.answer().status == 401
    refused.close()
    story.browser.visit(story.url)
    story.until_it_is(labels['offline'], 'online')
    hidden.end(9)
    for state in labels:
        story.until_it_is(labels[state], state.replace('-', ' '))
    add_past(story, made['online'])
    return made


def add_past(story: Story, uuid: str) -> None:
    """A week of the one that is online."""
    now = time.time()
    redis = story.folder.redis
    for hours, state in (7, 'online'), (9, 'refused'), (30, 'offline'), (200, 'online'):
        redis('LPUSH', f'changes:{{{uuid}}}', f'{now - hours * HOUR} {state}')
    for day in range(7):
        lines = [f'{hour} {hour * 1000} {hour * 10**9} 3 1' for hour in range(24)]
        redis('HSET', f'hours:{{{uuid}}}', str(int(now // 86_400) - day), '\n'.join(lines))
    visit = {'address': ':'.join(['2001'] * 8), 'seconds': 1, 'sent': 1, 'received': 10**12}
    for hours in range(12):
        row = visit | {'at': now - hours * HOUR, 'how': 'mobile client closed'}
        redis('RPUSH', f'rendezvous:{{{uuid}}}', json.dumps(row))


def test_everybody_can_use_each_screen(story, browser, download):
    screens = Screens(story)
    screens.visit('/', 'Add your first hidden server')
    made = fill(story, download)
    mobile_client = story.mobile_client()
    mobile_client.send(get(made['online']))
    mobile_client.receive(10_000)
    browser.visit(story.url)
    browser.press('(//input[@type = "checkbox"])[1]')
    screens.check('the table, and one is chosen')
    screens.visit('/?q=nothing', 'Nothing is found')
    screens.visit('/?state=refused&sort=-open', 'Refused')
    for state, uuid in made.items():
        says = {'online': 'Open connections', 'refused': 'what to do'}.get(state, 'Facts')
        screens.visit(f'/entries/{uuid}', says, unfold=True)
    screens.visit(f'/entries/{made["online"]}/history', 'Failed')
    browser.visit(f'{story.url}/entries/{made["online"]}')
    browser.click('Show secret')
    browser.until_it_says('Hide it')
    screens.check('secret')
    mobile_client.close()
    browser.visit(story.url)
    browser.press('(//input[@type = "checkbox"])[1]')
    browser.press('(//input[@type = "checkbox"])[2]')
    browser.click('New secret…')
    browser.until_it_says('Leave it')
    screens.check('several')
    browser.press('//button[contains(@class, "danger")]')
    browser.until_it_says('To the hidden servers')
    screens.check('several, done')
    screens.visit('/log', 'What was done')
    screens.visit('/entries/10000000-0000-4000-8000-000000000000', 'That did not work')
    browser.complaints()  # of the 404
    assert screens.barriers == []


def test_everybody_sees_what_is_wrong(story, browser):
    screens = Screens(story)
    story.create('kitchen')
    browser.visit(story.url)
    browser.click(NEW)
    browser.run('document.querySelector("[name=uuid]").value = "no UUID"')
    browser.click('Create')
    browser.find('//*[@role = "alert"][text()]')
    screens.check('an error in a form')
    browser.complaints()  # of the 400
    story.server.end(9)
    browser.until_it_says('The rendezvous server is down')
    screens.check('server down')
    story.visit(next(iter(story.folder.listed())))
    browser.until_it_says('The rendezvous server is down')
    screens.check('server down, an entry')
    browser.visit(story.url)
    browser.cdp('Network.clearBrowserCookies')
    browser.until_it_says('Your session has ended')
    screens.check('session ended')
    browser.visit(story.url)
    browser.until_it_says('Log in')
    screens.check('login')
    browser.complaints()  # of the 403
    assert screens.barriers == []
