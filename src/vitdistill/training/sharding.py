"""Which weights of a method are gathered together where processes share them out."""

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from vitdistill.methods.method import Method
from vitdistill.models.backbone import Backbone


def shard(method: Method, mesh: DeviceMesh) -> None:
    """Replace a method's parameters by this process's shares (torch's `fully_shard`, FSDP2), for any training loop.

    A block's weights are gathered when its turn comes in the forward and backward pass, and released after it.

    Args:
        method: on the device that it will be trained on; its teachers stay whole.
        mesh: the processes, in one dimension.

    Example:
        >>> shard(method, init_device_mesh("cuda", (torch.distributed.get_world_size(),)))
        >>> optimizer = torch.optim.AdamW(method.parameters())
    """
    student = method.student
    if isinstance(student, Backbone) and student.blocks_apart:
        # Where the inside of a block is read, gradients may come from there alone, which does not gather it anew.
        passes = [one.capture for one in method.passes(0.0) if one.role == "student"]
        read = {student.block_index(block) for one in passes for block, point in one.points if point != "output"}
        for index, block in enumerate(student.blocks):
            fully_shard(block, mesh=mesh, reshard_after_forward=index not in read)
    # By itself, since validation calls it without the method. What is around the blocks stays until the backward pass:
    # saliency and terms look at it behind the student's forward pass.
    fully_shard(student, mesh=mesh, reshard_after_forward=False)
    fully_shard(method, mesh=mesh, reshard_after_forward=False)
