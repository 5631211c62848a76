"""Which classes a network tells apart, and how its scores become those of the data's classes: by name, not by count.

Names come from what a network's record says, from the hub, or, for networks that timm publishes, from its lists of
ImageNet's classes. ImageNet's are WordNet numbers (n01440764); data may call them by their words as well.
"""

import logging
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

from torch import nn

from vitdistill.errors import UserError
from vitdistill.models.network import Network
from vitdistill.models.record import has_new_head, record_of

log = logging.getLogger(__name__)

Kind = Literal["same", "reordered", "part", "by number", "unknown", "different", "other count"]

_SYNSET = re.compile(r"n\d{8}")
SHOWN = 3  # how many names a message shows


class Comparison(NamedTuple):
    """How the classes of a network and those of data belong together.

    Attributes:
        kind: same; reordered (the same names in another order); part (the data has some of the network's); by number
            (the names of one side are numbers); unknown (the network's names are not known); different; other count.
        order: per class of the data, which of the network's scores it is; None for all of them as they are, and where
            they do not belong together.
        words: both sides, with a few names of each, for messages.
    """

    kind: Kind
    order: tuple[int, ...] | None
    words: str


def class_names(network: Network) -> list[str]:
    """Names of the classes of a network's scores, in their order; empty where they are not known.

    Example:
        >>> class_names(build("runs/pets"))[:2]
        ['Abyssinian', 'Bengal']
    """
    recorded = record_of(network.net).classes
    if recorded and len(recorded) == network.num_classes:
        return list(recorded)
    return published_classes(network.net)


def published_classes(net: nn.Module) -> list[str]:
    """Class names of the weights that timm publishes under a network's name: the hub's, or ImageNet's; else none."""
    config: Any = getattr(net, "pretrained_cfg", None) or {}
    count = getattr(net, "num_classes", None)
    if not count or has_new_head(net) or config.get("num_classes") != count:
        return []
    names = config.get("label_names")
    if names and len(names) == count:
        return [str(name) for name in (names.values() if isinstance(names, dict) else names)]
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(net)
    return list(ImageNetInfo(subset).label_names()) if subset else []


def compare(network: Network, classes: Sequence[str], data: str) -> Comparison:
    """Compare a network's classes with those of data.

    Names are the same whatever their case, their Unicode form, and whether they have spaces, hyphens or underscores;
    numbers whatever zeros they begin with. Numbers on one side alone are no names: they count the other side's classes.

    Args:
        network: with a classifier.
        classes: names of the data's classes, in the order of the class numbers.
        data: what the data is called in messages.
    """
    names, count = class_names(network), network.num_classes
    certain = bool(record_of(network.net).classes)
    order = _places(names, classes)
    # ImageNet's names are only a guess for weights from elsewhere: right if the data has such names.
    if not certain and order is None and not _known(names, classes):
        names = []
    words = f"{network.name} has {_few(names, classes) if names else count} and {data} has {_few(classes, names)}"
    if order is not None:
        if len(order) < count:
            return Comparison("part", order, words)
        in_order = order == tuple(range(count))
        return Comparison("same", None, words) if in_order else Comparison("reordered", order, words)
    if count != len(classes):
        return Comparison("other count", None, f"{network.name} has {count} and {data} has {len(classes)}")
    numbered = _by_number(names, classes)
    if names and numbered is not None:
        return Comparison("by number", numbered, words)
    if not names:
        return Comparison("unknown", numbered if numbered != tuple(range(count)) else None, words)
    return Comparison("different", None, words)


def class_order(network: Network, classes: Sequence[str], data: str, *, role: str = "model") -> tuple[int, ...] | None:
    """Which of a network's scores belongs to each class of the data; None for all of them as they are.

    Anything but the same names in the same order is told in one line.

    Args:
        network: whose scores are used as they are, as a teacher's or in a test.
        classes: names of the data's classes.
        data: what the data is called in messages.
        role: what the network is called in messages.

    Raises:
        UserError: when the classes are others, or the classifier has been trained on none.
    """
    rule = f"The {role} must have the classes of the data"
    elsewhere = f"fine-tune the {role} on this data first, or choose another"
    if has_new_head(network.net):
        raise UserError(
            f"{rule}; the classifier of {network.name} is new and has random weights",
            remedy=f"Leave its num_classes out, {elsewhere}",
        )
    if not network.num_classes:
        remedy = "Fit one with `vitdistill probe MODEL --out FOLDER` and give that folder"
        raise UserError(f"{rule}; {network.name} has no classifier", remedy=remedy)
    found = compare(network, classes, data)
    if found.kind == "other count":
        raise UserError(f"{rule}; {found.words}", remedy=elsewhere[0].upper() + elsewhere[1:])
    if found.kind == "different":
        raise UserError(
            f"{rule}; {found.words}",
            remedy=f"Rename the data's classes where they mean the same, {elsewhere}",
        )
    tell(found, network, classes, data)
    return found.order


def order_of(names: Sequence[str], classes: Sequence[str]) -> tuple[int, ...] | None:
    """Where each class stands among names, which may be written otherwise; None unless all are there.

    Example:
        >>> order_of(["tench", "great white shark"], ["n01484850", "n01440764"])
        (1, 0)
    """
    return _places(names, classes)


def lacking(names: Sequence[str], classes: Sequence[str]) -> list[str]:
    """The classes that are not among names, which may be written otherwise.

    Example:
        >>> lacking(["tench", "goldfish"], ["n01440764", "n01484850"])
        ['n01484850']
    """
    exact = {unicodedata.normalize("NFC", name) for name in names}
    table = _table(names)
    return [
        name for name in classes if unicodedata.normalize("NFC", name) not in exact and _look_up(table, name) is None
    ]


def first_word(name: str) -> str:
    """What a class is called in a sentence: of a WordNet number the first of its words, else the name with spaces.

    Raises:
        UserError: for a WordNet number that is not among ImageNet's.

    Example:
        >>> first_word("n01440764"), first_word("great_white-shark")
        ('tench', 'great white-shark')
    """
    if not _SYNSET.fullmatch(name):
        return name.replace("_", " ").strip()
    words = _wordnet().get(name)
    if words is None:
        raise UserError("A class named by its WordNet number must be one of ImageNet's", name, "Name it by its word")
    return words.split(", ")[0]


def tell(found: Comparison, network: Network, classes: Sequence[str], data: str) -> None:
    """One line on classes that are not the same in the same order; arguments as of `compare`, which found it."""
    name, count = network.name, network.num_classes
    match found.kind:
        case "reordered":
            log.warning("%s: the same classes in another order, so they are put into the data's", found.words)
        case "part":
            has = f"{data} has {len(classes)} of the {count} classes of {name}"
            log.warning("%s, whose scores for the others are left out", has)
        case "by number":
            log.warning("%s: with numbers for names they are matched by number, so check that they fit", found.words)
        case "unknown":
            order = f"they are taken in the order of {data} ({_few(classes)})"
            log.warning("The names of the %d classes of %s are not known: %s", count, name, order)
        case "different":
            log.warning("%s: other classes, so the classifier starts with new weights", found.words)


def _places(names: Sequence[str], classes: Sequence[str]) -> tuple[int, ...] | None:
    """Where each class stands among the names; None unless all are there, each at a place of its own."""
    exact = {unicodedata.normalize("NFC", name): place for place, name in enumerate(names)}
    places = [exact.get(unicodedata.normalize("NFC", name)) for name in classes]
    if None in places or len(exact) < len(names):
        table = _table(names)
        places = [_look_up(table, name) for name in classes]
    whole = [place for place in places if place is not None]
    return tuple(whole) if len(set(whole)) == len(classes) and classes else None


def _known(names: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether any class is among the names."""
    table = _table(names)
    return any(_look_up(table, name) is not None for name in classes)


def _table(names: Sequence[str]) -> dict[str, int]:
    """Places by all that a class may be called; what several are called is left out, but for their own names."""
    own = {_folded(name): place for place, name in enumerate(names)}
    table: dict[str, int] = {}
    twice: set[str] = set()
    for place, name in enumerate(names):
        for key in _keys(name):
            if table.setdefault(key, place) != place:
                twice.add(key)
    return {key: place for key, place in table.items() if key not in twice} | (own if len(own) == len(names) else {})


def _look_up(table: dict[str, int], name: str) -> int | None:
    return next((table[key] for key in _keys(name) if key in table), None)


def _folded(name: str) -> str:
    """A name without what people write in different ways."""
    if name.isdecimal():
        return str(int(name))
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFC", name).casefold()).strip()


def _keys(name: str) -> list[str]:
    """What a class may be called: its name, and for a WordNet number its words, together and one by one."""
    words = _wordnet().get(name, "") if _SYNSET.fullmatch(name) else ""
    return [_folded(each) for each in (name, words, *words.split(", ")) if each]


@cache
def _wordnet() -> dict[str, str]:
    """timm's words for all of ImageNet's classes, by WordNet number: "tench, Tinca tinca"."""
    from timm.data import ImageNetInfo

    known: dict[str, str] = {}
    for subset in ("imagenet-21k-goog", "imagenet-1k"):
        info = ImageNetInfo(subset)
        known |= zip(info.label_names(), info.label_descriptions(), strict=True)
    return known


def _by_number(names: Sequence[str], classes: Sequence[str]) -> tuple[int, ...] | None:
    """Which score each class is where numbers stand for names on one side; None where they do on neither or both."""
    numbered, counted = (all(name.isdecimal() for name in side) for side in (names, classes))
    if counted and not (names and numbered):
        ranks = {name: rank for rank, name in enumerate(sorted(classes, key=int))}
        return tuple(ranks[name] for name in classes)
    if names and numbered and not counted:
        return tuple(sorted(range(len(names)), key=lambda place: int(names[place])))
    return None


def _few(names: Sequence[str], others: Sequence[str] = ()) -> str:
    """A few names, those that the others lack first."""
    missing = [name for name in names if name not in set(others)]
    chosen = (missing or list(names))[:SHOWN]
    rest = len(names) - len(chosen)
    return ", ".join(repr(name) for name in chosen) + (f" and {rest} more" if rest else "")
