"""What somebody wanted who had to log in first: a session may end while they type.

The login form holds the fields of their form, and after the login they are shown again, with a
button: nothing is done before that is pressed. (To do it at once would not be safe: the fields are
as the request had them, and the token in it, which proves that the user sent them, is that of a
session that is over.) No URL ever holds them.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from flask import current_app, request
from werkzeug.exceptions import HTTPException
from werkzeug.urls import iri_to_uri

from rendezvous.wire import codes

HELD = 'held-'  # the names of another form's fields begin so in the login form
# The token is that of another session; and what is done to several is to be confirmed anew.
NOT_HELD = 'token', 'code', 'sure'
# Endpoints: a download would leave its reader with the login form.
PAGES, FORMS = ('index', 'entry', 'history', 'log'), ('create', 'change', 'several', 'secret')
# Of a page of ours: one slash, and nothing that a browser reads as another or leaves out.
_PATH = re.compile(r'/(?!/)[!-\[\]-~]*')


class Wish(NamedTuple):
    """Where somebody wanted to go, or what a form of theirs was to do, before they had to log in.

    It was read from a request, so it is shown, and is only done when they say so again.
    """

    path: str = ''  # of a page of ours, or of a form; '': of neither
    posts: bool = False  # it is that of a form
    fields: tuple[tuple[str, str], ...] = ()  # of the form, in order, some of one name

    @property
    def what(self) -> str:
        """What the form does: the last part of its path."""
        return urlsplit(self.path).path.rpartition('/')[2]

    @property
    def uuid(self) -> str:
        """Of the entry that the form is for; '': of none."""
        before = urlsplit(self.path).path.rpartition('/')[0]
        uuid = before.rpartition('/')[2].lower()
        return uuid if codes.UUID.fullmatch(uuid) else ''


def of_request() -> Wish:
    """What the request that is being answered wants."""
    if request.method not in ('GET', 'HEAD', 'POST'):
        return Wish()
    path = iri_to_uri(request.script_root + request.full_path).removesuffix('?')
    return _checked(path, request.method == 'POST', request.form.items(multi=True))


def of_login_form() -> Wish:
    """What the login form holds."""
    fields = request.form.items(multi=True)
    held = [(name.removeprefix(HELD), text) for name, text in fields if name.startswith(HELD)]
    return _checked(request.form.get('next', ''), 'posts' in request.form, held)


def _checked(path: str, posts: bool, fields: Iterable[tuple[str, str]]) -> Wish:
    """It, if one of our pages or forms has that path; else none."""
    root = request.script_root
    if not _PATH.fullmatch(path) or not path.startswith(f'{root}/'):
        return Wish()
    adapter = current_app.create_url_adapter(request)
    method, ours = ('POST', FORMS) if posts else ('GET', PAGES)
    try:
        found = adapter and adapter.match(urlsplit(path).path.removeprefix(root), method)
    except HTTPException:
        return Wish()
    if not found or found[0] not in ours:
        return Wish()
    kept = tuple((name, text) for name, text in fields if name not in NOT_HELD)
    return Wish(path, posts, kept if posts else ())
