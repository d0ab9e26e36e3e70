"""What is measured of a round: accuracy, loss, attack success rate, detection, who was kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim import runtime
from fedsim.analysis.statistics import auc, wilson
from fedsim.blocks import has_float64
from fedsim.client.task import example_losses
from fedsim.data.examples import Examples, Shares
from fedsim.functional import functional_call
from fedsim.updates import Layout
from strategies.strategy import Outcome

AT_ONCE = 250
"""Examples of one forward pass on a processor: the activations of a thousand images are blocks that the C library gets
anew from the kernel for each layer, which takes as long as the convolutions."""


class Evaluator:
    """The global model on test examples, in fixed blocks that are added in order, so that threads change no bit.

    Args:
        module: the model; it is put into evaluation mode and loaded with what is evaluated.
        layout: its parameters and buffers.
        batch_size: examples of a block.
        workers: threads.
        device: where it runs.
        dtype: precision of the forward pass.
        num_classes: classes of the target; 0 for regression, where there is no accuracy.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        layout: Layout,
        batch_size: int,
        workers: int,
        device: torch.device,
        dtype: torch.dtype,
        num_classes: int = 1,
    ) -> None:
        self.module = module.to(device=device, dtype=dtype).eval()
        if any(isinstance(layer, torch.nn.Conv2d) for layer in module.modules()):
            self.module = self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.layout, self.batch_size, self.device, self.dtype = layout, batch_size, device, dtype
        self.num_classes = num_classes
        self.at_once = AT_ONCE if device.type == "cpu" else batch_size
        self.pool = ThreadPoolExecutor(max(1, workers), initializer=runtime.worker_thread)

    def close(self) -> None:
        self.pool.shutdown()

    def load(self, vector: Tensor) -> None:
        self.layout.load(self.module, vector)

    def logits(self, vector: Tensor, inputs: Tensor) -> Tensor:
        """(n, classes) for a (d + b,) vector; differentiable by a vector that requires it, where gradients are on."""
        if torch.is_grad_enabled() and vector.requires_grad:
            views = self.layout.views(vector.to(self.device, self.dtype))
            return functional_call(self.module, views, (self._given(inputs),))  # type: ignore[no-any-return]
        self.load(vector)
        with torch.no_grad():
            return self.module(self._given(inputs))  # type: ignore[no-any-return]

    def _given(self, inputs: Tensor) -> Tensor:
        """Inputs where the model is, numbers in its precision, codes as they are."""
        return inputs.to(self.device, self.dtype if inputs.is_floating_point() else None)

    def score(self, examples: Examples) -> tuple[int, float]:
        """Correct predictions (0 for regression) and the summed loss of the loaded model."""

        def block(start: int) -> tuple[int, float]:
            with torch.no_grad():
                inputs = self._given(examples.inputs[start : start + self.batch_size])
                targets = examples.targets[start : start + self.batch_size].to(self.device)
                outputs = torch.cat([self.module(piece) for piece in torch.split(inputs, self.at_once)])
                if not self.num_classes:
                    return 0, float(example_losses(outputs, targets, 0).sum())
                loss = torch.nn.functional.cross_entropy(outputs, targets, reduction="sum")
                return int((outputs.argmax(1) == targets).sum()), float(loss)

        results = list(self.pool.map(block, range(0, len(examples), self.batch_size)))
        return sum(correct for correct, _ in results), sum(loss for _, loss in results)

    def measure(self, vector: Tensor, test: Examples, triggered: Examples | None) -> dict[str, Any]:
        """Accuracy, loss and, where there is a trigger, the attack success rate with its Wilson interval."""
        self.load(vector)
        correct, loss = self.score(test)
        n = max(1, len(test))
        found: dict[str, Any] = {"accuracy": correct / n if self.num_classes else None, "loss": loss / n}
        found |= {"asr": None, "asr_low": None, "asr_high": None, "asr_eligible": None}
        if triggered is not None and len(triggered):
            hits, _ = self.score(triggered)
            low, high = wilson(hits, len(triggered))
            found |= {"asr": hits / len(triggered), "asr_low": low, "asr_high": high, "asr_eligible": len(triggered)}
        return found

    def gradient_norm(self, vector: Tensor, train: Examples, shares: Shares) -> float:
        """‖∇f‖₂ at a (d + b,) vector, f(x) = (1/P) Σ_p (1/n_p) Σ_i ℓ(x, z_pi) over the clients that hold examples."""
        self.load(vector)
        sizes = np.asarray(shares.sizes, dtype=np.float64)
        holders = max(1, int((sizes > 0).sum()))
        weights = torch.from_numpy(np.repeat(1 / (holders * np.maximum(sizes, 1)), shares.sizes)).to(self.device)
        rows = torch.from_numpy(np.asarray(shares.indices, dtype=np.int64))
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        total = [torch.zeros(p.shape, dtype=torch.float64, device=self.device) for p in parameters]
        for start in range(0, len(rows), self.batch_size):
            block = train.take(rows[start : start + self.batch_size])
            outputs = self.module(self._given(block.inputs))
            targets = block.targets.to(self.device)
            losses = example_losses(outputs, targets if self.num_classes else targets.to(outputs), self.num_classes)
            weighted = (losses.double() * weights[start : start + self.batch_size]).sum()
            for into, part in zip(total, torch.autograd.grad(weighted, parameters), strict=True):
                into += part
        return float(torch.cat([part.flatten() for part in total]).norm())


def round_line(
    outcome: Outcome, malicious: Sequence[int], selects: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A round's line and its clients' lines, from what the strategy saw.

    Args:
        outcome: the round.
        malicious: partition ids in the cohort that attacked.
        selects: whether a defense selects; detection is measured on selections alone.
    """
    bad = set(malicious)
    line: dict[str, Any] = {
        "round": outcome.round,
        "cohort": outcome.cohort,
        "malicious": sorted(bad),
        "forced": [list(pair) for pair in outcome.forced],
        "faults": [{"client": client, "reason": reason} for client, reason in outcome.faults],
        "train_loss": outcome.train_loss,
        "worst10": outcome.worst10,
        "epsilon": None,
        "defense_acted": outcome.acted,
        **outcome.measures,
    }
    empty = ("malicious_weight", "true_positive_rate", "false_positive_rate", "auc", "norm_honest", "norm_malicious")
    line |= dict.fromkeys(empty)
    line |= {"kept": [], "kept_malicious": []}
    if outcome.updates is None or outcome.aggregate is None:
        return line, []
    updates, result = outcome.updates, outcome.aggregate
    norms = row_norms(updates.values)
    weights = result.weights.tolist()
    unknown = any(math.isnan(weight) for weight in weights)
    clients = []
    for i, client in enumerate(updates.client_ids):
        clients.append(
            {
                "round": outcome.round,
                "client": client,
                "malicious": client in bad,
                "weight": weights[i],
                "kept": math.isnan(weights[i]) or weights[i] > 0,
                "scores": {name: values[i].item() for name, values in result.scores.items()},
                "norm": norms[i],
                "num_examples": int(updates.num_examples[i]),
            }
        )
    line["kept"] = [row["client"] for row in clients if row["kept"]]
    line["kept_malicious"] = [row["client"] for row in clients if row["kept"] and row["malicious"]]
    if not unknown:
        line["malicious_weight"] = sum(row["weight"] for row in clients if row["malicious"])
    for key, wanted in (("norm_honest", False), ("norm_malicious", True)):
        values = sorted(row["norm"] for row in clients if row["malicious"] is wanted)
        line[key] = _median(values)
    if selects:
        dropped = {row["client"] for row in clients if not row["kept"]}
        present = {row["client"] for row in clients}
        good = present - bad
        if bad & present:
            line["true_positive_rate"] = len(dropped & bad) / len(bad & present)
        if good:
            line["false_positive_rate"] = len(dropped & good) / len(good)
        if result.scores and bad & present and good:
            scores = next(iter(result.scores.values()))
            line["auc"] = auc(scores.tolist(), [client in bad for client in updates.client_ids])
    return line, clients


def row_norms(values: Tensor) -> list[float]:
    """Euclidean norms of the rows, accumulated in float64 in one thread, row by row."""
    rows = values if has_float64(values.device) else values.cpu()
    with runtime.one_thread():
        return [float(torch.linalg.vector_norm(row, dtype=torch.float64)) for row in rows]


def _median(values: list[float]) -> float | None:
    if not values:
        return None
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2
