"""The control interface: HTTP and JSON on a Unix socket, and nothing of how the engine works.

- ``face``: what this room asks of the engine and of the process, as protocols
- ``operations``: the table of all operations; routes and OpenAPI are both made from it
- ``routes``: one small handler for each operation
- ``records``: records that only this room has
- ``requests``: what a request says: its body, its query, its reference
- ``responses``: JSON, errors, file content, lines of progress
- ``gate``: in front of everything: peer credentials, permission, one log line, the last catch-all
- ``openapi``: the description, from the records' own schemas
- ``peer``: who connected, and what they may do
- ``app``: the pieces put together as an ASGI application
"""
