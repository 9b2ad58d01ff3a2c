"""Sides of a comparison that take turns, each in a process of its own, so that a process's memory is one side's."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

Answer = dict[str, Any]


class Turns:
    """Starts ``python script arguments --side SIDE`` for each side; each must call `serve`.

    Args:
        script: the calling script.
        sides: their names.
        arguments: of the script, for all.
    """

    def __init__(self, script: str, sides: tuple[str, ...], arguments: list[str]) -> None:
        command = [sys.executable, script, *arguments, "--side"]
        self._children = {
            side: subprocess.Popen([*command, side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for side in sides
        }

    def ask(self, side: str, question: Any) -> Answer:
        """What a side answers; the others wait.

        Raises:
            RuntimeError: the side's process has ended.
        """
        child = self._children[side]
        child.stdin.write(json.dumps(question) + "\n")
        child.stdin.flush()
        line = child.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {side} ended with exit code {child.wait()}")
        return json.loads(line)

    def rounds(self, warm_up: int, count: int) -> dict[str, list[Answer]]:
        """Ask all sides in turn for the rounds 0 to ``warm_up + count - 1``; all answers by side."""
        answers = {side: [] for side in self._children}
        for number in range(warm_up + count):
            for side in self._children:
                answers[side].append(self.ask(side, number))
        return answers

    def __enter__(self) -> "Turns":
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children.values():
            child.stdin.close()
            child.wait()


def serve(answer: Callable[[Any], Answer]) -> None:
    """Be a side: answer one question after the other, until there are no more."""
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()
