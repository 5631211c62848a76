"""The time model of steps in parts: its closed form against a simulation, and the examples of the documentation."""

from itertools import product

import pytest

from vitdistill.costing.pipeline import forward_time, separable_step_time, step_time

# GMACs: student, masked teacher; then the forward phase in series and in 2, 4 and 8 parts.
FORWARD = {
    "DeiT-B to DeiT-S": ((4.6, 8.7), (13.3, 11.0, 9.9, 9.3)),
    "DeiT-S to DeiT-Ti": ((1.26, 2.25), (3.5, 2.9, 2.6, 2.4)),
    "CaiT-S24 to DeiT-Ti": ((1.26, 4.5), (5.8, 5.1, 4.8, 4.7)),
}
# The whole step, with a backward pass of twice the forward one: the loss computed once, and part by part.
STEPS = {
    "DeiT-B to DeiT-S": ((22.5, 20.2, 19.1, 18.5), (15.9, 13.8, 13.8)),
    "DeiT-S to DeiT-Ti": ((6.0, 5.4, 5.1, 4.9), (4.3, 3.8, 3.8)),
}


@pytest.mark.parametrize("pair", FORWARD)
def test_examples_of_the_forward_phase(pair: str) -> None:
    (student, teacher), expected = FORWARD[pair]
    got = [forward_time(student, teacher, parts) for parts in (1, 2, 4, 8)]
    assert got == pytest.approx(expected, abs=0.06)
    assert got[2] <= 1.14 * max(student, teacher)


@pytest.mark.parametrize("pair", STEPS)
def test_examples_of_whole_steps(pair: str) -> None:
    (student, teacher), _ = FORWARD[pair]
    once, by_part = STEPS[pair]
    times = student, teacher, 2 * student
    assert [step_time(*times, parts) for parts in (1, 2, 4, 8)] == pytest.approx(once, abs=0.06)
    assert [separable_step_time(*times, parts) for parts in (2, 4, 8)] == pytest.approx(by_part, abs=0.06)


@pytest.mark.parametrize(("times", "parts"), list(product([(1.0, 3.0), (3.0, 1.0), (2.0, 2.0)], [1, 2, 5])), ids=str)
def test_the_formula_is_two_stages_in_order(times: tuple[float, float], parts: int) -> None:
    student = teacher = 0.0
    for _ in range(parts):
        student += times[0] / parts + 0.1
        teacher = max(student, teacher) + times[1] / parts + 0.1
    assert forward_time(*times, parts, overhead=0.1) == pytest.approx(teacher)


def test_bounds() -> None:
    assert forward_time(4.0, 9.0, 10_000) == pytest.approx(9.0, rel=1e-3)
    assert separable_step_time(1.0, 2.0, 2.0, 1) == step_time(1.0, 2.0, 2.0) == 5.0
    assert separable_step_time(1.0, 2.0, 2.0, 64) >= max(3.0, 2.0)
    # More parts pay until their overhead outweighs what they save.
    best = min(range(1, 40), key=lambda parts: forward_time(4.0, 9.0, parts, overhead=0.04))
    assert best == pytest.approx((4.0 / 0.04) ** 0.5, abs=1)
