"""A real Chromium, driven by Selenium."""

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port, until
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.remote.webelement import WebElement

# axe-core 4.14.1 as npm has it (MPL-2.0): the tests need no network, and no package on PyPI for our
# Python has one that knows WCAG 2.2 without a browser of its own. What it looks for:
AXE = Path(__file__).with_name('axe.min.js').read_text()
AXE_TAGS = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22a', 'wcag22aa', 'best-practice']
AXE_RUN = """
const [tags, done] = arguments;
axe.run(document, {runOnly: tags, resultTypes: ['violations'], iframes: false}).then(
  found => done(found.violations.flatMap(({id, nodes}) => nodes.map(
    ({html, failureSummary}) => `${id}: ${html.slice(0, 160)} ${failureSummary}`))),
  error => done([String(error)]));"""
# What sticks out to the right of the screen; the lines of a picture are cut at its edge.
WIDE = """return [...document.querySelectorAll('body :not(svg *)')].filter(each =>
  each.getBoundingClientRect().right > innerWidth + .5 && each.checkVisibility())
  .map(each => `wide: ${each.outerHTML.slice(0, 80)}`)"""
DOUBLE = """return [...document.querySelectorAll('[id]')].filter(
  each => document.querySelectorAll(`#${CSS.escape(each.id)}`).length > 1)
  .map(each => `an id that is there twice: ${each.outerHTML.slice(0, 80)}`)"""
FLAGS = '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync'
FLAGS += ' --disable-background-networking --disable-component-update --disable-dev-shm-usage'


def programs() -> tuple[str, str]:
    """Chromium and its driver. Without them the test is skipped; with CI set, it fails."""
    chromium, driver = shutil.which('chromium'), shutil.which('chromedriver')
    if not (chromium and driver):
        why = 'the page needs a browser to be tested: apt install chromium chromium-driver'
        pytest.fail(why) if os.environ.get('CI') else pytest.skip(why)
    return chromium, driver


class Browser:
    """A browser with a new profile in `folder`; `rules` map host names."""

    def __init__(self, folder: Path, rules: str = ''):
        chromium, driver = programs()
        self.downloads = folder / 'downloads'
        options = ChromeOptions()
        options.binary_location = chromium
        profile = f'--user-data-dir={folder / "profile"}'
        for argument in (*FLAGS.split(), profile, f'--host-resolver-rules={rules}'):
            options.add_argument(argument)
        options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
        self._service = ChromeService(
            driver,
            port=free_port(),
            env=os.environ | {'HOME': str(folder)},
            popen_kw={'start_new_session': True},
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv('no_proxy', '*')
            self.driver = Chrome(options, self._service)
        # The driver turns Safe Browsing off, and then Chromium blocks a .pyz unless this allows it.
        path = str(self.downloads)
        self.cdp('Browser.setDownloadBehavior', behavior='allow', downloadPath=path)

    def close(self) -> None:
        """Ends it, and Chromium, even if the driver does not answer any more."""
        group = self._service.process.pid
        with suppress(Exception):
            self.driver.quit()
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)

    def cdp(self, command: str, **parameters: Any) -> Any:
        """What the browser answers to a command of the Chrome DevTools Protocol."""
        return self.driver.execute_cdp_cmd(command, parameters)

    def visit(self, url: str) -> None:
        self.driver.get(url)

    @property
    def url(self) -> str:
        return self.driver.current_url

    def run(self, script: str, *arguments: Any) -> Any:
        """What the body of a JavaScript function returns."""
        return self.driver.execute_script(script, *arguments)

    @property
    def text(self) -> str:
        """The text that a reader of the page sees."""
        return self.run('return document.body?.innerText ?? ""')

    def find(self, xpath: str) -> WebElement:
        """The element, as soon as it is there and shown."""

        def shown() -> list[WebElement]:
            return [each for each in self.driver.find_elements('xpath', xpath) if is_shown(each)]

        return until(shown, f'the page shows {xpath}; it says {self.text!r}')[0]

    def click(self, text: str) -> None:
        """Clicks the button, link or summary with that text."""
        what = '(self::button or self::a or self::summary)'
        self.press(f'//*[{what} and normalize-space() = "{text}"]')

    def press(self, xpath: str) -> None:
        """Clicks an element."""
        self.find(xpath).click()

    def type(self, label: str, text: str) -> None:
        """Replaces the content of the field with that label."""
        labelled = f'starts-with(normalize-space(), "{label}")'
        field = self.find(f'//label[{labelled}]/input | //input[@aria-label="{label}"]')
        field.clear()
        field.send_keys(text)

    def until_it_says(self, text: str, seconds: float = 10) -> None:
        until(lambda: text in self.text, f'the page says {text!r}', seconds)

    def look(self, width: int, height: int, scheme: str = 'light') -> None:
        """The page is so wide and high, and in that scheme: light, dark or forced colours."""
        size = {'width': width, 'height': height, 'deviceScaleFactor': 1}
        self.cdp('Emulation.setDeviceMetricsOverride', mobile=width < 600, **size)
        features = {
            'prefers-color-scheme': 'dark' if scheme == 'dark' else 'light',
            'forced-colors': 'active' if scheme == 'forced' else 'none',
        }
        media = [{'name': name, 'value': value} for name, value in features.items()]
        self.cdp('Emulation.setEmulatedMedia', features=media)

    def barriers(self) -> list[str]:
        """What axe-core has against the page at WCAG 2.2, A and AA, which ids are there twice,
        and what sticks out of it.
        """
        if not self.run('return Boolean(window.axe)'):
            self.run(AXE)
        found = self.driver.execute_async_script(AXE_RUN, AXE_TAGS)
        return found + self.run(DOUBLE) + self.what_sticks_out()

    def what_sticks_out(self) -> list[str]:
        """To the right, so that one has to scroll sideways."""
        return self.run(WIDE)

    def complaints(self) -> list[str]:
        """What the browser's console says since the last time."""
        return [each['message'] for each in self.driver.get_log('browser')]


def is_shown(element: WebElement) -> bool:
    with suppress(WebDriverException):  # the page has just replaced it
        return element.is_displayed()
    return False
