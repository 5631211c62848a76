"""`vitdistill tinymim`: distil a masked-image-modelling teacher through token relations."""

from typing import Any, Literal

from vitdistill.data.images.recipes import Augment
from vitdistill.errors import refuse_unused
from vitdistill.methods.tinymim import PixelDecoder
from vitdistill.training.settings import Loader, Optim
from vitdistill.verbs.common import Model, make_teacher, settings_of, start
from vitdistill.verbs.pretraining import Positions, make_pretraining_student


def tinymim(
    *,
    student: Model,
    teacher: Model,
    data: str,
    out: str,
    target: Literal["relations", "features", "cls"] = "relations",
    relations: str = "qk+vv",
    softmax: bool = True,
    feature: Literal["output", "attention", "ffn", "qkv", "q", "k", "v"] = "output",
    residual: bool = False,
    teacher_block: int | None = None,
    align_heads: Literal["last", "all", "none"] = "last",
    mask_ratio: float = 0.0,
    pixels: bool = False,
    pixel_decoder: PixelDecoder = PixelDecoder(),
    color_jitter: float = 0.4,
    drop_path: float = 0.1,
    teacher_drop_path: float = 0.0,
    positions: Positions = "sincos",
    epochs: int = 300,
    batch_size: int = 128,
    image_size: int | None = None,
    pretrained: bool = False,
    student_args: dict[str, Any] | None = None,
    teacher_args: dict[str, Any] | None = None,
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    augment: Augment = Augment(recipe="pretrain"),
    optim: Optim = Optim(lr=1.5e-4, lr_batch=256, betas=(0.9, 0.95), warmup_epochs=15, warmup_lr=0.0, min_lr=0.0),
    loader: Loader = Loader(),
    precision: str = "auto",
    compile: bool = False,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    trainer: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Distil a masked-image-modelling teacher into a smaller ViT, without labels, through token relations (TinyMIM).

    The run's student has no classifier: fine-tune it, probe it, or make it the teacher of the next smaller student.

    Args:
        student: timm name, name@weights-file, run directory, or (in Python) a module.
        teacher: pre-trained ViT, given as `student` is; a bare timm name (vit_base_patch16_224.mae) downloads its
            weights, and a run directory of `mae` or `tinymim` is the way to distil in sequence.
        data: folder of images (labels are not needed), or a bundled source: digits.
        out: run directory to make.
        target: what to imitate of the teacher's block: relations between tokens, features of tokens, or the feature
            of the class token.
        relations: some of qk, vv, qq, kk, joined by +.
        softmax: compare relations as distributions by KL; false compares the scores before the softmax by smooth-L1.
        feature: output of the block, what attention or ffn add to it, qkv (all three), q, k or v.
        residual: for attention and ffn, the tokens after the branch was added to them.
        teacher_block: the teacher's block, counted from 1; by default 18 of 24, and the last of smaller teachers.
        align_heads: give the student's last block as many heads as the teacher's block has, or all its blocks.
        mask_ratio: share of the patches hidden from teacher and student alike; 0 shows the whole image.
        pixels: predict the pixels of hidden patches as well (needs a mask ratio).
        pixel_decoder: the decoder for that.
        color_jitter: strength of the colour jitter of the student's view, 0 to 1; the teacher sees the crop as it is.
        drop_path: stochastic depth rate of all the student's blocks but the last.
        teacher_drop_path: likewise of the teacher's blocks (the paper finds that it hurts).
        positions: fixed sine-cosine position embeddings, or learned ones; a loaded student keeps its own.
        epochs: passes over the training images.
        batch_size: images per device and step.
        image_size: the student's input size in pixels; by default the data's or the network's own.
        pretrained: start the student from timm's pretrained weights (downloads them).
        student_args: further arguments of the student's architecture, e.g. `--student_args.depth 6`.
        teacher_args: likewise of the teacher's.
        teacher_dtype: auto computes the teacher in bfloat16 on GPUs and CPUs with such instructions, and as its
            weights are elsewhere.
        augment: augmentation of the crop that both networks see.
        optim: optimizer and schedule.
        loader: reading data.
        precision: auto, 32-true, bf16-mixed, 16-mixed.
        compile: torch.compile the blocks of student and teacher.
        seed: of initialisation, data order, augmentation and everything else random.
        resume: continue the run in `out`.
        overwrite: replace the run in `out`.
        trainer: further arguments of lightning.Trainer, e.g. `--trainer.devices 8 --trainer.strategy fsdp`.

    Returns:
        The content of the run's run.json.
    """
    arguments = dict(locals())
    refuse_unused(
        **{"student_args.drop_path_rate": ("drop_path_rate" in (student_args or {}), "--drop_path sets it")},
        relations=(relations != "qk+vv" and target != "relations", "--target relations"),
        softmax=(not softmax and target != "relations", "--target relations"),
        align_heads=(align_heads != "last" and target != "relations", "--target relations"),
        feature=(feature != "output" and target != "features", "--target features"),
        residual=(residual and target != "features", "--target features"),
        pixel_decoder=(pixel_decoder != PixelDecoder() and not pixels, "--pixels"),
    )
    run, source = start("tinymim", arguments, labels=False)
    from vitdistill.methods.tinymim import TinyMIM
    from vitdistill.models.surgery.drop_path import constant_but_last, set_drop_path
    from vitdistill.training.train import train

    pupil = make_pretraining_student(
        student, source, args=student_args, image_size=image_size, pretrained=pretrained, positions=positions
    )
    guest = make_teacher(
        teacher, source, pupil, args=teacher_args, dtype=teacher_dtype, trainer=trainer, check_classes=False
    )
    set_drop_path(pupil, constant_but_last(drop_path, pupil.depth))
    method = TinyMIM(
        pupil,
        guest,
        target=target,
        relations=relation_list(relations),
        softmax=softmax,
        feature=feature,
        residual=residual,
        teacher_block=teacher_block,
        align_heads=align_heads,
        mask_ratio=mask_ratio,
        pixels=pixel_decoder if pixels else None,
        color_jitter=color_jitter,
        teacher_drop_path=teacher_drop_path,
    )
    return train(method, source, run, settings_of(arguments), resume=resume)


def relation_list(text: str) -> list[str]:
    """The relations in "qk+vv"."""
    return [name.strip().lower() for name in text.replace(",", "+").split("+") if name.strip()]
