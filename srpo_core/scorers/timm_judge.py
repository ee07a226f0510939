"""A judge whose features come from a network of timm, with one head for styles and one for subjects."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from srpo_core.scorers.packages import require_package
from srpo_core.scorers.preprocessing import fit, normalize
from srpo_core.scorers.weights import damaged, load_strictly, read_config, read_safetensors

CENTRE: Final = (0.5, 0.5, 0.5)  # maps [0, 1] to [-1, 1], as mean and as deviation


class TimmJudge(nn.Module):
    """A `Judge` on a network of timm.

    The names `f`, `a`, `b` are those of its weights: features, style head, subject head.
    """

    def __init__(
        self,
        model: str,
        model_args: Mapping[str, Any],
        styles: Sequence[str],
        subjects: Sequence[str],
        image_size: int,
    ) -> None:
        import timm

        super().__init__()
        self.styles = tuple(styles)
        self.subjects = tuple(subjects)
        self.image_size = image_size
        self.f: Any = timm.create_model(model, pretrained=False, num_classes=0, **model_args)
        self.a = nn.Linear(self.f.num_features, len(self.styles))
        self.b = nn.Sequential(nn.Dropout(), nn.Linear(self.f.num_features, len(self.subjects)))
        self.requires_grad_(requires_grad=False).eval()

    def features(self, images: Tensor) -> Tensor:
        """Pooled features (B, D) of images (B, 3, H, W) in [0, 1]."""
        features: Tensor = self.f(normalize(fit(images.float(), self.image_size), CENTRE, CENTRE))
        return features

    def style_probabilities(self, images: Tensor) -> Tensor:
        """Probabilities (B, len(styles)); each row sums to 1."""
        logits: Tensor = self.a(self.features(images))
        return logits.softmax(-1)

    def subject_logits(self, images: Tensor) -> Tensor:
        """Logits (B, len(subjects))."""
        logits: Tensor = self.b(self.features(images))
        return logits


def load_timm_judge(path: Path) -> TimmJudge:
    """Load a judge from a directory with config.json and judge.safetensors (fp16, computed in fp32).

    Raises:
        ArtifactError: a file is missing, damaged or of another architecture.
        ConfigError: the package timm is not installed.
    """
    require_package("timm", f"the scorer in {path}")
    config_path, weights = path / "config.json", path / "judge.safetensors"
    config = read_config(config_path)
    try:
        judge = TimmJudge(
            config["model"],
            config["model_args"],
            config["styles"],
            config["names"],
            int(config["image_size"]),
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise damaged(config_path, f"not a configuration of a timm judge: {error!r}") from None
    load_strictly(judge, read_safetensors(weights), weights)
    return judge
