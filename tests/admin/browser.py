"""A real Chromium, driven by WebDriver (https://www.w3.org/TR/webdriver2/) over plain HTTP."""

import base64
import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
import requests
from conftest import until

FLAGS = '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync'
FLAGS += ' --disable-background-networking --disable-component-update --disable-dev-shm-usage'
ELEMENT = 'element-6066-11e4-a52e-4f735466cecf'  # WebDriver section 12.1


def programs() -> tuple[str, str]:
    """Chromium and its driver; without them the test is skipped, where CI is set it fails."""
    found = shutil.which('chromium'), shutil.which('chromedriver')
    if not all(found):
        why = 'the page needs a browser to be tested: apt install chromium chromium-driver'
        pytest.fail(why) if os.environ.get('CI') else pytest.skip(why)
    return found


class Browser:
    """A browser with a profile of its own, gone at the end; `rules` map host names."""

    def __init__(self, folder: Path, rules: str = ''):
        chromium, driver = programs()
        self.downloads = folder / 'downloads'
        said = folder / 'chromedriver.log'
        with said.open('wb') as output:
            self._driver = subprocess.Popen(
                [driver, '--port=0'],
                stdout=output,
                stderr=output,
                env=os.environ | {'HOME': str(folder)},
                start_new_session=True,
            )
        self._http = requests.Session()
        self._http.trust_env = False  # no proxy
        port = until(
            lambda: re.search(r'started successfully on port (\d+)', said.read_text()),
            'chromedriver starts',
        )[1]
        self._url = f'http://127.0.0.1:{port}/session'
        profile = f'--user-data-dir={folder / "profile"}'
        options = {
            'binary': chromium,
            'args': [*FLAGS.split(), profile, f'--host-resolver-rules={rules}'],
            'prefs': {'download.default_directory': str(self.downloads)},
        }
        capabilities = {'goog:chromeOptions': options, 'goog:loggingPrefs': {'browser': 'ALL'}}
        answer = self.ask('POST', '', capabilities={'alwaysMatch': capabilities})
        self._url += f'/{answer["sessionId"]}'

    def close(self) -> None:
        """Ends it, and Chromium, even where the driver does not answer any more."""
        with suppress(Exception):
            self.ask('DELETE', '')
        self._http.close()
        os.killpg(self._driver.pid, signal.SIGKILL)
        self._driver.wait(timeout=10)

    def ask(self, method: str, path: str, **parameters):
        """What WebDriver answers to a command."""
        body = parameters if method == 'POST' else None
        answer = self._http.request(method, self._url + path, json=body, timeout=30)
        value = answer.json()['value']
        assert answer.ok, value
        return value

    def cdp(self, command: str, **parameters):
        """What the browser answers to a command of its own protocol."""
        return self.ask('POST', '/goog/cdp/execute', cmd=command, params=parameters)

    def visit(self, url: str) -> None:
        self.ask('POST', '/url', url=url)

    @property
    def url(self) -> str:
        return self.ask('GET', '/url')

    def run(self, script: str, *arguments):
        """What the body of a JavaScript function returns."""
        return self.ask('POST', '/execute/sync', script=script, args=list(arguments))

    @property
    def text(self) -> str:
        """What can be read of the page."""
        return self.run('return document.body?.innerText ?? ""')

    def find(self, xpath: str) -> str:
        """The element, as soon as it is there and shown."""

        def look():
            found = self.ask('POST', '/elements', using='xpath', value=xpath)
            return [each[ELEMENT] for each in found if self.is_shown(each[ELEMENT])]

        return until(look, f'the page shows {xpath}; it says {self.text!r}')[0]

    def is_shown(self, element: str) -> bool:
        return self.ask('GET', f'/element/{element}/displayed')

    def click(self, text: str) -> None:
        """Clicks a button, a link or a summary that says so."""
        what = '(self::button or self::a or self::summary)'
        self.press(f'//*[{what} and normalize-space() = "{text}"]')

    def press(self, xpath: str) -> None:
        """Clicks an element."""
        self.ask('POST', f'/element/{self.find(xpath)}/click')

    def type(self, label: str, text: str) -> None:
        """Types into the field with that label, instead of what is in it."""
        labelled = f'starts-with(normalize-space(), "{label}")'
        element = self.find(f'//label[{labelled}]/input | //input[@aria-label="{label}"]')
        self.ask('POST', f'/element/{element}/clear')
        self.ask('POST', f'/element/{element}/value', text=text)

    def until_it_says(self, text: str, seconds: float = 10) -> None:
        until(lambda: text in self.text, f'the page says {text!r}', seconds)

    def look(self, width: int, height: int, scheme: str = 'light') -> None:
        """The page is so wide and high, and of that colour scheme."""
        size = {'width': width, 'height': height, 'deviceScaleFactor': 1}
        self.cdp('Emulation.setDeviceMetricsOverride', mobile=width < 600, **size)
        media = [{'name': 'prefers-color-scheme', 'value': scheme}]
        self.cdp('Emulation.setEmulatedMedia', features=media)

    def picture(self, file: Path) -> None:
        """A PNG of the whole page."""
        taken = self.cdp('Page.captureScreenshot', captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(taken['data']))

    def complaints(self) -> list[str]:
        """What the browser's console says since the last time."""
        return [each['message'] for each in self.ask('POST', '/se/log', type='browser')]
