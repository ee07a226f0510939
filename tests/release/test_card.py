"""The model card of a full-size model: code for diffusers, files for ComfyUI, header for hubs."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from python_blocks import python_blocks, unbound_names

from srpo_core.config import load_settings
from srpo_core.quantizers import QUANTIZERS
from srpo_core.release.card import model_card
from srpo_core.weights.files import WEIGHTS

ROOT = Path(__file__).resolve().parents[2]
FIGURES = {"relative_error": 0.01, "psnr": 31.0, "ssim": 0.97, "completeness": 1.0, "gain_kept": 0.95}
DECISION = {"verdict": "passed", "reason": "every rule holds.", "rules": []}
RULE = {"meaning": "it gains", "value": 0.3, "side": "at_least", "margin": 0.1, "verdict": "holds"}
FULL_SIZE = {"num_attention_heads": 24, "attention_head_dim": 128}
NARROW = {"num_attention_heads": 4, "attention_head_dim": 32}


@pytest.fixture
def settings():
    return load_settings(ROOT / "profiles/flux1_dev.yaml")


def proof_of(names, **changes):
    """Return a proof as stage quantize writes it, for formats with these names."""
    formats = {}
    for name in names:
        files = [f"{name}/model-{name}.{QUANTIZERS[name].container}"]
        files += [f"{name}/{WEIGHTS}"] if QUANTIZERS[name].directory else []
        formats[name] = FIGURES | {"files": {file: {"bytes": 24e9} for file in files}}
    return {
        "formats": formats,
        "refused": {},
        "lora": None,
        "prompts": ["a red fox"],
        "images": 16,
        "gain": "relative_reward",
    } | changes


def card(settings, names, config=FULL_SIZE, **changes):
    decision = DECISION | {"rules": [RULE | {"metric": name} for name in ("reward", "kid", "reward")]}
    return model_card(
        "flux1-dev-srpo-0",
        settings,
        pipeline="FluxPipeline",
        decision=decision,
        proof=proof_of(names, **changes),
        config=config,
    )


def test_the_card_shows_how_well_scores_predicted_people(settings):
    score = {"agreement": 0.75, "low": 0.6, "high": 0.86, "pairs": 24, "correlation": None}
    people = {"tasks": [], "predicted": {"base": {"judge_wanted": score}}}
    text = model_card(
        "v1",
        settings,
        pipeline="FluxPipeline",
        decision=DECISION | {"people": people},
        proof=proof_of(["bf16"]),
        config=FULL_SIZE,
    )
    assert "| judge\\_wanted | base |" in text or "| judge_wanted | base |" in text
    assert "75.0 % (60.0 … 86.0) | 24 | none |" in text
    assert "agrees with people" not in card(settings, ["bf16"])


def single_file_calls(text):
    """The calls of from_single_file in the card's Python: (file, names of the other arguments)."""
    nodes = [
        node
        for tree in map(ast.parse, python_blocks(text))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]
    return [
        (ast.literal_eval(node.args[0]), {keyword.arg for keyword in node.keywords})
        for node in nodes
        if getattr(node.func, "attr", "") == "from_single_file"
    ]


def test_the_code_for_diffusers_loads_the_single_file_and_the_quantized_gguf(settings):
    (plain, options), (gguf, more) = single_file_calls(card(settings, settings.quantize.formats))
    assert plain == "flux1-dev-srpo-bf16.safetensors"
    assert gguf == "flux1-dev-srpo-q8_0.gguf"
    assert more - options == {"quantization_config"}


def test_the_code_for_diffusers_never_loads_a_scaled_file_or_a_directory(settings):
    calls = single_file_calls(card(settings, ["fp8_e4m3fn_scaled", "gguf_bf16", "q4_0", "bf16"]))
    assert [file for file, _ in calls] == ["flux1-dev-srpo-bf16.safetensors", "flux1-dev-srpo-q4_0.gguf"]


def test_a_card_without_a_gguf_file_does_not_mention_gguf(settings):
    text = card(settings, ["bf16", "fp8_e4m3fn"])
    assert len(single_file_calls(text)) == 1
    assert "gguf" not in text.lower()


def test_every_code_block_of_the_card_imports_the_names_it_uses(settings):
    blocks = python_blocks(card(settings, settings.quantize.formats))
    assert len(blocks) > 1
    assert [unbound_names(block) for block in blocks] == [set()] * len(blocks)


def test_a_model_of_another_width_gets_no_code_for_single_files(settings):
    text = card(settings, settings.quantize.formats, config=NARROW)
    assert single_file_calls(text) == []
    assert "This model is 128 wide, so diffusers loads only\nits directories" in text
    assert "ComfyUI supports only attention heads that are 128 wide. This model's are 32 wide" in text
    assert "models/diffusion_models" not in text


def test_a_full_size_model_has_instructions_for_comfyui(settings):
    text = card(settings, settings.quantize.formats)
    assert "put `flux1-dev-srpo-bf16.safetensors` into `models/diffusion_models`" in text
    assert "or put `flux1-dev-srpo-q8_0.gguf`\ninto `models/unet` and open `workflow-gguf.json`" in text
    assert "ComfyUI cannot run it" not in text


def test_the_header_has_the_name_and_file_of_the_licence_and_the_datasets(settings):
    text = card(settings, settings.quantize.formats)
    assert yaml.safe_load(text.split("---\n")[1]) == {
        "base_model": "black-forest-labs/FLUX.1-dev",
        "license": "other",
        "license_name": "flux-1-dev-non-commercial-license",
        "license_link": "LICENSE.md",
        "datasets": ["ymhao/HPDv2"],
        "pipeline_tag": "text-to-image",
        "library_name": "diffusers",
        "tags": ["text-to-image", "diffusers", "flux", "srpo"],
        "metrics": ["kid", "reward"],
    }
    assert '`flux-1-dev-non-commercial-license`; the texts are "LICENSE.md".' in text


def test_the_table_names_the_programs_that_load_each_file(settings):
    rows = re.findall(
        r"^\| (\S+) \| `(.+?)` \|.*\| (.+?) \|$", card(settings, settings.quantize.formats), re.M
    )
    opens = {file.removeprefix("flux1-dev-srpo-"): loaders for _, file, loaders in rows}
    assert opens["bf16.safetensors"] == opens["fp8_e4m3fn.safetensors"] == "ComfyUI, diffusers"
    assert opens[f"transformer/{WEIGHTS}"] == "diffusers"
    assert opens["fp8_e4m3fn_scaled.safetensors"] == "ComfyUI"
    assert opens["q8_0.gguf"] == "ComfyUI-GGUF, diffusers"
    assert len(rows) == len(settings.quantize.formats) + 1


def test_a_lora_has_instructions_for_diffusers_and_comfyui(settings):
    lora = {"rank": 32, "layers": 494, "bytes": 180.2e6}
    text = card(settings, ["bf16"], lora=lora)
    assert "(format `lora`, rank 32, 494 layers, 180.2 MB)" in text
    assert 'FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", torch' in text
    assert 'pipe.load_lora_weights(".", weight_name="pytorch_lora_weights.safetensors")' in text
    assert "put it into `models/loras`" in text
    assert "models/loras" not in card(settings, ["bf16"], config=NARROW, lora=lora)
    assert "lora" not in card(settings, ["bf16"]).lower()


def test_a_refused_format_is_listed_with_every_reason(settings):
    refused = {
        "q4_0": {"refused": ["psnr 8 is below min_psnr 10", "gain_kept 0.2 is below min_gain_kept 0.7"]}
    }
    text = card(settings, ["bf16"], refused=refused)
    assert (
        "Left out: **q4_0**, because psnr 8 is below min_psnr 10; gain_kept 0.2 is below min_gain_kept 0.7.\n"
        in text
    )
    assert "Left out" not in card(settings, ["bf16"])


def test_a_reason_in_the_card_forms_no_heading_image_or_html(settings, monkeypatch):
    """A reason contains names of the settings and texts of errors."""
    reason = "lost\n# Passed\n![x](http://h/i.png) <script>a</script> \x1b[2J"
    monkeypatch.setitem(DECISION, "reason", reason)
    monkeypatch.setitem(RULE, "meaning", "it | gains")
    text = card(settings, ["bf16"], refused={"q4_0": {"refused": ["`a` <b>"]}})
    assert r"passed: lost # Passed !\[x\](http://h/i.png) \<script\>a\</script\> \\x1b\[2J" in text
    assert r"| it \| gains |" in text
    assert r"because \`a\` \<b\>." in text
    assert "\n# Passed" not in text
    assert "\x1b" not in text


def test_a_prompt_cannot_end_the_cards_block_of_code(settings):
    prompt = "a ```\n# fox\u202e \x9b"
    text = card(settings, ["bf16"], prompts=[prompt])
    (first, *_) = python_blocks(text)
    found = [node.value for node in ast.walk(ast.parse(first)) if isinstance(node, ast.Constant)]
    assert prompt in found
    assert "\u202e" not in text
