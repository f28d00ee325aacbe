"""A Ray embedded in this process, started in two thirds of `ray.init`'s time.

`ray.init` starts processes that serve nobody here, and waits for them one after the other; `ray start` has options for some of them,
`ray.init` has none. So names of Ray's own are replaced while it starts. Ray is pinned; a name that is gone is an AttributeError, and
`tests/test_runtime.py` looks at the processes.
"""

import functools
import time
from typing import Any
from unittest.mock import patch

import ray
import ray._private as private

node: Any = private.node  # names that Ray keeps to itself have no types
parameter: Any = private.parameter
services: Any = private.services
_raylet: Any = ray._raylet

CLOSED = b"127.0.0.1:1"
ALIVE = 0  # of gcs.proto's GcsNodeInfo.GcsNodeState
LOOK_SECONDS = 0.02  # between two looks for the new node
WAIT_SECONDS = 30.0  # as Ray does


def start(**options: Any) -> None:
    """`ray.init` of a Ray that ends with this process; it takes the same options.

    Left out are the autoscaler, as no nodes are added, which answers no SIGTERM, so that `ray.shutdown` would wait a second for it;
    the log monitor, whose lines go to drivers that ask for them; and the server of a dashboard that is not included, which answers no
    request either, but tells Ray's makers how Ray is used.
    """
    few = functools.partial(parameter.RayParams, no_monitor=True, include_log_monitor=False)
    with (
        patch.object(parameter, "RayParams", few),
        patch.object(node.Node, "start_api_server", _no_server),
        patch.object(services, "get_node", functools.partial(_get_node, services.get_node)),
    ):
        ray.init(address="local", include_dashboard=False, **options)


def _no_server(self: Any, **_: Any) -> None:
    """In place of `Node.start_api_server`: an address where nobody listens.

    Without one, who asks for the server waits for it: Ray Train for 12 seconds at the end of each fit.
    """
    self._webui_url = ""
    constants = private.ray_constants
    self.get_gcs_client().internal_kv_put(constants.DASHBOARD_ADDRESS.encode(), CLOSED, True, constants.KV_NAMESPACE_DASHBOARD)


def _get_node(get_node: Any, gcs_address: str, node_id: str) -> Any:
    """As `services.get_node`, which looks again after a second where the node is not known yet."""
    nodes = _raylet.GcsClient(address=gcs_address)
    deadline = time.monotonic() + WAIT_SECONDS  # then Ray says that the node did not start
    while time.monotonic() < deadline:
        found = {known.hex(): info.state for known, info in nodes.get_all_node_info(timeout=WAIT_SECONDS).items()}
        if found.get(node_id) == ALIVE:
            break
        time.sleep(LOOK_SECONDS)
    return get_node(gcs_address, node_id)
