"""What the forms of the page do, with one entry and with several, and the log of what was done."""

import io
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple
from uuid import UUID

from flask import Response, abort, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from gevent.event import AsyncResult

from rendezvous.admin import actions, entry_form, login, pack
from rendezvous.admin import entry_files as files
from rendezvous.admin.actions import Unable
from rendezvous.admin.login import NO_REFERRER
from rendezvous.admin.look import Looks
from rendezvous.store import action_log, names, state
from rendezvous.store.entries import DIGITS, Entries, StoreDown
from rendezvous.store.entry_json import Json
from rendezvous.store.options import Options
from rendezvous.wire import codes, sockets
from rendezvous.wire.programs import Mistake

WHATS = 'save', 'disable', 'enable', 'rekey', 'delete', 'clear', 'end'  # with one entry
MOST = 200  # entries at once; the packs of so many are 12 MB, and take 1.5 s
REMEMBERED = 200  # forms that were sent
ROWS = 100  # of the log on a page

# What the next page says, by the `done` of its address.
DONE = {
    'create': 'The entry is made. Copy its file to the hidden server, and run the command there.',
    'save': 'It is saved.',
    'address': 'It is saved. Its host name has changed: the old address leads nowhere now.',
    'name': 'It is saved. Its label is its host name: who guesses it reaches the hidden server.',
    'unname': 'It is saved. Its label is no host name any more.',
    'disable': 'The entry is disabled: its registrations and connections end within two seconds.',
    'enable': 'The entry is enabled: its hidden server registers again by itself within a minute.',
    'rekey': 'The entry has a new secret, and the old one does not work any more. Copy the new '
    'file to the hidden server, and start it there again.',
    'clear': 'The wrong codes are forgotten: it is let in when it tries again with the right one.',
    'end': 'The connection is ended.',
    'delete': 'The entry is deleted.',
}


def said() -> str:
    """What the page says was done, by its address; '' where that says nothing."""
    done = DONE.get(request.args.get('done', ''), '')
    others = max(request.args.get('others', 0, int), 0) if done else 0
    return ' '.join(filter(None, (done, actions.same_label(others))))


class Several(NamedTuple):
    """What is done with several entries at once, in words."""

    title: str
    question: str  # in front of how many
    sentence: str  # what it means for each
    button: str
    done: str  # what each is then


SEVERAL = {
    'disable': Several(
        'Disable',
        'Disable',
        'The registrations and open connections of each end within two seconds, and it cannot '
        'register until you enable it again.',
        'Disable',
        'disabled',
    ),
    'enable': Several('Enable', '', '', '', 'enabled'),
    'rekey': Several(
        'New secrets',
        'New secrets for',
        'The old secret and files of each stop working at once, its registrations and open '
        'connections end within two seconds, and the hidden server needs its new file.',
        'Make new secrets',
        'given a new secret',
    ),
    'delete': Several(
        'Delete',
        'Delete',
        'The registrations and open connections of each end within two seconds. Its secret, its '
        'files on this machine, its host name and all that is known of it are deleted.',
        'Delete',
        'deleted',
    ),
    'name': Several(
        'Host names',
        'Host names for',
        'The label of each becomes its host name, too. A label can be guessed, and a UUID cannot: '
        'whoever guesses it reaches the hidden server, which must ask who is there.',
        'Make the labels host names',
        'given a host name',
    ),
    'pack': Several('Download', '', '', '', 'ready'),
}


class Result(NamedTuple):
    """What came of one entry."""

    entry: Json
    why: str = ''  # it could not be done; '': it is done


class Once:
    """Does what a form says once, however often it is sent: an impatient click is two.

    The hidden field `made_up` is made with each form, and says that it is the same.
    """

    def __init__(self) -> None:
        self._answers: OrderedDict[Hashable, AsyncResult] = OrderedDict()

    def __call__(self, form: str, asked: Hashable, do: Callable[[], Any]) -> Any:
        """What `do` returned when this form was first sent with what was asked for.

        What it raises is raised again, and it may be tried again then.
        """
        key = form, asked
        answer = self._answers.get(key)
        if answer is None or not form:
            answer = self._answers[key] = AsyncResult()
            if len(self._answers) > REMEMBERED:
                self._answers.popitem(last=False)
            try:
                answer.set(do())
            except Exception as error:
                self._answers.pop(key, None)
                answer.set_exception(error)
        return answer.get()


class Changes:
    """Each public method answers one kind of request."""

    def __init__(self, entries: Entries, options: Options, looks: Looks):
        self._entries, self._options, self._looks = entries, options, looks
        self._once = Once()

    def create(self) -> ResponseReturnValue:
        """POST /entries."""
        form = request.form
        digits = 6 if form.get('digits') == '6' else DIGITS
        asked, who = (form.get('uuid', ''), form.get('label', ''), digits), login.who()
        made = self._once(
            form.get('made_up', ''),
            asked,
            lambda: actions.create(self._entries, self._options, *asked, who),
        )
        others = self._with_label(request.form.get('label', ''), made.name)
        return redirect(url_for('entry', uuid=made.name, done='create', others=others or None), 303)

    def change(self, uuid: UUID, what: str) -> ResponseReturnValue:
        """POST /entries/UUID/WHAT: does what one of the forms of an entry says."""
        form = request.form.get('made_up', '')  # the second of two clicks finds nothing to do
        done = self._once(form, (uuid, what), lambda: self._change(str(uuid), what))
        if what == 'delete':
            return redirect(url_for('index', done=done), 303)
        return redirect(url_for('entry', uuid=uuid, done=done), 303)

    def several(self) -> ResponseReturnValue:
        """POST /several: asks whether it shall be done, and with `sure` in the form does it.

        Only `enable` and `pack` harm nobody, and are done at once.
        """
        what, uuids = request.form.get('what', ''), _uuids(request.form.getlist('uuid'))
        if what not in SEVERAL:
            raise Unable('this page does not know what to do with several hidden servers')
        if not uuids:
            raise Unable('choose at least one hidden server')
        if len(uuids) > MOST:
            raise Unable(f'choose at most {MOST} hidden servers at once, not {len(uuids)}')
        if what == 'name' and not self._options.names_domain:
            raise Unable('there are no host names yet: set names_domain in local.py')
        if what == 'pack':
            return self._packs(uuids)
        if what != 'enable' and not request.form.get('sure'):
            return self._ask(what, uuids)
        asked, who = (what, *uuids), request.form.get('made_up', '')
        results = self._once(who, asked, lambda: self._do_all(what, uuids))
        return render_template('several.html', what=what, words=SEVERAL[what], results=results)

    def log(self) -> ResponseReturnValue:
        """GET /log: what was done, the newest first; of one entry with ?uuid=."""
        uuid = ''.join(_uuids([request.args.get('uuid', '')]))
        found = action_log.last(self._entries, uuid=uuid)
        last = max(1, -(-len(found) // ROWS))
        number = min(max(request.args.get('page', 1, int), 1), last)
        rows = found[(number - 1) * ROWS : number * ROWS]
        there = self._entries.some({each.uuid for each in rows if each.uuid} | {uuid} - {''})
        return render_template(
            'log.html',
            rows=rows,
            there={each['uuid']: each for each in there},
            uuid=uuid,
            who=login.who(),
            number=number,
            last=last,
        )

    def _with_label(self, label: str, uuid: str) -> int:
        """How many entries but that one have the label, as far as the page knows."""
        wanted = label.strip().casefold()
        with suppress(StoreDown):  # the entry is made all the same
            rows = self._looks.current().rows if wanted else []
            return sum(row.words[0] == wanted and row.uuid != uuid for row in rows)
        return 0

    def _change(self, uuid: str, what: str) -> str:
        """What to say then."""
        entry = self._entries.shown(uuid) or abort(404, f'There is no entry {uuid}.')
        if what == 'save':
            return self._save(entry)
        if what == 'end':
            pipe = request.form.get('worker', ''), request.form.get('pipe', '')
            actions.end_pipe(self._entries, uuid, *pipe, login.who())
        elif what == 'clear':
            actions.clear(self._entries, uuid, login.who())
        else:
            self._do(what, uuid)
        return what

    def _save(self, entry: Json) -> str:
        """Changes those of label, notes and host name that were typed; what to say then.

        (Who changes one of them in the millisecond between the look and this change is not seen.)
        """
        name = actions.name_of(self._entries, self._options, entry['uuid'])
        typed = entry_form.to_save(entry_form.shown(entry, name))
        saved = actions.save(
            self._entries,
            self._options,
            entry['uuid'],
            login.who(),
            label=typed.get('label'),
            note=typed.get('note'),
            named=typed['named'] == '1' if 'named' in typed else None,
        )
        if saved.name == saved.former or not self._options.names_domain:
            return 'save'
        return ('address' if saved.former else 'name') if saved.name else 'unname'

    def _do(self, what: str, uuid: str) -> None:
        """One of SEVERAL, with one entry."""
        entries, options, who = self._entries, self._options, login.who()
        if what == 'rekey':
            actions.rekey(entries, options, uuid, who)
        elif what == 'name':
            actions.name_on(entries, options, uuid, who)
        else:
            does = {'disable': actions.disable, 'enable': actions.enable, 'delete': actions.remove}
            does[what](entries, uuid, who)

    def _do_all(self, what: str, uuids: list[str]) -> list[Result]:
        """Does it with each, and goes on where one cannot be; but not where Redis is down."""
        results, down = [], ''
        for entry in self._named(uuids):
            sockets.take_turn()
            try:
                if not down:
                    self._do(what, entry['uuid'])
                results.append(Result(entry, down))
            except StoreDown as error:
                down = str(error)
                results.append(Result(entry, down))
            except (Unable, Mistake) as error:
                results.append(Result(entry, _sentence(error)))
        return results

    def _ask(self, what: str, uuids: list[str]) -> str:
        server = self._looks.server()
        rows = [
            (entry, state.known_of(self._entries, server, entry['uuid']))
            for entry in self._named(uuids)
            if 'labels' in entry
        ]
        if not rows:
            raise Unable('these hidden servers have no entries any more')
        unnamed = self._unnamed([entry for entry, _ in rows]) if what == 'name' else {}
        values = {'words': SEVERAL[what], 'rows': rows, 'unnamed': unnamed}
        return render_template('several.html', what=what, **values)

    def _unnamed(self, chosen: list[Json]) -> dict[str, str]:
        """Why the labels of some cannot be host names, by UUID, as it is now."""
        holders, why = names.known(self._entries), dict[str, str]()
        uuids = {entry['uuid'] for entry in chosen}
        for uuid, labels in ((entry['uuid'], entry['labels']) for entry in chosen):
            try:
                name = names.checked(labels[0]) if labels else ''
            except Mistake as mistake:
                why[uuid] = str(mistake)
                continue
            holder = holders.get(name) or str(uuid)
            if not name:
                why[uuid] = 'it has no label'
            elif holder == uuid or not actions.is_there(self._entries, holder):
                holders[name] = uuid
            else:
                others = 'another one of these' if holder in uuids else 'another entry'
                why[uuid] = f'{others} has the host name {name}'
        return why

    def _packs(self, uuids: list[str]) -> ResponseReturnValue:
        """The one-file hidden ends, in a zip where there are several."""
        if len(uuids) == 1:
            return redirect(url_for('pack', uuid=uuids[0]), 303)
        octets, results, given = io.BytesIO(), [], dict[str, str]()  # UUIDs by names of files
        with zipfile.ZipFile(octets, 'w') as archive:
            for entry in self._named(uuids):
                sockets.take_turn()
                why = self._pack(archive, entry['uuid'], given)
                results.append(Result(entry, why))
        if any(each.why for each in results):
            words = SEVERAL['pack']
            return render_template('several.html', what='pack', words=words, results=results)
        for name, uuid in given.items():
            secret = actions.FILE_GIVEN, uuid, login.who(), name
            actions.secret_left(self._entries, *secret)
        response = Response(octets.getvalue(), mimetype='application/zip', headers=NO_REFERRER)
        response.headers.set('Content-Disposition', 'attachment', filename='hidden-servers.zip')
        return response

    def _pack(self, archive: zipfile.ZipFile, uuid: str, given: dict[str, str]) -> str:
        """Puts the file of an entry into the zip; why that cannot be done, or ''."""
        try:
            document = files.document(actions.find(self._entries, uuid), self._options)
        except StoreDown:
            raise
        except (Unable, Mistake) as error:
            return _sentence(error)
        name = _free(pack.file_name(document), uuid, given)
        info = zipfile.ZipInfo(name)
        info.external_attr = 0o600 << 16  # it holds the secret
        archive.writestr(info, pack.build(document))
        given[name] = uuid
        return ''

    def _named(self, uuids: list[str]) -> list[Json]:
        """What may be shown of each, in that order; only its UUID where there is no entry."""
        there = {each['uuid']: each for each in self._entries.some(uuids)}
        return [there.get(uuid, {'uuid': uuid}) for uuid in uuids]


def _uuids(texts: list[str]) -> list[str]:
    """Those that are UUIDs, each once, in that order."""
    lower = dict.fromkeys(text.strip().lower() for text in texts)
    return [text for text in lower if codes.UUID.fullmatch(text)]


def _free(name: str, uuid: str, taken: Iterable[str]) -> str:
    """A name that no other file has; those of entries with one label have a part of the UUID."""
    if name.lower() in {each.lower() for each in taken}:
        name = f'{name.removesuffix(".pyz")}-{uuid}.pyz'
    return name


def _sentence(error: Unable | Mistake) -> str:
    return error.message if isinstance(error, Unable) else str(error)
