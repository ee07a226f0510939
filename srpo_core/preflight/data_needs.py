"""Check that the format of the data has what the settings ask of it, before a run starts."""

from srpo_core.config import REAL_SOURCES, Settings
from srpo_core.data.sources import SOURCES, refuse_elsewhere, source_format
from srpo_core.errors import ConfigError
from srpo_core.scorers.metrics import METRICS


def require_data(settings: Settings) -> None:
    """Check the format of the data, its columns, and that it has the pairs and images that the run uses.

    Raises:
        DataError: the source is a URL or an id of the hub.
        ConfigError: the format is unknown, or lacks what a setting needs. The message names both keys.
    """
    name = settings.ingest.format
    chosen = source_format(name)
    chosen.check_columns(settings.ingest.columns)
    refuse_elsewhere(settings.ingest.source)
    with_pairs = ", ".join(key for key, one in SOURCES.items() if one.has_pairs)
    with_images = ", ".join(key for key, one in SOURCES.items() if one.has_images)
    if not chosen.has_pairs and settings.check_reward.max_pairs is not None:
        raise ConfigError(
            f"ingest.format {name} has no pairs of images that people compared, which check_reward needs: set "
            f"check_reward.max_pairs to null, so that no agreement with people is measured, or use data with pairs ({with_pairs})"
        )
    if chosen.has_pairs and settings.check_reward.max_pairs is None:
        raise ConfigError(
            f"check_reward.max_pairs is null, but ingest.format {name} has pairs of images that people compared: give the number "
            "of pairs that the reward is checked with, for example --set check_reward.max_pairs=400"
        )
    if not chosen.has_images and settings.train.rollout.source in REAL_SOURCES:
        raise ConfigError(
            f"ingest.format {name} has no images, and train.rollout.source {settings.train.rollout.source} starts from real "
            f"ones: set it to online or cached, or use data with images ({with_images})"
        )
    for metric in settings.evaluate.metrics:
        if not chosen.has_images and metric in METRICS and METRICS[metric].needs_real_images:
            raise ConfigError(
                f"ingest.format {name} has no images, and evaluate.metrics has {metric}, which compares with real ones: drop "
                f"it and the rules of gate.rules that use it, or use data with images ({with_images})"
            )
