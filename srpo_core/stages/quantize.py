"""Stage quantize: the files of a release, each proven by a forward pass."""

from collections.abc import Callable, Mapping
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from srpo_core import artifacts
from srpo_core.algorithm.noise import keyed_noise
from srpo_core.config import ModelSettings, QuantizeSettings
from srpo_core.errors import GateError
from srpo_core.gates import require_passed
from srpo_core.models import load_base, load_transformer
from srpo_core.models.embeddings import read_embeddings
from srpo_core.protocols import BaseModel, Condition
from srpo_core.quantizers import WEIGHTS, chosen_quantizers

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION = 1

# The forward pass of the proof: so many test prompts, at timesteps spread evenly over (0, 1].
PROOF_PROMPTS: Final = 8
PROOF_GUIDANCE: Final = 3.5
FIGURE_DIGITS: Final = 6

log = getLogger(__name__)


def run(*, seed: int, model: ModelSettings, quantize: QuantizeSettings) -> None:
    """Write the selected checkpoint in every format of the settings, and the proof of each.

    The proof is the relative output error ‖y_q − y_32‖ / ‖y_32‖ of one forward pass in float32, with
    the written file opened again. It is written before a format is refused, so that it can be read.

    Raises:
        GateError: the gate refused the model, or a format's error is above its limit.
        ArtifactError: a file of an earlier stage is missing or damaged.
        ConfigError: a format is unknown.
    """
    require_passed(artifacts.read_json(artifacts.DECISION))
    formats = chosen_quantizers(quantize.formats)
    source = artifacts.require(Path(artifacts.read_json(artifacts.SELECTION)["checkpoint"]))
    prompts, _, condition = read_embeddings("test")
    velocity = _forward_pass(load_base(model), condition[:PROOF_PROMPTS], seed)
    exact = velocity(load_transformer(model, source).state_dict())
    figures = {}
    for name, (given, quantizer) in formats.items():
        target = artifacts.QUANTIZED / name
        loss = quantizer.write(source, target)
        rounded = velocity(quantizer.read(target))
        figures[name] = {
            "file": f"{name}/{WEIGHTS}",
            "sha256": artifacts.sha256(target / WEIGHTS),
            "bytes": (target / WEIGHTS).stat().st_size,
            "relative_error": _figure(float((rounded - exact).norm() / exact.norm())),
            "max_relative_error": quantize.formats[given].max_relative_error,
            "clipped": _figure(loss.clipped),
            "zeroed": _figure(loss.zeroed),
        }
        log.info("%s: relative output error %s", name, figures[name]["relative_error"])
    proof = {"schema_version": SCHEMA_VERSION, "prompts": prompts[:PROOF_PROMPTS], "formats": figures}
    artifacts.write_json(artifacts.PROOF, proof)
    _require_exact_enough(figures)


def _forward_pass(
    base: BaseModel, condition: Condition, seed: int
) -> Callable[[Mapping[str, "Tensor"]], "Tensor"]:
    """One velocity prediction (B, S, C) in float32, as a function of the transformer's weights."""
    import torch

    count = len(condition.pooled)
    latents = keyed_noise((count, *base.latent_shape), seed, "quantize")
    timestep = torch.arange(count, 0, -1) / count

    @torch.no_grad()
    def velocity(weights: Mapping[str, "Tensor"]) -> "Tensor":
        base.transformer.load_state_dict(weights)  # casts what is stored in fewer bits to float32
        return base.velocity(latents, timestep, PROOF_GUIDANCE, condition)

    return velocity


def _figure(value: float) -> float:
    """The value to so many digits that threads and their sums do not change it."""
    return float(f"{value:.{FIGURE_DIGITS}g}")


def _require_exact_enough(figures: Mapping[str, Mapping[str, Any]]) -> None:
    for name, figure in figures.items():
        error, limit = figure["relative_error"], figure["max_relative_error"]
        if not error <= limit:  # a NaN is refused as well
            raise GateError(
                f"format {name} is refused: its relative output error {error} is above "
                f"quantize.formats.{name}.max_relative_error {limit}; leave the format out or raise the limit"
            )
