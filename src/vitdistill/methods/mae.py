"""MAE (He et al., CVPR 2022): masked modelling of an image's own pixels."""

from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.files import FULL
from vitdistill.methods.masked_modelling import Goal, MaskedModelling
from vitdistill.methods.targets.pixels import Pixels, patchify, unpatchify
from vitdistill.models.autoencoder import on_own_grid
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.build import warn_about_statistics
from vitdistill.models.decoder import Decoder, official_names
from vitdistill.models.families import as_network
from vitdistill.models.network import Network
from vitdistill.models.record import ModelRecord, set_statistics
from vitdistill.models.surgery.attention_heads import set_heads
from vitdistill.models.weights.folder import record_beside
from vitdistill.models.weights.read import adapt, decoder_part, load_into, read_weights, to_timm
from vitdistill.tokens.gather import restore, take
from vitdistill.tokens.masking import Masking

GOAL = "pixels"


class MAE(MaskedModelling):
    """Mean squared error between predicted and true pixels of the masked patches."""

    def __init__(
        self,
        student: Network | nn.Module,
        *,
        mask_ratio: float = 0.75,
        norm_pix: bool = True,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        decoder_mlp_ratio: float = 4.0,
    ) -> None:
        """
        Args:
            student: the encoder.
            mask_ratio: share of the patches that the encoder does not see, between 0 and 1.
            norm_pix: predict each patch standardised by its own mean and deviation.
            decoder_width: channels of the decoder.
            decoder_depth: blocks of the decoder.
            decoder_heads: attention heads of the decoder.
            decoder_mlp_ratio: hidden channels of the decoder's MLPs, as a multiple of its width.

        Raises:
            UserError: when sizes or the ratio are impossible, or the student's patches cannot be left out.
        """
        encoder = with_tokens(as_network(student))
        goal = pixel_goal(encoder, norm_pix, decoder_width, decoder_depth, decoder_heads, decoder_mlp_ratio)
        super().__init__(encoder, {GOAL: goal}, masking=Masking(mask_ratio))

    @property
    def decoder(self) -> Decoder:
        decoder = self.decoders[GOAL]
        assert isinstance(decoder, Decoder)
        return decoder

    def load_full(self, path: str | Path) -> None:
        """Begin with the encoder and decoder of a full MAE file, and what it or its run says of the encoder.

        Raises:
            UserError: when the file is encoder-only, or of other sizes.
        """
        record = ModelRecord.of_file(Path(path)) or record_beside(Path(path))
        weights = to_timm(read_weights(path), self.student.net, path)
        decoder = decoder_part(weights)
        self.decoder.load_official(on_own_grid(decoder, self.decoder, self.student, record))
        if record is None:
            warn_about_statistics(self.student.name, Path(path), self.student.net)
        recorded = None if record is None else record.args
        load_into(self.student.net, adapt(weights, self.student.net, recorded, path), str(path))
        if record is not None:
            everywhere = record.args.get("num_heads")
            set_heads(self.student, {} if everywhere is None else dict.fromkeys(range(self.student.depth), everywhere))
            set_heads(self.student, record.heads)
            set_statistics(self.student.net, record.mean, record.std)

    def artifacts(self, state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Encoder and decoder under the names of MAE's release."""
        start = f"decoders.{GOAL}."
        decoder = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
        encoder = {k.removeprefix("student.net."): v for k, v in state.items() if k.startswith("student.net.")}
        return {FULL: {**encoder, **official_names(decoder)}}

    def reconstruct(
        self, images: Float[Tensor, "b ch height width"], kept: Int[Tensor, "b k"], masked: Int[Tensor, "b r"]
    ) -> Float[Tensor, "b ch height width"]:
        """The images with their masked patches predicted, normalised as they came.

        Under `norm_pix` each predicted patch is given the true patch's mean and deviation, which the method does not
        predict (as in MAE's own pictures).
        """
        target = self.targets[GOAL]
        assert isinstance(target, Pixels)
        everything = patchify(target.covered(images), target.grid)
        tokens = self.student(images, keep=kept).final
        assert tokens is not None
        predicted = self.decoder(tokens.all, kept, masked).to(everything.dtype)
        if target.normalise:
            true = take(everything, masked)
            predicted = predicted * (true.var(-1, keepdim=True) + 1e-6).sqrt() + true.mean(-1, keepdim=True)
        result = images.float().clone()
        target.covered(result).copy_(unpatchify(restore(predicted, masked, everything), target.grid, target.patch))
        return result


def pixel_goal(
    student: Backbone,
    norm_pix: bool,
    width: int,
    depth: int,
    heads: int,
    mlp_ratio: float = 4.0,
    weight: float = 1.0,
    drop_path: float = 0.0,
) -> Goal:
    """Pixels of the student's patches with a decoder of their own.

    Raises:
        UserError: when its patches overlap.
    """
    grid = student.grid
    spec = student.input
    if spec.patch is None:
        raise UserError("Pixels are predicted of patches that do not overlap", student.name, "Choose a ViT over images")
    target = Pixels(grid, spec.patch[1:], normalise=norm_pix, colours=spec.shape[0])
    decoder = Decoder(
        grid,
        student.final_specials,
        student.width,
        target.channels,
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=mlp_ratio,
        drop_path=drop_path,
    )
    return Goal(target, decoder, weight)
