"""All sums of an audit in one object."""

from dataclasses import dataclass

from vitscope.metrics.feature_sums import FeatureSums
from vitscope.metrics.patch_norms import PatchNormCounts
from vitscope.metrics.token_sums import TokenSums


@dataclass(eq=False)
class AuditSums:
    """What an audit adds up over images; sums of disjoint sets merge.

    Attributes:
        features: Of the [CLS] row, per audited layer.
        tokens: Of the special tokens, per audited layer; empty for a pooling query.
        patch_norms: Of all patch tokens, at every depth of the model.
        num_repeated: Images that were left out, for they were copies of others.
    """

    features: dict[int, FeatureSums]
    tokens: dict[int, TokenSums]
    patch_norms: PatchNormCounts
    num_repeated: int = 0

    def merge(self, other: "AuditSums") -> None:
        """Take in the sums of a disjoint set of images."""
        for layer, features in other.features.items():
            self.features[layer].merge(features)
        for layer, tokens in other.tokens.items():
            self.tokens[layer].merge(tokens)
        self.patch_norms.merge(other.patch_norms)
        self.num_repeated += other.num_repeated
