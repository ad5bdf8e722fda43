"""The same page as a tab of the live app, served by gradio's own server."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from front.taste.desk import HEADERS, Reply, may_post

if TYPE_CHECKING:
    from front.taste.desk import Desk

# Loads when the tab is opened, not before. The address is relative: the app may lie below a path.
FRAME = (
    '<iframe id="taste" class="taste" src="taste/" title="Which do you like better?" '
    'loading="lazy"></iframe>'
)
FOCUS = "() => requestAnimationFrame(() => document.getElementById('taste')?.focus())"  # for keys


def route_of(desk: Desk) -> Any:
    """The page below `taste/`, as a starlette route, which gradio's server takes."""
    from starlette.concurrency import run_in_threadpool  # noqa: PLC0415 - comes with gradio
    from starlette.responses import Response  # noqa: PLC0415
    from starlette.routing import Mount, Route  # noqa: PLC0415

    async def answer(request: Any) -> Any:
        path, headers = request.path_params["path"], request.headers
        if request.method != "POST":
            reply = await run_in_threadpool(desk.get, path)
        elif may_post(headers.get("content-type", ""), headers.get("content-length", "")):
            reply = await run_in_threadpool(desk.post, path, await request.body())
        else:
            reply = Reply(status=HTTPStatus.FORBIDDEN)
        return Response(reply.body, reply.status, HEADERS, reply.kind)

    return Mount("/taste", routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
