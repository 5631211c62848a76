"""`vitdistill mae`: pre-train a teacher by masked image modelling."""

from pathlib import Path
from typing import Any

from vitdistill.data.images.recipes import Augment
from vitdistill.errors import UserError
from vitdistill.models.record import FULL
from vitdistill.training.settings import Loader, Optim
from vitdistill.verbs.common import Model, settings_of, start
from vitdistill.verbs.pretraining import Positions, is_fresh, make_pretraining_student


def mae(
    *,
    student: Model,
    data: str,
    out: str,
    mask_ratio: float = 0.75,
    norm_pix: bool = True,
    decoder_width: int = 512,
    decoder_depth: int = 8,
    decoder_heads: int = 16,
    init: str | None = None,
    positions: Positions = "sincos",
    epochs: int = 800,
    batch_size: int = 128,
    image_size: int | None = None,
    student_args: dict[str, Any] | None = None,
    augment: Augment = Augment(recipe="pretrain"),
    optim: Optim = Optim(lr=1.5e-4, lr_batch=256, betas=(0.9, 0.95), warmup_epochs=40, warmup_lr=0.0, min_lr=0.0),
    loader: Loader = Loader(),
    precision: str = "auto",
    compile: bool = False,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    trainer: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Pre-train a ViT without labels by predicting the pixels of masked patches (MAE).

    The run's student has no classifier: give it to `tinymim` as a teacher, or to `finetune`, `probe` and `knn`. The
    run also holds mae.safetensors, encoder and decoder under the names of MAE's release.

    Args:
        student: encoder to train: timm name, name@weights-file, or run directory.
        data: folder of images or videos (labels are not needed), or a bundled source: digits, moving_digits.
        out: run directory to make.
        mask_ratio: share of the patches that the encoder does not see, between 0 and 1.
        norm_pix: predict each patch standardised by its own mean and deviation.
        decoder_width: channels of the decoder.
        decoder_depth: blocks of the decoder.
        decoder_heads: attention heads of the decoder.
        init: begin with encoder and decoder of a full MAE file (mae_pretrain_vit_base_full.pth, mae.safetensors of a
            run) or of a run of this verb; `student` is then an architecture without weights.
        positions: fixed sine-cosine position embeddings, or learned ones; a loaded student keeps its own.
        epochs: passes over the training images.
        batch_size: images per device and step.
        image_size: input size in pixels; by default the data's or the network's own.
        student_args: further arguments of the architecture, e.g. `--student_args.depth 6`.
        augment: augmentation.
        optim: optimizer and schedule.
        loader: reading data.
        precision: auto, 32-true, bf16-mixed, 16-mixed.
        compile: torch.compile the encoder's blocks.
        seed: of initialisation, masks, data order, augmentation and everything else random.
        resume: continue the run in `out`.
        overwrite: replace the run in `out`.
        trainer: further arguments of lightning.Trainer, e.g. `--trainer.devices 8`.

    Returns:
        The content of the run's run.json.
    """
    arguments = dict(locals())
    if init is not None:
        _check_init(init, student, decoder_heads)
    run, source = start("mae", arguments, labels=False)
    from vitdistill.methods.mae import MAE
    from vitdistill.models.surgery.attention_heads import head_count
    from vitdistill.training.train import train

    encoder = make_pretraining_student(
        student, source, args=student_args, image_size=image_size, pretrained=False, positions=positions
    )
    method = MAE(
        encoder,
        mask_ratio=mask_ratio,
        norm_pix=norm_pix,
        decoder_width=decoder_width,
        decoder_depth=decoder_depth,
        decoder_heads=decoder_heads,
    )
    if init is not None:
        method.load_full(full_file(init))
        heads = head_count(encoder, 0)  # the weights' own, whatever was asked for
        _check_heads(init, "student_args.num_heads", (student_args or {}).get("num_heads", heads), heads)
    return train(method, source, run, settings_of(arguments), resume=resume)


def full_file(spec: str) -> Path:
    """The file with encoder and decoder that `--init` names."""
    folder = Path(spec)
    return folder / FULL if folder.is_dir() else folder


def _check_init(init: str, student: Model, decoder_heads: int) -> None:
    """Refuse weights that `--init` would overrule, and a decoder whose weights fit though its heads are others.

    Raises:
        UserError: with what to give in their place.
    """
    if isinstance(student, str) and not is_fresh(student, pretrained=False):
        raise UserError(
            "--init replaces the weights that --student brings",
            student,
            "Name the architecture alone, or leave --init out",
        )
    run = full_file(init).parent
    if full_file(init).name == FULL and (run / "config.yaml").is_file():
        from vitdistill.evaluation.loading import run_config

        _check_heads(init, "decoder_heads", decoder_heads, run_config(run).get("decoder_heads", decoder_heads))


def _check_heads(init: str, option: str, asked: int, trained: int) -> None:
    if asked != trained:
        raise UserError(f"{init} was trained with {trained} heads", f"--{option} {asked}", f"Use --{option} {trained}")
