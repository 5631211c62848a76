"""`vitdistill finetune`: a pre-trained network on labels."""

from typing import TYPE_CHECKING, Any, Literal

from vitdistill.data.images.augment import Augment
from vitdistill.models.presets import PRESETS
from vitdistill.runs.read import find_run
from vitdistill.training.settings import Optim
from vitdistill.verbs.arguments import Model
from vitdistill.verbs.job import Job, trains

if TYPE_CHECKING:
    from vitdistill.methods.method import Method


def inherited_sampling(values: dict[str, Any]) -> dict[str, Any]:
    """How clips are taken for a network that goes on training: as given, else as in the run that it comes from."""
    run = find_run(values["model"]) if isinstance(values["model"], str) else None
    config = {} if run is None else run.config
    sampling = values["sampling"] or config.get("sampling") or "dense"
    stride = config.get("stride") if values["stride"] is None and sampling == "dense" else values["stride"]
    return {"stride": stride, "sampling": sampling}


DROP_PATH = 0.1


@trains(
    epochs=100,
    augment=Augment(recipe="finetune"),
    optim=Optim(lr=5e-4, lr_batch=256, layer_decay=0.65, warmup_epochs=5, min_lr=1e-6),
    resolve=inherited_sampling,
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
    stride: int | None = None,
    sampling: Literal["dense", "uniform"] | None = None,
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
        sampling: of videos: dense takes a window of frames x stride, uniform one frame of each of so many equal parts;
            by default the run's that is fine-tuned, else dense.
        optim: optimizer and schedule; `layer_decay` is the factor from each block to the one before it.

    Returns:
        The content of the run's run.json.
    """
    from vitdistill.methods.supervised import Supervised
    from vitdistill.models.build import build
    from vitdistill.models.surgery.classifier import finetunable
    from vitdistill.models.surgery.drop_path import drop_path_rates
    from vitdistill.tasks.classification import Classification

    job.refuse_argument("model_args", "drop_path_rate", "--drop_path")
    if job.rebuilding is not None:
        network = job.rebuilding.student()
        return Supervised(network, task=Classification(network.num_classes, smoothing=job.smoothing))
    if not isinstance(model, str):
        job.refuse("image_size", "model_args", why="on a module object, which brings its own")
    # A preset has no published weights: fine-tuning it is training from scratch under the same recipe.
    from_scratch = isinstance(model, str) and model in PRESETS
    pretrained = isinstance(model, str) and not from_scratch
    body = build(model, args=model_args, image_size=image_size or job.data.image_size, pretrained=pretrained)
    fresh_head = new_head or not body.num_classes or from_scratch
    if not fresh_head:
        job.refuse("head_init", why="on a classifier that is kept: --new_head replaces it")
    factor = head_init if head_init is not None else 0.001 if pretrained else 1.0
    network = finetunable(
        body,
        len(job.data.classes),
        pool=pool,
        head_init=factor,
        new_head=fresh_head,
        # The default is for networks that have drop path; any other rate is asked for, and refused without.
        drop_path=0.0 if drop_path == DROP_PATH and not drop_path_rates(body) else drop_path,
    )
    return Supervised(network, task=Classification(network.num_classes, smoothing=job.smoothing))
