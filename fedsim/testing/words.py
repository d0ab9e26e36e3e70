"""What a check that fails means to the part's author, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """A fault in a few words, and the way out."""

    head: str
    advice: str


HIDDEN = Word(
    "reads what the threat model hides",
    'Use ctx.seen(), which holds what the adversary knows; or say knowledge = "omniscient" (for preview also '
    "knows_defense = True) in the class, and in the scenario's [adversary]",
)
RAISES = Word("raises an error", "The toy rounds of fedsim.testing call it just as a run does")
SLOW = Word(
    "is slow",
    "It costs this in every round: work on whole (n, d) tensors in place of Python loops over clients or numbers",
)
UNTYPED = Word(
    "has a setting that is no option",
    "An option has a type: strength: float = 3.0; one that is to stay as it is begins with an underscore",
)
FIRST = {
    "does_something",
    "says_what_it_knows",
    "can_be_built",
    "keeps_shape",
    "gives_what_stages_give",
    "fits",
    "has_a_standpoint",
    "fits_the_toy_run",
    "finds_what_can_be_kept",
}
"""Checks after whose failure the others have nothing to say."""
COMPARING = {
    "permutes",
    "keeps_to_its_knowledge",
    "steps_row_by_row",
    "weighs_row_by_row",
    "learns_the_same",
    "ignores_order",
    "ignores_the_empty",
    "translates",
    "scales",
    "rows_are_independent",
    "paths_agree",
    "goes_on_after_a_resume",
}
"""Checks that compare two runs, and say nothing of a part that does not repeat itself."""

_STREAM = "Draw from ctx.stream('purpose') or ctx.noise('purpose'), in poison from node.stream('purpose')"
_SERVER_STREAM = "Draw from ctx.stream('purpose')"
_WAIT = "Checks that compare two runs wait for it"
_COPY = "Work on a copy: rows.clone(), updates.replace(values=…)"

_WORDS: dict[tuple[str, str], Word] = {
    ("attacks", "does_something"): Word(
        "does nothing",
        "Define one of its hooks: poison, learn, objective, after_step, craft, claimed_examples, triggered, observe",
    ),
    ("attacks", "says_what_it_knows"): Word(
        "says wrongly what it has to know", 'knowledge = "own", "colluding" or "omniscient"'
    ),
    ("attacks", "keeps_shape"): Word(
        "gives rows of a wrong shape",
        "craft returns one row of d numbers for each row that it is given: (f, d) → (f, d)",
    ),
    ("attacks", "leaves_input"): Word("changes its input", _COPY),
    ("attacks", "repeats"): Word(
        "gives not the same bits twice",
        f"{_STREAM}; what it remembers belongs into ctx.state, not into self. {_WAIT}",
    ),
    ("attacks", "permutes"): Word(
        "depends on the clients' order",
        "Treat all rows alike; what is to differ from client to client goes by ctx.clients",
    ),
    ("attacks", "stays_finite"): Word(
        "gives numbers that are not finite",
        "Norms and spreads may be zero: .clamp(min=1e-12); if NaN is what it sends, say finite = False in the class",
    ),
    ("attacks", "leaves_global_randomness"): Word(
        "uses the global random state", f"{_STREAM}; never seed a global one"
    ),
    ("attacks", "keeps_to_its_knowledge"): HIDDEN,
    ("attacks", "poisons_validly"): Word(
        "poisons its data into what no client can train on", "Keep shapes and types, labels from 0 to num_classes - 1"
    ),
    ("attacks", "excludes_the_target"): Word(
        "counts test images that prove nothing",
        "triggered leaves out images whose label is the target already, and those that an attacker trained on",
    ),
    ("attacks", "steps_row_by_row"): Word(
        "mixes clients in after_step", "Each of the (k, d) rows is a client: norm(dim=1, keepdim=True), not norm()"
    ),
    ("attacks", "weighs_row_by_row"): Word(
        "mixes clients in objective", "Each of the (k,) losses is a client's, a function of its own row alone"
    ),
    ("attacks", "learns_for_all"): Word(
        "hands to all what one client learns", 'Say knowledge = "colluding" in the class, and in the scenario'
    ),
    ("attacks", "learns_the_same"): Word("learns otherwise the second time", _STREAM),
    ("attacks", "remembers_plainly"): Word(
        "remembers what no checkpoint can hold", "ctx.state takes tensors, numbers, strings, and tables of them"
    ),
    ("defenses", "does_something"): Word(
        "does nothing", "Define one of its stages: transform, select, combine, bound, finish"
    ),
    ("defenses", "gives_what_stages_give"): Word(
        "gives something of a wrong shape",
        "transform → Updates, select → Selection with n weights, combine → Aggregate with d numbers and n weights",
    ),
    ("defenses", "fits"): Word(
        "gives something of a wrong shape",
        "The aggregate has d numbers in the rows' precision, n weights that sum to 1 (NaN: unknown), n of each score",
    ),
    ("defenses", "ignores_order"): Word(
        "is not equal under permutation",
        "Rows have no order: break ties by value, not by place, and key memory by updates.client_ids",
    ),
    ("defenses", "repeats"): Word(
        "gives not the same bits twice",
        f"{_SERVER_STREAM}; what it remembers belongs into ctx.state, not into self. {_WAIT}",
    ),
    ("defenses", "leaves_input"): Word("changes its input", _COPY),
    ("defenses", "leaves_global_randomness"): Word(
        "uses the global random state", f"{_SERVER_STREAM}; never seed a global one"
    ),
    ("defenses", "survives_refusals"): Word(
        "does not survive a client that sends what is not finite",
        "Such a client is dropped before the defense: rounds have other clients and other n; key memory by client id",
    ),
    ("defenses", "ignores_the_empty"): Word(
        "lets a client without examples move the model", "Weigh by updates.num_examples"
    ),
    ("defenses", "withstands"): Word(
        "does not withstand what a client may send",
        "Guard divisions and squares: rows may be equal, zero, huge or tiny",
    ),
    ("defenses", "says_too_few"): Word(
        "breaks on too few clients",
        "require(len(updates) >= 3, 'my rule', len(updates), '3 clients or more'), from strategies.defense",
    ),
    ("defenses", "translates"): Word(
        "does not move with the updates", "Correct it, or leave translation_equivariant out of the class"
    ),
    ("defenses", "scales"): Word(
        "does not scale with the updates", "Correct it, or leave scale_equivariant out of the class"
    ),
    ("optimizers", "can_be_built"): Word(
        "cannot be built",
        "row_wise = True (or False) in the class; def build(self, parameters, scale=1.0) gives a torch.optim.Optimizer",
    ),
    ("optimizers", "heeds_the_schedule"): Word(
        "does not heed schedules of the learning rate", "build takes self.lr * scale as the learning rate"
    ),
    ("optimizers", "repeats"): Word(
        "gives not the same steps twice",
        f"Keep all memory in the optimizer's own state. {_WAIT}",
    ),
    ("optimizers", "rows_are_independent"): Word(
        "mixes clients",
        "A parameter may be (k, d), k clients at once: act on each number alone, or say row_wise = False in the class",
    ),
    ("optimizers", "paths_agree"): Word(
        "trains otherwise on the stacked path", "Act on each number alone, or say row_wise = False in the class"
    ),
    ("optimizers", "leaves_global_randomness"): Word(
        "uses the global random state", "Take no random numbers of torch's own"
    ),
    ("observers", "has_a_standpoint"): Word(
        "has no standpoint",
        'standpoint: Standpoint = "server" (or "client") as an option of the class says what it sees',
    ),
    ("observers", "fits_the_toy_run"): Word(
        "does not fit a plain run", "Give the options with which it does: --set OPTION=VALUE; check says what it needs"
    ),
    ("observers", "finds_what_can_be_kept"): Word(
        "finds what no run can keep",
        "observe returns None, or Observation(measures, pictures): numbers and words; arrays (m, C, H, W)",
    ),
    ("observers", "repeats"): Word(
        "finds not the same twice",
        f"Draw from self.watched.stream('purpose', seen.round); what it remembers belongs into state. {_WAIT}",
    ),
    ("observers", "goes_on_after_a_resume"): Word(
        "finds something else after a resume", "What it remembers from round to round belongs into state, not into self"
    ),
    ("observers", "leaves_what_it_is_shown"): Word("changes its input", "Work on a copy: seen.before.clone()"),
    ("observers", "leaves_global_randomness"): Word(
        "uses the global random state", "Draw from self.watched.stream('purpose', seen.round); never seed a global one"
    ),
    ("observers", "remembers_plainly"): Word(
        "remembers what no checkpoint can hold", "state takes tensors, numbers, strings, and tables of them"
    ),
    ("observers", "bears_what_is_hidden"): Word(
        "needs what its standpoint hides",
        "seen.messages is empty and seen.total None where they are hidden: say state['why'] and return None, or refuse "
        "such a scenario in check",
    ),
}


def words(suite: str, check: str) -> Word:
    """The words for a check that failed."""
    return _WORDS.get((suite, check), Word(f"fails {check}", ""))


__all__ = ["COMPARING", "FIRST", "HIDDEN", "RAISES", "SLOW", "UNTYPED", "Word", "words"]
