"""Where images and videos come from, how they are augmented, and in which order they arrive.

Every random draw is a function of (seed, epoch, sample index, repeat) in the loader and of (seed, step) on the
device, so a resumed run only has to know where it is, and repeats bit for bit whatever the number of workers.

Read in this order:

1. The interfaces: `source.py` (a set of images, a source of two sets, what `--data` names), `video.py` (a video, which
   reads the frames asked of it, and a set of videos).
2. Files: `folders.py` (splits, class folders, what is held out; for images and videos alike), `image_folder.py`;
   `video_files.py` and `video_lists.py` (which videos there are), `frame_folder.py` (a video as images).
3. One video file: `video_decode.py` (pictures), on `video_stream.py` (header, seeking, packets) and
   `video_packets.py` (which packets a picture needs).
4. Bundled: `digits.py`, `moving_digits.py`.
5. From a sample to the network: `recipes.py` (images), `clips.py` (which frames of a video),
   `clip_transforms.py` (their crops and colours), `jitter.py`, `transforms.py` (which of them a source needs).
6. Boxes: `ava.py` (AVA's csv formats), `key_frames.py` (a clip and its boxes), `action_detection.py` (all files of a
   data set).
7. Batches: `sampling.py` (order and seeds), `loading.py` (batches, unreadable files), `on_device.py` (after transfer).
"""

from typing import TYPE_CHECKING, Any

from vitdistill.data.open import open_source
from vitdistill.data.source import DataSource, ImageSet

if TYPE_CHECKING:
    from vitdistill.data.images.augment import Augment

__all__ = ["Augment", "DataSource", "ImageSet", "open_source"]


def __getattr__(name: str) -> Any:
    if name == "Augment":  # on first use: recipes load torch, without which the command line refuses missing data
        from vitdistill.data.images.augment import Augment

        return Augment
    raise AttributeError(f"module 'vitdistill.data' has no attribute {name!r}")
