"""What tests of networks by the metrics of their task refuse."""

from typing import Any

import pytest

from tiny import tiny
from vitdistill.data.bundled.digits import digits
from vitdistill.errors import UserError
from vitdistill.evaluation.tasks import evaluate_task
from vitdistill.models.build import build
from vitdistill.models.record import record_of

OPTIONS: dict[str, Any] = {"files": None, "config": {}, "batch_size": 8, "device": "cpu", "workers": 0, "out": None}


def test_another_order_is_refused_where_a_task_goes_by_numbers() -> None:
    network = build("digits_vit_small")
    record_of(network.net).classes = digits().classes[::-1]
    with pytest.raises(UserError, match="digits must be in the order of those of .*Give them in the order") as error:
        evaluate_task(network, "classification", data="digits", **OPTIONS)
    assert "\n" not in str(error.value)


def test_a_batch_of_nothing_is_refused_before_any_data_is_opened() -> None:
    with pytest.raises(UserError, match="batch_size must be at least 1; got 0"):
        evaluate_task(build(tiny("vit")), "classification", data="nowhere", **{**OPTIONS, "batch_size": 0})
