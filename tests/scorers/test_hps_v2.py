import gzip
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from srpo_core.scorers import hps_v2 as module
from srpo_core.scorers.hps_v2 import benchmark, load_hps_v2
from srpo_core.scorers.preprocessing import CLIP_MEAN, CLIP_STD, fit, normalize

PUBLISHED = "HPS_v2.1_compressed.pt"
TEXTS = ["red apple", "An old man's PORTRAIT &amp; a   cat -- café, 35mm", "word " * 100, ""]


@pytest.fixture(scope="module")
def hpsv2():
    """Return the open_clip copy in hpsv2, imported without tkinter and with the vocabulary file that it lacks."""
    import open_clip

    vocabulary = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    turtle = ModuleType("turtle")
    turtle.forward = None
    original = gzip.open

    def opened(path, *args, **kwargs):
        return original(vocabulary if Path(path).name == vocabulary.name else path, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "turtle", turtle)
        patch.setenv("TOKENIZERS_PARALLELISM", "false")  # the import sets it permanently
        patch.setattr(gzip, "open", opened)
        import hpsv2.src.open_clip as carried

        yield carried
    for name in [name for name in sys.modules if name.partition(".")[0] == "hpsv2"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def carried(hpsv2, small_config):
    """Return a random model built by hpsv2."""
    torch.manual_seed(3)
    return hpsv2.CLIP(**small_config, output_dict=True).eval()


@pytest.fixture
def directory(tmp_path, carried, small_config):
    torch.save({"state_dict": carried.state_dict(), "epoch": 1}, tmp_path / PUBLISHED)
    (tmp_path / "small.json").write_text(json.dumps(small_config))
    return tmp_path


def pil_image(height, width):
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (90, 70), (20, 45)])
def test_scores_equal_those_of_hpsv2(hpsv2, carried, directory, height, width):
    pixels = pil_image(height, width)
    prepare = hpsv2.image_transform(32, is_train=False)
    image = prepare(Image.fromarray(pixels.permute(1, 2, 0).numpy()))[None]
    with torch.no_grad():
        theirs = carried(image, hpsv2.tokenize(TEXTS, context_length=16))
    ours = load_hps_v2(directory)
    features = ours.encode_images(pixels[None].float() / 255)
    texts = ours.encode_texts(TEXTS)
    assert torch.allclose(features, theirs["image_features"], rtol=0, atol=1e-6)
    assert torch.allclose(texts, theirs["text_features"], rtol=0, atol=1e-6)
    scores = theirs["image_features"] @ theirs["text_features"].T
    assert torch.allclose(ours.scale * features @ texts.T, scores, rtol=0, atol=1e-6)


def test_the_gradient_of_a_score_equals_that_of_hpsv2(hpsv2, carried, directory):
    ours, tokens = load_hps_v2(directory), hpsv2.tokenize(TEXTS[:1], context_length=16)
    image = (pil_image(40, 50)[None].float() / 255).requires_grad_()
    score = (ours.encode_images(image) * ours.encode_texts(TEXTS[:1])).sum()
    (gradient,) = torch.autograd.grad(score, image)
    outputs = carried(normalize(fit(image, 32), CLIP_MEAN, CLIP_STD), tokens)
    (expected,) = torch.autograd.grad((outputs["image_features"] * outputs["text_features"]).sum(), image)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-5


def test_the_score_ignores_the_logit_scale_of_the_weights(directory, carried):
    assert float(carried.logit_scale.detach().exp()) == pytest.approx(1 / 0.07)
    assert load_hps_v2(directory).scale == 1.0


def test_case_spaces_and_html_entities_do_not_change_text_features(directory):
    texts = load_hps_v2(directory).encode_texts(["Cat  &amp; DOG", "cat & dog", "cat and dog"])
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


def test_safetensors_and_pickle_of_the_same_weights_give_the_same_features(directory, carried):
    image = pil_image(40, 40)[None].float() / 255
    pickled = load_hps_v2(directory)
    (directory / PUBLISHED).unlink()
    save_file(carried.state_dict(), directory / "hps.safetensors")
    plain = load_hps_v2(directory)
    assert torch.equal(pickled.encode_images(image), plain.encode_images(image))
    assert torch.equal(pickled.encode_texts(TEXTS), plain.encode_texts(TEXTS))


def test_half_precision_weights_are_converted_to_fp32(directory, carried):
    halves = {name: tensor.half() for name, tensor in carried.state_dict().items()}
    torch.save({"state_dict": halves}, directory / PUBLISHED)
    reward = load_hps_v2(directory)
    assert {parameter.dtype for parameter in reward.parameters()} == {torch.float32}
    table = reward.clip.token_embedding.weight
    assert torch.equal(table, halves["token_embedding.weight"].float())


def test_weights_without_a_configuration_are_loaded_as_the_published_vit_h_14(directory, monkeypatch):
    from open_clip import CLIP

    asked = []
    monkeypatch.setattr(module, "load_towers", lambda *arguments: asked.append(arguments))
    (directory / "small.json").unlink()
    load_hps_v2(directory)
    ((config, _, _, weights),) = asked
    assert weights == directory / PUBLISHED
    with torch.device("meta"):
        clip = CLIP(**config)
    assert len(clip.state_dict()) == 686
    assert sum(parameter.numel() for parameter in clip.parameters()) == 986_109_441


@pytest.mark.parametrize("name", ["HPS_v2_compressed.pt", "other.safetensors"])
def test_the_error_for_two_weight_files_names_both(directory, refusal, name):
    (directory / name).touch()
    line = refusal(load_hps_v2, directory)
    assert PUBLISHED in line.partition("but contains")[2]
    assert name in line.partition("but contains")[2]


def test_the_error_for_two_configurations_names_them(directory, refusal):
    (directory / "other.json").write_text("{}")
    assert "small.json" in refusal(load_hps_v2, directory).partition("but contains")[2]


@pytest.mark.parametrize("where", ["nowhere", "."])
def test_the_error_for_a_directory_without_weights_names_the_expected_files(tmp_path, refusal, where):
    line = refusal(load_hps_v2, tmp_path / where)
    assert str(tmp_path / where) in line
    assert PUBLISHED in line
    assert "contains neither" in line


@pytest.mark.parametrize("fault", ["missing", "surplus"])
def test_the_error_names_a_missing_or_surplus_tensor_of_the_pickle(directory, carried, refusal, fault):
    state, name = dict(carried.state_dict()), "visual.proj"
    if fault == "missing":
        del state[name]
    else:
        state[name := "score_predictor.weight"] = torch.zeros(1)
    torch.save({"state_dict": state}, directory / PUBLISHED)
    line = refusal(load_hps_v2, directory)
    assert str(directory / PUBLISHED) in line
    assert f'"{name}"' in line


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04broken", b"\x80\x02}q\x00."])
def test_the_error_for_a_broken_pickle_names_the_file(directory, refusal, content):
    (directory / PUBLISHED).write_bytes(content)
    assert str(directory / PUBLISHED) in refusal(load_hps_v2, directory)


@pytest.mark.parametrize("content", [{}, [1], torch.zeros(1), {"state_dict": 3}])
def test_the_error_for_a_pickle_without_a_state_dict_names_the_file(directory, refusal, content):
    torch.save(content, directory / PUBLISHED)
    line = refusal(load_hps_v2, directory)
    assert str(directory / PUBLISHED) in line
    assert "state_dict" in line


def test_the_error_for_a_pickle_without_tensors_names_the_file(directory, carried, refusal):
    torch.save({"state_dict": dict.fromkeys(carried.state_dict(), 1)}, directory / PUBLISHED)
    assert str(directory / PUBLISHED) in refusal(load_hps_v2, directory)


def test_a_pickle_that_runs_code_is_refused_without_running_it(directory, refusal):
    class Runs:
        def __reduce__(self):
            return (Path.touch, (directory / "ran",))

    torch.save({"state_dict": Runs()}, directory / PUBLISHED)
    assert str(directory / PUBLISHED) in refusal(load_hps_v2, directory)
    assert not (directory / "ran").exists()


def test_a_pickle_is_memory_mapped_and_loaded_with_weights_only(directory, monkeypatch):
    loaded, load = [], torch.load

    def recording(*args, **kwargs):
        loaded.append(kwargs)
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", recording)
    load_hps_v2(directory)
    assert [(given["mmap"], given["weights_only"]) for given in loaded] == [(True, True)]


def test_the_table_by_style_equals_the_output_of_the_hpsv2_evaluation(hpsv2, carried, tmp_path, capsys):
    """Run the whole evaluation of hpsv2 on two styles, one of which has an incomplete chunk."""
    import importlib
    import json

    from PIL import Image

    evaluation = importlib.import_module("hpsv2.evaluation")
    generate = np.random.default_rng(0)
    (tmp_path / "prompts").mkdir()
    scores, styles = [], []
    prepare = hpsv2.image_transform(32, is_train=False)
    for style, count in (("anime", 160), ("photo", 90)):
        prompts = [f"{style} number {number}" for number in range(count)]
        (tmp_path / f"prompts/{style}.json").write_text(json.dumps(prompts))
        (tmp_path / f"model/{style}").mkdir(parents=True)
        for number, prompt in enumerate(prompts):
            path = tmp_path / f"model/{style}/{number:05d}.jpg"
            Image.fromarray(generate.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
            with torch.no_grad():
                out = carried(prepare(Image.open(path))[None], hpsv2.tokenize([prompt], context_length=16))
            scores.append(float((out["image_features"] @ out["text_features"].T).squeeze()))
            styles.append(style)

    def tokenizer(text):
        return hpsv2.tokenize([text], context_length=16)

    evaluation.evaluate_benchmark(
        str(tmp_path / "prompts"), str(tmp_path / "model"), carried, 32, prepare, tokenizer, "cpu"
    )
    printed = {line.split()[1]: line.split()[2:] for line in capsys.readouterr().out.splitlines()[1:]}
    ours = benchmark(scores, styles)
    written = {
        style: [f"{row['mean']:.2f}"] + ([f"{row['std']:.4f}"] if "std" in row else [])
        for style, row in ours.items()
    }
    assert written == printed


def test_a_missing_style_has_no_row_and_a_short_chunk_counts_like_a_full_one():
    scores, styles = [0.3] * 80 + [0.1] * 40 + [0.2] * 80, ["a"] * 120 + ["b"] * 80
    assert benchmark(scores, styles) == {
        "Average": {"mean": pytest.approx(22.0)},
        "a": {"mean": pytest.approx(20.0), "std": pytest.approx(10.0)},
        "b": {"mean": pytest.approx(20.0), "std": pytest.approx(0.0, abs=1e-9)},
    }
    assert benchmark(scores[:120], styles[:120]).keys() == {"a", "Average"}
