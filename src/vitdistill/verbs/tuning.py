"""Fine-tuning: what is taken over from the run before, and the network with its classifier."""

from typing import TYPE_CHECKING, Any

from vitdistill.models.presets import PRESETS
from vitdistill.runs.read import find_run
from vitdistill.verbs.checks import refuse_argument
from vitdistill.verbs.job import Job

DROP_PATH = 0.1

if TYPE_CHECKING:
    from vitdistill.models.network import Network


def resolve(values: dict[str, Any]) -> dict[str, Any]:
    """What a run of `finetune` fills in before it begins.

    Raises:
        UserError: when the drop path rate is given as an argument of the architecture.
    """
    refuse_argument(values, "model_args", "drop_path_rate", "--drop_path")
    return inherited_sampling(values)


def inherited_sampling(values: dict[str, Any]) -> dict[str, Any]:
    """How clips are taken for a network that goes on training: as given, else as in the run that it comes from."""
    run = find_run(values["model"]) if isinstance(values["model"], str) else None
    config = {} if run is None else run.config
    sampling = values["sampling"] or config.get("sampling") or "dense"
    stride = config.get("stride") if values["stride"] is None and sampling == "dense" else values["stride"]
    return {"stride": stride, "sampling": sampling}


def tuned_network(job: Job) -> "Network":
    """The network that `finetune` trains: its body as pre-trained, its classifier kept or fresh.

    Raises:
        UserError: when an option has no effect on this network, or its classifier does not fit the data.
    """
    from vitdistill.models.build import build
    from vitdistill.models.surgery.classifier import finetunable
    from vitdistill.models.surgery.drop_path import drop_path_rates

    if job.rebuilding is not None:
        return job.rebuilding.student()
    values, model = job.values, job.values["model"]
    if not isinstance(model, str):
        job.refuse("image_size", "model_args", why="on a module object, which brings its own")
    # A preset has no published weights: fine-tuning it is training from scratch under the same recipe.
    from_scratch = isinstance(model, str) and model in PRESETS
    pretrained = isinstance(model, str) and not from_scratch
    size = values["image_size"] or job.data.image_size
    body = build(model, args=values["model_args"], image_size=size, pretrained=pretrained)
    fresh_head = values["new_head"] or not body.num_classes or from_scratch
    if not fresh_head:
        job.refuse("head_init", why="on a classifier that is kept: --new_head replaces it")
    head_init = values["head_init"]
    return finetunable(
        body,
        len(job.data.classes),
        pool=values["pool"],
        head_init=(0.001 if pretrained or not isinstance(model, str) else 1.0) if head_init is None else head_init,
        new_head=fresh_head,
        # The default is for networks that have drop path; any other rate is asked for, and refused without.
        drop_path=0.0 if values["drop_path"] == DROP_PATH and not drop_path_rates(body) else values["drop_path"],
    )
