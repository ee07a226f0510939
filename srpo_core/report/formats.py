"""The formats of a release as a table for the report: what each lost, and why one was left out."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from markupsafe import Markup

FORMATS_MARK: Final = "<!-- formats -->"

_HEAD: Final = Markup(
    '<table><thead><tr><th>Format</th><th class="number">MB</th><th class="number">Output error</th>'
    '<th class="number">PSNR to bf16, dB</th><th class="number">Gain kept</th><th>In the release</th></tr></thead><tbody>'
)
_ROW: Final = Markup(
    '<tr><td class="name">{name}</td><td class="number" data-label="MB">{size:.2f}</td>'
    '<td class="number" data-label="Output error">{error:.2g}</td>'
    '<td class="number" data-label="PSNR to bf16, dB">{psnr}</td>'
    '<td class="number" data-label="Gain kept">{kept}</td><td data-label="In the release">{released}</td></tr>'
)


def with_formats(page: str, proof: Mapping[str, Any]) -> str:
    """The page with a table of formats in the place that it keeps for one.

    proof: what stage quantize wrote, `runs/quantize/proof.json`.
    """
    rows = Markup("").join(_rows(proof))
    return page.replace(FORMATS_MARK, _HEAD + rows + Markup("</tbody></table>"), 1)


def _rows(proof: Mapping[str, Any]) -> Iterator[Markup]:
    for name, figures in (*proof["formats"].items(), *proof["refused"].items()):
        yield _ROW.format(
            name=name,
            size=sum(file["bytes"] for file in figures["files"].values()) / 1e6,
            error=figures["relative_error"],
            psnr="–" if figures["psnr"] is None else f"{figures['psnr']:.1f}",
            kept="–" if figures["gain_kept"] is None else f"{figures['gain_kept']:.0%}",
            released=f"left out: {'; '.join(figures['refused'])}" if figures["refused"] else "yes",
        )
