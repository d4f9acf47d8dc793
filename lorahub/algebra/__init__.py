"""Adapters as vectors: exact arithmetic, lengths and angles, and rank reduction, from factors alone."""

from __future__ import annotations

from lorahub.algebra.adapter import Adapter, weighted
from lorahub.algebra.geometry import cosine, gram, inner, layer_grams, norm, normalised, orthogonal, project
from lorahub.algebra.lowrank import Block, LowRank
from lorahub.algebra.ranks import RankRule, budget, energy, fixed, relative
from lorahub.algebra.truncate import LayerReport, Truncated, spectrum, truncate

__all__ = [
    "Adapter",
    "Block",
    "LayerReport",
    "LowRank",
    "RankRule",
    "Truncated",
    "budget",
    "cosine",
    "energy",
    "fixed",
    "gram",
    "inner",
    "layer_grams",
    "norm",
    "normalised",
    "orthogonal",
    "project",
    "relative",
    "spectrum",
    "truncate",
    "weighted",
]
