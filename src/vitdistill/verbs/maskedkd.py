"""`vitdistill maskedkd`: distil with a teacher that sees only what the student attends to."""

from typing import Any, Literal

from vitdistill.data.images.recipes import Augment
from vitdistill.errors import refuse_unused
from vitdistill.training.settings import Loader, Optim
from vitdistill.verbs.common import Model, make_student, make_teacher, settings_of, start


def maskedkd(
    *,
    student: Model,
    data: str,
    out: str,
    teacher: Model | None = None,
    keep: int | float | str = 0.5,
    alpha: float = 0.5,
    tau: float = 1.0,
    distillation: Literal["soft", "hard"] = "soft",
    criterion: Literal["student", "teacher", "network", "random", "network+random", "student+random"] = "student",
    order: Literal["top", "bottom"] = "top",
    saliency: Literal["cls", "patch"] = "cls",
    saliency_layer: str | int = "last",
    mask: Literal["teacher", "student"] = "teacher",
    network: Model | None = None,
    random_share: float = 0.5,
    epochs: int = 300,
    batch_size: int = 128,
    image_size: int | None = None,
    drop_path: float = 0.1,
    pretrained: bool = False,
    student_args: dict[str, Any] | None = None,
    teacher_args: dict[str, Any] | None = None,
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    teacher_text: str | None = None,
    augment: Augment = Augment(),
    optim: Optim = Optim(),
    loader: Loader = Loader(),
    precision: str = "auto",
    compile: bool = False,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    trainer: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Distil a teacher that sees only the patches to which the student attends (MaskedKD).

    Args:
        student: timm name, name@weights-file, hf-hub:owner/model, run directory, or (in Python) a module.
        data: folder with train/ and val/ (one folder per class), or a bundled source: digits.
        out: run directory to make.
        teacher: as `student`; a bare timm name downloads its pretrained weights. Not needed with `--alpha 0`.
        keep: patches that the teacher sees: a count (98), a fraction (0.5; 1.0 for all), or a schedule over
            training ('1.0->0.5' linear, '0:1.0,0.5:0.25' in steps).
        alpha: weight of the teacher against the labels, 0 to 1; 0 trains on labels alone and loads no teacher.
        tau: temperature of the soft distillation.
        distillation: soft matches class distributions; hard takes the teacher's decision as a label.
        criterion: who ranks the patches: the student, the teacher, a third network, chance, or half one of
            them and half chance.
        order: keep the highest ranked patches, or (an ablation) the lowest.
        saliency: attention of the class token, or attention received from all patches.
        saliency_layer: block whose attention ranks the patches: first, middle, last, or its number from 0.
        mask: who sees only the kept patches; masking the student is the variant that the paper argues against.
        network: the third network of the criteria that name one; given as `teacher` is.
        random_share: share of the kept patches drawn at random by the mixed criteria.
        epochs: passes over the training images.
        batch_size: images per device and step.
        image_size: the student's input size in pixels; by default the data's or the network's own.
        drop_path: stochastic depth rate of the student's last block; earlier blocks get less. A module object
            keeps its own.
        pretrained: start the student from timm's pretrained weights (downloads them).
        student_args: further arguments of the student's architecture, e.g. `--student_args.depth 6`.
        teacher_args: likewise of the teacher's, e.g. `--teacher_args.img_size 384`.
        teacher_dtype: auto computes the teacher in bfloat16 on GPUs, and as its weights are elsewhere.
        teacher_text: for a CLIP teacher, a file with one text embedding per class; its class scores are then
            100 * cosine similarity (zero-shot).
        augment: augmentation.
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
        network=(network is not None and not criterion.startswith("network"), "criteria network and network+random"),
        random_share=(random_share != 0.5 and not criterion.endswith("+random"), "criteria that end in +random"),
        teacher_text=(teacher_text is not None and (teacher is None or alpha == 0), "a teacher"),
        teacher_args=(bool(teacher_args) and (teacher is None or alpha == 0), "a teacher"),
    )
    run, source = start("maskedkd", arguments)
    from vitdistill.methods.maskedkd import MaskedKD
    from vitdistill.training.train import train

    pupil = make_student(
        student, source, args=student_args, image_size=image_size, pretrained=pretrained, drop_path=drop_path
    )
    guest = None
    if teacher is not None and alpha > 0:
        guest = make_teacher(
            teacher,
            source,
            pupil,
            args=teacher_args,
            text_embeddings=teacher_text,
            dtype=teacher_dtype,
            trainer=trainer,
        )
    third = None
    if network is not None and criterion.startswith("network"):
        third = make_teacher(network, source, pupil, dtype=teacher_dtype, trainer=trainer, check_classes=False)
    method = MaskedKD(
        pupil,
        guest,
        keep=keep,
        alpha=alpha,
        tau=tau,
        distillation=distillation,
        smoothing=augment.resolved().smoothing,
        criterion=criterion,
        order=order,
        layer=layer_number(saliency_layer, pupil.depth),
        saliency=saliency,
        mask=mask,
        network=third,
        random_share=random_share,
    )
    return train(method, source, run, settings_of(arguments), resume=resume)


def layer_number(layer: str | int, depth: int) -> int:
    """A block number from first, middle, last or a number (MaskedKD, Table 6: 1, 6 and 12 of 12, counted from 1).

    Raises:
        UserError: for any other word.
    """
    from vitdistill.errors import UserError, near

    words = {"first": 0, "middle": (depth - 1) // 2, "last": -1}
    text = str(layer)
    if text.lstrip("-").isdigit():
        return int(text)
    if text not in words:
        raise UserError("A layer is first, middle, last, or a block number from 0", repr(layer), near(text, words))
    return words[text]
