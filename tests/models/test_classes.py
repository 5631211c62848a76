"""Class names of networks, and how they are compared with those of data."""

import logging

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.models.classes import class_names, class_order, compare
from vitdistill.models.families import as_network
from vitdistill.models.network import Network
from vitdistill.models.record import ModelRecord, attach_record, mark_new_head, record_of
from vitdistill.models.surgery.classes import match_head, renew_head
from vitdistill.models.teacher import Teacher


def network(names: list[str], family: str = "vit", seed: int = 0) -> Network:
    """A tiny network that was trained on these classes."""
    net = as_network(tiny(family, seed, num_classes=len(names)))
    attach_record(net.net, ModelRecord("vit_tiny_patch16_224", {"num_classes": len(names)}, classes=list(names)))
    return net


@pytest.mark.parametrize(
    ("names", "classes", "kind", "order"),
    [
        ("blue green red", "blue green red", "same", None),
        ("blue green red", "red blue green", "reordered", (2, 0, 1)),
        ("blue green red", "red blue", "part", (2, 0)),
        ("blue green red", "bleu vert rouge", "different", None),
        ("blue green red", "blue green rouge", "different", None),
        ("blue green red", "blue green red white", "other count", None),
        ("blue green red", "bleu vert", "other count", None),
        # Written in other ways: case, spaces, Unicode (macOS keeps letters and their accents apart), zeros.
        ("Ice_cream hot-dog", "hot_dog ice-cream", "reordered", (1, 0)),
        ("cafe\u0301 the\u0301", "th\u00e9 caf\u00e9", "reordered", (1, 0)),
        ("0 1 2", "00 01 02", "same", None),
        # Text order, as earlier versions recorded numbers, against the order of numbers.
        ("0 1 10 11 2 3 4 5 6 7 8 9", "0 1 2 3 4 5 6 7 8 9 10 11", "reordered", (0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3)),
        # Numbers on one side are no names.
        ("0 1 10 2 3 4 5 6 7 8 9", "a b c d e f g h i j k", "by number", (0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 2)),
        ("a b c", "2 0 1", "by number", (2, 0, 1)),
        ("1 2 3", "0 1 2", "different", None),
        # Names that differ by case alone are told apart.
        ("a A", "A a", "reordered", (1, 0)),
    ],
)
def test_comparisons(names: str, classes: str, kind: str, order: tuple[int, ...] | None) -> None:
    found = compare(network(names.split()), classes.split(), "data")
    assert (found.kind, found.order) == (kind, order)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=8, unique=True), st.randoms(use_true_random=False)
)
def test_every_order_of_the_same_names_is_found(names: list[str], random) -> None:
    shuffled = random.sample(names, len(names))
    order = compare(network(names), shuffled, "data").order or tuple(range(len(names)))
    folded = [name.casefold() for name in names]
    if len(set(folded)) == len(names):
        assert [names[place] for place in order] == shuffled


# --- ImageNet --------------------


def imagenet() -> Network:
    """A tiny network with ImageNet's 1000 classes by timm's word; no weights from anywhere."""
    return as_network(tiny("vit", num_classes=1000))


def test_imagenet_is_known_by_number_and_by_word() -> None:
    names = class_names(imagenet())
    assert len(names) == 1000 and names[0] == "n01440764"
    assert compare(imagenet(), names, "data").kind == "same"
    assert compare(imagenet(), ["n01443537", "n01440764"], "data").order == (1, 0)
    assert compare(imagenet(), ["goldfish", "tench, Tinca tinca"], "data").order == (1, 0)
    assert compare(imagenet(), ["Great_White_Shark", "tench"], "data").order == (2, 0)
    assert compare(imagenet(), ["tench", "crane"], "data").kind == "other count"  # a bird or a machine
    # A run on class folders called by words, tested on folders called by number.
    assert compare(network(["goldfish", "tench"]), ["n01440764", "n01443537"], "data").order == (1, 0)


def test_a_guess_is_no_reason_to_refuse() -> None:
    """A file of one's own weights for 1000 classes has timm's word for ImageNet's, which it may not be."""
    own = [f"product {number}" for number in range(1000)]
    assert compare(imagenet(), own, "data").kind == "unknown"
    # Numbers in text order are put in order.
    folders = sorted(map(str, range(1000)))
    found = compare(imagenet(), folders, "data")
    assert found.kind == "unknown" and [found.order[folders.index(str(n))] for n in (0, 2, 10)] == [0, 2, 10]
    sure = imagenet()
    attach_record(sure.net, ModelRecord("vit_tiny_patch16_224", classes=class_names(sure)))
    assert compare(sure, own, "data").kind == "different"


def test_other_lists_of_imagenet() -> None:
    with torch.device("meta"):
        net = timm.create_model("vit_tiny_patch16_224.augreg_in21k")
    names = class_names(as_network(net))
    assert len(names) == 21843
    order = compare(as_network(net), ["n01440764", "n02084071"], "data").order
    assert order is not None and [names[place] for place in order] == ["n01440764", "n02084071"]


def test_a_user_s_module_and_a_changed_head_have_no_names() -> None:
    assert class_names(as_network(tiny("vit"))) == []
    net = network(["a", "b"])
    net.net.reset_classifier(3)
    assert class_names(net) == []


# --- what is done with it --------------------


def test_refusals_name_both_sides_and_notices_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    net = network(["blue", "green", "red", "white"])
    with pytest.raises(UserError, match="has 'blue', 'green', 'red' and 1 more and autre has 'a', 'b', 'c' and 1 more"):
        class_order(net, ["a", "b", "c", "d"], "autre")
    with pytest.raises(UserError, match="has 'white' and 3 more and data has 'blanc' and 3 more. Rename"):
        class_order(net, ["blue", "green", "red", "blanc"], "data", role="teacher")
    assert not caplog.records
    for classes, words in (
        (["red", "blue", "green", "white"], "another order"),
        (["red", "blue"], "has 2 of the 4 classes"),
        (["0", "1", "2", "3"], "matched by number"),
    ):
        caplog.clear()
        class_order(net, classes, "data")
        assert len(caplog.records) == 1 and words in caplog.messages[0] and "\n" not in caplog.messages[0]
    caplog.clear()
    class_order(as_network(tiny("vit", num_classes=2)), ["a", "b"], "data")
    assert "names of the 2 classes" in caplog.messages[0] and "not known" in caplog.messages[0]
    caplog.clear()
    assert class_order(net, ["blue", "green", "red", "white"], "data") is None and not caplog.records


def test_a_classifier_with_random_weights_is_refused() -> None:
    net = network(["a", "b"])
    mark_new_head(net.net)
    with pytest.raises(UserError, match="new and has random weights"):
        class_order(net, ["a", "b"], "data")


def test_a_teacher_answers_in_the_data_s_order(images: torch.Tensor) -> None:
    net = network(["blue", "green", "red"])
    scores = net(images).prediction
    teacher = Teacher(net)
    teacher.match_classes(["red", "blue"], "data")
    assert teacher.num_classes == 2
    assert torch.equal(teacher(images).prediction, scores[:, [2, 0]])
    text = Teacher(network(["a", "b", "c"]), text_embeddings=torch.randn(2, 3))
    text.match_classes(["red", "blue"], "data")  # as its texts are: nobody else knows
    assert text.order is None
    with pytest.raises(UserError, match="2 for the 3 of data"):
        text.match_classes(["red", "blue", "green"], "data")


def test_maskedkd_in_python_goes_by_the_student_s_names(images: torch.Tensor) -> None:
    student, teacher = network(["red", "green"]), network(["green", "red"], seed=1)
    method = MaskedKD(student, teacher)
    assert method.teacher.order.tolist() == [1, 0]
    with pytest.raises(UserError, match="teacher must have the classes"):
        MaskedKD(student, network(["rot", "gelb"], seed=1))
    assert MaskedKD(student, network(["rot", "gelb"], seed=1), distill="attention").teacher.order is None
    assert MaskedKD(as_network(tiny("vit", num_classes=2)), network(["rot", "gelb"], seed=1)).teacher.order is None


@pytest.mark.parametrize("family", ["vit", "deit_distilled", "swin"])
def test_rows_of_a_start_are_put_in_order(family: str, images: torch.Tensor, caplog: pytest.LogCaptureFixture) -> None:
    net = network(["blue", "green", "red"], family)
    before = net(images).prediction
    assert match_head(net, ["red", "blue", "green"], "data") == "reordered"
    torch.testing.assert_close(net(images).prediction, before[:, [2, 0, 1]])
    assert match_head(net, ["blue", "red"], "data") == "part" and net.num_classes == 2
    torch.testing.assert_close(net(images).prediction, before[:, [0, 2]])
    assert record_of(net.net).classes == ["blue", "red"] and record_of(net.net).args["num_classes"] == 2
    caplog.clear()
    assert match_head(net, ["bleu", "rouge"], "data") == "different"
    assert "new weights" in caplog.messages[0]
    renew_head(net)
    assert class_names(net) == [] and not torch.allclose(net(images).prediction, before[:, [0, 2]])


@pytest.fixture(autouse=True)
def warnings_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)


def test_a_network_without_a_classifier_is_sent_to_the_linear_probe() -> None:
    with pytest.raises(UserError, match="has no classifier. Fit one with `vitdistill probe MODEL --out FOLDER`"):
        class_order(network([]), ["blue", "red"], "data")
