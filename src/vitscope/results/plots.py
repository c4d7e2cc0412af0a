"""What a result draws of itself, as matplotlib figures that a notebook shows.

A figure knows results, so a result must not know figures. These methods are the one way up: each
imports its figure when it is asked for, and hands it the folder alone.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vitscope.figures.drawing import Drawing
    from vitscope.figures.saved import ModelResult


class AuditPlots:
    """The figures of one audit.

    Every method raises `NothingToDrawError` where the result holds no numbers for its figure, and
    says which.

    Attributes:
        folder: Where the result lies.
    """

    folder: Path

    def plot_variance_share(self) -> "Figure":
        """Which term the output's variance over images comes from.

        Returns:
            The figure.
        """
        from vitscope.figures.variance_share import plot_variance_share

        return _draw_alone(self.folder, plot_variance_share)

    def plot_restricted_cka(
        self, readout: Literal["attention", "values"] = "attention"
    ) -> "Figure":
        """CKA of the attention output with what patches or registers alone write (Fig. 3a).

        Args:
            readout: Whether outputs are compared after the output projection, or before it.

        Returns:
            The figure.
        """
        from vitscope.figures.cka import plot_restricted_cka

        return _draw_alone(self.folder, lambda found: plot_restricted_cka(found, readout))

    def plot_residual_cka(self) -> "Figure":
        """CKA of the output with patches, skip and the other terms (Fig. 6).

        Returns:
            The figure.
        """
        from vitscope.figures.cka import plot_residual_cka

        return _draw_alone(self.folder, plot_residual_cka)

    def plot_patch_share(self) -> "Figure":
        """Attention on patches as part of that on patches and registers (Fig. 2a).

        Returns:
            The figure.
        """
        from vitscope.figures.patch_share import plot_patch_share

        return _draw_alone(self.folder, plot_patch_share)

    def plot_norms(self) -> "Figure":
        """Norms of what each term writes (Fig. 5a).

        Returns:
            The figure.
        """
        from vitscope.figures.norms import plot_norms

        return _draw_alone(self.folder, plot_norms)

    def plot_layer_similarity(self) -> "Figure":
        """How alike [CLS] at each depth is to [CLS] at the last (Fig. 5b).

        Returns:
            The figure.
        """
        from vitscope.figures.layers import plot_layer_similarity

        return _draw_alone(self.folder, plot_layer_similarity)

    def plot_anatomy(self) -> "Figure":
        """Norms, dependence on the image and outlier dimensions of registers (Fig. 2b).

        Returns:
            The figure.
        """
        from vitscope.figures.anatomy import plot_anatomy

        return _draw(self.folder, plot_anatomy)

    def plot_high_norm_tokens(self) -> "Figure":
        """Norms of patch tokens, and how many are high-norm tokens, at each depth.

        Returns:
            The figure.
        """
        from vitscope.figures.layers import plot_high_norm_layers

        return _draw(self.folder, plot_high_norm_layers)

    def plot_high_norm_grid(self) -> "Figure":
        """Where on the patch grid high-norm tokens sit.

        Returns:
            The figure.
        """
        from vitscope.figures.high_norm_grid import plot_high_norm_grid

        return _draw(self.folder, plot_high_norm_grid)

    def plot_gram_ledger(self) -> "Figure":
        """How much of the representational geometry each pair of terms carries.

        Returns:
            The figure.
        """
        from vitscope.figures.gram import plot_gram_ledger

        return _draw(self.folder, plot_gram_ledger)

    def plot_directions(self) -> "Figure":
        """Whether the terms write in the same directions.

        Returns:
            The figure.
        """
        from vitscope.figures.directions import plot_directions

        return _draw(self.folder, plot_directions)

    def plot_covariates(self) -> "Figure":
        """What can be seen in images that go to patches, registers or skip.

        Returns:
            The figure.
        """
        from vitscope.figures.covariates import plot_covariates

        return _draw(self.folder, plot_covariates)

    def plot_interdependence(self) -> "Figure":
        """Shares of registers and skip against each other, image by image.

        Returns:
            The figure.
        """
        from vitscope.figures.interdependence import plot_interdependence

        return _draw_alone(self.folder, plot_interdependence)


class OneShotPlots:
    """The figure of one-shot classification.

    Attributes:
        folder: Where the result lies.
    """

    folder: Path

    def plot_accuracy(
        self,
        classifier: str = "nearest",
        top: Literal["top1", "top5"] = "top5",
        readout: Literal["attention", "values"] = "attention",
    ) -> "Figure":
        """Accuracy by the part of the output that was tested (Fig. 3b).

        Args:
            classifier: As in the summary: "nearest" or "logistic".
            top: Whether the first, or one of the first five guesses must be right.
            readout: Whether outputs are taken after the output projection, or before it.

        Returns:
            The figure.

        Raises:
            NothingToDrawError: If the result has no such accuracy.
        """
        from vitscope.figures.one_shot import plot_one_shot

        return _draw_alone(
            self.folder, lambda found: plot_one_shot(found, classifier, top, readout)
        )


class ExplanationPlots:
    """The figure of explained images.

    Attributes:
        folder: Where the result lies.
    """

    folder: Path

    def plot_maps(self, image: int = 0, *, heads: bool = False) -> "Figure":
        """The image, its raw attention, its value-weighted and its signed-share map (Fig. 4).

        Args:
            image: Its place in `summary["images"]`.
            heads: Whether maps of every head follow.

        Returns:
            The figure, with the verdict under the maps.

        Raises:
            UsageError: If there is no such image.
        """
        from vitscope.figures.maps import plot_explanations
        from vitscope.results.explanation import Explanation

        return plot_explanations([Explanation(self.folder)], image, heads=heads)


def _draw(folder: Path, plot: Callable[["ModelResult"], "Drawing"]) -> "Figure":
    from vitscope.figures.saved import load_results

    (result,) = load_results([folder])
    return plot(result).figure


def _draw_alone(folder: Path, plot: Callable[[Sequence["ModelResult"]], "Drawing"]) -> "Figure":
    return _draw(folder, lambda result: plot([result]))
