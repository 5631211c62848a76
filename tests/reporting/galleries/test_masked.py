"""The picture of accuracy under masks."""

from typing import Any

from vitdistill.reporting.galleries.masked import masked_figure


def row(criterion: str | None, kept: int, top1: float, agreement: float) -> dict[str, Any]:
    return {"criterion": criterion, "kept": kept, "patches": 16, "top1": top1, "agreement": agreement}


def test_a_line_for_each_criterion_ends_at_the_whole_image() -> None:
    rows = [row("random", 8, 60.0, 0.6), row("random", 4, 30.0, 0.4), row("teacher", 4, 40.0, 0.5)]
    figure = masked_figure([*rows, row(None, 16, 90.0, 1.0)], whole_top1=90.0)
    accuracy, agreement = figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in accuracy.lines}
    assert lines == {"random": [[4, 30], [8, 60], [16, 90]], "teacher": [[4, 40], [16, 90]]}
    assert agreement.lines[0].get_xydata().tolist() == [[4, 0.4], [8, 0.6], [16, 1.0]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["random", "teacher"]
    assert masked_figure(rows, whole_top1=90.0).axes[0].lines[0].get_xydata().tolist() == lines["random"]
