import pytest
import torch

from srpo_core.scorers.clip_score import load_clip_score

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
TEXTS = ["a red apple", "two cats on a mat", "Ink. dog"]


class Towers(torch.nn.Module):
    """A CLIPModel of transformers whose features are plain tensors, as torchmetrics expects."""

    def __init__(self, clip):
        super().__init__()
        self.clip, self.config = clip, clip.config

    def get_image_features(self, pixels):
        return self.clip.get_image_features(pixels).pooler_output

    def get_text_features(self, tokens, mask):
        return self.clip.get_text_features(tokens, mask).pooler_output


def processor(text=None, images=None, **_):
    """Process short texts, and images of the right size, like CLIP's processor."""
    from open_clip import SimpleTokenizer

    if images is not None:
        return {"pixel_values": torch.stack([(image - MEAN) / STD for image in images])}
    tokens = SimpleTokenizer(context_length=16)(text)
    mask = (tokens != 0).long()
    return {"input_ids": tokens.masked_fill(mask == 0, 49407), "attention_mask": mask}


def test_scores_equal_those_of_torchmetrics(tmp_path, small_pick_score):
    from torchmetrics.functional.multimodal.clip_score import _clip_score_update

    small_pick_score.save_pretrained(tmp_path)
    scorer = load_clip_score(tmp_path)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs, count = _clip_score_update(list(images), TEXTS, Towers(small_pick_score), processor)
    ours = (scorer.scale * scorer.encode_images(images) @ scorer.encode_texts(TEXTS).T).diagonal()
    assert count == 3
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-4)
    assert theirs.std() > 0.1


def test_a_perfect_match_scores_100(tmp_path, small_pick_score):
    small_pick_score.save_pretrained(tmp_path)
    scorer = load_clip_score(tmp_path)
    text = scorer.encode_texts(["cat"])
    assert float(scorer.scale * text @ text.T) == pytest.approx(100, abs=1e-3)
