"""Stage quantize: write the weights of a release in every format, and verify each by a forward pass and by images."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from srpo_core import artifacts
from srpo_core.config import (
    ControlWords,
    FormatLimits,
    GenerateSettings,
    ModelSettings,
    QuantizeSettings,
    ResourceSettings,
    RewardSettings,
    ScorerSettings,
)
from srpo_core.data.subsets import evenly_spaced
from srpo_core.errors import GateError
from srpo_core.fidelity.format_images import (
    PROOF_PROMPTS,
    PURPOSE,
    REWARD,
    FormatImages,
    ImageProof,
    evaluated_images,
)
from srpo_core.fidelity.limits import broken_limits
from srpo_core.gates import require_passed
from srpo_core.generation.images import ImageSet
from srpo_core.models import load_base, load_transformer, require_release_formats
from srpo_core.models.base import Base
from srpo_core.models.embeddings import read_embeddings
from srpo_core.protocols import Condition
from srpo_core.quantizers import (
    LORA_FORMAT,
    REFERENCE,
    Format,
    WrittenFile,
    carry_lora,
    convert,
    num_weights,
    open_flux,
    read_directory,
    read_file,
    released_formats,
)
from srpo_core.quantizers.source import checkpoint_digest
from srpo_core.randomness import keyed_noise
from srpo_core.runtime.progress import progress_bar, with_progress
from srpo_core.runtime.ray_cluster import local_device
from srpo_core.scorers.metrics import MetricContext, check_metrics
from srpo_core.weights.adapters import adapters_file, merge_adapters
from srpo_core.weights.files import WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION = 2

# Adapters merged into the base, while the stage runs.
MERGED: Final = artifacts.QUANTIZED.parent / "merged"

# Stem of single files; a release renames them.
STEM: Final = "model"

# The forward pass of the proof is at timesteps evenly spaced over (0, 1].
PROOF_GUIDANCE: Final = 3.5
FIGURE_DIGITS: Final = 6

Velocity = Callable[[Mapping[str, "Tensor"]], "Tensor"]

log = getLogger(__name__)


def run(
    *,
    seed: int,
    model: ModelSettings,
    rewards: list[RewardSettings],
    judge: ScorerSettings,
    control_words: ControlWords,
    generate: GenerateSettings,
    quantize: QuantizeSettings,
    resources: ResourceSettings,
) -> None:
    """Write the selected checkpoint in every format of the settings, and the proof of each.

    Each file is reopened with a third-party reader. The proof is the relative output error ‖y_q − y_32‖ / ‖y_32‖ of
    one forward pass in float32, and images of test prompts from evaluate's noise: their distance to those of the
    reference format, how complete their denoising is, and how much of the gain over the base survives. A format
    that misses a limit is left out, and proof.json records why.

    Raises:
        GateError: the gate refused the model, or the reference format, which every release has, misses a limit.
        ArtifactError, DataError: a file of an earlier stage is missing or damaged.
        ConfigError: the base model has no release formats, a format or metric is unknown, the reference format is
            missing, or no GPU where the resources ask for one.
    """
    require_passed(artifacts.read_json(artifacts.DECISION))
    require_release_formats(model)
    formats = released_formats(quantize.formats)
    device = local_device(resources)
    source = artifacts.require(Path(artifacts.read_json(artifacts.SELECTION)["checkpoint"]))
    prompts, styles, condition = read_embeddings("test")
    evaluated = evaluated_images(quantize.num_prompts, quantize.gain, prompts)
    chosen = [prompts.index(prompt) for prompt in evaluated.prompts]
    image_set = ImageSet(
        PURPOSE, evaluated.prompts, [styles[row] for row in chosen], condition[chosen], 1, seed
    )
    context = MetricContext(rewards, judge, control_words, device=device)
    check_metrics([REWARD, quantize.gain], context, evaluated.prompts, 1)
    images = FormatImages(evaluated, image_set, generate, context, gain=quantize.gain)
    entries = {name: entry for name, (_, entry) in formats.items()}
    digest = checkpoint_digest(source)
    with _whole_weights(model, source) as weights:
        written = _write_formats(weights, entries)
        lora = _lora(model, source, weights)
        base = load_base(model).decode_in(generate.decode).place(device, offload=resources.offload)
        rows = evenly_spaced(range(len(prompts)), PROOF_PROMPTS)
        velocity = _forward_pass(base, condition.batch(rows, device), seed, device)
        # here and below weights are not bound to a name: no second copy stays in memory while the next one is read
        exact = velocity(load_transformer(model, weights).state_dict())
    proofs: dict[str, dict[str, Any]] = {}
    # the reference first: the images of the others are compared with its images
    for name in with_progress(sorted(formats, key=lambda name: name != REFERENCE), "measure format"):
        given, _ = formats[name]
        error = _output_error(written[name], velocity, exact)  # loads the format's weights into the base
        if generate.autocast and not resources.offload:
            base.hold_matrices(
                torch.bfloat16
            )  # as autocast computes; the next format's weights are read in float32
        figures = _Figures(written[name], digest, error, images.measure(base))
        proofs[name] = figures.as_proof(quantize.formats[given])
        _log_proof(name, proofs[name])
    proof_prompts = [prompts[row] for row in rows]
    _write_proof({name: proofs[name] for name in formats}, proof_prompts, quantize, lora)


@contextmanager
def _whole_weights(model: ModelSettings, source: Path) -> Iterator[Path]:
    """Yield the directory of a checkpoint's weights; adapters are merged into the base within the context.

    The merged weights are inside the stage's output, so that DVC removes them if the stage is killed.
    """
    adapters = adapters_file(source)
    if adapters is None:
        yield source
        return
    shutil.rmtree(MERGED, ignore_errors=True)
    try:
        merge_adapters(Path(model.path) / "transformer", adapters, MERGED)
        yield MERGED
    finally:
        shutil.rmtree(MERGED, ignore_errors=True)


def _write_formats(weights: Path, entries: Mapping[str, Format]) -> Mapping[str, Sequence[WrittenFile]]:
    checkpoint = open_flux(weights)
    with progress_bar("write formats", num_weights(checkpoint, entries)) as advance:
        return convert(checkpoint, entries, artifacts.QUANTIZED, stem=STEM, advance=advance)


def _lora(model: ModelSettings, source: Path, weights: Path) -> dict[str, Any] | None:
    """Copy the LoRA of the checkpoint beside the formats and describe it; None if there is none."""
    path = source / artifacts.LORA_FILE
    if not path.is_file():
        return None
    return carry_lora(
        path,
        open_flux(Path(model.path)),
        open_flux(weights),
        artifacts.QUANTIZED / LORA_FORMAT / artifacts.LORA_FILE,
    )


@dataclass(frozen=True)
class _Figures:
    """The measurements of a format; source_sha256: see `checkpoint_digest`."""

    files: Sequence[WrittenFile]
    source_sha256: str
    relative_error: float
    images: ImageProof

    def as_proof(self, limits: FormatLimits) -> dict[str, Any]:
        """Return the format's entry in proof.json, with the reasons for leaving it out, if any."""
        measured = {
            "relative_error": self.relative_error,
            "psnr": self.images.psnr,
            "completeness": self.images.completeness,
            "gain_kept": self.images.gain_kept,
        }
        # the first file is the single file; a directory holds the same values
        single = self.files[0].losses
        return {
            "files": {
                str(file.path.relative_to(artifacts.QUANTIZED)): {
                    "bytes": file.num_bytes,
                    "sha256": file.sha256,
                    "source_sha256": self.source_sha256,
                }
                for file in self.files
            },
            "limits": limits.model_dump(),
            "refused": broken_limits(measured, limits),
            "ssim": _figure(self.images.ssim),
            "reward_delta": _figure(self.images.reward_delta),
            "tensors": {
                name: [loss.dtype, _figure(loss.relative_error), _figure(loss.clipped), _figure(loss.zeroed)]
                for name, loss in single.items()
            },
            "meant": {name: loss.meant for name, loss in single.items() if loss.meant is not None},
        } | {name: _figure(value) for name, value in measured.items()}


def _output_error(files: Sequence[WrittenFile], velocity: Velocity, exact: "Tensor") -> float:
    """Return the largest relative output error of a format's files."""
    return max(float((velocity(_weights(file.path)) - exact).norm() / exact.norm()) for file in files)


def _weights(path: Path) -> Mapping[str, "Tensor"]:
    return read_directory(path.parent) if path.name == WEIGHTS else read_file(path)


def _forward_pass(base: Base, condition: Condition, seed: int, device: torch.device) -> Velocity:
    """Return a function from the transformer's weights to one velocity prediction (B, S, C) in float32."""
    count = len(condition)
    latents = keyed_noise((count, *base.latent_shape), seed, "quantize").to(device)
    timestep = (torch.arange(count, 0, -1) / count).to(device)

    @torch.no_grad()
    def velocity(weights: Mapping[str, "Tensor"]) -> "Tensor":
        base.hold_matrices(torch.float32).transformer.load_state_dict(weights)
        return base.velocity(latents, timestep, PROOF_GUIDANCE, condition)

    return velocity


def _write_proof(
    proofs: Mapping[str, Mapping[str, Any]],
    prompts: Sequence[str],
    quantize: QuantizeSettings,
    lora: Mapping[str, Any] | None,
) -> None:
    """Write proof.json and delete refused formats. Raises `GateError` if the reference is refused."""
    refused = {name: proof for name, proof in proofs.items() if proof["refused"]}
    for name in refused:
        shutil.rmtree(artifacts.QUANTIZED / name)
    proof = {
        "schema_version": SCHEMA_VERSION,
        "prompts": list(prompts),
        "images": len(prompts),
        "gain": quantize.gain,
        "formats": {name: proof for name, proof in proofs.items() if name not in refused},
        "refused": refused,
        "lora": lora,
    }
    artifacts.write_json(artifacts.PROOF, proof)
    if REFERENCE in refused:
        raise GateError(
            f"format {REFERENCE} is refused: {'; '.join(refused[REFERENCE]['refused'])}; without it there is no "
            f"release. Every figure is in {artifacts.PROOF}; the limits are quantize.formats.{REFERENCE}"
        )


def _log_proof(name: str, proof: Mapping[str, Any]) -> None:
    if proof["refused"]:
        log.warning("%s: left out: %s", name, "; ".join(proof["refused"]))
        return
    psnr = "" if proof["psnr"] is None else f", {proof['psnr']:.1f} dB to {REFERENCE}"
    kept = (
        ", the aligned model gains nothing on these images, so min_gain_kept is not checked"
        if proof["gain_kept"] is None
        else f", {proof['gain_kept']:.0%} of the gain"
    )
    log.info("%s: output error %.2g%s%s", name, proof["relative_error"], psnr, kept)


def _figure(value: float | None) -> float | None:
    """Round to `FIGURE_DIGITS` significant digits, which the number of threads does not change."""
    return None if value is None else float(f"{value:.{FIGURE_DIGITS}g}")
