"""Use Prefect's dashboard in a headless Chromium, as a person does: sign in, read a page, press buttons, fill in fields."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chromium import Tab, opened_tab
from prefect_server import Server

# scripts: the centre of an element, after it was scrolled into view
_PLACE = """(() => {
  const e = %s; if (!e) return null;
  e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();
  return [b.x + b.width / 2, b.y + b.height / 2];
})()"""
# the newest element that a person can press and that shows exactly this text
_BUTTON = """[...document.querySelectorAll(
  'button, a, [role=option], [role=button], [role=menuitem], [role=tab], .p-select-option'
)].filter(e => e.innerText.trim() === %s && e.checkVisibility()).at(-1)"""
# the field of a form below its label
_FIELD = """[...document.querySelectorAll('.p-label')].filter(
  e => e.querySelector('label')?.innerText.trim() === %s
).at(-1)?.querySelector('.p-label__body :is(textarea, input, select)')"""
# choose an option of a list as the keyboard does; the list that a mouse opens is no part of the page
_CHOICE = """(() => {
  const e = %s; if (![...e.options].some(option => option.value === %s)) return false;
  e.focus(); e.value = %s;
  for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true}));
  return true;
})()"""


class Dashboard:
    """The dashboard of a Prefect server in a tab of Chromium. `tab` is for what this class has no method for."""

    def __init__(self, tab: Tab, server: Server) -> None:
        self.tab, self.address = tab, server.url.removesuffix("/api")
        tab.open(self.address)
        self._focus("document.querySelector('input[type=password]')")
        tab.type(server.secret)
        self.press("Login")
        self.wait_for("Deployments")

    def open(self, path: str) -> None:
        """Open a page of the dashboard, such as `runs/flow-run/<id>`."""
        self.tab.open(f"{self.address}/{path}")

    def text(self) -> str:
        """Return the text that the page shows."""
        return str(self.tab.run("document.body.innerText"))

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Wait until the page shows a text; fail with what it shows instead."""
        self.tab.wait(f"document.body?.innerText.includes({json.dumps(text)})", seconds)

    def press(self, text: str) -> None:
        """Press the newest button, link or option that shows exactly this text."""
        self._focus(_BUTTON % json.dumps(text))

    def submit(self, button: str, dialog: str, seconds: float = 60) -> None:
        """Press the button of a dialog until it closes: it takes in the last field a moment after it was filled in."""
        until = time.monotonic() + seconds
        while dialog in self.text():
            assert time.monotonic() < until, self.text()
            self.press(button)
            time.sleep(2)

    def fill_in(self, label: str, text: str) -> None:
        """Click into the field of a form that has this label, and type a text."""
        self._focus(_FIELD % json.dumps(label))
        self.tab.type(text)

    def choose(self, label: str, option: str) -> None:
        """Choose an option of the list that has this label."""
        self._focus(_FIELD % json.dumps(label))
        field, value = _FIELD % json.dumps(label), json.dumps(option)
        assert self.tab.run(_CHOICE % (field, value, value)), f"{label} has no option {option}: {self.text()}"

    def _focus(self, element: str) -> None:
        """Click on the element that a script returns, when it exists and no longer moves: menus open with an animation."""
        before, place = None, self.tab.wait(_PLACE % element)
        while place != before:
            time.sleep(0.2)
            before, place = place, self.tab.wait(_PLACE % element)
        self.tab.click(*place)

    def save(self, path: Path) -> None:
        """Save what the window shows as a PNG of few colours, which a page of documentation can carry."""
        self.tab.screenshot().quantize(128).save(path, optimize=True)


@contextmanager
def opened_dashboard(
    server: Server, home: Path, *, width: int = 1400, height: int = 900
) -> Iterator[Dashboard]:
    """Open the dashboard of a server and sign in with its secret. home: a directory for Chromium's profile."""
    with opened_tab(home, width=width, height=height) as tab:
        yield Dashboard(tab, server)
