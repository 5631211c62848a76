"""Classes by name: those of the data beside those of a network."""

import torch

from tiny import tiny
from vitdistill.models.build import build
from vitdistill.models.record import record_of
from vitdistill.tasks.class_names import ClassNames


def test_a_fresh_network_is_called_as_its_outputs_are_read() -> None:
    network = build(tiny("yolos"))
    digits = [str((number + 1) % network.num_classes) for number in range(network.num_classes)]  # 1, 2, ..., 0
    names = ClassNames(digits, "boxes")
    names.match(network)
    own = names.of_network(network)
    assert sorted(own) == sorted(digits)
    prediction = torch.arange(network.num_classes + 5.0).expand(1, 1, -1)
    read = names.ordered(network, prediction)[0, 0, : network.num_classes].long().tolist()
    assert [own[place] for place in read] == digits, "place by place, what an output is read as is what it is called"
    record_of(network.net).classes = own
    again = ClassNames(digits, "boxes")
    again.match(network)
    assert torch.equal(again.ordered(network, prediction), names.ordered(network, prediction))
