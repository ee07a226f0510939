import json

import numpy as np
import pytest

from srpo_core.config import EarlyStop
from srpo_core.training.betting import log_growth
from srpo_core.training.early_stop import Bets, Evaluation, alarm_outcome, alarm_reason, curve_of

RULE = EarlyStop(
    alpha=0.05,
    num_prompts=4,
    seeds_per_prompt=2,
    num_inference_steps=1,
    base_seeds=2,
    max_broken=0.1,
    limits={},
)
PLANNED = 4


def bets(name, share, *, images=32, limit=0.1):
    """Return the bets on images of which a share has the excess 1 - limit, the others -limit."""
    excess = (np.arange(images) < round(share * images)) - limit
    return Bets(name.partition(" ")[0], name, log_growth(excess, -limit).tolist(), share, limit)


def run(*shares, **others):
    """Return the evaluations of a run by the share of broken images at each checkpoint, and those of other limits."""
    return [
        Evaluation(
            10 * number,
            (bets("broken", share), *(bets(name, some[number - 1]) for name, some in others.items())),
        )
        for number, share in enumerate(shares, start=1)
    ]


def test_images_within_the_limits_do_not_end_the_run():
    assert alarm_reason(run(0.03, 0.1, 0.06, 0.0), RULE, PLANNED) is None


def test_many_broken_images_end_the_run_with_a_reason():
    assert alarm_reason(run(0.03), RULE, PLANNED) is None
    reason = alarm_reason(run(0.03, 0.5), RULE, PLANNED)
    assert reason.startswith(
        "by step 20 it is proven that the images are beyond the limit broken (mean 0.500, limit 0.100): evidence "
    )
    assert reason.endswith("at least 1/alpha = 20, so this is a false alarm in at most 5 % of runs")


def test_a_smaller_alpha_needs_more_evidence():
    evaluations = run(0.34)
    strict = RULE.model_copy(update={"alpha": 1e-4})
    assert alarm_reason(evaluations, RULE, PLANNED)
    assert alarm_reason(evaluations, strict, PLANNED) is None
    assert alarm_reason(run(0.34, 0.5, 0.5), strict, PLANNED)


def test_small_excesses_at_several_checkpoints_add_up():
    assert alarm_reason(run(0.22), RULE, PLANNED) is None
    assert alarm_reason(run(0.22, 0.22, 0.22, 0.22), RULE, PLANNED)


def test_a_limit_among_several_needs_its_share_of_alpha():
    """With ten limits the evidence against one counts a tenth, so that alpha holds for all of them together."""
    others = {f"limit{number}": [0.0, 0.0] for number in range(9)}
    (alone,) = curve_of(run(0.34), PLANNED).total
    (among,) = curve_of(run(0.34, **others), PLANNED).by_name["broken"]
    assert among == pytest.approx(alone / 10)
    assert alarm_reason(run(0.34), RULE, PLANNED)
    assert alarm_reason(run(0.34, **others), RULE, PLANNED) is None


def test_both_directions_of_a_limit_share_its_part():
    curve = curve_of(run(0.0, **{"hue too high": [0.3], "hue too low": [0.3]}), PLANNED)
    assert curve.by_name["hue too high"] == pytest.approx(curve.by_name["hue too low"])
    assert curve.total[0] == pytest.approx(sum(found[0] for found in curve.by_name.values()))


def test_a_limit_is_named_only_if_it_alone_is_proven_to_be_exceeded():
    both = run(0.25, 0.25, other=[0.25, 0.28], third=[0.25, 0.25])
    assert "beyond some limit, most likely other (mean 0.280" in alarm_reason(both, RULE, PLANNED)
    clear = run(0.5, other=[0.1])
    assert "beyond the limit broken (mean 0.500, limit 0.100):" in alarm_reason(clear, RULE, PLANNED)


def test_without_a_rule_or_an_evaluation_nothing_ends():
    assert alarm_reason(run(0.9), None, PLANNED) is None
    assert alarm_reason([], RULE, PLANNED) is None
    assert alarm_outcome(run(0.9), None, PLANNED) is None


def test_an_evaluation_that_was_written_and_read_gives_the_same_evidence_to_the_last_bit():
    before = run(0.13, 0.22, 0.31, **{"hue too low": [0.1, 0.0, 0.2]})
    after = [Evaluation.from_json(json.loads(json.dumps(one.to_json()))) for one in before]
    assert [one.to_json() for one in after] == [one.to_json() for one in before]
    assert curve_of(after, PLANNED).total.tobytes() == curve_of(before, PLANNED).total.tobytes()
    # a run that was killed between the second and the third checkpoint
    resumed = [*after[:2], before[2]]
    assert alarm_reason(resumed, RULE, PLANNED) == alarm_reason(before, RULE, PLANNED)


def test_the_outcome_has_the_evidence_of_every_checkpoint_and_its_threshold():
    outcome = alarm_outcome(run(0.03, 0.5), RULE, PLANNED)
    assert (outcome["threshold"], outcome["alpha"]) == (20, 0.05)
    assert [row["step"] for row in outcome["curve"]] == [10, 20]
    assert outcome["curve"][0]["evidence"] < 1
    assert outcome["curve"][1]["evidence"] > 20
    assert outcome["curve"][1]["evidence"] == outcome["curve"][1]["limits"]["broken"]
    assert outcome["figures"][1] == {"step": 20, "name": "broken", "mean": 0.5, "limit": 0.1}
    assert alarm_outcome([], RULE, PLANNED)["curve"] == []
