"""A systemd unit that starts this program with the machine, as a user's own or the system's."""

import os
import re
import sys
from pathlib import Path

from rendezvous.wire.programs import Mistake

UNIT = """\
{comment}

[Unit]
Description=Hidden server's end of the rendezvous ({name})
{after}
[Service]
ExecStart={command}
# Variables, if it needs some, for example https_proxy=http://proxy.example:3128 (file mode 0600).
EnvironmentFile=-{variables}
Restart=always
RestartSec=5
# 78: something must be changed first: the last line of its log says what.
RestartPreventExitStatus=78 2
# Pipes have 30 seconds to finish.
TimeoutStopSec=40
{sandbox}NoNewPrivileges=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM

[Install]
WantedBy={target}
"""
# The user of the service exists only while it runs. So systemd gives it a copy of the secret.
SANDBOX = """\
DynamicUser=yes
LoadCredential={secret}
CacheDirectory={name}
CacheDirectoryMode=0700
Environment=XDG_CACHE_HOME=/var/cache/{name}
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
PrivateUsers=yes
PrivateIPC=yes
RemoveIPC=yes
ProtectProc=invisible
ProcSubset=pid
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
CapabilityBoundingSet=
"""
AFTER = 'After=network-online.target\nWants=network-online.target\n'
HOMES = '/home/', '/root/', '/run/user/'  # what ProtectHome hides
PLAIN = re.compile(r'[\w@+=:,./-]+', re.A)  # needs no quotes


def unit(command_line: list[str], entry: Path | None) -> str:
    """The text of a unit for this command line. Raises Mistake.

    `entry` is the ID.json in it; None where the program itself holds the entry.
    """
    if not sys.platform.startswith('linux'):
        raise Mistake('--service is for systemd, which only Linux has')
    program, *words = (word for word in command_line if word != '--service')
    paths = {Path(program): str(Path(program).absolute())}
    if entry:
        paths[entry] = str(entry.absolute())
    words = [sys.executable, *(paths.get(Path(word), word) for word in (program, *words))]
    name = 'rendezvous-' + (re.sub('[^A-Za-z0-9]+', '-', Path(program).stem).strip('-') or 'hidden')
    if os.geteuid():
        return _own(name, list(map(quoted, words)))
    *others, secret = paths.values()
    _check_that_a_service_can_read([sys.executable, *others])
    place = words.index(secret)
    command = list(map(quoted, words))
    command[place] = f'${{CREDENTIALS_DIRECTORY}}/{name}'
    return _system(name, command, f'{name}:{secret.replace("%", "%%")}')


def quoted(word: str) -> str:
    """A word of ExecStart, so that systemd takes it as it is. Raises Mistake."""
    if not word.isprintable():
        raise Mistake(f'{word!r} cannot be in a unit: rename it')
    word = word.replace('%', '%%').replace('$', '$$')
    if PLAIN.fullmatch(word):
        return word
    return '"' + word.replace('\\', '\\\\').replace('"', '\\"') + '"'


def _check_that_a_service_can_read(paths: list[str]) -> None:
    for path in paths:
        # A venv's Python is a link: the way to it counts, and so does where it leads.
        if path.startswith(HOMES) or os.path.realpath(path).startswith(HOMES):
            raise Mistake(f'{path} is in a home folder, where a service of the system cannot read')


def _own(name: str, command: list[str]) -> str:
    return UNIT.format(
        comment=f'# Save it as ~/.config/systemd/user/{name}.service. Then:\n'
        f'# systemctl --user enable --now {name} && loginctl enable-linger',
        name=name,
        after='',
        command=' '.join(command),
        variables=f'%h/.config/{name}.env',
        sandbox='',
        target='default.target',
    )


def _system(name: str, command: list[str], secret: str) -> str:
    return UNIT.format(
        comment=f'# Save it as /etc/systemd/system/{name}.service. Then:\n'
        f'# systemctl enable --now {name}',
        name=name,
        after=AFTER,
        command=' '.join(command),
        variables=f'/etc/{name}.env',
        sandbox=SANDBOX.format(name=name, secret=secret),
        target='multi-user.target',
    )
