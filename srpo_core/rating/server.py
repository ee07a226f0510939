"""The server of `srpo rate`: the page, its images, and answers.

A rater's address has the task's token. Images are asked for by item and side, and which model is where stays here: responses
have no name, time or tag of a file.
"""

import base64
import ipaddress
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from srpo_core.errors import AnswerError, ConfigError, SrpoError
from srpo_core.rating.answers import LONGEST, SHORTEST
from srpo_core.rating.collected import Answer, Answers, now
from srpo_core.rating.page import page_version, policy, render, shown_answers
from srpo_core.rating.presentation import a_is_left, ordered
from srpo_core.rating.records import dimensions_of
from srpo_core.rating.task import Item, Task

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI, Request, Response

LOOPBACK: Final = "127.0.0.1"
PORT_FILE: Final = "port"
PSEUDONYM: Final = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$"
MOST_SECONDS: Final = 1e7  # that a page may say; stored are at most `LONGEST`
_HEADERS: Final = {
    "Cache-Control": "private, max-age=86400",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_MOST_BYTES: Final = 10_000  # of a request

log = logging.getLogger(__name__)

Pseudonym = Annotated[str, StringConstraints(pattern=PSEUDONYM)]
Seconds = Annotated[float, Field(ge=SHORTEST, le=MOST_SECONDS, allow_inf_nan=False)]


class RaterRequest(BaseModel):
    """Somebody begins or goes on."""

    model_config = ConfigDict(extra="forbid", strict=True)
    rater: Pseudonym


class UndoRequest(RaterRequest):
    """The last answer is taken back."""

    item: str


class AnswerRequest(RaterRequest):
    """All answers to one item."""

    item: str
    answers: dict[str, str]
    seconds: Seconds
    page: str


@dataclass(frozen=True)
class Session:
    """What the server does for its raters."""

    task: Task
    answers: Answers

    def state(self, rater: str) -> dict[str, Any]:
        """Return the items in this rater's order, and those that are answered, in the order of the answers."""
        items = ordered(self.task.items.values(), self.task.planned.seed, rater)
        return {
            "items": [{"item": item.id, "prompt": item.prompt} for item in items],
            "answered": self.answers.items_of(rater),
        }

    def image(self, rater: str, item: Item, side: str) -> bytes:
        """Return the image that a rater sees on a side."""
        return self.task.image(slots(item)[int(len(item.files) > 1 and self._is_b(rater, item, side))])

    def answer(self, request: AnswerRequest) -> None:
        """Store an answer. Raises `AnswerError` if it is no answer to the item, or as `Answers.add`."""
        require_answers(self.task, request.item, request.answers)
        if request.page != page_version():
            raise AnswerError("the page is of another version: reload it")
        left = a_is_left(self.task.planned.seed, request.rater, request.item)
        self.answers.add(
            Answer(
                request.rater,
                request.item,
                request.answers,
                left,
                min(request.seconds, LONGEST),
                request.page,
                now(),
            )
        )

    def _is_b(self, rater: str, item: Item, side: str) -> bool:
        return a_is_left(self.task.planned.seed, rater, item.id) != (side == "left")


def slots(item: Item) -> tuple[str, ...]:
    """Return the files of an item's images "a" and "b"."""
    return item.files if item.first_is_a else item.files[::-1]


def require_answers(task: Task, item: str, answers: dict[str, str]) -> None:
    """Require one possible answer for each dimension of an item that the task has; raise `AnswerError`."""
    if item not in task.items:
        raise AnswerError(f"item {item[:40]!r} is not in this task")
    expected, allowed = dimensions_of(task.protocol), shown_answers(task.protocol)
    if set(answers) != set(expected):
        raise AnswerError(f"item {item}: answers are needed for {', '.join(expected)}")
    for dimension, answer in answers.items():
        if answer not in allowed:
            raise AnswerError(
                f"item {item}: {dimension} is {answer[:40]!r}: allowed are {', '.join(allowed)}"
            )


def create_app(session: Session, secret: str | None = None) -> "FastAPI":
    """Make the application. secret: "USER:PASSWORD" that a browser must send besides the token in the address."""
    from fastapi import FastAPI, HTTPException, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    task = session.task
    root = f"/{task.token}"
    html = render(task.protocol, dimensions_of(task.protocol), {"mode": "served"})

    @app.middleware("http")
    async def guard(request: "Request", call: "Callable[[Request], Awaitable[Response]]") -> Response:
        if secret is not None and not _knows(request.headers.get("authorization", ""), secret):
            return Response(status_code=401, headers={"WWW-Authenticate": 'Basic realm="srpo rate"'})
        length = request.headers.get("content-length", "")
        if request.method != "GET" and not length:
            return Response(status_code=411)  # its size is not known before it is read
        if int(length or 0) > _MOST_BYTES:
            return Response(status_code=413)
        if not secrets.compare_digest(request.url.path[: len(root) + 1].encode(), f"{root}/".encode()):
            return Response(status_code=404)
        response = await call(request)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @app.exception_handler(AnswerError)
    def refuse(_: "Request", error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=409)

    @app.exception_handler(SrpoError)
    def report(_: "Request", error: Exception) -> JSONResponse:
        log.error("%s", error)
        text = "The server has a fault, and your last answer is not saved: tell the person who gave you the link."
        return JSONResponse({"detail": text}, status_code=500)

    @app.exception_handler(RequestValidationError)
    def refuse_form(_: "Request", error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        text = f"{'.'.join(str(part) for part in first['loc'][1:])}: {first['msg']}"
        return JSONResponse({"detail": text}, status_code=422)

    @app.get(f"{root}/")
    def page() -> HTMLResponse:
        return HTMLResponse(html, headers={"Content-Security-Policy": policy(), "Cache-Control": "no-store"})

    @app.post(f"{root}/rater")
    def begin(request: RaterRequest) -> dict[str, Any]:
        return session.state(request.rater)

    @app.get(f"{root}/image/{{rater}}/{{item}}/{{side}}")
    def image(rater: Pseudonym, item: str, side: str) -> Response:
        if item not in task.items or side not in ("left", "right")[: len(task.items[item].files)]:
            raise HTTPException(404)
        return Response(session.image(rater, task.items[item], side), media_type="image/webp")

    @app.post(f"{root}/answer")
    def answer(request: AnswerRequest) -> dict[str, Any]:
        session.answer(request)
        return {}

    @app.post(f"{root}/undo")
    def undo(request: UndoRequest) -> dict[str, Any]:
        session.answers.undo(request.rater, request.item)
        return {}

    return app


def bind(host: str, port: int | None, directory: Path) -> socket.socket:
    """Open the port, or without one the last one of this task if it is free, or else any.

    Raises:
        ConfigError: the address or the port cannot be used.
    """
    noted = directory / PORT_FILE
    last = int(noted.read_text()) if port is None and noted.is_file() else 0
    candidates = [port] if port is not None else [last, 0]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in candidates:
        try:
            opened = socket.create_server((host, candidate), family=family)
        except OSError as error:
            failed = error
            continue
        noted.write_text(str(opened.getsockname()[1]))
        return opened
    raise ConfigError(
        f"{host} port {candidates[-1]} cannot be used ({os.strerror(failed.errno or 0)}): choose another --host or --port"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. Raises `ConfigError` if it is no address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise ConfigError(f"--host {host}: give an IP address of this machine, such as 0.0.0.0") from None


def make_server(app: "FastAPI") -> "uvicorn.Server":
    """Return the server of an application; its log has errors alone, and no addresses."""
    import uvicorn

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2
    )
    return uvicorn.Server(config)


def _knows(header: str, secret: str) -> bool:
    expected = f"Basic {base64.b64encode(secret.encode()).decode()}"
    return secrets.compare_digest(header.encode(), expected.encode())
