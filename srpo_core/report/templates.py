"""The page's templates, which are next to this file."""

from functools import cache
from typing import Any

from markupsafe import Markup

from srpo_core.report.numbers import capitalized, percent, plain, signed
from srpo_core.report.text import visible


def render(template: str, **values: Any) -> Markup:
    """Render a template; values are escaped unless they are `Markup`. A missing value is an error."""
    return Markup(_environment().get_template(template).render(**values))  # noqa: S704  # escaped by the template


@cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("srpo_core.report", package_path=""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible_text,
    )
    environment.filters |= {"plain": plain, "signed": signed, "percent": percent, "capital": capitalized}
    return environment


def _visible_text(value: Any) -> Any:
    """Replace control characters in what a template inserts; they would reach the browser unchanged."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
