"""What a reply must look like: one of some texts, a match of a regular expression, or JSON that fits a schema.

A :class:`Constraint` is checked when it is made and knows no model; :class:`MaskFactory` makes masks of tokens from it
for one tokenizer.  Both lean on llguidance (https://github.com/guidance-ai/llguidance), which is imported on first use.
"""

from qwchat.constraints.constraint import Constraint, ConstraintKind, split_choices
from qwchat.constraints.masks import MaskFactory

__all__ = ["Constraint", "ConstraintKind", "MaskFactory", "split_choices"]
