"""fedsim as a Flower app: the same clients and the same server under ``flwr run .`` and in a deployment.

``flwr run . --run-config 'scenario="quickstart" set="rounds=5; client.per_round=4"'``. The federation needs as many
nodes as the scenario has clients (``data.clients``), each with a ``partition-id`` of its own in its node config, which
Flower's simulation gives them. Run-config keys:

===========  ============================================================================================
``scenario``  path of a scenario file, or the name of one that ships with fedsim
``set``       overrides as on the command line, parted by semicolons
``out``       folder of the run on the server's machine; empty keeps the results in memory
``resume``    true: go on with the run in that folder (refused where parts keep memory on the clients)
``wait``      seconds that the nodes have, before the first round, to connect and to say which partition they hold
===========  ============================================================================================

Under Flower's simulation, which runs its nodes as actors of Ray beside a grid in memory, privacy's noise comes from the
scenario's seed. Everywhere else the app takes itself for deployed, whatever the run config says, and draws it from the
operating system's entropy: who starts a run cannot make a node use a seed that others know.
"""

from __future__ import annotations

import logging
import math
import threading
from functools import lru_cache
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsim import flower, runtime
from fedsim.errors import FedsimError

log = logging.getLogger("flwr")


class ScenarioClient(ClientApp):
    """The ClientApp of the scenario that the run config names, built with the first message of a process.

    It holds nothing itself, since Flower's simulation sends it along with every message.
    """

    def __call__(self, message: Message, context: Context) -> Message:
        with _building:
            app = _clients(_text(context, "scenario"), _text(context, "set"), not flower.simulates())
        return app(message, context)


@lru_cache(maxsize=1)
def _clients(scenario: str, sets: str, deployed: bool) -> ClientApp:
    from fedsim.federation import build

    runtime.worker_thread()
    return build(_scenario(scenario, sets), deployed).app


_building = threading.Lock()
client_app = ScenarioClient()
server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario on the nodes of Flower's grid."""
    from fedsim.simulation import simulate

    scenario = _scenario(_text(context, "scenario"), _text(context, "set"))
    out, resume = _text(context, "out") or None, bool(context.run_config.get("resume", False))
    deployed = not flower.simulates(grid)
    with flower.waiting(_seconds(context)):
        result = simulate(scenario, out, resume, progress=_progress, grid=grid, deployed=deployed)
    log.info("finished: %s", result)


def _scenario(name: str, sets: str) -> Any:
    from fedsim.scenario import Scenario

    return Scenario.load(name or "quickstart", sets=[each.strip() for each in sets.split(";") if each.strip()])


def _text(context: Context, key: str) -> str:
    return str(context.run_config.get(key, "")).strip()


def _seconds(context: Context) -> float:
    """The run config's ``wait``.

    Raises:
        FedsimError: it is no number of seconds.
    """
    given = context.run_config.get("wait", flower.WAIT)
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise FedsimError(f"run config: wait: given {given!r}; accepted: a number of seconds")
    return seconds


def _progress(line: dict[str, Any]) -> None:
    shown = [f"{name} {line[name]:.3f}" for name in ("accuracy", "loss", "asr") if line.get(name) is not None]
    log.info("round %s: %s", line["round"], ", ".join(shown) or "not evaluated")
