import io
import json
from pathlib import Path

import pytest
import torch

TINY = Path(__file__).parents[2] / "assets/tiny"
SMALL_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
SMALL_PICK_SCORE = {
    "projection_dim": 16,
    "text_config": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "hidden_act": "gelu",
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
        "hidden_act": "gelu",
    },
}


@pytest.fixture(scope="session")
def small_config():
    return SMALL_CLIP


@pytest.fixture(scope="session")
def small_clip():
    """Return random CLIP towers in fp16, the precision of stored weights."""
    from open_clip import CLIP

    torch.manual_seed(0)
    return CLIP(**SMALL_CLIP).half()


@pytest.fixture(scope="session")
def small_pick_score():
    """Return a random CLIPModel of transformers."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(**SMALL_PICK_SCORE)).eval()


@pytest.fixture(scope="session")
def directories(tmp_path_factory, family, small_clip, small_config, small_pick_score):
    """Return, for each scorer, a directory that it can load."""
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("scorers")
    (root / "hps_v2").mkdir()
    (root / "hps_v2/small.json").write_text(json.dumps(small_config))
    save_file(small_clip.state_dict(), root / "hps_v2/hps.safetensors")
    small_pick_score.save_pretrained(root / "pick_score")
    return {
        "open_clip": family / "reward",
        "hps_v2": root / "hps_v2",
        "pick_score": root / "pick_score",
        "clip_score": root / "pick_score",
        "style_subject_judge": family / "judge_b",
        "timm_judge": family / "judge_a",
    }


@pytest.fixture
def refusal():
    """Return a function that gives the one-line error of `load(path)`."""
    from srpo_core.errors import ArtifactError

    def line(load, path):
        with pytest.raises(ArtifactError) as caught:
            load(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return line


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

    return load_style_subject_judge(family / "judge_b")


@pytest.fixture(scope="session")
def emoji():
    """Return real images (N, 3, 64, 64) in [0, 1] of the evaluation subjects, with their styles and names."""
    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    names = json.loads((TINY / "recipe/subjects.json").read_text())["eval"]
    rows = pq.read_table(TINY / "data/emoji4.parquet", filters=[("name", "in", names)]).to_pylist()
    arrays = [np.array(Image.open(io.BytesIO(row["image"])).convert("RGB")) for row in rows]
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
    return images, [row["style"] for row in rows], [row["name"] for row in rows]
