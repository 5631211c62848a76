"""`vitdistill detect`: a pre-trained video network on who does what, where and when (AVA)."""

from inspect import signature
from pathlib import Path
from typing import Any

from vitdistill.data.images.augment import Augment
from vitdistill.data.order import seed_everything_at
from vitdistill.errors import UserError
from vitdistill.files import is_first_process
from vitdistill.runs.directory import RunDirectory, plain
from vitdistill.training.settings import Loader, Optim


def detect(
    model: str,
    *,
    videos: str,
    train: str,
    val: str,
    out: str,
    labels: str | None = None,
    evaluated: str | None = None,
    detections: str | None = None,
    excluded: str | None = None,
    threshold: float = 0.8,
    start: float = 0.0,
    frame_rate: float = 30.0,
    stride: int = 4,
    head_init: float = 0.001,
    dropout: float = 0.0,
    epochs: int = 30,
    batch_size: int = 16,
    image_size: int | None = None,
    drop_path: float = 0.2,
    model_args: dict[str, Any] | None = None,
    augment: Augment = Augment(recipe="none", hflip=0.5),
    optim: Optim = Optim(lr=5e-4, lr_batch=256, layer_decay=0.75, warmup_epochs=5, min_lr=1e-6),
    loader: Loader = Loader(),
    precision: str = "auto",
    compile: bool = False,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    trainer: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Fine-tune a video network to tell what each person does, given their boxes, in AVA's csv formats.

    Trains on the annotated boxes and validates by frame mAP at IoU 0.5. The run's best.ckpt is that of the highest mAP.
    At the end the exported network is tested once more, in float32, which writes predictions.csv and detection.json.

    Args:
        model: run directory (of mvd, videomae, finetune, ...), name of a video architecture, or name@weights-file.
        videos: folder with <video_id>.mp4 (.mkv, .webm, .avi, .mov) or a folder <video_id> of frames for each video.
        train: annotations to train on, in AVA's csv format.
        val: annotations to validate on.
        out: run directory to make.
        labels: label map of all actions (pbtxt or csv); by default they are numbered from 1 to the highest annotated.
        evaluated: label map of the actions that count in the score; by default all.
        detections: boxes of a person detector to validate on, in AVA's csv format; by default the annotated boxes.
        excluded: csv file of key frames that do not count.
        threshold: lowest score of a detection.
        start: second of the movie at which the files begin (900 for AVA's files of a quarter of an hour).
        frame_rate: frames per second of folders of frames; video files say theirs.
        stride: frames from one frame of a clip to the next; the key frame is in the middle.
        head_init: factor on the initial weights of the classifier.
        dropout: probability of leaving out a channel in front of the classifier.
        epochs: passes over the training key frames.
        batch_size: key frames per device and step.
        image_size: height and width in pixels to which whole frames are resized; by default the network's own.
        drop_path: stochastic depth rate of the last block; earlier blocks get less.
        model_args: further arguments of the architecture.
        augment: augmentation; hflip, erasing and repeats.
        optim: optimizer and schedule; `layer_decay` is the factor from each block to the one before it.
        loader: reading data.
        precision: auto, 32-true, bf16-mixed, 16-mixed.
        compile: torch.compile the blocks.
        seed: of initialisation, data order, augmentation and everything else random.
        resume: continue the run in `out`.
        overwrite: replace the run in `out`.
        trainer: further arguments of lightning.Trainer, e.g. `--trainer.devices 8`.

    Returns:
        The content of the run's run.json, the result of the final test under `detection`.
    """
    arguments = dict(locals())
    _check_augment(augment)
    from vitdistill.data.actions.annotations import Annotations, open_annotations
    from vitdistill.data.actions.key_frames import Movies

    files = Annotations(
        train=train,
        val=val,
        labels=labels,
        evaluated=evaluated,
        detections=detections,
        excluded=excluded,
        threshold=threshold,
    )
    data = open_annotations(files, Movies(Path(videos), start, frame_rate))
    config = {key: plain(value) for key, value in arguments.items() if key not in ("resume", "overwrite")}
    arguments["optim_default"] = signature(detect).parameters["optim"].default
    run = RunDirectory.prepare(out, "detect", config, resume=resume, overwrite=overwrite)
    seed_everything_at(seed, "initialisation")
    from vitdistill.evaluation.loading import place_of
    from vitdistill.methods.detection import Detection
    from vitdistill.models.build import build
    from vitdistill.models.families.video_vit import check_video
    from vitdistill.models.surgery.action_head import detector
    from vitdistill.training.train import train as train_run
    from vitdistill.verbs.common import settings_of
    from vitdistill.verbs.frame_map import score

    body = build(model, args=model_args, image_size=image_size)
    network = detector(body, len(data.labels), head_init=head_init, dropout=dropout, drop_path=drop_path)
    source = data.source(Path(val).stem)
    info = train_run(Detection(network, data), source, run, settings_of(arguments, network, source), resume=resume)
    if is_first_process():
        exported = check_video(build(str(run.path)), "exported network")
        batch = loader.eval_batch or batch_size
        total = len(source.train) + len(source.val)  # of which as many may be unreadable as in training
        result = score(exported, data, stride, batch, place_of("auto"), loader.workers, run.path, total)
        info = run.update(detection={name: value for name, value in result.items() if name != "actions"})
    return info


def _check_augment(augment: Augment) -> None:
    """Refuse what would move pixels without their boxes, or mix the actions of two clips."""
    options = augment.resolved()
    unknown = {
        "scale": options.scale != 1,
        "auto_augment": options.auto_augment != "none",
        "color_jitter": options.color_jitter > 0,
        "mixup or cutmix": options.mixes or augment.mixup_prob is not None,
        "smoothing": options.smoothing > 0,
        "crop_pct": augment.crop_pct is not None,
        "interpolation": augment.interpolation is not None,
    }
    if refused := [name for name, is_given in unknown.items() if is_given]:
        raise UserError(
            "Detection knows the augmentations hflip, erasing and repeats only",
            ", ".join(refused),
            "Choose --augment.recipe none and what you want of these",
        )
