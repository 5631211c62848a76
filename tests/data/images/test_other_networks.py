"""Images are not made ready for networks that take something else."""

import pytest

from vitdistill.data.images.augment import Augment
from vitdistill.data.images.samples import image_transform
from vitdistill.data.samples import ViewOptions
from vitdistill.errors import UserError
from vitdistill.types import InputSpec


@pytest.mark.parametrize("train", [False, True])
def test_a_network_over_sound_is_refused(train: bool) -> None:
    """It has one channel, as a network over grey images."""
    sound = InputSpec((1, 128, 512), (-6.6,), (10.7,), sound=True)
    with pytest.raises(UserError, match="one over spectrograms of 128 mel bins and 512 frames. Choose a ViT"):
        image_transform(sound, ViewOptions(augment=Augment()), train=train)
