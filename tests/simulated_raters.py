"""Raters with known preferences, who use the page of `srpo rate` in headless Chromium and see only its pixels.

They see the images of tests/rating_tasks.py: quality is the grey of the upper half, and the colour of the lower half tells whether
the image is of the prompt. Noise has neither.
"""

import json
import math
import random
import time
from dataclasses import dataclass, field

from chromium import Tab
from rating_tasks import QUALITY, colour_of

SECONDS = 60.0
ANSWERS = ("left", "right", "tie", "both_bad")
LEVELS = ("excellent", "good", "pass", "fail")
KEYS = {
    "left": ("ArrowLeft", 37),
    "right": ("ArrowRight", 39),
    "tie": ("t", 84),
    "both_bad": ("b", 66),
    "undo": ("u", 85),
    **{level: (str(number), 48 + number) for number, level in enumerate(LEVELS, 1)},
}
# mean grey of the upper half, its spread, and mean colour of the lower half, of each image in sight
_LOOK = """(() => {
  const seen = [];
  for (const image of document.querySelectorAll('#images img')) {
    const canvas = document.createElement('canvas'); canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
    const context = canvas.getContext('2d'); context.drawImage(image, 0, 0);
    const half = canvas.height / 2;
    const upper = context.getImageData(0, 0, canvas.width, half).data, lower = context.getImageData(0, half, canvas.width, half).data;
    const mean = (data, channel) => { let sum = 0; for (let i = channel; i < data.length; i += 4) sum += data[i]; return sum / (data.length / 4); };
    const grey = mean(upper, 0); let spread = 0;
    for (let i = 0; i < upper.length; i += 4) spread += (upper[i] - grey) ** 2;
    seen.push({grey, spread: Math.sqrt(spread / (upper.length / 4)), colour: [0, 1, 2].map((channel) => mean(lower, channel))});
  }
  return {prompt: document.getElementById('prompt').textContent, seen};
})()"""
_STATE = """(document.getElementById('done').hidden ? '' : 'done') ||
  (!document.getElementById('rating').hidden && [...document.querySelectorAll('[data-answer]')].every((one) => !one.disabled)
    ? document.getElementById('count').textContent : '')"""


@dataclass
class SimulatedRater:
    """A person in front of one tab.

    strength: how surely the better image wins: the log-odds for a difference of 80 grey levels. ties: chance of a tie between
    two images that are what the prompt says. laziness: chance to click without looking. side_bias: log-odds for the left side.
    clicks: whether the mouse is used, or else the keyboard. chosen: what this person meant, by (prompt, the models' greys).
    """

    tab: Tab
    name: str
    seed: int
    strength: float = 2.0
    ties: float = 0.1
    laziness: float = 0.0
    side_bias: float = 0.0
    clicks: bool = True
    chosen: list[dict] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def open(self, address: str) -> None:
        """Open the page, type the pseudonym, and start."""
        self.tab.open(address)
        self.tab.wait("document.activeElement?.id === 'rater'")
        self.tab.type(self.name)
        self.tab.press("Enter", 13) if not self.clicks else self.tab.click(
            *self.tab.centre_of("#welcome button")[:2]
        )
        self.state()

    def state(self, not_this: str = "") -> str:
        """Wait until the page can be answered and its count is another one, and return it, or "done"."""
        until = time.monotonic() + SECONDS
        while not (found := self.tab.run(_STATE)) or found == not_this:
            assert time.monotonic() < until, self.tab.run("document.body.innerText")
            time.sleep(0.02)
        return str(found)

    def rate(self, count: int | None = None) -> None:
        """Answer `count` items, or all that are left."""
        state = self.state()
        while state != "done" and count != 0:
            self.answer()
            state = self.state(state)
            count = None if count is None else count - 1

    def answer(self) -> None:
        """Look at the item in sight and answer it."""
        shown = self.tab.run(_LOOK)
        paired = len(shown["seen"]) > 1
        given = {"overall": self._pair(shown)} if paired else self._levels(shown)
        self.chosen.append(
            {"prompt": shown["prompt"], "models": [_model(one) for one in shown["seen"]], "answers": given}
        )
        for dimension, answer in given.items():
            self.press(answer, dimension)

    def press(self, answer: str, dimension: str = "overall") -> None:
        """Click on an answer's button, or press its key."""
        if not self.clicks:
            self.tab.press(*KEYS[answer])
        elif answer == "undo":
            self.tab.click(*self.tab.centre_of("#undo")[:2])
        else:
            selector = f"[data-dimension={json.dumps(dimension)}][data-answer={json.dumps(answer)}]"
            self.tab.click(*self.tab.centre_of(selector)[:2])

    def _pair(self, shown: dict) -> str:
        if self.random.random() < self.laziness:
            return self.random.choice(ANSWERS[:2])
        left, right = (_quality(one, shown["prompt"]) for one in shown["seen"])
        if min(left, right) > -1 and self.random.random() < self.ties:
            return "tie"
        odds = self.strength * (left - right) + self.side_bias
        return "left" if self.random.random() < 1 / (1 + math.exp(-odds)) else "right"

    def _levels(self, shown: dict) -> dict[str, str]:
        dimensions = ("text_alignment", "realism", "aesthetics", "overall")
        if self.random.random() < self.laziness:
            return {name: self.random.choice(LEVELS) for name in dimensions}
        quality = _quality(shown["seen"][0], shown["prompt"])
        if quality < -1:
            return dict.fromkeys(dimensions, "fail")
        return {
            name: LEVELS[min(3, max(0, round(2 - quality + self.random.gauss(0, 1 / self.strength))))]
            for name in dimensions
        }


def _quality(seen: dict, prompt: str) -> float:
    """Return an image's quality in units of 80 grey levels, -10 if it is not of the prompt."""
    colour = colour_of(prompt)
    is_other = max(abs(a - b) for a, b in zip(seen["colour"], colour, strict=True)) > 3
    return -10.0 if is_other or seen["spread"] > 20 else (seen["grey"] - QUALITY["base"]) / 80


def _model(seen: dict) -> str:
    """Return the model that an image is of, as its grey tells; "noise" for noise."""
    return (
        "noise" if seen["spread"] > 20 else min(QUALITY, key=lambda name: abs(QUALITY[name] - seen["grey"]))
    )
