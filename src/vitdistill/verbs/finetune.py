"""`vitdistill finetune`: a pre-trained network on labels."""

from typing import TYPE_CHECKING, Any, Literal

from vitdistill.data.images.augment import Augment
from vitdistill.training.settings import Optim
from vitdistill.verbs.arguments import Clips, Model
from vitdistill.verbs.job import Job, trains
from vitdistill.verbs.tuning import DROP_PATH, resolve, tuned_network

if TYPE_CHECKING:
    from vitdistill.methods.method import Method


@trains(
    Clips,
    epochs=100,
    sampling=None,
    augment=Augment(recipe="finetune"),
    optim=Optim(lr=5e-4, lr_batch=256, layer_decay=0.65, warmup_epochs=5, min_lr=1e-6),
    resolve=resolve,
)
def finetune(
    job: Job,
    model: Model,
    *,
    pool: Literal["auto", "avg", "cls"] = "auto",
    head_init: float | None = None,
    new_head: bool = False,
    image_size: int | None = None,
    model_args: dict[str, Any] | None = None,
    drop_path: float = DROP_PATH,
) -> "Method":
    """Fine-tune a pre-trained network on labels, with layer-wise learning rate decay.

    Args:
        model: run directory, timm name (downloads its weights), name@weights-file, hf-hub:owner/model, or (in Python)
            a module.
        pool: avg pools the patches under a fresh norm, cls takes the class token; auto is avg for a ViT without a
            classifier, and what the classifier belongs to otherwise.
        head_init: factor on the initial weights of a fresh classifier (not of one that is kept); by default 0.001, and
            1 for a network that was not pre-trained.
        new_head: replace the classifier of a network that has one.
        image_size: input size in pixels; by default the data's or the network's own. Positions are resampled.
        model_args: further arguments of the architecture.
        drop_path: stochastic depth rate of the last block; earlier blocks get less (CaiT: of every block of the trunk).
        stride: of videos: frames from one frame of a dense clip to the next; by default the run's that is fine-tuned,
            else 4, and 1 for bundled clips.
        sampling: of videos: dense windows, or uniform over the video; by default the run's that is fine-tuned.
        optim: optimizer and schedule; `layer_decay` is the factor from each block to the one before it.

    Returns:
        The content of the run's run.json.
    """
    from vitdistill.methods.supervised import Supervised
    from vitdistill.tasks.classification import Classification

    network = tuned_network(job)
    return Supervised(network, task=Classification(network.num_classes, smoothing=job.smoothing))
