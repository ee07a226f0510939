"""The published weights on one fixed image. The marker is `network`, since the weights (gigabytes) must be fetched.

    srpo fetch --profile flux1_dev
    pytest -m network -s tests/scorers/test_published_weights.py

These commands print the figures of the table in docs/gates.md. They have not been run yet.
"""

from pathlib import Path

import pytest
import torch

from srpo_core.config import ScorerSettings
from srpo_core.scorers import SCORERS, load_reward
from srpo_core.weights.models_lock import missing_files, read_lock

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = {
    "models/hps_v2_1": "hps_v2",
    "models/pick_score": "pick_score",
    "models/clip_vit_l_14": "clip_score",
    "models/clip_vit_h_14": "open_clip",
}
SHOWN, OTHER = "red apple", "owl"


@pytest.fixture
def apple(emoji):
    """Return the image of a red apple in the style 3D, (1, 3, 64, 64) in [0, 1]; the scorer resizes it."""
    images, styles, names = emoji
    [row] = [row for row, found in enumerate(zip(names, styles, strict=True)) if found == (SHOWN, "3D")]
    return images[row : row + 1]


def scores(settings, image):
    """Return the scores of an image for its subject and for another."""
    scorer = load_reward(settings)
    with torch.no_grad():
        return (scorer.scale * scorer.encode_images(image) @ scorer.encode_texts([SHOWN, OTHER]).T)[
            0
        ].tolist()


@pytest.mark.network
@pytest.mark.parametrize("directory", PUBLISHED)
def test_published_weights_load_strictly_and_rank_the_shown_subject_above_another(
    directory, apple, monkeypatch
):
    monkeypatch.chdir(ROOT)  # models.lock is here; the files are checked against its digests
    missing = missing_files(directory, read_lock()[directory])
    assert not missing, f"{directory} lacks {', '.join(missing)}: run 'srpo fetch --profile flux1_dev' first"
    shown, other = scores(ScorerSettings(scorer=PUBLISHED[directory], path=directory), apple)
    print(f"\n{directory}: {SHOWN} {shown:.4f}, {OTHER} {other:.4f}")
    low, high = SCORERS[PUBLISHED[directory]].range
    assert low <= other < shown <= high


def test_every_scorer_in_the_lock_is_checked_here_and_has_a_row_in_the_docs():
    scoring = {name for name in read_lock(ROOT / "models.lock") if name != "models/flux1_dev"}
    assert scoring == PUBLISHED.keys()
    table = (ROOT / "docs/gates.md").read_text()
    assert all(f"| `{directory}` |" in table for directory in PUBLISHED)


def test_the_same_check_passes_with_the_tiny_reward(apple, directories):
    settings = ScorerSettings(scorer="open_clip", path=str(directories["open_clip"]))
    shown, other = scores(settings, apple)
    assert -1 <= other < shown <= 1
