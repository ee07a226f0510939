"""Comparing a run with a release: same bytes, figures within bounds on another machine, or what differs."""

import copy
from dataclasses import replace

import pytest

from srpo_core.release.reproduction import Results, compare

RULE = {"name": "style_gained", "value": 0.2, "low": 0.1, "high": 0.3, "verdict": "holds"}
RELEASED = Results(
    outs={"runs/train": "a", "runs/quantize": "b"},
    files={"tiny-q8_0.gguf": "1", "decision.json": "2"},
    decision={"verdict": "passed", "reason": "all rules hold.", "rules": [RULE]},
    proof={"formats": {"q8_0": {"relative_error": 0.01, "psnr": 30.0}}},
    kind={"python": "3.11", "processor": "one", "gpus": [], "libraries": {"torch": "2"}},
)
OTHER_BYTES = replace(RELEASED, outs={"runs/train": "c", "runs/quantize": "b"})
OTHER_MACHINE = replace(OTHER_BYTES, kind=RELEASED.kind | {"processor": "two"})


def with_rule(**changes):
    decision = copy.deepcopy(RELEASED.decision)
    decision["rules"][0] |= changes
    return replace(OTHER_MACHINE, decision=decision)


def with_format(**changes):
    return replace(OTHER_MACHINE, proof={"formats": {"q8_0": RELEASED.proof["formats"]["q8_0"] | changes}})


def test_equal_outputs_and_files_are_the_same_bytes_on_any_machine():
    found = compare(RELEASED, replace(RELEASED, kind={"processor": "two"}), deterministic=True)
    assert (found.outcome, found.other_bytes) == ("same bytes", ())
    assert found.reason == "2 outputs of the stages and 2 files of the release"


def test_other_bytes_with_the_same_figures_are_within_bounds_only_on_another_kind_of_machine():
    found = compare(RELEASED, OTHER_MACHINE, deterministic=True)
    assert (found.outcome, found.other_bytes) == ("within bounds", ("runs/train",))
    assert found.reason == "all 3 figures agree; another processor"
    found = compare(RELEASED, OTHER_BYTES, deterministic=True)
    assert found.outcome == "different"
    assert "this machine is of the same kind" in found.reason
    assert compare(RELEASED, OTHER_BYTES, deterministic=False).outcome == "within bounds"


@pytest.mark.parametrize("again", [with_rule(value=0.29), with_format(relative_error=0.0109, psnr=27.1)])
def test_figures_inside_their_bounds_agree(again):
    assert compare(RELEASED, again, deterministic=True).outcome == "within bounds"


@pytest.mark.parametrize(
    ("again", "first"),
    [
        (with_rule(value=0.31), "style_gained"),
        (with_rule(verdict="warns"), "style_gained"),
        (with_rule(value=None), "style_gained"),
        (with_rule(name="another"), "style_gained"),
        (with_format(relative_error=0.0112), "q8_0 output error"),
        (with_format(psnr=26.9), "q8_0 PSNR"),
        (replace(OTHER_MACHINE, proof={"formats": {}}), "q8_0 output error"),
        (replace(OTHER_MACHINE, proof=None), "q8_0 output error"),
    ],
)
def test_a_figure_out_of_its_bounds_is_a_difference_and_named(again, first):
    found = compare(RELEASED, again, deterministic=True)
    assert found.outcome == "different"
    assert found.reason.endswith(f"first {first}")
    assert next(figure.name for figure in found.figures if not figure.agrees) == first


def test_another_verdict_is_a_difference_whatever_the_figures():
    refused = RELEASED.decision | {"verdict": "refused", "reason": "the subject is lost."}
    found = compare(RELEASED, replace(OTHER_MACHINE, decision=refused), deterministic=True)
    assert found.outcome == "different"
    assert found.reason == "the release says passed, this run refused: the subject is lost."


def test_a_file_of_the_release_that_no_stage_made_is_a_difference_on_any_machine():
    again = replace(OTHER_MACHINE, outs=RELEASED.outs, files={"decision.json": "2"})
    found = compare(RELEASED, again, deterministic=True)
    assert (found.outcome, found.other_bytes) == ("different", ("tiny-q8_0.gguf",))
    assert "its tiny-q8_0.gguf is another file" in found.reason
