"""Mistakes planted in the ring core, each of which the short set of the model must find.

Most are one forgotten step of a rule that the core states; those that broke drafts of the design, and those
that the model has found in the core itself, are all among them.
"""

from __future__ import annotations

from model.mutants_people import PEOPLE
from model.mutants_records import RECORDS

MUTANTS = [*RECORDS, *PEOPLE]
