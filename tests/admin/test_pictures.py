"""The pictures of the page, and what they say in words."""

import datetime
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rendezvous.admin import pictures
from rendezvous.admin.pictures import UNKNOWN, Share, Span, bar, spans
from rendezvous.admin.words import Clock
from rendezvous.store.state import (
    DISABLED,
    NEVER,
    OFFLINE,
    ONLINE,
    REFUSED,
    STATES,
    Change,
    Hour,
    Known,
)

NOON = 1_795_521_600  # 26 Nov 2026, 12:00 UTC
HOUR, DAY = 3600, 86_400
CLOCK = Clock(datetime.UTC, NOON)
HOSTILE = '</svg><script>alert("1")</script>\'&'

moments = st.floats(NOON - 3 * DAY, NOON + DAY)
changes = st.lists(st.builds(Change, moments, st.sampled_from(STATES)), max_size=40)
outages = st.lists(st.tuples(moments, moments), max_size=5)
octets = st.integers(0, 2**53)
hours = st.lists(st.builds(Hour, octets, octets), max_size=200)


def at(text: str) -> float:
    """`09:12` today, `-1 22:10` yesterday."""
    day, _, clock = text.rpartition(' ')
    hour, minute = clock.split(':')
    return NOON + int(day or 0) * DAY + (int(hour) - 12) * HOUR + int(minute) * 60


def day(*pairs: str, until: str = '12:00', outages: tuple[tuple[str, str], ...] = ()) -> list[Span]:
    """The last 24 hours of one whose changes are pairs like '09:12 online'."""
    changes = [Change(at(each.rpartition(' ')[0]), each.rpartition(' ')[2]) for each in pairs]
    lost = [(at(a), at(b)) for a, b in outages]
    return spans(changes, NOON - DAY, NOON, at(until), lost)


def boxes(picture: str) -> list[tuple[str, list[float]]]:
    """The kind, and left, top, right and bottom, of each box of a bar or meter."""
    found = []
    for path in ElementTree.fromstring(picture).iter('path'):
        for box in re.findall(r'M(\d+) (\d+)h(\d+)v(\d+)h-(\d+)z', path.get('d')):
            x, y, width, height, back = map(int, box)
            assert back == width
            found.append((path.get('class'), [x, y, x + width, y + height]))
    return found


def points(path: str) -> list[tuple[float, float]]:
    """The corners of a path of M, H and V."""
    x = y = 0.0
    found = []
    for letter, numbers in re.findall(r'([MHV])([-\d. ]+)', path):
        values = [float(each) for each in numbers.split()]
        x = values[0] if letter in 'MH' else x
        y = values[-1] if letter in 'MV' else y
        found.append((x, y))
    return found


def test_states_are_cut_to_the_window():
    found = day('-9 00:00 online', '08:55 offline', '09:12 online', '13:00 offline')
    assert found == [
        Span(NOON - DAY, at('08:55'), ONLINE),
        Span(at('08:55'), at('09:12'), OFFLINE),
        Span(at('09:12'), NOON, ONLINE),
    ]


def test_later_one_of_two_changes_at_one_moment_counts():
    for states in (ONLINE, OFFLINE), (OFFLINE, ONLINE):
        found = spans([Change(NOON - HOUR, state) for state in states], NOON - HOUR, NOON)
        assert [span.state for span in found] == [states[1]]


def test_one_that_is_new_was_never_seen_before():
    found = day('11:00 online')
    assert [span.state for span in found] == [NEVER, ONLINE]


def test_nothing_is_known_while_no_server_ran_and_of_what_is_to_come():
    found = day('-9 00:00 online', '05:00 online', until='11:00', outages=(('03:00', '05:00'),))
    assert found == [
        Span(NOON - DAY, at('03:00'), ONLINE),
        Span(at('03:00'), at('05:00'), UNKNOWN),
        Span(at('05:00'), at('11:00'), ONLINE),
        Span(at('11:00'), NOON, UNKNOWN),
    ]


def test_one_whose_worker_was_killed_is_offline_since_then():
    changes = [Change(at('06:00'), ONLINE)]
    offline = Known(OFFLINE, at('11:00'))
    assert pictures.with_present(changes, offline) == [*changes, Change(at('11:00'), OFFLINE)]
    for same in Known(ONLINE, at('06:00')), Known(), Known(DISABLED):
        assert pictures.with_present(changes, same) == changes
    assert pictures.with_present([], offline) == [Change(at('11:00'), OFFLINE)]
    early = Known(OFFLINE, at('05:00'))
    assert pictures.with_present(changes, early)[-1] == Change(at('06:00'), OFFLINE)


@given(changes, outages, moments, st.floats(1, 8 * DAY), st.none() | moments)
def test_spans_cover_the_window_and_neighbours_differ(changes, outages, start, length, until):
    end = start + length
    found = spans(changes, start, end, until, outages)
    assert (found[0].start, found[-1].end) == (start, end)
    for before, after in pairwise(found):
        assert before.end == after.start
        assert before.state != after.state
    assert all(span.seconds > 0 for span in found)


@given(changes, outages, st.none() | moments, st.sampled_from([0.011, 0.004]))
def test_bar_is_well_formed_and_within_its_view(changes, outages, until, least):
    found = spans(changes, NOON - DAY, NOON, until, outages)
    picture = bar(found, HOSTILE, least)
    root = ElementTree.fromstring(picture)
    assert root.get('aria-label') == HOSTILE
    for kind, (left, top, right, bottom) in boxes(picture):
        assert kind in (ONLINE, OFFLINE, DISABLED, REFUSED)
        assert 0 <= left < right <= 10_000
        assert 0 <= top < bottom <= 16


def width(found: list[Span], state: str) -> int:
    """Of all that is in that state, in ten-thousandths of the bar."""
    return sum(right - left for kind, (left, _, right, _) in boxes(bar(found, '')) if kind == state)


def test_minute_is_seen():
    outage = day('-9 00:00 online', '06:00 offline', '06:01 online')
    assert width(outage, OFFLINE) == 110
    assert width(outage, ONLINE) == 10_000 - 110
    visit = day('-9 00:00 offline', '06:00 online', '06:01 offline')
    assert width(visit, ONLINE) == 110


def test_those_that_change_each_minute_are_drawn_in_proportion():
    minutes = (f'{6 + i // 60:02}:{i % 60:02} {OFFLINE if i % 2 else ONLINE}' for i in range(361))
    flapping = day(*minutes)
    assert abs(width(flapping, OFFLINE) - width(flapping, ONLINE)) < 200
    assert len({left for _, (left, *_) in boxes(bar(flapping, ''))}) == 361 - 1


def test_bar_of_one_that_never_rests_is_small():
    changes = [Change(NOON - i * 10, ONLINE if i % 2 else OFFLINE) for i in range(8640)]
    picture = bar(spans(changes, NOON - DAY, NOON), '')
    assert len(picture) < 40_000
    assert boxes(picture)[0][1][0] == 0
    assert max(right for _, (_, _, right, _) in boxes(picture)) == 10_000
    changes = [Change(NOON - DAY + i * 30, OFFLINE if i % 3 else ONLINE) for i in range(2880)]
    assert {kind for kind, _ in boxes(bar(spans(changes, NOON - DAY, NOON), ''))} == {OFFLINE}


def test_outage_of_this_minute_does_not_stick_out_of_the_bar():
    found = day('-9 00:00 online', '11:59 refused')
    assert boxes(bar(found, '')) == [
        (ONLINE, [0, 0, 9890, 16]),
        (REFUSED, [9890, 7, 10_000, 16]),
    ]


def test_states_differ_in_height_and_the_unknown_is_a_gap():
    assert len({height for _, height in pictures.PLACES.values()}) == len(pictures.PLACES)
    kinds = {kind for kind, _ in boxes(bar(day('00:00 disabled', until='11:00'), ''))}
    assert kinds == {DISABLED}


@pytest.mark.parametrize(
    ('pairs', 'words'),
    [
        ([], 'never online'),
        (['-9 00:00 online'], 'online throughout'),
        (['-9 00:00 offline'], 'offline'),
        (['-9 00:00 disabled'], 'disabled'),
        (['11:00 online'], 'online since 11:00'),
        (['-9 00:00 offline', '06:40 online'], 'online since 06:40'),
        (['-9 00:00 online', '03:30 offline'], 'online until 03:30, offline since'),
        (
            ['-9 00:00 online', '11:20 offline', '11:24 refused'],
            'online until 11:20, refused since 11:24',
        ),
        (
            ['-9 00:00 online', '08:55 offline', '09:12 online'],
            'online but from 08:55 to 09:12',
        ),
        (
            ['06:00 online', '07:00 refused', '07:30 online', '09:00 offline'],
            'online from 06:00 until 09:00 but from 07:00 to 07:30, offline since',
        ),
        (['-9 00:00 offline', '09:00 refused'], 'offline until 09:00, refused since 09:00'),
    ],
)
def test_bar_in_words(pairs, words):
    assert pictures.day_words(day(*pairs), CLOCK) == f'Last 24 hours: {words}'


def test_many_outages_are_counted():
    pairs = ['-9 00:00 online']
    for hour in range(1, 8):
        pairs += [f'0{hour}:00 offline', f'0{hour}:{10 if hour < 7 else 20} online']
    words = pictures.day_words(day(*pairs), CLOCK)
    assert words == 'Last 24 hours: online but for 7 outages, the longest 20 min'


def test_words_say_that_the_server_was_not_there():
    found = day('-9 00:00 online', until='11:00')
    assert pictures.state_words(found, CLOCK) == 'online; nothing is known since 11:00'
    found = day('-9 00:00 online', outages=(('03:00', '04:00'),))
    words = 'online; nothing is known from 03:00 to 04:00'
    assert pictures.state_words(found, CLOCK) == words
    assert pictures.state_words(day(until='-2 00:00'), CLOCK) == 'nothing is known'


@given(changes, outages, st.none() | moments)
def test_any_day_can_be_said(changes, outages, until):
    found = spans(changes, NOON - DAY, NOON, until, outages)
    assert re.fullmatch(r'Last 24 hours: [\w:;, ]+', pictures.day_words(found, CLOCK))
    part = pictures.share(found, NOON)
    assert part is None or 0 <= part.percent <= 100


def test_share_never_says_100_percent_of_one_that_was_away():
    found = day('-9 00:00 online', '06:00 offline', '06:01 refused', '06:02 online')
    assert pictures.share(found, NOON) == Share(99, 1, 120)
    assert pictures.share(day('-9 00:00 online'), NOON) == Share(100, 0, 0)
    assert pictures.share(day('-9 00:00 disabled'), NOON) is None
    half = day('-9 00:00 online', '-1 18:00 offline', '00:00 disabled', until='11:00')
    assert pictures.share(half, at('11:00')) == Share(50, 1, 6 * HOUR)


def test_week_in_words():
    assert week_of('-9 00:00 online') == 'online throughout'
    found = week_of('-9 00:00 online', '06:00 offline', '06:30 online')
    assert found == 'online 97 % of it; offline once, 30 min'
    found = week_of('-9 00:00 online', '-1 13:00 offline', '06:30 online', '08:00 offline')
    assert found == 'online 10 % of it; offline twice, 21 h 30 min'
    assert week_of() == ''
    assert week_of('-9 00:00 online', '08:00 disabled') == ''


def test_outages_of_the_server_are_said_as_such_in_the_words_of_a_week():
    outages = ('03:00', '03:10'), ('04:00', '04:10'), ('05:00', '05:10')
    words = 'online 97 % of it; the server was down 3 times, 30 min'
    assert week_of('-9 00:00 online', outages=outages) == words
    # It takes the hidden server a moment to come back.
    back = '-9 00:00 online', '03:00 offline', '03:11 online'
    words = 'online 99 % of it; the server was down once, 11 min'
    assert week_of(*back, outages=outages[:1]) == words
    # One that did not come back then was offline, too.
    away = '-9 00:00 online', '03:00 offline', '04:10 online'
    words = 'online 95 % of it; offline once, 1 h; the server was down once, 10 min'
    assert week_of(*away, outages=outages[:1]) == words


def test_server_that_is_down_now_is_said_in_the_words_of_a_week_and_the_future_is_not():
    online = Change(NOON - 9 * DAY, ONLINE)
    to_midnight = spans([online], NOON - DAY, NOON + DAY / 2, NOON)
    assert pictures.week_words(to_midnight, NOON) == 'online throughout'
    words = 'online 66 % of it; the server was down once, 12 h'
    assert pictures.week_words(to_midnight, NOON + DAY / 2) == words
    just_left = spans([online, Change(NOON - 30, OFFLINE)], NOON - DAY, NOON + DAY / 2, NOON)
    assert pictures.week_words(just_left, NOON) == 'online 99 % of it; offline once, 30 s'


def test_what_was_before_it_came_online_for_the_first_time_is_no_outage_of_it():
    assert week_of('11:00 refused') == ''
    assert week_of('-9 00:00 offline') == ''
    states = ('10:00', REFUSED), ('10:05', NEVER), ('10:30', REFUSED), ('11:00', ONLINE)
    changes = [Change(at(when), state) for when, state in states]
    outages = [(at('09:00'), at('09:10')), (at('10:10'), at('10:20'))]
    found = spans(changes, NOON - DAY, NOON, outages=outages)
    assert pictures.week_words(found, NOON) == 'online throughout'


def week_of(*pairs: str, outages: tuple[tuple[str, str], ...] = ()) -> str:
    return pictures.week_words(day(*pairs, outages=outages), NOON)


@given(hours)
def test_plots_are_well_formed_and_within_their_views(hours):
    for picture in pictures.traffic(hours, HOSTILE), pictures.spark(hours, HOSTILE):
        root = ElementTree.fromstring(picture)
        assert root.get('aria-label') == HOSTILE
        _, _, width, height = map(float, root.get('viewBox').split())
        for path in root.iter('path'):
            for x, y in points(path.get('d')):
                assert 0 <= x <= width
                assert 0 <= y <= height
    ElementTree.fromstring(pictures.scale(hours))


def test_up_can_be_read_where_it_is_a_twentieth_of_down():
    hours = [Hour(50_000_000, 1_000_000_000), Hour(1, 1), Hour()]
    paths = ElementTree.fromstring(pictures.traffic(hours, '')).iter('path')
    corners = {path.get('class'): points(path.get('d')) for path in paths}
    up = [pictures.PLOT_HEIGHT - y for _, y in corners['up']]
    assert max(up) == pictures.UP_HEIGHT
    assert up[3] >= 1  # one octet is seen
    assert up[5] == 0
    assert '50 MB' in pictures.scale(hours)
    assert pictures.lines(hours) == '500 MB and 1 GB an hour down, 50 MB an hour up'


def test_plot_has_a_round_number_on_top():
    tops = {0: 1, 1: 1, 3: 5, 10: 10, 11: 20, 999: 1000, 2 * 10**9 + 1: 5 * 10**9}
    for value, top in tops.items():
        assert pictures.nice(value) == top


@given(st.integers(0, 2**53))
def test_top_is_not_below_the_value_and_at_most_ten_times_it(value):
    assert value <= pictures.nice(value) <= max(10 * value, 1)


def test_traffic_in_words():
    hours = [Hour(1000, 2_000_000), Hour(0, 500_000)]
    assert pictures.traffic_words(hours, 'in the last 24 hours') == (
        'Octets an hour in the last 24 hours: down 2.5 MB in all, 2 MB at most; '
        'up 1 kB in all, 1 kB at most'
    )
    assert pictures.traffic_words([], 'this week') == (
        'Octets an hour this week: down 0 in all; up 0 in all'
    )


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_meter_stays_within_its_room(used, most):
    picture = pictures.meter(used, most, 'connections')
    *_, (kind, (left, _, right, _)) = [('used', [0, 0, 0, 6]), *boxes(picture)]
    assert 0 <= left <= right <= 10_000
    assert kind in ('room', 'used')
    assert re.search(r'\d+ % of the connections', picture)


def test_live_picture_has_a_line_for_each_connection_up_to_seven():
    def kinds(*arguments) -> list[str]:
        root = ElementTree.fromstring(pictures.link(*arguments))
        return [path.get('class') for path in root.iter('path')]

    assert kinds(1, 4) == ['waiting', 'waiting', 'open', 'waiting', 'waiting', 'head']
    assert kinds(500, 500).count('open') == 3
    assert len(kinds(500, 500)) == 8
    assert kinds(0) == ['none']
    assert kinds(0, 0, 'cut') == ['cut', 'head', 'cross']
    assert pictures.link_words(1, 4) == '1 open, 4 waiting'
    assert pictures.link_words(0) == 'none open'
    assert pictures.link_words(0, 0) == 'none open, none waiting'
