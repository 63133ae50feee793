"""The form of an entry's label, notes and host name: which of them its sender has changed.

A browser sends every field, and somebody else may have changed the entry since it was shown. So
the form holds in `was_label`, `was_note` and `was_named` what it has shown.
"""

from collections.abc import Mapping

from flask import request

from rendezvous.admin.actions import Unable
from rendezvous.store.entry_json import Json

FIELDS = 'label', 'note', 'named'


def shown(entry: Json, name: str) -> dict[str, str]:
    """What the form shows of an entry that has that host name, or none: ''."""
    labels, named = ', '.join(entry['labels']), '1' if name else '0'
    return {'label': labels, 'note': entry['note'], 'named': named}


def typed() -> dict[str, str]:
    """The fields of the request that are not as they were shown; all of them without `was_`."""
    # A checkbox that is off is not sent: a hidden field before it says that it was there.
    sent = {each: request.form.getlist(each)[-1] for each in FIELDS if each in request.form}
    return {each: text for each, text in sent.items() if not _is_same(text, _was(each, None))}


def to_save(now: Mapping[str, str]) -> dict[str, str]:
    """What was typed. Raises Unable where somebody else has changed it, too, to what is `now`."""
    wanted = typed()
    seen = {*wanted, 'label'} if wanted.get('named') == '1' else set(wanted)  # its label is told
    changed = [
        each
        for each in FIELDS
        if each in seen
        and not _is_same(_was(each, now[each]), now[each])
        and not _is_same(wanted.get(each), now[each])  # both wanted the same, or it is sent twice
    ]
    if changed:
        said = ', '.join(_how(each, now[each]) for each in changed)
        raise Unable(f'{said}: look, and save again')
    return wanted


def _was(field: str, otherwise: str | None) -> str | None:
    return request.form.get(f'was_{field}', otherwise)


def _how(field: str, text: str) -> str:
    what = 'the notes were' if field == 'note' else 'the label was'
    if not text:
        return f'{what} removed meanwhile'
    to = 'as is shown above' if field == 'note' else f'to {text}'
    return f'{what} changed meanwhile {to}'


def _is_same(one: str | None, other: str | None) -> bool:
    """Browsers send \\r\\n for each \\n."""
    return _plain(one) == _plain(other)


def _plain(text: str | None) -> str | None:
    return None if text is None else text.replace('\r\n', '\n').strip()
