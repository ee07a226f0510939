"""The judge of the tiny family: a small CNN with one head for styles and one for subjects."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from srpo_core.scorers.preprocessing import fit, normalize
from srpo_core.scorers.weights import damaged, load_strictly, read_config, read_safetensors

GROUPS: Final = 8
CENTRE: Final = (0.5, 0.5, 0.5)  # maps [0, 1] to [-1, 1], as mean and as deviation


class StyleSubjectJudge(nn.Module):
    """A `Judge` that no training ever sees; architecture as in assets/tiny/README.md.

    The names `f`, `a`, `b` are those of its weights: features, style head, subject head.
    """

    def __init__(
        self, channels: Sequence[int], styles: Sequence[str], subjects: Sequence[str], image_size: int
    ) -> None:
        super().__init__()
        self.styles = tuple(styles)
        self.subjects = tuple(subjects)
        self.image_size = image_size
        layers = _stage(3, channels[0], kernel=4, stride=2)
        width = channels[0]
        for index, wider in enumerate(channels):
            layers += _stage(width, wider, kernel=3, stride=1 if index == 0 else 2)
            layers += _stage(wider, wider, kernel=3, stride=1)
            width = wider
        self.f = nn.Sequential(*layers)
        self.a = nn.Linear(width, len(self.styles))
        self.b = nn.Sequential(nn.Dropout(), nn.Linear(width, len(self.subjects)))
        self.requires_grad_(requires_grad=False).eval()

    def features(self, images: Tensor) -> Tensor:
        """Features (B, D) of images (B, 3, H, W) in [0, 1]: spatial mean plus spatial maximum."""
        pixels = normalize(fit(images.float(), self.image_size), CENTRE, CENTRE)
        maps: Tensor = self.f(pixels)
        return maps.mean((2, 3)) + maps.amax((2, 3))

    def style_probabilities(self, images: Tensor) -> Tensor:
        """Probabilities (B, len(styles)); each row sums to 1."""
        logits: Tensor = self.a(self.features(images))
        return logits.softmax(-1)

    def subject_logits(self, images: Tensor) -> Tensor:
        """Logits (B, len(subjects))."""
        logits: Tensor = self.b(self.features(images))
        return logits


def load_style_subject_judge(path: Path) -> StyleSubjectJudge:
    """Load a judge from a directory with config.json and judge.safetensors (fp16, computed in fp32).

    Raises:
        ArtifactError: a file is missing, damaged or of another architecture.
    """
    config_path, weights = path / "config.json", path / "judge.safetensors"
    config = read_config(config_path)
    try:
        judge = StyleSubjectJudge(
            config["channels"], config["styles"], config["names"], int(config["image_size"])
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise damaged(config_path, f"not a configuration of the judge: {error!r}") from None
    load_strictly(judge, read_safetensors(weights), weights)
    return judge


def _stage(width: int, wider: int, *, kernel: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(width, wider, kernel, stride, padding=1), nn.GroupNorm(GROUPS, wider), nn.GELU()]
