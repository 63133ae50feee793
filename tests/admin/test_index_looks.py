"""How the index looks where it is full, and on a phone."""

import pytest
from browser import Browser
from pages import make, served

from rendezvous.store import options as local

# The tops of what is in the toolbar, and whether the chips are in one line.
TOPS = """return [...document.querySelectorAll('.tools > *, .chips a')]
  .map(each => Math.round(each.getBoundingClientRect().top))"""


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp('toolbar'))
    yield browser
    browser.close()


@pytest.fixture
def page(redis_options):
    with served(local.DEFAULTS | redis_options | {'key_file': None}) as page:
        yield page


@pytest.mark.parametrize('width', [1280, 1366, 1440, 1920])
def test_toolbar_of_ten_thousand_entries_is_one_line(browser, page, width):
    make(page, 10_000)
    browser.look(width, 800)
    browser.visit(page.url)
    assert browser.find('//a[normalize-space() = "All 10000"]')
    assert len(set(browser.run(TOPS))) == 1
    assert browser.what_sticks_out() == []


def test_phone_shows_the_beginning_of_the_uuid_where_labels_are_the_same(browser, page):
    same = [page.send('/entries', label=label)[9:45] for label in ('Kitchen', 'kitchen')]
    other = page.send('/entries', label='attic')[9:45]
    browser.look(390, 800)
    browser.visit(page.url)
    for uuid in same:
        code = browser.find(f'//tr[@id="e-{uuid}"]//code')
        letter = code.size['width'] / 8
        whole = browser.run('return arguments[0].scrollWidth', code)
        assert letter * 35 < whole < letter * 37  # all of it is there, and eight letters are shown
    (code,) = browser.driver.find_elements('xpath', f'//tr[@id="e-{other}"]//code')
    assert not code.is_displayed()
    assert browser.what_sticks_out() == []
