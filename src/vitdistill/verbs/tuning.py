"""Fine-tuning: what is taken over from the run before, the network with its head, and the final test of actions."""

from typing import TYPE_CHECKING, Any

from vitdistill.models.presets import PRESETS
from vitdistill.runs.read import find_run
from vitdistill.verbs.checks import refuse_argument
from vitdistill.verbs.job import Job

DROP_PATH = 0.1

if TYPE_CHECKING:
    from vitdistill.models.network import Network
    from vitdistill.runs.directory import RunDirectory


def resolve(values: dict[str, Any]) -> dict[str, Any]:
    """What a run of `finetune` fills in before it begins.

    Raises:
        UserError: when the drop path rate, or a patch dropout rate, is given as an argument of the architecture.
    """
    refuse_argument(values, "model_args", "drop_path_rate", "--drop_path")
    if (values["model_args"] or {}).get("patch_drop_rate"):
        refuse_argument(values, "model_args", "patch_drop_rate", "--patch_drop")
    if values["task"] == "classification":
        return inherited_sampling(values)
    return {}


def inherited_sampling(values: dict[str, Any]) -> dict[str, Any]:
    """How clips are taken for a network that goes on training: as given, else as in the run that it comes from."""
    run = find_run(values["model"]) if isinstance(values["model"], str) else None
    config = {} if run is None else run.config
    sampling = values["sampling"] or config.get("sampling") or "dense"
    stride = config.get("stride") if values["stride"] is None and sampling == "dense" else values["stride"]
    return {"stride": stride, "sampling": sampling}


def tuned_network(job: Job) -> "Network":
    """The network that `finetune` trains: its body as pre-trained, its head kept or fresh.

    Raises:
        UserError: when an option has no effect on this network, or its head does not fit the data.
    """
    from vitdistill.models.build import build
    from vitdistill.models.surgery.drop_path import drop_path_rates
    from vitdistill.verbs.common import refuse_classes

    if job.rebuilding is not None:
        return job.rebuilding.student()
    model = job.values["model"]
    values = {**job.values, "model_args": job.with_frames(model, job.values["model_args"], "model_args")}
    if not isinstance(model, str):
        job.refuse("image_size", "model_args", why="on a module object, which brings its own")
    # A preset has no published weights: fine-tuning it is training from scratch under the same recipe. Nor has any
    # video network, all that can learn actions, or any detector; an image ViT that becomes one has.
    from_scratch = isinstance(model, str) and model in PRESETS
    pretrained = isinstance(model, str) and not from_scratch and values["task"] != "actions"
    size = values["image_size"] or job.data.image_size
    if isinstance(model, str) and "num_classes" in (values["model_args"] or {}):
        refuse_classes(values["model_args"], "model_args", len(job.data.classes))
    body = build(model, args=values["model_args"], image_size=size, pretrained=pretrained)
    fresh_head = values["new_head"] or not job.task.keeps(lambda: body) or not body.num_classes or from_scratch
    if not fresh_head:
        fresh_head = _is_for_others(body, job)
    if not fresh_head:
        job.refuse("head_init", why="on a classifier that is kept: --new_head replaces it")
    head_init = values["head_init"]
    return job.task.with_head(
        body,
        pool=values["pool"],
        head_init=(1.0 if from_scratch else 0.001) if head_init is None else head_init,
        new_head=fresh_head,
        dropout=values["dropout"],
        # The default is for networks that have drop path; any other rate is asked for, and refused without.
        drop_path=0.0 if values["drop_path"] == DROP_PATH and not drop_path_rates(body) else values["drop_path"],
    )


def _is_for_others(body: "Network", job: Job) -> bool:
    """Whether a classifier is of no use for the data's classes; one for these classes gets their order, in place."""
    from vitdistill.models.surgery.classes import match_head, starts_trained

    # Weights were loaded, unless Python gave a module, which may come from anywhere.
    if not starts_trained(body, loaded=isinstance(job.values["model"], str)):
        return False
    return match_head(body, job.data.classes, job.data.name) == "different"


def final_test(job: Job, run: "RunDirectory", info: dict[str, Any]) -> dict[str, Any]:
    """Of the task actions, test the exported network in float32; of others nothing.

    Returns:
        The content of the run's run.json.
    """
    from vitdistill.tasks.actions import Actions

    if not isinstance(job.task, Actions) or job.task.data is None:
        return info
    from vitdistill.evaluation.actions import score_actions
    from vitdistill.evaluation.loading import place_of
    from vitdistill.models.build import build
    from vitdistill.models.families.video_vit import check_video

    loader, data = job.values["loader"], job.data
    result = score_actions(
        check_video(build(str(run.path)), "exported network"),
        job.task.data,
        stride=job.values["stride"],
        batch_size=loader.eval_batch or job.values["batch_size"],
        place=place_of("auto"),
        workers=loader.workers,
        out=run.path,
        bad_share=loader.bad_share,
        total=len(data.train) + len(data.val),  # of which as many may be unreadable as in training
    )
    return run.update(detection={name: value for name, value in result.items() if name != "actions"})
