"""What a teacher's name alone shows to be of no use is refused before its weights are downloaded."""

from pathlib import Path
from typing import Any

import pytest
import timm

from colours import NETWORK, colours, options
from vitdistill.errors import UserError
from vitdistill.verbs.maskedkd import maskedkd
from vitdistill.verbs.tinymim import tinymim

VIT = "vit_tiny_patch16_224"


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(*args: Any, pretrained: bool = False, **more: Any) -> Any:
        assert not pretrained, "its weights were asked for"
        return create(*args, **more)

    monkeypatch.setattr(timm, "create_model", offline)


def test_a_teacher_is_judged_by_its_architecture(tmp_path: Path) -> None:
    data = colours(tmp_path / "data", {"n01440764": "red", "n01443537": "green"})
    given = options(data, tmp_path / "run")
    student = {"student": VIT, "student_args": NETWORK}
    with pytest.raises(UserError, match="resnet18 cannot leave out patches"):
        maskedkd(**student, teacher="resnet18", **given)
    with pytest.raises(UserError, match="keep"):
        maskedkd(**student, teacher=VIT, keep=999, **given)
    with pytest.raises(UserError, match="resnet18 hands out logits only"):
        tinymim(**student, teacher="resnet18", **given)
    others = options(colours(tmp_path / "others", {"rot": "red", "gelb": "green"}), tmp_path / "run")
    with pytest.raises(UserError, match="The teacher must have the classes of the data.* has 1000 and others has 2"):
        maskedkd(**student, teacher=VIT, **others)
