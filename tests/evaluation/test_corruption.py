"""The mean corruption error."""

import pytest

from vitdistill.data.robustness.published import ALEXNET, CORRUPTIONS
from vitdistill.evaluation.corruption import absent, corruption_errors, per_severity

OF_ALEXNET = {name: dict(enumerate(errors, 1)) for name, errors in ALEXNET.items()}


def test_alexnet_is_the_scale() -> None:
    found = corruption_errors(OF_ALEXNET, clean=43.5)
    assert found["mce"] == pytest.approx(100, abs=1e-4) and found["relative_mce"] == pytest.approx(100)
    assert found["mean_error"] == pytest.approx(78.8993, abs=1e-4)
    own, alexnet = per_severity(OF_ALEXNET)
    assert own == alexnet and list(own) == [1, 2, 3, 4, 5]


def test_by_hand() -> None:
    """Half of AlexNet's errors are half of its mCE; a level error is not half everywhere."""
    halved = {name: {severity: error / 2 for severity, error in own.items()} for name, own in OF_ALEXNET.items()}
    found = corruption_errors(halved, clean=43.5 / 2)
    assert found["mce"] == pytest.approx(50, abs=1e-4) and found["relative_mce"] == pytest.approx(50)
    level = corruption_errors({name: dict.fromkeys(range(1, 6), 40.0) for name in CORRUPTIONS}, clean=40.0)
    assert level["mean_error"] == 40 and level["relative_mce"] == 0
    denominators = (88.6428, 89.4468, 92.2640, 81.9880, 82.6268, 78.5948, 79.8360, 86.6816)
    denominators += (82.6572, 81.9324, 56.4592, 85.3204, 64.6056, 71.7840, 60.6500)
    assert level["mce"] == pytest.approx(sum(4000 / each for each in denominators) / 15)
    assert level["corruptions"]["brightness"]["ce"] == pytest.approx(4000 / 56.4592)


def test_extra_corruptions_are_never_averaged() -> None:
    more = {**OF_ALEXNET, "spatter": dict.fromkeys(range(1, 6), 1.0)}
    found, without = corruption_errors(more), corruption_errors(OF_ALEXNET)
    assert found["corruptions"].pop("spatter") == {"error": 1.0, "ce": None}
    assert found == without and found["relative_mce"] is None  # no clean error
    assert per_severity(more) == per_severity(OF_ALEXNET)
    assert corruption_errors({"spatter": {1: 2.0}})["mean_error"] is None


def test_what_is_partial_has_no_mce() -> None:
    found = corruption_errors({"fog": {1: 30.0, 2: 50.0}, "snow": dict.fromkeys(range(1, 6), 43.3408)}, clean=20.0)
    assert found["mce"] is None and found["relative_mce"] is None
    assert found["corruptions"]["fog"] == {"error": 40.0, "ce": None}
    assert found["corruptions"]["snow"]["ce"] == pytest.approx(50)
    words = absent({"fog": {1: 30.0}, **{name: own for name, own in OF_ALEXNET.items() if name != "snow"}})
    assert words == ["without snow"] and absent(OF_ALEXNET) == []
    assert absent({**OF_ALEXNET, "fog": {1: 30.0}}) == ["fog without severity 2, 3, 4, 5"]
    own, alexnet = per_severity({"fog": {1: 30.0}, "snow": {1: 40.0, 2: 50.0}})
    assert own == {1: 35.0, 2: 50.0} and alexnet == {1: pytest.approx(69.6), 2: pytest.approx(88.392)}
