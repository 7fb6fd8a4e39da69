"""Projections that only training uses: of 1D latents onto structural ones, and of decoder features onto SigLIP's.

They stand beside the model, not in it: in the training state, never in released weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from onedva import losses
from onedva.config import OneDVAConfig
from onedva.decoder import Decoder
from onedva.encoder import EncoderOutput


class AlignmentHeads(nn.Module):
    """Turns what the model made into the self-alignment and REPA losses; trained beside it."""

    def __init__(self, config: OneDVAConfig, *, repa_channels: int | None = None) -> None:
        """repa_channels: of the features to align with (`Siglip.channels`); None leaves REPA out."""
        super().__init__()
        width = config.width
        self.latents = nn.Linear(config.latent_channels, config.structural_channels, bias=False)
        self.features = None
        if repa_channels is not None:
            self.features = nn.Sequential(
                nn.Linear(width, 2 * width),
                nn.SiLU(),
                nn.Linear(2 * width, 2 * width),
                nn.SiLU(),
                nn.Linear(2 * width, repa_channels),
            )

    def self_alignment(self, posterior: EncoderOutput, is_key: Tensor) -> Tensor:
        """`losses.self_alignment_loss` of the posterior's means, a scalar. Only for steps that send 1D latents."""
        latents = posterior.latents_mean
        return losses.self_alignment_loss(latents, self.latents(latents), posterior.structural_mean, is_key)

    def repa(self, middle: Tensor, features: Tensor, is_key: Tensor) -> Tensor:
        """`losses.repa_loss`, a scalar. middle (B, N, D) of the decoder, features (B, Tg, Hg, Wg, F) of the source."""
        if self.features is None:
            raise ValueError("these heads were made without repa_channels")
        return losses.repa_loss(self.features(middle), features, is_key)


@contextmanager
def middle_features(decoder: Decoder) -> Iterator[list[Tensor]]:
    """Yields a list whose first entry, after a forward pass, is what reaches the decoder's middle diffusion block.

    (B, N, D), differentiable. A hook, so that the decoder and its exported graphs need not know. It takes the block's
    input: that exists once, also where the block itself is computed again in the backward pass.
    """
    kept: list[Tensor] = []
    block = decoder.blocks[len(decoder.blocks) // 2]

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not kept:  # with conditioning="in_context" the same norm sees the 1D latents next
            kept.append(inputs[0].flatten(1, 2))  # (B, Tg, P, D) → (B, N, D)

    hook = block.attention_norm.register_forward_pre_hook(keep)  # type: ignore[union-attr, operator]
    try:
        yield kept
    finally:
        hook.remove()
