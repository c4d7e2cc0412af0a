"""Every claim of the paper, held against what was measured.

Source: Lappe & Giese (NeurIPS 2025). Each claim has a plain numeric criterion (docs/claims.md).
"""

from collections.abc import Sequence

from vitscope.reproduction.claim import Claim, Models
from vitscope.reproduction.comparisons import describe
from vitscope.reproduction.evidence import ModelEvidence, check_different
from vitscope.reproduction.findings import Finding, write_claims
from vitscope.reproduction.register_claims import list_register_claims
from vitscope.reproduction.skip_claims import list_skip_claims

__all__ = ["Finding", "judge_claims", "list_claims", "write_claims"]


def judge_claims(
    evidence: Sequence[ModelEvidence], *, readout: str = "attention", classifier: str = "nearest"
) -> list[Finding]:
    """Hold every claim of the paper against the measurements."""
    check_different(evidence)
    return [_find(claim, evidence) for claim in list_claims(readout, classifier)]


def list_claims(readout: str = "attention", classifier: str = "nearest") -> list[Claim]:
    """Every claim of the paper."""
    return [*list_register_claims(readout, classifier), *list_skip_claims()]


def _find(claim: Claim, evidence: Models) -> Finding:
    check = claim.check(evidence)
    return Finding(
        where=claim.where,
        data=claim.data,
        claim=claim.statement,
        criterion=claim.criterion,
        measured=describe(check.numbers),
        answer=check.answer,
        reason="; ".join(check.reasons),
    )
