"""The accuracy of the worst tenth of the clients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from strategies.strategy import DefendedStrategy


def asked(accuracies: dict[int, float], clients: list[int]) -> tuple[Any, list[Any]]:
    """A strategy's memory where these clients were asked, and their replies."""
    found = _replies(accuracies)
    sender = {id(reply): client for client, reply in found.items()}
    post = SimpleNamespace(sender=lambda reply: sender[id(reply)])
    return SimpleNamespace(evaluate_clients=clients, _post=post, outcome=SimpleNamespace()), list(found.values())


def _replies(accuracies: dict[int, float]) -> dict[int, Any]:
    return {
        client: SimpleNamespace(
            has_content=lambda: True,
            content=SimpleNamespace(metric_records={"metrics": {"accuracy": accuracy, "num-examples": 5}}),
        )
        for client, accuracy in accuracies.items()
    }


def test_of_twenty_clients_the_two_worst_count() -> None:
    accuracies = {client: ((7 * client) % 20 + 1) / 20 for client in range(20)}  # .05, .10, … 1, out of order
    strategy, replies = asked(accuracies, list(accuracies))
    found = DefendedStrategy.aggregate_evaluate(strategy, 1, replies)
    assert found is not None
    assert found["worst10"] == pytest.approx((0.05 + 0.10) / 2)
    assert found["accuracy"] == pytest.approx(0.525)
    assert strategy.outcome.worst10 == found["worst10"]


def test_of_under_twenty_the_worst_one_counts_and_who_was_not_asked_does_not() -> None:
    strategy, replies = asked({client: 0.5 + client / 100 for client in range(19)} | {99: 0.0}, list(range(19)))
    found = DefendedStrategy.aggregate_evaluate(strategy, 1, replies)
    assert found is not None
    assert found["worst10"] == pytest.approx(0.5)
