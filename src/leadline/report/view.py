"""The page of a run, or of several, served on 127.0.0.1 and nowhere else.

Knows nothing of what is on the page: it repeats the page's own content security policy as a header, and refuses
requests that name another host, so that no web site can read the page through the reader's browser.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from leadline.report.page import policy_of, render
from leadline.result import Result
from leadline.spec import UserError

HOST = "127.0.0.1"


def _say(address: str) -> None:
    # at once, also into a pipe
    print(address, flush=True)


def view(runs: Sequence[Path | str], port: int = 0, announce: Callable[[str], None] = _say) -> None:
    """Serve the page of these runs until Ctrl-C. port: 0 takes a free one; announce: is told the address.

    Raises UserError where the extra `view` is missing, a run cannot be read, or the port cannot be had.
    """
    with _extra():
        import uvicorn
    served = application([Path(run) for run in runs])
    with socket.socket() as listener:
        # Ctrl-C and the same command again must find the port free
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except (OSError, OverflowError) as error:
            how = "Name another port, or none to take a free one."
            raise UserError(f"the port cannot be had: {error}", f"port {port}", how) from error
        listener.listen()  # whoever reads the address may ask at once
        announce(f"http://{HOST}:{listener.getsockname()[1]}/")
        with suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(served, log_level="warning", server_header=False)).run(sockets=[listener])


def application(runs: Sequence[Path]) -> Any:
    """An ASGI application with one page, made from the records at every request, so that a running run can be watched.

    Raises UserError where the extra `view` is missing or a run cannot be read.
    """
    with _extra():
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.requests import Request
        from starlette.responses import HTMLResponse, PlainTextResponse, Response
        from starlette.routing import Route

    def page(_: Request) -> Response:
        try:
            text = _page(runs)
        except UserError as error:
            return PlainTextResponse(str(error), status_code=503, headers=_headers("default-src 'none'"))
        return HTMLResponse(text, headers=_headers(policy_of(text)))

    _page(runs)
    guard = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)
    return Starlette(routes=[Route("/", page)], middleware=[guard])


@contextmanager
def _extra() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        how = "Install it with `pip install 'leadline[view]'`, or open the file that `leadline report` writes."
        raise UserError("the extra that serves pages is not installed", "leadline view", how) from error


def _page(runs: Sequence[Path]) -> str:
    return render([(run, Result.load(run)) for run in runs])


def _headers(policy: str) -> dict[str, str]:
    return {
        "Content-Security-Policy": f"{policy}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
