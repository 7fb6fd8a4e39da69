"""The graphs of a bundle as torch modules, with tensors alone as inputs and outputs."""

from __future__ import annotations

from torch import Tensor, nn

from onedva.decoder import Condition
from onedva.few_steps import begin, finish, first_patches, step, to_packed_frames
from onedva.model import OneDVA
from onedva.one_step import one_step
from onedva.patches import patchify_rows, rows_of


class EncoderGraph(nn.Module):
    """frames uint8 (B, T, H, W, 3) … → structural, latents, predicted_error (means only)."""

    def __init__(self, model: OneDVA) -> None:
        super().__init__()
        self.encoder, self.transform = model.encoder, model.transform

    def forward(self, frames: Tensor, resolution: Tensor, is_key: Tensor, anchors: Tensor) -> tuple[Tensor, ...]:
        patches = patchify_rows(rows_of(frames)) if self.transform is None else self.transform.cut_frames(frames)
        output = self.encoder.encode_patches(patches, resolution, is_key, anchors, self.transform)
        return output.structural_mean, output.latents_mean, output.predicted_error


class DecoderGraph(nn.Module):
    """What the graphs of the decoder share. Each spells its inputs out: the exporter takes their names from there."""

    def __init__(self, model: OneDVA) -> None:
        super().__init__()
        self.decoder, self.transform = model.decoder, model.transform

    def condition(self, *latents: Tensor) -> Condition:
        """structural, latents, anchors, has_latents, resolution and is_key, as `Decoder.condition` takes them."""
        return self.decoder.condition(*latents, transform=self.transform)


class ConditionGraph(DecoderGraph):
    """Latents → context, keys_values, preview: once per clip."""

    def forward(
        self,
        structural: Tensor,
        latents: Tensor,
        anchors: Tensor,
        has_latents: Tensor,
        resolution: Tensor,
        is_key: Tensor,
    ) -> tuple[Tensor, ...]:
        return tuple(self.condition(structural, latents, anchors, has_latents, resolution, is_key))


class VelocityGraph(DecoderGraph):
    """noisy video at t → velocity: once per step."""

    def forward(self, noisy_video: Tensor, t: Tensor, context: Tensor, keys_values: Tensor, preview: Tensor) -> Tensor:
        return self.decoder.velocity(noisy_video, t, Condition(context, keys_values, preview), self.transform)


class OneStepGraph(DecoderGraph):
    """Latents → frames uint8 (B, T, H, W, 3) by one step: what condition, noise and velocity give, in one go."""

    def forward(
        self,
        structural: Tensor,
        latents: Tensor,
        anchors: Tensor,
        has_latents: Tensor,
        resolution: Tensor,
        is_key: Tensor,
        context_frame: Tensor,
    ) -> Tensor:
        assert self.transform is not None
        condition = self.condition(structural, latents, anchors, has_latents, resolution, is_key)
        return one_step(self.decoder, condition, is_key, context_frame, self.transform)


class BeginGraph(DecoderGraph):
    """Latents and noise → the state that steps in coefficients begin from, and what they need of the latents."""

    def forward(
        self,
        structural: Tensor,
        latents: Tensor,
        anchors: Tensor,
        has_latents: Tensor,
        resolution: Tensor,
        is_key: Tensor,
        context_frame: Tensor,
        noise: Tensor,
    ) -> tuple[Tensor, ...]:
        assert self.transform is not None
        condition = self.condition(structural, latents, anchors, has_latents, resolution, is_key)
        given = first_patches(self.transform.cut_frames(context_frame[:, None]))
        state = begin(condition, noise, is_key, given, self.decoder, self.transform)
        return state.reshape(*structural.shape[:4], -1), condition.context, condition.keys_values


class StepGraph(DecoderGraph):
    """The state at t → its velocity: once per step but the last."""

    def forward(self, state: Tensor, t: Tensor, context: Tensor, keys_values: Tensor) -> Tensor:
        assert self.transform is not None
        condition = Condition(context, keys_values, context.new_zeros(0))  # steps have no use for a preview
        return step(state.flatten(2, 3), t, condition, self.decoder, self.transform).reshape(state.shape)


class FinishGraph(DecoderGraph):
    """The state at t, by a last step → frames uint8 (B, T, H, W, 3)."""

    def forward(
        self, state: Tensor, t: Tensor, context: Tensor, keys_values: Tensor, is_key: Tensor, context_frame: Tensor
    ) -> Tensor:
        assert self.transform is not None
        condition = Condition(context, keys_values, context.new_zeros(0))
        patches = finish(state.flatten(2, 3), t, condition, self.decoder, self.transform)
        return to_packed_frames(*patches, is_key, context_frame, self.decoder, self.transform)
