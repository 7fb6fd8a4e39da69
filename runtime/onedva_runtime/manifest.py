"""`Manifest`: what a bundle's manifest.json says, as typed, read-only data; `manifest_parsing` reads and checks it.

Keys that this version does not use are kept in `raw` only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "GeneratorSpec",
    "GoldenCase",
    "GraphSpec",
    "Manifest",
    "StaticGraphs",
    "TensorSpec",
]

SCHEMA_VERSION = 3  # 1 placed each latent on a patch of its own, 2 by the sum of texture and motion
FEW_STEPS = frozenset({"begin", "step", "finish"})  # graphs that a bundle has all or none of


@dataclass(frozen=True)
class ModelSpec:
    fingerprint: str
    """sha256 of model.safetensors, hex: the identity that packets carry."""
    preset: str
    """Name of the model's configuration."""
    parameters: int
    """Number of parameters."""
    prediction: Literal["video", "velocity"]
    """What the network predicts; the velocity graph returns velocity for both."""
    conditioning: Literal["stem", "in_context"]
    """How the latents reach the diffusion blocks."""
    preview: bool
    """Whether `condition` gives a preview, that is whether num_steps=0 is allowed."""
    anchors: Literal["content", "fixed"]
    """Where the 1D latents sit: placed by the detail map, or in a fixed sequence."""
    structural_channels: int
    """Zs."""
    latent_channels: int
    """Z."""
    patch: tuple[int, ...]
    """(frames, height, width) of one grid position."""


@dataclass(frozen=True)
class Preprocessing:
    layout: Literal["THWC"]
    """Axes of a clip."""
    dtype: Literal["uint8"]
    """Element type of a clip."""
    range: tuple[int, ...]
    """Lowest and highest value."""
    colour: Literal["RGB"]
    """Meaning of the channels."""
    multiple: int
    """Height and width are padded to multiples of this."""
    padding: Literal["edge"]
    """How they are padded."""


@dataclass(frozen=True)
class ClipSpec:
    frames: int
    """Longest clip."""
    frame_rule: Literal["1+4n"]
    """Clip lengths that the graphs accept."""
    max_video_positions: int
    """Largest Tg·Hg·Wg: it bounds the memory of attention."""


@dataclass(frozen=True)
class Lengths:
    max_tokens: int
    """Longest latent sequence exported."""
    trained_tokens: int
    """Longest latent sequence seen in training."""
    length_multiple: int
    """Lengths are multiples of this."""


@dataclass(frozen=True)
class Policy:
    kind: Literal["detail"]
    """How tokens="auto" is decided."""
    density: float
    """Calibration of the policy on training data."""


@dataclass(frozen=True)
class Schedule:
    kind: Literal["linear"]
    """Spacing of the timesteps from 1 to 0."""
    min_t: float
    """No time in (0, min_t) is evaluated."""


@dataclass(frozen=True)
class SamplerSpec:
    kind: Literal["euler"]
    """The integrator."""
    schedule: Schedule
    """Its timesteps."""
    default_steps: int
    """num_steps where the user gives none."""
    max_steps: int
    """Largest num_steps."""


@dataclass(frozen=True)
class NoiseSpec:
    algorithm: Literal["philox4x32-10/table65536"]
    """How the starting noise is drawn."""
    version: Literal[1]
    """Version of that algorithm."""


@dataclass(frozen=True)
class TensorSpec:
    name: str
    """Name in the graph."""
    dtype: str
    """ONNX element type in NumPy's words: uint8, int64, float32, bool."""
    shape: tuple[int | str, ...]
    """Sizes, or symbols such as "B"."""


@dataclass(frozen=True)
class GraphSpec:
    file: str
    """File name in the bundle."""
    opset: int
    """Version of the standard operator set."""
    ir_version: int
    """ONNX IR version."""
    inputs: tuple[TensorSpec, ...]
    """Looked up by name."""
    outputs: tuple[TensorSpec, ...]
    """Looked up by name."""


@dataclass(frozen=True)
class StaticGraphs:
    """Graphs of one clip size for TensorRT: only batch and latent length are open in them."""

    frames: int
    """Frames of a clip, 1 + 4n."""
    height: int
    """Pixels, a multiple of 16."""
    width: int
    """Pixels, a multiple of 16."""
    dtype: Literal["fp32", "fp16", "bf16"]
    """What the products of the decoder's graphs compute in; the encoder's is float32 in all."""
    graphs: dict[str, GraphSpec]
    """As `Manifest.graphs`, the same names."""
    parity: dict[str, object] = field(default_factory=dict[str, object])
    """How close they came to PyTorch."""

    @property
    def size(self) -> str:
        """Clip size in words: frames×height×width."""
        return f"{self.frames}×{self.height}×{self.width}"


@dataclass(frozen=True)
class FileSpec:
    bytes: int
    """Size of the file."""
    sha256: str
    """Its hash, hex."""


@dataclass(frozen=True)
class GoldenCase:
    name: str
    """How reports call the case."""
    tensors: dict[str, str]
    """Role (frames, anchors, structural, latents, predicted_error, decoded) → tensor name in the golden file, no batch
    axis."""
    fps: float = 24.0
    """Frames per second of the clip."""
    num_steps: int = 1
    """Steps of the decode."""
    seed: int = 0
    """Seed of the decode."""


@dataclass(frozen=True)
class GoldenSpec:
    file: str
    """File name in the bundle."""
    cases: tuple[GoldenCase, ...]
    """Smallest first."""
    min_psnr_db: float
    """A decode agrees when it is at least this close to the golden one."""


@dataclass(frozen=True)
class GeneratorSpec:
    """The latent diffusion model of a bundle that has one."""

    weights: str
    """File of its weights, in the bundle."""
    parameters: int
    """Number of its parameters."""
    classes: tuple[str, ...]
    """Names of the classes, by label; the label after the last means none."""
    frames: int
    """Of the clips it makes, 1 + 4n."""
    fps: float
    """Frames per second of most clips it was trained on."""
    sizes: tuple[tuple[int, ...], ...]
    """(height, width) of the clips it was trained on, in pixels."""
    max_tokens: int
    """Most 1D latents."""
    length_multiple: int
    """Lengths are multiples of this."""
    anchors: Literal["fixed", "generated"]
    """Whether all clips share the places of their 1D latents, or each has generated ones."""
    layered: bool
    """Whether an anchor's t names a layer of its column; it decides which places clips share."""
    continuation: bool
    """Whether it goes on from a first frame."""
    text_tokens: int
    """Embeddings of one text; 0 for a model without."""
    text_channels: int
    """Of each embedding."""


@dataclass(frozen=True)
class Manifest:
    """manifest.json of a bundle; `raw` is the whole of it as read."""

    name: str
    """Versioned name, such as tiny-v1."""
    model: ModelSpec
    preprocessing: Preprocessing
    clip: ClipSpec
    lengths: Lengths
    placement: Literal["columns"]
    """What an anchor (t, y, x) names: layer t of the grid column (y, x)."""
    policy: Policy
    sampler: SamplerSpec
    noise: NoiseSpec
    graphs: dict[str, GraphSpec]
    files: dict[str, FileSpec]
    """Every file of the bundle but manifest.json."""
    golden: GoldenSpec
    tools: dict[str, str]
    """Versions of what made the bundle."""
    tolerances: dict[str, float]
    """Largest absolute difference from the golden tensors, by role."""
    parity: dict[str, object]
    """Report of the export's own check against PyTorch."""
    tensorrt: tuple[StaticGraphs, ...] = ()
    """Graphs that engines are built from, where the export made any."""
    generator: GeneratorSpec | None = None
    """What generates latents, where the bundle has the graph `generator`."""
    raw: dict[str, object] = field(default_factory=dict[str, object])

    @property
    def max_tokens(self) -> int:
        """Longest latent sequence to use: no more than was exported, and than was trained."""
        return min(self.lengths.max_tokens, self.lengths.trained_tokens)

    @property
    def has_few_steps(self) -> bool:
        """Whether several steps can be taken in coefficients."""
        return self.graphs.keys() >= FEW_STEPS

    @property
    def first_graphs(self) -> list[str]:
        """What every encode and one-step decode needs; the other graphs have special uses."""
        return ["encoder", "one_step"] if "one_step" in self.graphs else ["encoder", "condition", "velocity"]

    @property
    def stepping_values(self) -> list[str]:
        """What the condition graph gives the velocity graph for every step."""
        return [value.name for value in self.graphs["velocity"].inputs if value.name not in ("noisy_video", "t")]

    def weights_of(self, graph: str) -> str:
        """The file that a graph's external data lies in."""
        return self.generator.weights if graph == "generator" and self.generator is not None else "model.safetensors"
