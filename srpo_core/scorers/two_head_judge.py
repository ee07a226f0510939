"""The common part of the judges: a feature network with one head for styles and one for subjects."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from torch import Tensor, nn

from srpo_core.scorers.entry import ScorerFiles
from srpo_core.scorers.preprocessing import fit, normalize
from srpo_core.scorers.weights import damaged, load_strictly, read_config, read_safetensors

CENTRE: Final = (0.5, 0.5, 0.5)  # mean and deviation that map [0, 1] to [-1, 1]


class TwoHeadJudge(nn.Module):
    """A frozen `Judge`: a feature network and two linear heads.

    Its weights are stored under the names `f` (feature network), `a` (style head) and `b` (subject head).
    """

    def __init__(
        self, network: nn.Module, width: int, styles: Sequence[str], subjects: Sequence[str], image_size: int
    ) -> None:
        """width: of the pooled features; image_size: side in pixels that images are resized to."""
        super().__init__()
        self.styles = tuple(styles)
        self.subjects = tuple(subjects)
        self.image_size = image_size
        self.f = network
        self.a = nn.Linear(width, len(self.styles))
        self.b = nn.Sequential(nn.Dropout(), nn.Linear(width, len(self.subjects)))
        self.requires_grad_(requires_grad=False).eval()

    def pool(self, outputs: Tensor) -> Tensor:
        """Pool the outputs of the feature network into (B, D); by default they are pooled already."""
        return outputs

    def features(self, images: Tensor) -> Tensor:
        """Compute pooled features (B, D) of images (B, 3, H, W) in [0, 1]."""
        return self.pool(self.f(normalize(fit(images.float(), self.image_size), CENTRE, CENTRE)))

    def style_probabilities(self, images: Tensor) -> Tensor:
        """Compute probabilities (B, len(styles)); each row sums to 1."""
        logits: Tensor = self.a(self.features(images))
        return logits.softmax(-1)

    def subject_logits(self, images: Tensor) -> Tensor:
        """Compute logits (B, len(subjects))."""
        logits: Tensor = self.b(self.features(images))
        return logits


J = TypeVar("J", bound=TwoHeadJudge)


def judge_files(path: Path) -> ScorerFiles:
    """Return the files of a judge in its directory."""
    return ScorerFiles(path / "config.json", path / "judge.safetensors")


def load_two_head_judge(path: Path, kind: str, make: Callable[[Mapping[str, Any]], J]) -> J:
    """Load a judge from config.json and judge.safetensors (fp16 on disk, fp32 in memory).

    kind: what errors call it; make: makes the judge, with random weights, from the configuration.

    Raises:
        ArtifactError: a file is missing, damaged or of another architecture.
    """
    config_path, weights = judge_files(path)
    assert config_path is not None
    config = read_config(config_path)
    try:
        judge = make(config)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise damaged(config_path, f"not a configuration of a {kind}: {error!r}") from None
    load_strictly(judge, read_safetensors(weights), weights)
    return judge
