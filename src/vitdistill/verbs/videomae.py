"""`vitdistill videomae`: pre-train a video teacher by masked modelling of pixels."""

from typing import Any, Literal

from vitdistill.data.images.recipes import Augment
from vitdistill.training.settings import Loader, Optim
from vitdistill.verbs.common import Model, settings_of, start
from vitdistill.verbs.pretraining import make_video_student


def videomae(
    *,
    student: Model,
    data: str,
    out: str,
    mask_ratio: float = 0.9,
    mask: Literal["tube", "random", "frame"] = "tube",
    masks_per_clip: int = 1,
    norm_pix: bool = True,
    decoder_width: int = 384,
    decoder_depth: int = 4,
    decoder_heads: int = 6,
    positions: Literal["sinusoid_1d", "sincos_3d"] = "sinusoid_1d",
    frames: int | None = None,
    stride: int | None = None,
    sampling: Literal["dense", "uniform"] = "dense",
    epochs: int = 800,
    batch_size: int = 32,
    image_size: int | None = None,
    drop_path: float = 0.0,
    student_args: dict[str, Any] | None = None,
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
    """Pre-train a video ViT without labels by predicting the pixels of masked tubelets (VideoMAE).

    Args:
        student: encoder to train: video_vit_{small,base,large,huge}_patch16_224, name@weights-file, or run directory.
        data: folder of videos (labels are not needed), or a bundled source: moving_digits.
        out: run directory to make.
        mask_ratio: share of the tokens that the encoder does not see.
        mask: tube hides the same patches in every time step, random any tokens, frame whole time steps.
        masks_per_clip: masks of each clip in a step, which share its decoding and embedding.
        norm_pix: predict each channel of each tubelet standardised by its own mean and deviation.
        decoder_width: channels of the decoder.
        decoder_depth: blocks of the decoder.
        decoder_heads: attention heads of the decoder.
        positions: fixed table of encoder and decoder: VideoMAE's over all tokens in one row, or one of space and time,
            with which small networks learn sooner; a loaded student keeps its own.
        frames: of a clip; by default the data's or 16.
        stride: frames of the video from one frame of a dense clip to the next; by default 4, and 1 for bundled clips.
        sampling: dense takes a window of frames x stride, uniform one frame of each of so many equal parts.
        epochs: passes over the training videos.
        batch_size: clips per device and step.
        image_size: height and width of a frame in pixels; by default the data's or the network's own.
        drop_path: stochastic depth rate of the encoder's and the decoder's last block.
        student_args: further arguments of the architecture, e.g. `--student_args.depth 6`.
        augment: augmentation; clips are cropped at several scales and never flipped or recoloured in pre-training.
        optim: optimizer and schedule.
        loader: reading data.
        precision: auto, 32-true, bf16-mixed, 16-mixed.
        compile: torch.compile the encoder's blocks.
        seed: of initialisation, masks, data order, sampling and everything else random.
        resume: continue the run in `out`.
        overwrite: replace the run in `out`.
        trainer: further arguments of lightning.Trainer, e.g. `--trainer.devices 8`.

    Returns:
        The content of the run's run.json.
    """
    arguments = dict(locals())
    run, source = start("videomae", arguments, labels=False)
    from vitdistill.methods.videomae import VideoMAE
    from vitdistill.tokens.masking import Masking
    from vitdistill.training.train import train

    encoder = make_video_student(
        student,
        source,
        args=student_args,
        frames=frames,
        image_size=image_size,
        positions=positions,
        drop_path=drop_path,
    )
    method = VideoMAE(
        encoder,
        masking=Masking(mask_ratio, mask),
        masks_per_clip=masks_per_clip,
        norm_pix=norm_pix,
        decoder_width=decoder_width,
        decoder_depth=decoder_depth,
        decoder_heads=decoder_heads,
        positions=positions,
        drop_path=drop_path,
    )
    return train(method, source, run, settings_of(arguments), resume=resume)
