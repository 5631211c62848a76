"""Where images and videos come from, how they are augmented, and in which order they arrive.

Every random draw is a function of (seed, epoch, sample index, repeat) in the loader and of (seed, step) on the
device, so a resumed run only has to know where it is, and repeats bit for bit whatever the number of workers.

Read in this order:

1. The interfaces: `samples.py` (a set of samples, which brings its own transforms; views), `source.py` (a source of two
   sets), `open.py` (what `--data` names).
2. Files: `folders.py` (splits, class folders, what is held out; for images and videos alike), `left_out.py` (what is
   not read), `labels_csv.py` (a table of labels in place of class folders) on
   `tables.py` (which columns are which).
3. `images/`: `decode.py` (from any file to RGB), `folder.py`, `recipes.py` (augmentation), `samples.py` (which
   transform).
4. `clips/`: `video.py` (a video, which reads the frames asked of it); `files.py` and `lists.py` (which videos there
   are); `frame_folder.py` (a video as images), `decode.py` (a video file: pictures), on `stream.py` (header, seeking,
   packets) and `packets.py` (which packets a picture needs); `sampling.py` (which frames make a clip), `transforms.py`
   (crops and colours), `samples.py` (which of them).
5. `actions/`: `ava.py` (AVA's csv formats), `key_frames.py` (a clip and its boxes), `annotations.py` (all files of a
   data set).
6. `boxes/`: `annotations.py` (all boxes of a set), `voc.py` and `coco.py` (how they are read), `sources.py` (which of
   these), `samples.py`, `transforms.py` and `resizing.py` (boxes that move with their pixels).
7. `segments/`: `masks.py` (how they are read), `folder.py`, `sources.py` (which data), `transforms.py`, `sizes.py`.
8. `bundled/`: `digits.py`, `moving_digits.py`, `scenes.py`.
9. Batches: `order.py` (order and seeds), `loader.py` (batches, unreadable files), `device.py` (after transfer).
10. `inspect.py`: every sample decoded once, and what is wrong with it.
"""

from typing import TYPE_CHECKING, Any

from vitdistill.data.open import open_source
from vitdistill.data.samples import Samples, ViewOptions
from vitdistill.data.source import DataSource

if TYPE_CHECKING:
    from vitdistill.data.images.augment import Augment

__all__ = ["Augment", "DataSource", "Samples", "ViewOptions", "open_source"]


def __getattr__(name: str) -> Any:
    if name == "Augment":  # on first use: recipes load torch, without which the command line refuses missing data
        from vitdistill.data.images.augment import Augment

        return Augment
    raise AttributeError(f"module 'vitdistill.data' has no attribute {name!r}")
