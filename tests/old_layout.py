"""The summary of a run, laid out as `vitscope.results.schema` has it, until runs write it so."""

_TOP = ("schema_version", "kind", "model", "settings", "preprocessing", "data", "ledger")
_IMAGE = ("path", "image_id", "maps", "framing", "input_size", "grid", "verdict")
_UNDEFINED = {**dict.fromkeys(("mean", "std", "p05", "p50", "p95")), "n": 0}
_SPREADS = (
    *("attention_mass", "patch_share", "contribution_norm", "cosine", "centred_cosine"),
    *("restricted_cosine", "share", "centred_share"),
)


def lay_out(old):
    """A summary as runs write it, in the new layout."""
    new = {key: old[key] for key in _TOP if key in old}
    model = {k: v for k, v in old["model"].items() if k != "input_size"}
    if isinstance(patch := model["patch_size"], int):
        model["patch_size"] = [patch, patch]
    new["model"] = model
    new["settings"] = {k: v for k, v in old.get("settings", {}).items() if k != "layer"}
    new["data"] = {k: v for k, v in old["data"].items() if k != "num_dropped"}
    if old["kind"] == "one-shot":
        new |= {key: old[key] for key in ("draws", "readout", "accuracy", "chance")}
        return new | {"layer": old["settings"]["layer"]}
    if old["kind"] == "explanation":
        new |= {key: old[key] for key in ("layer", "reference", "references_not_used")}
        return new | {"images": [_lay_out_image(image) for image in old["images"]]}
    layers = old.get("layers") or {str(old["layer"]): old}
    new["layers"] = [_lay_out_layer(int(index), layer) for index, layer in layers.items()]
    similarity = old["layer_similarity"] or []
    new["layer_similarity"] = [{k: v for k, v in r.items() if k != "layer"} for r in similarity]
    new["high_norm_tokens"] = [
        {k: v for k, v in row.items() if k != "layer"} for row in old["high_norm_tokens"]
    ]
    covariates = old["covariates"]
    distributions = {k: _define(v) for k, v in covariates["distributions"].items()}
    new["covariates"] = covariates | {"distributions": distributions}
    return new | {"interdependence": old["interdependence"]}


def _lay_out_image(old):
    numbers = {k: v for k, v in old.items() if k not in _IMAGE}
    return {key: old[key] for key in _IMAGE} | {"numbers": numbers}


def _lay_out_layer(index, old):
    new = {"index": index}
    new["verdict"] = {
        "status": old["verdict"],
        "decided_by": old["decided_by"],
        **old["readings"],
        "main_other_source": old["main_other_source"],
        "text": old["verdict_text"],
    }
    new |= {name: _define(old[name]) for name in _SPREADS if name in old}
    for name in ("variance_share", "cka", "gram_ledger", "directions"):
        new[name] = old[name]
    return new | {"anatomy": _lay_out_anatomy(old["anatomy"]) if "anatomy" in old else None}


def _lay_out_anatomy(old):
    tokens = {}
    for name, token in old["tokens"].items():
        states = {k: v for k, v in token.items() if k != "top_dimensions"}
        tokens[name] = {"states": states, "top_dimensions": token["top_dimensions"]}
    new = {"norms": _define(old["norms"]), "tokens": tokens}
    return new | {name: old[name] for name in ("dominant_register", "analysed")}


def _define(tree):
    if tree is None:
        return dict(_UNDEFINED)
    if "mean" in tree:
        return tree
    return {key: _define(value) for key, value in tree.items()}
