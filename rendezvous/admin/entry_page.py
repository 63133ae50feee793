"""The page of one entry: its state and why, its week, its connections, its files and its secret.

It reads that entry alone. `changes_page.py` does what its forms say.
"""

from contextlib import suppress
from functools import lru_cache
from typing import Any
from uuid import UUID

import segno
from flask import Response, abort, render_template, request, url_for
from flask.typing import ResponseReturnValue
from markupsafe import Markup

from rendezvous.admin import (
    actions,
    certificate,
    entry_form,
    entry_view,
    login,
    pack,
    reader,
    visits,
    why,
)
from rendezvous.admin import entry_files as files
from rendezvous.admin.login import NO_REFERRER
from rendezvous.admin.look import Looks
from rendezvous.admin.words import DAY
from rendezvous.store import entry_json, names, state
from rendezvous.store.entries import Entries
from rendezvous.store.options import Options
from rendezvous.store.state import KEPT_DAYS, Known, Rendezvous, Server
from rendezvous.wire import codes
from rendezvous.wire.programs import Mistake

QR_CHARACTERS = 36  # of a label: with more, the QR code is too fine for a screen
LINES = 8  # of past connections; the history has all of them


class EntryPage:
    """Each public method answers one kind of request, all but `secret` a GET."""

    def __init__(self, entries: Entries, options: Options, looks: Looks):
        self._entries, self._options, self._looks = entries, options, looks

    def view(self, uuid: UUID, status: int = 200, error: str = '') -> ResponseReturnValue:
        """Everything about one entry, except its secret."""
        entry, server, clock = self._shown(uuid), self._looks.server(), reader.clock()
        key, known = entry['uuid'], self._known(entry, server)
        past = entry_view.past(self._entries, key, known, clock)
        week = entry_view.week(past, server, clock)
        visited = visits.grouped(self._visits(key))
        addresses = self._addresses(entry)
        was = entry_form.shown(entry, addresses['name'])
        page = render_template(
            'entry.html',
            entry=entry | addresses,
            was=was,
            fields=was | entry_form.typed(),
            now=entry_view.now(self._entries, server, key, known, clock, pack.file_of(entry)),
            server=server,
            left=past.left,
            week=week,
            month=visits.total(past.since(clock.month(clock.present()))),
            visits=visited[:LINES],
            kept=sum(each.times for each in visited),
            error=error,
            refresh=url_for('entry', uuid=key),
        )
        return page, status

    def history(self, uuid: UUID) -> ResponseReturnValue:
        """All rendezvous that are kept, all refusals of a day, and each hour of the week."""
        entry, server, clock = self._shown(uuid), self._looks.server(), reader.clock()
        past = entry_view.past(self._entries, entry['uuid'], self._known(entry, server), clock)
        return render_template(
            'history.html',
            entry=entry,
            visits=self._visits(entry['uuid']),
            refusals=list(filter(why.is_refusal, state.refusals(self._entries, entry['uuid']))),
            week=entry_view.week(past, server, clock),
        )

    def hours(self, uuid: UUID) -> Response:
        """Octets and visits by hours as CSV; ?days= back to so many midnights, 7 at first."""
        entry, clock = self._shown(uuid), reader.clock()
        count = min(max(request.args.get('days', entry_view.WEEK_DAYS, int), 1), KEPT_DAYS)
        present = clock.present()
        start = max(clock.midnight(present, 1 - count), present - KEPT_DAYS * DAY)
        _, hours = state.past(self._entries, [entry['uuid']], start, present)[entry['uuid']]
        name = f'{pack.file_of(entry).removesuffix(".pyz")}-hours.csv'
        return _attachment(visits.as_csv(hours, start), name, 'text/csv')

    def secret(self, uuid: UUID) -> ResponseReturnValue:
        """The secret as text and as a QR code. It needs a POST: no URL shows it a second time."""
        entry, parameters = self._shown(uuid), self._document(uuid)['authParams']
        totp, code = codes.totp(parameters), Markup()
        totp.issuer = self._options.rendezvous_host
        totp.name = ', '.join(entry['labels'])[:QR_CHARACTERS] or entry['uuid']
        with suppress(segno.DataOverflowError):  # another program has written a longer secret
            code = _qr_code(totp.provisioning_uri())
        actions.secret_left(self._entries, actions.SECRET_SHOWN, entry['uuid'], login.who())
        page = render_template('secret.html', entry=entry, parameters=parameters, code=code)
        return page, NO_REFERRER

    def file(self, uuid: UUID, suffix: str) -> Response:
        """One of the two files for the hidden server, with the entry as it is now."""
        return self._given(uuid, files.text(self._document(uuid), suffix), f'{uuid}.{suffix}')

    def pack(self, uuid: UUID) -> Response:
        """The hidden server's end in one file."""
        document = self._document(uuid)
        return self._given(uuid, pack.build(document), pack.file_name(document))

    def certificate(self) -> Response:
        """The certificate that clients have to trust. It is not secret."""
        pem = files.how_to_reach(self._options).get('ca') or abort(404)
        return _attachment(pem, 'registrar.crt')

    def authority(self) -> Response:
        """The authority alone: phones and browsers import the first certificate of a file.

        By its type a browser knows that it may offer to import it.
        """
        found = certificate.read(self._options) if self._options.key_file else None
        pem = certificate.pem_of((found and found.authority) or abort(404))
        return Response(pem, mimetype='application/x-x509-ca-cert', headers=NO_REFERRER)

    def _shown(self, uuid: UUID) -> dict[str, Any]:
        """What can be shown of an entry, even if its value in Redis makes no sense."""
        key = str(uuid)
        entry = self._entries.get(key)
        if entry is None and self._entries.shown(key) is None:
            abort(404, f'There is no entry {key}.')
        entry = entry or {}
        shown = {'uuid': key, 'digits': entry_json.digits(entry)}
        return shown | {'usable': entry_json.is_sound(entry)} | entry_json.summary(entry)

    def _visits(self, key: str) -> list[Rendezvous]:
        return visits.by_beginning(state.history(self._entries, key))

    def _known(self, entry: dict[str, Any], server: Server) -> Known:
        return state.known_of(self._entries, server, entry['uuid']).disabled(entry['disabled'])

    def _addresses(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Where mobile clients find it, what they have to trust, and what its files are called."""
        key, options = entry['uuid'], self._options
        name = actions.name_of(self._entries, options, key)
        is_ours, has_authority = self._what_to_trust()
        url, path = files.url(options, key, name), files.FILES / f'{key}.json'
        return {
            'name': name,
            'could_be': _name(entry['labels']),
            'url': url,
            'uuid_url': files.url(options, key),
            'code': _qr_code_of_url(url),
            'self_signed': is_ours,
            'authority': has_authority,
            'pack': pack.file_of(entry),
            'file': path if path.exists() else '',
        }

    def _given(self, uuid: UUID, content: str | bytes, name: str) -> Response:
        """A file with the secret, which the log of changes tells of."""
        if request.method != 'HEAD':
            given = actions.FILE_GIVEN, str(uuid), login.who(), name
            actions.secret_left(self._entries, *given)
        return _attachment(content, name)

    def _document(self, uuid: UUID) -> dict[str, Any]:
        """What its files hold, with its secret."""
        entry = self._entries.get(str(uuid)) or abort(404, f'There is no entry {uuid}.')
        return files.document(entry, self._options)

    def _what_to_trust(self) -> tuple[bool, bool]:
        """Whether clients have to trust a certificate of ours, and an authority of ours."""
        if not self._options.key_file:
            return False, False
        try:
            found = certificate.read(self._options)
        except Mistake:
            return True, True  # the notice on the page says what is wrong
        return found.is_ours, found.authority is not None


def _name(labels: list[str]) -> str:
    """The host name that a label would be; '' where it cannot be one."""
    try:
        return names.checked(labels[0]) if labels else ''
    except Mistake:
        return ''


def _qr_code(text: str) -> Markup:
    code = segno.make(text, micro=False)
    return Markup(code.svg_inline(omitsize=True, light='#fff'))


@lru_cache(64)
def _qr_code_of_url(url: str) -> Markup:
    # It takes 7 ms, and an open tab asks each two seconds. A secret's is not kept.
    return _qr_code(url)


def _attachment(
    content: str | bytes, name: str, kind: str = 'application/octet-stream'
) -> Response:
    response = Response(content, mimetype=kind, headers=NO_REFERRER)
    response.headers.set('Content-Disposition', 'attachment', filename=name)
    return response
