"""The hidden server's end in one file: a zipapp of the code, an entry and names of packages.

What the names are for, rendezvous/hidden/packages.py says. They have no hashes: piwheels builds the
wheels of a Raspberry Pi itself, and a company's index may, too.
"""

import io
import json
import re
import unicodedata
import zipfile
from importlib.metadata import version
from typing import Any

from rendezvous.wire.programs import HERE

NAME_CHARACTERS = 100  # file systems take 255; another program may have written a longer label
ROOMS = 'wire', 'hidden'
MAIN = 'rendezvous/hidden/packed.py'
# With those that gevent needs: these versions run together here.
PACKAGES = 'gevent', 'pyotp', 'greenlet', 'zope.event', 'zope.interface'
# Windows has devices of these names, also with a suffix: no file can have one.
_DEVICE = re.compile('con|prn|aux|nul|com[0-9]|lpt[0-9]', re.I)


def build(document: dict[str, Any]) -> bytes:
    """The .pyz of an entry that has this document; the same octets each time. It has its secret."""
    contents = {'rendezvous/__init__.py': b''}
    for room in ROOMS:
        for path in (HERE / 'rendezvous' / room).glob('*.py'):
            contents[path.relative_to(HERE).as_posix()] = path.read_bytes()
    pins = [f'{package}=={version(package)}' for package in PACKAGES]
    contents['__main__.py'] = contents.pop(MAIN)
    contents['rendezvous/hidden/packages.txt'] = '\n'.join(pins).encode()
    contents['rendezvous/hidden/entry.json'] = json.dumps(document).encode()
    octets = io.BytesIO()
    with zipfile.ZipFile(octets, 'w') as archive:
        for name, content in sorted(contents.items()):
            # ZipInfo has a fixed time.
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return octets.getvalue()


def file_of(shown: dict[str, Any]) -> str:
    """What the .pyz of an entry is called, of which `shown` may be shown."""
    return file_name(shown | {'uuid': [shown['uuid']]})


def file_name(document: dict[str, Any]) -> str:
    """What the .pyz is called: LABEL.pyz, or UUID.pyz where the label has no letter for it."""
    label = unicodedata.normalize('NFKD', ' '.join(document['labels'])).encode('ascii', 'ignore')
    name = re.sub('[^A-Za-z0-9]+', '-', label.decode()).strip('-')[:NAME_CHARACTERS]
    if _DEVICE.fullmatch(name):
        name = f'hidden-{name}'
    return f'{name or document["uuid"][0]}.pyz'
