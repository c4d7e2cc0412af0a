"""CKA and variance shares from an audit's kept features, written from their definitions."""

import numpy as np
from safetensors.torch import load_file


def read_rows(result):
    shards = sorted((result.folder / "features" / f"{result.summary.layer:03d}").iterdir())
    parts = list(map(load_file, shards))
    return {
        name: np.concatenate([part[name].double().numpy() for part in parts]) for name in parts[0]
    }


def unbiased_hsic(x, y):
    n = len(x)
    gram, other = (np.where(np.eye(n), 0, rows @ rows.T) for rows in (x, y))
    ones = np.ones(n)
    return (
        np.trace(gram @ other)
        + (ones @ gram @ ones) * (ones @ other @ ones) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (ones @ gram @ other @ ones)
    )


def cka(x, y):
    return unbiased_hsic(x, y) / np.sqrt(unbiased_hsic(x, x) * unbiased_hsic(y, y))


def share(term, total):
    term, total = (rows - rows.mean(axis=0) for rows in (term, total))
    return (term * total).sum() / (total * total).sum()


def sum_terms(rows):
    return sum(rows[name] for name in rows if name.startswith("term/"))
