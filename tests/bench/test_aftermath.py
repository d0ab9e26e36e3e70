"""How long an attack is felt after its last round."""

from __future__ import annotations

from fedsim.report.aftermath import aftermath


def lines(accuracies, asrs, attacked=(3,)):
    return [
        {"round": number, "accuracy": accuracy, "asr": asr, "malicious": [1] if number in attacked else []}
        for number, (accuracy, asr) in enumerate(zip(accuracies, asrs, strict=True))
    ]


ACCURACIES = [0.1, 0.7, 0.8, 0.3, 0.5, 0.79, 0.8]
ASRS = [0.0, 0.1, 0.1, 0.9, 0.7, 0.3, 0.1]


def test_rounds_to_recovery_and_rounds_that_the_backdoor_survives():
    assert aftermath(lines(ACCURACIES, ASRS), {}) == {"recovery": 2, "survival": 2}
    calm = {"accuracies": {"5": 0.9, "6": 0.81}, "rounds": {str(number): 0.1 for number in range(7)}}
    assert aftermath(lines(ACCURACIES, ASRS), calm) == {"recovery": 3, "survival": 2}


def test_counts_from_the_last_attack_and_says_nothing_where_the_run_ends_first():
    assert aftermath(lines(ACCURACIES, ASRS, (1, 4)), {})["survival"] == 1
    assert aftermath(lines(ACCURACIES, ASRS, (3, 6)), {}) == {"recovery": None, "survival": None}
    lasting = lines([0.8, 0.8, 0.8, 0.2, 0.2], [0.0, 0.0, 0.0, 0.9, 0.9])
    assert aftermath(lasting, {}) == {"recovery": None, "survival": None}
    assert aftermath(lines(ACCURACIES, ASRS, ()), {}) == {"recovery": None, "survival": None}


def test_rounds_without_evaluation_are_passed_over_and_no_damage_is_no_time():
    sparse = lines([0.1, None, 0.8, None, 0.8, None, 0.8], [0.0, None, 0.0, None, 0.9, None, 0.1])
    assert aftermath(sparse, {}) == {"recovery": 1, "survival": 3}
    harmless = lines([0.8] * 5, [0.0] * 5)
    assert aftermath(harmless, {}) == {"recovery": 0, "survival": 0}
