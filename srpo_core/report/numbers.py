"""Figures and sentences as text on the page."""

MINUS = "\N{MINUS SIGN}"
MISSING = "\N{EN DASH}"


def plain(figure: float | None, digits: int = 3) -> str:
    """Format a figure with a real minus sign; None becomes a dash."""
    return MISSING if figure is None else f"{_rounded(figure, digits):.{digits}f}".replace("-", MINUS)


def signed(figure: float | None, digits: int = 3) -> str:
    """Format a difference with its sign; None becomes a dash."""
    return MISSING if figure is None else f"{_rounded(figure, digits):+.{digits}f}".replace("-", MINUS)


def percent(share: float, digits: int = 0) -> str:
    """Format a share as a percentage."""
    return f"{100 * share:.{digits}f}%"


def capitalized(text: str) -> str:
    """Start with a capital letter, unless the first word is a name, such as a metric's or a rule's."""
    first = text.partition(" ")[0]
    return text if "_" in first or first.endswith(":") else text[:1].upper() + text[1:]


def finite(figure: float) -> float | None:
    """Return the figure, or None if it is NaN or infinite."""
    return figure if abs(figure) < float("inf") else None


def _rounded(figure: float, digits: int) -> float:
    # a sum with zero turns -0.0 into 0.0
    return round(figure, digits) + 0.0
