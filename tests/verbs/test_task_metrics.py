"""The metrics of the tasks, as their source has them."""

import pytest

from vitdistill.errors import UserError
from vitdistill.tasks import TASKS, task_class
from vitdistill.verbs.study_questions import Columns
from vitdistill.verbs.task_metrics import metrics_of_tasks, scores_of_tasks


def test_source_says_what_the_classes_say() -> None:
    for name in TASKS:
        task = task_class(name)
        assert task.score in task.columns and task.score in scores_of_tasks()
        assert set(task.columns) <= set(metrics_of_tasks())
        assert set(task.columns.values()) & set(metrics_of_tasks().values()), name
    assert scores_of_tasks()[:2] == ("top1", "map") and metrics_of_tasks()["top1"] == "top-1 %"


def test_a_study_may_name_the_metrics_of_every_task() -> None:
    check = Columns({}, [])
    for name in metrics_of_tasks():
        for prefix in ("val", "ema", "best"):
            check("score", f"{prefix}/{name}")
    with pytest.raises(UserError, match="Did you mean 'val/top1'"):
        check("score", "val/topp1")
    with pytest.raises(UserError, match="got 'kn/map'"):
        check("score", "kn/map")
