"""The edge: what every request of `create_app` passes before a handler sees it, fused in one layer.

- `edge`: `EdgeMiddleware`, the whole stack in its order
- `exchange`: one request and its answer: what may still be read and sent · `handshake`: the same of a websocket
- `admission`: how many handlers run at once, and for how long
- `shutdown`: SIGTERM, from the first refused probe to the last closed connection
- `protocol`: bounds on headers that are not complete, in uvicorn
- `hosts`, `cors`: which host names and which origins are answered
- `add`: `add_edge(app)`

The single concerns are classes of `svc_infra.middleware`, for apps that are made otherwise.
"""
