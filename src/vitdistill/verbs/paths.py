"""Paths among the options of a verb, made absolute: a run's record then holds wherever it is read."""

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from vitdistill.data.actions.files import ActionFiles
from vitdistill.data.boxes.files import BoxFiles
from vitdistill.data.open import BUNDLED as BUNDLED_DATA
from vitdistill.data.segments.files import SegmentFiles
from vitdistill.files import absolute, check_path
from vitdistill.models.names import absolute_model, check_model
from vitdistill.verbs.signatures import options_of


def absolute_paths(verb: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that name a file or a folder, with an absolute path; names of models and data stay as they are.

    Args:
        verb: whose options they are.
        values: of its options.
    """
    found: dict[str, Any] = {}
    for name, option in options_of(verb).items():
        value = values[name]
        if isinstance(value, ActionFiles | BoxFiles | SegmentFiles):
            found[name] = _absolute_files(value)
        elif not isinstance(value, str):
            continue
        elif check_model in option.checks:
            found[name] = absolute_model(value)
        elif check_path in option.checks or (name == "data" and _is_path(value)):
            found[name] = absolute(value)
    return found


def _is_path(data: str) -> bool:
    return data not in BUNDLED_DATA and os.path.exists(os.path.expanduser(data))


def _absolute_files(files: ActionFiles | BoxFiles | SegmentFiles) -> ActionFiles | BoxFiles | SegmentFiles:
    """The group with each of its files absolute; a word in place of one, such as `none`, stays."""
    given = {each.name: getattr(files, each.name) for each in fields(files)}
    texts = {name: value for name, value in given.items() if isinstance(value, str)}
    paths: dict[str, Any] = {
        name: absolute(text) for name, text in texts.items() if os.path.exists(os.path.expanduser(text))
    }
    return replace(files, **paths)
