"""`ir-env serve`: restoration as a service and as a web page, on Ray Serve and FastAPI; and `ir-env mcp` (mcp.py), for assistants.

    browser, curl ── guard.py (limits) ── app.py (FastAPI) ── jobs.py (queue, results) ── restorers.py (Ray Serve) ── MC-Pool (tools)

The HTTP server is uvicorn in the command's own process, and Ray Serve's deployment is called through its handle: Serve's own proxy reads a
body into memory without a bound and takes time-outs from the client's headers, neither of which a service for strangers' files may do.
"""
