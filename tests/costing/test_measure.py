"""Timing and memory against work whose time and memory are known."""

import json
import time

import pytest
import torch
from torch import nn

from vitdistill.costing.measure import Comparison, Timing, compare, hardware, peak_memory_bytes, time_ms, weight_bytes
from vitdistill.errors import UserError
from vitdistill.verbs.bench import bench

MIB = 2**20
FLOATS = MIB // 4  # float32 numbers in one MiB
NAME = "vit_tiny_patch16_224"
TINY = {"img_size": 16, "patch_size": 2, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}
TINY_TEACHER = {"teacher": NAME, "teacher_args": TINY, "device": "cpu"}


def test_timing_statistics() -> None:
    timing = Timing((1.0, 2.0, 3.0, 4.0, 100.0))
    assert timing.median_ms == 3.0
    assert timing.spread_ms == 2.0  # quartiles 2 and 4: one slow run does not matter
    assert timing.as_dict(items=6) == {
        "median_ms": 3.0,
        "spread_ms": 2.0,
        "ms_per_image": 0.5,
        "images_per_s": 2000.0,
    }
    assert Timing((5.0,)).spread_ms == 0.0


def test_time_is_in_milliseconds() -> None:
    timing = time_ms(lambda: time.sleep(0.01), repeats=3, warmup=0)
    assert len(timing.samples_ms) == 3
    assert min(timing.samples_ms) >= 10.0


def test_candidates_take_turns_and_begin_in_turn() -> None:
    order: list[str] = []
    compare({name: lambda name=name: order.append(name) for name in "abc"}, repeats=3, warmup=1)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"


def test_ratio_pairs_the_rounds() -> None:
    """A machine that becomes ten times slower half-way changes no ratio."""
    timings = Comparison(slow=Timing((2.0, 2.2, 20.0, 22.0)), fast=Timing((1.0, 1.1, 10.0, 11.0)))
    assert timings.ratio("slow", "fast") == pytest.approx(2.0)


@pytest.mark.parametrize(("fns", "repeats"), [({}, 3), ({"a": lambda: None}, 0)])
def test_nothing_to_time(fns: dict, repeats: int) -> None:
    with pytest.raises(ValueError, match="nothing to time"):
        compare(fns, repeats)


def test_peak_counts_what_lives_at_once() -> None:
    def work() -> None:
        first = torch.ones(FLOATS)  # 1 MiB
        second = first + 1  # 2
        del first  # 1
        third = torch.cat((second, second))  # 3: the peak
        del second  # 2
        third.add_(1)  # in place
        third.view(2, -1).t()  # views are free
        torch.ones(FLOATS // 2)  # 2.5

    assert peak_memory_bytes(work) == 3 * MIB


def test_peak_leaves_out_what_was_there_before() -> None:
    weights = torch.ones(8 * FLOATS)
    assert peak_memory_bytes(lambda: weights[:FLOATS].mul_(2)) == 0
    assert peak_memory_bytes(lambda: weights[:FLOATS] * 2) == MIB


def test_peak_includes_what_backward_keeps() -> None:
    """Ten sines keep their ten inputs for backward; without gradient two tensors live at once."""

    def chain() -> torch.Tensor:
        value = torch.ones(FLOATS, requires_grad=torch.is_grad_enabled())
        for _ in range(10):
            value = value.sin()
        return value

    def training() -> None:
        chain().sum().backward()

    def inference() -> None:
        with torch.no_grad():
            chain()

    assert peak_memory_bytes(inference) == 2 * MIB
    assert 11 * MIB <= peak_memory_bytes(training) <= 14 * MIB


def test_peak_of_a_second_call_does_not_remember_the_first() -> None:
    big, small = (lambda: torch.ones(4 * FLOATS)), (lambda: torch.ones(FLOATS))
    assert [peak_memory_bytes(work) for work in (big, small)] == [4 * MIB, MIB]


def test_weight_bytes() -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).to(torch.bfloat16)
    counter = 8  # BatchNorm's int64 number of batches
    assert weight_bytes(module) == 2 * (3 * 5 + 5 + 4 * 5) + counter


def test_hardware_names_the_machine() -> None:
    facts = hardware()
    assert facts["cpu"] and facts["cpu_cores"] >= 1
    assert facts["torch"] == torch.__version__
    assert (facts["gpu"] is not None) == torch.cuda.is_available()


def test_bench_verb(capsys: pytest.CaptureFixture) -> None:
    result = bench(
        **TINY_TEACHER, student=NAME, student_args=TINY, keep=[0.25, 0.5], batch_size=2, repeats=2, json=True
    )
    assert json.loads(capsys.readouterr().out) == result
    rows = result["teacher_passes"]
    assert [row["patches"] for row in rows] == [64, 32, 16]
    assert rows[0]["gain"] == rows[0]["mac_ratio"] == 1.0
    assert 1 < rows[1]["mac_ratio"] < rows[2]["mac_ratio"]
    assert rows[0]["peak_memory_bytes"] > rows[1]["peak_memory_bytes"] > rows[2]["peak_memory_bytes"]
    for row in rows:
        assert row["gain_share_of_limit"] == pytest.approx(row["gain"] / row["mac_ratio"])
    assert 0 < result["student_step"]["saliency_share_of_step"] < 1
    assert result["dtype"] == "float32" and result["hardware"]["cpu"]


def test_bench_prints_tables(capsys: pytest.CaptureFixture) -> None:
    bench(**TINY_TEACHER, batch_size=1, repeats=1)
    text = capsys.readouterr().out
    assert "images/s" in text and "gain / limit" in text and " 32 " in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"keep": [0.5, 65]}, "keep must lie between 1 and 64"),
        ({"keep": []}, "keep must name at least one"),
        ({"teacher": "resnet18", "teacher_args": {}}, "cannot leave out patches"),
    ],
)
def test_bench_bad_input(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bench(**{**TINY_TEACHER, **options})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_bench_without_a_gpu() -> None:
    with pytest.raises(UserError, match="needs a GPU"):
        bench(**{**TINY_TEACHER, "device": "cuda"})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    values = torch.ones(64 * FLOATS, device="cuda")
    assert time_ms(lambda: values * 2, repeats=3, device="cuda").median_ms > 0
    assert peak_memory_bytes(lambda: values * 2, "cuda") == 64 * MIB
