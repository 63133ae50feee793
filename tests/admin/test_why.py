"""Why a hidden server is not online, in words that say what to do."""

import datetime

import pytest

from rendezvous.admin import why
from rendezvous.admin.words import Clock
from rendezvous.store.state import (
    DISABLED,
    NEVER,
    OFFLINE,
    ONLINE,
    REFUSED,
    Known,
    Refusals,
    Why,
)

HERE, ELSEWHERE = '198.51.100.23', '203.0.113.9'
NOW = 1_795_698_000.0  # 26 Nov 2026, 13:00
CLOCK = Clock(datetime.UTC, NOW)
AHEAD = Why('clock', 3660)
KINDS = {
    'clock': AHEAD,
    'former': Why('former'),
    'wrong': Why('wrong'),
    'unusable': Why('unusable'),
    'address': Why('address'),
    'strangers': Why('strangers'),
    'friend': Why('friend'),
    'full': Why('full'),
    'twins': Why('twins', other=ELSEWHERE),
}


def refused(reason: Why, ago: float = 12, address: str = HERE, until: float = 0) -> Refusals:
    return Refusals(reason, address, NOW - 9000, NOW - ago, 7, until)


def known(state: str = REFUSED, since: float = 3600) -> Known:
    never = state == NEVER
    return Known(state, None if never else NOW - since, address=HERE, refused=NOW - 12)


def advised(*rows: Refusals, of: Known | None = None, **more) -> list[why.Advice]:
    return why.advice(list(rows), of or known(), CLOCK, **more)


def kinds(some: list[why.Advice]) -> list[str]:
    return [each.kind for each in some]


def test_the_clock_is_wrong_and_a_command_sets_it():
    (advice,) = advised(refused(AHEAD, ago=0))
    assert advice.heading == 'The clock of the hidden machine is 61 minutes ahead'
    assert 'its code is that of 14:01' in advice.text
    assert advice.command == 'sudo timedatectl set-ntp true'
    assert why.brief(AHEAD) == 'Clock 61 minutes ahead'
    assert why.brief(Why('clock', -40)) == 'Clock 40 seconds behind'


def test_a_short_code_may_look_so_by_chance():
    probably = Why('clock', -7200, sure=False)
    assert why.brief(probably) == 'Clock probably 2 hours behind'
    (advice,) = advised(refused(probably))
    assert advice.heading == 'The clock of the hidden machine is probably 2 hours behind'
    assert 'by chance' in advice.text


def test_reasons_are_said_once_each_and_the_newest_first():
    rows = refused(Why('former'), 600), refused(AHEAD, 12), refused(AHEAD, 60, ELSEWHERE)
    assert kinds(advised(*rows)) == ['clock', 'former']


def test_what_used_up_the_wrong_codes_is_said_before_that_it_has_to_wait():
    until = NOW + 300
    advice = advised(refused(Why('address'), 1, until=until), refused(AHEAD, 60))
    assert kinds(advice) == ['clock', 'address']
    assert (advice[1].what, advice[1].button, advice[1].until) == ('clear', 'Let it try now', until)
    assert why.lines(advice, CLOCK)[-1].startswith('It has to wait until 13:05. ')


def test_a_ration_that_is_there_again_is_not_said():
    assert advised(refused(Why('address'), 900, until=NOW - 1)) == []


def test_what_was_before_it_came_online_is_over():
    rows = refused(AHEAD, 7200), refused(Why('former'), 60, ELSEWHERE)
    assert kinds(advised(*rows, of=known(ONLINE))) == ['former']
    assert kinds(advised(*rows, of=known(OFFLINE))) == ['former']
    assert kinds(advised(*rows, of=known(REFUSED))) == ['former']
    assert kinds(advised(*rows, of=known(NEVER))) == ['former', 'clock']


def test_a_second_machine_that_has_stopped_is_over():
    """Two that wait are noted each minute; one that is refused may have to wait for 15."""
    assert advised(refused(KINDS['twins'], 151), of=known(ONLINE)) == []
    assert kinds(advised(refused(KINDS['twins'], 149), of=known(ONLINE))) == ['twins']
    former = KINDS['former']
    assert advised(refused(former, 21 * 60, ELSEWHERE), of=known(ONLINE)) == []
    assert kinds(advised(refused(former, 19 * 60, ELSEWHERE), of=known(ONLINE))) == ['former']


def test_one_that_is_offline_has_not_tried_and_a_command_starts_it():
    (advice,) = advised(of=known(OFFLINE, 22 * 60), file='kitchen.pyz')
    assert advice.heading == 'It has not tried to register since 12:38'
    assert 'rendezvous_host' in advice.text
    assert advice.command == 'python3 kitchen.pyz 127.0.0.1:8000'
    assert 'registered at' in advice.after
    both = advised(refused(KINDS['former'], 1320), of=known(OFFLINE, 1320), file='kitchen.pyz')
    assert kinds(both) == ['offline', 'former']
    for state in ONLINE, REFUSED, NEVER, DISABLED:
        assert advised(of=known(state), file='kitchen.pyz') == []


def test_one_that_was_enabled_just_now_tries_again_by_itself():
    of = known(OFFLINE, 3600)
    (advice,) = advised(refused(Why('disabled'), 89), of=of, file='kitchen.pyz')
    assert why.lines([advice], CLOCK) == [
        'It was refused while it was disabled, and tries again within a minute.'
    ]
    (later,) = advised(refused(Why('disabled'), 91), of=of, file='kitchen.pyz')
    assert later.command
    since_online = advised(refused(Why('disabled'), 60), of=known(OFFLINE, 30), file='kitchen.pyz')
    assert since_online[0].command
    newer = refused(Why('disabled'), 60), refused(KINDS['wrong'], 20)
    assert advised(*newer, of=of, file='kitchen.pyz')[0].command


def test_while_the_server_is_down_the_hidden_server_is_not_the_reason():
    assert advised(of=known(OFFLINE), file='') == []


def test_a_right_long_code_is_let_in_while_short_ones_have_to_wait():
    (advice,) = advised(refused(Why('address'), until=NOW + 300))
    assert 'short codes from there are refused' in advice.text
    assert 'even a right code' not in advice.text


def test_what_is_brought_to_the_hidden_machine_has_its_button():
    brings = {
        kind for kind in KINDS if (found := advised(refused(KINDS[kind]))) and found[0].brings
    }
    assert brings == {'former', 'wrong', 'unusable'}


@pytest.mark.parametrize('kind', KINDS)
def test_a_row_of_one_that_is_online_says_who_is_meant(kind):
    row = refused(KINDS[kind], address=ELSEWHERE, until=NOW + 60)
    found = advised(row, of=known(ONLINE), used_up=NOW - 60 if kind == 'strangers' else None)
    assert [each.brief for each in found] == {
        'clock': ["A second machine's clock is 61 minutes ahead"],
        'former': ['A second machine has the old secret'],
        'wrong': [],
        'unusable': ['No usable secret: it needs a new one'],
        'address': ['A second machine has to wait'],
        'strangers': ['Strangers tried wrong codes'],
        'friend': ['Short codes are refused'],
        'full': ['The server is full'],
        'twins': ['Two machines use its file'],
    }[kind]


def test_that_it_is_disabled_is_said_elsewhere():
    assert advised(refused(Why('disabled')), refused(AHEAD, 60), of=known(DISABLED)) == []
    assert advised(refused(Why('disabled')), of=known(OFFLINE)) == []


def test_guesses_at_one_that_is_online_need_no_advice():
    assert advised(refused(Why('wrong'), 12, ELSEWHERE), of=known(ONLINE)) == []
    (advice,) = advised(refused(Why('wrong')))
    assert 'the right file' in advice.text


def test_a_second_machine_is_told_from_the_first_by_its_address():
    (own,) = advised(refused(Why('former')))
    (other,) = advised(refused(Why('former'), 12, ELSEWHERE))
    assert own.heading == 'It uses the secret from before the new one'
    assert (
        other.heading
        == f'A second machine, at {ELSEWHERE}, has the file from before the new secret'
    )


def test_two_machines_with_one_file_are_named():
    (advice,) = advised(refused(KINDS['twins']), of=known(ONLINE))
    assert advice.heading.endswith(f'at {HERE} and at {ELSEWHERE}')
    turned = refused(Why('twins', other=HERE), address=ELSEWHERE)
    assert advised(turned, of=known(ONLINE))[0].heading == advice.heading
    assert not why.is_refusal(turned)
    (advice,) = advised(refused(Why('twins', other=HERE)), of=known(ONLINE))
    assert advice.heading.endswith(f'both at {HERE}')
    assert 'goes by itself within three minutes' in advice.text


def test_used_up_wrong_codes_of_strangers_are_said_without_a_refusal():
    (advice,) = advised(used_up=NOW - 600, of=known(ONLINE))
    assert (advice.kind, advice.what) == ('strangers', 'clear')
    row = refused(Why('strangers'), 5)
    assert kinds(advised(row, used_up=NOW - 600)) == ['strangers']
    assert advised(row) == []  # they were given back meanwhile


@pytest.mark.parametrize('kind', KINDS)
def test_every_reason_has_words_for_page_and_shell(kind):
    reason = KINDS[kind]
    assert 0 < len(why.brief(reason)) <= 45
    assert why.brief(reason) != 'Refused'
    row = refused(reason, until=NOW + 60 if kind == 'address' else 0)
    advice = advised(row, used_up=NOW - 60 if kind == 'strangers' else None)
    assert kinds(advice) == [kind]
    assert not advice[0].heading.endswith('.')
    lines = why.lines(advice, CLOCK)
    assert lines
    assert all(line.strip() for line in lines)
    assert bool(advice[0].what) == bool(advice[0].button)


def test_a_reason_of_a_later_version_harms_nobody():
    assert why.brief(Why('tea')) == 'Refused'
    assert advised(refused(Why('tea'))) == []


@pytest.mark.parametrize(
    ('of', 'said'),
    [
        (known(ONLINE), 'Online since 12:00'),
        (known(OFFLINE, 86_400), 'Offline since 25 Nov 13:00'),
        (known(REFUSED), 'Refused 12 s ago'),
        (known(DISABLED)._replace(since=None), 'Disabled'),
        (known(NEVER), 'Never seen'),
    ],
)
def test_a_state_is_said_in_a_few_words(of, said):
    assert why.said(of, CLOCK) == said
