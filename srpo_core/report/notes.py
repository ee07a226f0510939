"""What the measured figures mean, in words for the page."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

METRIC_NOTES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "reward": "how well the image fits its prompt, by the model that was trained against",
        "relative_reward": "how much better it fits the prompt with the wanted words than with the unwanted ones",
        "judge_wanted": "probability of the wanted style, by a judge that was never trained against",
        "judge_top1": "share of images in which the judge's first guess is the subject of the prompt",
        "judge_top5": "share of images in which the subject is among the judge's first five guesses",
        "diversity": "how much the images of one prompt differ from seed to seed",
        "judge_score": "how well the image fits its prompt, by a judge that was never trained against",
        "judge_sgp": "by that judge, how much better it fits the prompt with the wanted words",
        "alignment": "how well the image fits its prompt, by a model of another family than reward and judge",
        "alignment_sgp": "by that model, how much better it fits the prompt with the wanted words",
        "kid": "distance from real images (in the wanted style, if the judge knows styles); 0 is none",
        "saturation": "how strong the colours are, from grey 0 to 1",
        "red_over_green": "cast of the colours towards red (above 0) or green",
        "yellow_over_blue": "cast of the colours towards yellow (above 0) or blue",
        "clipped_highlights": "share of pixels that are pure white",
        "high_frequency_energy": "share of fine structure, down to single pixels",
        "grid_energy": "share of edges that repeat every 16 pixels, as patches may leave them",
        "loss": "what the optimizer lowers",
        "grad_norm": "length of the gradient before it is clipped",
        "reward_denoise": "relative reward of the denoise branch",
        "reward_inversion": "relative reward of the inversion branch",
    }
)
