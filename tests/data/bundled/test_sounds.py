"""The synthetic sounds: made from seeds, the same everywhere, and not told apart by loudness or pitch."""

import numpy as np
import pytest

from vitdistill.data.audio.fbank import RATE
from vitdistill.data.bundled.sounds import CLASSES, SyntheticSounds, draw, sounds


def test_sounds_are_made_from_their_seeds() -> None:
    few, more = SyntheticSounds("val", 3, seed=5), SyntheticSounds("val", 6, seed=5)
    assert all(np.array_equal(few.load(index)[0].read(), more.load(index)[0].read()) for index in range(3))
    assert few.digest() != more.digest() == SyntheticSounds("val", 6, seed=5).digest()
    assert more.labels == [0, 1, 2, 3, 4, 5] and more.load(4)[1] == 4
    assert not np.array_equal(more.load(0)[0].read(), draw(0, np.random.RandomState(6)))


def test_every_class_has_a_second_of_sound_with_noise_behind_it() -> None:
    for label in range(len(CLASSES)):
        sound = draw(label, np.random.RandomState(label))
        assert sound.shape == (RATE,) and sound.dtype == np.float32 and 0.01 < np.abs(sound).max() <= 1
        assert np.abs(sound).min() < np.abs(sound).max() / 100 and np.count_nonzero(sound) > 0.99 * RATE


def test_the_source_says_what_it_is() -> None:
    source = sounds()
    assert (len(source.train), len(source.val), len(source.classes)) == (800, 200, 9)
    counts = np.bincount(source.val.labels or ())
    assert counts.max() - counts.min() <= 1
    assert source.train.in_memory and source.train.path(3) == "sounds/train/3"


@pytest.mark.parametrize("summary", [np.std, lambda sound: np.abs(sound).max()], ids=["loudness", "peak"])
def test_loudness_does_not_tell_the_class(summary: object) -> None:
    source = sounds()
    values = np.array([summary(source.val.load(index)[0].read()) for index in range(200)])  # type: ignore[operator]
    labels = np.array(source.val.labels)
    within = np.mean([values[labels == label].std() for label in range(9)])
    between = np.std([values[labels == label].mean() for label in range(9)])
    assert between < within
