"""fedsim as a Flower app: the same clients and the same server under ``flwr run .`` and in a deployment.

``flwr run . --run-config 'scenario="quickstart" set="rounds=5; client.per_round=4"'``. The federation needs as many
nodes as the scenario has clients (``data.clients``), each with a ``partition-id`` of its own in its node config, which
Flower's simulation gives them. Run-config keys:

===========  ============================================================================================
``scenario``  path of a scenario file, or the name of one that ships with fedsim
``set``       overrides as on the command line, parted by semicolons
``out``       folder of the run on the server's machine; empty keeps the results in memory
===========  ============================================================================================
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsim import runtime

log = logging.getLogger("flwr")


class ScenarioClient(ClientApp):
    """The ClientApp of the scenario that the run config names, built with the first message of a process."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._apps: dict[tuple[str, str], ClientApp] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        return self._app(context)(message, context)

    def _app(self, context: Context) -> ClientApp:
        key = (_text(context, "scenario"), _text(context, "set"))
        with self._lock:
            if key not in self._apps:
                from fedsim.federation import build

                runtime.worker_thread()
                self._apps[key] = build(_scenario(context)).app
            return self._apps[key]


client_app = ScenarioClient()
server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario on the nodes of Flower's grid."""
    from fedsim.simulation import simulate

    result = simulate(_scenario(context), out=_text(context, "out") or None, grid=grid, progress=_progress)
    log.info("finished: %s", result)


def _scenario(context: Context) -> Any:
    from fedsim.scenario import Scenario

    sets = [each.strip() for each in _text(context, "set").split(";") if each.strip()]
    return Scenario.load(_text(context, "scenario") or "quickstart", sets=sets)


def _text(context: Context, key: str) -> str:
    return str(context.run_config.get(key, "")).strip()


def _progress(line: dict[str, Any]) -> None:
    shown = [f"{name} {line[name]:.3f}" for name in ("accuracy", "loss", "asr") if line.get(name) is not None]
    log.info("round %s: %s", line["round"], ", ".join(shown) or "not evaluated")
