"""Print how many prompts show that the styles of prompts moved: the table in docs/drift.md.

Four styles with shares of 0.4, 0.3, 0.2 and 0.1, of which the first loses what the last gains.
"""

from collections import Counter
from typing import Final

import numpy as np

from srpo_core.data.drift import style_shift

PRODUCTION: Final = 3200
LIMIT: Final = 0.1
CONFIDENCE: Final = 0.975  # of one of two figures
SHARES: Final = (0.4, 0.3, 0.2, 0.1)
TRIES: Final = 400


def found(moved: float, count: int) -> float:
    """Return the share of the tries in which a distance of `moved` is found among `count` prompts."""
    generator = np.random.default_rng(0)
    after = [SHARES[0] - moved, *SHARES[1:3], SHARES[3] + moved]

    def draw(shares: tuple[float, ...] | list[float], size: int) -> Counter[str]:
        return Counter(map(str, generator.choice(len(shares), size=size, p=shares)))

    hits = sum(
        style_shift(draw(SHARES, PRODUCTION), draw(after, count), CONFIDENCE).beyond(LIMIT)
        for _ in range(TRIES)
    )
    return hits / TRIES


def main() -> None:
    """Print a row for each number of prompts."""
    moves, counts = (0.0, 0.1, 0.2, 0.3, 0.4), (50, 100, 200, 400, 800, 3200)
    print(f"| new prompts | {' | '.join(f'moved by {moved:g}' for moved in moves)} |")
    print(f"|---:|{'---:|' * len(moves)}")
    for count in counts:
        print(f"| {count:,} | {' | '.join(f'{found(moved, count):.0%}' for moved in moves)} |")


if __name__ == "__main__":
    main()
