"""Cut the parity subset out of the full golden vectors.

    python tests/golden/make_subset.py FULL_DIRECTORY

Keeps the case `hps.mid500`, the models it needs (the token table cut to the rows in use), the schedule
vectors and the index table. Gradients stay as norm and probe in the JSON.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

CASE = "hps.mid500"
TABLE = "model.hps.token_embedding.weight"
KEEP = (
    "model.flux.",
    "model.vae.",
    "model.hps.",
    f"{CASE}.",
    "input.",
    "index_table.hps",
    "comp.sigmas",
    "comp.disc",
)


def main(full: Path, target: Path) -> None:
    tensors = load_file(full / "golden.safetensors")
    golden = json.loads((full / "golden.json").read_text())
    kept = {n: t for n, t in tensors.items() if n.startswith(KEEP) and ".grad." not in n}
    case = golden["cases"][CASE]
    used = sorted(
        {token for branch in case["branches"] for key in ("tokens", "neg_tokens") for token in branch[key]}
        | {0}
    )
    kept["token_rows"] = torch.tensor(used)
    kept[TABLE] = kept[TABLE][used].clone()
    small = {
        "configs": golden["configs"],
        "captions": golden["captions"],
        "control_words": golden["control_words"],
        "cases": {CASE: case},
        "index_table_columns": golden["index_table_columns"],
        "grad_probe_definition": golden["grad_probe_definition"],
        "versions": golden["versions"],
    }
    save_file({n: t.contiguous() for n, t in sorted(kept.items())}, target / "golden.safetensors")
    (target / "golden.json").write_text(json.dumps(small, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)
