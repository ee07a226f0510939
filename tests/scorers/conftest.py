import io
from pathlib import Path

import pytest
import torch

TINY = Path(__file__).parents[2] / "assets/tiny"
SMALL_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def small_config():
    return SMALL_CLIP


@pytest.fixture(scope="session")
def small_clip():
    """Random towers in fp16, as weights are stored."""
    from open_clip import CLIP

    torch.manual_seed(0)
    return CLIP(**SMALL_CLIP).half()


@pytest.fixture(scope="session")
def family():
    return TINY / "family"


@pytest.fixture(scope="session")
def reward(family):
    from srpo_core.scorers.open_clip import load_open_clip

    return load_open_clip(family / "reward")


@pytest.fixture(scope="session")
def judge(family):
    from srpo_core.scorers.judge import load_style_subject_judge

    return load_style_subject_judge(family / "judge")


@pytest.fixture(scope="session")
def emoji(judge):
    """Real pictures (N, 3, 64, 64) in [0, 1] with their styles and names: the judge's subjects, held out."""
    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(TINY / "data/emoji4.parquet", filters=[("split", "=", "eval")])
    rows = [row for row in table.to_pylist() if row["name"] in judge.subjects]
    arrays = [np.array(Image.open(io.BytesIO(row["image"])).convert("RGB")) for row in rows]
    pictures = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
    return pictures, [row["style"] for row in rows], [row["name"] for row in rows]
