"""A message to an address, over HTTP."""

from collections.abc import Mapping
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from recsys.engine.progress import log

SECONDS = 10.0  # for an answer
RETRY = Retry(total=3, backoff_factor=1, status_forcelist=(429, 500, 502, 503, 504), allowed_methods={"POST"}, raise_on_status=False)


def post(url: str, message: Mapping[str, Any]) -> bool:
    """Whether an address took a message, as JSON by POST; where not the log says why, and never the address, which may be secret.

    What fails for a while is tried three times more within some ten seconds, so a message may arrive twice.
    """
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=RETRY))
        try:
            answer = session.post(url, json=message, timeout=SECONDS, allow_redirects=False)
        except (requests.RequestException, ValueError) as error:  # their texts hold the address
            said = type(error).__name__
        else:
            if answer.ok and not answer.is_redirect:
                return True
            said = f"HTTP {answer.status_code}"
    log.warning("notify: the message could not be sent: %s. Check the address of [notify].", said)
    return False
