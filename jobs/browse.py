"""Serve read-only pages on the published nights to this machine's browser: users, items, reports."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from datetime import date
from typing import Annotated, Any

import typer
from aiohttp import web

from jobs import Config, job, main
from recsys import config
from recsys.engine.progress import console
from recsys.errors import ConfigError, RecsysError, one_line
from recsys.pipelines.browse import Browser

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
BROWSER = web.AppKey("browser", Browser)
SIGTERM = web.AppKey[Any]("sigterm")


def browse(
    config_path: Config,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0: one that is free.")] = 8642,
) -> None:
    """Serve read-only pages on the published nights to this machine's browser: users, items, reports."""
    with job():
        asyncio.run(_serve(application(Browser(config.load(config_path))), port))


async def _serve(app: web.Application, port: int) -> None:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    try:
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(f"--port {port}: must be free on 127.0.0.1, got: {error.strerror}. Name another, or 0.") from error
        console.print(f"http://127.0.0.1:{runner.addresses[0][1]}/ until Ctrl-C", highlight=False)
        await asyncio.Event().wait()
    except asyncio.CancelledError:  # Ctrl-C
        console.print("Ended.")
    finally:
        await runner.cleanup()


def application(browser: Browser) -> web.Application:
    """What answers: GET alone, and only who asks for this machine by its own name, so that no page elsewhere can read along."""
    app = web.Application(middlewares=[_guard])
    app[BROWSER], app[SIGTERM] = browser, signal.getsignal(signal.SIGTERM)
    app.router.add_get("/", _home)
    app.router.add_get("/user", _user)
    app.router.add_get("/item", _item)
    app.router.add_get("/report/{as_of}", _report)
    return app


@web.middleware
async def _guard(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    if request.host.rsplit(":", 1)[0] not in LOOPBACK and request.host not in LOOPBACK:
        return web.Response(status=403, text="Only for this machine: ask for 127.0.0.1.\n", headers=HEADERS)
    try:
        return await handler(request)
    except RecsysError as error:
        text = await asyncio.to_thread(request.app[BROWSER].refused, one_line(error))
        return web.Response(status=404, text=text, content_type="text/html", headers=HEADERS)
    finally:
        signal.signal(signal.SIGTERM, request.app[SIGTERM])  # a Ray that was started and ended in a thread leaves its own


async def _home(request: web.Request) -> web.Response:
    browser = request.app[BROWSER]
    return _page(await asyncio.to_thread(browser.render, browser.home))


async def _user(request: web.Request) -> web.Response:
    browser = request.app[BROWSER]
    return _page(await asyncio.to_thread(browser.render, browser.user, request.query.get("id", ""), _day(request.query.get("as_of"))))


async def _item(request: web.Request) -> web.Response:
    browser = request.app[BROWSER]
    return _page(await asyncio.to_thread(browser.render, browser.item, request.query.get("id", ""), _day(request.query.get("as_of"))))


async def _report(request: web.Request) -> web.Response:
    as_of = _day(request.match_info["as_of"])
    assert as_of is not None
    body = await asyncio.to_thread(request.app[BROWSER].report, as_of)
    return web.Response(body=body, content_type="text/html", charset="utf-8", headers=HEADERS)


def _page(text: str) -> web.Response:
    return web.Response(text=text, content_type="text/html", headers=HEADERS)


def _day(text: str | None) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError as error:
        raise ConfigError(f"as_of: must be a date such as 2024-06-30, got '{text}'. Choose a night from the list.") from error


if __name__ == "__main__":
    main(browse)
