"""The literal step must equal the reference: it is compared with the golden vectors, without this project's code."""

import math

import pytest
import torch
from golden.make_seed import figures, watched
from golden_vectors import SUBSET, Golden, frequencies_rounded_from_float64
from step_spec import StepSpec

STATES = {"noisy": "noisy", "pred": "pred", "recovered_packed": "recovered", "image": "image"}
CASES = ("hps.mid5", "hps.mid100", "hps.mid901", "ga4.mid100", "saturated.mid500", "vis_step40.mid500")


@pytest.fixture(scope="module")
def golden():
    return Golden(SUBSET)


@pytest.fixture(autouse=True)
def restore_anomaly_mode():
    yield
    torch.autograd.set_detect_anomaly(False)


def spec_of(golden, name):
    """Run the step of a case with the reference's models."""
    from open_clip import CLIP

    case, config = golden.cases[name], golden.json["configs"]["hps_open_clip"]
    args = case["args"] | {
        "sampling_steps": len(case["rollout_timestep_ints"]),
        "train_guidence": case["rollout_guidance"],
        "gradient_accumulation_steps": len(case["branches"]),
    }
    if case["visualization_step"]:
        args |= {"h": args["vis_size"], "w": args["vis_size"]}
    base, clip = golden.case_base(name), CLIP(**config)
    clip.load_state_dict(golden.state("model.hps."))
    rows = slice(case["caption_index"], case["caption_index"] + 1)
    return StepSpec(
        args=args,
        caption=golden.json["captions"][case["caption_index"]],
        mid_timestep=case["mid_timestep"],
        optimizer={"lr": 1e-3, "weight_decay": 0.0, "betas": (0.9, 0.999), "eps": 1e-8, "max_grad_norm": 0.1},
        image_size=config["vision_cfg"]["image_size"],
        context_length=config["text_cfg"]["context_length"],
        flux=base.transformer,
        vae=base.vae,
        clip=clip.eval(),
        prompt_embeds=golden["input.encoder_hidden_states"][rows],
        pooled=golden["input.pooled_prompt_embeds"][rows],
    )


def relative_error(ours, theirs):
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.mark.parametrize("name", CASES)
def test_the_literal_step_equals_the_reference_step(golden, name):
    case, spec = golden.cases[name], spec_of(golden, name)
    step, seen = watched(spec)
    step.update = lambda: None
    with frequencies_rounded_from_float64():
        step.run(case["step"], golden[f"{case['rollout']}.noise_bf16"], case["mid_timestep"])
    assert relative_error(seen.start[0], golden[f"{case['rollout']}.latent_start"]) < 1e-5
    for index, branch in enumerate(case["branches"]):
        at = seen.branches[index]
        assert ([at.positive], [at.negative]) == (branch["prompt"], branch["neg_prompt"])
        assert at.discount == pytest.approx(branch["k"], abs=1e-7)
        for ours, theirs in ((ours, f"{name}.b{index}.{state}") for state, ours in STATES.items()):
            if theirs in golden:
                assert relative_error(getattr(seen, ours)[index], golden[theirs]) < 1e-5, theirs
        assert seen.rewards[index] == pytest.approx(branch["reward"], rel=1e-6, abs=1e-6)
        assert step.branch_losses[index] == pytest.approx(branch["loss"], rel=1e-6, abs=1e-6)
        total = branch["cumulative_grad_total_norm"]
        for parameter, theirs in branch["cumulative_grad"].items():
            ours, slack = figures(seen.gradients[index][parameter]), 1e-5 * max(theirs["norm"], 1e-3 * total)
            assert abs(ours["norm"] - theirs["norm"]) <= slack, parameter
            size = math.sqrt(seen.gradients[index][parameter].numel())
            assert abs(ours["probe"] - theirs["probe"]) <= slack * size, parameter
