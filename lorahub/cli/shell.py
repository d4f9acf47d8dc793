"""Completion in bash of words with a colon or an @, which references have and which bash cuts words at."""

from __future__ import annotations

import os
import re
from typing import Any

from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

_CUT = re.compile(r"[:@]+")


@add_completion_class
class ReferenceBash(BashComplete):
    """click's completion for bash, given whole words; what bash has already of the last one is not proposed again."""

    _kept = 0

    def get_completion_args(self) -> tuple[list[str], str]:
        given = split_arg_string(os.environ["COMP_WORDS"])[: int(os.environ["COMP_CWORD"]) + 1]
        if len(given) <= int(os.environ["COMP_CWORD"]):
            given.append("")
        words: list[str] = []
        glue = False
        for word in given:
            cut = _CUT.fullmatch(word) is not None
            if words and (cut or glue):
                self._kept = len(words[-1]) + (len(word) if cut else 0)
                words[-1] += word
            else:
                self._kept = 0
                words.append(word)
            glue = cut
        return words[1:-1], words[-1]

    def format_completion(self, item: CompletionItem[Any]) -> str:
        if item.type == "plain":
            item = CompletionItem(item.value[self._kept :], item.type)
        return super().format_completion(item)
