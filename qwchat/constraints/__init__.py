"""Constraints on a reply: one of several texts, a match of a regular expression, or JSON that fits a schema.

A `Constraint` is checked when it is created and is independent of the model. `MaskFactory` turns it into token masks
for one tokenizer. Both use llguidance (https://github.com/guidance-ai/llguidance), which is imported on first use.
"""

from qwchat.constraints.constraint import Constraint, ConstraintKind, split_choices
from qwchat.constraints.masks import MaskFactory

__all__ = ["Constraint", "ConstraintKind", "MaskFactory", "split_choices"]
