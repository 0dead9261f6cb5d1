"""The daemon's HTTP API: EdgeVPN's routes as they are, and our own beside them under ``/v1``.

``model`` (shapes, value coding) and ``client`` belong to layer 3 and know no server; the rest is the daemon's face.
Nothing is re-exported here, so that importing the client does not load the server.
"""
