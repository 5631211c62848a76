"""What every backbone adapter promises. A new family is one line in `FAMILIES` of tests/tiny.py."""

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tiny import DETECTORS, FAMILIES, tiny
from vitdistill.errors import UserError
from vitdistill.methods.supervised import Supervised
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.build import build
from vitdistill.tokens.gather import take
from vitdistill.types import QKV, Capture, Point, TokenGrid

MASKABLE = [name for name in FAMILIES if name != "swin"]
EVERY = [*FAMILIES, *DETECTORS]
APART = [name for name in MASKABLE if name != "convvit"]  # whose patches know nothing of each other before the blocks
HIDDEN = MASKABLE  # Swin hands out no block outputs
# CaiT's trunk has no class token, and its class-attention blocks have no other queries.
SALIENCIES = [
    *(
        (name, kind, block)
        for name in FAMILIES
        for kind in ("cls", "patch")
        for block in (0, -1)
        if name != "cait" and (name, kind, block) != ("perception", "cls", -1)  # see tests/models/families/test_eva.py
    ),
    ("cait", "cls", -1),
    ("cait", "cls", 3),
    *(("yolos", kind, block) for kind in ("cls", "patch", "det") for block in (0, -1)),
]


# Swin hands out queries, keys and values only, CaiT no branches.
ALL: tuple[Point, ...] = ("qkv", "attention", "attention_residual", "ffn", "output")
POINTS: dict[str, tuple[Point, ...]] = {"swin": ("qkv",), "cait": ("qkv", "output")}


@pytest.fixture
def backbone(net: nn.Module) -> Backbone:
    return with_tokens(build(net))


def points(*pairs: tuple[int, Point], head: bool = True) -> Capture:
    """A capture of (block, point) pairs."""
    return Capture(frozenset(pairs), head)


def test_blocks_by_word_and_number(backbone: Backbone) -> None:
    words = [backbone.block_index(word) for word in ("first", "middle", "last")]
    assert words == [0, (backbone.depth - 1) // 2, backbone.depth - 1]
    assert backbone.block_index("1") == 1 and backbone.block_index("-1") == backbone.block_index(-1) == words[2]
    with pytest.raises(UserError, match="first, middle, last, or a block number from 0; got 'lst'. .*'last'"):
        backbone.block_index("lst")
    with pytest.raises(UserError, match=f"has blocks 0 to {words[2]}; got {backbone.depth}"):
        backbone.block_index(backbone.depth)


def test_words_for_blocks_are_those_of_the_paper() -> None:
    """MaskedKD, Table 6 counts from 1: first 1, middle 6, last 12 of 12."""
    twelve = build("deit_tiny_patch16_224", meta=True)
    assert [twelve.block_index(word) for word in ("first", "middle", "last")] == [0, 5, 11]


def hooks(net: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules())


def attention_of(net: nn.Module, attention: nn.Module, images: Tensor) -> Tensor:
    """The softmax attention that timm's unfused code computes in one block, (b, h, queries, m)."""
    found: list[Tensor] = []
    handle = attention.attn_drop.register_forward_hook(lambda _m, inputs, _o: found.append(inputs[0]))
    attention.fused_attn = False
    with torch.no_grad():
        net(images)
    attention.fused_attn = True
    handle.remove()
    return found[0]


def expected_logits(net: nn.Module, images: Tensor, keep: Tensor) -> Tensor:
    """Leaving out patches, written out sample by sample on timm's modules."""
    if hasattr(net, "rope"):
        return hidden_logits(net, images, keep)
    if hasattr(net, "rel_pos_bias"):
        return torch.cat([biased_logits(net, *one) for one in zip(images, keep, strict=True)])
    if hasattr(net, "patch_embed4"):
        visible = take(net.embed(images), keep)
        for block in net.blocks3:
            visible = block(visible)
        return net.forward_head(visible)
    patches = net.patch_embed(images)
    positions = net.pos_embed
    cait = hasattr(net, "blocks_token_only")
    tokens = [] if cait else [net.cls_token, getattr(net, "dist_token", None), getattr(net, "reg_token", None)]
    prefix = torch.cat([token for token in tokens if token is not None] or [patches[:1, :0]], dim=1)
    if not cait:  # DeiT3's special tokens have no positions, nor has a distillation token of G2SD
        count = positions.shape[1] - patches.shape[1]
        prefix = torch.cat((prefix[:, :count] + positions[:, :count], prefix[:, count:]), dim=1)
        positions = positions[:, count:]
    patches = patches + positions
    visible = torch.stack([torch.stack([sample[i] for i in row]) for sample, row in zip(patches, keep, strict=True)])
    if cait:
        for block in net.blocks:
            visible = block(visible)
        cls = net.cls_token.expand(len(images), -1, -1)
        for block in net.blocks_token_only:
            cls = block(visible, cls)
        return net.head(net.norm(torch.cat((cls, visible), dim=1))[:, 0])
    visible = net.norm_pre(torch.cat((prefix.expand(len(images), -1, -1), visible), dim=1))
    for block in net.blocks:
        visible = block(visible)
    return net.forward_head(net.norm(visible))


def hidden_logits(net: nn.Module, images: Tensor, keep: Tensor) -> Tensor:
    """For rotary networks: the whole sequence, in which an attention mask hides the patches that are left out."""
    specials, kept = net.num_prefix_tokens, keep.sort(dim=1).values
    seen = torch.cat((torch.arange(specials).expand(len(keep), -1), kept + specials), dim=1)
    mask = torch.zeros(len(keep), specials + 16, dtype=torch.bool).scatter(1, seen, True)
    tokens = net.forward_features(images, attn_mask=mask[:, None, None].expand(-1, -1, specials + 16, -1))
    return net.forward_head(tokens[mask].unflatten(0, (len(keep), -1)))


def biased_logits(net: nn.Module, image: Tensor, keep: Tensor) -> Tensor:
    """For BEiT: a whole image, in which every block's own biases hide the patches that are left out."""
    hidden = torch.ones(17, dtype=torch.bool).index_fill(0, torch.cat((torch.zeros(1, dtype=torch.long), keep + 1)), 0)
    biases = [block.attn._get_rel_pos_bias for block in net.blocks]
    for block, bias in zip(net.blocks, biases, strict=True):
        block.attn._get_rel_pos_bias = lambda bias=bias: bias().masked_fill(hidden, float("-inf"))
    logits = net.forward_head(net.forward_features(image[None]))
    for block in net.blocks:
        del block.attn._get_rel_pos_bias
    return logits


@pytest.mark.parametrize("training", [False, True])
def test_all_patches_are_bit_identical_to_the_untouched_network(net, images, training):
    """Also in training: what is drawn at random (Sapiens scales the coordinates of its patches) is drawn once."""
    net.train(training)
    torch.manual_seed(0)
    expected = net(images)
    torch.manual_seed(0)
    output = build(net).train(training)(images)
    assert torch.equal(output.prediction, expected) and output.prediction.shape == (3, 10)
    assert output.distilled is None and not output.captured and output.kept is None


@pytest.mark.parametrize("family", ["deit_distilled", "dist_token"])
def test_two_heads_of_a_distilled_network_in_training(net, images):
    net.train()
    net.set_distilled_training(True)
    labelled, distilled = net(images)
    output = build(net).train()(images)
    assert torch.equal(output.prediction, labelled) and torch.equal(output.distilled, distilled)
    assert not torch.equal(labelled, distilled)
    assert build(net).eval()(images).distilled is None


@pytest.mark.parametrize("family", EVERY)
def test_the_network_stays_as_it_was(net, images):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    types = [type(module) for module in net.modules()]
    backbone = build(net)
    backbone(images, capture=backbone.saliency_capture())
    assert backbone.net is net and [type(module) for module in net.modules()] == types
    assert list(net.state_dict()) == list(before) == list(backbone.net.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_it_describes_itself(family, backbone):
    assert backbone.grid == TokenGrid(1, 4, 4) and backbone.grid.count == 16
    assert backbone.input.size == (32, 32) and backbone.num_classes == 10
    assert backbone.name == FAMILIES[family][0].split(".")[0]
    assert backbone.depth == len(backbone.blocks) >= 2
    assert len(backbone.input.mean) == len(backbone.input.std) == 3 and backbone.input.mean == tuple(
        backbone.net.pretrained_cfg["mean"]
    )


SPECIALS = {
    "deit": (1, 1),
    "deit_distilled": (2, 2),
    "dist_token": (2, 2),
    "registers": (5, 5),
    "dinov3": (5, 5),
    "cait": (0, 1),
}


@pytest.mark.parametrize("family", [*SPECIALS, "no_class_token"])
def test_special_tokens(backbone, images, family):
    """Of the first block, and of those that enter the head: CaiT's class token joins behind its trunk."""
    first, last = SPECIALS.get(family, (0, 0))
    assert (backbone.specials, backbone.final_specials) == (first, last)
    final = backbone(images).final
    assert final.special.shape == (3, last, backbone.width) and final.patches.shape == (3, 16, backbone.width)


@pytest.mark.parametrize("family", EVERY)
def test_capturing_changes_nothing_and_leaves_no_hooks(backbone, images, family):
    untouched = backbone(images).prediction
    blocks = tuple(range(backbone.depth))
    capture = points(*((block, point) for block in blocks for point in POINTS.get(family, ALL)))
    output = backbone(images, capture=capture)
    assert torch.equal(output.prediction, untouched)
    assert set(output.captured) == capture.points
    assert hooks(backbone) == 0


@pytest.mark.parametrize("family", EVERY)
def test_captured_points_answer_under_the_numbers_they_were_asked_by(backbone, images, family):
    last = backbone.depth - 1
    pairs = {(block, point) for block in (0, -1, last) for point in POINTS.get(family, ALL)}
    output = backbone(images, capture=Capture(frozenset(pairs), head=False))
    assert set(output.captured) == pairs
    for block, point in pairs:
        if block == last:
            assert all(
                a is b if isinstance(a, Tensor) else a == b
                for a, b in zip(output.captured[last, point], output.captured[-1, point], strict=True)
            )


@pytest.mark.parametrize("family", ["vit", "deit3", "dinov3"])
def test_branches_add_up_to_the_blocks_output(backbone, images):
    """What attention adds, the tokens after that, and what the MLP adds."""
    output = backbone(images, capture=points(*((1, point) for point in ALL), (0, "output"), head=False))
    before, attention, middle, ffn, after = (
        output.tokens(block, point).all
        for block, point in (
            (0, "output"),
            (1, "attention"),
            (1, "attention_residual"),
            (1, "ffn"),
            (1, "output"),
        )
    )
    assert torch.equal(before + attention, middle) and torch.equal(middle + ffn, after)
    assert not torch.equal(attention, ffn)


@pytest.mark.parametrize(("family", "point"), [("cait", "ffn"), ("cait", "attention"), ("swin", "attention_residual")])
def test_branches_that_are_not_shown_are_refused(backbone, images, point):
    with pytest.raises(UserError, match=f"does not show the branches of its blocks; got {point}") as error:
        backbone(images, capture=Capture.at(0, point))
    assert "\n" not in str(error.value) and hooks(backbone) == 0


def test_hooks_are_removed_after_a_failure(backbone, images, monkeypatch):
    def fail(*_args: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(backbone.blocks[-1], "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        backbone(images, capture=backbone.saliency_capture())
    assert hooks(backbone) == 0


def test_shapes_of_what_is_captured(backbone, images, family):
    tokens = backbone.specials + 16
    asked = ((0, point) for point in POINTS.get(family, ALL))
    output = backbone(images, capture=points(*asked, (-1, "qkv")))
    b, h, m, d = output.qkv(0).k.shape
    assert (b, m) == (3, tokens) and output.qkv(0).q.shape == output.qkv(0).v.shape == (b, h, m, d)
    assert output.qkv(0).specials == backbone.specials and output.qkv(-1).specials == backbone.final_specials
    for _, point in output.captured.keys() - {(0, "qkv"), (-1, "qkv")}:
        got = output.tokens(0, point)
        assert got.all.shape == (3, tokens, backbone.width) and h * d == backbone.width
        assert got.special.shape[1] == backbone.specials and got.patches.shape[1] == 16
    assert output.final.all.shape == (3, backbone.final_specials + 16, backbone.width)


@pytest.mark.parametrize("family", [*HIDDEN, *DETECTORS])
def test_hidden_is_the_blocks_output(net, images):
    found: list[Tensor] = []
    handle = build(net).blocks[1].register_forward_hook(lambda _m, _i, output: found.append(output))
    net(images)
    handle.remove()
    assert torch.equal(build(net)(images, capture=Capture.at(1, "output")).tokens(1).all, found[0])


@pytest.mark.parametrize("block", [3, 4])
def test_hidden_of_class_attention_is_the_class_token_with_the_patches(images, block):
    net = tiny("cait")
    cls = []
    handle = net.blocks_token_only[block - 3].register_forward_hook(lambda _m, _i, output: cls.append(output))
    output = build(net)(images, capture=points((2, "output"), (block, "output")))
    handle.remove()
    assert torch.equal(output.tokens(block).special, cls[0])
    assert torch.equal(output.tokens(block).patches, output.tokens(2).patches) and output.tokens(2).specials == 0


@pytest.mark.parametrize("family", MASKABLE)
@pytest.mark.parametrize("order", ["ascending", "shuffled"])
def test_kept_patches_equal_an_independent_reference(net, images, order):
    keep = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(i))[:7] for i in range(3)])
    keep = keep.sort(dim=1).values if order == "ascending" else keep
    with torch.no_grad():
        torch.testing.assert_close(
            build(net)(images, keep=keep).prediction, expected_logits(net, images, keep), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("family", [*MASKABLE, *DETECTORS])
def test_keeping_every_patch_by_index_changes_nothing(net, images, family):
    keep = torch.arange(16).expand(3, -1)
    got, expected = build(net)(images, keep=keep).prediction, net(images)
    if family == "no_class_token":  # its untouched tokens lie channel by channel in memory, which rounds otherwise
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(got, expected)


@pytest.mark.parametrize("family", APART)
def test_one_patch_is_enough_and_gradients_reach_the_images_patch(net, images):
    images.requires_grad_()
    build(net)(images, keep=torch.tensor([[0], [5], [15]])).prediction.sum().backward()
    seen = images.grad.abs().sum(dim=1).unfold(1, 8, 8).unfold(2, 8, 8).sum(dim=(-1, -2)).flatten(1) > 0
    assert seen.nonzero().tolist() == [[0, 0], [1, 5], [2, 15]]


@pytest.mark.parametrize("family", APART)
def test_a_step_of_training_leaves_patches_out_and_evaluation_does_not(net, images):
    """Patch dropout: what is kept is all that the loss depends on."""
    images.requires_grad_()
    torch.manual_seed(0)
    method, targets = Supervised(net, patch_drop=0.5).train(), torch.tensor([1, 0, 9])
    step = method(images, targets)
    step.loss.backward()
    seen = images.grad.abs().sum(dim=1).unfold(1, 8, 8).unfold(2, 8, 8).sum(dim=(-1, -2)).flatten(1) > 0
    assert step.kept.shape == (3, 8) and torch.equal(seen, torch.zeros_like(seen).scatter(1, step.kept, True))
    assert not [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    method.eval()
    with torch.no_grad():
        whole = method(images, targets)
        assert whole.kept is None and torch.equal(whole.prediction, net(images))


def test_swin_cannot_leave_out_patches(images):
    with pytest.raises(UserError, match=r"cannot leave out patches.*--keep 1\.0") as error:
        build(tiny("swin"))(images, keep=torch.zeros(3, 1, dtype=torch.long))
    assert "\n" not in str(error.value)


# --- saliency --------------------


@pytest.mark.parametrize(("family", "kind", "block"), SALIENCIES)
def test_saliency_equals_timms_own_attention(net, images, family, kind, block):
    backbone = build(net)
    output = backbone(images.requires_grad_(), capture=backbone.saliency_capture(block, kind))
    got = backbone.saliency(output, block, kind)

    attention = attention_of(net, backbone.blocks[block].attn, images)
    prefix = 1 if family == "cait" else backbone.specials
    # Neither mean pooling nor attention pooling trains what the class token attends to.
    reads_class = family not in ("swin", "no_class_token", "mae_mean_pool", "perception", "convvit")
    rows = attention[:, :, :1] if kind == "cls" and reads_class else attention[:, :, prefix:]
    rows = attention[:, :, 1:prefix] if kind == "det" else rows
    torch.testing.assert_close(got, rows[..., prefix:].mean(dim=(1, 2)), rtol=1e-4, atol=1e-6)
    assert got.shape == (3, 16) and got.dtype == torch.float32
    assert not got.requires_grad and bool((got >= 0).all()) and bool((got.sum(dim=1) <= 1 + 1e-5).all())


def test_patch_saliency_of_a_talking_heads_trunk_is_softmax_of_its_queries_and_keys(images):
    """Before its heads are mixed: the mixed maps are no distributions."""
    backbone = build(tiny("cait"))
    output = backbone(images, capture=backbone.saliency_capture(1, "patch"))
    q, k, _, _ = output.qkv(1)
    expected = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=(1, 2))
    torch.testing.assert_close(backbone.saliency(output, 1, "patch"), expected)


@pytest.mark.parametrize(("block", "kind", "words"), [(0, "cls", "no class token"), (-1, "patch", "blocks 0 to 2")])
def test_cait_says_which_blocks_give_which_saliency(block, kind, words):
    with pytest.raises(UserError, match=words):
        build(tiny("cait")).saliency_capture(block, kind)


def test_saliency_is_float32_under_autocast(backbone, images):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = backbone(images, capture=backbone.saliency_capture())
        inside = backbone.saliency(output)
    assert inside.dtype == torch.float32 and torch.equal(inside, backbone.saliency(output))


def test_attention_of_detection_tokens_needs_some(backbone):
    with pytest.raises(UserError, match=r"The saliency 'det' needs a network with detection tokens.*--saliency cls"):
        backbone.saliency_capture(kind="det")


def test_missing_blocks_are_named(backbone):
    for block in (backbone.depth, -backbone.depth - 1):
        with pytest.raises(UserError, match=f"blocks 0 to {backbone.depth - 1}; got {block}"):
            backbone.saliency_capture(block)


# --- stopping early --------------------


def run_blocks_of(backbone: Backbone, images: Tensor, capture: Capture) -> tuple[object, list[int]]:
    """The output of a pass, and the blocks that ran as far as their MLP."""
    ran: list[int] = []
    handles = [
        block.mlp.register_forward_hook(lambda *_a, index=index: ran.append(index))
        for index, block in enumerate(backbone.blocks)
    ]
    output = backbone(images, capture=capture)
    for handle in handles:
        handle.remove()
    return output, ran


@pytest.mark.parametrize("family", [*HIDDEN, *DETECTORS])
@pytest.mark.parametrize("block", [0, 1, -1])
def test_a_pass_without_its_head_gives_the_same_and_stops(backbone, images, block, family):
    index = block % backbone.depth
    both = points((block, "qkv"), (block, "output"))
    full = backbone(images, capture=both)
    early, ran = run_blocks_of(backbone, images, Capture(both.points, head=False))
    assert early.prediction is None and early.final is None
    assert torch.equal(early.tokens(block).all, full.tokens(block).all) and ran == list(range(index + 1))
    assert all(map(torch.equal, early.qkv(block)[:3], full.qkv(block)[:3]))

    only_qkv, ran = run_blocks_of(backbone, images, Capture.at(block, "qkv", head=False))
    assert all(map(torch.equal, only_qkv.qkv(block)[:3], full.qkv(block)[:3]))
    assert len(ran) == (index if family != "cait" else index + 1)  # a ViT stops right after the projection


def test_a_pass_that_is_asked_for_nothing_runs_no_block(backbone, images, family):
    output, ran = run_blocks_of(backbone, images, Capture(head=False))
    assert output.prediction is None and output.final is None and not output.captured
    assert ran == ([] if family != "swin" else [0, 1])


def test_swin_hands_out_saliency_but_no_block_outputs(images):
    backbone = build(tiny("swin"))
    early = backbone(images, capture=Capture.at(-1, "qkv", head=False))
    assert early.prediction is None and set(early.captured) == {(-1, "qkv")}
    with pytest.raises(UserError, match="block outputs"):
        backbone(images, capture=Capture.at(0, "output"))


# --- what a pass computes, and what it trains --------------------

ALIKE = ("eva02", "perception", "sapiens")  # end as dinov3 and rope_mixed do
# Where a pass may end: behind a point of a block, or its head.
ENDS = [
    *(
        (family, Capture.at(block, point, head=False))
        for family in (*FAMILIES, "yolos")
        for block in ((0, 1, -1) if family not in ALIKE else (1,))
        for point in POINTS.get(family, ALL)
    ),
    *((family, Capture()) for family in EVERY),
]
MASKED_ENDS = [(family, capture) for family, capture in ENDS if family in (*MASKABLE, "yolos")]


def name_of(value: object) -> str:
    if not isinstance(value, Capture):
        return str(value)
    return "head" if value.head else "-".join(map(str, *value.points))


@pytest.mark.parametrize(
    ("family", "capture", "kept"),
    [*((*end, None) for end in ENDS), *((*end, 5) for end in MASKED_ENDS)],
    ids=name_of,
)
def test_the_macs_of_a_pass_are_those_that_torch_counts(backbone, images, capture, kept):
    keep = None if kept is None else torch.arange(5).expand(3, -1)
    with FlopCounterMode(display=False) as counter:
        backbone(images, keep=keep, capture=capture)
    assert 3 * backbone.macs(kept, capture, layernorm=False).total == counter.get_total_flops() / 2


@pytest.mark.parametrize(("family", "capture"), MASKED_ENDS, ids=name_of)
def test_what_a_pass_reaches_is_what_autograd_reaches(net, images, capture):
    """Every parameter that gets a gradient, and no other: DDP waits for all that train."""
    relations = any(point == "qkv" for _, point in capture.points)
    for roles, special in (("qk", True), ("v", True)) if relations else (("qkv", True), ("qkv", False)):
        backbone = with_tokens(build(net))
        backbone.zero_grad()
        output = backbone(images, capture=capture)
        read: list[Tensor] = []
        for tokens in (*output.captured.values(), *([output.final] if capture.head else [])):
            if isinstance(tokens, QKV):
                read += [getattr(tokens, role) for role in roles]
            else:
                read.append(tokens.all if special else tokens.patches)
        sum(value.square().sum() for value in read).backward()
        reached = backbone.reached(capture, frozenset(roles), prediction=False, special=special)
        assert [
            name
            for name, parameter in net.named_parameters()
            if (parameter.grad is not None and bool(parameter.grad.any())) != (parameter in reached)
        ] == []


@pytest.mark.parametrize("family", EVERY)
def test_a_prediction_reaches_every_parameter(backbone, images):
    backbone(images).prediction.square().sum().backward()
    assert backbone.reached(Capture()) == set(backbone.net.parameters())
    assert all(parameter.grad is not None for parameter in backbone.net.parameters())


def test_swin_does_not_tell_what_a_pass_that_stops_early_trains():
    with pytest.raises(UserError, match="does not tell what a pass that stops early trains"):
        with_tokens(build(tiny("swin"))).reached(Capture.at(0, "qkv", head=False))


# --- compiled and checkpointed blocks --------------------


def test_compiled_blocks_still_hand_out_queries_and_keys(images, monkeypatch):
    # The eager backend: tracing, which is what skips hooks, without minutes of code generation.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    plain, compiled = build(tiny("vit")), build(tiny("vit"))
    compiled.compile_blocks()
    capture = points((-1, "qkv"), (0, "qkv"), (1, "output"), (1, "ffn"))
    compiled(images)  # compiled without hooks, which it would not look for again
    for _ in range(2):
        got, expected = compiled(images, capture=capture), plain(images, capture=capture)
    torch.testing.assert_close(got.prediction, expected.prediction)
    assert set(got.captured) == capture.points
    torch.testing.assert_close(plain.saliency(got), plain.saliency(expected))
    assert list(compiled.net.state_dict()) == list(plain.net.state_dict())
    torch._dynamo.reset()


@pytest.mark.parametrize("family", ["vit", "dinov3", "rope_mixed", "beit", "cait", "yolos"])
def test_gradient_checkpointing_gives_the_same_gradients(family, images):
    gradients = []
    for recompute in (False, True):
        backbone = build(tiny(family)).train()
        backbone.net.set_grad_checkpointing(recompute)
        ran: list[int] = []
        backbone.blocks[0].norm1.register_forward_hook(lambda *_a, ran=ran: ran.append(0))
        output = backbone(images, capture=backbone.saliency_capture())
        output.prediction.square().sum().backward()
        assert len(ran) == (2 if recompute else 1)  # once more in the backward pass
        assert set(output.captured) == {(-1, "qkv")}
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    for expected, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected)
