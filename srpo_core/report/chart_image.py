"""A chart as an image of its own, with its colours, where no page has a style sheet for it."""

import base64
import math
from collections.abc import Sequence
from typing import Final

from srpo_core.report.charts import HEIGHT, WIDTH, Level, Series, line_chart

# the colours of the report in its light scheme
_STYLE: Final = (
    "text{font:11px sans-serif;fill:#5c6770} .rule{stroke:#edf0f2} .axis{stroke:#e2e6e9} "
    ".line{fill:none;stroke-width:2;stroke-linejoin:round;stroke:#0f6c81} .dot{fill:#fff;stroke:#0f6c81} "
    ".before{fill:#b9c3ca} .after{fill:#0f6c81} .interval{stroke:#1b2126;stroke-width:1.5} "
    ".threshold{stroke:#a8321f;stroke-dasharray:6 3} .chosen-value{fill:#1b2126;font-weight:600}"
)


def evidence_image(curve: Sequence[tuple[float, float]], threshold: float, above: float) -> str:
    """Draw the evidence of early stop towards its threshold, as the URL `data:image/svg+xml;base64,...`.

    curve: (step, evidence), evidence above 0; above: powers of ten above the threshold up to which it is drawn.
    """
    highest = math.log10(threshold) + above
    points = [(step, min(math.log10(evidence), highest)) for step, evidence in curve]
    svg = line_chart(
        [Series("evidence", points)],
        label="evidence by checkpoint after step",
        x_label="checkpoint after step",
        level=Level(math.log10(threshold), f"1/alpha = {threshold:g}"),
        powers=True,
    )
    return image_url(str(svg), WIDTH, HEIGHT)


def image_url(svg: str, width: float, height: float) -> str:
    """Return a chart of `charts.svg_of` with its colours, in twice its size, as the URL `data:image/svg+xml;base64,...`."""
    size = f'width="{2 * width:.0f}" height="{2 * height:.0f}"'
    image = svg.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" {size} ', 1)
    inside = image.index(">") + 1
    whole = f'{image[:inside]}<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{image[inside:]}'
    return f"data:image/svg+xml;base64,{base64.b64encode(whole.encode()).decode()}"
