import base64
import hashlib
import html.parser
import inspect
import io
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from srpo_core import artifacts
from srpo_core.config import ReportSettings, load_settings
from srpo_core.errors import ArtifactError
from srpo_core.gates import decide
from srpo_core.gates.pairs import pair_up
from srpo_core.report.numbers import signed
from srpo_core.report.page import EXTREMES
from srpo_core.scorers.metrics import metric_names, metric_notes
from srpo_core.stages import report as stage

ROOT = Path(__file__).resolve().parents[2]
EMOJI = ROOT / "assets/tiny/data/emoji4.parquet"
FIGURES = {
    "reward": 0.74,
    "relative_reward": 0.0,
    "judge_wanted": 0.0,
    "judge_top1": 0.8,
    "judge_top5": 0.94,
    "diversity": 0.7,
    "kid": 0.2,
    "saturation": 0.4,
    "red_over_green": 0.05,
    "yellow_over_blue": 0.1,
    "clipped_highlights": 0.5,
    "high_frequency_energy": 0.02,
    "grid_energy": 0.01,
    "log_detail": -3.0,
    "contrast": 0.3,
    "channel_agreement": 0.95,
    "shared_edges": 0.005,
    "common_edge": 0.5,
    **dict.fromkeys(("broken", "copied", "repeated", "uneven_phases", "spectral_peak"), 0.0),
}
# rules that so few images cannot meet
NEED_MORE_IMAGES = ("few_broken", "no_prompt_lost", "few_copies", "no_common_mark")
SUBJECTS = 12
SEEDS = 2
TILES = 8


def real_images(style):
    """Name -> PNG bytes of real emoji images in one style."""
    table = pq.read_table(EMOJI, columns=["name", "style", "group", "image"]).to_pylist()
    chosen = [row for row in table if row["style"] == style and row["group"] == "Food & Drink"]
    images = {}
    for row in chosen[:SUBJECTS]:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(row["image"])).convert("RGB").save(buffer, format="PNG")
        images[row["name"]] = buffer.getvalue()
    return images


def write_evaluation(wanted_after):
    generate = np.random.default_rng(0)
    images, measured = [], []
    for model, style, wanted in (("base", "3D", 0.36), ("aligned", "Ink", wanted_after)):
        for number, (name, png) in enumerate(real_images(style).items()):
            for seed in range(SEEDS):
                figures = FIGURES | {"relative_reward": wanted - 0.3, "judge_wanted": wanted}
                row = {"model": model, "prompt": name, "style": "food" if number % 2 else "animals"}
                row |= {"seed": seed}
                images.append(row | {"png": png})
                for metric, value in figures.items():
                    spread = 0.06 * (1 + abs(value)) / 2
                    measured.append(row | {"metric": metric, "value": value + generate.normal(0, spread / 4)})
    artifacts.EVALUATION.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(images), artifacts.EVALUATION)
    pq.write_table(pa.Table.from_pylist(measured), artifacts.FIGURES)
    by_style = {"animals": {"mean": 28.41, "std": 0.112}, "Average": {"mean": 28.9}}
    artifacts.write_json(
        artifacts.EVALUATION_SUMMARY,
        {"step": 20, "champion": None, "hps_benchmark": {"hps": {"base": by_style, "aligned": by_style}}},
    )


def write_log():
    from dvclive import Live

    generate = np.random.default_rng(1)
    with Live(str(artifacts.TRAIN_LOG), save_dvc_exp=False, dvcyaml=None, report=None) as live:
        for step in range(30):
            reward = 0.02 + 0.2 * step / 30
            live.log_metric("train/loss", 0.7 - reward + generate.normal(0, 0.02), timestamp=False)
            live.log_metric("train/reward_denoise", reward + generate.normal(0, 0.02), timestamp=False)
            live.log_metric("train/reward_inversion", reward / 2 + generate.normal(0, 0.01), timestamp=False)
            live.log_metric("train/grad_norm", 0.4 + generate.exponential(0.2), timestamp=False)
            live.next_step()


def write_runs(wanted_after, admissible):
    """Write the outputs of all stages before the report, with real images."""
    write_evaluation(wanted_after)
    write_log()
    curve = [
        {
            "step": step,
            "judge_wanted": 0.36 + 0.018 * step,
            "judge_top5": 0.95 - 0.0005 * step**1.7,
            "diversity": 0.7 - 0.003 * step,
            "reward": 0.74 - 0.0006 * step,
            "relative_reward": 0.1 + 0.004 * step,
        }
        for step in range(0, 35, 5)
    ]
    selection = {
        "step": 20,
        "checkpoint": "runs/train/checkpoints/step-000020",
        "curve": curve,
        "rounds": [{"num_prompts": 40, "compared": [5, 10, 15, 20, 25, 30], "dropped": []}],
        "admissible": admissible,
        "reason": "step 20 has the greatest judge_wanted of the checkpoints that keep judge_top5",
    }
    artifacts.write_json(artifacts.SELECTION, selection)
    words = {"prompts": 120, "wanted": {"Ink": 0}, "unwanted": {"3D": 7}}
    outcome = {
        "steps": 30,
        "planned_steps": 30,
        "stopped_early": None,
        "alarm": None,
        "control_words_in_prompts": words,
    }
    artifacts.write_json(artifacts.TRAIN_OUTCOME, outcome)
    artifacts.write_json(
        artifacts.AGREEMENT,
        {"pairs": 400, "agreement": 0.965, "low": 0.942, "high": 0.979},
    )
    artifacts.write_json(
        artifacts.VALIDATION, {"records": {"read": {"train.json": 5}, "bad": 0, "rules": {}}}
    )
    for table in (artifacts.PROMPTS, artifacts.PAIRS):
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_bytes(table.name.encode())
    shutil.copytree(ROOT / "profiles", "profiles")
    settings = (ROOT / "profiles/tiny.yaml").read_text()
    Path("params.yaml").write_text(settings.replace("seed: 0", "seed: 7"))
    pairs = pair_up(artifacts.read_table(artifacts.FIGURES), artifacts.FIGURES)
    gate = load_settings(ROOT / "profiles/tiny.yaml").gate
    wide = {name: gate.rules[name].model_copy(update={"margin": 1.0}) for name in NEED_MORE_IMAGES}
    gate = gate.model_copy(update={"rules": {**gate.rules, **wide}})
    artifacts.write_json(artifacts.DECISION, decide(pairs, selection, seed=0, gate=gate))


@pytest.fixture
def passed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_runs(wanted_after=0.64, admissible=[5, 10, 15, 20])


@pytest.fixture
def refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_runs(wanted_after=0.35, admissible=[])


def build():
    settings = load_settings()
    parts = {name: getattr(settings, name) for name in inspect.signature(stage.run).parameters}
    stage.run(**parts | {"report": ReportSettings(grid_prompts=TILES)})
    return artifacts.REPORT.read_text(encoding="utf-8")


class Page(html.parser.HTMLParser):
    """Collect the references and the text of the page, and check that tags are balanced."""

    VOID = frozenset({"meta", "img", "input", "link", "br"})

    def __init__(self, text):
        super().__init__()
        self.sources, self.open, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.sources += [value for key, value in attrs if key in {"src", "href", "srcset", "action"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.mark.usefixtures("passed")
def test_the_page_is_self_contained():
    page = Page(build())
    assert page.open == []
    assert len(page.sources) == TILES * SEEDS * 2 + 2 * 2 * EXTREMES
    assert all(source.startswith("data:image/") for source in page.sources)
    assert "url(" not in artifacts.REPORT.read_text()
    assert not re.search(r"https?://", artifacts.REPORT.read_text())


@pytest.mark.usefixtures("passed")
def test_the_page_shows_the_agreement_of_each_reward_of_a_mix():
    assert "alone" not in Page(build()).text
    figures = artifacts.read_json(artifacts.AGREEMENT)
    each = {"hps_v2": 0.83, "pick_score": 0.7}
    artifacts.write_json(artifacts.AGREEMENT, figures | {"each": each, "weights": {}})
    assert "(94.2% to 97.9%); alone: hps_v2 83.0%, pick_score 70.0%." in Page(build()).text


@pytest.mark.usefixtures("passed")
def test_the_page_shows_what_people_found_beside_the_scores_also_if_their_rule_is_the_first():
    decision = artifacts.read_json(artifacts.DECISION)
    rule = next(rule for rule in decision["rules"] if rule["compare"] == "win_rate")
    people = rule | {"name": "preferred", "metric": "people_win_rate", "tie": 0.0, "value": 0.734}
    decision["rules"].insert(0, people | {"meaning": "people prefer the images", "low": 0.6, "high": 0.8})
    score = {"agreement": 0.75, "low": 0.6, "high": 0.86, "pairs": 24, "correlation": 0.5}
    decision["people"] = {
        "tasks": [
            {"task": "0123456789ab", "protocol": "paired", "raters": 4, "answers": 96}
            | {"looked_early": False, "closed": ""}
        ],
        "predicted": {"base": {"judge_wanted": score}},
    }
    artifacts.write_json(artifacts.DECISION, decision)
    text = Page(build()).text
    assert "73.4%" in text
    assert "People prefer the images" in text
    assert "96 answers of 4 raters (paired)" in text
    assert "75.0% 60.0% … 86.0% 24 +0.5" in text


@pytest.mark.usefixtures("passed")
def test_the_page_says_that_no_agreement_was_measured_for_lack_of_pairs():
    artifacts.write_json(artifacts.AGREEMENT, {"pairs": 0, "weights": {}})
    text = Page(build()).text
    assert "The reward agrees with preferences not measured the data have no pairs" in text
    assert "how often it agrees with people was not measured, because the data have no pairs" in text
    assert "held-out pairs" not in text


@pytest.mark.usefixtures("passed")
def test_the_verdict_comes_first_then_the_images_then_the_gate():
    text = Page(build()).text
    order = (
        "Passed",
        "Before and after",
        "The gate",
        "Signs of reward hacking",
        "What changed",
        "Best and worst",
    )
    places = [text.index(word) for word in (*order, "Choosing the checkpoint", "Training", "This run")]
    assert places == sorted(places)
    assert "“Ink” over “3D”" in text
    assert "96.5%" in text
    assert "All rules hold on 24 image pairs of 12 test prompts" in text
    assert (
        "judge_wanted, share of images that beat the base, differences up to 0.05 count as half a win" in text
    )
    assert "judge_wanted, change against the base " in text  # other comparisons have no ties


@pytest.mark.usefixtures("refused")
def test_the_page_of_a_refused_model_gives_the_verdict_and_the_reason():
    text = Page(build()).text
    decision = artifacts.read_json(artifacts.DECISION)
    assert decision["verdict"] == "refused"
    assert "Refused" in text
    assert "This model is neither quantized nor published" in text
    assert "No checkpoint was admissible" in text
    assert decision["rules"][0]["reason"][1:] in text


@pytest.mark.usefixtures("passed")
def test_the_same_input_gives_the_same_bytes():
    def digests():
        build()
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in (artifacts.REPORT, artifacts.GRID)]

    assert digests() == digests()
    assert sorted(path.name for path in artifacts.REPORT.parent.iterdir()) == ["grid.png", "report.html"]


@pytest.mark.usefixtures("passed")
def test_before_images_are_from_the_base_and_after_images_from_the_aligned_model():
    build()
    with Image.open(artifacts.GRID) as grid:
        pixels = np.asarray(grid.convert("HSV"), dtype=float)[..., 1]
    height = pixels.shape[0]
    colour_above, colour_below = pixels[: height * 4 // 10].mean(), pixels[height * 5 // 10 :].mean()
    # 3D images are coloured, ink drawings are not
    assert colour_above > 10 * colour_below


@pytest.mark.usefixtures("passed")
def test_the_page_shows_data_settings_and_the_chance_of_refusing_an_equal_model():
    text = Page(build()).text
    digest = hashlib.sha256(b"prompts.parquet").hexdigest()[:12]
    assert f"prompts.parquet {digest}" in text
    assert "those of the preset tiny , except: Setting Preset Here report.grid_prompts 16 8 seed 0 7" in text
    chance = artifacts.read_json(artifacts.DECISION)["chance_of_refusing_an_equal"]
    assert f"would be refused with a chance of {100 * chance:.1f}% by the rules" in text
    assert "There is no champion to compare with. Settings are" in text
    assert "champion_style" in text
    assert "28.41 (0.11)" in text


@pytest.mark.usefixtures("passed")
def test_best_and_worst_prompts_are_chosen_by_the_metric_of_the_first_rule():
    text = Page(build()).text
    pairs = pair_up(artifacts.read_table(artifacts.FIGURES), artifacts.FIGURES)
    change = pairs.by_prompt(pairs.aligned["judge_wanted"] - pairs.base["judge_wanted"])
    ranked = [pairs.prompts[index] for index in np.argsort(-change)]
    section = text[text.index("Best and worst prompts") : text.index("Choosing the checkpoint")]
    by_name = dict(zip(pairs.prompts, change, strict=True))
    shown = [*ranked[:EXTREMES], *ranked[::-1][:EXTREMES]]
    places = [section.index(f"{name} {signed(by_name[name])}") for name in shown]
    assert places == sorted(places)
    assert f"{change.max():+.3f}" in section


@pytest.mark.usefixtures("passed")
def test_a_missing_log_names_the_stage_to_run():
    shutil.rmtree(artifacts.TRAIN_LOG)
    with pytest.raises(ArtifactError, match="run 'dvc repro train' first"):
        build()


@pytest.mark.usefixtures("passed")
def test_a_prompt_cannot_put_markup_into_the_page():
    evil = '<script>alert("x")</script> "><b>'
    for path in (artifacts.EVALUATION, artifacts.FIGURES):
        rows = pq.read_table(path).to_pylist()
        first = rows[0]["prompt"]
        for row in rows:
            row["prompt"] = evil if row["prompt"] == first else row["prompt"]
        pq.write_table(pa.Table.from_pylist(rows), path)
    text = build()
    own = (ROOT / "srpo_core/report/page.js").read_text()
    assert text.count("<script") == 1
    assert f"<script>{own}</script>" in text
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text, "the policy allows this script and no other"
    assert evil in Page(text).text


@pytest.mark.usefixtures("passed")
def test_thread_count_and_release_name_do_not_change_the_page():
    before = build()
    text = Path("params.yaml").read_text()
    other = re.sub(r"threads_per_worker: \d+", "threads_per_worker: 3", text).replace(
        "name: tiny", "name: other"
    )
    assert other != text
    Path("params.yaml").write_text(other)
    assert build() == before


def test_dvc_ignores_settings_that_do_not_change_the_page():
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["report"]
    assert "params.yaml" not in graph["deps"]
    assert not {"resources", "release", "champion"} & set(graph["params"])


def test_the_stage_receives_exactly_the_settings_that_dvc_watches():
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["report"]
    assert set(graph["params"]) == set(inspect.signature(stage.run).parameters)


@pytest.mark.parametrize("profile", sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml")))
def test_every_metric_of_a_profile_is_explained(profile):
    evaluate = load_settings(ROOT / f"profiles/{profile}.yaml").evaluate
    notes = metric_notes(evaluate.scorers)
    assert all(notes[name] for name in metric_names(evaluate.metrics, list(evaluate.scorers)))


PROBE = """<!doctype html><body><pre id=out></pre><script>
const page = {page};
const widths = [320, 400, 1400];
let done = 0;
for (const width of widths) {{
  const frame = document.createElement("iframe");
  frame.style.cssText = `width:${{width}}px;height:900px;border:0;display:block`;
  frame.onload = () => {{
    const inside = frame.contentDocument;
    const images = [...inside.images];
    const shown = images.filter(image => image.getBoundingClientRect().width > 0);
    const texts = [...inside.querySelectorAll("svg text")].map(text => text.getBoundingClientRect());
    out.textContent += [
      `width=${{width}}`,
      `images=${{images.length}}`,
      `loaded=${{images.filter(image => image.complete && image.naturalWidth > 0).length}}`,
      `shown=${{shown.length}}`,
      `least=${{Math.round(Math.min(...shown.map(image => image.getBoundingClientRect().width)))}}`,
      `overflow=${{inside.documentElement.scrollWidth - width}}`,
      `outside=${{texts.filter(box => box.left < 0 || box.right > width).length}}`,
    ].join(" ") + "\\n";
    done += 1;
    if (done === widths.length) document.title = "measured";
  }};
  frame.srcdoc = page;
  document.body.append(frame);
}}
</script>"""


def chromium():
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.mark.browser
@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine (apt-get install chromium)")
@pytest.mark.parametrize("verdict", ["passed", "refused"])
def test_a_browser_shows_every_image_without_horizontal_scrolling(verdict, request, tmp_path):
    import json

    request.getfixturevalue(verdict)
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(page=json.dumps(build()).replace("</", "<\\/")), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    flags += " --disable-background-networking --disable-component-update --virtual-time-budget=10000"
    done = subprocess.run(
        [chromium(), *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", probe.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert "<title>measured</title>" in done.stdout, done.stdout[-300:]
    lines = re.findall(r"width=\d+ .*", done.stdout)
    measured = [dict(pair.split("=") for pair in line.split()) for line in lines]
    assert sorted(int(one["width"]) for one in measured) == [320, 400, 1400]
    for one in measured:
        figures = {key: int(value) for key, value in one.items()}
        assert figures["images"] == figures["loaded"] == TILES * SEEDS * 2 + 4 * EXTREMES
        assert figures["shown"] == TILES * 2 + 4 * EXTREMES
        assert figures["least"] >= 96
        assert figures["overflow"] <= 0
        assert figures["outside"] == 0


@pytest.mark.usefixtures("passed")
def test_the_page_shows_how_often_prompts_contain_the_control_words():
    text = Page(build()).text
    assert "Control words in the 120 training prompts: Ink (wanted) in none, 3D (unwanted) in 7." in text
    assert "Ended early" not in text


def with_alarm(steps, evidence, reason):
    """Write an outcome with the evidence after each of `steps`; the limit on broken images has most of it."""
    alarm = {
        "threshold": 20.0,
        "alpha": 0.05,
        "reason": reason,
        "curve": [
            {
                "step": step,
                "evidence": found,
                "limits": {"broken": 0.9 * found, "diversity too low": 0.1 * found},
            }
            for step, found in zip(steps, evidence, strict=True)
        ],
        "figures": [
            {"step": step, "name": name, "mean": mean, "limit": limit}
            for step in steps
            for name, mean, limit in (("broken", step / 100, 0.03), ("diversity too low", 0.25, 0.125))
        ],
    }
    ended = {"steps": steps[-1], "stopped_early": reason if steps[-1] < 30 else None, "alarm": alarm}
    artifacts.write_json(artifacts.TRAIN_OUTCOME, artifacts.read_json(artifacts.TRAIN_OUTCOME) | ended)


@pytest.mark.usefixtures("passed")
def test_the_page_shows_why_training_ended_early():
    with_alarm([10, 20], [0.5, 150.0], "by step 20 it is proven")
    assert "Ended early, after step 20 of 30 : by step 20 it is proven." in Page(build()).text


@pytest.mark.usefixtures("passed")
def test_an_alarm_at_the_last_step_is_no_early_end():
    with_alarm([10, 20, 30], [0.5, 3.0, 150.0], "by step 30 it is proven")
    text = Page(build()).text
    assert "Alarm at the last checkpoint : by step 30 it is proven." in text
    assert "Ended early" not in text


@pytest.mark.usefixtures("passed")
def test_the_page_shows_the_evidence_of_early_stop_as_a_curve_towards_its_threshold():
    with_alarm([10, 20, 30], [0.5, 0.1, 0.02], None)
    page = build()
    text = Page(page).text
    assert "Training ends when it reaches 1/alpha = 20" in text
    assert re.search(r"in at most 5\W*% of runs", text)
    assert "1/alpha = 20" in text
    rows = [["broken", "0.300", "0.030", "0.018"], ["diversity too low", "0.250", "0.125", "0.002"]]
    assert all(re.search(r"\s+".join(map(re.escape, row)), text) for row in rows)
    assert "Alarm" not in text


@pytest.mark.usefixtures("passed")
def test_without_early_stop_the_page_has_no_evidence():
    assert "1/alpha" not in Page(build()).text


@pytest.mark.usefixtures("passed")
def test_the_page_counts_the_records_that_break_a_rule_and_shows_the_first():
    assert "None of the 5 records breaks a rule." in build()
    first = "hpd/train.json: record 7: prompt: contains <b>"
    rules = {
        "control_character": {"severity": "critical", "found": 3, "set_aside": 3, "first": first},
        "contradiction": {
            "severity": "warning",
            "found": 12,
            "set_aside": 0,
            "first": "hpd/train.json: record 9",
        },
        "tied_record": {"severity": "warning", "found": 0, "set_aside": 0, "first": None},
    }
    read = {"train.json": 100, "test.json": 20}
    artifacts.write_json(artifacts.VALIDATION, {"records": {"read": read, "bad": 3, "rules": rules}})
    section = build().partition("<h2>The data</h2>")[2].partition("</section>")[0]
    assert "Of 120 records, 3 were bad." in section
    assert "A text contains NUL or another control character" in section
    assert "The first is hpd/train.json: record 7: prompt: contains &lt;b&gt;" in section
    assert section.index("control_character") < section.index("contradiction")
    assert re.findall(
        r'data-label="Found">(\d+)</td>\s*<td class="number" data-label="Set aside">(\d+)<', section
    ) == [
        ("3", "3"),
        ("12", "0"),
    ]
    assert "tied_record" not in section
