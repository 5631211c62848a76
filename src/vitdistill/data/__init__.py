"""Where images come from, how they are augmented, and in which order they arrive.

Every random draw is a function of (seed, epoch, sample index, repeat) in the loader and of (seed, step) on the
device, so a resumed run only has to know where it is, and repeats bit for bit whatever the number of workers.

Read in this order: `source.py` (the interface), `image_folder.py` and `digits.py` (two sources), `recipes.py`
(augmentation), `sampling.py` (order and seeds), `loading.py` (batches), `on_device.py` (what runs after transfer).
"""

from vitdistill.data.recipes import Augment
from vitdistill.data.source import DataSource, ImageSet, open_source

__all__ = ["Augment", "DataSource", "ImageSet", "open_source"]
