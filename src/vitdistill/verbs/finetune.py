"""`vitdistill finetune`: a pre-trained network on labels."""

from typing import TYPE_CHECKING, Literal

from vitdistill.data.actions.files import ActionFiles
from vitdistill.data.images.augment import Augment
from vitdistill.methods.options import DropPath, PatchDrop
from vitdistill.tasks import TaskName
from vitdistill.training.settings import Optim
from vitdistill.verbs.arguments import Clips, Labels, Model
from vitdistill.verbs.job import Job, trains
from vitdistill.verbs.needs import needs
from vitdistill.verbs.tuning import DROP_PATH, final_test, resolve, tuned_network

if TYPE_CHECKING:
    from vitdistill.methods.method import Method


@trains(
    Labels,
    Clips,
    epochs=100,
    sampling=None,
    augment=Augment(recipe="finetune"),
    optim=Optim(lr=5e-4, lr_batch=256, layer_decay=0.65, warmup_epochs=5, min_lr=1e-6),
    needs=(
        needs("dropout", task="actions"),
        needs("patch_drop", task="classification"),
        needs("head_init pool", task=("classification", "actions")),
    ),
    resolve=resolve,
    finish=final_test,
)
def finetune(
    job: Job,
    model: Model,
    *,
    task: TaskName = "classification",
    actions: ActionFiles = ActionFiles(),
    pool: Literal["auto", "avg", "cls"] = "auto",
    head_init: float | None = None,
    new_head: bool = False,
    dropout: float = 0.0,
    image_size: int | None = None,
    model_args: dict[str, object] | None = None,
    drop_path: DropPath = DROP_PATH,
    patch_drop: PatchDrop = 0.0,
) -> "Method":
    """Fine-tune a pre-trained network on labels, with layer-wise learning rate decay.

    With `--task actions`, a video network learns what each person in a key frame does, given their boxes (AVA). At the
    end the exported network is tested once more, in float32, which writes predictions.csv and detection.json.

    Args:
        model: run directory, timm name (downloads its weights), name@weights-file, hf-hub:owner/model, or (in Python)
            a module.
        data: folder with train/ and val/ (one folder per class), lists of videos, a container such as
            torchvision:CIFAR10, or a bundled source: digits, moving_digits, moving_digits:motion. Of actions, the
            folder of videos: <video_id>.mp4 (or with another suffix of videos), or a folder <video_id> of frames for
            each. Of boxes, a VOC devkit, COCO's folders, or scenes; of segmentation, a folder with images/ and
            annotations/ (or masks/), or scenes.
        task: what labels mean: a class for each image or video, the actions of each box in key frames, boxes around the
            objects in each image, or a class for each pixel (segmentation). The defaults of epochs, batch_size,
            augment, optim and drop_path are those of the task and its data: --help beside --task and --data shows them.
        actions: of the task actions, the annotations in AVA's csv formats.
        pool: avg pools the patches under a fresh norm, cls takes the class token; auto is avg for a ViT without a
            classifier, and what the classifier belongs to otherwise.
        head_init: factor on the initial weights of a fresh classifier (not of one that is kept); by default 0.001, and
            1 for a network that was not pre-trained.
        new_head: replace the classifier of a network that has one.
        dropout: of the task actions, probability of leaving out a channel in front of the classifier.
        image_size: input size in pixels; by default the data's or the network's own. Positions are resampled.
        model_args: further arguments of the architecture.
        drop_path: stochastic depth rate of the last block; earlier blocks get less (CaiT: of every block of the trunk).
        patch_drop: share of the patches that training leaves out of each image or clip, at random: 0.5 for a teacher
            that MaskedKD will mask. Validation and the exported network see every patch.
        stride: of videos: frames from one frame of a dense clip to the next; by default the run's that is fine-tuned,
            else 4, and 1 for bundled clips. Of actions, 4; the key frame is in the middle of its clip.
        sampling: of videos: dense windows, or uniform over the video; by default the run's that is fine-tuned.
        augment: augmentation; of the task actions hflip, erasing and repeats, by default a flip; of
            segmentation hflip, color_jitter and repeats, by default a flip and other colours.
        optim: optimizer and schedule; `layer_decay` is the factor from each block to the one before it.

    Returns:
        The content of the run's run.json; of actions, with the result of the final test under `detection`.
    """
    from vitdistill.methods.supervised import Supervised

    network = tuned_network(job)
    return Supervised(network, task=job.task_of(network), patch_drop=patch_drop)
