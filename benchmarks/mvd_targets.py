"""How much of what MVD's bundled teachers are imitated for is the same everywhere.

    python benchmarks/mvd_targets.py              # some seconds; prints

Of the second moment of each teacher's targets, the share of that of their mean. A target that is nearly a constant
vector is nearly learned by a bias, whatever its teacher knows. `benchmarks/results/moving_digits_mvd.md` names them.
"""

from typing import Any

import torch

from vitdistill.data.clips.sampling import Sampling
from vitdistill.data.clips.transforms import eval_transform
from vitdistill.data.open import open_source
from vitdistill.methods.mvd import MVD
from vitdistill.models.build import build
from vitdistill.studies.mvd import DECODER, IMAGE, STUDENT, VIDEO


def constant_shares(clips: int = 128) -> dict[str, float]:
    """The share of each teacher."""
    videos: Any = open_source("moving_digits").val
    student: Any = build(STUDENT)
    names = {**IMAGE, **VIDEO}
    teachers = {name: build(names[name], pretrained=True) for name in ("image_teacher", "video_teacher")}
    method = MVD(student, **teachers, normalise=True, decoder=DECODER)
    transform = eval_transform(student.input.size[0], Sampling(frames=student.input.frames, stride=1))
    seen = torch.stack([transform(videos.load(index)[0]) for index in range(clips)]).float() / 255
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (student.input.mean, student.input.std))
    shares = {}
    with torch.inference_mode():
        kept, masked = method.masking.draw(clips, student.grid)  # teachers see whole clips, so any mask will do
        for name, target in method.targets.items():
            values = target.values((seen - mean) / std, kept, masked)
            shares[name] = (values.mean((0, 1)).square().mean() / values.square().mean()).item()
    return shares


if __name__ == "__main__":
    for teacher, share in constant_shares().items():
        print(f"{teacher}: {share:.0%}")
