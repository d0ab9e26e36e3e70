"""A client's measure of the received model on its own data."""

from __future__ import annotations

from flwr.app import MetricRecord

from fedsim.client.node import Node
from fedsim.client.task import correct, mean_loss


def measure(node: Node) -> MetricRecord:
    """``num-examples``, ``loss`` and, for classes, ``accuracy`` of the received model on the client's own data."""
    examples, classes = node.held_out(), node.workload.num_classes
    n = len(examples)
    if not n:
        return MetricRecord({"num-examples": 0, "loss": 0.0, **({"accuracy": 0.0} if classes else {})})
    outputs = node.predict(examples.inputs).to(node.workload.dtype)
    loss = mean_loss(outputs, examples.targets, classes)
    measured = MetricRecord({"num-examples": n, "loss": float(loss)})
    if classes:
        measured["accuracy"] = correct(outputs, examples.targets, classes) / n
    return measured
