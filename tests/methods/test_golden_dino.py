"""DINO against the authors' values: head, loss, centre, crops of two sizes, and a whole iteration with its average."""

import pytest
import timm
import torch
from torch import Tensor, nn

from golden_values import Golden
from vitdistill.losses.dino import dino_loss, dino_targets, moved_centre
from vitdistill.methods.dino import DINO
from vitdistill.methods.options import DinoHead
from vitdistill.models.families import as_network
from vitdistill.models.families.vit_at_size import ViTAtSize, resample_by_factor
from vitdistill.models.projection import ProjectionHead
from vitdistill.training.optim import plan_groups
from vitdistill.training.settings import Optim


@pytest.fixture
def case() -> Golden:
    return Golden("dino_a")


def backbone(case: Golden, role: str) -> nn.Module:
    hyper = case.hyper
    sizes = {"img_size": hyper["global_size"], "patch_size": hyper["patch_size"], "depth": hyper["depth"]}
    sizes |= {"embed_dim": hyper["embed_dim"], "num_heads": hyper["num_heads"], "num_classes": 0}
    net = timm.create_model("vit_tiny_patch16_224", **sizes)
    net.load_state_dict(part(case, role, "backbone."))
    return net


def part(case: Golden, role: str, prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in case.part(role).items() if n.startswith(prefix)}


def projection(case: Golden, role: str) -> ProjectionHead:
    sizes = case.hyper["head"]
    head = ProjectionHead(
        case.hyper["embed_dim"], sizes["out_dim"], hidden=sizes["hidden_dim"], bottleneck=sizes["bottleneck_dim"]
    )
    head.load_state_dict(part(case, role, "head."))
    return head


def test_head(case: Golden) -> None:
    case.check("head_output", projection(case, "student")(case.inputs["head_features"]))


def test_loss_and_centre_on_random_outputs(case: Golden) -> None:
    inputs, hyper = case.inputs, case.hyper
    student = inputs["student_output"].requires_grad_()
    targets = dino_targets(inputs["teacher_output"] - inputs["center"], hyper["teacher_temp_used"])
    loss = dino_loss(student, targets, hyper["n_global"] + hyper["n_local"], hyper["student_temp"])
    case.check("loss_random_outputs", loss)
    loss.backward()
    case.check("grad_student_output", student.grad)
    mean = inputs["teacher_output"].mean(dim=0)
    case.check("center_after_random_outputs", moved_centre(inputs["center"], mean, hyper["center_momentum"]))


def test_crops_of_two_sizes(case: Golden) -> None:
    inputs, hyper = case.inputs, case.hyper
    student, teacher = as_network(backbone(case, "student")), as_network(backbone(case, "teacher"))
    size, grid = (hyper["local_size"],) * 2, hyper["global_size"] // hyper["patch_size"]
    small = ViTAtSize(student, size)
    table = resample_by_factor(student.net.pos_embed, (grid, grid), (small.grid.h, small.grid.w), 1)
    case.check("local_pos_embed", table)
    local = small(inputs["local_crops"].flatten(0, 1)).final.special[:, 0]
    case.check("student_backbone_local0", local[: hyper["batch"]])
    large = student(inputs["global_crops"].flatten(0, 1)).final.special[:, 0]
    case.check("student_head_outputs", projection(case, "student")(torch.cat((large, local))))
    seen = teacher(inputs["global_crops"].flatten(0, 1)).final.special[:, 0]
    case.check("teacher_head_outputs", projection(case, "teacher")(seen))


def test_an_iteration(case: Golden) -> None:
    """The method's own step with the authors' optimizer, frozen prototypes, and the average that follows it."""
    hyper = case.hyper
    sizes = hyper["head"]
    method = DINO(
        backbone(case, "student"),
        globals=hyper["n_global"],
        locals=hyper["n_local"],
        local_size=(hyper["local_size"],) * 2,
        head=DinoHead(sizes["out_dim"], sizes["hidden_dim"], sizes["bottleneck_dim"]),
        momentum=hyper["ema_momentum"],
        freeze_last=0.5,
    )
    method.head.load_state_dict(part(case, "student", "head."))
    method.average.backbone.net.load_state_dict(part(case, "teacher", "backbone."))
    method.average.head.load_state_dict(part(case, "teacher", "head."))
    method.average.centre.copy_(case.inputs["center"])

    optim = hyper["optimizer"]
    options = Optim(name="sgd", lr=optim["lr"], lr_batch=0, weight_decay=optim["weight_decay_first_group"])
    groups = plan_groups(method, options)
    decayed = {name for group in groups if group.options["weight_decay"] for name in group.names}
    assert {"student.net.pos_embed", "student.net.cls_token", "head.last_layer.weight_v"} <= decayed
    assert not any(name.endswith("bias") for name in decayed)
    parameters = dict(method.named_parameters())
    optimizer = torch.optim.SGD(
        [{"params": [parameters[name] for name in group.names], **group.options} for group in groups], lr=optim["lr"]
    )
    views = (*case.inputs["global_crops"], *case.inputs["local_crops"])
    step = method.train()(views)
    step.loss.backward()
    method.after_backward(0.0)
    optimizer.step()
    method.after_step(0.0)

    case.check("step_loss", step.loss)
    case.check("step_center", method.average.centre)
    for role, net, head in (
        ("student", method.student.net, method.head),
        ("teacher", method.average.backbone.net, method.average.head),
    ):
        case.check(f"step_{role}_blocks0_qkv_weight", net.blocks[0].attn.qkv.weight)
        case.check(f"step_{role}_pos_embed", net.pos_embed)
        case.check(f"step_{role}_head_mlp0_bias", head.mlp[0].bias)
        case.check(f"step_{role}_last_layer_weight_v", head.last_layer.weight_v)
    assert not any(p.requires_grad or p.grad is not None for p in method.average.parameters())


def test_every_value_is_looked_at(case: Golden) -> None:
    for check in (test_head, test_loss_and_centre_on_random_outputs, test_crops_of_two_sizes, test_an_iteration):
        check(case)
    assert case.checked == set(case.expected)
