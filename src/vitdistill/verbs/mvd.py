"""`vitdistill mvd`: distil image and video teachers into a video student by masked feature modelling."""

from typing import Any, Literal

from vitdistill.data.images.recipes import Augment
from vitdistill.errors import UserError, refuse_unused
from vitdistill.methods.mvd import FeatureDecoder
from vitdistill.models.backbone import Backbone
from vitdistill.training.settings import Loader, Optim
from vitdistill.verbs.common import Model, make_teacher, settings_of, start
from vitdistill.verbs.pretraining import make_pretraining_student, make_video_student


def mvd(
    *,
    student: Model,
    data: str,
    out: str,
    image_teacher: Model | None = None,
    video_teacher: Model | None = None,
    image_weight: float = 1.0,
    video_weight: float = 1.0,
    normalise: bool = False,
    loss: Literal["smooth_l1", "l1", "l2"] = "smooth_l1",
    pixel_weight: float = 0.0,
    bootstrap: float | None = None,
    per_token: bool = False,
    mask_ratio: float = 0.9,
    mask: Literal["tube", "random", "frame"] = "tube",
    masks_per_clip: int = 1,
    decoder: FeatureDecoder = FeatureDecoder(),
    frames: int | None = None,
    stride: int | None = None,
    sampling: Literal["dense", "uniform"] = "dense",
    epochs: int = 400,
    batch_size: int = 32,
    image_size: int | None = None,
    drop_path: float = 0.1,
    student_args: dict[str, Any] | None = None,
    image_teacher_args: dict[str, Any] | None = None,
    video_teacher_args: dict[str, Any] | None = None,
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    augment: Augment = Augment(recipe="pretrain"),
    optim: Optim = Optim(lr=1.5e-4, lr_batch=256, betas=(0.9, 0.95), warmup_epochs=40, warmup_lr=0.0, min_lr=1e-5),
    loader: Loader = Loader(),
    precision: str = "auto",
    compile: bool = False,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    trainer: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Distil an image teacher, a video teacher, or both into a video student that sees a tenth of a clip (MVD).

    With images, an image teacher and an image student this is image masked feature modelling (Table 11).

    Args:
        student: video_vit_{small,base,large,huge}_patch16_224, name@weights-file, or run directory.
        data: folder of videos (labels are not needed) or images, or a bundled source: moving_digits, digits.
        out: run directory to make.
        image_teacher: pre-trained image ViT (vit_base_patch16_224.mae, a run of `mae`), which sees the first frame of
            each tubelet.
        video_teacher: pre-trained video ViT (a VideoMAE file, a run of `videomae`), which sees the whole clip.
        image_weight: weight of the image teacher's loss.
        video_weight: weight of the video teacher's loss.
        normalise: LayerNorm on the targets (off in every released recipe).
        loss: smooth_l1, l1 or l2.
        pixel_weight: weight of an extra branch that predicts pixels (the paper finds that it hurts); 0 leaves it out.
        bootstrap: decay of a teacher that is the student's own moving average, in place of frozen ones (the paper
            finds that worse).
        per_token: match the teachers' features at every token of the whole clip through an MLP, without masking (the
            paper finds that worse).
        mask_ratio: share of the tokens that the student does not see.
        mask: tube hides the same patches in every time step, random any tokens, frame whole time steps.
        masks_per_clip: masks of each clip in a step, which share its decoding, embedding and the teachers' passes.
        decoder: the decoder of each target.
        frames: of a clip; by default the data's or 16.
        stride: frames of the video from one frame of a dense clip to the next; by default 4, and 1 for bundled clips.
        sampling: dense takes a window of frames x stride, uniform one frame of each of so many equal parts.
        epochs: passes over the training videos.
        batch_size: clips per device and step.
        image_size: height and width of a frame in pixels; by default the data's or the network's own.
        drop_path: stochastic depth rate of the student's last block; earlier blocks get less.
        student_args: further arguments of the student's architecture, e.g. `--student_args.depth 6`.
        image_teacher_args: likewise of the image teacher's, e.g. `--image_teacher_args.img_size 224`.
        video_teacher_args: likewise of the video teacher's.
        teacher_dtype: auto computes the teachers in bfloat16 on GPUs and CPUs with such instructions, and as their
            weights are elsewhere.
        augment: augmentation; clips are cropped at several scales and never flipped or recoloured in pre-training.
        optim: optimizer and schedule.
        loader: reading data.
        precision: auto, 32-true, bf16-mixed, 16-mixed.
        compile: torch.compile the blocks of student and teachers.
        seed: of initialisation, masks, data order, sampling and everything else random.
        resume: continue the run in `out`.
        overwrite: replace the run in `out`.
        trainer: further arguments of lightning.Trainer, e.g. `--trainer.devices 8`.

    Returns:
        The content of the run's run.json.
    """
    arguments = dict(locals())
    masks, image, video = "masking, so not with --per_token", "--image_teacher", "--video_teacher"
    refuse_unused(
        mask_ratio=(per_token and mask_ratio != 0.9, masks),
        mask=(per_token and mask != "tube", masks),
        masks_per_clip=(per_token and masks_per_clip != 1, masks),
        decoder=(per_token and decoder != FeatureDecoder(), masks),
        image_teacher_args=(image_teacher is None and bool(image_teacher_args), image),
        image_weight=(image_teacher is None and image_weight != 1, image),
        video_teacher_args=(video_teacher is None and bool(video_teacher_args), video),
        video_weight=(video_teacher is None and bootstrap is None and video_weight != 1, f"{video} or --bootstrap"),
    )
    run, source = start("mvd", arguments, labels=False)
    from vitdistill.methods.method import Method
    from vitdistill.methods.mvd import MVD
    from vitdistill.methods.per_token import PerToken
    from vitdistill.methods.targets.features import feature_targets
    from vitdistill.tokens.masking import Masking
    from vitdistill.training.train import train

    pupil: Backbone
    if video_teacher is None and image_teacher is not None and not source.train.has_frames:
        refuse_unused(frames=(frames is not None, "videos"))
        options = {"drop_path_rate": drop_path, **(student_args or {})}
        pupil = make_pretraining_student(
            student, source, args=options, image_size=image_size, pretrained=False, positions="sincos"
        )
    else:
        pupil = make_video_student(
            student,
            source,
            args=student_args,
            frames=frames,
            image_size=image_size,
            positions="sincos_3d",
            drop_path=drop_path,
        )
    guests = {
        name: make_teacher(spec, source, pupil, args=args, dtype=teacher_dtype, trainer=trainer, check_classes=False)
        for name, spec, args in (
            ("image", image_teacher, image_teacher_args),
            ("video", video_teacher, video_teacher_args),
        )
        if spec is not None
    }
    method: Method
    if per_token:
        if pixel_weight or bootstrap is not None:
            raise UserError("Per-token distillation masks nothing, so it has no pixel branch and no own average")
        targets = feature_targets(
            pupil,
            image_teacher=guests.get("image"),
            video_teacher=guests.get("video"),
            image_weight=image_weight,
            video_weight=video_weight,
            normalise=normalise,
            loss=loss,
        )
        method = PerToken(pupil, targets)
    else:
        method = MVD(
            pupil,
            image_teacher=guests.get("image"),
            video_teacher=guests.get("video"),
            image_weight=image_weight,
            video_weight=video_weight,
            normalise=normalise,
            loss=loss,
            pixel_weight=pixel_weight,
            bootstrap=bootstrap,
            masking=Masking(mask_ratio, mask),
            masks_per_clip=masks_per_clip,
            decoder=decoder,
        )
    return train(method, source, run, settings_of(arguments), resume=resume)
