"""Two applications in one real Chromium, side by side: a single page, and one with Basic."""

from contextlib import ExitStack

import pytest
from behind import serving, signed_in
from single_page import SEEN, SinglePage

OWNER = 'Basic b3duZXI6c2VjcmV0'  # owner:secret


class Guarded(SinglePage):
    """A site that wants a user name and a password of its own for everything."""

    def get(self) -> None:
        if self.headers['Authorization'] == OWNER:
            self.answer(f'the garden; cookies: {self.headers["Cookie"]}'.encode(), 'text/html')
        else:
            self.answer(b'', status=401)

    def end_headers(self) -> None:
        self.send_header('WWW-Authenticate', 'Basic realm="the garden"')
        super().end_headers()


@pytest.fixture
def sites(stage):
    """The single page, the same with --forwarded, and the site with a password of its own."""
    with ExitStack() as stack:
        page, guarded = (stack.enter_context(serving(each)) for each in (SinglePage, Guarded))
        ends = (page,), (page, '--forwarded'), (guarded,)
        yield [stack.enter_context(stage.hide(*each)) for each in ends]


@pytest.mark.deadline(120)
def test_two_applications_side_by_side_and_one_of_them_by_digest(sites, browser):
    page, forwarded, guarded = sites
    browser.visit(forwarded.named)
    assert browser.run('return run()') == SEEN
    browser.visit(page.named)
    first = browser.driver.current_window_handle
    assert browser.run('return run()') == SEEN
    browser.driver.switch_to.new_window('tab')
    browser.visit(signed_in(guarded.named, 'owner:secret'))
    browser.visit(guarded.named)
    assert browser.text == 'the garden; cookies: None'
    asked = "return (await fetch('made-by-the-worker')).text()"
    assert browser.run(asked) == browser.text, 'the other one has a worker for this'
    assert browser.run('return [document.cookie, localStorage.length]') == ['', 0]
    browser.run("document.cookie = 'garden=1'; localStorage.owner = 'the garden'")
    browser.driver.switch_to.window(first)
    browser.visit(page.named)
    assert browser.run('return run()') == SEEN, 'what the other one keeps is not seen'
    browser.visit(signed_in(page.unnamed, f'{page.uuid}:any'))
    browser.visit(page.unnamed)  # Chromium has a page with a user name in its URL fetch nothing
    browser.run('delete steps.bearer')  # by Digest one header cannot say both
    assert browser.run('return run()') == {name: SEEN[name] for name in SEEN if name != 'bearer'}
    assert browser.complaints() == []
