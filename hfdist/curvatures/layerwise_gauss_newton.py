"""The Gauss-Newton matrix without the blocks between different layers."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array

from hfdist.layers import layers_of
from hfdist.linearised import Linearised, linearised
from hfdist.problem import Batch, Problem
from hfdist.pytree import PyTree, inners
from hfdist.sums import Sums


def layerwise_gauss_newton(problem: Problem, params: PyTree, batch: Batch) -> Sums:
    """v -> Σ_b P_b Jᵀ H_z J P_b v, P_b leaving of v the layer b, as hfdist/layers.py
    has them.

    Block diagonal, and positive semidefinite as each block is (Abreu et al. 2025,
    arXiv 2510.09378). The products of a layer pass through what comes after it in the
    network alone: those of L layers alike cost L + 1 forward passes, and those with the
    whole matrix 4.

    Raises UsageError for a layer without the forward derivative.
    """
    at = linearised(problem, params, batch)
    layers = layers_of(params)
    jvps = [_jvp_of(at, own) for own in layers]

    def product(v):
        leaves, structure = jax.tree.flatten(v)
        for own, jvp in zip(layers, jvps, strict=True):
            part = [leaves[place] for place in own]
            (part,) = jax.linear_transpose(jvp, part)(at.output_hessian(jvp(part)))
            for place, leaf in zip(own, part, strict=True):
                leaves[place] = leaf
        return structure.unflatten(leaves)

    def form(vectors):
        flat = [jax.tree.leaves(v) for v in vectors]

        def form_of(own: list[int], jvp: Callable) -> Array:
            jv = [jvp([leaves[place] for place in own]) for leaves in flat]
            return inners(jv, [at.output_hessian(z) for z in jv])

        blocks = [form_of(*pair) for pair in zip(layers, jvps, strict=True)]
        return sum(blocks[1:], blocks[0]).astype(at.loss.dtype)

    return Sums(at.loss, at.weight, at.gradient, product, form)


def _jvp_of(at: Linearised, own: Sequence[int]) -> Callable[[list[Array]], Any]:
    """A layer's leaves of v -> J P_b v.

    J v is linear in them whatever the others are, so that what depends on the others
    alone is no part of its derivative: JAX leaves it out.
    """
    leaves, structure = jax.tree.flatten(at.wide)

    def with_others(part: list[Array]) -> Any:
        whole = list(leaves)
        for place, leaf in zip(own, part, strict=True):
            whole[place] = leaf
        return at.jvp(structure.unflatten(whole))

    _, tangent = jax.linearize(with_others, [leaves[place] for place in own])
    return tangent
