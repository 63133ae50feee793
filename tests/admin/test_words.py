"""Times, lengths and sizes in words."""

import datetime
import os
import time
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rendezvous.admin import words
from rendezvous.admin.words import DAY, Clock

BERLIN = ZoneInfo('Europe/Berlin')
ZONES = [None, *map(ZoneInfo, ['UTC', 'Europe/Berlin', 'Asia/Kolkata', 'Pacific/Apia'])]
MOMENTS = st.floats(-1e6, 3e11)  # of any calendar, and some of none
ZONE = st.sampled_from(ZONES)


def at(text: str, zone: ZoneInfo = BERLIN) -> float:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


NOW = at('2026-11-26 14:00:00')
CLOCK = Clock(BERLIN, NOW)


@pytest.mark.parametrize(
    ('moment', 'said'),
    [
        ('2026-11-26 14:00:00', '14:00'),
        ('2026-11-26 00:00:00', '00:00'),
        ('2026-11-25 23:59:00', '25 Nov 23:59'),
        ('2026-11-20 08:05:00', '20 Nov 08:05'),
        ('2026-11-19 08:05:00', '19 Nov'),
        ('2026-02-03 08:05:00', '3 Feb'),
        ('2025-12-31 08:05:00', '31 Dec 2025'),
        ('2026-11-26 14:05:00', '14:05'),
        ('2026-11-27 00:10:00', '27 Nov 00:10'),
        ('2027-01-02 12:00:00', '2 Jan'),
        ('2035-01-02 12:00:00', '2 Jan 2035'),
    ],
)
def test_a_time_is_said_as_its_reader_needs_it(moment, said):
    assert CLOCK.at(at(moment)) == said


def test_a_year_is_said_where_the_date_could_be_one_of_another_year():
    new_year = Clock(BERLIN, at('2027-01-01 00:30:00'))
    assert new_year.at(at('2026-12-31 23:50:00')) == '31 Dec 23:50'
    assert new_year.at(at('2026-12-01 10:00:00')) == '1 Dec'
    assert new_year.at(at('2026-01-02 10:00:00')) == '2 Jan 2026'


def test_what_was_just_now_is_said_in_seconds_and_minutes():
    assert CLOCK.ago(NOW + 5) == '0 s ago'
    assert CLOCK.ago(NOW - 59.9) == '59 s ago'
    assert CLOCK.ago(NOW - 60) == '1 min ago'
    assert CLOCK.ago(NOW - 3599) == '59 min ago'
    assert CLOCK.ago(NOW - 3600) == '13:00'


def test_the_same_moment_has_another_time_in_another_zone():
    moment = at('2026-11-26 23:30:00')
    assert CLOCK.at(moment) == '23:30'
    assert Clock(ZoneInfo('Asia/Kolkata'), NOW).at(moment) == '27 Nov 04:00'
    assert CLOCK.exact(moment) == '2026-11-26 23:30:00 +0100'
    assert words.utc(moment) == '2026-11-26T22:30:00Z'


def test_without_a_zone_it_is_that_of_the_machine(monkeypatch):
    monkeypatch.setenv('TZ', 'Asia/Kolkata')
    time.tzset()
    try:
        assert Clock(now=NOW).at(NOW) == '18:30'
        assert Clock(now=NOW).midnight(NOW) == at('2026-11-26 00:00:00', ZoneInfo('Asia/Kolkata'))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert os.environ.get('TZ') != 'Asia/Kolkata'


def test_a_day_of_the_change_to_summer_time_has_23_hours():
    spring = Clock(BERLIN, at('2026-03-29 12:00:00'))
    assert spring.midnight(spring.now, 1) - spring.midnight(spring.now) == 23 * 3600
    autumn = Clock(BERLIN, at('2026-10-25 12:00:00'))
    assert autumn.midnight(autumn.now, 1) - autumn.midnight(autumn.now) == 25 * 3600
    assert spring.month(spring.now) == at('2026-03-01 00:00:00')


def test_a_day_of_a_week_has_a_name():
    assert CLOCK.day(at('2026-11-24 18:00:00')) == 'Tue 24'
    assert CLOCK.day(NOW) == 'today'


def test_since_says_for_how_long():
    assert CLOCK.since(at('2026-11-26 09:12:00')) == '09:12 (4 h 48 min)'
    assert CLOCK.second(at('2026-11-26 09:12:44')) == '09:12:44'
    assert CLOCK.second(at('2026-11-02 09:12:44')) == '2 Nov'


@given(MOMENTS, MOMENTS, ZONE)
def test_every_moment_can_be_said(moment, now, zone):
    clock = Clock(zone, abs(now))
    for said in clock.at(moment), clock.ago(moment), clock.second(moment), clock.day(moment):
        assert said.isprintable()
        assert 0 < len(said) <= 18
    assert clock.exact(moment)[4] == '-'
    assert words.utc(moment)[-1] == 'Z'


@given(st.floats(1e9, 4e9), ZONE, st.integers(-400, 400))
def test_days_begin_at_midnight(moment, zone, days):
    clock = Clock(zone, moment)
    begin, end = clock.midnight(moment, days), clock.midnight(moment, days + 1)
    assert 22 * 3600 <= end - begin <= 26 * 3600 or zone == ZoneInfo('Pacific/Apia')
    assert clock.midnight(moment) <= moment < clock.midnight(moment, 1)
    assert 0 <= moment - clock.month(moment) < 32 * DAY


@pytest.mark.parametrize(
    ('seconds', 'said'),
    [
        (0, '0 ms'),
        (0.018, '18 ms'),
        (0.0999, '0.1 s'),
        (0.4, '0.4 s'),
        (9.96, '10 s'),
        (41, '41 s'),
        (59.7, '1:00 min'),
        (185, '3:05 min'),
        (3599.7, '1:00 h'),
        (7200, '2:00 h'),
        (172_799.9, '2 days'),
        (12.5 * DAY, '12 days'),
    ],
)
def test_how_long_a_visit_took(seconds, said):
    assert words.lasting(seconds) == said


@pytest.mark.parametrize(
    ('seconds', 'said'),
    [
        (-3, '0 s'),
        (41.9, '41 s'),
        (60, '1 min'),
        (3600, '1 h'),
        (17_280, '4 h 48 min'),
        (86_400, '1 day'),
        (2 * DAY + 19 * 3600 + 59, '2 days 19 h'),
        (12 * DAY + 19 * 3600, '12 days'),
    ],
)
def test_a_length_in_a_sentence(seconds, said):
    assert words.length(seconds) == said


@pytest.mark.parametrize(
    ('seconds', 'said'),
    [
        (30, '30 seconds'),
        (1, '1 second'),
        (-90, '90 seconds'),
        (3660, '61 minutes'),
        (-7200, '2 hours'),
        (47 * 3600, '47 hours'),
        (48 * 3600, '2 days'),
    ],
)
def test_how_far_a_clock_is_off(seconds, said):
    assert words.apart(seconds) == said


@pytest.mark.parametrize(
    ('octets', 'said'),
    [
        (0, '0'),
        (512, '512 B'),
        (1000, '1 kB'),
        (1100, '1.1 kB'),
        (999_600, '1 MB'),
        (341e6, '341 MB'),
        (9.96e9, '10 GB'),
        (2**53, '9 PB'),
    ],
)
def test_octets_have_three_digits_at_most(octets, said):
    assert words.size(octets) == said


@given(st.integers(0, 2**53))
def test_sizes_are_short_and_right(octets):
    number, _, unit = words.size(octets).partition(' ')
    assert len(number) <= 3
    scale = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'].index(unit or 'B')
    assert float(number) * 1000**scale == pytest.approx(octets, rel=0.06, abs=0.5)


def test_one_and_many():
    assert words.plural(1, 'entry', 'entries') == '1 entry'
    assert words.plural(0, 'entry', 'entries') == '0 entries'
    assert words.plural(1200, 'visit') == '1,200 visits'
