"""The reward functions that `upslope init` writes to begin with."""

from __future__ import annotations


def reward_text(function: str, answer: str | None) -> str:
    """A file with one reward function that runs as it stands: it compares with a column, or judges the form alone."""
    if answer is None:
        return _FORM.replace("FUNCTION", function)
    return _ANSWER.replace("FUNCTION", function).replace("COLUMN", answer)


_HEAD = '''"""Rewards: a function gets prompts, completions, and every other column of the rows, each as a list.

It returns one number for each completion, higher is better, or None where it does not apply. It runs in a process of
its own, under a deadline; an exception stops the run and is never a 0. `upslope check` tries it out.
"""
'''
_TEXT = '''

def text_of(completion):
    """The completion's text: of conversational rows it is a list with one message."""
    return completion if isinstance(completion, str) else completion[-1]["content"]
'''
_ANSWER = (
    _HEAD
    + '''
import re


def FUNCTION(prompts, completions, COLUMN, **columns):
    """1.0 where the completion is the right answer, 0.5 where it says it among other words, else 0.0.

    Case, white space and punctuation at the ends do not count. The half helps a model that has not yet learned to
    answer briefly: take it away when the model talks around the answer.
    """
    scores = []
    for completion, right in zip(completions, COLUMN):
        said, wanted = plain(text_of(completion)), plain(right)
        found = re.search(rf"(?<!\\w){re.escape(wanted)}(?!\\w)", said)
        scores.append(1.0 if said == wanted else 0.5 if found else 0.0)
    return scores


def plain(text):
    """Lower case, single spaces, nothing around it."""
    return " ".join(str(text).lower().split()).strip(" .,;:!?\\"'")
'''
    + _TEXT
)
_FORM = (
    _HEAD
    + '''
WORDS = 60


def FUNCTION(prompts, completions, **columns):
    """1.0 for a completion of at most WORDS words that ends as a sentence does; less for each word more, down to 0.0.

    Half of it where the last sentence is not finished, 0.0 for nothing. It judges the form alone: your rows have no
    column with right answers.
    """
    scores = []
    for completion in completions:
        said = text_of(completion).strip()
        words = len(said.split())
        score = 0.0 if not words else max(0.0, 1.0 - max(0, words - WORDS) / WORDS)
        scores.append(score if said.endswith((".", "!", "?")) else score / 2)
    return scores
'''
    + _TEXT
)
