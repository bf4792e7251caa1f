"""Authorization function of MLflow's server: a request must have credentials, and must not come from a foreign page.

Whatever origins its settings allow, MLflow lets pages of every port of this machine read its answers, with the
credentials that the browser keeps for MLflow's page. Another user of the machine could serve such a page.

It also answers the link by which a browser logs in (:mod:`infra.servers.login_page`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from infra.servers.login_page import LOGIN_PATH, MLFLOW_FRONT, stays_here

if TYPE_CHECKING:
    from flask import Response
    from werkzeug.datastructures import Authorization

FUNCTION = "infra.servers.mlflow_gate:authenticate"


def authenticate() -> Authorization | Response:
    """Return the request's credentials if they are right and no foreign page sent it, else 401 or 403.

    The login's link is answered with the address of the page that it names, without the credentials in its own.
    MLflow calls this in Flask's request context, for routes of Flask and of FastAPI.
    """
    from flask import Response, request
    from mlflow.server.auth import authenticate_request_basic_auth, make_forbidden_response

    own = os.environ["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    if any(origin not in own for origin in request.headers.getlist("Origin")):
        return make_forbidden_response()
    found = authenticate_request_basic_auth()
    if request.path == LOGIN_PATH and not isinstance(found, Response):
        # Absolute: a browser would keep the credentials of the present address in one that is relative to it.
        page = request.host_url.rstrip("/") + stays_here(request.args.get("to", MLFLOW_FRONT))
        return Response(status=303, headers={"Location": page, "Cache-Control": "no-store"})
    return found
