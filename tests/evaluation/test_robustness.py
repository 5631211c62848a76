"""Test sets before networks whose answers are known."""

import logging
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from colours import NETWORK
from robustness_sets import FOUR, classes_with, coded, corrupted, linked, validation
from vitdistill.data.images.augment import Augment
from vitdistill.data.robustness.images import CorruptedImages, open_part
from vitdistill.data.robustness.layout import layouts
from vitdistill.data.robustness.published import CORRUPTIONS, DENOMINATORS
from vitdistill.data.robustness.sets import classes_of, real_labels
from vitdistill.data.samples import ViewOptions
from vitdistill.errors import UserError
from vitdistill.evaluation.robustness import _shown, best_of, fingerprint, measure, order_in
from vitdistill.models.families import as_network
from vitdistill.models.record import record_of
from vitdistill.tasks.classification import Classification
from vitdistill.types import InputSpec

HERE = {"device": "cpu", "workers": 0}


def test_whole_sets_by_number_and_by_name(numbered: Path, tmp_path: Path) -> None:
    """A network that tells all classes; in text order (0, 1, 10, 100, ...) it would be wrong on ImageNet-V2."""
    every = classes_of("v2")
    by_name = {each: numbered / str(every.index(each)) for each in classes_of("imagenet-a")}
    sets = {"v2": str(numbered), "imagenet-a": str(linked(tmp_path / "a", by_name))}
    found = measure(coded(every), layouts(sets), batch_size=256, **HERE)
    assert list(found) == ["imagenet-a", "v2"] and [each["top1"] for each in found.values()] == [100, 100]
    assert [each["images"] for each in found.values()] == [200, 1000]
    assert found["imagenet-a"]["gap"] is None and not found["imagenet-a"]["partial"]


def test_subsets_are_scored_among_their_own_classes(four_classes: list[str], tmp_path: Path) -> None:
    """A network that sees the fourth class in everything has its next best counted where that is no class of a set."""
    tree = classes_with(tmp_path / "clean", dict.fromkeys(FOUR, 2))
    a = classes_with(tmp_path / "a", {FOUR[0]: 3, FOUR[1]: 1, FOUR[2]: 1})
    sets = {"imagenet-a": str(a), "clean": str(tree)}
    found = measure(coded(four_classes, {3: 1e4}), layouts(sets), **HERE)
    assert found["clean"]["top1"] == 25 and found["clean"]["subsets"]["imagenet-r"]["top1"] == 50
    assert found["imagenet-a"]["top1"] == 100 and found["imagenet-a"]["gap"] == 0
    # One that prefers the first class to the others of ImageNet-A: right for 3 of 5, and for 2 of 6 clean images.
    found = measure(coded(four_classes, {3: 1e4, 0: 1e3}), layouts(sets), **HERE)
    assert found["imagenet-a"]["top1"] == 60 and found["imagenet-a"]["confidence"] == 100
    assert found["imagenet-a"]["clean_top1"] == pytest.approx(100 / 3, abs=1e-4)
    assert found["imagenet-a"]["gap"] == pytest.approx(100 / 3 - 60, abs=1e-3)
    assert found["clean"]["subsets"]["imagenet-a"]["images"] == 6


def test_known_errors_give_the_mean_corruption_error(four_classes: list[str], tmp_path: Path) -> None:
    """A network that always sees the first class; its errors are the shares of the others."""
    network = coded(four_classes, {0: 1e4})
    trees = {1: classes_with(tmp_path / "one", dict.fromkeys(FOUR, 1))}  # 3 of 4 wrong
    trees |= {
        severity: classes_with(tmp_path / "most", {FOUR[0]: 7, **dict.fromkeys(FOUR[1:], 1)}) for severity in (2,)
    }
    trees |= dict.fromkeys((3, 4, 5), trees[2])  # 3 of 10 wrong
    root = corrupted(tmp_path / "c", trees, CORRUPTIONS[1:])
    corrupted(root / "noise", dict.fromkeys((1, 2, 3, 4, 5), trees[1]), CORRUPTIONS[:1])
    corrupted(root / "extra", trees, ["spatter"])
    clean = classes_with(tmp_path / "clean", {FOUR[0]: 13, **dict.fromkeys(FOUR[1:], 1)})  # 3 of 16 wrong
    found = measure(network, layouts({"imagenet-c": str(root), "clean": str(clean)}), **HERE)
    result = found["imagenet-c"]
    assert found["clean"]["top1"] == 81.25 and not result["partial"] and result["images"] == 10
    mean = (75 + 4 * 30) / 5
    errors = dict.fromkeys(CORRUPTIONS, mean) | {"gaussian_noise": 75.0}
    assert {name: own["error"] for name, own in result["corruptions"].items()} == {**errors, "spatter": mean}
    assert result["mean_error"] == pytest.approx((75 + 14 * 39) / 15)
    assert result["mce"] == pytest.approx(sum(100 * errors[name] / DENOMINATORS[name] for name in CORRUPTIONS) / 15)
    relative = [(errors[name] - 18.75) / (DENOMINATORS[name] - 43.5) for name in CORRUPTIONS]
    assert result["relative_mce"] == pytest.approx(100 * sum(relative) / 15, abs=1e-4)
    # The same with a set of which a class is missing.
    (root / "fog" / "1").unlink()
    linked(root / "fog" / "1", {name: trees[1] / name for name in FOUR[:2]})
    part = measure(network, layouts({"imagenet-c": str(root)}, corruptions=["fog"], allow_partial=True), **HERE)
    assert part["imagenet-c"]["corruptions"]["fog"] == {"error": (50 + 4 * 30) / 5, "ce": None}
    assert part["imagenet-c"]["mce"] is None
    assert part["imagenet-c"]["partial"][0].startswith("without gaussian_noise, shot_noise")
    assert part["imagenet-c"]["partial"][1] == f"2 of 4 classes ({FOUR[2]}, {FOUR[3]})"


def test_unreadable_images_are_counted(four_classes: list[str], tmp_path: Path, caplog) -> None:
    tree = classes_with(tmp_path / "sketch", dict.fromkeys(FOUR, 2))
    (tree / FOUR[1] / "broken.JPEG").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        found = measure(coded(four_classes), layouts({"sketch": str(tree)}), **HERE)["sketch"]
    assert (found["images"], found["unreadable"], found["top1"]) == (8, 1, 100)
    assert "broken.JPEG" in caplog.text
    with pytest.raises(UserError, match="1 of 9.*broken"):
        measure(coded(four_classes), layouts({"sketch": str(tree)}), bad_share=0.0, **HERE)


# --- real labels -----------------


def test_any_of_the_real_labels_is_right(four_classes: list[str], tmp_path: Path) -> None:
    """Shown are [0], [2, 1], nothing, [3], [1, 3, 0], nothing; the network sees 0, 2, 1, 1, 3 and 0."""
    root = validation(tmp_path / "val", (0, 2, 1, 1, 3, 0))
    sets = {"real": str(root), "clean": str(root)}
    found = measure(coded(four_classes), layouts(sets), **HERE)
    assert list(found) == ["clean", "real"]
    own = found["real"]
    assert (own["top1"], own["top5"], own["images"], own["unlabelled"]) == (75, 100, 4, 2)
    assert own["published_images"] == 46_837 and not own["partial"]
    # The same images, filed under 0, 1, 2, 3, 0, 1.
    assert (found["clean"]["images"], found["clean"]["unlabelled"]) == (6, 0)
    assert found["clean"]["top1"] == pytest.approx(100 / 6, abs=1e-3)
    # By name: a network that calls each class as the next one is right on the fifth image alone.
    turned = coded(four_classes)
    record_of(turned.net).classes = [*four_classes[1:], four_classes[0]]
    assert order_in(turned, "real") == (3, 0, 1, 2)
    assert measure(turned, layouts({"real": str(root)}), **HERE)["real"]["top1"] == 25
    with pytest.raises(UserError, match="must have the classes of real; n01440764, .* are not among the 2 of coded"):
        measure(coded(["cat", "dog"]), layouts({"real": str(root)}), **HERE)


def test_timm_counts_the_same() -> None:
    """Random answers to the first 300 images, as timm's own count of real labels takes them."""
    from timm.data import RealLabelsImagenet

    answers = torch.randn(300, 1000, generator=torch.Generator().manual_seed(0))
    shown = _shown(torch.device("cpu"))[:300]
    answers.scatter_add_(1, shown.clamp(min=0), 2.0 * (shown >= 0))  # so that many are right
    theirs = RealLabelsImagenet([f"val/ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)])
    theirs.add_result(answers)
    labelled = torch.tensor([bool(each) for each in real_labels()[:300]])
    metrics = Classification(1000).metrics()
    for metric in metrics.values():
        metric.update(preds=answers[labelled], target=best_of(answers[labelled], shown[labelled]))
    ours = {name: 100 * float(metric.compute()) for name, metric in metrics.items()}
    assert ours == pytest.approx({"top1": theirs.get_accuracy(1), "top5": theirs.get_accuracy(5)}, abs=1e-4)
    assert 5 < ours["top1"] < ours["top5"] < 95


# --- classes ---------------------


def test_classes_go_by_name(four_classes: list[str], tmp_path: Path) -> None:
    tree = classes_with(tmp_path / "sketch", dict.fromkeys(FOUR, 1))
    network = coded(four_classes)
    assert order_in(network, "imagenet-r") == (1, 3)
    # By words, in another order, with classes that the set does not have.
    record_of(network.net).classes = ["tiger shark", "goldfish", "tench", "great white shark"]
    assert order_in(network, "sketch") == (2, 1, 3, 0)
    assert measure(network, layouts({"sketch": str(tree)}), **HERE)["sketch"]["top1"] == 25
    more = coded(["cat", *four_classes, "dog"])
    assert order_in(more, "sketch") == (1, 2, 3, 4)
    record_of(network.net).classes = ["tench", "goldfish", "cat", "dog"]
    with pytest.raises(UserError, match=f"{FOUR[2]}, {FOUR[3]} are not among the 4 of coded .'tench', 'goldfish'"):
        order_in(network, "sketch")


def test_networks_without_the_classes(numbered: Path) -> None:
    network = coded(["cat", "dog"])
    with pytest.raises(UserError, match="n01440764, n01443537, n01484850 and 997 more are not among the 2 of coded"):
        measure(network, layouts({"v2": str(numbered)}), **HERE)
    record_of(network.net).classes = None
    with pytest.raises(UserError, match="the names of the 2 classes of coded are not known"):
        order_in(network, "v2")
    bare = as_network(timm.create_model("vit_tiny_patch16_224", **NETWORK, num_classes=0))
    with pytest.raises(UserError, match="has no classifier"):
        order_in(bare, "v2")


# --- images ----------------------


def test_corrupted_images_are_not_cropped(four_classes: list[str], tmp_path: Path) -> None:
    tree = classes_with(tmp_path / "tree", dict.fromkeys(FOUR, 1))
    pixels = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8)
    for name in FOUR:
        Image.fromarray(pixels.numpy()).save(next((tree / name).iterdir()), format="PNG")
    root = corrupted(tmp_path / "c", dict.fromkeys((1, 2, 3, 4, 5), tree))
    samples, _ = open_part(layouts({"imagenet-c": str(root)})[0].parts[0])
    assert isinstance(samples, CorruptedImages)
    image, _ = samples.load(0)
    options = ViewOptions(augment=Augment(crop_pct=0.5))

    def made(size: int, channels: int = 3) -> torch.Tensor:
        spec = InputSpec((channels, size, size), (0.5,) * channels, (0.5,) * channels)
        transform = samples.transform(spec, options, train=False)
        assert transform.shape == (channels, size, size) and not transform.random
        return transform(image)

    assert torch.equal(made(16), pixels.permute(2, 0, 1))
    direct = torch.tensor(list(image.resize((12, 12), Image.Resampling.BICUBIC).getdata()), dtype=torch.uint8)
    assert torch.equal(made(12), direct.view(12, 12, 3).permute(2, 0, 1))
    assert made(16, channels=1).shape == (1, 16, 16)


def test_the_fingerprint_knows_weights_classes_and_crop() -> None:
    one = coded(FOUR)
    assert fingerprint(one) == fingerprint(coded(FOUR))
    others = [fingerprint(coded(FOUR, {0: 1.0})), fingerprint(coded(FOUR[::-1])), fingerprint(one, crop_pct=0.9)]
    assert len({fingerprint(one), *others}) == 4
