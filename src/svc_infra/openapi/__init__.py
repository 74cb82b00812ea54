"""What an app says about itself: its OpenAPI document, its API reference, its problem pages, its landing page.

- `add`: `add_openapi(app)`
- `operations`: names of operations, and the check that each has one of its own
- `schema`: problems in the OpenAPI document · `conditions`: `If-Match` and its relatives in it
- `problems`: what each type of problem means
- `pages`, `assets`, `static/`: the HTML, and the scripts and styles that it loads from the app itself
- `http`: reads routes and serves the pages
"""

from svc_infra.openapi.add import add_openapi

__all__ = ["add_openapi"]
