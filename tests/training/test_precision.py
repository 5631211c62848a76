"""Names of precisions that training takes."""

import pytest

from vitdistill.errors import UserError
from vitdistill.training.precision import training_precision


@pytest.mark.parametrize(("name", "instead"), [("bf16-true", "bf16-mixed"), ("16-true", "16-mixed"), ("64", "32-true")])
def test_weights_of_another_precision_are_refused(name: str, instead: str) -> None:
    with pytest.raises(UserError, match=f"kept in float32 while training; got --precision {name}.*{instead}"):
        training_precision(name)
    assert training_precision(instead) == instead
