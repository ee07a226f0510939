"""The pictures of data/emoji4.parquet as tensors."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

PARQUET: Final = Path("../data/emoji4.parquet")
SUBJECTS: Final = Path("subjects.json")
STYLES: Final = ("3D", "Flat", "Ink", "Noto")


@dataclass(frozen=True)
class Pictures:
    """Pictures (N, 3, 64, 64) uint8 with the subject and the style (index into STYLES) of each."""

    pixels: Tensor
    subjects: Sequence[str]
    styles: Tensor

    def __len__(self) -> int:
        return len(self.subjects)

    def of(self, names: Sequence[str]) -> "Pictures":
        """The pictures of some subjects, in the order of `names` and styles."""
        place = {(s, int(y)): row for row, (s, y) in enumerate(zip(self.subjects, self.styles, strict=True))}
        rows = [place[name, style] for name in names for style in range(len(STYLES))]
        return Pictures(self.pixels[rows], [self.subjects[row] for row in rows], self.styles[rows])


def read_pictures(*splits: str) -> Pictures:
    """All pictures of the splits train, eval or novel."""
    import pyarrow.parquet as pq
    from PIL import Image

    rows = [row for row in pq.read_table(PARQUET).to_pylist() if row["split"] in splits]
    decoded = [np.array(Image.open(io.BytesIO(row["image"])).convert("RGB")) for row in rows]
    pixels = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous()
    styles = torch.tensor([STYLES.index(row["style"]) for row in rows])
    return Pictures(pixels, [row["name"] for row in rows], styles)


def read_subjects() -> dict[str, list[str]]:
    """The subjects that the base draws: `train` for alignment, `eval` for evaluation."""
    content: dict[str, Any] = json.loads(SUBJECTS.read_text(encoding="utf-8"))
    return {"train": content["train"], "eval": content["eval"]}


def to_float(pixels: Tensor) -> Tensor:
    """Bytes to [0, 1]."""
    return pixels.float() / 255


def shifted(images: Tensor, generator: torch.Generator, reach: int) -> Tensor:
    """Move each picture by up to `reach` pixels; what comes in is the nearest border."""
    padded = functional.pad(images, (reach,) * 4, mode="replicate")
    size = images.shape[-1]
    moves = torch.randint(0, 2 * reach + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([p[:, y : y + size, x : x + size] for p, (y, x) in zip(padded, moves, strict=True)])


def flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the pictures."""
    which = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(which[:, None, None, None], images.flip(-1), images)


def warped(images: Tensor, generator: torch.Generator, *, scale: float, turn: float, move: float) -> Tensor:
    """Scale by 1 ± scale, turn by ± turn radians and move by ± move of half a side, white outside."""
    n = len(images)
    draw = torch.rand(n, 4, generator=generator) * 2 - 1
    size, angle = 1 + scale * draw[:, 0], turn * draw[:, 1]
    cos, sin = angle.cos() / size, angle.sin() / size
    matrix = torch.stack([cos, -sin, move * draw[:, 2], sin, cos, move * draw[:, 3]], 1).reshape(n, 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return 1 + functional.grid_sample(images - 1, grid, align_corners=False)


def blurred(images: Tensor, generator: torch.Generator, *, share: float) -> Tensor:
    """Halve and double the resolution of some pictures: a decoder's pictures are softer than real ones."""
    soft = functional.interpolate(functional.avg_pool2d(images, 2), scale_factor=2, mode="bilinear")
    which = torch.rand(len(images), generator=generator) < share
    strength = torch.rand(len(images), 1, 1, 1, generator=generator)
    return torch.where(which[:, None, None, None], images.lerp(soft, strength), images)


def tinted(images: Tensor, generator: torch.Generator, *, strength: float) -> Tensor:
    """Change brightness, contrast and each channel's gain by up to ± strength; stays in [0, 1]."""
    gain = 1 + strength * (torch.rand(len(images), 3, 1, 1, generator=generator) * 2 - 1)
    contrast = 1 + strength * (torch.rand(len(images), 1, 1, 1, generator=generator) * 2 - 1)
    return ((1 - (1 - images) * contrast) * gain).clamp(0, 1)


def noisy(images: Tensor, generator: torch.Generator, *, strength: float) -> Tensor:
    """Add normal noise whose deviation is drawn from 0 to `strength` for each picture."""
    level = strength * torch.rand(len(images), 1, 1, 1, generator=generator)
    return images + level * torch.randn(images.shape, generator=generator)


def augmented(images: Tensor, generator: torch.Generator, augment: Mapping[str, float]) -> Tensor:
    """What a drawn picture may differ in from a real one; each model sees other strengths."""
    images = warped(
        flipped(images, generator),
        generator,
        scale=augment["scale"],
        turn=augment["turn"],
        move=augment["move"],
    )
    images = tinted(blurred(images, generator, share=augment["blur"]), generator, strength=augment["tint"])
    return noisy(images, generator, strength=augment["noise"])
