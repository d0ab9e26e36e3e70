"""All that a node needs to train: data, model, optimizer, and how much of it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim import rng, runtime
from fedsim.client.objective import Objective
from fedsim.data.examples import Examples, Shares
from fedsim.errors import FedsimError
from fedsim.flower import as_tensor
from fedsim.updates import Layout, share

PATHS = ("auto", "stacked", "vmap", "reference")
PRECISIONS = ("float32", "float64", "bfloat16")


@dataclass
class Workload:
    """What every node of a federation trains, and on what.

    Args:
        train: whole training set.
        shares: which client holds which of it.
        model: makes a fresh module; its weights are overwritten by the received vector.
        layout: ``Layout.of(model())``.
        num_classes: classes of the target; 0 for regression (squared error).
        optimizer: an optimizer part.
        seed: the scenario's seed.
        batch_size: examples in a step; a short last batch keeps its true size.
        epochs: local epochs; or
        steps: local steps, which go on over as many epochs as they need (exactly one of the two).
        proximal: FedProx's mu; the loss gets mu/2 · |w - received|².
        clip_norm: bound of the norm of each client's gradient in each step.
        augmentations: parts that change the inputs of each batch.
        holdout: share of a client's examples that it keeps for its own evaluation.
        dropout: probability that a client answers nothing in a round.
        straggler: probability that a client does only a part of its steps.
        view: a partition's own look at a client's examples (feature shift).
        precision: float32, float64, or bfloat16 (autocast; what is exchanged stays float32).
        device: torch device by name.
        path: auto, stacked, vmap or reference.
        loss: a loss part; None: the task's own.
        regularizers: regularizer parts, whose penalties are added to the loss.
        step_control: a step control part, which scales each local step.
        adapter: an adapter part, by which each client maps its own inputs.
        optimizer_state: ``persist``: each client keeps its optimizer's state over rounds.
        secrecy: from whom a client keeps what would leave without noise: none; public: the words of its errors;
            server: its training loss as well.
        tells_counts: whether a client that trains tells its example count; else it says 1.

    Raises:
        FedsimError: options that do not fit each other.
    """

    train: Examples
    shares: Shares
    model: Callable[[], nn.Module]
    layout: Layout
    num_classes: int
    optimizer: Any
    seed: int
    batch_size: int = 32
    epochs: int | None = 1
    steps: int | None = None
    proximal: float = 0.0
    clip_norm: float | None = None
    augmentations: Sequence[Any] = ()
    holdout: float = 0.0
    dropout: float = 0.0
    straggler: float = 0.0
    view: Callable[[Examples, int, int], Examples] | None = None
    precision: str = "float32"
    device: str = "cpu"
    path: str = "auto"
    loss: Any = None
    regularizers: Sequence[Any] = ()
    step_control: Any = None
    adapter: Any = None
    optimizer_state: Literal["reset", "persist"] = "reset"
    secrecy: Literal["none", "public", "server"] = "none"
    tells_counts: bool = True

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise FedsimError(
                f"client: given epochs = {self.epochs}, steps = {self.steps}; accepted: exactly one of the two"
            )
        for name, accepted in (("path", PATHS), ("precision", PRECISIONS)):
            if getattr(self, name) not in accepted:
                raise FedsimError(f"engine.{name}: given {getattr(self, name)!r}; accepted: {', '.join(accepted)}")
        self._lock = threading.RLock()
        self._here: Examples | None = None
        self._prototype: nn.Module | None = None

    def __getstate__(self) -> dict[str, Any]:
        state = {each.name: getattr(self, each.name) for each in fields(self)}
        state["train"] = tuple(tensor.detach().cpu().numpy() for tensor in (self.train.inputs, self.train.targets))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        inputs, targets = state.pop("train")
        self.__dict__.update(state, train=Examples(as_tensor(inputs), as_tensor(targets)))
        self.__post_init__()

    @property
    def clients(self) -> int:
        return len(self.shares)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of parameters, updates and optimizer state."""
        return torch.float64 if self.precision == "float64" else torch.float32

    @property
    def objective(self) -> Objective:
        """What a client minimises on a batch."""
        return Objective(self.num_classes, self.loss, tuple(self.regularizers))

    @property
    def apart(self) -> Literal["", "examples", "objectives"]:
        """Whose gradients the optimizer combines: single examples', several objectives'; nothing: one of a batch."""
        if hasattr(self.optimizer, "combine"):
            return "examples"
        several = self.objective.objectives > 1 and getattr(self.optimizer, "combines_objectives", False)
        return "objectives" if several else ""

    @property
    def searches(self) -> bool:
        """Whether the optimizer evaluates the objectives of many clients' batches itself."""
        return hasattr(self.optimizer, "build_rows")

    @property
    def examples(self) -> Examples:
        """The training set on the workload's device; read-only."""
        with self._lock:
            if self._here is None:
                self._here = Examples(self.train.inputs.to(self.device), self.train.targets.to(self.device))
            return self._here

    def fresh_module(self) -> nn.Module:
        """A module of one's own on the workload's device, in its precision; leaves torch's global generator alone."""
        with self._lock:
            if self._prototype is None:
                runtime.prepare_device(self.device)
                with torch.random.fork_rng():
                    self._prototype = self.model().to(device=self.device, dtype=self.dtype)
            return copy.deepcopy(self._prototype)

    def rows(self, client: int) -> NDArray[np.int64]:
        """Positions of the examples that a client trains on, in the training set."""
        return self._split(client)[0]

    def held_out(self, client: int) -> NDArray[np.int64]:
        """Positions of the examples that a client evaluates on: its held-out share, or all it has without one."""
        return self._split(client)[1] if self.holdout else self._split(client)[0]

    def _split(self, client: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        own = np.asarray(self.shares[client], dtype=np.int64)
        if not self.holdout:
            return own, own[:0]
        shuffled = own[rng.stream(self.seed, "client.holdout", client=client).permutation(len(own))]
        held = share(float(self.holdout), len(own))
        return shuffled[held:], shuffled[:held]

    def steps_of(self, examples: int) -> int:
        """Local steps of a client with so many examples, before it straggles."""
        if not examples:
            return 0
        if self.steps is not None:
            return self.steps
        return (self.epochs or 0) * -(-examples // self.batch_size)

    def example_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(B,) loss of each example."""
        return self.objective.example_losses(outputs, targets)

    def inputs(self, inputs: Tensor) -> Tensor:
        """A batch on the workload's device, floating inputs in its precision."""
        return inputs.to(device=self.device, dtype=self.dtype if inputs.is_floating_point() else None)

    def targets(self, targets: Tensor) -> Tensor:
        return targets.to(device=self.device, dtype=self.dtype if targets.is_floating_point() else None)
