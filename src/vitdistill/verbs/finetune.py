"""`vitdistill finetune`: a pre-trained network on labels."""

from typing import Any, Literal

from vitdistill.data.actions.files import ActionFiles
from vitdistill.data.images.recipes import Augment
from vitdistill.errors import refuse_unused
from vitdistill.files import is_first_process
from vitdistill.tasks import TaskName, task_class
from vitdistill.training.settings import Loader, Optim
from vitdistill.verbs.common import Model, inherited_sampling, settings_of, start

FINETUNE = Augment(recipe="finetune")


def finetune(
    model: Model,
    *,
    data: str,
    out: str,
    task: TaskName = "classification",
    actions: ActionFiles = ActionFiles(),
    pool: Literal["auto", "avg", "cls"] = "auto",
    head_init: float | None = None,
    new_head: bool = False,
    dropout: float = 0.0,
    epochs: int = 100,
    batch_size: int = 128,
    image_size: int | None = None,
    stride: int | None = None,
    sampling: Literal["dense", "uniform"] | None = None,
    drop_path: float = 0.1,
    model_args: dict[str, Any] | None = None,
    augment: Augment = FINETUNE,
    optim: Optim = Optim(lr=5e-4, lr_batch=256, layer_decay=0.65, warmup_epochs=5, min_lr=1e-6),
    loader: Loader = Loader(),
    precision: str = "auto",
    compile: bool = False,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    trainer: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Fine-tune a pre-trained network on labels, with layer-wise learning rate decay.

    With `--task actions`, a video network learns what each person in a key frame does, given their boxes (AVA). At the
    end the exported network is tested once more, in float32, which writes predictions.csv and detection.json.

    Args:
        model: run directory, timm name (downloads its weights), name@weights-file, hf-hub:owner/model, or (in Python)
            a module.
        data: folder with train/ and val/ (one folder per class), lists of videos, or a bundled source: digits,
            moving_digits, moving_digits:motion. Of actions, the folder of videos: <video_id>.mp4 (.mkv, .webm, .avi,
            .mov), or a folder <video_id> of frames for each.
        out: run directory to make.
        task: what labels mean: a class for each image or video, or the actions of each box in key frames.
        actions: of the task actions, the annotations in AVA's csv formats.
        pool: avg pools the patches under a fresh norm, cls takes the class token; auto is avg for a ViT without a
            classifier, and what the classifier belongs to otherwise.
        head_init: factor on the initial weights of a fresh classifier (not of one that is kept); by default 0.001, and
            1 for a network that was not pre-trained.
        new_head: replace the classifier of a network that has one.
        dropout: of the task actions, probability of leaving out a channel in front of the classifier.
        epochs: passes over the training images.
        batch_size: images per device and step.
        image_size: input size in pixels; by default the data's or the network's own. Positions are resampled.
        stride: of videos: frames from one frame of a dense clip to the next; by default the run's that is fine-tuned,
            else 4, and 1 for bundled clips. Of actions, 4; the key frame is in the middle of its clip.
        sampling: of videos: dense takes a window of frames x stride, uniform one frame of each of so many equal parts;
            by default the run's that is fine-tuned, else dense.
        drop_path: stochastic depth rate of the last block; earlier blocks get less.
        model_args: further arguments of the architecture.
        augment: augmentation; of the task actions hflip, erasing and repeats, by default a flip.
        optim: optimizer and schedule; `layer_decay` is the factor from each block to the one before it.
        loader: reading data.
        precision: auto, 32-true, bf16-mixed, 16-mixed.
        compile: torch.compile the blocks.
        seed: of initialisation, data order, augmentation and everything else random.
        resume: continue the run in `out`.
        overwrite: replace the run in `out`.
        trainer: further arguments of lightning.Trainer, e.g. `--trainer.devices 8`.

    Returns:
        The content of the run's run.json; of actions, with the result of the final test under `detection`.
    """
    arguments = dict(locals())
    refuse_unused(**{"model_args.drop_path_rate": ("drop_path_rate" in (model_args or {}), "--drop_path sets it")})
    if not isinstance(model, str):
        goes_with = "a module object brings its own"
        refuse_unused(image_size=(image_size is not None, goes_with), model_args=(bool(model_args), goes_with))
    kind = task_class(task)
    if augment == FINETUNE and kind.augment is not None:
        arguments["augment"] = augment = kind.augment
    if task == "classification":
        arguments |= inherited_sampling(model, stride, sampling)
    refuse_unused(actions=(task != "actions" and actions != ActionFiles(), "--task actions"))
    source, goal = kind.open(data, augment=augment, files=actions)
    run, source = start("finetune", arguments, source=source)
    from vitdistill.evaluation.actions import score_actions
    from vitdistill.evaluation.loading import place_of
    from vitdistill.methods.supervised import Supervised
    from vitdistill.models.build import build
    from vitdistill.models.families.video_vit import check_video
    from vitdistill.models.presets import PRESETS
    from vitdistill.tasks.actions import Actions
    from vitdistill.training.train import train

    # A preset has no published weights: fine-tuning it is training from scratch under the same recipe. Nor has any
    # video network, all that can learn actions.
    preset = isinstance(model, str) and model in PRESETS
    downloads = isinstance(model, str) and not preset and task == "classification"
    body = build(model, args=model_args, image_size=image_size or source.image_size, pretrained=downloads)
    fresh_head = new_head or kind.always_fresh or not body.num_classes or preset
    refuse_unused(head_init=(head_init is not None and not fresh_head, "a fresh classifier: --new_head"))
    network = goal.with_head(
        body,
        pool=pool,
        head_init=(1.0 if preset else 0.001) if head_init is None else head_init,
        new_head=fresh_head,
        dropout=dropout,
        drop_path=drop_path,
    )
    method = Supervised(network, task=goal)
    info = train(method, source, run, settings_of(arguments), resume=resume)
    if isinstance(goal, Actions) and goal.data is not None and is_first_process():
        result = score_actions(
            check_video(build(str(run.path)), "exported network"),
            goal.data,
            stride=stride,
            batch_size=loader.eval_batch or batch_size,
            place=place_of("auto"),
            workers=loader.workers,
            out=run.path,
            total=len(source.train) + len(source.val),  # of which as many may be unreadable as in training
        )
        info = run.update(detection={name: value for name, value in result.items() if name != "actions"})
    return info
