"""What data a run was started on, and whether what it is resumed on is the same."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitdistill.errors import UserError

if TYPE_CHECKING:
    from vitdistill.data.source import DataSource

SHOWN = 3  # how many names a message shows


def describe_data(source: "DataSource") -> dict[str, Any]:
    """What run.json says of the data: sizes, class names, and digests of which samples there are.

    Digests go by names below the data's folder, so they are the same wherever it lies.
    """
    return {
        "name": source.name,
        "train_images": len(source.train),
        "val_images": len(source.val),
        "classes": len(source.classes),
        "class_names": list(source.classes),
        "digest": {"train": source.train.digest(), "val": source.val.digest()},
    }


def check_same_data(before: Mapping[str, Any], now: Mapping[str, Any], word: str = "image") -> None:
    """Refuse to go on with other data than a run was started on.

    Runs of earlier versions recorded less, of which only what is there is compared.

    Args:
        before: what `describe_data` said at the start.
        now: what it says now.
        word: what a sample is called.

    Raises:
        UserError: naming what changed.
    """
    if found := changes(before, now, word):
        raise UserError(
            "A run must go on with the data that it was started on",
            "; ".join(found),
            "Restore the data, or start a new run in another --out",
        )


def changes(before: Mapping[str, Any], now: Mapping[str, Any], word: str = "image") -> list[str]:
    """What of the data changed, in words; arguments as of `check_same_data`.

    Example:
        >>> changes({"train_images": 48}, {"train_images": 64})
        ['64 images to train on, after 48']
    """
    found = _renamed(before.get("class_names") or [], now["class_names"])
    if not found and before.get("classes") not in (None, now.get("classes")):
        found.append(f"{now['classes']} classes, after {before['classes']}")
    for split, purpose in (("train", "train"), ("val", "validate")):
        old, new = before.get(f"{split}_images"), now.get(f"{split}_images")
        digests = [(side.get("digest") or {}).get(split) for side in (before, now)]
        if old not in (None, new):
            found.append(f"{new} {word}s to {purpose} on, after {old}")
        elif None not in digests and digests[0] != digests[1] and not found:
            found.append(f"as many {word}s to {purpose} on, but others: names, classes, boxes or their order differ")
    return found


def _renamed(old: list[str], new: list[str]) -> list[str]:
    """Which classes have other names or places now; nothing where the old ones are not known."""
    gone, come = ([name for name in ours if name not in set(others)] for ours, others in ((old, new), (new, old)))
    if not old or old == new:
        return []
    if not gone and not come:
        return [f"the same classes in another order ({_some(new)}, after {_some(old)})"]
    if len(gone) == len(come) == 1:
        return [f"class {gone[0]!r} is {come[0]!r} now"]
    parts = ((gone, "gone"), (come, "new"))
    return [f"class{'es' if len(names) > 1 else ''} {_some(names)} {what}" for names, what in parts if names]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more
