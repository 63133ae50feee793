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
        """The page is so wide and high, and of that colour scheme."""
        size = {'width': width, 'height': height, 'deviceScaleFactor': 1}
        self.cdp('Emulation.setDeviceMetricsOverride', mobile=width < 600, **size)
        media = [{'name': 'prefers-color-scheme', 'value': scheme}]
        self.cdp('Emulation.setEmulatedMedia', features=media)

    def complaints(self) -> list[str]:
        """What the browser's console says since the last time."""
        return [each['message'] for each in self.driver.get_log('browser')]


def is_shown(element: WebElement) -> bool:
    with suppress(WebDriverException):  # the page has just replaced it
        return element.is_displayed()
    return False
