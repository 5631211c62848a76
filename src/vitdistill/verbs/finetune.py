"""`vitdistill finetune`: a pre-trained network on labels."""

from typing import Any, Literal

from vitdistill.data.images.recipes import Augment
from vitdistill.errors import refuse_unused
from vitdistill.training.settings import Loader, Optim
from vitdistill.verbs.common import Model, inherited_sampling, settings_of, start


def finetune(
    model: Model,
    *,
    data: str,
    out: str,
    pool: Literal["auto", "avg", "cls"] = "auto",
    head_init: float | None = None,
    new_head: bool = False,
    epochs: int = 100,
    batch_size: int = 128,
    image_size: int | None = None,
    stride: int | None = None,
    sampling: Literal["dense", "uniform"] | None = None,
    drop_path: float = 0.1,
    model_args: dict[str, Any] | None = None,
    augment: Augment = Augment(recipe="finetune"),
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

    Args:
        model: run directory, timm name (downloads its weights), name@weights-file, hf-hub:owner/model, or (in Python)
            a module.
        data: folder with train/ and val/ (one folder per class), lists of videos, or a bundled source: digits,
            moving_digits, moving_digits:motion.
        out: run directory to make.
        pool: avg pools the patches under a fresh norm, cls takes the class token; auto is avg for a ViT without a
            classifier, and what the classifier belongs to otherwise.
        head_init: factor on the initial weights of a fresh classifier (not of one that is kept); by default 0.001, and
            1 for a network that was not pre-trained.
        new_head: replace the classifier of a network that has one.
        epochs: passes over the training images.
        batch_size: images per device and step.
        image_size: input size in pixels; by default the data's or the network's own. Positions are resampled.
        stride: of videos: frames from one frame of a dense clip to the next; by default the run's that is fine-tuned,
            else 4, and 1 for bundled clips.
        sampling: of videos: dense takes a window of frames x stride, uniform one frame of each of so many equal parts;
            by default the run's that is fine-tuned, else dense.
        drop_path: stochastic depth rate of the last block; earlier blocks get less.
        model_args: further arguments of the architecture.
        augment: augmentation.
        optim: optimizer and schedule; `layer_decay` is the factor from each block to the one before it.
        loader: reading data.
        precision: auto, 32-true, bf16-mixed, 16-mixed.
        compile: torch.compile the blocks.
        seed: of initialisation, data order, augmentation and everything else random.
        resume: continue the run in `out`.
        overwrite: replace the run in `out`.
        trainer: further arguments of lightning.Trainer, e.g. `--trainer.devices 8`.

    Returns:
        The content of the run's run.json.
    """
    arguments = dict(locals())
    refuse_unused(**{"model_args.drop_path_rate": ("drop_path_rate" in (model_args or {}), "--drop_path sets it")})
    if not isinstance(model, str):
        goes_with = "a module object brings its own"
        refuse_unused(image_size=(image_size is not None, goes_with), model_args=(bool(model_args), goes_with))
    arguments |= inherited_sampling(model, stride, sampling)
    run, source = start("finetune", arguments)
    from vitdistill.methods.supervised import Supervised
    from vitdistill.models.build import build
    from vitdistill.models.presets import PRESETS
    from vitdistill.models.surgery.classifier import finetunable
    from vitdistill.training.train import train

    # A preset has no published weights: fine-tuning it is training from scratch under the same recipe.
    downloads = isinstance(model, str) and model not in PRESETS
    body = build(model, args=model_args, image_size=image_size or source.image_size, pretrained=downloads)
    fresh_head = new_head or not body.num_classes or (isinstance(model, str) and model in PRESETS)
    refuse_unused(head_init=(head_init is not None and not fresh_head, "a fresh classifier: --new_head"))
    network = finetunable(
        body,
        len(source.classes),
        pool=pool,
        head_init=(0.001 if downloads or not isinstance(model, str) else 1.0) if head_init is None else head_init,
        new_head=fresh_head,
        drop_path=drop_path,
    )
    method = Supervised(network, smoothing=augment.resolved().smoothing)
    return train(method, source, run, settings_of(arguments), resume=resume)
