"""What a person sees whose login with a provider was refused."""

from __future__ import annotations

import html

from svc_infra.errors import SvcInfraError


def error_page(error: SvcInfraError, request_id: str) -> str:
    """A page about an error, without style or script, so that it is shown under any Content-Security-Policy.

    Args:
        error: What happened; the detail of one from 500 on is kept back.
        request_id: What to name to whoever runs the service.
    """
    detail = error.detail if error.status < 500 else (type(error).__doc__ or error.title).strip().splitlines()[0]
    said = {"title": "The login did not succeed", "detail": detail, "code": error.code, "request": request_id}
    shown = {name: html.escape(value) for name, value in said.items()}
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{shown['title']}</title></head>\n<body>\n<h1>{shown['title']}</h1>\n<p>{shown['detail']}</p>\n"
        f"<p><small>{shown['code']} · {shown['request']}</small></p>\n</body>\n</html>\n"
    )
