"""Which masks words ask for, and what is refused by words alone."""

from typing import Any

import pytest

from vitdistill.errors import UserError
from vitdistill.evaluation.asked import RANKERS, criteria_of, keeps_of, masks_of
from vitdistill.methods.selection import check_criterion

DEFAULTS: dict[str, Any] = {"keep": 1.0, "criterion": "teacher", "student": None, "seed": 0}


def test_keep_is_a_number_a_text_or_a_list() -> None:
    assert keeps_of(0.5) == (0.5,) and keeps_of(98) == (98,) and keeps_of("0.5") == (0.5,)
    assert keeps_of("0.25, 98,1.0") == keeps_of([0.25, "98", 1.0]) == keeps_of((0.25, 98, "1.0")) == (0.25, 98, 1.0)
    assert [type(keep) for keep in keeps_of("1,1.0,1,1.0")] == [int, float]  # one patch, and all of them


@pytest.mark.parametrize(
    "keep", ["", "0.5,", "half", 0, -3, "0.5,1.5", float("nan"), float("inf"), "nan", [], [0.5, None], [True]]
)
def test_keep_of_nothing_is_refused(keep: Any) -> None:
    with pytest.raises(UserError, match=r"keep must .*Give a count such as 98, a fraction such as 0\.5, or several"):
        keeps_of(keep)


@pytest.mark.parametrize("keep", ["1.0->0.5", "0:1.0,0.5:0.25"])
def test_schedules_are_for_training(keep: str) -> None:
    with pytest.raises(UserError, match="A keep schedule is for training"):
        keeps_of(keep)


def test_criteria_are_those_of_training_that_need_no_third_network() -> None:
    assert criteria_of("random, teacher,random") == criteria_of(["random", "teacher"]) == ("random", "teacher")
    assert all(check_criterion(name) for name in RANKERS)
    for wrong in ("network", "randm", "", "teacher,", []):
        with pytest.raises(UserError, match="criterion must be one or several of teacher, random, student"):
            criteria_of(wrong)


def test_what_words_ask_for() -> None:
    def asked(**given: Any) -> Any:
        return masks_of({**DEFAULTS, **given}, DEFAULTS)

    assert not asked().leave_out and not asked(keep=[1.0]).leave_out
    assert asked(keep=1).leave_out and asked(keep="0.5,1.0").leave_out
    assert asked(keep=0.5, criterion="random", seed=3).criteria == ("random",)
    assert asked(keep=0.5, criterion="random,student+random", student="runs/x", seed=3).named("student")
    for given, words in (
        ({"criterion": "random"}, "--criterion has no effect unless --keep leaves out patches. Leave it out"),
        ({"keep": "1.0", "seed": 3}, "--seed has no effect unless --keep leaves out patches"),
        ({"keep": 0.5, "criterion": "random,student+random"}, r"The criterion student\+random needs a student, .*"),
        ({"keep": 0.5, "student": "runs/x"}, "--student has no effect unless --criterion names student"),
        ({"keep": 0.5, "seed": 3}, "--seed has no effect unless --criterion names random or student"),
    ):
        with pytest.raises(UserError, match=words):
            asked(**given)
