"""`vitdistill dino`: pre-train a ViT by its own moving average, which may see only the patches that it attends to."""

from typing import TYPE_CHECKING, Any, Literal

from vitdistill.data.images.augment import Augment
from vitdistill.data.images.views import MultiCrop, refuse_single_crops
from vitdistill.errors import UserError, refuse_given
from vitdistill.methods.options import check_numbers, check_views
from vitdistill.methods.selection.amounts import check_selection
from vitdistill.training.settings import Optim
from vitdistill.verbs.arguments import Format, Model, Positions, Published
from vitdistill.verbs.checks import check_network, refuse_argument
from vitdistill.verbs.job import Job, trains
from vitdistill.verbs.needs import ABOVE_0, GIVEN, needs

if TYPE_CHECKING:
    from vitdistill.methods.method import Method

SMALL = ("local_size", "local_scale")  # of --views, for the small crops alone
Initialisation = Literal["dino", "xavier"]


def check_crops(values: dict[str, Any]) -> dict[str, Any]:
    """Refuse crops and selections that have no meaning.

    Returns:
        Nothing to fill in.
    """
    views: MultiCrop = values["views"]
    views.check()
    check_views(views.globals, views.locals)
    check_network(values)
    if not views.locals:
        small = {f"views.{name}": getattr(views, name) != getattr(MultiCrop(), name) for name in SMALL}
        refuse_given(small, "unless --views.locals is above 0")
    check_numbers(**{name: value for name, value in values.items() if name.endswith(("temperature", "momentum"))})
    for name in ("freeze_last_epochs", "warmup_temperature_epochs"):
        if not 0 <= values[name] <= values["epochs"]:
            raise UserError(f"--{name} must lie between 0 and the epochs, {values['epochs']}", values[name])
    refuse_single_crops(values["augment"])
    check_selection(values["keep"], values["criterion"], values["order"], "teacher")
    return refuse_argument(values, "student_args", "drop_path_rate", "--drop_path")


@trains(
    labels=False,
    epochs=100,
    batch_size=64,
    augment=Augment(recipe="pretrain"),
    optim=Optim(
        lr=5e-4,
        lr_batch=256,
        weight_decay=0.04,
        weight_decay_end=0.4,
        warmup_epochs=10,
        warmup_lr=0.0,
        min_lr=1e-6,
        clip_each=3.0,
    ),
    needs=(
        needs("network", criterion=("network", "network+random")),
        needs("random_share", criterion=("network+random", "student+random", "teacher+random")),
        needs("teacher_dtype", network=GIVEN),
        needs("first_teacher_temperature", warmup_temperature_epochs=ABOVE_0),
        needs("warmup_temperature_epochs", first_teacher_temperature=GIVEN),
    ),
    resolve=check_crops,
)
def dino(
    job: Job,
    *,
    student: Published,
    views: MultiCrop = MultiCrop(),
    positions: Positions = "learned",
    initialisation: Initialisation = "dino",
    network: Model | None = None,
    formats: Format,
    freeze_last_epochs: float = 1,
    warmup_temperature_epochs: float = 0,
    **options: Any,
) -> "Method":
    """Pre-train a ViT without labels by its own moving average, which may see only the patches that it attends to
    (DINO; MaskedKD, Table 4).

    The run's network is the average (the teacher), as DINO's authors evaluate it, without a classifier: give it to
    `knn`, `probe` and `finetune`. The network that was trained is beside it, in dino_student.safetensors. Training is
    validated by its own loss, on crops without randomness.

    Args:
        data: folder of images (labels are not needed), a container such as torchvision:CIFAR10, or a bundled source:
            digits.
        batch_size: images per device and step, of each of which there are several views.
        positions: learned position embeddings, or fixed sine-cosine ones; a loaded student keeps its own.
        initialisation: of a fresh student: linear maps from a normal distribution of width 0.02 (dino), or MAE's,
            uniform by their size (xavier): in small networks the former hardly tells images apart at first.
        network: the frozen network of the criteria that name one; given as `student` is.
        teacher_dtype: number format of that network.
        freeze_last_epochs: epochs at the beginning in which the head's prototypes stay as they are.
        warmup_temperature_epochs: epochs in which the teacher's temperature goes from the first to its own.

    Returns:
        The content of the run's run.json.
    """
    from vitdistill.methods.dino import DINO
    from vitdistill.models.decoder import xavier
    from vitdistill.models.surgery.drop_path import set_drop_path
    from vitdistill.verbs.pretraining import as_built

    fill = as_built if initialisation == "dino" else xavier
    body = job.pretraining_student(student, positions=positions, initialise=fill)
    third = None if network is None else job.teacher(network, body)
    epochs = job.values["epochs"]
    method = DINO(
        body,
        globals=views.globals,
        locals=views.locals,
        local_size=views.local_shape(body.input) if views.locals else None,
        network=third,
        freeze_last=freeze_last_epochs / epochs,
        temperature_warmup=warmup_temperature_epochs / epochs,
        **options,
    )
    if isinstance(student.student, str):  # behind the copy that becomes the teacher, which drops none
        set_drop_path(body, student.drop_path)
    return method
