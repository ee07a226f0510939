"""Cut the parity subset out of the full golden vectors.

    python tests/golden/make_subset.py FULL_DIRECTORY

Keeps a case of every regime, the three optimizer steps, the models (the token tables cut to the rows in
use, the VAE without its encoder), the schedule vectors, the index tables, and the features and scores of HPS
and PickScore for three pictures and four texts. Gradients stay as norm and probe in the JSON, and some
images are left out for their size: their rewards prove them.
"""

import json
import sys
from fnmatch import fnmatch
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

CASES = {
    "hps.mid5": "the clean end of the grid: s·eps in bfloat16",
    "hps.mid100": "m == k_base: t·eps in bfloat16, too",
    "hps.mid101": "the first midpoint whose step is whole",
    "hps.mid500": "the middle; owner of the HPS rollout",
    "hps.mid901": "the noisy end, step shortened",
    "ps.mid500": "PickScore, near the hinge; owner of its rollout",
    "ps.mid60": "past the hinge: no gradient; s not exact in bfloat16",
    "ga1.mid321": "one branch",
    "ga4.mid100": "four branches, ratio 0.5, N = 200",
    "saturated.mid500": "extreme discounts",
    "vis_step40.mid500": "the reference's visualization steps",
}
WITH_IMAGES = ("ga1.mid321",)
DIGITS = 9  # of norms and probes, which are compared at 1e-5
TABLES = (
    "model.hps.token_embedding.weight",
    "model.pickscore.text_model.embeddings.token_embedding.weight",
)
KEEP = (
    "model.flux.",
    "model.vae.",
    "model.hps.",
    "model.pickscore.",
    "input.",
    "index_table.",
    "train3.",
    "comp.sigmas",
    "comp.disc",
    "comp.pack",
    "comp.unpack",
    "comp.ids",
    "comp.flux_step.",
    "comp.score.",
    "comp.text.",
    *(f"{case}." for case in CASES),
)
DROP = (
    "*.grad.*",
    "*.vae_in",
    "*.roll_pred_*",
    "*.image_ids",
    "*.txt_ids",
    "*.noise_packed",
    "model.vae.encoder.*",
)
PICTURES = "comp.hps_pre.*.in_uint8"


def main(full: Path, target: Path) -> None:
    tensors = load_file(full / "golden.safetensors")
    golden = json.loads((full / "golden.json").read_text())
    kept = {n: t for n, t in tensors.items() if is_kept(n)}
    cases = {case: golden["cases"][case] for case in CASES}
    branches = [branch for case in cases.values() for branch in case["branches"]]
    for branch in branches:
        branch["cumulative_grad"] = rounded(branch["cumulative_grad"])
    for step in golden["train3"]["steps"]:
        step["delta"] = rounded(step["delta"])
    texts = [branch[key] for branch in branches for key in ("tokens", "neg_tokens")]
    texts += [t.flatten().tolist() for n, t in tensors.items() if fnmatch(n, "comp.text.*.tokens")]
    texts += golden["pickscore_tokens"].values()
    texts += tokens_of_three_steps(golden)
    used = sorted({token for text in texts for token in text} | {0})
    kept["token_rows"] = torch.tensor(used)
    kept |= {table: kept[table][used].clone() for table in TABLES}
    names = (
        "configs",
        "captions",
        "control_words",
        "train3",
        "timestep_ints",
        "index_table_columns",
        "grad_probe_definition",
        "scores",
        "hps_pre_grad",
        "pickscore_tokens",
        "versions",
    )
    small = {"cases": cases, **{name: golden[name] for name in names}}
    save_file({n: t.contiguous() for n, t in sorted(kept.items())}, target / "golden.safetensors")
    compact = json.dumps(small, sort_keys=True, separators=(",", ":"))
    (target / "golden.json").write_text(compact + "\n")


def is_kept(name: str) -> bool:
    if fnmatch(name, PICTURES):
        return True
    if fnmatch(name, "*.image") and not name.startswith(tuple(f"{case}." for case in WITH_IMAGES)):
        return False
    return name.startswith(KEEP) and not any(fnmatch(name, pattern) for pattern in DROP)


def rounded(figures: dict) -> dict:
    return {
        name: {key: float(f"{value:.{DIGITS}g}") for key, value in entry.items()}
        for name, entry in figures.items()
    }


def tokens_of_three_steps(golden: dict) -> list[list[int]]:
    """The tokens of the texts of train3, which the vectors do not list."""
    from open_clip import SimpleTokenizer

    tokenize = SimpleTokenizer()
    return [
        tokenize([f"{word}. {golden['captions'][step['caption_index']]}"])[0].tolist()
        for step in golden["train3"]["steps"]
        for word in golden["control_words"][str(step["step"])]
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)
