"""Sentences about a model for people: where its encoder began, how it was trained, whose licence holds. No torch."""

from __future__ import annotations

from wsi_ips.model.checkpoint_card import ModelCard
from wsi_ips.model.encoders import find_preset


def origin_text(card: ModelCard) -> str:
    """Name the weights that the encoder began with, for example ``published weights``; empty where not recorded."""
    origin = card.origin
    if origin is None:
        return ""
    began = {
        "random": "random weights to begin with",
        "published": "published weights to begin with",
        "file": f"weights from {origin.file} to begin with",
        "imported": "run by another tool",
    }[origin.source]
    return f"{began}, trained further from {' and then '.join(origin.through)}" if origin.through else began


def training_text(card: ModelCard) -> str:
    """Say what the network learned from and which part of it learned, without a full stop."""
    how = "from slide labels (Iterative Patch Selection)"
    if card.input == "features" or card.encoder.features:
        return f"Trained on stored features of an encoder that did not learn, {how}"
    if card.freeze == "none":
        return f"Trained end to end on pixels {how}"
    frozen = {
        "all": "the encoder did not learn",
        "lora": "of the encoder, only added low-rank matrices (LoRA) learned",
    }.get(str(card.freeze), f"the first {card.freeze} stages of the encoder did not learn")
    return f"Trained on pixels {how}; {frozen}"


def licence_text(card: ModelCard) -> str:
    """Say whose terms hold for the model because of the weights that its encoder began with."""
    name, origin = card.encoder.name, card.origin
    if origin is None:
        return f"Encoder {name}: where its weights began is not recorded; ask whoever trained the model."
    if origin.source == "imported":
        return (
            f"Encoder {name}: another tool computed its features; the licence of its weights holds for the model too."
        )
    if origin.source == "random":
        learned = f" and of those behind {', '.join(origin.through)}" if origin.through else ""
        return f"Encoder {name}: no published weights were used; the terms of its slides and labels{learned} hold."
    file = f" from the file {origin.file}" if origin.source == "file" else ""
    preset = find_preset(name)
    if preset is not None:
        allowed = {True: "commercial use allowed", False: "no commercial use", None: "commercial use: see its page"}
        terms = f"{preset.licence}, {allowed[preset.commercial]}"
        return f"Encoder weights {preset.key}{file}: {terms}. A model trained from them inherits the terms."
    if file:
        return f"Encoder {name}: weights{file}; its terms hold for the model too."
    return f"Encoder {name}: published weights; the licence on their page holds for the model too."
