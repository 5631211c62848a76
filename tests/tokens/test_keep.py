"""Keep: counts, fractions, schedules, and everything that is none of them."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdistill.errors import UserError
from vitdistill.tokens.keep import KeepSchedule, keep_count, progress_at, tally


@pytest.mark.parametrize(
    ("keep", "patches", "count"),
    [
        (98, 196, 98),
        (1, 196, 1),  # one patch
        (1.0, 196, 196),  # all of them
        (196, 196, 196),
        (0.5, 196, 98),
        (0.75, 196, 147),
        (0.25, 196, 49),
        (0.5, 49, 25),  # 24.5 is rounded up
        (0.001, 196, 1),  # at least one
        (98.0, 196, 98),
        ("98", 196, 98),
        ("0.5", 196, 98),
        ("1", 196, 1),
        ("1.0", 196, 196),
        ("1e-1", 100, 10),
        (np.int64(98), 196, 98),
        (np.float32(0.5), 196, 98),
    ],
)
def test_counts_and_fractions(unchecked, keep, patches, count):
    got = keep_count(keep, patches)
    assert got == count and type(got) is int


BAD = [0, 0.0, -1, -0.5, 197, 196.5, 1.5, float("nan"), float("inf"), True, None, [98], "0", "-3", "nan", "inf"]
BAD += ["many", "", "50%", "0.5.1", "1/2", "0,5"]


@pytest.mark.parametrize("keep", BAD, ids=repr)
def test_bad_keeps_give_rule_value_and_remedy(unchecked, keep):
    with pytest.raises(UserError, match=r"keep must .*; got .*Give a count such as 98") as error:
        KeepSchedule.parse(keep).count(0.0, 196)
    text = str(error.value)
    assert "\n" not in text and (f"got {keep}. " in text or f"got {keep!r}. " in text)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400), st.floats(0, 1, exclude_min=True))
def test_fractions_round_to_the_nearest_patch(patches, fraction):
    count = keep_count(fraction, patches)
    assert 1 <= count <= patches and (abs(count - fraction * patches) <= 0.5 + 1e-9 or count == 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_every_count_up_to_n_is_kept_as_it_is(case):
    patches, count = case
    assert keep_count(count, patches) == keep_count(str(count), patches) == count


# --- schedules --------------------


def counts(text: str, *progress: float) -> list[int]:
    return [KeepSchedule.parse(text).count(at, 196) for at in progress]


def test_a_number_is_a_constant_schedule():
    for keep in (98, "98", 0.5, "0.5"):
        schedule = KeepSchedule.parse(keep)
        assert schedule.constant and [schedule.count(at, 196) for at in (0.0, 0.5, 1.0)] == [98] * 3
    assert KeepSchedule.parse(schedule) is schedule


def test_an_arrow_is_linear_in_the_count():
    assert counts("1.0->0.5", 0.0, 0.25, 0.5, 1.0) == [196, 172, 147, 98]  # 171.5 is rounded up
    assert counts("49 -> 196", 0.0, 1.0, 2.0, -1.0) == [49, 196, 196, 49]
    assert not KeepSchedule.parse("1.0->0.5").constant


def test_steps_hold_until_the_next_in_any_order():
    assert counts("0:1.0,0.5:0.25", 0.0, 0.499, 0.5, 1.0) == [196, 196, 49, 49]
    assert counts("0.5:0.25, 0:98", 0.0, 0.5) == [98, 49]
    assert counts("0:98", 0.0, 1.0) == [98, 98]


@pytest.mark.parametrize(
    "text",
    [
        "0.1:1.0",
        "0:1.0,1.5:0.5",
        "-0.5:1.0,0:0.5",
        "0:1.0,nan:0.5",
        "a:0.5",
        "0:1.0,0.5",
        "0:1.0,0.5:",
        "0:",
        ":",
        "0:1,",
    ],
)
def test_bad_schedules_are_refused_when_read(text):
    with pytest.raises(UserError, match=r"keep schedule .*got .*Give a count such as 98"):
        KeepSchedule.parse(text)


@pytest.mark.parametrize("text", ["1.0->", "->0.5", "1.0->0.5->0.1", "1.0->0", "0:0", "0:1.0,0.5:500", "98->many"])
def test_bad_numbers_in_schedules_are_refused_when_counted(text):
    with pytest.raises(UserError, match=r"keep must .*Give a count such as 98"):
        counts(text, 0.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 196), st.integers(1, 196), st.floats(0, 1), st.floats(0, 1))
def test_a_linear_schedule_is_monotonic_and_stays_between_its_ends(start, end, a, b):
    early, late = counts(f"{start}->{end}", min(a, b), max(a, b))
    assert (start <= early <= late <= end) if start <= end else (start >= early >= late >= end)


# --- over training --------------------


SCHEDULES = ["98", "1.0->0.25", "49->196", "0:1.0,0.1:0.25", "0:1.0,0.3:0.25,0.31:1.0", "0:0.5,1:1.0"]


@pytest.mark.parametrize("steps", [1, 2, 5, 999, 2345])
@pytest.mark.parametrize("text", SCHEDULES)
def test_the_tally_is_that_of_every_step(text, steps):
    schedule = KeepSchedule.parse(text)
    every = [schedule.count(progress_at(step, steps), 196) for step in range(steps)]
    for done in {0, 1, steps // 3, steps}:
        assert tally(lambda at: schedule.count(at, 196), steps, done) == Counter(every[:done])


def test_progress_is_0_at_the_first_step_and_1_at_the_last():
    assert [progress_at(step, 5) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert progress_at(0, 1) == 0


def test_the_tally_of_a_long_training_asks_at_few_of_its_steps():
    asked = []
    schedule = KeepSchedule.parse("1.0->0.5")
    counts = tally(lambda at: asked.append(at) or schedule.count(at, 196), 1_500_000)
    assert sum(counts.values()) == 1_500_000 and set(counts) == set(range(98, 197)) and len(asked) < 4000
