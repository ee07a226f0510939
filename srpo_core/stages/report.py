"""Stage report: one page that shows what was gained and what was lost, whatever the gate decided."""

from logging import getLogger

from srpo_core import artifacts
from srpo_core.config import (
    CheckRewardSettings,
    ControlWords,
    EvaluateSettings,
    GateSettings,
    GenerateSettings,
    IngestSettings,
    ModelSettings,
    QuantizeSettings,
    ReportSettings,
    RewardSettings,
    ScorerSettings,
    SelectSettings,
    TrainSettings,
)
from srpo_core.gates.pairs import pair_up
from srpo_core.gates.people import first_automatic
from srpo_core.report.curves import training_panels
from srpo_core.report.grid import choose_tiles, draw_grid
from srpo_core.report.inputs import data_version, nearest_preset
from srpo_core.report.page import Evidence, find_extremes, render_page
from srpo_core.scorers.metrics import metric_notes

log = getLogger(__name__)


def run(  # noqa: PLR0913  # the parts of the settings that DVC tracks: those that the page compares with a preset
    *,
    seed: int,
    model: ModelSettings,
    rewards: list[RewardSettings],
    select_judge: ScorerSettings,
    judge: ScorerSettings,
    control_words: ControlWords,
    generate: GenerateSettings,
    ingest: IngestSettings,
    check_reward: CheckRewardSettings,
    train: TrainSettings,
    select: SelectSettings,
    evaluate: EvaluateSettings,
    gate: GateSettings,
    report: ReportSettings,
    quantize: QuantizeSettings,
) -> None:
    """Write the page and the grid of images before and after.

    Raises:
        ArtifactError: an output of an earlier stage is missing or damaged.
        ConfigError: a preset in profiles/ cannot be used.
    """
    preset, differences = nearest_preset(dict(locals()))
    pairs = pair_up(artifacts.read_table(artifacts.FIGURES), artifacts.FIGURES)
    decision = artifacts.read_json(artifacts.DECISION)
    evidence = Evidence(
        control_words=control_words,
        decision=decision,
        selection=artifacts.read_json(artifacts.SELECTION),
        agreement=artifacts.read_json(artifacts.AGREEMENT),
        summary=artifacts.read_json(artifacts.EVALUATION_SUMMARY),
        training=training_panels(artifacts.TRAIN_LOG),
        outcome=artifacts.read_json(artifacts.TRAIN_OUTCOME),
        pairs=pairs,
        tiles=choose_tiles(pairs, artifacts.EVALUATION, report.grid_prompts),
        extremes=find_extremes(pairs, artifacts.EVALUATION, first_automatic(decision)),
        data=data_version(),
        records=artifacts.read_json(artifacts.VALIDATION)["records"],
        preset=preset,
        differences=differences,
        metric_notes=metric_notes(evaluate.scorers),
    )
    with artifacts.replacing(artifacts.REPORT) as partial:
        partial.write_text(render_page(evidence), encoding="utf-8")
    with artifacts.replacing(artifacts.GRID) as partial:
        draw_grid(evidence.tiles, partial)
    log.info("%s: %s", artifacts.REPORT, evidence.decision["verdict"])
