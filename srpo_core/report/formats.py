"""The table of a release's formats: what each one lost, and why one was left out."""

from collections.abc import Mapping
from typing import Any, Final

from srpo_core.report.templates import render

FORMATS_MARK: Final = "<!-- formats -->"


def with_formats(page: str, proof: Mapping[str, Any]) -> str:
    """Insert the table of formats into the page at its mark.

    proof: the result of stage quantize, `runs/quantize/proof.json`.
    """
    rows = [
        {
            "name": name,
            "megabytes": sum(file["bytes"] for file in figures["files"].values()) / 1e6,
            "error": figures["relative_error"],
            "psnr": figures["psnr"],
            "gain_kept": figures["gain_kept"],
            "refused": figures["refused"],
        }
        for name, figures in (*proof["formats"].items(), *proof["refused"].items())
    ]
    return page.replace(FORMATS_MARK, render("formats.html.j2", rows=rows), 1)
