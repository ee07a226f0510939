"""Figures as they are written on the page."""

MINUS = "\N{MINUS SIGN}"
MISSING = "\N{EN DASH}"


def plain(figure: float | None, digits: int = 3) -> str:
    """A figure with a real minus sign; a dash where there is none."""
    return MISSING if figure is None else f"{_rounded(figure, digits):.{digits}f}".replace("-", MINUS)


def signed(figure: float | None, digits: int = 3) -> str:
    """A difference with its sign; a dash where there is none."""
    return MISSING if figure is None else f"{_rounded(figure, digits):+.{digits}f}".replace("-", MINUS)


def percent(share: float, digits: int = 0) -> str:
    """A share as a percentage."""
    return f"{100 * share:.{digits}f}%"


def finite(figure: float) -> float | None:
    """The figure, or None where it is NaN or infinite."""
    return figure if abs(figure) < float("inf") else None


def _rounded(figure: float, digits: int) -> float:
    # a sum with zero turns -0.0 into 0.0
    return round(figure, digits) + 0.0
